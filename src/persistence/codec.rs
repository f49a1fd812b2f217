//! How snapshots become bytes and back.

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
    /// The layout hash is that of the state's shape: reordered, added, removed or retyped fields and variants change it
    /// without anybody having to remember. The golden journal is read all the same: a kind that cannot is refused.
    pub fn of<E: Entity>() -> Result<Self, String> {
        replay_golden::<E>()?;
        let layout = stable_hash(&[E::KIND.as_bytes(), shape::<E::State>()?.as_bytes()]);
        let mut header = [FORMAT; HEADER];
        header[1..3].copy_from_slice(&E::STATE_VERSION.to_le_bytes());
        header[3..].copy_from_slice(&layout.to_le_bytes());
        Ok(Self { header })
    }

    /// How this release knows the kind: by its version, and by the events and the state that it can read.
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

    /// `None` for a snapshot of another layout or version: the caller replays the journal instead.
    pub fn decode<S: DeserializeOwned>(&self, bytes: &[u8]) -> Option<S> {
        decode(bytes.strip_prefix(&self.header)?)
    }
}
