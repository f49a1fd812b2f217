//! Strict parsing of clients' JSON: input that is ambiguous, cannot be stored, or nests too deeply is refused. Refused
//! input is still recognised as JSON, so that it can be answered.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

/// Deepest nesting of objects and lists.
const MAX_DEPTH: usize = 64;

/// Reads a whole body.
pub fn read(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { left: MAX_DEPTH }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Reads a value and refuses repeated fields.
#[derive(Clone, Copy)]
pub struct Strict {
    /// Levels of nesting that are still allowed.
    left: usize,
}

impl Strict {
    /// The seed for a field of a frame: the frame itself is one level.
    pub const FIELD: Self = Self { left: MAX_DEPTH - 1 };

    fn within<E: Error>(self) -> Result<Self, E> {
        let left = self.left.checked_sub(1);
        let left = left.ok_or_else(|| {
            E::custom(format_args!("objects and lists nested more than {MAX_DEPTH} deep"))
        })?;
        Ok(Self { left })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Refuses U+0000, which PostgreSQL cannot store in jsonb.
fn without_nul<E: Error>(text: String) -> Result<String, E> {
    match text.contains('\0') {
        true => Err(E::custom("U+0000 cannot be stored")),
        false => Ok(text),
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        without_nul(text).map(Value::String)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let (within, mut list) = (self.within()?, Vec::new());
        while let Some(item) = items.next_element_seed(within)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let (within, mut object) = (self.within()?, Map::new());
        while let Some(name) = fields.next_key::<String>()? {
            let name = without_nul(name)?;
            let value = fields.next_value_seed(within)?;
            match object.entry(name) {
                serde_json::map::Entry::Vacant(place) => drop(place.insert(value)),
                serde_json::map::Entry::Occupied(place) => {
                    let shown: String = place.key().chars().take(64).collect();
                    return Err(A::Error::custom(format_args!("{shown:?} appears twice")));
                }
            }
        }
        Ok(Value::Object(object))
    }
}

/// One field of a JSON object (RFC 8259), even if we refuse the rest of it: a lone surrogate, a number out of range,
/// any depth. If the name appears twice, the last one counts.
pub fn field_of(text: &str, name: &'static str) -> Option<Value> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let field = deserializer.deserialize_map(Field { name }).ok()?;
    deserializer.end().ok()?;
    serde_json::from_str(field?.get()).ok()
}

struct Field {
    name: &'static str,
}

impl<'de> Visitor<'de> for Field {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(Name(name)) = fields.next_key()? {
            if name == self.name.as_bytes() {
                found = Some(fields.next_value()?);
            } else {
                fields.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// A field's name as bytes, since it may contain half a surrogate pair.
struct Name(Vec<u8>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_bytes<E>(self, name: &[u8]) -> Result<Name, E> {
                Ok(Name(name.to_owned()))
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_read_is_what_was_sent() {
        let text = r#"{"a": [1, -2, 1.5, 1e3, null, true, "é\n"], "b": {"c": {}, "d": []}, "": 18446744073709551615}"#;
        assert_eq!(read(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        assert_eq!(read(b" 7 ").unwrap(), json!(7));
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(read(nested(MAX_DEPTH).as_bytes()).is_ok());
        for bad in [
            "",
            "{",
            "1 2",
            r#"{"a": "\u0000"}"#,
            r#"{"a\u0000": 1}"#,
            r#"{"a": [{"b": 1, "b": 1}]}"#,
            r#""\ud800""#,
            "1e999",
            &nested(MAX_DEPTH + 1),
            &nested(10_000),
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_field_is_found_in_whatever_is_json() {
        for rest in [
            r#""\ud800""#,
            r#""\udfff\ud800x""#,
            "1e999",
            "-1E+99999",
            "123456789012345678901234567890123456789012345678901234567890",
            r#"{"a": 1, "a": 2}"#,
            r#""\u0000""#,
            &format!("{}{}", "[".repeat(5_000), "]".repeat(5_000)),
            &format!("{}1{}", r#"{"a":"#.repeat(5_000), "}".repeat(5_000)),
        ] {
            for text in [
                format!(r#"{{"id": "x", "data": {rest}}}"#),
                format!(r#" {{"data" : {rest} , "\u0069d" : "\u0078" }} "#),
                format!(r#"{{"id": 1, "\ud800": {rest}, "id": "x"}}"#),
            ] {
                assert_eq!(field_of(&text, "id"), Some(json!("x")), "{text}");
            }
        }
        for bad in [
            "",
            "[]",
            r#""id""#,
            r#"{"id": "x""#,
            r#"{"id": "x"} {}"#,
            r#"{"id": "x",}"#,
            r#"{"id": "x", "data": 01}"#,
            r#"{"id": "x", "data": 1.}"#,
            r#"{"id": "x", "data": .5}"#,
            r#"{"id": "x", "data": "\u12"}"#,
            r#"{"id": "x", "data": "\x"}"#,
            r#"{"id": "x", "data": NaN}"#,
            r#"{"id": "x", "data": [1 2]}"#,
            r#"{"id": "x", "data": [[}"#,
            "{\"id\": \"x\", \"data\": \"\n\"}",
            r#"{"id": "\ud800"}"#,
            r#"{"id": 1e999}"#,
            r#"{"data": {"id": "x"}}"#,
        ] {
            assert_eq!(field_of(bad, "id"), None, "{bad}");
        }
    }
}
