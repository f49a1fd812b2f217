//! Extractors for the handlers. Each failure is a problem document.

use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde_json::Value;

use crate::contract::problem::Problem;
use crate::gateway::Gateway;
use crate::gateway::auth::Claims;
use crate::gateway::json;
use crate::kernel::error::ErrorCode;

/// The token of `Authorization: Bearer …`.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The authenticated user, and the id of the command: the `Idempotency-Key`, or a new id.
pub struct AuthenticatedUser {
    pub claims: Claims,
    pub command_id: String,
}

impl FromRequestParts<Arc<Gateway>> for AuthenticatedUser {
    type Rejection = Problem;

    async fn from_request_parts(
        parts: &mut Parts,
        gateway: &Arc<Gateway>,
    ) -> Result<Self, Problem> {
        let claims = parts
            .extensions
            .get::<Claims>()
            .cloned()
            .ok_or_else(|| Problem::unauthenticated("an access token is needed"))?;
        let command_id = match parts.headers.get("idempotency-key") {
            None => gateway.mint("cmd"),
            Some(key) => key
                .to_str()
                .ok()
                .filter(|key| is_command_id(key))
                .ok_or_else(|| {
                    Problem::bad_request(
                        "Idempotency-Key must have 1 to 64 visible ASCII characters",
                    )
                })?
                .to_owned(),
        };
        Ok(Self { claims, command_id })
    }
}

pub fn is_command_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
}

/// The id in the path.
pub struct Id(pub String);

impl FromRequestParts<Arc<Gateway>> for Id {
    type Rejection = Problem;

    async fn from_request_parts(
        parts: &mut Parts,
        gateway: &Arc<Gateway>,
    ) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, gateway).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(_) => Err(Problem::new(ErrorCode::NotFound, "there is nothing at this path")),
        }
    }
}

/// A JSON body; an empty body counts as `{}`.
pub struct Body(pub Value);

impl FromRequest<Arc<Gateway>> for Body {
    type Rejection = Problem;

    async fn from_request(request: Request, gateway: &Arc<Gateway>) -> Result<Self, Problem> {
        let limit = gateway.options.max_body_bytes;
        let too_large =
            || Problem::new(ErrorCode::TooLarge, format!("a body may have at most {limit} bytes"));
        let (parts, body) = request.into_parts();
        let announced = parts
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|n| n.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|n| n > limit) {
            return Err(too_large());
        }
        let bytes = axum::body::to_bytes(body, limit).await.map_err(|error| {
            // Any other error means that the client's connection is gone, so only the limit needs an answer.
            tracing::debug!(%error, "a body could not be read");
            too_large()
        })?;
        if bytes.is_empty() {
            return Ok(Self(Value::Object(serde_json::Map::new())));
        }
        if !is_json(&parts.headers) {
            return Err(Problem::bad_request("the body must be application/json")
                .status(StatusCode::UNSUPPORTED_MEDIA_TYPE.as_u16()));
        }
        json::read(&bytes)
            .map(Self)
            .map_err(|error| Problem::bad_request(format!("the body cannot be read: {error}")))
    }
}

pub fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else {
        return false;
    };
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}
