//! What waits to be sent to one client. Bounded in bytes: whoever does not read fast enough is cut off and can resume.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::cluster::topics::{Published, Subscriber};

pub struct Outgoing {
    queue: Mutex<Queue>,
    limit_bytes: usize,
    /// Something waits.
    ready: Notify,
    /// Too much waits: also interrupts a write that does not get on.
    cut_off: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Published>,
    bytes: usize,
    overflowed: bool,
}

/// What one publication costs besides its frame, which all subscribers share.
const OVERHEAD_BYTES: usize = 64;

fn cost(published: &Published) -> usize {
    published.frame.len() + OVERHEAD_BYTES
}

impl Outgoing {
    pub fn new(limit_bytes: usize) -> Self {
        Self { queue: Mutex::default(), limit_bytes, ready: Notify::new(), cut_off: Notify::new() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves at most `max_bytes` (but at least one publication) into `batch`. False: more came than is kept.
    pub fn take(&self, batch: &mut Vec<Published>, max_bytes: usize) -> bool {
        let mut queue = self.queue();
        let mut taken = 0;
        while taken < max_bytes
            && let Some(published) = queue.waiting.pop_front()
        {
            taken += cost(&published);
            queue.bytes -= cost(&published);
            batch.push(published);
        }
        if !queue.waiting.is_empty() {
            self.ready.notify_one();
        }
        !queue.overflowed
    }

    pub async fn ready(&self) {
        self.ready.notified().await;
    }

    pub async fn cut_off(&self) {
        self.cut_off.notified().await;
    }
}

impl Subscriber for Outgoing {
    fn deliver(&self, published: &Published) {
        let mut queue = self.queue();
        if queue.overflowed {
            return;
        }
        if queue.bytes + cost(published) > self.limit_bytes {
            // The client will get all of it by its position, so nothing of this needs to be kept.
            *queue = Queue { overflowed: true, ..Queue::default() };
            drop(queue);
            self.cut_off.notify_one();
            self.ready.notify_one();
            return;
        }
        queue.bytes += cost(published);
        queue.waiting.push_back(published.clone());
        let first = queue.waiting.len() == 1;
        drop(queue);
        if first {
            self.ready.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_too_slow_is_cut_off() {
        let outgoing = Outgoing::new(1_000);
        let published = Published::new("user:a", Some(1), "e", &format!("\"{}\"", "x".repeat(300)));
        let mut batch = Vec::new();
        outgoing.deliver(&published);
        outgoing.deliver(&published);
        assert!(outgoing.take(&mut batch, 1));
        assert_eq!(batch.len(), 1);
        assert!(outgoing.take(&mut batch, usize::MAX));
        for _ in 0..3 {
            outgoing.deliver(&published);
        }
        assert!(!outgoing.take(&mut batch, usize::MAX));
        assert_eq!(batch.len(), 2);
    }
}
