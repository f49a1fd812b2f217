//! Guards that last as long as their connection and end with it, however it ends.

use std::sync::Arc;

use tokio::time::Instant;

use crate::cluster::Presence;
use crate::contract::Call;
use crate::contract::connection::Hold;
use crate::gateway::Gateway;
use crate::gateway::auth::Claims;

/// Shows the connection's user as present for as long as this lives.
pub struct Present {
    pub presence: Arc<Presence>,
    pub user_id: String,
    pub connection_id: String,
}

impl Drop for Present {
    fn drop(&mut self) {
        self.presence.clear(&self.user_id, &self.connection_id);
    }
}

/// Something that the connection holds because of an operation, for as long as this lives.
pub struct Held {
    pub gateway: Arc<Gateway>,
    pub claims: Arc<Claims>,
    pub hold: &'static Hold,
    /// The name of what is held, such as a device or a session.
    pub name: String,
    pub connection_id: String,
    /// When the hold ends by itself.
    pub until: Option<Instant>,
}

impl Held {
    pub fn call(&self, id: String) -> Call {
        let mut call = self.gateway.call(&self.claims, id);
        call.connection = Some(self.connection_id.as_str().into());
        call
    }

    pub fn renew(&self) {
        if let Some(renew) = self.hold.renew {
            tokio::spawn(renew(self.call(String::new()), self.name.clone()));
        }
    }

    /// Drops the guard without an effect: another guard of this connection holds the same thing, or nothing is held.
    pub fn forget(mut self) {
        self.connection_id.clear();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.connection_id.is_empty() {
            let call = self.call(String::new());
            tokio::spawn((self.hold.end)(call, std::mem::take(&mut self.name)));
        }
    }
}
