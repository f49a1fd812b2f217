//! Lists, which are answered a page at a time: `{"items":[…],"next_cursor":…}`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::problem::{Outcome, Problem};
use crate::kernel::clock::Timestamp;
use crate::kernel::ids::stable_hash;
use crate::persistence::views::{self, Cursor};

const MAX_LIMIT: usize = 100;

/// The number of items in a page: 1 to 100, 20 by default.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "i64")]
pub struct Limit(pub usize);

impl Default for Limit {
    fn default() -> Self {
        Self(20)
    }
}

impl TryFrom<i64> for Limit {
    type Error = String;

    fn try_from(limit: i64) -> Result<Self, String> {
        let limit = usize::try_from(limit).ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
        limit.map(Self).ok_or_else(|| format!("must be 1 to {MAX_LIMIT}"))
    }
}

impl JsonSchema for Limit {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Limit".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": 20, "description": "Items a page",
        })
    }
}

/// The `next_cursor` of the page before. It is opaque to clients, so that the order of lists may change.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct After(String);

impl JsonSchema for After {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "After".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "description": "The `next_cursor` of the page before"})
    }
}

/// The page of a list that a client asks for.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct Paging {
    pub limit: Option<Limit>,
    pub cursor: Option<After>,
}

/// The identity of a list, which its cursors carry: a cursor of another list is refused.
#[derive(Clone, Debug)]
pub struct ListOf(String);

impl ListOf {
    /// Identifies a list by the operation's name and by all else that makes it another list: its object, its order.
    pub fn new(parts: &[&str]) -> Self {
        let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
        Self(format!("{:016x}", stable_hash(&parts)))
    }

    /// The start of a list in ascending order of time.
    pub fn up(&self, after: Option<After>) -> Outcome<Cursor> {
        self.from(after, Cursor::first)
    }

    pub fn down(&self, after: Option<After>) -> Outcome<Cursor> {
        self.from(after, Cursor::last)
    }

    /// The same for a cursor that came as a text; empty: the start.
    pub fn down_from(&self, after: &str) -> Outcome<Cursor> {
        self.down(Some(After(after.into())))
    }

    fn from(&self, after: Option<After>, begin: fn() -> Cursor) -> Outcome<Cursor> {
        let Some(After(text)) = after.filter(|after| !after.0.is_empty()) else {
            return Ok(begin());
        };
        let wrong = || Problem::field("/cursor", "is not one that this list has returned");
        decode(&self.0, &text).ok_or_else(wrong)
    }

    pub fn page<T>(&self, page: views::RowPage<T>) -> Page<T> {
        let next_cursor = page.next.as_ref().map(|next| encode(&self.0, next));
        Page { items: page.items, omitted: page.omitted, next_cursor }
    }
}

/// A page of a list.
#[derive(Clone, Debug, Serialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// The number of items left out, since only a newer release can read them.
    #[serde(skip_serializing_if = "is_zero")]
    pub omitted: usize,
    /// Null at the end.
    pub next_cursor: Option<String>,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl<T: JsonSchema> JsonSchema for Page<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}List", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "required": ["items", "next_cursor"],
            "properties": {
                "items": {"type": "array", "items": generator.subschema_for::<T>()},
                "omitted": {
                    "type": "integer", "minimum": 1,
                    "description": "Number of items left out of this page, since only a newer release can read them: during an upgrade, ask again",
                },
                "next_cursor": {"type": ["string", "null"], "description": "For `cursor`; null at the end"},
            },
        })
    }
}

impl<T> Page<T> {
    /// A list that is short enough to always fit into one page.
    pub fn whole(items: Vec<T>) -> Self {
        Self { items, omitted: 0, next_cursor: None }
    }

    pub fn map<U>(self, to: impl FnMut(T) -> U) -> Page<U> {
        let Self { items, omitted, next_cursor } = self;
        Page { items: items.into_iter().map(to).collect(), omitted, next_cursor }
    }
}

fn encode(of: &str, cursor: &Cursor) -> String {
    let plain = format!("{of} {} {}", cursor.at.as_microsecond(), cursor.id);
    plain.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(of: &str, text: &str) -> Option<Cursor> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) || text.len() > 512 {
        return None;
    }
    let bytes = (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16))
        .collect::<Result<_, _>>();
    let plain = String::from_utf8(bytes.ok()?).ok()?;
    let (at, id) = plain.strip_prefix(of)?.strip_prefix(' ')?.split_once(' ')?;
    let at = Timestamp::from_microsecond(at.parse().ok()?).ok()?;
    // Such a time never comes from a list, and may be outside of the range that the database can compare.
    let possible = (Cursor::first().at..=Cursor::last().at).contains(&at);
    (possible && !id.contains('\0')).then(|| Cursor { at, id: id.into() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cursors_go_round() {
        let cursor = Cursor {
            at: Timestamp::from_microsecond(1_800_000_000_123_456).unwrap(),
            id: "req_1".into(),
        };
        let list = ListOf::new(&["request.list", "alice"]);
        let read = |text: &str| list.up(Some(After(text.into())));
        assert_eq!(read(&encode(&list.0, &cursor)).unwrap(), cursor);
        assert_eq!(list.down(None).unwrap(), Cursor::last());
        let ancient = Timestamp::from_second(-377_000_000_000).unwrap();
        let ancient = encode(&list.0, &Cursor { at: ancient, id: "req_1".into() });
        let another = encode(&ListOf::new(&["offer.list"]).0, &cursor);
        for bad in ["x", "zz", "é1", "6162", &"0".repeat(1_000), &ancient, &another] {
            assert_eq!(read(bad).unwrap_err().errors[0].pointer, "/cursor", "{bad}");
        }
    }

    #[test]
    fn limits_are_bounded() {
        let read = |limit| serde_json::from_value::<Limit>(limit).map(|limit| limit.0);
        assert_eq!(Limit::default().0, 20);
        assert_eq!(read(json!(100)).unwrap(), 100);
        for bad in [json!(0), json!(101), json!(-1), json!("ten"), json!("")] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }
}
