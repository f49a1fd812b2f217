//! The upgrade of a request to a WebSocket, as in RFC 6455 (4.2).

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::WebSocket;
use super::protocol::ConnectionLimits;
use crate::contract::problem::{Outcome, Problem};

/// The only version of the protocol (RFC 6455).
const VERSION: &str = "13";

/// A request whose connection becomes a WebSocket.
pub struct Upgrade {
    accept: HeaderValue,
    pending: OnUpgrade,
}

impl<S: Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Outcome<Self> {
        let accept = accept(parts)?;
        let pending = parts.extensions.remove();
        let pending = pending.ok_or_else(|| needed("this connection cannot be upgraded"))?;
        Ok(Self { accept, pending })
    }
}

impl Upgrade {
    /// Answers the request, and calls `then` with the socket.
    pub fn begin<F: Future<Output = ()> + Send>(
        self,
        subprotocol: Option<HeaderValue>,
        limits: ConnectionLimits,
        then: impl FnOnce(WebSocket) -> F + Send + 'static,
    ) -> Response {
        tokio::spawn(async move {
            match self.pending.await {
                Ok(upgraded) => then(WebSocket::new(upgraded, &limits).await).await,
                Err(error) => tracing::debug!(%error, "a connection did not become a WebSocket"),
            }
        });
        let mut response = (
            StatusCode::SWITCHING_PROTOCOLS,
            [
                (header::CONNECTION, HeaderValue::from_static("upgrade")),
                (header::UPGRADE, HeaderValue::from_static("websocket")),
                (header::SEC_WEBSOCKET_ACCEPT, self.accept),
            ],
        )
            .into_response();
        response
            .headers_mut()
            .extend(subprotocol.map(|name| (header::SEC_WEBSOCKET_PROTOCOL, name)));
        response
    }
}

/// The `Sec-WebSocket-Accept` of a valid upgrade request.
pub fn accept(request: &Parts) -> Outcome<HeaderValue> {
    let headers = &request.headers;
    if request.method != Method::GET || request.version < Version::HTTP_11 {
        return Err(Problem::bad_request("a WebSocket begins with GET and HTTP/1.1"));
    }
    if !lists(headers, header::UPGRADE, "websocket") {
        return Err(needed("this is a WebSocket: Upgrade: websocket is needed"));
    }
    if !lists(headers, header::CONNECTION, "upgrade") {
        return Err(needed("this is a WebSocket: Connection: upgrade is needed"));
    }
    if only(headers, header::HOST).is_none() {
        return Err(Problem::bad_request("one Host header is needed"));
    }
    if only(headers, header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != VERSION) {
        return Err(needed("Sec-WebSocket-Version must be 13"));
    }
    let key = only(headers, header::SEC_WEBSOCKET_KEY).filter(|key| is_key(key.as_bytes()));
    let key = key.ok_or_else(|| {
        Problem::bad_request("Sec-WebSocket-Key must appear once and be 16 bytes in base64")
    })?;
    HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|_| Problem::bad_request("Sec-WebSocket-Key cannot be answered"))
}

/// A 426 that names the upgrade that is needed.
fn needed(why: &str) -> Problem {
    Problem::bad_request(why)
        .status(StatusCode::UPGRADE_REQUIRED.as_u16())
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", VERSION)
}

/// The value of a header that must appear exactly once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?.trim();
    values.next().is_none().then_some(value)
}

/// Whether the header's list of tokens contains this one.
fn lists(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(token))
}

/// Whether the key is 16 bytes in base64: 22 characters and two of padding.
fn is_key(key: &[u8]) -> bool {
    let Some((padding, digits)) = key.split_last_chunk::<2>().map(|(a, b)| (b, a)) else {
        return false;
    };
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    digits.len() == 22 && digits.iter().all(is_digit) && padding == b"=="
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    const GOOD: [(&str, &str); 5] = [
        ("host", "a"),
        ("upgrade", "websocket"),
        ("connection", "keep-alive, Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn status(change: impl FnOnce(&mut Parts)) -> Result<HeaderValue, u16> {
        let request = GOOD
            .iter()
            .fold(Request::get("/"), |request, (name, value)| request.header(*name, *value));
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        change(&mut parts);
        accept(&parts).map_err(|problem| problem.http_status())
    }

    #[test]
    fn a_handshake_is_whole_or_refused() {
        assert_eq!(status(|_| {}).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for ((name, _), refused) in GOOD.into_iter().zip([400, 426, 426, 426, 400]) {
            assert_eq!(status(|parts| drop(parts.headers.remove(name))), Err(refused), "{name}");
        }
        for (name, value, refused) in [
            ("upgrade", "h2c", 426),
            ("connection", "keep-alive", 426),
            ("sec-websocket-version", "8", 426),
            ("sec-websocket-version", "14", 426),
            ("sec-websocket-version", "13, 8", 426),
            ("sec-websocket-key", "", 400),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ", 400),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZSE=", 400),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZSEhISEhIQ==", 400),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25j!Q==", 400),
        ] {
            let change =
                |parts: &mut Parts| drop(parts.headers.insert(name, value.parse().unwrap()));
            assert_eq!(status(change), Err(refused), "{name}: {value}");
        }
        let twice = |parts: &mut Parts| {
            parts.headers.append("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==".parse().unwrap());
        };
        assert_eq!(status(twice), Err(400));
        assert_eq!(status(|parts| parts.method = Method::HEAD), Err(400));
        assert_eq!(status(|parts| parts.version = Version::HTTP_10), Err(400));
    }
}
