//! Calls of outside tools that have no answer, and what is known of them.

use std::error::Error;

use rmcp::service::ServiceError;
use rmcp::transport::streamable_http_client::StreamableHttpError;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutsideFailureKind {
    /// The role may not use it, or the server has no such tool.
    NotAllowed,
    /// The arguments are none of the tool's.
    WrongArguments,
    /// The server has not received it.
    NotSent,
    /// The server has received it and refuses it.
    Refused,
    /// It may have been done: the answer did not come, was too long, or cannot be read.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct OutsideFailure {
    pub kind: OutsideFailureKind,
    /// In our words: those of a server are not passed on.
    pub detail: String,
}

impl OutsideFailure {
    pub(super) fn new(kind: OutsideFailureKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }

    pub fn may_have_happened(&self) -> bool {
        self.kind == OutsideFailureKind::Unknown
    }
}

pub(super) fn away(detail: &str) -> OutsideFailure {
    OutsideFailure::new(OutsideFailureKind::NotSent, detail)
}

/// What a failed call means. Where nothing is certain, it may have been done.
pub(super) fn failure(error: &ServiceError) -> OutsideFailure {
    use OutsideFailureKind::{NotSent, Refused, Unknown};
    tracing::debug!(%error, "a call of an outside tool has failed");
    let (kind, detail) = match error {
        ServiceError::McpError(_) => (Refused, "the server refuses the call"),
        ServiceError::TransportSend(error) => sending(error.error.as_ref()),
        ServiceError::UnexpectedResponse => (Unknown, "the answer cannot be read"),
        _ => (Unknown, "the connection has ended before the answer"),
    };
    match (kind, detail) {
        (NotSent, detail) => away(detail),
        (kind, detail) => OutsideFailure::new(kind, detail),
    }
}

fn sending(error: &(dyn Error + 'static)) -> (OutsideFailureKind, &'static str) {
    use OutsideFailureKind::{NotSent, Refused, Unknown};
    type Http = StreamableHttpError<reqwest::Error>;
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<Http>() {
            match error {
                Http::Client(error) if error.is_connect() => {
                    return (NotSent, "it cannot be reached");
                }
                Http::AuthRequired(_) | Http::InsufficientScope(_) => {
                    return (Refused, "the server does not let us in");
                }
                // Refused before the call was looked at.
                Http::HttpStatus(status) if status.status == 429 => {
                    return (Refused, "the server takes no more calls now");
                }
                Http::SessionExpired | Http::ReinitializationFailed(_) => {
                    // Once it was opened anew.
                    return (Refused, "the server has lost its session again");
                }
                Http::ResponseBodyTooLarge { .. } => return (Unknown, "the answer is too long"),
                _ => {}
            }
        }
        cause = error.source();
    }
    (Unknown, "the connection has ended before the answer")
}
