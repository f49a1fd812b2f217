//! The encoding of snapshots as bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::kernel::codec::{decode, try_encode};
use crate::kernel::entity::{Entity, replay_golden};
use crate::kernel::ids::stable_hash;
use crate::persistence::shape::shape;

const FORMAT: u8 = 1;
const HEADER: usize = 1 + 2 + 8;

/// Encodes and decodes the snapshots of one kind.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotCodec {
    header: [u8; HEADER],
}

impl SnapshotCodec {
    /// The codec of a kind. The layout hash covers the shape of the state: reordered, added, removed or retyped fields
    /// and variants change it without a version that someone must remember to raise. A kind that cannot read its golden
    /// journal is refused as well.
    pub fn of<E: Entity>() -> Result<Self, String> {
        replay_golden::<E>()?;
        let layout = stable_hash(&[E::KIND.as_bytes(), shape::<E::State>()?.as_bytes()]);
        let mut header = [FORMAT; HEADER];
        header[1..3].copy_from_slice(&E::STATE_VERSION.to_le_bytes());
        header[3..].copy_from_slice(&layout.to_le_bytes());
        Ok(Self { header })
    }

    /// This release's knowledge of the kind: its version, and the events and the state that it can read.
    pub fn known_as<E: Entity>(&self) -> String {
        let events = E::EVENT_VERSION.to_le_bytes();
        let known = stable_hash(&[&self.header, &events, E::GOLDEN.as_bytes()]);
        format!("{} {known:016x}", env!("CARGO_PKG_VERSION"))
    }

    pub fn encode<S: Serialize>(&self, state: &S) -> Result<Vec<u8>, String> {
        let mut bytes = self.header.to_vec();
        bytes.extend(try_encode(state)?);
        Ok(bytes)
    }

    /// Decodes a snapshot. `None`: it has another layout or version, so the caller replays the journal instead.
    pub fn decode<S: DeserializeOwned>(&self, bytes: &[u8]) -> Option<S> {
        decode(bytes.strip_prefix(&self.header)?)
    }
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use super::*;
    use crate::kernel::entity::spec::Never;
    use crate::kernel::entity::{DecideCx, Decision};

    /// One release of a kind: its state, the version of its events, and its golden journal.
    struct Ticket<S, const VERSION: u16>(PhantomData<fn() -> S>);

    mod before {
        #[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        pub enum Status {
            #[default]
            Open,
            Expired,
        }
    }

    mod after {
        #[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        pub enum Status {
            #[default]
            Open,
            Paused,
            Expired,
        }
    }

    impl<S, const VERSION: u16> Entity for Ticket<S, VERSION>
    where
        S: Default + Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        const KIND: &'static str = "ticket";
        const GOLDEN: &'static str = "";
        const EVENT_VERSION: u16 = VERSION;
        type State = S;
        type Command = ();
        type Event = ();
        type Reply = ();
        type Rejection = Never;

        fn decide(_: &S, (): (), _: &DecideCx<'_>) -> Result<Decision<Self>, Never> {
            Ok(Decision::reply(()))
        }

        fn evolve(_: &mut S, (): &()) {}
    }

    #[test]
    fn a_snapshot_from_before_a_variant_came_is_not_read_as_that_variant() {
        let before = SnapshotCodec::of::<Ticket<before::Status, 1>>().unwrap();
        let after = SnapshotCodec::of::<Ticket<after::Status, 1>>().unwrap();
        let snapshot = before.encode(&before::Status::Expired).unwrap();
        assert_eq!(before.decode(&snapshot), Some(before::Status::Expired));
        assert_eq!(after.decode::<after::Status>(&snapshot), None);
    }

    #[test]
    fn a_release_that_reads_other_events_or_states_knows_a_kind_otherwise() {
        let codec = SnapshotCodec::of::<Ticket<before::Status, 1>>().unwrap();
        let known = codec.known_as::<Ticket<before::Status, 1>>();
        assert_eq!(known, codec.known_as::<Ticket<before::Status, 1>>());
        assert_ne!(known, codec.known_as::<Ticket<before::Status, 2>>());
        let after = SnapshotCodec::of::<Ticket<after::Status, 1>>().unwrap();
        assert_ne!(known, after.known_as::<Ticket<after::Status, 1>>());
    }
}
