//! Refusals in the words of A2A: for JSON-RPC a code, for HTTP+JSON a status, for both the same details.

use std::collections::HashMap;

use a2a::error_code as code;
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::contract::problem::Problem;
use crate::kernel::error::ErrorCode;

#[derive(Debug)]
pub enum Refusal {
    /// One of the protocol's own.
    Protocol { code: i32, message: String, details: Vec<Value> },
    /// What every door refuses in the same way: a scope that is missing, a limit, a store that is away.
    Plain(Problem),
}

impl Refusal {
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        let info =
            a2a::TypedDetail::error_info(a2a::error_reason(code), a2a::PROTOCOL_DOMAIN, None);
        Self::Protocol { code, message: message.into(), details: vec![json!(info)] }
    }

    /// Params with a wrong field, by its path: `message.parts`.
    pub fn field(field: &str, message: impl Into<String>) -> Self {
        Self::fields(vec![(field.into(), message.into())])
    }

    fn fields(wrong: Vec<(String, String)>) -> Self {
        let message: Vec<_> = wrong.iter().map(|(field, why)| format!("{field} {why}")).collect();
        let violations = wrong.into_iter();
        let violations = violations
            .map(|(field, description)| a2a::FieldViolation { field, description })
            .collect();
        Self::Protocol {
            code: code::INVALID_PARAMS,
            message: message.join("; "),
            details: vec![json!(a2a::TypedDetail::bad_request(violations))],
        }
    }

    pub fn task_not_found() -> Self {
        Self::new(code::TASK_NOT_FOUND, "there is no such task")
    }

    /// The error of JSON-RPC.
    pub fn of_rpc(&self) -> Value {
        match self {
            Self::Protocol { code, message, details } => {
                json!({"code": code, "message": message, "data": details})
            }
            Self::Plain(problem) => {
                let details = [plain_info(problem)];
                let message = &problem.detail;
                json!({"code": code::INTERNAL_ERROR, "message": message, "data": details})
            }
        }
    }

    /// The status and the body of HTTP+JSON.
    pub fn of_http(&self) -> (StatusCode, Value) {
        let (status, message, details) = match self {
            Self::Protocol { code, message, details } => {
                let status = a2a::A2AError::new(*code, "").http_status_code();
                (status, message, details.clone())
            }
            Self::Plain(problem) => {
                (problem.http_status(), &problem.detail, vec![plain_info(problem)])
            }
        };
        let body = json!({"error": {
            "code": status, "status": self.status(), "message": message, "details": details,
        }});
        (StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), body)
    }

    /// The name of the status (google.rpc.Code).
    fn status(&self) -> &'static str {
        match self {
            Self::Protocol { code: code::TASK_NOT_FOUND, .. } => "NOT_FOUND",
            Self::Protocol { code: code::INTERNAL_ERROR, .. } => "INTERNAL",
            Self::Protocol { code: code::METHOD_NOT_FOUND, .. } => "UNIMPLEMENTED",
            Self::Protocol {
                code:
                    code::TASK_NOT_CANCELABLE
                    | code::PUSH_NOTIFICATION_NOT_SUPPORTED
                    | code::UNSUPPORTED_OPERATION
                    | code::EXTENDED_CARD_NOT_CONFIGURED
                    | code::EXTENSION_SUPPORT_REQUIRED
                    | code::VERSION_NOT_SUPPORTED,
                ..
            } => "FAILED_PRECONDITION",
            Self::Protocol { .. } => "INVALID_ARGUMENT",
            Self::Plain(problem) => match problem.code {
                ErrorCode::Unauthenticated => "UNAUTHENTICATED",
                ErrorCode::Forbidden => "PERMISSION_DENIED",
                ErrorCode::NotFound => "NOT_FOUND",
                ErrorCode::RateLimited | ErrorCode::Overloaded => "RESOURCE_EXHAUSTED",
                ErrorCode::Unavailable => "UNAVAILABLE",
                ErrorCode::DeadlineExceeded => "DEADLINE_EXCEEDED",
                _ => "INTERNAL",
            },
        }
    }
}

fn plain_info(problem: &Problem) -> Value {
    let retry = problem.retry_after_ms.map(|ms| ("retryAfterMs".to_owned(), ms.to_string()));
    let metadata: HashMap<_, _> = retry.into_iter().collect();
    let metadata = (!metadata.is_empty()).then_some(metadata);
    let reason = problem.reason.as_deref().unwrap_or(problem.code.as_str()).to_ascii_uppercase();
    json!(a2a::TypedDetail::error_info(reason, "proxie", metadata))
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        let reason = problem.reason.as_deref();
        match (problem.code, reason) {
            (ErrorCode::NotFound, _) => Self::task_not_found(),
            (ErrorCode::Conflict, Some("task_not_cancelable")) => {
                Self::new(code::TASK_NOT_CANCELABLE, problem.detail)
            }
            (ErrorCode::Conflict, _) => Self::new(code::UNSUPPORTED_OPERATION, problem.detail),
            (ErrorCode::IdReused, _) => {
                Self::field("message.messageId", "was used for another message")
            }
            (ErrorCode::BadRequest | ErrorCode::Rejected | ErrorCode::TooLarge, _) => {
                if problem.errors.is_empty() {
                    return Self::field("message", problem.detail);
                }
                let named = |pointer: &str| pointer.trim_start_matches('/').replace('/', ".");
                let wrong = problem.errors.iter();
                let wrong = wrong.map(|error| (named(&error.pointer), error.message.clone()));
                Self::fields(wrong.collect())
            }
            _ => Self::Plain(problem),
        }
    }
}
