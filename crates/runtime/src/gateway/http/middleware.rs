//! The layers around every request, outermost first: an id and a span, a problem document for every error, CORS, a time
//! limit; under `/v1` also a token and a rate limit.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::Instrument;

use super::extract::bearer;
use super::pages::KeepBody;
use super::problem::IsProblem;
use crate::contract::problem::{Outcome, Problem};
use crate::gateway::Gateway;
use crate::gateway::accept::network_of;
use crate::gateway::hosts::FORWARDED_PROTO;
use crate::gateway::origins::FORWARDED;
use crate::kernel::clock::Clock;
use crate::kernel::error::ErrorCode;
use crate::kernel::ids::IdSource;
use crate::persistence::limits::{Policy, RateVerdict};

/// What a request may take whose body is larger than JSON is.
const UPLOAD: Duration = Duration::from_secs(60);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request, kept in its extensions.
#[derive(Clone)]
pub struct RequestId(Arc<str>);

/// Removes forwarding headers that do not come from a trusted proxy: any client can write them. Later layers can rely
/// on them.
pub async fn distrust(
    State(gateway): State<Arc<Gateway>>,
    mut request: Request,
    next: Next,
) -> Response {
    if !gateway.trusts(peer(request.extensions())) {
        let headers = request.headers_mut();
        FORWARDED.iter().chain([&FORWARDED_PROTO]).for_each(|name| drop(headers.remove(name)));
    }
    next.run(request).await
}

/// Gives each request an id (the client's, if it is well-formed) and a span with this id and the caller's trace; gives
/// the response the headers that all responses have.
pub async fn identify(State(clock): State<Clock>, mut request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .filter(|id| is_sane_id(id));
    let mint = || IdSource::new(clock.now(), rand::random()).mint("rqt");
    let id: Arc<str> = given.map_or_else(mint, str::to_owned).into();
    request.extensions_mut().insert(RequestId(id.clone()));
    let trace =
        request.headers().get("traceparent").and_then(|v| v.to_str().ok()).and_then(trace_id);
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = request.method().clone();
    let span = tracing::info_span!(
        "request",
        id = &*id,
        trace = trace.unwrap_or_default(),
        %method,
        path = path.as_deref().unwrap_or("-"),
    );
    let started = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let elapsed = started.elapsed();
    let status = response.status().as_u16();
    span.in_scope(|| tracing::debug!(status, ms = elapsed.as_millis() as u64, "answered"));
    let path = path.unwrap_or_else(|| "unmatched".into());
    metrics::counter!("proxie_http_requests_total", "method" => known(&method), "path" => path.clone(), "status" => status.to_string())
        .increment(1);
    metrics::histogram!("proxie_http_request_seconds", "path" => path)
        .record(elapsed.as_secs_f64());
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// The method as a metric label: clients can invent methods, and labels must stay few.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn is_sane_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// The trace id of a W3C `traceparent`.
fn trace_id(traceparent: &str) -> Option<String> {
    let mut parts = traceparent.split('-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let zero = |text: &str| text.bytes().all(|b| b == b'0');
    let valid =
        hex(version, 2) && version != "ff" && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
    (valid && !zero(trace) && !zero(parent)).then(|| trace.to_owned())
}

/// Turns every error into a problem document, including the framework's own, and adds the request's id to it.
pub async fn as_problem(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().cloned();
    let head = request.method() == Method::HEAD;
    let mut response = next.run(request).await;
    let status = response.status();
    let on_purpose = response.extensions().get::<IsProblem>().is_some()
        || response.extensions().get::<KeepBody>().is_some();
    if (status.is_client_error() || status.is_server_error()) && !on_purpose {
        let kept = response.headers().get(header::ALLOW).cloned();
        response = of_status(status).into_response();
        if let Some(allow) = kept {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    if let (Some(id), Some(problem), false) =
        (id, response.extensions().get::<IsProblem>().cloned(), head)
    {
        *response.body_mut() = problem.body_with(&id.0).into();
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}

fn of_status(status: StatusCode) -> Problem {
    let code = match status {
        StatusCode::UNAUTHORIZED => ErrorCode::Unauthenticated,
        StatusCode::FORBIDDEN => ErrorCode::Forbidden,
        StatusCode::NOT_FOUND => ErrorCode::NotFound,
        StatusCode::CONFLICT => ErrorCode::Conflict,
        StatusCode::PAYLOAD_TOO_LARGE => ErrorCode::TooLarge,
        StatusCode::TOO_MANY_REQUESTS => ErrorCode::RateLimited,
        StatusCode::SERVICE_UNAVAILABLE => ErrorCode::Unavailable,
        StatusCode::GATEWAY_TIMEOUT => ErrorCode::DeadlineExceeded,
        status if status.is_server_error() => ErrorCode::Internal,
        _ => ErrorCode::BadRequest,
    };
    Problem::new(
        code,
        status.canonical_reason().unwrap_or("the request was refused").to_lowercase(),
    )
    .status(status.as_u16())
}

pub async fn time_out(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    let limit = match path.is_some_and(|path| gateway.operations.takes_bytes(path.as_str())) {
        true => gateway.options.request_timeout.max(UPLOAD),
        false => gateway.options.request_timeout,
    };
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            Problem::new(ErrorCode::DeadlineExceeded, "there was no answer in time").into_response()
        }
    }
}

pub fn cors(gateway: &Arc<Gateway>) -> CorsLayer {
    let credentials = gateway.options.allow_credentials;
    let origins = if gateway.origins.all() && !credentials {
        AllowOrigin::any()
    } else {
        let gateway = gateway.clone();
        AllowOrigin::predicate(move |_, request| {
            gateway.origins.refused(&request.headers).is_none()
        })
    };
    let name = HeaderName::from_static;
    CorsLayer::new()
        .allow_origin(origins)
        .allow_credentials(credentials)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::IF_MATCH,
            header::IF_NONE_MATCH,
            REQUEST_ID,
            name("idempotency-key"),
            name("last-event-id"),
            name("mcp-method"),
            name("mcp-name"),
            name("mcp-protocol-version"),
            name("mcp-session-id"),
            name("traceparent"),
        ])
        .expose_headers([
            header::ETAG,
            header::LOCATION,
            header::RETRY_AFTER,
            header::WWW_AUTHENTICATE,
            REQUEST_ID,
            name("ratelimit"),
            name("ratelimit-policy"),
        ])
}

/// Requires a valid token and remaining quota, else answers 401 or 429. Puts the claims into the request's extensions.
pub async fn authenticate(
    State(gateway): State<Arc<Gateway>>,
    mut request: Request,
    next: Next,
) -> Response {
    let verified = match bearer(request.headers()) {
        Some(token) => gateway
            .auth
            .verify(token, gateway.now())
            .map_err(|e| Problem::unauthenticated(e.to_string())),
        None => Err(Problem::unauthenticated("an access token is needed: Authorization: Bearer …")),
    };
    let key = match &verified {
        Ok(claims) => format!("user:{}", claims.sub),
        // Clients that guess tokens are limited too.
        Err(_) => address_key(&gateway, request.extensions(), request.headers()),
    };
    let policy = gateway.options.requests;
    let verdict = gateway.limiter.hit(key, policy).await;
    let mut response = match verified {
        _ if !verdict.allowed => {
            Problem::new(ErrorCode::RateLimited, "too many requests: slow down")
                .retry_after_ms(u64::from(verdict.reset_s) * 1_000)
                .into_response()
        }
        Err(problem) => problem.into_response(),
        Ok(claims) => {
            request.extensions_mut().insert(claims);
            next.run(request).await
        }
    };
    let headers = response.headers_mut();
    for (name, value) in rate_limit(policy, verdict) {
        headers.extend(
            HeaderValue::from_str(&value).ok().map(|value| (HeaderName::from_static(name), value)),
        );
    }
    response
}

/// The headers `RateLimit-Policy` and `RateLimit`, as in the IETF draft "RateLimit header fields for HTTP".
fn rate_limit(policy: Policy, verdict: RateVerdict) -> [(&'static str, String); 2] {
    [
        ("ratelimit-policy", format!("\"default\";q={};w={}", policy.quota, policy.window_s)),
        ("ratelimit", format!("\"default\";r={};t={}", verdict.remaining, verdict.reset_s)),
    ]
}

/// The rate limit key of a client without a token.
pub fn address_key(gateway: &Gateway, extensions: &Extensions, headers: &HeaderMap) -> String {
    format!("ip:{}", network_of(client_address(gateway, extensions, headers)))
}

fn peer(extensions: &Extensions) -> IpAddr {
    extensions
        .get::<ConnectInfo<SocketAddr>>()
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(peer)| peer.ip())
}

/// The client's address: the first untrusted hop, counted from us. A client can write anything beyond that hop.
fn client_address(gateway: &Gateway, extensions: &Extensions, headers: &HeaderMap) -> IpAddr {
    let peer = peer(extensions);
    let trusted = |address: IpAddr| gateway.trusts(address);
    if !trusted(peer) {
        return peer;
    }
    // From right to left, since each hop appends on the right. Entries to the left of an unreadable one were not added
    // by our proxies.
    let hops = headers
        .get_all("x-forwarded-for")
        .iter()
        .rev()
        .flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','))
        .map_while(|address| std::str::from_utf8(address).ok()?.trim().parse().ok());
    let mut client = peer;
    for address in hops {
        client = address;
        if !trusted(address) {
            break;
        }
    }
    client
}

/// Refuses connections from pages of origins that are not allowed.
pub fn check_origin(gateway: &Gateway, headers: &HeaderMap) -> Outcome<()> {
    let Some(origin) = gateway.origins.refused(headers) else { return Ok(()) };
    let mut problem = Problem::forbidden(format!(
        "pages of {origin} may not connect: see gateway.allowed_origins"
    ));
    problem.reason = Some("origin_not_allowed".into());
    // The reason is no secret, and without this header a browser hides it from the page.
    Err(problem.header("access-control-allow-origin", "*"))
}

/// Counts a new connection against the same rate limit as requests under `/v1`.
pub async fn count_connection(gateway: &Gateway, key: String) -> Outcome<()> {
    let policy = gateway.options.requests;
    let verdict = gateway.limiter.hit(key, policy).await;
    if verdict.allowed {
        return Ok(());
    }
    let mut problem = Problem::new(ErrorCode::RateLimited, "too many connections: slow down")
        .retry_after_ms(u64::from(verdict.reset_s) * 1_000);
    for (name, value) in rate_limit(policy, verdict) {
        problem = problem.header(name, value);
    }
    Err(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_traceparent_counts() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace_id(&format!("00-{trace}-00f067aa0ba902b7-01")).as_deref(), Some(trace));
        for bad in [
            String::new(),
            format!("ff-{trace}-00f067aa0ba902b7-01"),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
            "00-abc-def-01".into(),
        ] {
            assert_eq!(trace_id(&bad), None, "{bad}");
        }
    }

    #[test]
    fn only_sane_ids_are_taken_over() {
        assert!(is_sane_id("a-1_B.c"));
        for bad in ["", "a b", "a\n", "é", &"x".repeat(65)] {
            assert!(!is_sane_id(bad));
        }
    }
}
