//! The binding over HTTP+JSON: a path for each method. What path and query name becomes params like those of JSON-RPC.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use a2a::methods as m;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde_json::{Map, Value, json};

use super::methods::{self, Answered};
use super::refusal::Refusal;
use super::rpc::{kept, version, whole};
use super::{Asked, Named};
use crate::contract::agent::AgentKind;
use crate::contract::problem::Outcome;
use crate::gateway::Gateway;
use crate::gateway::http::{event_stream, is_json};

const KEEP_ALIVE: Duration = Duration::from_secs(15);

type Door = State<Arc<Gateway>>;

pub async fn send(
    agent: &'static AgentKind,
    door: Door,
    named: Named,
    r: Request,
) -> Outcome<Response> {
    answer(agent, door, named, r, m::SEND_MESSAGE, &[]).await
}

pub async fn stream(
    agent: &'static AgentKind,
    door: Door,
    named: Named,
    r: Request,
) -> Outcome<Response> {
    answer(agent, door, named, r, m::SEND_STREAMING_MESSAGE, &[]).await
}

pub async fn list(
    agent: &'static AgentKind,
    door: Door,
    named: Named,
    r: Request,
) -> Outcome<Response> {
    answer(agent, door, named, r, m::LIST_TASKS, &[]).await
}

pub async fn extended(
    agent: &'static AgentKind,
    door: Door,
    named: Named,
    r: Request,
) -> Outcome<Response> {
    answer(agent, door, named, r, m::GET_EXTENDED_AGENT_CARD, &[]).await
}

/// A task: `{id}`, `{id}:cancel` or `{id}:subscribe`.
pub async fn task(
    agent: &'static AgentKind,
    door: Door,
    named: Named,
    r: Request,
) -> Outcome<Response> {
    let segment = named.0.get("task_id").cloned().unwrap_or_default();
    let (id, verb) = segment.split_once(':').unwrap_or((&segment, ""));
    let method = match (r.method(), verb) {
        (&Method::GET, "") => m::GET_TASK,
        (&Method::POST, "cancel") => m::CANCEL_TASK,
        // The specification's text says POST, its definition GET.
        (&Method::GET | &Method::POST, "subscribe") => m::SUBSCRIBE_TO_TASK,
        _ => "",
    };
    let id = id.to_owned();
    answer(agent, door, named, r, method, &[("id", &id)]).await
}

pub async fn pushes(
    agent: &'static AgentKind,
    door: Door,
    named: Named,
    r: Request,
) -> Outcome<Response> {
    let method = match *r.method() {
        Method::POST => m::CREATE_PUSH_CONFIG,
        _ => m::LIST_PUSH_CONFIGS,
    };
    let task_id = named.0.get("task_id").cloned().unwrap_or_default();
    answer(agent, door, named, r, method, &[("taskId", &task_id)]).await
}

pub async fn push(
    agent: &'static AgentKind,
    door: Door,
    named: Named,
    r: Request,
) -> Outcome<Response> {
    let method = match *r.method() {
        Method::DELETE => m::DELETE_PUSH_CONFIG,
        _ => m::GET_PUSH_CONFIG,
    };
    let of = |name: &str| named.0.get(name).cloned().unwrap_or_default();
    let (task_id, id) = (of("task_id"), of("id"));
    answer(agent, door, named, r, method, &[("taskId", &task_id), ("id", &id)]).await
}

async fn answer(
    agent: &'static AgentKind,
    State(gateway): Door,
    named: Named,
    request: Request,
    method: &str,
    of_path: &[(&str, &str)],
) -> Outcome<Response> {
    let (mut parts, body) = request.into_parts();
    let asked = match Asked::of(agent, &gateway, &named.0, &mut parts).await {
        Ok(asked) => asked,
        Err(problem) => return Err(problem),
    };
    let params = match params(&gateway, &parts, body).await? {
        Ok(mut params) => {
            for (name, value) in of_path {
                params.insert((*name).into(), (*value).into());
            }
            methods::check_version(&version(&parts)).map(|()| params)
        }
        Err(refusal) => Err(refusal),
    };
    let outcome = match params {
        Ok(params) => methods::perform(asked, method, Value::Object(params)).await,
        Err(refusal) => Err(refusal),
    };
    Ok(match outcome {
        Ok(Answered::One(result)) => json(StatusCode::OK, &result),
        Ok(Answered::Changes(changes)) => {
            let events = changes.map(|change| {
                Ok::<_, Infallible>(Event::default().data(json!(change).to_string()))
            });
            event_stream(events, KEEP_ALIVE)
        }
        Err(refusal) => {
            let (status, body) = refusal.of_http();
            let mut response = kept(json(status, &body));
            if let Refusal::Plain(problem) = &refusal
                && let Some(ms) = problem.retry_after_ms
            {
                let seconds = HeaderValue::from(ms.div_ceil(1_000).max(1));
                response.headers_mut().insert(header::RETRY_AFTER, seconds);
            }
            response
        }
    })
}

/// The params that the body or the query holds.
async fn params(
    gateway: &Gateway,
    parts: &Parts,
    body: Body,
) -> Outcome<Result<Map<String, Value>, Refusal>> {
    if parts.method != Method::POST {
        return Ok(queried(parts));
    }
    let bytes = whole(body, gateway.options.max_body_bytes).await?;
    if bytes.is_empty() {
        return Ok(Ok(Map::new()));
    }
    if !is_json(&parts.headers) {
        let message = "the body must be application/a2a+json";
        return Ok(Err(Refusal::new(a2a::error_code::CONTENT_TYPE_NOT_SUPPORTED, message)));
    }
    Ok(match methods::body(&bytes) {
        Ok(Value::Object(params)) => Ok(params),
        Ok(_) => Err(Refusal::field("body", "must be an object")),
        Err(refusal) => Err(refusal),
    })
}

/// A query knows texts only; these are numbers and booleans.
fn queried(parts: &Parts) -> Result<Map<String, Value>, Refusal> {
    let Ok(Query(query)) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri) else {
        return Err(Refusal::field("query", "is malformed"));
    };
    let value = |name: &str, text: String| match name {
        "pageSize" | "historyLength" | "includeArtifacts" => {
            serde_json::from_str(&text).unwrap_or(Value::String(text))
        }
        _ => Value::String(text),
    };
    let named = query.into_iter().filter(|(_, text)| !text.is_empty());
    Ok(named.map(|(name, text)| (name.clone(), value(&name, text))).collect())
}

fn json(status: StatusCode, value: &Value) -> Response {
    let kind = HeaderValue::from_static("application/a2a+json");
    (status, [(header::CONTENT_TYPE, kind)], value.to_string()).into_response()
}
