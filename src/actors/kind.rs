//! A kind of entity, for those who list kinds without naming their types.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::actors::registry::Registry;
use crate::kernel::entity::{Entity, decode_event};
use crate::persistence::entities::JournalEntry;

/// What a node can do with a kind.
#[derive(Clone, Copy)]
pub struct EntityKind {
    pub name: &'static str,
    pub has_topic: bool,
    pub register: for<'a> fn(&'a mut Registry) -> BoxFuture<'a, anyhow::Result<()>>,
    /// The state that a journal leads to, for whoever looks at an entity from outside.
    pub replay: fn(&[JournalEntry]) -> anyhow::Result<Value>,
}

/// An entity in the list of its system.
pub const fn entity<E: Entity>() -> EntityKind {
    EntityKind {
        name: E::KIND,
        has_topic: E::HAS_TOPIC,
        register: |registry| registry.register::<E>().boxed(),
        replay: replay::<E>,
    }
}

fn replay<E: Entity>(journal: &[JournalEntry]) -> anyhow::Result<Value> {
    let mut state = E::State::default();
    for entry in journal {
        let event = decode_event::<E>(entry.version as u16, entry.event.clone())
            .map_err(|error| anyhow::anyhow!("event {} cannot be read: {error}", entry.seq))?;
        E::evolve(&mut state, &event);
    }
    Ok(serde_json::to_value(state)?)
}
