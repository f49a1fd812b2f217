//! What users have of this node and of the whole: connections, and frames that they send over all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::gateway::problem::{Outcome, Problem};
use crate::kernel::error::ErrorCode;
use crate::persistence::limits::{Nodes, Policy, RateLimiter};

pub struct Users {
    max_connections: usize,
    frames: Policy,
    here: Arc<Here>,
}

/// Connections of this node by user, and who counts those of all nodes.
struct Here {
    counts: Mutex<HashMap<String, usize>>,
    limiter: Arc<dyn RateLimiter>,
    nodes: Box<dyn Fn() -> Nodes + Send + Sync>,
}

impl Here {
    fn counts(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the others how many there are here. Their sum.
    async fn tell(&self, user_id: &str) -> usize {
        let here = self.counts().get(user_id).copied().unwrap_or_default();
        self.limiter.held(format!("connections:{user_id}"), here, (self.nodes)()).await
    }
}

/// One connection of a user, for as long as it lives.
pub struct Seat {
    user_id: String,
    here: Arc<Here>,
}

impl Users {
    pub fn new(
        max_connections: usize,
        frames: Policy,
        limiter: Arc<dyn RateLimiter>,
        nodes: Box<dyn Fn() -> Nodes + Send + Sync>,
    ) -> Self {
        Self {
            max_connections,
            frames,
            here: Arc::new(Here { counts: Mutex::default(), limiter, nodes }),
        }
    }

    /// For one more connection, unless the user has as many as are allowed.
    pub async fn seat(&self, user_id: &str) -> Outcome<Seat> {
        let full = || {
            Problem::new(ErrorCode::RateLimited, "too many connections of this user")
                .retry_after_ms(5_000)
        };
        let seat = {
            let mut counts = self.here.counts();
            let count = counts.entry(user_id.to_owned()).or_default();
            if *count >= self.max_connections {
                return Err(full());
            }
            *count += 1;
            Seat { user_id: user_id.into(), here: self.here.clone() }
        };
        if self.here.tell(user_id).await > self.max_connections {
            return Err(full());
        }
        Ok(seat)
    }

    /// Counts frames of a user. False: too many.
    pub async fn may_send(&self, user_id: &str, frames: u32) -> bool {
        let key = format!("frames:{user_id}");
        self.here.limiter.hits(key, frames, self.frames).await.allowed
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        {
            let mut counts = self.here.counts();
            if let Some(count) = counts.get_mut(&self.user_id) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&self.user_id);
                }
            }
        }
        if self.here.limiter.is_shared()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (here, user_id) = (self.here.clone(), std::mem::take(&mut self.user_id));
            runtime.spawn(async move { here.tell(&user_id).await });
        }
    }
}
