//! The queue of publications for one client, bounded in bytes: a client that does not read fast enough is cut off and
//! can resume.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, MutexGuard};

use crate::cluster::topics::{Published, Subscriber};

pub struct SendQueue {
    queue: Mutex<Queue>,
    /// Whether an item waits or the queue has overflowed. Read without the lock, changed under it.
    ready: AtomicBool,
    limit_bytes: usize,
}

/// A queued item of a topic for its listener.
#[derive(Clone, Debug)]
pub struct QueuedItem {
    /// The subscription's key. An odd key means that only the latest publication matters.
    pub key: u64,
    /// `None`: publications may have been lost, so read the history.
    pub published: Option<Arc<Published>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<QueuedItem>,
    bytes: usize,
    overflowed: bool,
    /// Waker of the one sending task.
    sender: Option<Waker>,
}

/// Capacity, in items, that an empty queue keeps.
const ROOM_KEPT: usize = 32;
/// Most bytes that are moved to the sender at once. They no longer count against the limit.
const TAKEN_BYTES: usize = 64 * 1024;
/// Cost of a queued publication in addition to its frame, which all subscribers share.
const OVERHEAD_BYTES: usize = 64;

fn cost(item: &QueuedItem) -> usize {
    item.published.as_ref().map_or(0, |published| published.frame.len()) + OVERHEAD_BYTES
}

/// The error of a queue that got more than its limit.
#[derive(Debug)]
pub struct Overflowed;

impl SendQueue {
    pub fn new(limit_bytes: usize) -> Self {
        Self { queue: Mutex::default(), ready: AtomicBool::new(false), limit_bytes }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// Moves the waiting items to `taken`, which is empty; if they are many, only the first part.
    pub fn take(&self, taken: &mut VecDeque<QueuedItem>) -> Result<(), Overflowed> {
        if !self.ready.load(Ordering::Acquire) {
            if taken.capacity() > ROOM_KEPT {
                // The burst is over; without this, every connection that it reached would keep the memory.
                *taken = VecDeque::new();
            }
            return Ok(());
        }
        let mut queue = self.queue();
        if queue.bytes <= TAKEN_BYTES {
            std::mem::swap(&mut queue.waiting, taken);
            queue.bytes = 0;
        } else {
            let mut bytes = 0;
            while bytes < TAKEN_BYTES
                && let Some(item) = queue.waiting.pop_front()
            {
                bytes += cost(&item);
                taken.push_back(item);
            }
            queue.bytes -= bytes;
        }
        if queue.waiting.is_empty() && queue.waiting.capacity() > ROOM_KEPT {
            queue.waiting = VecDeque::new();
        }
        self.ready.store(queue.overflowed || !queue.waiting.is_empty(), Ordering::Release);
        if queue.overflowed { Err(Overflowed) } else { Ok(()) }
    }

    /// Ready when an item waits or the queue has overflowed.
    pub fn poll_ready(&self, context: &Context<'_>) -> Poll<()> {
        if self.ready.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        self.poll(context, |queue| queue.overflowed || !queue.waiting.is_empty())
    }

    /// Ready when the queue has overflowed. This also interrupts a write that makes no progress.
    pub fn poll_cut_off(&self, context: &Context<'_>) -> Poll<()> {
        self.poll(context, |queue| queue.overflowed)
    }

    fn poll(&self, context: &Context<'_>, holds: impl Fn(&Queue) -> bool) -> Poll<()> {
        let mut queue = self.queue();
        if holds(&queue) {
            return Poll::Ready(());
        }
        match &mut queue.sender {
            Some(sender) => sender.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl Queue {
    fn wake(&self) {
        if let Some(sender) = &self.sender {
            sender.wake_by_ref();
        }
    }
}

impl SendQueue {
    fn push(&self, item: QueuedItem) {
        let mut queue = self.queue();
        if queue.overflowed {
            return;
        }
        let same = |other: &QueuedItem| other.key == item.key && other.published.is_some();
        if item.key & 1 == 1
            && item.published.is_some()
            && let Some(at) = queue.waiting.iter().position(same)
        {
            // Replaces the waiting one in place: the topic keeps its turn, and none of its publications overtakes an
            // earlier one.
            queue.bytes = queue.bytes - cost(&queue.waiting[at]) + cost(&item);
            queue.waiting[at] = item;
            return;
        }
        if queue.bytes + cost(&item) > self.limit_bytes {
            // The client will resume from its position and get all of this then, so nothing needs to be kept.
            (queue.waiting, queue.bytes, queue.overflowed) = (VecDeque::new(), 0, true);
            self.ready.store(true, Ordering::Release);
            return queue.wake();
        }
        queue.bytes += cost(&item);
        queue.waiting.push_back(item);
        if queue.waiting.len() == 1 {
            self.ready.store(true, Ordering::Release);
            queue.wake();
        }
    }
}

impl Subscriber for SendQueue {
    fn deliver(&self, key: u64, published: &Arc<Published>) {
        self.push(QueuedItem { key, published: Some(published.clone()) });
    }

    fn resync(&self, key: u64) {
        self.push(QueuedItem { key, published: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_some_topics_only_the_latest_waits() {
        let outgoing = SendQueue::new(1_000);
        let price = |n: u32| Published::new("app:price", None, "app:set", &n.to_string());
        outgoing.deliver(3, &price(0));
        outgoing.deliver(2, &price(1));
        for n in 2..100 {
            outgoing.deliver(3, &price(n));
        }
        let mut taken = VecDeque::new();
        outgoing.take(&mut taken).unwrap();
        let latest = taken[0].published.as_ref().unwrap().text();
        assert!(latest.contains(":99}"), "{latest}");
        assert_eq!(taken.iter().map(|item| item.key).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(outgoing.queue().bytes, 0);
    }

    #[test]
    fn much_is_taken_in_parts_and_all_of_it_in_order() {
        let outgoing = SendQueue::new(1_048_576);
        let data = format!("\"{}\"", "x".repeat(1_000));
        let published = Published::new("app:big", None, "app:set", &data);
        (0..200).for_each(|key| outgoing.deliver(2 * key, &published));
        let (mut taken, mut all) = (VecDeque::new(), Vec::new());
        while outgoing.poll_ready(&Context::from_waker(Waker::noop())).is_ready() {
            outgoing.take(&mut taken).unwrap();
            assert!(taken.len() < 100);
            all.extend(taken.drain(..).map(|item| item.key));
        }
        assert!(all.iter().copied().eq((0..200).map(|key| 2 * key)), "{all:?}");
        assert_eq!(outgoing.queue().bytes, 0);
    }

    #[test]
    fn whoever_is_too_slow_is_cut_off() {
        let outgoing = SendQueue::new(1_000);
        let published = Published::new("user:a", Some(1), "e", &format!("\"{}\"", "x".repeat(300)));
        let mut taken = VecDeque::new();
        outgoing.deliver(8, &published);
        outgoing.deliver(8, &published);
        outgoing.take(&mut taken).unwrap();
        assert_eq!(taken.len(), 2);
        taken.clear();
        outgoing.take(&mut taken).unwrap();
        assert!(taken.is_empty());
        for _ in 0..3 {
            outgoing.deliver(8, &published);
        }
        assert!(outgoing.take(&mut taken).is_err());
        let context = Context::from_waker(Waker::noop());
        assert!(outgoing.poll_ready(&context).is_ready(), "it has to be told");
        assert!(outgoing.poll_cut_off(&context).is_ready());
    }
}
