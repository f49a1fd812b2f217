//! What a node says, held against its documents: `/asyncapi.json` and `/openapi.json` name every field of it.

use std::sync::LazyLock;

use proxie::gateway::http::{asyncapi, openapi};
use serde_json::{Map, Value};

static ASYNCAPI: LazyLock<Value> = LazyLock::new(|| asyncapi::document(crate::vouchers::ALL));
static OPENAPI: LazyLock<Value> = LazyLock::new(|| openapi::document(crate::vouchers::ALL));

/// A frame that the server sends by itself is in the document, as it is.
#[track_caller]
pub fn documents_event(frame: &Value) {
    // Those of applications are theirs, and `/sync/ws` has frames of its own.
    let ours = |event: &&str| !event.starts_with("app:") && frame.get("type").is_none();
    let Some(event) = frame["event"].as_str().filter(ours) else { return };
    let payload = &ASYNCAPI["channels"]["ws"]["messages"][format!("server.{event}")]["payload"];
    assert!(payload.is_object(), "{event} is not in the document: {frame}");
    fits(payload, frame, event, &ASYNCAPI).unwrap_or_else(|why| panic!("{why}: {frame}"));
}

/// So is the reply to a client's frame.
#[track_caller]
pub fn documents_reply(event: &str, reply: &Value) {
    let payload = &ASYNCAPI["channels"]["ws"]["messages"][format!("reply.{event}")]["payload"];
    // Tests also send what is no event.
    if payload.is_object() {
        let payload = &payload["oneOf"][usize::from(reply["ok"] != true)];
        fits(payload, reply, event, &ASYNCAPI).unwrap_or_else(|why| panic!("{why}: {reply}"));
    }
}

/// So is an answer over HTTP.
#[track_caller]
pub fn documents_answer(method: &str, path: &str, status: u16, body: &str) {
    let path = path.split('?').next().unwrap_or_default();
    let named = |template: &str| {
        let (a, b) = (template.split('/'), path.split('/'));
        a.clone().count() == b.clone().count()
            && a.zip(b).all(|(a, b)| a == b || a.starts_with('{'))
    };
    let paths = OPENAPI["paths"].as_object().unwrap();
    // `/v1/devices/register` is no device.
    let operation = match paths.get(path) {
        None => paths.iter().find(|(template, _)| named(template)).map(|(_, found)| found),
        found => found,
    };
    let Some(operation) = operation else { return };
    let operation = &operation[method.to_ascii_lowercase()];
    let content = &operation["responses"][status.to_string()]["content"]["application/json"];
    if let (true, Ok(body)) = (content["schema"].is_object(), serde_json::from_str(body)) {
        let shown = format!("{method} {path}");
        fits(&content["schema"], &body, &shown, &OPENAPI)
            .unwrap_or_else(|why| panic!("{why}: {body}"));
    }
}

/// Every field of the value is named, every required one is there, and each is of its kind.
fn fits(schema: &Value, value: &Value, at: &str, document: &Value) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let named = document.pointer(reference.trim_start_matches('#'));
        return fits(named.ok_or_else(|| format!("{reference} is nowhere"))?, value, at, document);
    }
    for any in ["oneOf", "anyOf"] {
        if let Some(schemas) = schema[any].as_array() {
            let tried = schemas.iter().map(|one| fits(one, value, at, document));
            let wrong: Vec<String> = tried.filter_map(Result::err).collect();
            let fit = wrong.len() < schemas.len();
            return if fit { Ok(()) } else { Err(wrong.join(", or ")) };
        }
    }
    if schema["allOf"].is_array() {
        return fits(&merged(schema, document), value, at, document);
    }
    if schema.get("const").is_some_and(|only| only != value)
        || schema["enum"].as_array().is_some_and(|words| !words.contains(value))
    {
        return Err(format!("{at} is another word"));
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let whole = kind == "integer" && kinds.contains(&"number");
    if !whole && !kinds.contains(&kind) {
        return Err(format!("{at} is {kind} and not {kinds:?}"));
    }
    match value {
        Value::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(n, item)| fits(&schema["items"], item, &format!("{at}/{n}"), document)),
        Value::Object(fields) => fit_fields(schema, fields, at, document),
        _ => Ok(()),
    }
}

fn fit_fields(
    schema: &Value,
    fields: &Map<String, Value>,
    at: &str,
    document: &Value,
) -> Result<(), String> {
    let others = &schema["additionalProperties"];
    let Some(properties) = schema["properties"].as_object() else {
        return fields
            .iter()
            .try_for_each(|(name, value)| fits(others, value, &format!("{at}/{name}"), document));
    };
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            return Err(format!("{at} lacks {name}"));
        }
    }
    for (name, value) in fields {
        match properties.get(name) {
            Some(schema) => fits(schema, value, &format!("{at}/{name}"), document)?,
            None => return Err(format!("{at}/{name} is not in the document")),
        }
    }
    Ok(())
}

/// Several objects in one.
fn merged(schema: &Value, document: &Value) -> Value {
    let mut whole = serde_json::json!({"type": "object", "properties": {}, "required": []});
    for part in schema["allOf"].as_array().into_iter().flatten() {
        let part = match part["$ref"].as_str() {
            Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
            None => part,
        };
        for (name, property) in part["properties"].as_object().into_iter().flatten() {
            whole["properties"][name] = property.clone();
        }
        for name in part["required"].as_array().into_iter().flatten() {
            whole["required"].as_array_mut().unwrap().push(name.clone());
        }
    }
    whole
}

#[test]
fn what_is_not_in_the_document_is_found() {
    let schema = serde_json::json!({
        "type": "object", "required": ["a"],
        "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "string"}}},
    });
    let wrong = |value: Value| fits(&schema, &value, "x", &Value::Null).err();
    assert_eq!(wrong(serde_json::json!({"a": 1, "b": ["x"]})), None);
    for (value, why) in [
        (serde_json::json!({"b": []}), "x lacks a"),
        (serde_json::json!({"a": 1, "c": 1}), "x/c is not in the document"),
        (serde_json::json!({"a": 1, "b": [1]}), "x/b/0 is integer and not [\"string\"]"),
    ] {
        assert_eq!(wrong(value).as_deref(), Some(why));
    }
}
