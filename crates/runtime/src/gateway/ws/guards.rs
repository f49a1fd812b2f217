//! Guards that last as long as their connection and end with it, however it ends.

use std::sync::Arc;

use tokio::time::Instant;

use crate::cluster::Presence;
use crate::contract::Call;
use crate::contract::connection::ConnectionHold;
use crate::gateway::Gateway;
use crate::gateway::auth::Claims;

/// Shows the connection's user as present for as long as this lives.
pub struct Present {
    pub presence: Arc<Presence>,
    pub user_id: String,
    pub connection_id: Arc<str>,
}

impl Drop for Present {
    fn drop(&mut self) {
        self.presence.clear(&self.user_id, &self.connection_id);
    }
}

/// Something that the connection holds because of an operation, for as long as this lives.
pub struct HoldGuard {
    pub gateway: Arc<Gateway>,
    pub claims: Arc<Claims>,
    pub hold: &'static ConnectionHold,
    /// The name of what is held, such as a device or a session.
    pub name: String,
    pub connection_id: Arc<str>,
    /// When it ends by itself.
    pub until: Option<Instant>,
    /// There is nothing to end.
    pub is_over: bool,
}

impl HoldGuard {
    fn call(&self) -> Call {
        let mut call = self.gateway.call(&self.claims, String::new());
        call.connection = Some(self.connection_id.clone());
        call
    }

    pub fn renew(&self) {
        if let Some(renew) = self.hold.renew {
            tokio::spawn(renew(self.call(), self.name.clone()));
        }
    }
}

impl Drop for HoldGuard {
    fn drop(&mut self) {
        if !self.is_over {
            tokio::spawn((self.hold.end)(self.call(), std::mem::take(&mut self.name)));
        }
    }
}
