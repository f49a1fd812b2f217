//! The sockets' own events, which only make sense on a connection.

use serde_json::Value;

use crate::contract::problem::{Outcome, Problem};
use crate::gateway::bodies::optional_text;
use crate::kernel::text::{must_not_contain, wrong_in_name};

pub fn unknown(event: &str) -> Problem {
    let shown: String = event.chars().take(64).collect();
    Problem::field("/event", format!("{shown:?} is not a known event"))
}

/// The status in the data of `presence:online`.
pub fn presence_status(data: &Value) -> Outcome<String> {
    let status = optional_text(data, "status")?.unwrap_or("online");
    if status.trim().is_empty() || status.chars().count() > 32 {
        return Err(Problem::field("/status", "must have 1 to 32 characters"));
    }
    match wrong_in_name(status) {
        Some(c) => Err(Problem::field("/status", must_not_contain(c))),
        None => Ok(status.into()),
    }
}
