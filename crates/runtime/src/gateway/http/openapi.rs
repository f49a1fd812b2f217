//! The OpenAPI 3.1 document: the operations of all systems at their routes, and the node's own pages.

use serde_json::{Map, Value, json};

use super::described::{Described, DescribedOperation, describe, resolved};
use crate::contract::System;
use crate::contract::operation::{Method, Route, WithBytes};

/// The error statuses that every operation may answer.
const PROBLEMS: [(&str, &str); 8] = [
    ("400", "The request is malformed"),
    ("401", "A valid access token is needed"),
    ("403", "You may not do this"),
    ("429", "Too many requests"),
    ("500", "Something went wrong on our side"),
    ("503", "Draining, overloaded, or the store is unavailable"),
    ("504", "There was no answer in time"),
    ("404", "There is no such object, or you may not see it"),
];

pub fn document(systems: &'static [&'static System]) -> Value {
    let mut paths = Map::new();
    let Described { operations, schemas, .. } = describe(systems);
    let mut tags: Vec<Value> = Vec::new();
    for operation in &operations {
        for (n, route) in operation.declared.meta.routes().enumerate() {
            let tag = json!({"name": tag(route)});
            if !tags.contains(&tag) {
                tags.push(tag);
            }
            let path = paths.entry(shown_path(route)).or_insert_with(|| json!({}));
            path[route.method.as_str()] = of_route(operation, n, route, &schemas);
        }
    }
    for (path, summary, kind, status) in PUBLIC {
        paths.insert((*path).into(), json!({"get": {
            "tags": ["node"], "operationId": operation_id(path), "summary": summary, "security": [],
            "responses": {
                "200": {"description": summary, "content": {*kind: {}}},
                "default": {"description": status, "content": {"application/problem+json": {"schema": reference("ProblemDetails")}}},
            },
        }}));
    }
    paths.insert("/v1/events".into(), json!({"get": {
        "tags": ["sessions"], "operationId": "events",
        "summary": "Topics as Server-Sent Events: `data` is the frame of /asyncapi.json; your own `user:` topic is always included",
        "parameters": [
            {"name": "topic", "in": "query", "description": "A topic; repeated for more, 32 in all",
             "schema": {"type": "array", "items": {"type": "string"}}, "style": "form", "explode": true},
            {"name": "Last-Event-ID", "in": "header", "description": "The last `id` of an earlier stream, to resume after it",
             "schema": {"type": "string"}},
        ],
        "responses": {
            "200": {"description": "A stream: `ready` first, `close` before the server ends it", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
            "default": {"description": "A problem", "content": {"application/problem+json": {"schema": reference("ProblemDetails")}}},
        },
    }}));
    tags.push(json!({"name": "node", "description": "The node itself, without a token"}));
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Proxie",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Every POST takes an Idempotency-Key: the same key again gets the first answer and has no \
                            second effect, for 24 hours. Errors are application/problem+json. The WebSocket protocol \
                            is described by /asyncapi.json.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    });
    document.sort_all_objects();
    document
}

/// Operations are shown together where their paths begin alike.
fn tag(route: Route) -> &'static str {
    route.path.split('/').nth(2).unwrap_or_default()
}

const PUBLIC: &[(&str, &str, &str, &str)] = &[
    ("/healthz", "The process runs", "application/json", "-"),
    (
        "/readyz",
        "The node takes work",
        "application/json",
        "The store is unavailable, the lease is not proven, or the node is draining",
    ),
    ("/metrics", "Prometheus metrics", "text/plain", "-"),
    ("/openapi.json", "This document", "application/json", "-"),
    ("/asyncapi.json", "The WebSocket protocol", "application/json", "-"),
    ("/.well-known/jwks.json", "The keys that tokens are signed with", "application/json", "-"),
];

fn operation_id(path: &str) -> String {
    path.rsplit('/').next().unwrap_or_default().replace(".json", "")
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn header(name: &str, required: bool, text: &str, pattern: &str) -> Value {
    json!({"name": name, "in": "header", "required": required, "description": text, "schema": {"type": "string", "pattern": pattern}})
}

/// The only parameter of a path is shown as `id`, as clients have always known it.
fn shown_path(Route { path, .. }: Route) -> String {
    match path.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?.1))) {
        Some((before, after)) if !after.contains('{') => format!("{before}{{id}}{after}"),
        _ => path.into(),
    }
}

/// An operation at one of its routes: the input's fields are in the path, in the query or in the body.
fn of_route(
    DescribedOperation { declared, input, answer }: &DescribedOperation,
    n: usize,
    route: Route,
    schemas: &Map<String, Value>,
) -> Value {
    let meta = &declared.meta;
    let object = resolved(input, schemas);
    let fields = object["properties"].as_object().cloned().unwrap_or_default();
    let is_required = |name: &str| {
        object["required"].as_array().is_some_and(|names| names.iter().any(|one| one == name))
    };
    let in_path = |name: &str| route.path.contains(&format!("{{{name}}}"));
    let mut parameters: Vec<Value> = Vec::new();
    let shown = shown_path(route);
    for name in shown.split('/').filter_map(|part| part.strip_prefix('{')) {
        let name = name.trim_end_matches('}');
        parameters.push(
            json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}),
        );
    }
    let rest =
        || fields.iter().filter(|(name, _)| !in_path(name) && meta.if_match != Some(name.as_str()));
    let mut body = Value::Null;
    if route.method == Method::Get {
        for (name, schema) in rest() {
            let mut schema = schema.clone();
            let text = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            // In a query, an absent value is left out, never null.
            if let Some(kind) = schema["type"].as_array().and_then(|kinds| kinds.first()).cloned() {
                schema["type"] = kind;
            }
            parameters.push(json!({
                "name": name, "in": "query", "required": is_required(name),
                "description": text.unwrap_or_default(), "schema": schema,
            }));
        }
    } else if rest().next().is_some() {
        let required: Vec<&String> =
            rest().map(|(name, _)| name).filter(|name| is_required(name)).collect();
        let schema = if rest().count() == fields.len() {
            input.clone()
        } else {
            let rest: Map<String, Value> =
                rest().map(|(name, schema)| (name.clone(), schema.clone())).collect();
            json!({"type": "object", "properties": rest, "required": required})
        };
        body = json!({
            "required": !required.is_empty(), "content": {"application/json": {"schema": schema}},
        });
    }
    if meta.bytes == Some(WithBytes::Taken) {
        body = json!({"required": true, "content": bytes()});
    }
    if route.method == Method::Post {
        let text = "1 to 64 visible ASCII characters";
        parameters.push(header("Idempotency-Key", false, text, "^[!-~]{1,64}$"));
    }
    if meta.if_match.is_some() {
        parameters.push(header("If-Match", true, "The ETag of what you edit, or *", "^.+$"));
    }
    let (status, schema) = match route.method {
        Method::Delete => ("204", &Value::Null),
        Method::Post if meta.creates.is_some() => ("201", answer),
        _ => ("200", answer),
    };
    let edits = meta.if_match.is_some();
    let mut responses = responses(meta.summary, status, schema, route.method == Method::Get, edits);
    if meta.bytes == Some(WithBytes::Given) {
        responses[status]["content"] = bytes();
    }
    if meta.is_streamed {
        let text = "As it comes: `progress` events, then one `answer` or one `problem`";
        let stream = json!({"schema": {"type": "string", "description": text}});
        responses[status]["content"]["text/event-stream"] = stream;
    }
    let id = if n == 0 { meta.name.to_owned() } else { format!("{}.{}", meta.name, n + 1) };
    let mut described = json!({
        "tags": [tag(route)],
        "operationId": id, "summary": meta.summary, "x-scope": meta.takes_scope(),
        "parameters": parameters, "responses": responses,
    });
    if !body.is_null() {
        described["requestBody"] = body;
    }
    described
}

fn bytes() -> Value {
    json!({"*/*": {"schema": {"type": "string", "format": "binary"}}})
}

fn responses(summary: &str, status: &str, schema: &Value, reads: bool, edits: bool) -> Value {
    let mut responses = Map::new();
    let mut answer = json!({"description": summary});
    if !schema.is_null() {
        answer["content"] = json!({"application/json": {"schema": schema}});
    }
    responses.insert(status.into(), answer);
    let writes: &[(&str, &str)] = &[
        ("409", "The object is in another state"),
        ("413", "The body is too large"),
        ("415", "The body is not JSON"),
        ("422", "The rules do not allow it, or the id was used for another command"),
    ];
    let versions: &[(&str, &str)] =
        &[("412", "The object has changed"), ("428", "If-Match is needed")];
    let no_reads = if reads { &[][..] } else { writes };
    let only_edits = if edits { versions } else { &[] };
    for (status, text) in PROBLEMS.iter().chain(no_reads).chain(only_edits) {
        let content = json!({"application/problem+json": {"schema": reference("ProblemDetails")}});
        responses.insert((*status).into(), json!({"description": text, "content": content}));
    }
    Value::Object(responses)
}
