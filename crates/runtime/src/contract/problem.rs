//! Errors as clients see them, the same through all doors: `application/problem+json` (RFC 9457) over HTTP, `error` in a
//! WebSocket reply.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::kernel::entity::Rejection;
use crate::kernel::error::{AskError, ErrorCode, FieldError};
use crate::persistence::views::ViewError;

#[derive(Clone, Debug)]
pub struct Problem {
    pub code: ErrorCode,
    pub detail: String,
    /// A stable reason for programs, where the code is not specific enough: `slot_taken`.
    pub reason: Option<String>,
    pub errors: Vec<FieldError>,
    pub retry_after_ms: Option<u64>,
    /// The HTTP status, where there is a better one than the code's own.
    pub status: Option<u16>,
    /// Additional headers of the HTTP response.
    pub headers: Vec<(&'static str, String)>,
}

/// The body of an error over HTTP (RFC 9457).
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ProblemDetails {
    pub r#type: String,
    pub title: String,
    pub status: u16,
    pub detail: String,
    pub code: ErrorCode,
    /// A stable reason for programs, where the code is not specific enough: slot_taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<Vec<FieldError>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
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

    /// An input with wrong fields.
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

    /// The rejection of a command by an entity's rules. Rejections named `Invalid` carry `errors`.
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

    pub fn reason(mut self, reason: &str) -> Self {
        self.reason = Some(reason.into());
        self
    }

    pub fn status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// Translates pointers into a command to pointers into the operation's input.
    pub fn repoint(mut self, move_pointer: impl Fn(&str) -> String) -> Self {
        for error in &mut self.errors {
            error.pointer = move_pointer(&error.pointer);
        }
        self
    }

    pub fn http_status(&self) -> u16 {
        self.status.unwrap_or(self.code.http_status())
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

    /// The body of the HTTP response.
    pub fn details(&self, request_id: Option<&str>) -> ProblemDetails {
        ProblemDetails {
            r#type: format!("/docs/errors/{}", self.code.as_str()),
            title: self.code.title().into(),
            status: self.http_status(),
            detail: self.detail.clone(),
            code: self.code,
            reason: self.reason.clone(),
            errors: (!self.errors.is_empty()).then(|| self.errors.clone()),
            request_id: request_id.map(Into::into),
        }
    }
}

impl From<AskError> for Problem {
    fn from(error: AskError) -> Self {
        let detail = match &error {
            // The reason is for the log; clients only learn that it is temporary.
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
            // A node of the release that wrote it can read it, and so can this one once it is upgraded.
            ViewError::Unreadable(_) => {
                Self::new(ErrorCode::Unavailable, "only a newer release can read this object")
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
    use crate::kernel::error::ErrorCode;

    #[derive(Clone, Debug, Serialize, serde::Deserialize, thiserror::Error)]
    enum No {
        #[error("it is wrong")]
        Invalid { errors: Vec<Value> },
        #[error("somebody was faster")]
        SlotTaken,
    }

    impl Rejection for No {
        fn code(&self) -> ErrorCode {
            match self {
                Self::Invalid { .. } => ErrorCode::Rejected,
                Self::SlotTaken => ErrorCode::Conflict,
            }
        }

        fn reason(&self) -> &'static str {
            match self {
                Self::Invalid { .. } => "invalid",
                Self::SlotTaken => "slot_taken",
            }
        }
    }

    #[test]
    fn rejections_keep_their_reason_and_fields() {
        let error = json!({"pointer": "/when/latest", "message": "must not be in the past"});
        let problem = Problem::rejection(&No::Invalid { errors: vec![error] });
        assert_eq!(problem.http_status(), 422);
        assert_eq!(problem.reason.as_deref(), Some("invalid"));
        assert_eq!(problem.errors, [FieldError::new("/when/latest", "must not be in the past")]);
        let taken = Problem::rejection(&No::SlotTaken);
        assert_eq!(
            (taken.code, taken.reason.as_deref()),
            (ErrorCode::Conflict, Some("slot_taken"))
        );
    }
}
