//! What a system declares, so that every door can serve it: operations, and what they are called with.
//!
//! An operation is written down once. Its routes, its events, its documents and the clients' types follow from the
//! declaration. No door knows a system, no system knows a door (ADR 15).

pub mod bucket;
pub mod call;
pub mod connection;
pub mod input;
pub mod list;
pub mod operation;
pub mod problem;
pub mod system;
pub mod topic;

pub use call::{Call, Services};
pub(crate) use operation::operations;
pub use operation::{Declared, Meta, Operation, declare};
pub use problem::{FieldError, Outcome, Problem};
pub use system::System;
