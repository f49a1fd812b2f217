//! Kinds of entities, for code that lists them without naming their types.

use std::collections::BTreeSet;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::actors::registry::Registry;
use crate::kernel::codec::{decode, try_encode};
use crate::kernel::entity::{Entity, decode_event, replay_golden};
use crate::kernel::private;
use crate::persistence::codec::SnapshotCodec;
use crate::persistence::entities::JournalEntry;
use crate::persistence::shape::variants;

/// The functions of a kind that a node needs.
#[derive(Clone, Copy)]
pub struct EntityKind {
    pub name: &'static str,
    pub has_topic: bool,
    pub register: for<'a> fn(&'a mut Registry) -> BoxFuture<'a, anyhow::Result<()>>,
    /// Folds a journal into a state, for tools that inspect an entity from outside.
    pub replay: fn(&mut [JournalEntry]) -> anyhow::Result<Value>,
    /// Checks the golden journal, for a test.
    pub check_golden: fn() -> Result<(), String>,
}

/// An entity in the list of its system.
pub const fn entity<E: Entity>() -> EntityKind {
    EntityKind {
        name: E::KIND,
        has_topic: E::HAS_TOPIC,
        register: |registry| registry.register::<E>().boxed(),
        replay: replay::<E>,
        check_golden: check_golden::<E>,
    }
}

/// Checks that the golden journal can be read, has every event, and leads to a state that a snapshot can hold.
fn check_golden<E: Entity>() -> Result<(), String> {
    let state = replay_golden::<E>()?;
    let name = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        match &line["event"] {
            Value::Object(event) => event.keys().next().cloned(),
            event => event.as_str().map(str::to_owned),
        }
    };
    let written: BTreeSet<String> = E::GOLDEN.lines().filter_map(name).collect();
    let events: BTreeSet<String> = variants::<E::Event>().into_iter().map(Into::into).collect();
    if written != events {
        return Err(format!(
            "{} has the events {events:?}, its golden journal {written:?}",
            E::KIND
        ));
    }
    SnapshotCodec::of::<E>()?;
    let bytes = |state: &E::State| private::plain(|| try_encode(state)).0;
    let snapshot = bytes(&state)?;
    if snapshot == bytes(&E::State::default())? {
        return Err(format!("the golden journal of {} leads nowhere", E::KIND));
    }
    let read: E::State =
        decode(&snapshot).ok_or_else(|| format!("a snapshot of {} cannot be read", E::KIND))?;
    match bytes(&read)? == snapshot {
        true => Ok(()),
        false => Err(format!("a snapshot of {} is read as another state", E::KIND)),
    }
}

/// Folds a journal without keys: private values are shown neither in the state nor in the events.
fn replay<E: Entity>(journal: &mut [JournalEntry]) -> anyhow::Result<Value> {
    private::shut(|| fold::<E>(journal))
}

fn fold<E: Entity>(journal: &mut [JournalEntry]) -> anyhow::Result<Value> {
    let mut state = E::State::default();
    for entry in journal {
        let event = decode_event::<E>(entry.version as u16, entry.event.clone())
            .map_err(|error| anyhow::anyhow!("event {} cannot be read: {error}", entry.seq))?;
        E::evolve(&mut state, &event);
        if E::PRIVATE {
            entry.event = serde_json::to_value(event)?;
        }
    }
    Ok(serde_json::to_value(state)?)
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::kernel::entity::spec::Never;
    use crate::kernel::entity::{DecideCx, Decision};

    /// A light, whose golden journal is one of those below.
    struct Light<const JOURNAL: usize>;

    const JOURNALS: [&str; 6] = [
        "{\"version\":1,\"event\":\"On\"}\n{\"version\":1,\"event\":\"Off\"}\n{\"version\":1,\"event\":\"On\"}",
        "{\"version\":1,\"event\":\"On\"}",
        "{\"version\":1,\"event\":\"On\"}\n{\"version\":1,\"event\":\"Off\"}",
        "{\"version\":1,\"event\":\"On\"}\n{\"version\":1,\"event\":\"Blue\"}",
        "",
        "{\"version\":1,\"event\":\"Off\"}\n{\"version\":1,\"event\":\"On\"}",
    ];

    #[derive(Debug, Serialize, Deserialize)]
    enum Event {
        On,
        Off,
    }

    /// How bright it is. What is brighter than 1 is not read as it was written.
    #[derive(Default, Serialize, Deserialize)]
    struct Brightness(#[serde(deserialize_with = "dimmed")] u8);

    fn dimmed<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u8, D::Error> {
        Ok(u8::deserialize(from)?.min(1))
    }

    impl<const JOURNAL: usize> Entity for Light<JOURNAL> {
        const KIND: &'static str = "light";
        const GOLDEN: &'static str = JOURNALS[JOURNAL];
        type State = Brightness;
        type Command = ();
        type Event = Event;
        type Reply = ();
        type Rejection = Never;

        fn decide(_: &Brightness, (): (), _: &DecideCx<'_>) -> Result<Decision<Self>, Never> {
            Ok(Decision::reply(()))
        }

        fn evolve(state: &mut Brightness, event: &Event) {
            let on = if JOURNAL == 5 { 2 } else { 1 };
            state.0 = if matches!(event, Event::On) { on } else { 0 };
        }
    }

    #[test]
    fn a_golden_journal_has_every_event_and_leads_somewhere() {
        check_golden::<Light<0>>().unwrap();
        let wrong = [
            (check_golden::<Light<1>>(), "has the events"),
            (check_golden::<Light<2>>(), "leads nowhere"),
            (check_golden::<Light<3>>(), "light line 2"),
            (check_golden::<Light<4>>(), "has the events"),
            (check_golden::<Light<5>>(), "read as another state"),
        ];
        for (checked, why) in wrong {
            assert!(checked.unwrap_err().contains(why), "{why}");
        }
    }
}
