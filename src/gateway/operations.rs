//! The operations of all systems, as the doors find them.

use std::collections::HashMap;

use crate::contract::{Call, Declared, System};
use crate::gateway::Gateway;
use crate::gateway::auth::Claims;

pub struct Operations {
    by_event: HashMap<String, &'static Declared>,
    all: Vec<&'static Declared>,
    pub systems: &'static [&'static System],
}

impl Operations {
    pub fn of(systems: &'static [&'static System]) -> Self {
        let all: Vec<_> = systems.iter().flat_map(|system| system.operations).collect();
        let by_event: HashMap<_, _> =
            all.iter().map(|declared| (declared.meta.event(), *declared)).collect();
        assert_eq!(by_event.len(), all.len(), "an operation's name is unique");
        Self { by_event, all, systems }
    }

    pub fn by_event(&self, event: &str) -> Option<&'static Declared> {
        self.by_event.get(event).copied()
    }

    pub fn all(&self) -> impl Iterator<Item = &'static Declared> {
        self.all.iter().copied()
    }
}

impl Gateway {
    /// A call of this user under a command id.
    pub fn call(&self, claims: &Claims, id: String) -> Call {
        Call {
            services: self.services.clone(),
            user_id: claims.sub.as_str().into(),
            role: claims.role,
            plan: claims.tier.as_deref().map(Into::into),
            id,
            counted: false,
            given: serde_json::Value::Null,
        }
    }
}
