//! Readers for the fields of the sockets' own events, which no declared operation parses.

use serde_json::Value;

use crate::contract::input::pointer;
use crate::contract::problem::{Outcome, Problem};

/// A required string.
pub fn text<'a>(body: &'a Value, name: &str) -> Outcome<&'a str> {
    match body.get(name) {
        Some(Value::String(text)) => Ok(text),
        None | Some(Value::Null) => Err(Problem::field(&pointer(name), "is required")),
        Some(_) => Err(Problem::field(&pointer(name), "must be a string")),
    }
}

pub fn optional_text<'a>(body: &'a Value, name: &str) -> Outcome<Option<&'a str>> {
    if body.get(name).is_none_or(Value::is_null) { Ok(None) } else { text(body, name).map(Some) }
}
