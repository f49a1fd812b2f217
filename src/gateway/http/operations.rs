//! The door of operations over HTTP: `/v1`, as the systems declare it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::extract::{Body, User};
use crate::contract::input::from_text;
use crate::contract::operation::{Method, Route};
use crate::contract::{Declared, Outcome, Problem};
use crate::gateway::Gateway;
use crate::kernel::error::ErrorCode;

/// An operation at one of its routes.
struct Served {
    operation: &'static Declared,
    route: Route,
    /// The schemas of the input's fields, for what comes as text.
    fields: Map<String, Value>,
}

/// What of an answer goes into the response's head.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    id: Option<String>,
    version: Option<u64>,
}

/// The routes of all operations, below nothing.
pub fn routes(gateway: &Gateway) -> Router<Arc<Gateway>> {
    let mut paths: BTreeMap<&'static str, MethodRouter<Arc<Gateway>>> = BTreeMap::new();
    for operation in gateway.operations.all() {
        let schema = operation.input_schema();
        for route in operation.meta.routes() {
            let fields = schema["properties"].as_object().cloned().unwrap_or_default();
            let served = Arc::new(Served { operation, route, fields });
            let filter = match route.method {
                Method::Get => MethodFilter::GET,
                Method::Post => MethodFilter::POST,
                Method::Put => MethodFilter::PUT,
                Method::Patch => MethodFilter::PATCH,
                Method::Delete => MethodFilter::DELETE,
            };
            let handler = move |State(gateway): State<Arc<Gateway>>, request: Request| async move {
                served.answer(&gateway, request).await
            };
            let path = paths.remove(route.path).unwrap_or_default();
            paths.insert(route.path, path.on(filter, handler));
        }
    }
    paths.into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods))
}

impl Served {
    async fn answer(&self, gateway: &Arc<Gateway>, request: Request) -> Outcome<Response> {
        let meta = &self.operation.meta;
        let (mut parts, body) = request.into_parts();
        let user = User::from_request_parts(&mut parts, gateway).await?;
        let mut given = self.of_head(&mut parts, gateway, &user).await?;
        let headers = parts.headers.clone();
        if self.route.method != Method::Get {
            let Body(body) = Body::from_request(Request::from_parts(parts, body), gateway).await?;
            let Value::Object(body) = body else {
                return Err(Problem::field("", "must be a JSON object"));
            };
            for (name, value) in body {
                given.entry(name).or_insert(value);
            }
        }
        let call = gateway.call(&user.claims, user.command_id);
        let answer = self.operation.run(call, Value::Object(given)).await;
        let answer = answer.map_err(|problem| match problem.reason.as_deref() {
            Some("version_mismatch") if meta.if_match.is_some() => {
                problem.status(StatusCode::PRECONDITION_FAILED.as_u16())
            }
            _ => problem,
        })?;
        Ok(self.response(&headers, answer))
    }

    /// The fields that path, query and headers carry.
    async fn of_head(
        &self,
        parts: &mut Parts,
        gateway: &Arc<Gateway>,
        user: &User,
    ) -> Outcome<Map<String, Value>> {
        let mut given = Map::new();
        let text =
            |name: &str, text: &str| from_text(self.fields.get(name).unwrap_or(&Value::Null), text);
        if self.route.method == Method::Get {
            let query = Query::<HashMap<String, String>>::from_request_parts(parts, gateway);
            let Query(query) =
                query.await.map_err(|_| Problem::bad_request("the query is malformed"))?;
            for (name, value) in query.iter().filter(|(_, value)| !value.is_empty()) {
                if value.contains('\0') {
                    return Err(Problem::bad_request("the query contains U+0000"));
                }
                given.insert(name.clone(), text(name, value));
            }
        }
        if self.route.path.contains('{') {
            let path = Path::<HashMap<String, String>>::from_request_parts(parts, gateway).await;
            let nothing = || Problem::new(ErrorCode::NotFound, "there is nothing at this path");
            let Path(path) = path.map_err(|_| nothing())?;
            for (name, value) in path {
                if name == "user_id" {
                    if value != "me" && value != user.claims.sub {
                        return Err(Problem::not_found("user"));
                    }
                    continue;
                }
                given.insert(name.clone(), Value::String(value));
            }
        }
        if let Some(field) = self.operation.meta.if_match
            && let Some(version) = expected_version(&parts.headers)?
        {
            given.insert(field.into(), version.into());
        }
        Ok(given)
    }

    fn response(&self, headers: &HeaderMap, answer: Box<RawValue>) -> Response {
        let meta = &self.operation.meta;
        if self.route.method == Method::Delete {
            return StatusCode::NO_CONTENT.into_response();
        }
        let head: Head = if meta.creates.is_some() || meta.is_versioned {
            serde_json::from_str(answer.get()).unwrap_or_default()
        } else {
            Head::default()
        };
        let tag = head
            .version
            .filter(|_| meta.is_versioned)
            .and_then(|version| HeaderValue::from_str(&format!("\"{version}\"")).ok());
        if self.route.method == Method::Get
            && tag.is_some()
            && headers.get(header::IF_NONE_MATCH) == tag.as_ref()
        {
            let mut response = StatusCode::NOT_MODIFIED.into_response();
            response.headers_mut().extend(tag.map(|tag| (header::ETAG, tag)));
            return response;
        }
        let body = String::from(Box::<str>::from(answer));
        let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut response = ([json], body).into_response();
        if let Some(collection) = meta.creates.filter(|_| self.route.method == Method::Post) {
            *response.status_mut() = StatusCode::CREATED;
            let location = head.id.map(|id| format!("{collection}{id}"));
            let location = location.and_then(|at| HeaderValue::from_str(&at).ok());
            response.headers_mut().extend(location.map(|at| (header::LOCATION, at)));
        }
        response.headers_mut().extend(tag.map(|tag| (header::ETAG, tag)));
        response
    }
}

/// `None`: whatever is there.
fn expected_version(headers: &HeaderMap) -> Outcome<Option<u64>> {
    let Some(given) = headers.get(header::IF_MATCH) else {
        return Err(Problem::bad_request("If-Match is needed: the ETag of what you edit, or *")
            .status(StatusCode::PRECONDITION_REQUIRED.as_u16()));
    };
    let given = given.to_str().unwrap_or_default().trim();
    if given == "*" {
        return Ok(None);
    }
    // Anything that is not one of our tags can match no version; version 0 does not exist.
    let quoted = given.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    Ok(Some(quoted.and_then(|version| version.parse().ok()).unwrap_or(0)))
}
