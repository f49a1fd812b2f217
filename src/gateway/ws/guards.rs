//! What holds for as long as a connection does, and ends with it however it ends.

use std::sync::Arc;

use crate::cluster::Presence;
use crate::contract::problem::Outcome;
use crate::gateway::Gateway;
use crate::gateway::auth::Claims;
use crate::systems::devices::domain::clock::DeviceId;
use crate::systems::devices::operations::devices;

/// Its user is shown as present, for as long as this lives.
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

/// It speaks for this device, for as long as this lives.
pub struct Bound {
    pub gateway: Arc<Gateway>,
    pub claims: Arc<Claims>,
    pub device: DeviceId,
    pub connection_id: String,
}

impl Bound {
    pub async fn connect(self) -> Outcome<Self> {
        let call = self.gateway.call(&self.claims, String::new());
        match devices::connect(&call, self.device, &self.connection_id).await {
            Ok(()) => Ok(self),
            Err(problem) => {
                // An earlier guard of this connection may speak for it.
                self.forget();
                Err(problem)
            }
        }
    }

    pub fn renew(&self) -> impl Future<Output = Outcome<()>> + Send + use<> {
        let (gateway, claims) = (self.gateway.clone(), self.claims.clone());
        let (device, connection_id) = (self.device, self.connection_id.clone());
        let call = gateway.call(&claims, String::new());
        async move { devices::renew(&call, device, &connection_id).await }
    }

    /// Another guard of this connection holds the same.
    pub fn forget(mut self) {
        self.connection_id.clear();
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if self.connection_id.is_empty() {
            return;
        }
        let (gateway, claims) = (self.gateway.clone(), self.claims.clone());
        let (device, connection_id) = (self.device, std::mem::take(&mut self.connection_id));
        tokio::spawn(async move {
            // If nobody hears it, the device's lease ends by itself.
            let call = gateway.call(&claims, String::new());
            let _ = devices::disconnect(&call, device, &connection_id).await;
        });
    }
}
