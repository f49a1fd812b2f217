//! Where entities live and how they are reached: the lease, slots, [`EntityRef`], and topics.
//!
//! **Architecture invariant:** nothing here knows SQL, HTTP or a domain. Activations are behind [`LocalEntities`].

pub mod ask;
pub mod entity_ref;
pub mod fanout;
#[cfg(test)]
mod fixtures;
pub mod lease;
pub mod placement;
pub mod presence;
pub mod pulse;
pub mod router;
pub mod skew;
pub mod slots;
pub mod topics;
pub mod transport;

pub use ask::{CommandMeta, LocalEntities};
pub use entity_ref::{Entities, EntityRef, WeakEntities};
pub use lease::Lease;
pub use presence::Presence;
pub use router::Router;
pub use slots::Slots;
pub use topics::Topics;
