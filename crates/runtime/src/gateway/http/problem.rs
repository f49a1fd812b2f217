//! Problems as HTTP responses.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::contract::Problem;
use crate::kernel::entity::to_value;
use crate::kernel::error::ErrorCode;

pub fn status_of(problem: &Problem) -> StatusCode {
    StatusCode::from_u16(problem.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// A problem as a response. The outermost layer adds the request's id to the body, since only that layer knows it.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (status_of(&self), body(&self, None)).into_response();
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
        for (name, value) in &self.headers {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.append(*name, value);
            }
        }
        response.extensions_mut().insert(IsProblem(std::sync::Arc::new(self)));
        response
    }
}

/// The problem, kept in the response's extensions for the layer that knows the request's id.
#[derive(Clone)]
pub struct IsProblem(pub std::sync::Arc<Problem>);

impl IsProblem {
    pub fn body_with(&self, request_id: &str) -> String {
        body(&self.0, Some(request_id))
    }
}

fn body(problem: &Problem, request_id: Option<&str>) -> String {
    to_value(&problem.details(request_id)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

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
