//! The error codes of the outer contract, wrong fields, and how asking an entity can fail.

use serde::{Deserialize, Serialize};

/// The error codes, one table for every door: WebSocket errors, `application/problem+json` and close reasons use these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    BadRequest,
    Unauthenticated,
    Forbidden,
    NotFound,
    Conflict,
    Rejected,
    IdReused,
    RateLimited,
    Overloaded,
    Unavailable,
    DeadlineExceeded,
    TooLarge,
    Internal,
}

impl ErrorCode {
    pub const ALL: [Self; 13] = [
        Self::BadRequest,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::Conflict,
        Self::Rejected,
        Self::IdReused,
        Self::RateLimited,
        Self::Overloaded,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::TooLarge,
        Self::Internal,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Rejected => "rejected",
            Self::IdReused => "id_reused",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::TooLarge => "too_large",
            Self::Internal => "internal",
        }
    }

    pub fn http_status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::Rejected | Self::IdReused => 422,
            Self::RateLimited => 429,
            Self::Internal => 500,
            Self::Overloaded | Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::BadRequest => "The request is malformed",
            Self::Unauthenticated => "A valid access token is needed",
            Self::Forbidden => "You may not do this",
            Self::NotFound => "There is no such object",
            Self::Conflict => "The object has changed or is in another state",
            Self::Rejected => "The rules do not allow it",
            Self::IdReused => "This id was used for another command",
            Self::RateLimited => "Too many requests",
            Self::Overloaded => "The server has more work than it accepts",
            Self::Unavailable => "The server cannot answer right now",
            Self::DeadlineExceeded => "There was no answer in time",
            Self::TooLarge => "The request is too large",
            Self::Internal => "Something went wrong on our side",
        }
    }

    /// Whether the same command, with the same id, may succeed later.
    pub fn retryable(self) -> bool {
        matches!(
            self,
            Self::RateLimited
                | Self::Overloaded
                | Self::Unavailable
                | Self::DeadlineExceeded
                | Self::Internal
        )
    }
}

/// One wrong field; `pointer` is a JSON pointer into the body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FieldError {
    pub pointer: String,
    pub message: String,
}

impl FieldError {
    pub fn new(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), message: message.into() }
    }
}

/// The failure of a call to an entity. A rejection by the rules is not one: it is typed, and an answer. Between nodes it
/// is JSON; a failure that a node does not know is `Unavailable` to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum AskError {
    #[error("the entity has too many commands in flight")]
    Overloaded,
    #[error("{reason}")]
    Unavailable { reason: String, retry_after_ms: u64 },
    /// The command was not decided: the entity has moved, or its activation is stopping. Asking again is safe.
    #[error("the entity is moving to another node")]
    NotHere,
    #[error("the deadline passed")]
    DeadlineExceeded,
    #[error("this command id was used for another command")]
    IdReused,
    #[error("the command could not be handled")]
    Internal,
    /// Only for commands that travel as data: an unknown kind or an undecodable body.
    #[error("bad command: {0}")]
    BadCommand(String),
    /// The command may have been carried out, but its answer does not fit between two nodes.
    #[error("the answer is too large")]
    TooLarge,
}

impl AskError {
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into(), retry_after_ms: 1_000 }
    }

    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Overloaded => ErrorCode::Overloaded,
            Self::Unavailable { .. } | Self::NotHere => ErrorCode::Unavailable,
            Self::DeadlineExceeded => ErrorCode::DeadlineExceeded,
            Self::IdReused => ErrorCode::IdReused,
            Self::Internal => ErrorCode::Internal,
            Self::BadCommand(_) => ErrorCode::BadRequest,
            Self::TooLarge => ErrorCode::TooLarge,
        }
    }

    pub fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::Unavailable { retry_after_ms, .. } => Some(*retry_after_ms),
            Self::Overloaded => Some(200),
            Self::NotHere => Some(50),
            _ => None,
        }
    }
}
