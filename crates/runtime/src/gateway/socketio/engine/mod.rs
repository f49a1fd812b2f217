//! Engine.IO (protocol 4) at `/socket.io/`: long polling, WebSocket, the upgrade from one to the other, and heartbeats
//! (ADR 14). A request finds its [`session`] here; a session does all its work in its own task.

mod packet;
mod session;
mod wire;

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, Request};
use axum::http::{Extensions, HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use dashmap::DashMap;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::contract::problem::{Outcome, Problem};
use crate::gateway::Gateway;
use crate::gateway::accept::Admitted;
use crate::gateway::http::{KeepBody, address_key, check_origin, count_connection};
use crate::gateway::ws::{ConnectionLimits, Upgrade};
use crate::kernel::error::ErrorCode;

use session::{EngineAnswer, EngineSession};
use wire::Wire;

/// Queued requests of one session. The queue is short because a session takes each at once.
const REQUESTS: usize = 4;

/// The sessions of this node by id. The ids are secrets: a client that knows one takes part in the session.
#[derive(Default)]
pub struct EngineSessions(DashMap<Arc<str>, mpsc::Sender<session::EngineRequest>>);

/// A session's entry in the table, removed when this is dropped.
struct SessionEntry {
    sessions: Arc<EngineSessions>,
    sid: Arc<str>,
}

impl SessionEntry {
    fn sid(&self) -> &str {
        &self.sid
    }
}

impl Drop for SessionEntry {
    fn drop(&mut self) {
        self.sessions.0.remove(&self.sid);
    }
}

/// The answers of Engine.IO to requests that it cannot serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    UnknownTransport,
    UnknownSid,
    HandshakeMethod,
    BadRequest,
    UnsupportedVersion,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (code, message) = match self {
            Self::UnknownTransport => (0, "Transport unknown"),
            Self::UnknownSid => (1, "Session ID unknown"),
            Self::HandshakeMethod => (2, "Bad handshake method"),
            Self::BadRequest => (3, "Bad request"),
            Self::UnsupportedVersion => (5, "Unsupported protocol version"),
        };
        let body = Json(json!({"code": code, "message": message}));
        let mut response = (StatusCode::BAD_REQUEST, body).into_response();
        response.extensions_mut().insert(KeepBody);
        response
    }
}

/// The first packet of a session.
fn opened(gateway: &Gateway, sid: &str, upgrades: bool) -> String {
    let limits = &gateway.options.websocket;
    let upgrades: &[&str] = if upgrades { &["websocket"] } else { &[] };
    let opened = json!({
        "sid": sid,
        "upgrades": upgrades,
        "pingInterval": limits.ping_ms,
        "pingTimeout": limits.pong_timeout_ms,
        "maxPayload": limits.max_frame_bytes,
    });
    format!("0{opened}")
}

/// The parameters of a request's query.
#[derive(Default)]
struct Parameters<'a> {
    version: Option<&'a str>,
    transport: Option<&'a str>,
    sid: Option<&'a str>,
}

impl<'a> Parameters<'a> {
    fn of(uri: &'a Uri) -> Self {
        let mut parameters = Self::default();
        for (name, value) in
            uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='))
        {
            match name {
                "EIO" => parameters.version = Some(value),
                "transport" => parameters.transport = Some(value),
                "sid" => parameters.sid = Some(value),
                _ => {}
            }
        }
        parameters
    }
}

pub async fn handle(
    gateway: Arc<Gateway>,
    sessions: Arc<EngineSessions>,
    request: Request,
) -> Outcome<Response> {
    let (mut parts, body) = request.into_parts();
    check_origin(&gateway, &parts.headers)?;
    let uri = parts.uri.clone();
    let parameters = Parameters::of(&uri);
    let polls = match parameters.transport {
        Some("polling") => true,
        Some("websocket") => false,
        _ => return Ok(Refusal::UnknownTransport.into_response()),
    };
    let Some(sid) = parameters.sid else {
        if parts.method != Method::GET {
            return Ok(Refusal::HandshakeMethod.into_response());
        }
        if parameters.version != Some("4") {
            return Ok(Refusal::UnsupportedVersion.into_response());
        }
        gateway.takes_connections()?;
        let key = address_key(&gateway, &parts.extensions, &parts.headers);
        count_connection(&gateway, key).await?;
        if sessions.0.len() >= gateway.options.accept.max_connections {
            let problem = Problem::new(ErrorCode::Overloaded, "this node has too many sessions");
            return Err(problem);
        }
        if polls {
            return Ok(text(begin(&gateway, &sessions, None)));
        }
        if !parts.headers.contains_key(header::UPGRADE) {
            return Ok(Refusal::BadRequest.into_response());
        }
        let upgrade = Upgrade::from_request_parts(&mut parts, &()).await?;
        return Ok(upgraded(&gateway.clone(), upgrade, &parts.extensions, move |wire| {
            begin(&gateway, &sessions, Some(wire));
        }));
    };
    let Some(session) = sessions.0.get(sid).map(|session| session.clone()) else {
        return Ok(Refusal::UnknownSid.into_response());
    };
    match (polls, parts.method.clone()) {
        (true, Method::GET) => Ok(ask(&session, session::EngineRequest::Poll).await),
        (true, Method::POST) => {
            let said = tokio::time::timeout(
                gateway.options.request_timeout,
                read(body, &parts.headers, gateway.options.websocket.max_frame_bytes),
            );
            let said =
                said.await.map_err(|_| Problem::new(ErrorCode::DeadlineExceeded, SLOW))??;
            Ok(ask(&session, |answer| session::EngineRequest::Post(said, answer)).await)
        }
        (false, Method::GET) if parts.headers.contains_key(header::UPGRADE) => {
            let upgrade = Upgrade::from_request_parts(&mut parts, &()).await?;
            Ok(upgraded(&gateway, upgrade, &parts.extensions, move |wire| {
                // If the session cannot take it, the socket is dropped.
                let _ = session.try_send(session::EngineRequest::Upgrade(wire));
            }))
        }
        _ => Ok(Refusal::BadRequest.into_response()),
    }
}

const SLOW: &str = "the packets did not arrive in time";

/// Starts a session and returns its first packet.
fn begin(gateway: &Arc<Gateway>, sessions: &Arc<EngineSessions>, wire: Option<Wire>) -> String {
    let sid: Arc<str> = format!("{:032x}", rand::random::<u128>()).into();
    let (requests, receiver) = mpsc::channel(REQUESTS);
    sessions.0.insert(sid.clone(), requests);
    let opened = opened(gateway, &sid, wire.is_none());
    let seat = SessionEntry { sessions: sessions.clone(), sid };
    tokio::spawn(EngineSession::new(gateway, seat, receiver, wire).run());
    opened
}

fn upgraded(
    gateway: &Gateway,
    upgrade: Upgrade,
    extensions: &Extensions,
    then: impl FnOnce(Wire) + Send + 'static,
) -> Response {
    let admitted = extensions.get::<Admitted>().cloned();
    // The session counts the frames instead: a client that is too fast waits, and is not closed.
    let limits = ConnectionLimits {
        frames_per_s: u32::MAX,
        frame_burst: u32::MAX,
        ..gateway.options.websocket.clone()
    };
    upgrade.begin(None, limits, async move |socket| then(Wire::new(socket, admitted)))
}

/// Reads the body of a POST.
async fn read(body: Body, headers: &HeaderMap, limit: usize) -> Outcome<String> {
    let too_large =
        || Problem::new(ErrorCode::TooLarge, format!("a payload may have at most {limit} bytes"));
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|n| n > limit) {
        return Err(too_large());
    }
    // Any other error means that the client's connection is gone, so only the limit needs an answer.
    let bytes = axum::body::to_bytes(body, limit).await.map_err(|_| too_large())?;
    // A body that is not UTF-8 is not a packet, and neither is an empty one, so both are refused alike.
    Ok(String::from_utf8(bytes.into()).unwrap_or_default())
}

async fn ask(
    session: &mpsc::Sender<session::EngineRequest>,
    request: impl FnOnce(oneshot::Sender<EngineAnswer>) -> session::EngineRequest,
) -> Response {
    let (answer, answered) = oneshot::channel();
    if session.send(request(answer)).await.is_err() {
        return Refusal::UnknownSid.into_response();
    }
    match answered.await {
        Ok(EngineAnswer::Payload(payload)) => text(payload),
        Ok(EngineAnswer::Taken) => text("ok".into()),
        Ok(EngineAnswer::Refused(refusal)) => refusal.into_response(),
        // The session has ended in the meantime.
        Err(_) => Refusal::UnknownSid.into_response(),
    }
}

fn text(body: String) -> Response {
    let headers =
        [(header::CONTENT_TYPE, "text/plain; charset=UTF-8"), (header::CACHE_CONTROL, "no-store")];
    (headers, body).into_response()
}
