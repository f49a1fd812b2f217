//! The vocabulary every layer shares: ids, time, error codes and the entity contract.
//!
//! **Architecture invariant:** nothing here is async, reads a clock by itself, or does I/O.

pub mod agent;
pub mod bucket;
pub mod chat;
pub mod clock;
pub mod codec;
pub mod conversation;
pub mod entity;
pub mod error;
pub mod ids;
pub mod image;
pub mod outward;
pub mod private;
pub mod secret;
pub mod task;
pub mod text;
pub mod view;
pub mod work;
