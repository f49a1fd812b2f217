//! Every kind of entity there is.

use anyhow::Context;
use serde_json::Value;

use crate::actors::registry::Registry;
use crate::kernel::entity::{Entity, decode_event};
use crate::persistence::entities::JournalEntry;
use crate::systems::app_topics::domain::app_topic::AppTopic;
use crate::systems::devices::domain::{
    content::Content, device::Device, playback::Playback, shared::Shared,
};
use crate::systems::marketplace::domain::{
    booking::Booking, provider::Provider, request::Request, session::Session, user::User,
};

macro_rules! kinds {
    ($($entity:ty),* $(,)?) => {
        pub async fn register(registry: &mut Registry) -> anyhow::Result<()> {
            $(registry.register::<$entity>().await?;)*
            Ok(())
        }

        /// The state that a journal leads to, for whoever looks at an entity from outside.
        pub fn replay(kind: &str, journal: &[JournalEntry]) -> anyhow::Result<Value> {
            match kind {
                $(<$entity>::KIND => fold::<$entity>(journal),)*
                _ => {
                    let kinds = [$(<$entity>::KIND),*].join(", ");
                    anyhow::bail!("there is no kind {kind}; there are {kinds}")
                }
            }
        }
    };
}

kinds!(User, Session, Request, Provider, Booking, AppTopic, Shared, Device, Playback, Content);

fn fold<E: Entity>(journal: &[JournalEntry]) -> anyhow::Result<Value> {
    let mut state = E::State::default();
    for entry in journal {
        let event = decode_event::<E>(entry.version as u16, entry.event.clone())
            .with_context(|| format!("event {} cannot be read", entry.seq))?;
        E::evolve(&mut state, &event);
    }
    Ok(serde_json::to_value(state)?)
}
