//! The declarations of systems: operations, topics, views, runners and settings that every door can serve.
//!
//! An operation is written down once. Its routes, its events, its documents and the clients' types follow from the
//! declaration. No door knows a system, no system knows a door (ADR 15).

pub mod agent;
pub mod assistant;
pub mod bytes;
pub mod call;
pub mod connection;
pub mod content;
pub mod declare;
pub mod host;
pub mod input;
pub mod list;
pub mod operation;
pub mod problem;
pub mod prompt;
pub mod runner;
pub mod section;
pub mod system;
pub mod tool;
pub mod topic;
pub mod view;

pub use call::{Call, Services};
pub use operation::{Declared, Meta, Operation};
pub use problem::{Outcome, Problem};
pub use system::System;

pub use crate::kernel::error::FieldError;
