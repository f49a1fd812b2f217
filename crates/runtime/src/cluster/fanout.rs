//! Topics across nodes. A topic belongs to the node that owns its slot; a node whose clients listen to it registers
//! there, and gets one message per publication, however many clients it has.
//!
//! Messages between nodes may be lost: with a link, with an owner, or because a node does not keep up. A listener that
//! may have missed a publication is told to read the history (`Subscriber::resync`): when it is registered, when the
//! topic's owner or the link to it has changed, and when the owner could not send.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use metrics::Counter;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::cluster::router::{Router, control};
use crate::cluster::slots::{SlotLocation, Slots};
use crate::cluster::topics::{Published, Reach, Topics};
use crate::cluster::transport::SendError;
use crate::kernel::codec;
use crate::kernel::ids::slot_of;

/// Most topics in one message.
const CHUNK: usize = 256;
/// Interval at which unanswered registrations are repeated.
const RETRY: Duration = Duration::from_millis(500);

#[derive(Debug, Serialize, Deserialize)]
enum Message {
    /// To the owner: send me these topics from now on.
    Listen(Vec<Arc<str>>),
    /// From the owner: you get these topics from now on.
    Listens(Vec<Arc<str>>),
    Leave(Vec<Arc<str>>),
    /// To listening nodes: a publication.
    Publication {
        topic: Arc<str>,
        offset: Option<i64>,
        event: Arc<str>,
        frame: String,
    },
    /// To the owner: publish this there. Nothing of it is stored.
    Post {
        topic: Arc<str>,
        event: Arc<str>,
        frame: String,
    },
    /// To a listening node: a publication could not be sent.
    Missed,
}

struct Registration {
    owner: i64,
    /// The slot's epoch: an owner that lost the slot and got it back knows no listeners.
    epoch: i64,
    /// Whether the owner has answered.
    listens: bool,
}

/// This node's part in the topics of the cluster.
pub struct Fanout {
    router: Router,
    slots: Slots,
    topics: Topics,
    /// Nodes that listen to topics owned here.
    listeners: DashMap<Arc<str>, HashSet<i64>>,
    /// Nodes that missed a publication and have to be told.
    behind: Mutex<HashSet<i64>>,
    /// Topics that clients of this node listen to, and the owner that each was registered with.
    registered: Mutex<HashMap<Arc<str>, Registration>>,
    /// Topics that got their first listener here, or lost the last.
    changed: Mutex<HashSet<Arc<str>>>,
    wake: Notify,
    look_at_all: Notify,
    sent: Counter,
}

/// The slot of a topic: that of the entity it belongs to.
pub fn topic_slot(topic: &str) -> u16 {
    let (kind, key) = topic.split_once(':').unwrap_or(("", topic));
    slot_of(kind, key)
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = vec![control::TOPICS];
    bytes.extend(codec::encode(message));
    bytes
}

impl Fanout {
    pub fn new(router: Router, slots: Slots, topics: Topics) -> Arc<Self> {
        Arc::new(Self {
            router,
            slots,
            topics,
            listeners: DashMap::new(),
            behind: Mutex::default(),
            registered: Mutex::default(),
            changed: Mutex::default(),
            wake: Notify::new(),
            look_at_all: Notify::new(),
            sent: metrics::counter!("proxie_publications_sent_total"),
        })
    }

    /// Sends a message to all listening nodes, encoded once. Returns how many it was sent to.
    fn to_listeners(&self, topic: &str, message: impl FnOnce() -> Message) -> u64 {
        let Some(listeners) = self.listeners.get(topic) else { return 0 };
        let bytes = encoded(&message());
        let mut sent = 0;
        for peer in listeners.iter() {
            match self.router.announce(*peer, bytes.clone()) {
                Ok(()) => sent += 1,
                // Lost with the link: the node registers again over the next one.
                Err(SendError::Unreachable) => {}
                Err(_) => {
                    self.behind.lock().insert(*peer);
                    self.wake.notify_one();
                }
            }
        }
        sent
    }

    fn send(&self, peer: i64, message: &Message) -> Result<(), SendError> {
        self.router.announce(peer, encoded(message))
    }

    /// Handles a new link: registrations sent over the old one may have been lost.
    pub fn link_up(&self, peer: i64) {
        for registration in self.registered.lock().values_mut() {
            if registration.owner == peer {
                registration.listens = false;
            }
        }
        self.look_at_all.notify_one();
    }

    /// Forgets a dead node.
    pub fn forget(&self, peer: i64) {
        self.listeners.retain(|_, listeners| {
            listeners.remove(&peer);
            !listeners.is_empty()
        });
        self.behind.lock().remove(&peer);
    }

    /// Handles a message from another node, without its first byte.
    pub fn receive(&self, from: i64, bytes: &[u8]) {
        let Some(message) = codec::decode::<Message>(bytes) else { return };
        match message {
            Message::Listen(topics) => {
                let owned = |topic: &Arc<str>| {
                    matches!(self.slots.locate(topic_slot(topic)), SlotLocation::Here { .. })
                };
                let owned: Vec<Arc<str>> = topics.into_iter().filter(owned).collect();
                for topic in &owned {
                    self.listeners.entry(topic.clone()).or_default().insert(from);
                }
                // If another node owns a topic, the listener will learn of it and register there.
                if !owned.is_empty() {
                    let _ = self.send(from, &Message::Listens(owned));
                }
            }
            Message::Listens(topics) => {
                for topic in topics {
                    let known = match self.registered.lock().get_mut(&topic) {
                        Some(registration) if registration.owner == from => {
                            registration.listens = true;
                            true
                        }
                        _ => false,
                    };
                    if known {
                        self.topics.resync(&topic);
                    }
                }
            }
            Message::Leave(topics) => {
                for topic in topics {
                    if let Some(mut listeners) = self.listeners.get_mut(&topic) {
                        listeners.remove(&from);
                    }
                    self.listeners.remove_if(&topic, |_, listeners| listeners.is_empty());
                }
            }
            Message::Publication { topic, offset, event, frame } => {
                let frame = frame.into();
                self.topics.deliver(&Arc::new(Published { topic, offset, event, frame }));
            }
            Message::Post { topic, event, frame } => {
                let frame = frame.into();
                let published = Arc::new(Published { topic, offset: None, event, frame });
                // If the slot has moved on, the post is dropped: nothing of it is stored.
                if matches!(
                    self.slots.locate(topic_slot(&published.topic)),
                    SlotLocation::Here { .. }
                ) {
                    self.topics.publish(&published);
                }
            }
            Message::Missed => {
                let missed: Vec<Arc<str>> = self
                    .registered
                    .lock()
                    .iter()
                    .filter(|(_, registration)| registration.owner == from)
                    .map(|(topic, _)| topic.clone())
                    .collect();
                missed.iter().for_each(|topic| self.topics.resync(topic));
            }
        }
    }

    /// Keeps the registrations up to date.
    pub async fn run(self: Arc<Self>) {
        let mut moved = self.slots.changes();
        let mut tick = tokio::time::interval(RETRY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let all = tokio::select! {
                () = self.wake.notified() => false,
                () = self.look_at_all.notified() => true,
                changed = moved.changed() => if changed.is_ok() { true } else { return },
                _ = tick.tick() => self.registered.lock().values().any(|r| !r.listens),
            };
            let mut names = std::mem::take(&mut *self.changed.lock());
            if all {
                self.listeners.retain(|topic, _| {
                    !matches!(self.slots.locate(topic_slot(topic)), SlotLocation::There { .. })
                });
                names.extend(self.topics.names());
                names.extend(self.registered.lock().keys().cloned());
            }
            self.register(names);
            self.tell_behind();
        }
    }

    fn register(&self, topics: HashSet<Arc<str>>) {
        let me = self.slots.me();
        let mut listen: HashMap<i64, Vec<Arc<str>>> = HashMap::new();
        let mut leave: HashMap<i64, Vec<(Arc<str>, i64)>> = HashMap::new();
        let mut resync = Vec::new();
        let mut registered = self.registered.lock();
        for topic in topics {
            if !self.topics.is_subscribed(&topic) {
                if let Some(old) = registered.remove(&topic).filter(|old| old.owner != me) {
                    leave.entry(old.owner).or_default().push((topic, old.epoch));
                }
                continue;
            }
            match self.slots.locate(topic_slot(&topic)) {
                SlotLocation::There { incarnation: owner, epoch } => {
                    let known = registered.get(&topic);
                    if known.is_none_or(|known| known.epoch != epoch || !known.listens) {
                        let registration = Registration { owner, epoch, listens: false };
                        registered.insert(topic.clone(), registration);
                        listen.entry(owner).or_default().push(topic);
                    }
                }
                SlotLocation::Here { epoch } => {
                    let registration = Registration { owner: me, epoch, listens: true };
                    let old = registered.insert(topic.clone(), registration);
                    if old.is_some_and(|old| old.owner != me) {
                        resync.push(topic);
                    }
                }
                // The slot will have an owner soon, and then all topics are examined again.
                SlotLocation::Nowhere => {}
            }
        }
        drop(registered);
        for (owner, topics) in listen {
            for chunk in topics.chunks(CHUNK) {
                // Unanswered registrations are repeated.
                let _ = self.send(owner, &Message::Listen(chunk.to_vec()));
            }
        }
        for (owner, topics) in leave {
            for chunk in topics.chunks(CHUNK) {
                let names = chunk.iter().map(|(topic, _)| topic.clone()).collect();
                if self.send(owner, &Message::Leave(names)).is_err() {
                    self.leave_later(owner, chunk);
                }
            }
        }
        resync.iter().for_each(|topic| self.topics.resync(topic));
    }

    /// Retries a failed `Leave` in the next round, as long as the node still owns the topic: otherwise it would go on
    /// sending.
    fn leave_later(&self, owner: i64, topics: &[(Arc<str>, i64)]) {
        for (topic, epoch) in topics {
            let there = SlotLocation::There { incarnation: owner, epoch: *epoch };
            if self.slots.locate(topic_slot(topic)) == there {
                let registration = Registration { owner, epoch: *epoch, listens: true };
                self.registered.lock().entry(topic.clone()).or_insert(registration);
                self.changed.lock().insert(topic.clone());
            }
        }
    }

    fn tell_behind(&self) {
        let behind: Vec<i64> = self.behind.lock().iter().copied().collect();
        for peer in behind {
            if self.send(peer, &Message::Missed) != Err(SendError::Overloaded) {
                self.behind.lock().remove(&peer);
            }
        }
    }
}

impl Reach for Fanout {
    fn is_heard(&self, topic: &str) -> bool {
        self.listeners.contains_key(topic)
    }

    fn changed(&self, topic: &Arc<str>) {
        self.changed.lock().insert(topic.clone());
        self.wake.notify_one();
    }

    fn forward(&self, published: &Published) {
        let sent = self.to_listeners(&published.topic, || Message::Publication {
            topic: published.topic.clone(),
            offset: published.offset,
            event: published.event.clone(),
            frame: published.text().to_owned(),
        });
        self.sent.increment(sent);
    }

    fn missed(&self, topic: &Arc<str>) {
        self.to_listeners(topic, || Message::Listens(vec![topic.clone()]));
    }

    fn post(&self, published: &Arc<Published>) -> bool {
        match self.slots.locate(topic_slot(&published.topic)) {
            SlotLocation::Here { .. } => {
                self.topics.publish(published);
                true
            }
            SlotLocation::There { incarnation, .. } => {
                let message = Message::Post {
                    topic: published.topic.clone(),
                    event: published.event.clone(),
                    frame: published.text().to_owned(),
                };
                self.send(incarnation, &message).is_ok()
            }
            SlotLocation::Nowhere => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fixtures::{Narrow, Nobody};
    use crate::cluster::slots::SlotOwnership;
    use crate::cluster::topics::Subscriber;
    use crate::cluster::transport::Envelope;

    impl Subscriber for Nobody {
        fn deliver(&self, _: u64, _: &Arc<Published>) {}
        fn resync(&self, _: u64) {}
    }

    fn listens_and_leaves(link: &Narrow) -> (usize, usize) {
        let mut counts = (0, 0);
        for envelope in link.sent() {
            let Envelope::Control(bytes) = envelope else { continue };
            match codec::decode::<Message>(&bytes[1..]) {
                Some(Message::Listen(topics)) => counts.0 += topics.len(),
                Some(Message::Leave(topics)) => counts.1 += topics.len(),
                _ => {}
            }
        }
        counts
    }

    #[test]
    fn an_owner_that_could_not_be_told_is_told_later() {
        let slots = Slots::unknown(1);
        slots.learn(topic_slot("app:lobby"), SlotOwnership { owner: Some(2), epoch: 5 }, 0);
        let router = Router::new(Arc::new(Nobody), slots.clone());
        let topics = Topics::default();
        let link = Arc::new(Narrow::default());
        router.connect(link.clone(), Arc::new(Nobody));
        let fanout = Fanout::new(router, slots, topics.clone());
        let topic: Arc<str> = "app:lobby".into();
        let look = || {
            let names = std::mem::take(&mut *fanout.changed.lock());
            fanout.register(names);
        };

        let subscription = topics.subscribe(&topic, 0, Arc::new(Nobody));
        fanout.changed(&topic);
        look();
        assert_eq!(listens_and_leaves(&link), (1, 0));
        drop(subscription);
        fanout.changed(&topic);
        link.room(false);
        look();
        assert_eq!(listens_and_leaves(&link), (1, 0));
        link.room(true);
        look();
        assert_eq!(listens_and_leaves(&link), (1, 1));
        look();
        assert_eq!(listens_and_leaves(&link), (1, 1), "once is enough");
    }
}
