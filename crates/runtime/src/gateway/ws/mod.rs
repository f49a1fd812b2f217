//! The WebSocket edge: `GET /v1/ws`.
//!
//! Sockets are owned by gateway actors ([`owner`]); each does its I/O and its protocol in one task ([`connection`]). Read
//! [`protocol`] first.

pub mod protocol;

mod authentication;
mod connection;
mod deadlines;
mod dispatch;
mod ending;
mod events;
mod gate;
mod guards;
mod owner;
mod socket;
mod stream;
mod upgrade;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;

use crate::contract::problem::{Outcome, Problem};
use crate::gateway::Gateway;
use crate::gateway::accept::Admitted;
use crate::gateway::auth::Claims;
use crate::gateway::http::{address_key, bearer, check_origin, count_connection};
use crate::gateway::sync;

pub(super) use connection::Arguments;
use owner::SocketOwners;
pub use protocol::ConnectionLimits;
pub(super) use socket::Socket;
pub(super) use stream::WebSocket;
pub(super) use upgrade::Upgrade;

/// The sockets of this node.
pub struct Connections {
    owners: SocketOwners,
    open: Arc<AtomicUsize>,
}

impl Connections {
    pub async fn start() -> anyhow::Result<Self> {
        let owners = SocketOwners::start()
            .await
            .map_err(|error| anyhow::anyhow!("the gateway actors did not start: {error}"))?;
        Ok(Self { owners, open: Arc::default() })
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn opened(&self) -> Opened {
        self.open.fetch_add(1, Ordering::Relaxed);
        Opened(self.open.clone())
    }
}

/// Counts a socket as open for as long as this lives.
pub(super) struct Opened(Arc<AtomicUsize>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub async fn door(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    extensions: axum::http::Extensions,
    upgrade: Outcome<Upgrade>,
) -> Outcome<Response> {
    accept(gateway, headers, extensions, upgrade, |socket, _| Socket::WebSocket(socket)).await
}

/// `POST /v1/ws`: the reason why an upgrade would be refused. Browsers hide it from pages when the upgrade itself
/// fails.
pub async fn ask(State(gateway): State<Arc<Gateway>>, headers: HeaderMap) -> Outcome<Response> {
    check_origin(&gateway, &headers)?;
    gateway.takes_connections()?;
    Err(Problem::bad_request("this is a WebSocket endpoint: use GET with an upgrade"))
}

/// `/sync/ws`: the same door, with the messages of devices.
pub async fn sync_door(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    extensions: axum::http::Extensions,
    upgrade: Outcome<Upgrade>,
) -> Outcome<Response> {
    let speak = |socket, gateway: &Gateway| {
        Socket::Devices(Box::new(sync::SyncLink::new(socket, gateway.mint("syn"))))
    };
    accept(gateway, headers, extensions, upgrade, speak).await
}

async fn accept(
    gateway: Arc<Gateway>,
    headers: HeaderMap,
    extensions: axum::http::Extensions,
    upgrade: Outcome<Upgrade>,
    speak: impl FnOnce(WebSocket, &Gateway) -> Socket + Send + 'static,
) -> Outcome<Response> {
    check_origin(&gateway, &headers)?;
    let upgrade = upgrade?;
    let subprotocol = subprotocol(&headers)?;
    gateway.takes_connections()?;
    let claims = authenticated(&gateway, &headers, &extensions).await?;
    let user = match &claims {
        Some(claims) => Some(gateway.users.seat(&claims.sub).await?),
        None => None,
    };
    let opened = gateway.connections.opened();
    let admitted = extensions.get::<Admitted>().cloned();
    let limits = gateway.options.websocket.clone();
    Ok(upgrade.begin(subprotocol, limits, async move |socket| {
        let socket = speak(socket, &gateway);
        Arguments { gateway, socket, claims, user, opened, admitted }.start();
    }))
}

/// The subprotocol to answer with; `None` for a client that offers none, which speaks ours all the same.
fn subprotocol(headers: &HeaderMap) -> Outcome<Option<HeaderValue>> {
    let mut offered = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .peekable();
    if offered.peek().is_none() {
        return Ok(None);
    }
    if offered.any(|name| name == protocol::SUBPROTOCOL) {
        return Ok(Some(HeaderValue::from_static(protocol::SUBPROTOCOL)));
    }
    Err(Problem::bad_request("none of the offered subprotocols is supported; offer proxie.v1"))
}

/// The claims from the `Authorization` header, if there is one.
async fn authenticated(
    gateway: &Gateway,
    headers: &HeaderMap,
    extensions: &axum::http::Extensions,
) -> Outcome<Option<Arc<Claims>>> {
    let verified = match (headers.contains_key(header::AUTHORIZATION), bearer(headers)) {
        (false, _) => Ok(None),
        (true, None) => {
            Err(Problem::unauthenticated("the Authorization header is not a bearer token"))
        }
        (true, Some(token)) => gateway
            .auth
            .verify(token, gateway.now())
            .map(|claims| Some(Arc::new(claims)))
            .map_err(|error| Problem::unauthenticated(error.to_string())),
    };
    let key = match &verified {
        Ok(Some(claims)) => format!("user:{}", claims.sub),
        _ => address_key(gateway, extensions, headers),
    };
    count_connection(gateway, key).await?;
    verified
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_known_subprotocol_is_enough() {
        let offers = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::SEC_WEBSOCKET_PROTOCOL, line.parse().unwrap());
            }
            subprotocol(&headers).ok().map(|answer| answer.is_some())
        };
        assert_eq!(offers(&[]), Some(false));
        assert_eq!(offers(&["proxie.v1"]), Some(true));
        assert_eq!(offers(&["graphql-ws, proxie.v1"]), Some(true));
        assert_eq!(offers(&["graphql-ws", "proxie.v1"]), Some(true));
        assert_eq!(offers(&["graphql-ws"]), None);
        assert_eq!(offers(&["proxie.v2"]), None);
    }
}
