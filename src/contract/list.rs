//! Lists: a page at a time, `{"items":[…],"next_cursor":…}`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::kernel::clock::Timestamp;
use crate::persistence::views::{self, Cursor};

const MAX_LIMIT: usize = 100;

/// How many items a page has: 1 to 100, 20 where nothing is said.
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
            "type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": 20, "description": "How many",
        })
    }
}

/// The `next_cursor` of the page before. Opaque to clients, so that what lists are ordered by may change.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct After(pub Cursor);

impl TryFrom<String> for After {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        decode(&text).map(Self).ok_or("is not one that a list has returned")
    }
}

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

/// Where a list that goes up, or down, in time begins.
pub fn up(after: Option<After>) -> Cursor {
    after.map_or_else(Cursor::first, |after| after.0)
}

pub fn down(after: Option<After>) -> Cursor {
    after.map_or_else(Cursor::last, |after| after.0)
}

/// A page of a list.
#[derive(Clone, Debug, Serialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Null at the end.
    pub next_cursor: Option<String>,
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
                "next_cursor": {"type": ["string", "null"], "description": "For `cursor`; null at the end"},
            },
        })
    }
}

impl<T> Page<T> {
    /// A list that is short enough to be always whole.
    pub fn whole(items: Vec<T>) -> Self {
        Self { items, next_cursor: None }
    }

    pub fn map<U>(self, to: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(to).collect(), next_cursor: self.next_cursor }
    }
}

impl<T> From<views::Page<T>> for Page<T> {
    fn from(page: views::Page<T>) -> Self {
        Self { items: page.items, next_cursor: page.next.as_ref().map(encode) }
    }
}

pub fn encode(cursor: &Cursor) -> String {
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
    use serde_json::json;

    use super::*;

    #[test]
    fn cursors_go_round() {
        let cursor = Cursor {
            at: Timestamp::from_microsecond(1_800_000_000_123_456).unwrap(),
            id: "req_1".into(),
        };
        let read = |text: &str| serde_json::from_value::<After>(json!(text));
        assert_eq!(read(&encode(&cursor)).unwrap().0, cursor);
        let ancient = Timestamp::from_second(-377_000_000_000).unwrap();
        let ancient = encode(&Cursor { at: ancient, id: "req_1".into() });
        for bad in ["x", "zz", "é1", "6162", &"0".repeat(1_000), &ancient] {
            assert!(read(bad).is_err(), "{bad}");
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
