//! What a person's devices share, also when they were offline: a watchlist, playback positions and counters.
//!
//! Each device writes *operations*, numbered from 1 without a gap. All kinds of them are CRDTs ([`crdt`]), so the order
//! in which they are put together makes no difference. The entity [`shared`] puts a person's together; `docs/sync.md`
//! says what that guarantees.
//!
//! What they play is a [`playback`] session: of a [`content`], on one of the [`platforms`] that have it, on a [`device`].

pub mod clock;
pub mod content;
pub mod crdt;
pub mod device;
pub mod operation;
pub mod platforms;
pub mod playback;
pub mod profile;
pub mod replica;
pub mod shared;
