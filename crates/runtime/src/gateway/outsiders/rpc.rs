//! The binding over JSON-RPC 2.0: one address, and the method in the body.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use a2a::error_code as code;
use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::methods::{self, Answered};
use super::refusal::Refusal;
use super::{Asked, Named};
use crate::contract::agent::AgentKind;
use crate::contract::problem::{Outcome, Problem};
use crate::gateway::Gateway;
use crate::gateway::http::{KeepBody, event_stream, is_json};
use crate::kernel::error::ErrorCode;

const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub async fn answer(
    agent: &'static AgentKind,
    State(gateway): State<Arc<Gateway>>,
    named: Named,
    request: Request,
) -> Outcome<Response> {
    let (mut parts, body) = request.into_parts();
    let version = version(&parts);
    let asked = Asked::of(agent, &gateway, &named.0, &mut parts).await?;
    if !is_json(&parts.headers) {
        let problem = Problem::bad_request("the body must be application/json");
        return Err(problem.status(StatusCode::UNSUPPORTED_MEDIA_TYPE.as_u16()));
    }
    let bytes = whole(body, gateway.options.max_body_bytes).await?;
    let mut request = match methods::body(&bytes) {
        Ok(request) => request,
        Err(refusal) => return Ok(refused(Value::Null, &refusal)),
    };
    let invalid = |message: &str| Refusal::new(code::INVALID_REQUEST, message);
    if !request.is_object() {
        return Ok(refused(Value::Null, &invalid("the body must be one request")));
    }
    let id = request["id"].take();
    let refusal = if !matches!(id, Value::String(_) | Value::Null) && !id.is_i64() && !id.is_u64() {
        return Ok(refused(Value::Null, &invalid("id must be a string or a whole number")));
    } else if request["jsonrpc"] != "2.0" {
        Some(invalid("jsonrpc must be \"2.0\""))
    } else if id.is_null() {
        Some(invalid("id is required: nothing here is a notification"))
    } else {
        methods::check_version(&version).err()
    };
    if let Some(refusal) = refusal {
        return Ok(refused(id, &refusal));
    }
    let Some(method) = request["method"].as_str().map(str::to_owned) else {
        return Ok(refused(id, &invalid("method must be a string")));
    };
    let params = match request["params"].take() {
        Value::Null => json!({}),
        params @ Value::Object(_) => params,
        _ => return Ok(refused(id, &Refusal::field("params", "must be an object"))),
    };
    match methods::perform(asked, &method, params).await {
        Ok(Answered::One(result)) => {
            Ok(Json(json!({"jsonrpc": "2.0", "id": id, "result": result})).into_response())
        }
        Ok(Answered::Changes(changes)) => {
            let events = changes.map(move |change| {
                let event = json!({"jsonrpc": "2.0", "id": id, "result": change});
                Ok::<_, Infallible>(Event::default().data(event.to_string()))
            });
            Ok(event_stream(events, KEEP_ALIVE))
        }
        // What concerns the token is answered as at every door, with its challenge.
        Err(Refusal::Plain(problem)) if problem.code == ErrorCode::Forbidden => Err(problem),
        Err(refusal) => Ok(refused(id, &refusal)),
    }
}

fn refused(id: Value, refusal: &Refusal) -> Response {
    Json(json!({"jsonrpc": "2.0", "id": id, "error": refusal.of_rpc()})).into_response()
}

/// The version in the header, or in the query.
pub fn version(parts: &axum::http::request::Parts) -> String {
    let header = parts.headers.get(a2a::SVC_PARAM_VERSION).and_then(|given| given.to_str().ok());
    let query = parts.uri.query().unwrap_or_default().split('&');
    let mut queried = query.filter_map(|one| one.split_once('='));
    let queried = queried.find(|(name, _)| name.eq_ignore_ascii_case(a2a::SVC_PARAM_VERSION));
    header.or(queried.map(|(_, given)| given)).unwrap_or_default().to_owned()
}

pub async fn whole(body: Body, limit: usize) -> Outcome<axum::body::Bytes> {
    to_bytes(body, limit).await.map_err(|error| {
        tracing::debug!(%error, "a body could not be read");
        Problem::new(ErrorCode::TooLarge, format!("a body may have at most {limit} bytes"))
    })
}

/// Refusals of HTTP+JSON are no problem documents.
pub fn kept(mut response: Response) -> Response {
    response.extensions_mut().insert(KeepBody);
    response
}
