//! The topics that a person's devices listen to.

use crate::contract::topic::{Topic, only_their_own};
use crate::contract::{Call, Outcome};
use crate::systems::devices::operations::devices;

/// The log of the data that a person's devices share.
pub struct Log;

impl Topic for Log {
    const KIND: &'static str = "sync";
    const SUMMARY: &'static str = "Changes of the data that a person's devices share";

    async fn may_listen(call: &Call, key: &str) -> Outcome<()> {
        only_their_own(call, key)
    }
}

/// The topic of one device of the listener.
pub struct OneDevice;

impl Topic for OneDevice {
    const KIND: &'static str = "device";
    const SUMMARY: &'static str = "Remote commands for one device";

    async fn may_listen(call: &Call, key: &str) -> Outcome<()> {
        devices::shown(call, key).await.map(drop)
    }
}
