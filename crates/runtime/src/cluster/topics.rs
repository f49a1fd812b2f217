//! Topics on this node: their subscribers, and the delivery of publications. Traffic between nodes is in `fanout`.
//!
//! A publication is serialised once and shared by reference. Delivery never waits for a subscriber: each bounds its own
//! buffer and is cut off beyond that.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use dashmap::DashMap;
use serde_json::value::RawValue;

/// One publication, as clients get it.
#[derive(Clone, Debug)]
pub struct Published {
    pub topic: Arc<str>,
    /// The offset; `None`: the publication is lossy and not replayed.
    pub offset: Option<i64>,
    pub event: Arc<str>,
    /// The complete frame, `{"event":…,"topic":…,"offset":…,"data":…}`, in UTF-8: all sockets write the same bytes.
    pub frame: Bytes,
}

impl Published {
    /// A publication without a sender. `data` must be JSON.
    pub fn new(topic: &str, offset: Option<i64>, event: &str, data: &str) -> Arc<Self> {
        Self::said(topic, offset, event, None, data)
    }

    /// A publication with the user who sent it.
    pub fn said(
        topic: &str,
        offset: Option<i64>,
        event: &str,
        from: Option<&str>,
        data: &str,
    ) -> Arc<Self> {
        #[derive(serde::Serialize)]
        struct Frame<'a> {
            event: &'a str,
            topic: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            offset: Option<i64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            from: Option<&'a str>,
            data: &'a RawValue,
        }
        let null = RawValue::NULL;
        let data: &RawValue = serde_json::from_str(data).unwrap_or(null);
        let frame = serde_json::to_string(&Frame { event, topic, offset, from, data })
            .expect("a frame serialises");
        Arc::new(Self { topic: topic.into(), offset, event: event.into(), frame: frame.into() })
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.frame).unwrap_or_default()
    }
}

/// A receiver of publications. It must not block: it buffers within a bound, or drops itself.
pub trait Subscriber: Send + Sync {
    /// Delivers a publication. `key` is the one given to [`Topics::subscribe`].
    fn deliver(&self, key: u64, published: &Arc<Published>);
    /// Tells the subscriber that publications of the topic may have been missed, so it should read the history.
    fn resync(&self, key: u64);
}

/// The connection of topics to other nodes.
pub trait Reach: Send + Sync {
    /// The topic got its first listener on this node, or lost its last.
    fn changed(&self, topic: &Arc<str>);
    /// Whether another node listens.
    fn is_heard(&self, topic: &str) -> bool;
    /// Sends a publication of a topic owned here to the listening nodes.
    fn forward(&self, published: &Published);
    /// Tells the nodes that listen to a topic owned here to read its history.
    fn missed(&self, topic: &Arc<str>);
    /// Publishes to a topic without history, wherever it belongs. False: its owner cannot be reached.
    fn post(&self, published: &Arc<Published>) -> bool;
}

/// Subscribers by order of arrival, which is roughly their order in memory.
type Subscribers = BTreeMap<u64, (u64, Arc<dyn Subscriber>)>;

/// The topics of this node. Cheap to clone.
#[derive(Clone, Default)]
pub struct Topics {
    topics: Arc<DashMap<Arc<str>, Subscribers>>,
    next_id: Arc<AtomicU64>,
    /// Set once, in a cluster.
    reach: Arc<OnceLock<Arc<dyn Reach>>>,
}

impl Topics {
    /// Subscribes to a topic. Call it before reading history, so that nothing is lost in between. Dropping the
    /// subscription ends it.
    pub fn subscribe(
        &self,
        topic: &str,
        key: u64,
        subscriber: Arc<dyn Subscriber>,
    ) -> Subscription {
        let topic: Arc<str> = topic.into();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut subscribers = self.topics.entry(topic.clone()).or_default();
        subscribers.insert(id, (key, subscriber));
        let first = subscribers.len() == 1;
        drop(subscribers);
        if first && let Some(reach) = self.reach.get() {
            reach.changed(&topic);
        }
        Subscription { topics: self.clone(), topic, id }
    }

    /// Connects the topics to other nodes.
    pub fn connect(&self, reach: Arc<dyn Reach>) {
        let _ = self.reach.set(reach);
    }

    /// Publishes to all listeners on any node. For topics of entities that live here.
    pub fn publish(&self, published: &Arc<Published>) {
        self.deliver(published);
        if let Some(reach) = self.reach.get() {
            reach.forward(published);
        }
    }

    /// Publishes to a topic that does not belong to an entity, from any node. False: its owner cannot be reached now.
    pub fn post(&self, published: &Arc<Published>) -> bool {
        match self.reach.get() {
            Some(reach) => reach.post(published),
            None => {
                self.deliver(published);
                true
            }
        }
    }

    /// Delivers to all listeners on this node.
    pub fn deliver(&self, published: &Arc<Published>) {
        if let Some(subscribers) = self.topics.get(&published.topic) {
            for (key, subscriber) in subscribers.values() {
                subscriber.deliver(*key, published);
            }
        }
    }

    /// Handles a commit to this topic that was not published because nobody listened: clients that listen by now are
    /// told to read the history.
    pub fn missed(&self, kind: &str, key: &str) {
        if self.topics.is_empty() && self.reach.get().is_none() {
            return;
        }
        let topic: Arc<str> = format!("{kind}:{key}").into();
        self.resync(&topic);
        if let Some(reach) = self.reach.get() {
            reach.missed(&topic);
        }
    }

    pub fn resync(&self, topic: &Arc<str>) {
        if let Some(subscribers) = self.topics.get(topic) {
            subscribers.values().for_each(|(key, subscriber)| subscriber.resync(*key));
        }
    }

    pub fn has_subscribers(&self, topic: &str) -> bool {
        self.is_subscribed(topic) || self.reach.get().is_some_and(|reach| reach.is_heard(topic))
    }

    /// Whether a client of this node listens.
    pub fn is_subscribed(&self, topic: &str) -> bool {
        self.topics.contains_key(topic)
    }

    /// The topics with listeners on this node.
    pub fn names(&self) -> Vec<Arc<str>> {
        self.topics.iter().map(|topic| topic.key().clone()).collect()
    }

    pub fn len(&self) -> usize {
        self.topics.len()
    }

    pub fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }
}

pub struct Subscription {
    topics: Topics,
    topic: Arc<str>,
    id: u64,
}

impl Subscription {
    pub fn topic(&self) -> &str {
        &self.topic
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(mut subscribers) = self.topics.topics.get_mut(&self.topic) {
            subscribers.remove(&self.id);
        }
        let last =
            self.topics.topics.remove_if(&self.topic, |_, subscribers| subscribers.is_empty());
        if last.is_some()
            && let Some(reach) = self.topics.reach.get()
        {
            reach.changed(&self.topic);
        }
    }
}
