//! One kind of "no" for all edges: `application/problem+json` (RFC 9457) over HTTP, `error` in a WebSocket reply.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use crate::kernel::entity::Rejection;
use crate::kernel::error::{AskError, ErrorCode};
use crate::persistence::views::ViewError;

/// One wrong field; `pointer` is a JSON pointer into the body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FieldError {
    pub pointer: String,
    pub message: String,
}

impl FieldError {
    pub fn new(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), message: message.into() }
    }
}

#[derive(Clone, Debug)]
pub struct Problem {
    pub code: ErrorCode,
    pub detail: String,
    /// A stable word for programs, where the code is not enough: `slot_taken`.
    pub reason: Option<String>,
    pub errors: Vec<FieldError>,
    pub retry_after_ms: Option<u64>,
    /// Where HTTP has a better status than the code's own.
    pub(super) status: Option<StatusCode>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

pub type Outcome<T = Value> = Result<T, Problem>;

impl Problem {
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        let retry_after_ms = match code {
            ErrorCode::RateLimited | ErrorCode::Overloaded | ErrorCode::Unavailable => Some(1_000),
            _ => None,
        };
        Self {
            code,
            detail: detail.into(),
            reason: None,
            errors: Vec::new(),
            retry_after_ms,
            status: None,
            headers: Vec::new(),
        }
    }

    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(ErrorCode::BadRequest, detail)
    }

    pub fn not_found(what: &str) -> Self {
        Self::new(ErrorCode::NotFound, format!("there is no such {what}"))
    }

    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(ErrorCode::Forbidden, detail)
    }

    pub fn unavailable() -> Self {
        Self::new(ErrorCode::Unavailable, "the store cannot be reached right now")
    }

    pub fn unauthenticated(detail: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unauthenticated, detail)
    }

    /// Input that cannot be understood.
    pub fn fields(errors: Vec<FieldError>) -> Self {
        let detail = errors
            .iter()
            .map(|e| format!("{}: {}", e.pointer, e.message))
            .collect::<Vec<_>>()
            .join("; ");
        Self { errors, ..Self::bad_request(detail) }
    }

    pub fn field(pointer: &str, message: impl Into<String>) -> Self {
        Self::fields(vec![FieldError::new(pointer, message)])
    }

    pub fn rejected(reason: &str, detail: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..Self::new(ErrorCode::Rejected, detail) }
    }

    /// A typed business "no". `Invalid` rejections of every domain carry `errors`.
    pub fn rejection<R: Rejection>(rejection: &R) -> Self {
        let errors = match serde_json::to_value(rejection) {
            Ok(Value::Object(variant)) => variant
                .into_iter()
                .next()
                .and_then(|(_, fields)| fields.get("errors")?.as_array().cloned())
                .unwrap_or_default()
                .iter()
                .filter_map(|e| {
                    Some(FieldError::new(e["pointer"].as_str()?, e["message"].as_str()?))
                })
                .collect(),
            _ => Vec::new(),
        };
        Self {
            reason: Some(rejection.reason().into()),
            errors,
            ..Self::new(rejection.code(), rejection.to_string())
        }
    }

    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub fn retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// Moves errors of a command's fields to where the API has them.
    pub fn repoint(mut self, move_pointer: impl Fn(&str) -> String) -> Self {
        for error in &mut self.errors {
            error.pointer = move_pointer(&error.pointer);
        }
        self
    }

    pub fn http_status(&self) -> StatusCode {
        self.status.unwrap_or_else(|| {
            StatusCode::from_u16(self.code.http_status())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
        })
    }

    /// `error` of a WebSocket reply.
    pub fn ws_error(&self) -> Value {
        let mut error = json!({
            "code": self.code,
            "message": self.detail,
            "retryable": self.code.retryable(),
        });
        if let Some(ms) = self.retry_after_ms {
            error["retry_after_ms"] = json!(ms);
        }
        if let Some(reason) = &self.reason {
            error["reason"] = json!(reason);
        }
        if !self.errors.is_empty() {
            error["errors"] = json!(self.errors);
        }
        error
    }

    fn body(&self) -> Value {
        let mut body = json!({
            "type": format!("/docs/errors/{}", self.code.as_str()),
            "title": self.code.title(),
            "status": self.http_status().as_u16(),
            "detail": self.detail,
            "code": self.code,
        });
        if let Some(reason) = &self.reason {
            body["reason"] = json!(reason);
        }
        if !self.errors.is_empty() {
            body["errors"] = json!(self.errors);
        }
        body
    }
}

/// The outermost layer adds the request's id to the body: only it knows.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.http_status(), self.body().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(ms) = self.retry_after_ms {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1_000).max(1)));
        }
        if self.code == ErrorCode::Unauthenticated {
            let scheme =
                HeaderValue::from_static("Bearer realm=\"proxie\", error=\"invalid_token\"");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        headers.extend(self.headers.iter().cloned());
        response.extensions_mut().insert(IsProblem(std::sync::Arc::new(self)));
        response
    }
}

/// Left in the response for the layer that knows the request's id.
#[derive(Clone)]
pub struct IsProblem(pub std::sync::Arc<Problem>);

impl Problem {
    pub fn body_with(&self, request_id: &str) -> String {
        let mut body = self.body();
        body["request_id"] = json!(request_id);
        body.to_string()
    }
}

impl From<AskError> for Problem {
    fn from(error: AskError) -> Self {
        let detail = match &error {
            // The reason is for our log; outsiders learn that it is temporary.
            AskError::Unavailable { reason, .. } => {
                tracing::debug!(%reason, "a command was answered unavailable");
                "the entity cannot answer right now".to_owned()
            }
            other => other.to_string(),
        };
        Self { retry_after_ms: error.retry_after_ms(), ..Self::new(error.code(), detail) }
    }
}

impl From<ViewError> for Problem {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::Unavailable(error) => {
                tracing::debug!(%error, "a read was answered unavailable");
                Self::unavailable()
            }
            ViewError::Internal(error) => {
                tracing::error!(%error, "a read failed");
                Self::new(ErrorCode::Internal, "the read could not be done")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::systems::marketplace::domain::rejection::FieldError as DomainError;
    use crate::systems::marketplace::domain::request;

    #[test]
    fn rejections_keep_their_reason_and_fields() {
        let errors = vec![DomainError {
            pointer: "/when/latest".into(),
            message: "must not be in the past".into(),
        }];
        let problem = Problem::rejection(&request::Rejection::Invalid { errors });
        assert_eq!(problem.http_status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(problem.reason.as_deref(), Some("invalid"));
        assert_eq!(problem.errors, [FieldError::new("/when/latest", "must not be in the past")]);
        let taken = Problem::rejection(&request::Rejection::SlotTaken);
        assert_eq!(
            (taken.code, taken.reason.as_deref()),
            (ErrorCode::Conflict, Some("slot_taken"))
        );
    }

    #[test]
    fn temporary_errors_say_when_to_come_back() {
        for code in [ErrorCode::RateLimited, ErrorCode::Overloaded, ErrorCode::Unavailable] {
            let response = Problem::new(code, "").into_response();
            assert!(response.headers().contains_key(header::RETRY_AFTER), "{code:?}");
        }
        let response = Problem::unauthenticated("").into_response();
        assert!(
            response.headers()[header::WWW_AUTHENTICATE].to_str().unwrap().starts_with("Bearer")
        );
    }
}
