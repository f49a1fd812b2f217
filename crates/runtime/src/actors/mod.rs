//! Activations: one ractor actor for each live entity, all driven by the one shell in [`shell`].
//!
//! **Architecture invariant:** nothing here knows a domain; kinds are handed in by `app`. Files here name each other by
//! their own paths, and not in a circle.

mod activation;
mod ask;
mod delivery;
mod firing;
pub mod kind;
pub mod registry;
pub mod runs;
mod runtime;
pub mod services;
mod shell;

pub use kind::EntityKind;
pub use runs::{AnyRunner, Rate, RunCx, RunError, RunLimits, Runner};
pub use runtime::{Options, ParkNotice, Runtime, Witness, Witnessed};
