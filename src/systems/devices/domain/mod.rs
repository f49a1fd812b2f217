//! The data that a person's devices share, even after being offline: a watchlist, playback positions and counters.
//!
//! Each device writes *operations*, numbered from 1 without a gap. All kinds of them are CRDTs ([`crdt`]), so the order
//! in which they are merged makes no difference. The entity [`shared`] merges a person's operations; `docs/sync.md`
//! states the guarantees.
//!
//! A [`playback`] session plays a [`content`] from one of its [`platforms`] on a [`device`].

pub mod clock;
pub mod content;
pub mod crdt;
pub mod device;
pub mod messages;
pub mod operation;
pub mod platforms;
pub mod playback;
pub mod profile;
pub mod replica;
pub mod shared;

#[cfg(test)]
mod message_tests;
