//! Application topics: what clients publish to each other, where configuration grants it.

pub mod domain;
pub mod operations;
pub mod settings;
pub mod topics;

use crate::contract::System;

pub const SYSTEM: System = System {
    operations: crate::contract::operations![operations::Publish],
    topics: crate::contract::topic::topics![topics::Application],
    ..System::new("app_topics")
};
