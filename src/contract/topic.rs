//! Topics, as clients see them.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use crate::kernel::entity::Announcement;

/// Where a client stands in a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Position {
    pub epoch: String,
    pub offset: i64,
}

/// An announcement as the documents show it.
#[derive(Clone, Copy)]
pub struct Announced {
    pub event: &'static str,
    pub summary: &'static str,
    pub topics: &'static [&'static str],
    pub is_durable: bool,
    pub data: fn(&mut SchemaGenerator) -> Schema,
}

pub const fn announced<A: Announcement>() -> Announced {
    Announced {
        event: A::EVENT,
        summary: A::SUMMARY,
        topics: A::TOPICS,
        is_durable: A::DURABLE,
        data: |generator| generator.subschema_for::<A>(),
    }
}

/// The list of what a system announces.
macro_rules! announcements {
    ($($announcement:ty),* $(,)?) => {
        &[$($crate::contract::topic::announced::<$announcement>()),*]
    };
}
pub(crate) use announcements;
