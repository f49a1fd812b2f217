//! What users have of this node and of the whole: connections, and frames and commands that they send over all of them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::contract::problem::{Outcome, Problem};
use crate::gateway::ws::Limits;
use crate::kernel::error::ErrorCode;
use crate::persistence::limits::{Held, Nodes, Policy, RateLimiter};

/// Before a count that could not be told is told again.
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// Users whose counts wait to be told. Of more, what others know may stay wrong until they connect here again.
const MAX_UNTOLD: usize = 100_000;

pub struct Users {
    max_connections: usize,
    frames: Policy,
    here: Arc<Here>,
}

/// Connections of this node by user, and who counts those of all nodes.
struct Here {
    counts: Mutex<Counts>,
    limiter: Arc<dyn RateLimiter>,
    nodes: Box<dyn Fn() -> Nodes + Send + Sync>,
    untold: Notify,
}

#[derive(Default)]
struct Counts {
    by_user: HashMap<String, usize>,
    /// Of the changes: a count that arrives late does not take the place of a newer one.
    version: u64,
    untold: HashSet<String>,
}

impl Here {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock()
    }

    /// Tells the others how many there are here. Their sum; `None`: they could not be told.
    async fn tell(&self, user_id: &str) -> Option<usize> {
        let here = {
            let mut counts = self.counts();
            counts.version += 1;
            let count = counts.by_user.get(user_id).copied().unwrap_or_default();
            Held { count, version: counts.version }
        };
        self.limiter.held(format!("connections:{user_id}"), here, (self.nodes)()).await
    }

    /// To be told by the task that does so.
    fn leave_to_tell(&self, user_id: String) {
        let mut counts = self.counts();
        if counts.untold.len() < MAX_UNTOLD {
            counts.untold.insert(user_id);
            self.untold.notify_one();
        }
    }
}

/// Tells what changed without anybody waiting for it, until it has been told.
async fn tell_changes(here: Weak<Here>) {
    loop {
        let Some(strong) = here.upgrade() else { return };
        let next = strong.counts().untold.iter().next().cloned();
        let Some(user_id) = next else {
            let changed = strong.untold.notified();
            // Looks up now and then whether the node is still there.
            let _ = tokio::time::timeout(TELL_AGAIN, changed).await;
            continue;
        };
        // What changes from here on is another change.
        strong.counts().untold.remove(&user_id);
        if strong.tell(&user_id).await.is_none() {
            strong.leave_to_tell(user_id);
            tokio::time::sleep(TELL_AGAIN).await;
        }
    }
}

/// One connection of a user, for as long as it lives.
pub struct Seat {
    user_id: String,
    here: Arc<Here>,
}

impl Users {
    pub fn new(
        limits: &Limits,
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

    /// For one more connection, unless the user has as many as are allowed.
    pub async fn seat(&self, user_id: &str) -> Outcome<Seat> {
        let full = || {
            let policy = format!("\"connections\";q={}", self.max_connections);
            Problem::new(ErrorCode::RateLimited, "too many connections of this user")
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
            Seat { user_id: user_id.into(), here: self.here.clone() }
        };
        match self.here.tell(user_id).await {
            Some(all) if all > self.max_connections => Err(full()),
            Some(_) => Ok(seat),
            // Each node for itself, until they can be counted together again.
            None => {
                self.here.leave_to_tell(user_id.into());
                Ok(seat)
            }
        }
    }

    /// Counts frames of a user. False: too many.
    pub async fn may_send(&self, user_id: &str, frames: u32) -> bool {
        let key = format!("frames:{user_id}");
        self.here.limiter.hits(key, frames, self.frames).await.allowed
    }
}

impl Users {}

impl Drop for Seat {
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
