//! Application topics: what clients publish to each other, where configuration grants it.

pub mod domain;
pub mod operations;
pub mod settings;

use crate::contract::System;

pub const SYSTEM: System = System {
    name: "app_topics",
    operations: crate::contract::operations![operations::Publish],
    announcements: &[],
};
