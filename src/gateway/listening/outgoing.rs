//! What waits to be sent to one client. Bounded in bytes: whoever does not read fast enough is cut off and can resume.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// What a topic has for its listener.
#[derive(Clone, Debug)]
pub enum Item {
    Publication(Published),
    /// Something may have been missed: look at the history.
    Resync(Arc<str>),
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Item>,
    bytes: usize,
    overflowed: bool,
}

/// What one publication costs besides its frame, which all subscribers share.
const OVERHEAD_BYTES: usize = 64;

fn cost(item: &Item) -> usize {
    match item {
        Item::Publication(published) => published.frame.len() + OVERHEAD_BYTES,
        Item::Resync(_) => OVERHEAD_BYTES,
    }
}

impl Outgoing {
    pub fn new(limit_bytes: usize) -> Self {
        Self { queue: Mutex::default(), limit_bytes, ready: Notify::new(), cut_off: Notify::new() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves at most `max_bytes` (but at least one item) into `batch`. False: more came than is kept.
    pub fn take(&self, batch: &mut Vec<Item>, max_bytes: usize) -> bool {
        let mut queue = self.queue();
        let mut taken = 0;
        while taken < max_bytes
            && let Some(item) = queue.waiting.pop_front()
        {
            taken += cost(&item);
            queue.bytes -= cost(&item);
            batch.push(item);
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

impl Outgoing {
    fn push(&self, item: Item) {
        let mut queue = self.queue();
        if queue.overflowed {
            return;
        }
        if queue.bytes + cost(&item) > self.limit_bytes {
            // The client will get all of it by its position, so nothing of this needs to be kept.
            *queue = Queue { overflowed: true, ..Queue::default() };
            drop(queue);
            self.cut_off.notify_one();
            self.ready.notify_one();
            return;
        }
        queue.bytes += cost(&item);
        queue.waiting.push_back(item);
        let first = queue.waiting.len() == 1;
        drop(queue);
        if first {
            self.ready.notify_one();
        }
    }
}

impl Subscriber for Outgoing {
    fn deliver(&self, published: &Published) {
        self.push(Item::Publication(published.clone()));
    }

    fn resync(&self, topic: &Arc<str>) {
        self.push(Item::Resync(topic.clone()));
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
