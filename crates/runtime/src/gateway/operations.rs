//! Lookup of the operations of all systems, for every door.

use std::collections::{BTreeSet, HashMap};

use crate::contract::operation::WithBytes;
use crate::contract::topic::{TopicDelivery, TopicKind};
use crate::contract::{Call, Declared, System};
use crate::gateway::Gateway;
use crate::gateway::auth::Claims;

/// The one kind of topic that the gateway itself owns, a user's presence, and its scope.
pub const PRESENCE: &str = "presence";

/// All that a token can be limited to: the scopes of operations and of topics, and those that a system names beside them.
pub fn scopes(systems: &[&System]) -> BTreeSet<&'static str> {
    let operations = systems.iter().flat_map(|system| system.operations);
    let topics = systems.iter().flat_map(|system| system.topics);
    let scopes = operations.map(|operation| operation.meta.takes_scope());
    let others = systems.iter().flat_map(|system| system.scopes).copied();
    scopes.chain(topics.map(|topic| topic.scope)).chain(others).chain([PRESENCE]).collect()
}

pub struct Operations {
    by_event: HashMap<String, &'static Declared>,
    all: Vec<&'static Declared>,
    topics: Vec<&'static TopicKind>,
    pub systems: &'static [&'static System],
}

impl Operations {
    pub fn of(systems: &'static [&'static System]) -> Self {
        let all: Vec<_> = systems.iter().flat_map(|system| system.operations).collect();
        let by_event: HashMap<_, _> =
            all.iter().map(|declared| (declared.meta.event(), *declared)).collect();
        assert_eq!(by_event.len(), all.len(), "an operation's name is unique");
        let topics = systems.iter().flat_map(|system| system.topics).collect();
        Self { by_event, all, topics, systems }
    }

    pub fn by_event(&self, event: &str) -> Option<&'static Declared> {
        self.by_event.get(event).copied()
    }

    /// The declaration of `kind:key`.
    pub fn topic(&self, topic: &str) -> Option<&'static TopicKind> {
        let (kind, _) = topic.split_once(':')?;
        self.topics.iter().find(|declared| declared.kind == kind).copied()
    }

    /// Whether a body that is sent to this path is bytes.
    pub fn takes_bytes(&self, path: &str) -> bool {
        let mut all = self.all.iter().filter(|one| one.meta.bytes == Some(WithBytes::Taken));
        all.any(|one| one.meta.routes().any(|route| route.path == path))
    }

    pub fn all(&self) -> impl Iterator<Item = &'static Declared> {
        self.all.iter().copied()
    }
}

impl Gateway {
    /// How a topic's publications reach a listener. Presence topics belong to the gateway and carry only the current
    /// state.
    pub fn carriage(&self, topic: &str) -> TopicDelivery {
        match self.operations.topic(topic) {
            Some(declared) => (declared.carriage)(&self.settings, topic),
            None => TopicDelivery::Lossy { latest_only: false },
        }
    }

    pub fn is_ephemeral(&self, topic: &str) -> bool {
        self.carriage(topic) != TopicDelivery::Durable
    }

    /// A call of this user under a command id.
    pub fn call(&self, claims: &Claims, id: String) -> Call {
        Call {
            session: None,
            services: self.services.clone(),
            user_id: claims.sub.as_str().into(),
            role: claims.role,
            scopes: claims.scopes(),
            plan: claims.tier.as_deref().map(Into::into),
            id,
            connection: None,
            counted: false,
            given: serde_json::Value::Null,
            progress: None,
            host: None,
            upload: None,
            download: None,
        }
    }
}
