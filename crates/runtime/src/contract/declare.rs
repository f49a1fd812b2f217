//! Entries for the lists of a [`System`](super::System), made from the types that declare them.

pub use super::agent::agent;
pub use super::operation::operation;
pub use super::runner::runner;
pub use super::section::section;
pub use super::topic::{announcement, topic};
pub use super::view::view;
pub use crate::actors::kind::entity;
