//! The heartbeats between nodes: one small message to every other node, from a task that waits for nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::watch;

use crate::cluster::Router;
use crate::cluster::lease::boottime_ms;
use crate::cluster::pulse::Pulse;
use crate::cluster::router::control;
use crate::persistence::members::Beat;

const INTERVAL: Duration = Duration::from_millis(300);
/// If this node's own heartbeat is this late, the node was stopped or starved.
const ASLEEP_MS: i64 = 900;

/// The heartbeats of linked peers. Times are milliseconds on the clock of the lease.
#[derive(Default)]
pub struct Pulses {
    peers: DashMap<i64, Pulse>,
    /// When this node last sent its own.
    sent_ms: AtomicI64,
}

impl Pulses {
    pub fn up(&self, peer: i64, now_ms: i64) {
        self.peers.insert(peer, Pulse::new(now_ms, INTERVAL.as_millis() as i64));
    }

    pub fn forget(&self, peer: i64) {
        self.peers.remove(&peer);
    }

    pub fn heard(&self, peer: i64, now_ms: i64) {
        if let Some(mut pulse) = self.peers.get_mut(&peer) {
            pulse.heard(now_ms);
        }
    }

    /// How long an overdue peer has been silent; `None`: it is not overdue.
    pub fn silent_ms(&self, peer: i64, now_ms: i64) -> Option<i64> {
        let pulse = self.peers.get(&peer)?;
        pulse.is_silent(now_ms).then(|| pulse.silent_ms(now_ms))
    }

    /// Whether this node's own heartbeat is on time. If not, the silence of others proves nothing.
    pub fn is_awake(&self, now_ms: i64) -> bool {
        now_ms - self.sent_ms.load(Ordering::Acquire) < ASLEEP_MS
    }

    /// Records that this node sends its own heartbeat.
    pub fn tick(&self, now_ms: i64) {
        if !self.is_awake(now_ms) {
            self.peers.iter_mut().for_each(|mut pulse| pulse.forgive(now_ms));
        }
        self.sent_ms.store(now_ms, Ordering::Release);
    }
}

pub async fn ping(router: Router, pulses: Arc<Pulses>, beats: watch::Receiver<Beat>) {
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        pulses.tick(boottime_ms());
        let peers: Vec<i64> =
            beats.borrow().members.iter().map(|member| member.incarnation).collect();
        for peer in peers {
            // Nothing is sent to this node itself, or to a peer without a link.
            let _ = router.announce(peer, vec![control::PING]);
        }
    }
}
