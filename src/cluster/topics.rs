//! Topics on this node: who listens, and handing publications to them. What goes between nodes is in `fanout`.
//!
//! A publication is serialised once and shared by reference. Delivery never waits for a subscriber: each bounds what
//! it buffers and is cut off beyond that.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use dashmap::DashMap;
use serde_json::value::RawValue;

/// One publication as it goes to clients.
#[derive(Clone, Debug)]
pub struct Published {
    pub topic: Arc<str>,
    /// `None`: lossy, not replayed.
    pub offset: Option<i64>,
    pub event: Arc<str>,
    /// The complete frame, `{"event":…,"topic":…,"offset":…,"data":…}`, in UTF-8: all sockets write the same bytes.
    pub frame: Bytes,
}

impl Published {
    /// `data` must be JSON.
    pub fn new(topic: &str, offset: Option<i64>, event: &str, data: &str) -> Arc<Self> {
        Self::said(topic, offset, event, None, data)
    }

    /// The same with the user who said it.
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

/// Takes publications. Must not block: buffer within a bound, or drop oneself.
pub trait Subscriber: Send + Sync {
    /// `key` is the one it gave when it subscribed.
    fn deliver(&self, key: u64, published: &Arc<Published>);
    /// Publications of the topic may have been missed: its history tells.
    fn resync(&self, key: u64);
}

/// What takes topics beyond this node.
pub trait Reach: Send + Sync {
    /// The first listener of this node has come, or the last has gone.
    fn changed(&self, topic: &Arc<str>);
    /// Somebody on another node listens.
    fn is_heard(&self, topic: &str) -> bool;
    /// Hands a publication of a topic that is owned here to the nodes that listen.
    fn forward(&self, published: &Published);
    /// Tells the nodes that listen to a topic that is owned here to look at its history.
    fn missed(&self, topic: &Arc<str>);
    /// Publishes to a topic without history, wherever it belongs. False: its owner cannot be reached.
    fn post(&self, published: &Arc<Published>) -> bool;
}

/// By the order in which they came, which is about how they lie in memory.
type Subscribers = BTreeMap<u64, (u64, Arc<dyn Subscriber>)>;

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Topics {
    topics: Arc<DashMap<Arc<str>, Subscribers>>,
    next_id: Arc<AtomicU64>,
    /// Set once, in a cluster.
    reach: Arc<OnceLock<Arc<dyn Reach>>>,
}

impl Topics {
    /// Registers before history is read, so that nothing falls in between; dropping the subscription ends it.
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

    /// From now on topics reach other nodes.
    pub fn connect(&self, reach: Arc<dyn Reach>) {
        let _ = self.reach.set(reach);
    }

    /// To all who listen, on whatever node. For topics of entities that live here.
    pub fn publish(&self, published: &Arc<Published>) {
        self.deliver(published);
        if let Some(reach) = self.reach.get() {
            reach.forward(published);
        }
    }

    /// The same for a topic that is no entity's, from any node. False: it cannot be reached now.
    pub fn post(&self, published: &Arc<Published>) -> bool {
        match self.reach.get() {
            Some(reach) => reach.post(published),
            None => {
                self.deliver(published);
                true
            }
        }
    }

    /// To all who listen on this node.
    pub fn deliver(&self, published: &Arc<Published>) {
        if let Some(subscribers) = self.topics.get(&published.topic) {
            for (key, subscriber) in subscribers.values() {
                subscriber.deliver(*key, published);
            }
        }
    }

    /// Something was committed to this topic, and not published as nobody listened. Whoever does by now is told to look.
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

    /// Somebody on this node listens.
    pub fn is_subscribed(&self, topic: &str) -> bool {
        self.topics.contains_key(topic)
    }

    /// All that are listened to on this node.
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
