//! The AsyncAPI 3.0 document: every event of the WebSocket protocol, in both directions, from tables.

use serde_json::{Map, Value, json};

use super::described::{DescribedAnnouncement, DescribedOperation, describe};
use crate::contract::connection::OnConnection;
use crate::contract::operation::Sort;
use crate::contract::topic::Announced;
use crate::contract::{Declared, System};
use crate::gateway::operations::PRESENCE;
use crate::persistence::publications::ERASED;

/// The doors' own client events: event, summary, `data`, and the reply's `data`. Data is a list of fields (`name?:
/// type`) or the name of a schema.
pub const CLIENT_EVENTS: &[(&str, &str, &str, &str)] = &[
    (
        "auth",
        "Authenticate, or get the connection's details",
        "token?: string, positions?: Positions",
        "user_id: string, role: string, connection_id: string, expires_at: string, ping_ms: integer, limits: Limits, topics: Topics",
    ),
    (
        "auth:refresh",
        "A fresh token for the same user",
        "token: string",
        "user_id: string, role: string, connection_id: string, expires_at: string, ping_ms: integer, limits: Limits, topics: Topics",
    ),
    ("ping", "Check that the server answers", "", "now: string"),
    (
        "presence:online",
        "Count this connection as a device of the user until it ends",
        "status?: string",
        "",
    ),
    (
        "topic:subscribe",
        "Subscribes, from a position or from now",
        "topic: string, position?: Position",
        "recovered: boolean, position: Position",
    ),
    ("topic:unsubscribe", "Ends a subscription, if there is one", "topic: string", ""),
];

/// The doors' own server events: event, summary, prefix of its topics, whether it is durable, `data`.
pub const SERVER_EVENTS: &[(&str, &str, &str, bool, &str)] = &[
    (
        "presence:changed",
        "The presence of a user: after each change, and for a new listener",
        "presence:",
        false,
        "user_id: string, status: string, devices: PresenceDevice[], joins: string[], leaves: string[]",
    ),
    (
        ERASED,
        "The publication at this offset was erased with the person whom it concerned",
        "user:, session:",
        true,
        "",
    ),
    (
        "token:expiring",
        "The token expires soon: send auth:refresh",
        "",
        false,
        "expires_at: string",
    ),
];

/// Close codes: code, reason word, whether the client reconnects, and when the code is sent.
pub const CLOSE_CODES: &[(u16, &str, bool, &str)] = &[
    (3000, "draining", true, "this node stops: reconnect after retry_after_ms"),
    (3001, "evicted", true, "this node was declared dead"),
    (3002, "timeout", true, "no authentication or no sign of life in time"),
    (3008, "slow_consumer", true, "more was waiting for this client than is kept"),
    (3009, "rate_limited", true, "too many frames or connections"),
    (3500, "bad_request", false, "a frame that is not a JSON object with an id"),
    (3501, "unauthenticated", false, "the token was refused or revoked"),
    (3502, "token_expired", false, "the token has ended: reconnect with a fresh one"),
    (3503, "forbidden", false, "this user may not connect"),
    (3504, "too_large", false, "a frame larger than limits.frame_bytes"),
];

pub fn document(systems: &'static [&'static System]) -> Value {
    let described = describe(systems);
    let mut messages = Map::new();
    let mut sent = Vec::new();
    let mut received = Vec::new();
    let door = CLIENT_EVENTS.iter().map(|(event, summary, data, reply)| {
        let more = json!({"x-repeatable": true, "x-http": null});
        (event.to_string(), *summary, fields(data), fields(reply), more)
    });
    let declared = described.operations.iter().map(|operation| {
        let DescribedOperation { declared: Declared { meta, .. }, input, answer } = operation;
        let sort = match meta.sort {
            Sort::Command => "command",
            Sort::Query => "query",
            Sort::Signal => "signal",
        };
        let route = meta.routes().next().or(meta.without_connection);
        let route = route.map(|route| json!({"method": route.method.as_str(), "path": route.path}));
        let more = json!({
            "x-sort": sort, "x-scope": meta.takes_scope(), "x-repeatable": meta.is_repeatable, "x-http": route,
        });
        let answer = match meta.on_connection {
            Some(OnConnection::Listens(_)) => {
                json!({"allOf": [answer, fields("recovered: boolean, position: Position")]})
            }
            _ => answer.clone(),
        };
        (meta.event(), meta.summary, input.clone(), answer, more)
    });
    for (event, summary, data, reply, more) in door.chain(declared) {
        let name = format!("client.{event}");
        let mut message = json!({
            "name": event, "summary": summary,
            "payload": frame(json!({"id": string("Unique; a ULID"), "event": {"const": event}, "data": data}), &["id", "event"]),
        });
        if let (Some(message), Value::Object(more)) = (message.as_object_mut(), more) {
            message.extend(more);
        }
        messages.insert(name.clone(), message);
        received.push(json!({"$ref": format!("#/channels/ws/messages/{name}")}));
        let name = format!("reply.{event}");
        messages.insert(name.clone(), json!({
            "name": format!("reply to {event}"), "summary": "The one reply to the frame with this id",
            "payload": {"oneOf": [
                frame(json!({"id": string("The frame's"), "ok": {"const": true}, "data": reply}), &["id", "ok", "data"]),
                {"$ref": "#/components/schemas/Refusal"},
            ]},
        }));
        sent.push(json!({"$ref": format!("#/channels/ws/messages/{name}")}));
    }
    let door = SERVER_EVENTS.iter().map(|(event, summary, topics, durable, data)| {
        (*event, *summary, topics.to_string(), *durable, fields(data))
    });
    let declared =
        described.announcements.iter().map(|DescribedAnnouncement { announced, data }| {
            let topics: Vec<String> =
                announced.topics.iter().map(|kind| format!("{kind}:")).collect();
            let Announced { event, summary, is_durable, .. } = *announced;
            (*event, *summary, topics.join(", "), *is_durable, data.clone())
        });
    for (event, summary, topics, durable, data) in door.chain(declared) {
        let name = format!("server.{event}");
        let mut properties = json!({"event": {"const": event}, "data": data});
        if !topics.is_empty() {
            properties["topic"] = string(&format!("Starts with {topics}"));
        }
        if durable {
            properties["offset"] = json!({"type": "integer", "minimum": 1, "description": "Contiguous within the topic's epoch"});
        }
        messages.insert(name.clone(), json!({"name": event, "summary": summary, "payload": frame(properties, &["event", "data"])}));
        sent.push(json!({"$ref": format!("#/channels/ws/messages/{name}")}));
    }
    let closing: Vec<Value> = CLOSE_CODES
        .iter()
        .map(|(code, word, reconnect, when)| json!({"code": code, "reason": word, "reconnect": reconnect, "when": when}))
        .collect();
    let own = json!({
            "Refusal": frame(json!({
                "id": string("The frame's"),
                "ok": {"const": false},
                "error": frame(json!({
                    "code": {"enum": crate::kernel::error::ErrorCode::ALL},
                    "message": {"type": "string"},
                    "retryable": {"type": "boolean"},
                    "retry_after_ms": {"type": "integer"},
                    "reason": {"type": "string"},
                    "errors": {"type": "array", "items": fields("pointer: string, message: string")},
                }), &["code", "message", "retryable"]),
            }), &["id", "ok", "error"]),
            "Position": fields("epoch: string, offset: integer"),
            "Positions": by_topic(reference("Position")),
            "Topics": by_topic(json!({"oneOf": [
                fields("recovered: boolean, position: Position"),
                fields("error: object"),
            ]})),
            "Limits": fields(
                "frame_bytes: integer, frames_per_s: integer, frame_burst: integer, subscriptions: integer, \
                 commands_per_minute_per_user: integer, connections_per_user: integer, frames_per_minute_per_user: integer, in_flight: integer, \
                 send_buffer_bytes: integer",
            ),
            "PresenceDevice": fields("id: string, status: string"),
    });
    let topics = systems.iter().flat_map(|system| system.topics);
    let topics = topics.map(|topic| (topic.kind, topic.summary, topic.scope));
    let topics: Map<String, Value> = topics
        .chain([(PRESENCE, "How it stands with a user's devices", PRESENCE)])
        .map(|(kind, summary, scope)| {
            (kind.to_owned(), json!({"summary": summary, "x-scope": scope}))
        })
        .collect();
    let components = components(own, &messages, &described.schemas);
    let mut document = json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Proxie over WebSocket",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Text frames, one JSON object each; receivers ignore unknown fields. Every client frame has \
                            an id and gets exactly one reply with it.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {"ws": {
            "address": "/v1/ws",
            "bindings": {"ws": {"method": "GET", "headers": {"type": "object", "properties": {
                "Sec-WebSocket-Protocol": {"const": "proxie.v1"},
                "Authorization": {"type": "string", "description": "Bearer token; else `auth` within 10 s"},
            }}}},
            "messages": messages,
        }},
        "operations": {
            "receive": {"action": "receive", "channel": {"$ref": "#/channels/ws"}, "messages": received},
            "send": {"action": "send", "channel": {"$ref": "#/channels/ws"}, "messages": sent},
        },
        "components": {"schemas": components},
        "x-topics": topics,
        "x-close-codes": closing,
    });
    document.sort_all_objects();
    document
}

/// The document's schemas: its own, and those of the HTTP answers that events share.
fn components(mut own: Value, messages: &Map<String, Value>, shapes: &Map<String, Value>) -> Value {
    let mut wanted = Vec::new();
    messages.values().for_each(|message| references(message, &mut wanted));
    references(&own, &mut wanted);
    while let Some(name) = wanted.pop() {
        if let (None, Some(shape)) = (own.get(&name), shapes.get(&name)) {
            references(shape, &mut wanted);
            own[&name] = shape.clone();
        }
    }
    own
}

fn references(schema: &Value, found: &mut Vec<String>) {
    match schema {
        Value::Object(fields) => {
            let name = fields.get("$ref").and_then(Value::as_str);
            found.extend(name.and_then(|at| Some(at.rsplit_once('/')?.1.to_owned())));
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

fn string(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn frame(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required})
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn by_topic(schema: Value) -> Value {
    json!({"type": "object", "additionalProperties": schema})
}

/// The schema for `a: string, b?: Offer[]`, or a reference to the schema of that name.
fn fields(text: &str) -> Value {
    if text.starts_with(char::is_uppercase) {
        return reference(text);
    }
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in text.split(", ").filter(|field| !field.is_empty()) {
        let (name, kind) = field.split_once(": ").unwrap_or((field, "any"));
        let plain = name.trim_end_matches('?');
        let schema = of_kind(kind);
        let schema = if plain == name {
            required.push(plain);
            schema
        } else if let Some(kind) = schema.get("type").filter(|kind| *kind != "array") {
            // A field that a client may leave out may also be null.
            json!({"type": [kind, "null"]})
        } else if kind == "any" {
            schema
        } else {
            json!({"oneOf": [schema, {"type": "null"}]})
        };
        properties.insert(plain.into(), schema);
    }
    json!({"type": "object", "properties": properties, "required": required})
}

fn of_kind(kind: &str) -> Value {
    match kind.strip_suffix("[]") {
        Some(item) => json!({"type": "array", "items": of_kind(item)}),
        None if kind == "any" => json!({}),
        None if kind.starts_with(char::is_uppercase) => reference(kind),
        None => json!({"type": kind}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_become_schemas() {
        let schema = fields("a: string, b?: integer, c?: Offer[]");
        assert_eq!(schema["required"], json!(["a"]));
        assert_eq!(schema["properties"]["b"]["type"], json!(["integer", "null"]));
        let offers = &schema["properties"]["c"]["oneOf"][0]["items"];
        assert_eq!((offers, &fields("Offer")), (&reference("Offer"), &reference("Offer")));
    }
}
