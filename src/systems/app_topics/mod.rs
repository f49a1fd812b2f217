//! Application topics, through which clients publish to each other where the configuration grants it.

pub mod domain;
pub mod operations;
pub mod settings;
pub mod topics;

use crate::contract::System;
use crate::contract::declare::{entity, operation, section, topic};

pub const SYSTEM: System = System {
    entities: &[entity::<domain::app_topic::AppTopic>()],
    operations: &[operation::<operations::Publish>()],
    topics: &[topic::<topics::Application>()],
    sections: &[section::<settings::Grants>()],
    ..System::new("app_topics")
};
