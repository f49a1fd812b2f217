//! The resources that a client watches, and what it has to hear of them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::server::Offers;
use crate::cluster::topics::{Published, Subscriber, Subscription};
use crate::contract::problem::{Outcome, Problem};
use crate::gateway::auth::Claims;
use crate::gateway::listening::subscribe::authorise;
use crate::gateway::{Gateway, Leaving};

/// Most resources that one stream watches.
pub const MAX_WATCHED: usize = 16;
/// The longest address that is watched.
pub const MAX_ADDRESS: usize = 200;
/// Most messages that wait for a client that does not read.
const MAX_MESSAGES: usize = 256;

/// What has come for one stream.
#[derive(Default)]
struct Inbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    /// The keys of resources that have changed: each once, however often it has.
    changed: BTreeSet<u64>,
    messages: VecDeque<Arc<Published>>,
    is_full: bool,
}

/// The key of messages that are about no resource.
const MESSAGES: u64 = 0;

impl Subscriber for Inbox {
    fn deliver(&self, key: u64, published: &Arc<Published>) {
        let mut waiting = self.waiting.lock();
        if key != MESSAGES {
            waiting.changed.insert(key);
        } else if waiting.messages.len() < MAX_MESSAGES {
            waiting.messages.push_back(published.clone());
        } else {
            waiting.is_full = true;
        }
        self.wake.notify_one();
    }

    /// Something may have been missed: then it may have changed.
    fn resync(&self, key: u64) {
        if key != MESSAGES {
            self.waiting.lock().changed.insert(key);
            self.wake.notify_one();
        }
    }
}

/// What a stream hears.
pub enum Heard {
    /// The resource at this address has changed.
    Changed(String),
    Message(Arc<Published>),
    /// More was said than waits for a client.
    TooMuch,
}

struct Watched {
    key: u64,
    address: String,
    _subscription: Subscription,
}

/// The resources that one stream watches.
#[derive(Default)]
pub struct Watching {
    inbox: Arc<Inbox>,
    watched: Vec<Watched>,
    last_key: u64,
}

impl Watching {
    /// Hears the messages of a topic too.
    pub fn hear(&self, gateway: &Gateway, topic: &str) -> Subscription {
        gateway.topics.subscribe(topic, MESSAGES, self.inbox.clone())
    }

    pub async fn add(
        &mut self,
        gateway: &Gateway,
        offers: &Offers,
        claims: &Claims,
        address: &str,
    ) -> Outcome<()> {
        if self.watched.iter().any(|watched| watched.address == address) {
            return Ok(());
        }
        if self.watched.len() >= MAX_WATCHED {
            let detail = format!("a stream may watch {MAX_WATCHED} resources");
            return Err(Problem::rejected("too_many_subscriptions", detail));
        }
        let can_be_named = address.len() <= MAX_ADDRESS && address.is_ascii();
        let found = offers.resources.topic(address).filter(|_| can_be_named);
        let (query, topic) = found.ok_or_else(|| Problem::not_found("resource to watch"))?;
        if !query.allows(&gateway.call(claims, String::new())) {
            return Err(Problem::forbidden("this token may not read it"));
        }
        authorise(gateway, claims, &topic).await?;
        self.last_key += 1;
        let key = self.last_key;
        let subscription = gateway.topics.subscribe(&topic, key, self.inbox.clone());
        let address = address.to_owned();
        self.watched.push(Watched { key, address, _subscription: subscription });
        Ok(())
    }

    pub fn remove(&mut self, address: &str) {
        self.watched.retain(|watched| watched.address != address);
    }

    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        self.watched.iter().map(|watched| &*watched.address)
    }

    fn take(&self) -> Option<Heard> {
        let mut waiting = self.inbox.waiting.lock();
        if waiting.is_full {
            return Some(Heard::TooMuch);
        }
        if let Some(message) = waiting.messages.pop_front() {
            return Some(Heard::Message(message));
        }
        while let Some(key) = waiting.changed.pop_first() {
            // It may not be watched any more.
            if let Some(watched) = self.watched.iter().find(|watched| watched.key == key) {
                return Some(Heard::Changed(watched.address.clone()));
            }
        }
        None
    }

    pub async fn next(&self) -> Heard {
        loop {
            if let Some(heard) = self.take() {
                return heard;
            }
            self.inbox.wake.notified().await;
        }
    }
}

/// Resolves when a stream of this client has to end: its token is over, or this node leaves.
pub async fn over(gateway: &Gateway, claims: &Claims) {
    let left = claims.expires_at().duration_since(gateway.now());
    let mut end = Instant::now() + Duration::try_from(left).unwrap_or_default();
    let mut revocations = gateway.auth.revocations();
    let mut leaving = gateway.readiness.leaving();
    leaving.mark_changed();
    loop {
        if gateway.auth.is_revoked(claims) {
            return;
        }
        tokio::select! {
            Ok(()) = revocations.changed() => drop(revocations.borrow_and_update()),
            Ok(()) = leaving.changed() => match *leaving.borrow_and_update() {
                Leaving::No => {}
                Leaving::Evicted => return,
                Leaving::Draining => {
                    let spread = gateway.options.drain.mul_f64(rand::random_range(0.0..1.0));
                    end = end.min(Instant::now() + spread);
                }
            },
            () = tokio::time::sleep_until(end) => return,
        }
    }
}
