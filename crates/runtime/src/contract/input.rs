//! The input object of an operation: parsing that reports every wrong field at once.

use schemars::{JsonSchema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::problem::{Outcome, Problem};
use crate::kernel::error::FieldError;

/// The most wrong fields that one answer names.
pub const MAX_ERRORS: usize = 16;

/// Reads the object, or names every field that is wrong or missing. Unknown fields are ignored.
pub fn read<T: DeserializeOwned + JsonSchema>(given: &Value) -> Outcome<T> {
    let Value::Object(fields) = given else {
        return Err(Problem::field("", "must be a JSON object"));
    };
    T::deserialize(given).map_err(|whole| {
        let mut errors: Vec<FieldError> = missing::<T>(fields);
        for (name, value) in fields {
            // Read alone, so that only this field's own error is found: a missing neighbour is not its error.
            let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
            let Err(error) = serde_path_to_error::deserialize::<_, T>(alone) else { continue };
            let at = pointer_of(error.path());
            if !at.is_empty() && !errors.iter().any(|known| known.pointer == at) {
                errors.push(FieldError::new(at, error.inner().to_string()));
            }
        }
        errors.truncate(MAX_ERRORS);
        if errors.is_empty() {
            return Problem::field("", whole.to_string());
        }
        Problem::fields(errors)
    })
}

/// An error for each field that the schema requires and the input lacks.
fn missing<T: JsonSchema>(fields: &Map<String, Value>) -> Vec<FieldError> {
    let schema = SchemaGenerator::default().into_root_schema_for::<T>().to_value();
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    required
        .filter(|name| fields.get(*name).is_none_or(Value::is_null))
        .map(|name| FieldError::new(pointer(name), "is required"))
        .collect()
}

fn pointer_of(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut at = String::new();
    for segment in path {
        match segment {
            Segment::Map { key } => at.push_str(&pointer(key)),
            Segment::Seq { index } => at.push_str(&format!("/{index}")),
            // The variant of an enum is no field.
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    at
}

/// The JSON pointer (RFC 6901) to a field of the input.
pub fn pointer(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// The items of a list in the input. `check` returns the wrong field of one item and the error; every wrong item is named.
pub fn items<T: DeserializeOwned>(
    given: &[Value],
    field: &str,
    max: usize,
    check: impl Fn(&T) -> Result<(), (&'static str, &'static str)>,
) -> Outcome<Vec<T>> {
    if given.len() > max {
        return Err(Problem::field(&pointer(field), format!("must be a list of at most {max}")));
    }
    let (mut items, mut errors) = (Vec::with_capacity(given.len()), Vec::new());
    for (n, given) in given.iter().enumerate() {
        let at = format!("/{field}/{n}");
        match T::deserialize(given) {
            Err(error) => errors.push(FieldError::new(at, error.to_string())),
            Ok(item) => match check(&item) {
                Err((of, message)) => errors.push(FieldError::new(format!("{at}/{of}"), message)),
                Ok(()) => items.push(item),
            },
        }
        if errors.len() >= MAX_ERRORS {
            break;
        }
    }
    if errors.is_empty() { Ok(items) } else { Err(Problem::fields(errors)) }
}

/// A text converted to its field's type, since query strings, paths and flags know no other type. What does not fit stays
/// a text, which the parser then refuses.
pub fn from_text(schema: &Value, text: &str) -> Value {
    let is = |kind: &str| match &schema["type"] {
        Value::String(only) => only == kind,
        Value::Array(kinds) => kinds.iter().any(|one| one == kind),
        _ => false,
    };
    let is_json = ["integer", "number", "boolean", "object", "array"].into_iter().any(is);
    if is_json && !is("string") {
        return serde_json::from_str(text).unwrap_or_else(|_| text.into());
    }
    text.into()
}

/// The texts that the type of a field lists.
pub fn choices(schema: &Value, field: &str) -> Vec<String> {
    let mut found = Vec::new();
    add_choices(schema, &schema["properties"][field], &mut found);
    found
}

fn add_choices(schema: &Value, of: &Value, found: &mut Vec<String>) {
    let target = of["$ref"].as_str().and_then(|at| schema.pointer(at.strip_prefix('#')?));
    let of = target.unwrap_or(of);
    let listed = of["enum"].as_array().into_iter().flatten().chain(of.get("const"));
    found.extend(listed.filter_map(|value| value.as_str().map(str::to_owned)));
    for either in ["anyOf", "oneOf"] {
        let each = of[either].as_array().into_iter().flatten();
        // What refers to something again is no list of texts.
        each.for_each(|one| match target.is_some() && one.get("$ref").is_some() {
            true => {}
            false => add_choices(schema, one, found),
        });
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize, JsonSchema)]
    #[allow(dead_code, reason = "only what is wrong with it is looked at")]
    struct Order {
        session_id: String,
        count: u8,
        parts: Option<Vec<Part>>,
        note: Option<String>,
    }

    #[derive(Debug, Deserialize, JsonSchema)]
    #[allow(dead_code, reason = "only what is wrong with it is looked at")]
    struct Part {
        of: u32,
    }

    fn wrong(given: Value) -> Vec<String> {
        let problem = read::<Order>(&given).unwrap_err();
        problem.errors.into_iter().map(|error| error.pointer).collect()
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        assert!(read::<Order>(&json!({"session_id": "s", "count": 1, "unknown": 2})).is_ok());
        assert_eq!(wrong(json!({})), ["/session_id", "/count"]);
        assert_eq!(wrong(json!({"count": 300, "note": 5})), ["/session_id", "/count", "/note"]);
        assert_eq!(wrong(json!({"session_id": null, "count": 1})), ["/session_id"]);
        let parts = json!({"session_id": "s", "count": 1, "parts": [{"of": 1}, {"of": "x"}]});
        assert_eq!(wrong(parts), ["/parts/1/of"]);
        assert_eq!(read::<Order>(&json!([])).unwrap_err().errors[0].pointer, "");
    }

    #[test]
    fn the_texts_that_a_type_lists_are_found_wherever_it_is_written() {
        let schema = json!({
            "properties": {
                "plain": {"type": "string", "enum": ["a", "b"]},
                "perhaps": {"anyOf": [{"$ref": "#/$defs/Place"}, {"type": "null"}]},
                "itself": {"$ref": "#/$defs/Tree"},
                "free": {"type": "string"},
            },
            "$defs": {
                "Place": {"oneOf": [{"type": "string", "enum": ["x"]}, {"const": "y"}]},
                "Tree": {"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}]},
            },
        });
        assert_eq!(choices(&schema, "plain"), ["a", "b"]);
        assert_eq!(choices(&schema, "perhaps"), ["x", "y"]);
        for none in ["itself", "free", "unknown"] {
            assert_eq!(choices(&schema, none), Vec::<String>::new(), "{none}");
        }
    }

    #[test]
    fn a_text_becomes_what_its_field_is() {
        let number = json!({"type": ["integer", "null"]});
        assert_eq!(from_text(&number, "12"), 12);
        assert_eq!(from_text(&number, "x"), "x");
        assert_eq!(from_text(&json!({"type": "string"}), "12"), "12");
        assert_eq!(from_text(&json!({"type": "boolean"}), "true"), true);
    }
}
