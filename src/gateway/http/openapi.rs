//! The OpenAPI 3.1 document. Schemas are derived from the types (`schemas`, `bodies`), operations are this table.

use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::schemas::Schemas;

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
    /// A list that is short enough to be always whole.
    Whole(&'static str),
    Nothing,
}

use Answer::{Created, List, Nothing, One, Whole};

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
    op(
        "get",
        "/v1/sync/state/{id}",
        "getSyncState",
        "What your devices share; the id is `me`, or yours",
        None,
        One("SyncState"),
    ),
    op(
        "post",
        "/v1/sync/merge",
        "mergeSyncState",
        "For a device without a socket: its operations, and what it has not seen",
        Some("SyncMerge"),
        One("SyncMerged"),
    ),
    op(
        "get",
        "/v1/sync/explain/{id}",
        "explainSyncState",
        "Why the values of this content are what they are",
        None,
        One("SyncExplanation"),
    ),
    op("get", "/v1/sync/devices", "listSyncDevices", "Your devices", None, Whole("Device")),
    op(
        "get",
        "/v1/sync/devices/{id}",
        "listSyncDevicesOf",
        "The same; the id is `me`, or yours",
        None,
        Whole("Device"),
    ),
    op("get", "/v1/devices", "listDevices", "Your devices", None, Whole("Device")),
    op(
        "post",
        "/v1/devices/register",
        "registerDevice",
        "Register a device, or change what is known about it",
        Some("RegisterDevice"),
        Created("Device"),
    ),
    op("get", "/v1/devices/{id}", "getDevice", "A device", None, One("Device")),
    op(
        "delete",
        "/v1/devices/{id}",
        "removeDevice",
        "Remove a device; its id is not given again",
        None,
        Nothing,
    ),
    op(
        "post",
        "/v1/devices/{id}/commands",
        "commandDevice",
        "Tell a device that is there what to do",
        Some("DeviceCommand"),
        One("DeviceCommanded"),
    ),
    op(
        "post",
        "/v1/playback/initiate",
        "initiatePlayback",
        "Play something on one of your devices, on the best platform that has it",
        Some("InitiatePlayback"),
        Created("InitiatedPlayback"),
    ),
    op(
        "post",
        "/v1/playback/control",
        "controlPlayback",
        "Tell the device of a session what to do; stop ends the session",
        Some("ControlPlayback"),
        One("ControlledPlayback"),
    ),
    op(
        "post",
        "/v1/playback/report",
        "reportPlayback",
        "What a device says about its session",
        Some("ReportPlayback"),
        One("PlaybackSession"),
    ),
    op(
        "get",
        "/v1/playback/session",
        "listPlaybackSessions",
        "What you watch and have watched, newest first",
        None,
        List("PlaybackSession"),
    ),
    op(
        "get",
        "/v1/playback/session/{id}",
        "getPlaybackSession",
        "A playback session",
        None,
        One("PlaybackSession"),
    ),
    op(
        "get",
        "/v1/playback/platforms",
        "listPlatforms",
        "The platforms that links are known for",
        None,
        Whole("Platform"),
    ),
    op(
        "get",
        "/v1/content/{id}/availability",
        "getAvailability",
        "Where it can be watched",
        None,
        One("Content"),
    ),
    op(
        "put",
        "/v1/content/{id}/availability",
        "setAvailability",
        "Say where it can be watched, as an operator",
        Some("SetAvailability"),
        One("Content"),
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

pub fn document() -> Value {
    let components = serde_json::to_value(Schemas::openapi()).expect("the document serialises");
    let mut schemas = components["components"]["schemas"].as_object().cloned().unwrap_or_default();
    let mut paths = Map::new();
    for operation in OPERATIONS {
        if let List(item) | Whole(item) = operation.answer {
            schemas.insert(format!("{item}List"), list_of(item));
        }
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
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

fn described(operation: &Operation) -> Value {
    let header = |name: &str, required: bool, text: &str, pattern: &str| json!({"name": name, "in": "header", "required": required, "description": text, "schema": {"type": "string", "pattern": pattern}});
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
        List(name) | Whole(name) => ("200", reference(&format!("{name}List"))),
        Nothing => ("204", Value::Null),
    };
    let mut responses = Map::new();
    let mut answer = json!({"description": operation.summary});
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
    let edits: &[(&str, &str)] =
        &[("412", "The object has changed"), ("428", "If-Match is needed")];
    let no_reads = if operation.method == "get" { &[][..] } else { writes };
    let only_edits = if operation.method == "patch" { edits } else { &[] };
    for (status, text) in PROBLEMS.iter().chain(no_reads).chain(only_edits) {
        let content = json!({"application/problem+json": {"schema": reference("ProblemDetails")}});
        responses.insert((*status).into(), json!({"description": text, "content": content}));
    }
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
        let document = document();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        let defined: BTreeSet<String> =
            document["components"]["schemas"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(found.difference(&defined).collect::<Vec<_>>(), Vec::<&String>::new());
    }

    #[test]
    fn operations_are_the_routes() {
        // The router's own text is the only list of its routes.
        let routes = include_str!("mod.rs");
        let under_v1 = routes.matches(".route(\"/requests").count()
            + routes.matches(".route(\"/offers").count()
            + routes.matches(".route(\"/bookings").count()
            + routes.matches(".route(\"/providers").count()
            + routes.matches(".route(\"/sessions").count()
            + routes.matches(".route(\"/sync/").count()
            + routes.matches(".route(\"/devices").count()
            + routes.matches(".route(\"/playback/").count()
            + routes.matches("\"/content/").count()
            - routes.matches(".route(\"/sync/ws").count();
        let paths: BTreeSet<&str> = OPERATIONS.iter().map(|o| o.path).collect();
        assert_eq!(paths.len(), under_v1);
        for path in paths {
            assert!(
                routes.contains(&format!("\"{}\"", path.strip_prefix("/v1").unwrap())),
                "{path}"
            );
        }
    }

    #[test]
    fn the_profile_is_described_in_full() {
        let schema = &document()["components"]["schemas"]["Profile"]["properties"];
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
