//! Failures of a call of a provider, told apart by what may be done about them.

use std::time::Duration;

use genai::webc::{Error as WebError, StreamTimeout};
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use serde::{Deserialize, Serialize};

/// What may be done about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The provider has no room now (429, 503, 529). Nothing was done and nothing is charged.
    Busy,
    /// Nothing was sent: it does not answer, or its name leads nowhere.
    Unreachable,
    /// It failed, and says so (500). Nobody charges for that.
    Broken,
    /// It may have worked, and may charge: a time-out, 502, 504, a connection that ended after the question was sent, an
    /// answer that cannot be read.
    Uncertain,
    /// Our key is wrong, or has no right to this model.
    Unauthorized,
    /// The provider does not know the model.
    NoSuchModel,
    /// The conversation is longer than the model can read.
    TooLong,
    /// The provider's content policy.
    Policy,
    /// It does not take this question, and will not.
    Invalid,
    /// There is not so much money left. Nobody was asked.
    Budget,
    /// We cannot answer right now, since our own store is away. Nobody was asked.
    Unavailable,
}

impl FailureKind {
    /// Whether another model, or the same one later, may be asked without paying twice.
    pub fn is_safe_to_repeat(self) -> bool {
        !matches!(self, Self::Uncertain | Self::Invalid | Self::Budget | Self::Unavailable)
    }

    /// Whether it says something about the model's health.
    pub fn counts(self) -> bool {
        !matches!(
            self,
            Self::TooLong | Self::Policy | Self::Invalid | Self::Budget | Self::Unavailable
        )
    }

    /// The word for programs in a problem.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Busy => "model_busy",
            Self::Unreachable => "model_unreachable",
            Self::Broken => "model_broken",
            Self::Uncertain => "model_uncertain",
            Self::Unauthorized => "model_unauthorized",
            Self::NoSuchModel => "no_such_model",
            Self::TooLong => "prompt_too_long",
            Self::Policy => "content_policy",
            Self::Invalid => "prompt_invalid",
            Self::Budget => "budget_exceeded",
            Self::Unavailable => "store_unavailable",
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Unreachable => "unreachable",
            Self::Broken => "broken",
            Self::Uncertain => "uncertain",
            Self::Unauthorized => "unauthorized",
            Self::NoSuchModel => "no_such_model",
            Self::TooLong => "too_long",
            Self::Policy => "policy",
            Self::Invalid => "invalid",
            Self::Budget => "budget",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A failure of one call, in words that hold nothing of what was asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
    /// For how long the provider wants to be left alone.
    pub retry_after: Option<Duration>,
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None }
    }

    /// Providers answer with parts of the question, so only what is ours or a code is taken over.
    pub fn of(error: &genai::Error) -> Self {
        use genai::Error as E;
        match error {
            E::WebModelCall { webc_error, .. } | E::WebAdapterCall { webc_error, .. } => {
                Self::of_web(webc_error)
            }
            E::HttpError { status, body, headers, .. } => Self::of_status(*status, body, headers),
            E::WebStream { error, .. } => Self::of_stream(error.as_ref()),
            E::ChatResponse { body, .. } => Self::of_event(&body.to_string()),
            E::StreamParse { .. }
            | E::NoChatResponse { .. }
            | E::InvalidJsonResponseElement { .. }
            | E::ChatResponseGeneration { .. }
            | E::JsonValueExt(_)
            | E::SerdeJson(_) => Self::new(FailureKind::Uncertain, "the answer cannot be read"),
            _ => Self::new(FailureKind::Invalid, "the question cannot be put to this model"),
        }
    }

    fn of_web(error: &WebError) -> Self {
        match error {
            WebError::ResponseFailedStatus { status, body, headers } => {
                Self::of_status(*status, body, headers)
            }
            WebError::Reqwest(error) => Self::of_transport(error),
            _ => Self::new(FailureKind::Uncertain, "the answer cannot be read"),
        }
    }

    fn of_transport(error: &reqwest::Error) -> Self {
        if error.is_connect() {
            return Self::new(FailureKind::Unreachable, "no connection");
        }
        Self::new(FailureKind::Uncertain, "the connection ended before the answer")
    }

    fn of_stream(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Self {
        if let Some(inner) = error.downcast_ref::<genai::Error>() {
            return Self::of(inner);
        }
        if let Some(inner) = error.downcast_ref::<WebError>() {
            return Self::of_web(inner);
        }
        if let Some(inner) = error.downcast_ref::<reqwest::Error>() {
            return Self::of_transport(inner);
        }
        match error.downcast_ref::<StreamTimeout>() {
            Some(_) => Self::new(FailureKind::Uncertain, "no answer in time"),
            None => Self::new(FailureKind::Uncertain, "the stream broke off"),
        }
    }

    /// An error in the middle of a stream. What was said before it is charged.
    fn of_event(body: &str) -> Self {
        let is_busy = ["overloaded", "rate_limit", "429", "529", "RESOURCE_EXHAUSTED"];
        match is_busy.iter().any(|word| body.contains(word)) {
            true => Self::new(FailureKind::Busy, "the provider broke off for want of room"),
            false => Self::new(FailureKind::Uncertain, "the provider broke off with an error"),
        }
    }

    fn of_status(status: StatusCode, body: &str, headers: &HeaderMap) -> Self {
        let kind = match status.as_u16() {
            429 if says(body, OUT_OF_MONEY) => FailureKind::Unauthorized,
            429 | 503 | 529 => FailureKind::Busy,
            401..=403 => FailureKind::Unauthorized,
            404 => FailureKind::NoSuchModel,
            413 => FailureKind::TooLong,
            502 | 504 | 408 | 524 => FailureKind::Uncertain,
            500..=599 => FailureKind::Broken,
            _ if says(body, TOO_LONG) => FailureKind::TooLong,
            _ if says(body, POLICY) => FailureKind::Policy,
            _ => FailureKind::Invalid,
        };
        let retry_after = retry_after(headers);
        Self { kind, message: format!("status {}", status.as_u16()), retry_after }
    }
}

/// A plan that is used up is no matter of seconds.
const OUT_OF_MONEY: &[&str] = &["insufficient_quota", "billing_hard_limit", "credit balance"];
const TOO_LONG: &[&str] = &[
    "context_length_exceeded",
    "maximum context length",
    "prompt is too long",
    "exceeds the maximum number of tokens",
    "input token count",
    "exceed_context_size",
    "context window",
];
const POLICY: &[&str] =
    &["content_filter", "content_policy", "content management policy", "safety", "moderation"];

fn says(body: &str, words: &[&str]) -> bool {
    let body = body.to_ascii_lowercase();
    words.iter().any(|word| body.contains(word))
}

/// `Retry-After` in seconds, or OpenAI's in milliseconds. A date is rare, and no model is waited for until a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |value: Option<&HeaderValue>| value?.to_str().ok()?.trim().parse::<f64>().ok();
    let ms = number(headers.get("retry-after-ms"))
        .or_else(|| number(headers.get(RETRY_AFTER)).map(|seconds| seconds * 1_000.0))?;
    (ms.is_finite() && ms >= 0.0).then(|| Duration::from_millis(ms.min(86_400_000.0) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, body: &str) -> FailureKind {
        let status = StatusCode::from_u16(status).unwrap();
        Failure::of_status(status, body, &HeaderMap::new()).kind
    }

    #[test]
    fn what_may_have_been_charged_is_not_repeated() {
        for status in [502, 504, 408, 524] {
            assert!(!kind(status, "").is_safe_to_repeat(), "{status}");
        }
        for status in [429, 503, 529, 500] {
            assert!(kind(status, "").is_safe_to_repeat(), "{status}");
        }
    }

    #[test]
    fn the_kinds_of_a_refusal_are_told_apart() {
        let too_long = r#"{"error":{"code":"context_length_exceeded"}}"#;
        assert_eq!(kind(400, too_long), FailureKind::TooLong);
        assert_eq!(kind(400, "prompt is too long: 200001 tokens"), FailureKind::TooLong);
        assert_eq!(kind(400, r#"{"code":"content_filter"}"#), FailureKind::Policy);
        assert_eq!(kind(400, "unknown parameter"), FailureKind::Invalid);
        assert_eq!(kind(429, r#"{"code":"insufficient_quota"}"#), FailureKind::Unauthorized);
        assert_eq!(kind(429, r#"{"code":"rate_limit_exceeded"}"#), FailureKind::Busy);
    }

    #[test]
    fn a_provider_says_how_long_it_wants_to_be_left_alone() {
        let mut headers = HeaderMap::new();
        let after = |headers: &HeaderMap| retry_after(headers);
        assert_eq!(after(&headers), None);
        headers.insert(RETRY_AFTER, HeaderValue::from_static("7"));
        assert_eq!(after(&headers), Some(Duration::from_secs(7)));
        headers.insert("retry-after-ms", HeaderValue::from_static("250"));
        assert_eq!(after(&headers), Some(Duration::from_millis(250)));
        let mut odd = HeaderMap::new();
        odd.insert(RETRY_AFTER, HeaderValue::from_static("-1"));
        assert_eq!(after(&odd), None);
    }
}
