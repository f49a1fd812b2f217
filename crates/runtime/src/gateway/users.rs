//! Per-user quotas: connections on this node and in the cluster, and frames over all of a user's connections.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::contract::problem::{Outcome, Problem};
use crate::gateway::ws::ConnectionLimits;
use crate::kernel::error::ErrorCode;
use crate::persistence::limits::{ConnectionCount, Nodes, Policy, RateLimiter};

/// Pause before a failed report of a count is repeated.
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// Most users whose counts wait to be reported. Beyond this, other nodes may have a wrong count of a user until they
/// connect here again.
const MAX_UNTOLD: usize = 100_000;

pub struct Users {
    max_connections: usize,
    frames: Policy,
    here: Arc<Here>,
}

/// Connections of this node by user, and the limiter that counts those of all nodes.
struct Here {
    counts: Mutex<Counts>,
    limiter: Arc<dyn RateLimiter>,
    nodes: Box<dyn Fn() -> Nodes + Send + Sync>,
    untold: Notify,
}

#[derive(Default)]
struct Counts {
    by_user: HashMap<String, usize>,
    /// Number of changes so far: a count that arrives late does not replace a newer one.
    version: u64,
    untold: HashSet<String>,
}

impl Here {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock()
    }

    /// Reports this node's count of a user's connections and returns the sum over all nodes; `None`: it could not be
    /// reported.
    async fn tell(&self, user_id: &str) -> Option<usize> {
        let here = {
            let mut counts = self.counts();
            counts.version += 1;
            let count = counts.by_user.get(user_id).copied().unwrap_or_default();
            ConnectionCount { count, version: counts.version }
        };
        self.limiter.held(format!("connections:{user_id}"), here, (self.nodes)()).await
    }

    /// Leaves the report to the background task.
    fn leave_to_tell(&self, user_id: String) {
        let mut counts = self.counts();
        if counts.untold.len() < MAX_UNTOLD {
            counts.untold.insert(user_id);
            self.untold.notify_one();
        }
    }
}

/// Reports changed counts in the background, repeating each until it succeeds.
async fn tell_changes(here: Weak<Here>) {
    loop {
        let Some(strong) = here.upgrade() else { return };
        let next = strong.counts().untold.iter().next().cloned();
        let Some(user_id) = next else {
            let changed = strong.untold.notified();
            // Wakes up now and then to see whether the node still exists.
            let _ = tokio::time::timeout(TELL_AGAIN, changed).await;
            continue;
        };
        // A change from here on is reported again.
        strong.counts().untold.remove(&user_id);
        if strong.tell(&user_id).await.is_none() {
            strong.leave_to_tell(user_id);
            tokio::time::sleep(TELL_AGAIN).await;
        }
    }
}

/// One connection of a user, for as long as it lives.
pub struct ConnectionSlot {
    user_id: String,
    here: Arc<Here>,
}

impl Users {
    pub fn new(
        limits: &ConnectionLimits,
        limiter: Arc<dyn RateLimiter>,
        nodes: Box<dyn Fn() -> Nodes + Send + Sync>,
    ) -> Self {
        let (counts, untold) = (Mutex::default(), Notify::new());
        let here = Arc::new(Here { counts, limiter, nodes, untold });
        if here.limiter.is_shared() {
            tokio::spawn(tell_changes(Arc::downgrade(&here)));
        }
        Self {
            max_connections: limits.max_connections_per_user,
            frames: Policy { quota: limits.frames_per_minute_per_user, window_s: 60 },
            here,
        }
    }

    /// Takes a seat for one more connection, unless the user already has as many as are allowed.
    pub async fn seat(&self, user_id: &str) -> Outcome<ConnectionSlot> {
        let full = || {
            let policy = format!("\"connections\";q={}", self.max_connections);
            Problem::new(ErrorCode::RateLimited, "this user has too many connections")
                .retry_after_ms(5_000)
                .header("ratelimit-policy", policy)
                .header("ratelimit", "\"connections\";r=0;t=5")
        };
        let seat = {
            let mut counts = self.here.counts();
            let count = counts.by_user.entry(user_id.to_owned()).or_default();
            if *count >= self.max_connections {
                return Err(full());
            }
            *count += 1;
            ConnectionSlot { user_id: user_id.into(), here: self.here.clone() }
        };
        match self.here.tell(user_id).await {
            Some(all) if all > self.max_connections => Err(full()),
            Some(_) => Ok(seat),
            // Each node counts alone until the nodes can count together again.
            None => {
                self.here.leave_to_tell(user_id.into());
                Ok(seat)
            }
        }
    }

    /// Counts frames of a user. False: the user has sent too many.
    pub async fn may_send(&self, user_id: &str, frames: u32) -> bool {
        let key = format!("frames:{user_id}");
        self.here.limiter.hits(key, frames, self.frames).await.allowed
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        {
            let mut counts = self.here.counts();
            if let Some(count) = counts.by_user.get_mut(&self.user_id) {
                *count -= 1;
                if *count == 0 {
                    counts.by_user.remove(&self.user_id);
                }
            }
        }
        if self.here.limiter.is_shared() {
            self.here.leave_to_tell(std::mem::take(&mut self.user_id));
        }
    }
}
