//! What holds for as long as a connection does, and ends with it however it ends.

use std::sync::Arc;

use tokio::time::Instant;

use crate::cluster::Presence;
use crate::contract::Call;
use crate::contract::connection::Hold;
use crate::gateway::Gateway;
use crate::gateway::auth::Claims;

/// Its user is shown as present, for as long as this lives.
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

/// Something that an operation makes its connection hold, for as long as this lives.
pub struct Held {
    pub gateway: Arc<Gateway>,
    pub claims: Arc<Claims>,
    pub hold: &'static Hold,
    /// What is held: a device, a session.
    pub name: String,
    pub connection_id: Arc<str>,
    /// When it ends by itself.
    pub until: Option<Instant>,
    /// There is nothing to end.
    pub is_over: bool,
}

impl Held {
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

impl Drop for Held {
    fn drop(&mut self) {
        if !self.is_over {
            tokio::spawn((self.hold.end)(self.call(), std::mem::take(&mut self.name)));
        }
    }
}
