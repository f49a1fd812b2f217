//! Lists: `?limit=&cursor=`, and `{"items":[…],"next_cursor":…}`.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use serde::Serialize;
use serde_json::{Value, json};

use crate::contract::problem::{Outcome, Problem};
use crate::gateway::Gateway;
use crate::kernel::clock::Timestamp;
use crate::persistence::views::{Cursor, Page};

const DEFAULT_LIMIT: usize = 20;
const MAX_LIMIT: usize = 100;

/// The query of a list.
#[derive(Debug)]
pub struct List {
    pub limit: usize,
    cursor: Option<Cursor>,
}

impl List {
    pub fn down(&self) -> Cursor {
        self.cursor.clone().unwrap_or_else(Cursor::last)
    }

    fn parse(mut query: HashMap<String, String>) -> Outcome<Self> {
        let limit = match query.remove("limit") {
            None => DEFAULT_LIMIT,
            Some(text) => text
                .parse()
                .ok()
                .filter(|limit| (1..=MAX_LIMIT).contains(limit))
                .ok_or_else(|| Problem::field("/limit", format!("must be 1 to {MAX_LIMIT}")))?,
        };
        let cursor =
            match query.remove("cursor").filter(|text| !text.is_empty()) {
                None => None,
                Some(text) => Some(decode(&text).ok_or_else(|| {
                    Problem::field("/cursor", "is not one that a list has returned")
                })?),
            };
        if query.values().any(|value| value.contains('\0')) {
            return Err(Problem::bad_request("the query contains U+0000"));
        }
        Ok(Self { limit, cursor })
    }
}

impl FromRequestParts<Arc<Gateway>> for List {
    type Rejection = Problem;

    async fn from_request_parts(
        parts: &mut Parts,
        gateway: &Arc<Gateway>,
    ) -> Result<Self, Problem> {
        let Query(query) = Query::<HashMap<String, String>>::from_request_parts(parts, gateway)
            .await
            .map_err(|_| Problem::bad_request("the query is malformed"))?;
        Self::parse(query)
    }
}

pub fn shown<T: Serialize>(page: Page<T>) -> Value {
    json!({"items": page.items, "next_cursor": page.next.as_ref().map(encode)})
}

/// Opaque to clients, so that what lists are ordered by may change.
fn encode(cursor: &Cursor) -> String {
    let plain = format!("{} {}", cursor.at.as_microsecond(), cursor.id);
    plain.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(text: &str) -> Option<Cursor> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) || text.len() > 512 {
        return None;
    }
    let bytes = (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16))
        .collect::<Result<_, _>>();
    let plain = String::from_utf8(bytes.ok()?).ok()?;
    let (at, id) = plain.split_once(' ')?;
    let at = Timestamp::from_microsecond(at.parse().ok()?).ok()?;
    // A time that no list can have come to may be outside of what the database can compare with.
    let possible = (Cursor::first().at..=Cursor::last().at).contains(&at);
    (possible && !id.contains('\0')).then(|| Cursor { at, id: id.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Outcome<List> {
        List::parse(pairs.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect())
    }

    #[test]
    fn cursors_go_round() {
        let cursor = Cursor {
            at: Timestamp::from_microsecond(1_800_000_000_123_456).unwrap(),
            id: "req_1".into(),
        };
        assert_eq!(parse(&[("cursor", &encode(&cursor))]).unwrap().down(), cursor);
        let ancient = Timestamp::from_second(-377_000_000_000).unwrap();
        let ancient = encode(&Cursor { at: ancient, id: "req_1".into() });
        for bad in ["x", "zz", "é1", "6162", &"0".repeat(1_000), &ancient] {
            assert_eq!(parse(&[("cursor", bad)]).unwrap_err().errors[0].pointer, "/cursor");
        }
    }

    #[test]
    fn limits_are_bounded() {
        assert_eq!(parse(&[]).unwrap().limit, 20);
        assert_eq!(parse(&[("limit", "100")]).unwrap().limit, 100);
        for bad in ["0", "101", "-1", "ten", ""] {
            assert_eq!(parse(&[("limit", bad)]).unwrap_err().errors[0].pointer, "/limit");
        }
    }
}
