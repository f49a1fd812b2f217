//! Topics, as clients see them.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::problem::{Outcome, Problem};
use crate::kernel::entity::Announcement;
use crate::kernel::ids::is_valid_id;

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

/// `kind:key`. Application topics keep their whole name as the key.
pub fn split_topic(topic: &str) -> Outcome<(&str, &str)> {
    let wrong = || Problem::field("/topic", "must look like session:ses_…");
    if topic.len() > 200 || topic.bytes().any(|b| !b.is_ascii_graphic()) {
        return Err(wrong());
    }
    let (kind, key) = topic.split_once(':').ok_or_else(wrong)?;
    let valid = if kind == "app" { !key.is_empty() } else { is_valid_id(key) };
    if valid { Ok((kind, key)) } else { Err(wrong()) }
}
