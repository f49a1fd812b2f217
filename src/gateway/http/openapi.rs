//! The OpenAPI 3.1 document. Schemas are derived from the types (`schemas`, `bodies`), operations are this table.

use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::described::{Described, DescribedOperation, describe, resolved};
use super::schemas::Schemas;
use crate::contract::System;
use crate::contract::operation::{Method, Route};

struct Operation {
    method: &'static str,
    path: &'static str,
    name: &'static str,
    summary: &'static str,
    body: Option<&'static str>,
    answer: Answer,
    /// Besides `limit` and `cursor` of lists.
    query: &'static [(&'static str, &'static str)],
}

enum Answer {
    One(&'static str),
    Created(&'static str),
    /// A page at a time.
    List(&'static str),
}

use Answer::{Created, List, One};

const fn op(
    method: &'static str,
    path: &'static str,
    name: &'static str,
    summary: &'static str,
    body: Option<&'static str>,
    answer: Answer,
) -> Operation {
    Operation { method, path, name, summary, body, answer, query: &[] }
}

const fn with(mut op: Operation, query: &'static [(&'static str, &'static str)]) -> Operation {
    op.query = query;
    op
}

const OPERATIONS: &[Operation] = &[
    op(
        "post",
        "/v1/requests",
        "createRequest",
        "Ask for something, in a sentence or in fields",
        Some("CreateRequest"),
        Created("Request"),
    ),
    op("get", "/v1/requests", "listRequests", "Your requests, newest first", None, List("Request")),
    op("get", "/v1/requests/{id}", "getRequest", "A request", None, One("Request")),
    op(
        "post",
        "/v1/requests/{id}/cancel",
        "cancelRequest",
        "Give a request up",
        Some("Cancel"),
        One("Request"),
    ),
    op(
        "get",
        "/v1/requests/{id}/offers",
        "listOffers",
        "The offers to a request, in the order they arrived",
        None,
        List("Offer"),
    ),
    op("get", "/v1/offers/{id}", "getOffer", "An offer", None, One("Offer")),
    op(
        "post",
        "/v1/offers/{id}/accept",
        "acceptOffer",
        "Accept an offer and wait for the booking",
        None,
        One("Accepted"),
    ),
    op(
        "post",
        "/v1/offers/{id}/decline",
        "declineOffer",
        "Decline an offer",
        None,
        One("Declined"),
    ),
    op(
        "get",
        "/v1/bookings",
        "listBookings",
        "Your bookings as consumer or provider, newest first",
        None,
        List("Booking"),
    ),
    op("get", "/v1/bookings/{id}", "getBooking", "A booking", None, One("Booking")),
    op(
        "post",
        "/v1/bookings/{id}/cancel",
        "cancelBooking",
        "Cancel a booking before it starts",
        Some("Cancel"),
        One("Booking"),
    ),
    op(
        "post",
        "/v1/bookings/{id}/review",
        "reviewBooking",
        "Review a completed booking, as its consumer",
        Some("Review"),
        One("Booking"),
    ),
    op(
        "post",
        "/v1/bookings/{id}/no-show",
        "markNoShow",
        "Say that the consumer did not come, as the provider",
        None,
        One("Booking"),
    ),
    with(
        op(
            "get",
            "/v1/providers",
            "listProviders",
            "The directory of providers",
            None,
            List("Provider"),
        ),
        &[
            ("service", "Who offers this"),
            ("city", "Who is there"),
            ("owner", "`me`: only one's own"),
        ],
    ),
    op(
        "post",
        "/v1/providers",
        "enrollProvider",
        "Become a provider",
        Some("Profile"),
        Created("Provider"),
    ),
    op("get", "/v1/providers/{id}", "getProvider", "A provider", None, One("Provider")),
    op(
        "patch",
        "/v1/providers/{id}",
        "updateProvider",
        "Change your profile; takes the ETag as If-Match",
        Some("Profile"),
        One("Provider"),
    ),
    op("get", "/v1/sessions", "listSessions", "Your sessions, newest first", None, List("Session")),
    op(
        "post",
        "/v1/sessions",
        "openSession",
        "Open a session, or a new one",
        Some("OpenSession"),
        Created("Session"),
    ),
    op("get", "/v1/sessions/{id}", "getSession", "A session", None, One("Session")),
    with(
        op(
            "get",
            "/v1/sessions/{id}/messages",
            "listMessages",
            "What was said in a session",
            None,
            List("Message"),
        ),
        &[("order", "`asc` (default) or `desc`")],
    ),
    op(
        "post",
        "/v1/sessions/{id}/messages",
        "sendMessage",
        "Say something; the answer comes on the session's topic",
        Some("SendMessage"),
        Created("Sent"),
    ),
];

/// Statuses every operation may answer, and those only some do.
const PROBLEMS: [(&str, &str); 8] = [
    ("400", "The request is malformed"),
    ("401", "A valid access token is needed"),
    ("403", "This is not yours to do"),
    ("429", "Too many requests"),
    ("500", "Something went wrong on our side"),
    ("503", "Draining, overloaded, or the store is away"),
    ("504", "There was no answer in time"),
    ("404", "There is no such object, or it is not yours"),
];

pub fn document(systems: &'static [&'static System]) -> Value {
    let components = serde_json::to_value(Schemas::openapi()).expect("the document serialises");
    let mut schemas = components["components"]["schemas"].as_object().cloned().unwrap_or_default();
    let mut paths = Map::new();
    let Described { operations, schemas: declared, .. } = describe(systems);
    for operation in &operations {
        for (n, route) in operation.declared.meta.routes().enumerate() {
            let path = paths.entry(shown_path(route)).or_insert_with(|| json!({}));
            path[route.method.as_str()] = of_route(operation, n, route, &declared);
        }
    }
    schemas.extend(declared);
    for operation in OPERATIONS {
        if let List(item) = operation.answer {
            schemas.insert(format!("{item}List"), list_of(item));
        }
        let path = paths.entry(operation.path.to_owned()).or_insert_with(|| json!({}));
        path[operation.method] = described(operation);
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
        "summary": "Topics as Server-Sent Events: `data` is the frame of /asyncapi.json, `user:` of yourself is always there",
        "parameters": [
            {"name": "topic", "in": "query", "description": "A topic; repeated for more, 32 in all",
             "schema": {"type": "array", "items": {"type": "string"}}, "style": "form", "explode": true},
            {"name": "Last-Event-ID", "in": "header", "description": "The last `id` of an earlier stream: it goes on there",
             "schema": {"type": "string"}},
        ],
        "responses": {
            "200": {"description": "A stream: `ready` first, `close` before the server ends it", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
            "default": {"description": "A problem", "content": {"application/problem+json": {"schema": reference("ProblemDetails")}}},
        },
    }}));
    json!({
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
        "tags": [
            {"name": "requests"}, {"name": "offers"}, {"name": "bookings"}, {"name": "providers"}, {"name": "sessions"},
            {"name": "sync"}, {"name": "devices"}, {"name": "playback"}, {"name": "content"},
            {"name": "node", "description": "The node itself, without a token"},
        ],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    })
}

const PUBLIC: &[(&str, &str, &str, &str)] = &[
    ("/healthz", "The process runs", "application/json", "-"),
    (
        "/readyz",
        "The node takes work",
        "application/json",
        "The store is away, the lease not proven, or the node drains",
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

fn list_of(item: &str) -> Value {
    json!({
        "type": "object",
        "required": ["items", "next_cursor"],
        "properties": {
            "items": {"type": "array", "items": reference(item)},
            "next_cursor": {"type": ["string", "null"], "description": "For `cursor`; null at the end"},
        },
    })
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
            // A query leaves out what it has not.
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
    let responses = responses(meta.summary, status, schema, route.method == Method::Get, edits);
    let id = if n == 0 { meta.name.to_owned() } else { format!("{}.{}", meta.name, n + 1) };
    let mut described = json!({
        "tags": [route.path.split('/').nth(2).unwrap_or_default()],
        "operationId": id, "summary": meta.summary,
        "parameters": parameters, "responses": responses,
    });
    if !body.is_null() {
        described["requestBody"] = body;
    }
    described
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

fn described(operation: &Operation) -> Value {
    let query = |name: &str, text: &str, schema: Value| json!({"name": name, "in": "query", "description": text, "schema": schema});
    let mut parameters = Vec::new();
    if operation.path.contains("{id}") {
        parameters.push(
            json!({"name": "id", "in": "path", "required": true, "schema": {"type": "string"}}),
        );
    }
    if let List(_) = operation.answer {
        parameters.push(query(
            "limit",
            "How many",
            json!({"type": "integer", "minimum": 1, "maximum": 100, "default": 20}),
        ));
        parameters.push(query(
            "cursor",
            "The `next_cursor` of the page before",
            json!({"type": "string"}),
        ));
    }
    for (name, text) in operation.query {
        parameters.push(query(name, text, json!({"type": "string"})));
    }
    match operation.method {
        "post" => {
            let text = "1 to 64 visible ASCII characters";
            parameters.push(header("Idempotency-Key", false, text, "^[!-~]{1,64}$"));
        }
        "patch" => {
            parameters.push(header("If-Match", true, "The ETag of what you edit, or *", "^.+$"));
        }
        _ => {}
    }
    let (status, schema) = match operation.answer {
        One(name) => ("200", reference(name)),
        Created(name) => ("201", reference(name)),
        List(name) => ("200", reference(&format!("{name}List"))),
    };
    let (reads, edits) = (operation.method == "get", operation.method == "patch");
    let responses = responses(operation.summary, status, &schema, reads, edits);
    let tag = operation.path.split('/').nth(2).unwrap_or_default();
    let mut described = json!({
        "tags": [tag], "operationId": operation.name, "summary": operation.summary,
        "parameters": parameters, "responses": responses,
    });
    if let Some(body) = operation.body {
        // Commands whose body has nothing required take none at all, too.
        let required = matches!(operation.answer, Created(_)) && body != "OpenSession"
            || operation.method == "patch";
        described["requestBody"] = json!({"required": required, "content": {"application/json": {"schema": reference(body)}}});
    }
    described
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    if name == "$ref" {
                        found.insert(field.as_str().unwrap().rsplit('/').next().unwrap().into());
                    }
                    references(field, found);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_is_defined() {
        let document = document(crate::systems::ALL);
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        let defined: BTreeSet<String> =
            document["components"]["schemas"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(found.difference(&defined).collect::<Vec<_>>(), Vec::<&String>::new());
    }

    #[test]
    fn the_profile_is_described_in_full() {
        let schema =
            &document(crate::systems::ALL)["components"]["schemas"]["Profile"]["properties"];
        let described: BTreeSet<&String> = schema.as_object().unwrap().keys().collect();
        let source = include_str!("../../systems/marketplace/domain/profile.rs");
        let patch =
            source.split("pub struct ProfilePatch {").nth(1).unwrap().split('}').next().unwrap();
        let fields: Vec<&str> = patch
            .lines()
            .filter_map(|l| l.trim().strip_prefix("pub ")?.split(':').next())
            .collect();
        assert_eq!(described.len(), fields.len());
        assert!(fields.iter().all(|field| described.iter().any(|d| d == field)), "{fields:?}");
    }
}
