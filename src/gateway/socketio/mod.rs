//! Socket.IO v4 at `/socket.io/`, for clients that exist already: the same events, replies and topics as on `/v1/ws`.
//!
//! `engineioxide` carries the messages (long polling, WebSocket, the upgrade from one to the other, heartbeats). A
//! [`Link`] makes frames of `proxie.v1` of them, so behind it is the connection that a WebSocket has, with the same
//! limits, deadlines and rights (ADR 11).

mod link;
mod packet;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Extensions, HeaderMap, Method, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use engineioxide::config::EngineIoConfig;
use engineioxide::handler::EngineIoHandler;
use engineioxide::service::EngineIoService;
use engineioxide::{DisconnectReason, Str};
use serde_json::{Value, json};

use crate::gateway::Gateway;
use crate::gateway::accept::Admitted;
use crate::gateway::http::{KeepBody, address_key, check_origin, count_connection};
use crate::gateway::problem::{Outcome, Problem};
use crate::gateway::ws::{Arguments, Socket};
use crate::kernel::error::ErrorCode;

use link::Inbox;
pub use link::Link;
use packet::Packet;

/// Packets that wait in the engine; what is beyond waits where it is counted in bytes.
const ENGINE_BUFFER: usize = 16;
/// From long polling to WebSocket.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

pub fn router(gateway: &Arc<Gateway>) -> Router<Arc<Gateway>> {
    let limits = &gateway.options.websocket;
    let config = EngineIoConfig::builder()
        .req_path("/socket.io")
        .ping_interval(Duration::from_millis(limits.ping_ms))
        .ping_timeout(Duration::from_millis(limits.pong_timeout_ms))
        .upgrade_timeout(UPGRADE_TIMEOUT)
        .max_buffer_size(ENGINE_BUFFER)
        .max_payload(limits.max_frame_bytes as u64)
        .ws_max_message_size(limits.max_frame_bytes)
        .ws_max_frame_size(limits.max_frame_bytes)
        .build();
    let engine = EngineIoService::with_config(Arc::new(Edge { gateway: gateway.clone() }), config);
    Router::new()
        .route_service("/socket.io/", engine)
        .route_layer(from_fn_with_state(gateway.clone(), admit))
}

/// Who may begin, as on `/v1/ws`. The token comes later, in CONNECT.
async fn admit(State(gateway): State<Arc<Gateway>>, mut request: Request, next: Next) -> Response {
    if let Err(problem) =
        check(&gateway, request.headers(), request.uri(), request.extensions()).await
    {
        return problem.into_response();
    }
    // The engine keeps what it is given for the life of a session.
    let upgrades = request.headers().contains_key(header::SEC_WEBSOCKET_KEY);
    if !upgrades {
        request.extensions_mut().remove::<Admitted>();
    }
    let needed = [header::SEC_WEBSOCKET_KEY, header::CONTENT_TYPE];
    let kept = needed.map(|name| request.headers_mut().remove(&name).map(|value| (name, value)));
    *request.headers_mut() = kept.into_iter().flatten().collect();
    let uploads = request.method() == Method::POST;
    let answering = next.run(request);
    let mut response = if uploads {
        match tokio::time::timeout(gateway.options.request_timeout, answering).await {
            Ok(response) => response,
            Err(_) => return Problem::new(ErrorCode::DeadlineExceeded, SLOW).into_response(),
        }
    } else {
        // A long poll is answered when there is something to say.
        answering.await
    };
    // Clients read the engine's own errors.
    response.extensions_mut().insert(KeepBody);
    response
}

const SLOW: &str = "the packets did not come in time";

async fn check(
    gateway: &Gateway,
    headers: &HeaderMap,
    uri: &Uri,
    extensions: &Extensions,
) -> Outcome<()> {
    check_origin(gateway, headers)?;
    let query = uri.query().unwrap_or_default();
    let goes_on = query.split('&').any(|parameter| parameter.starts_with("sid="));
    if goes_on {
        return Ok(());
    }
    gateway.takes_connections()?;
    let key = address_key(gateway, extensions, headers);
    count_connection(gateway, key).await
}

type Engine = engineioxide::Socket<Session>;

/// What an engine's socket knows of its connection.
#[derive(Default)]
pub struct Session {
    stage: Mutex<Stage>,
    /// Namespaces that it was told do not exist.
    refused: AtomicUsize,
}

/// Whoever asks for more of them is closed.
const MAX_REFUSED: usize = 16;

#[derive(Default)]
enum Stage {
    #[default]
    Waiting,
    Connected(Inbox),
    Ended,
}

impl Session {
    fn stage(&self) -> std::sync::MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Edge {
    gateway: Arc<Gateway>,
}

impl std::fmt::Debug for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Edge")
    }
}

impl Edge {
    /// Hands the connection to a gateway actor, which reads the token first.
    fn connect(&self, auth: &Value, engine: &Arc<Engine>, stage: &mut Stage) {
        let gateway = self.gateway.clone();
        let (link, inbox) = Link::new(engine.clone(), &gateway.options.websocket);
        inbox.connect(auth);
        *stage = Stage::Connected(inbox);
        let opened = gateway.connections.opened();
        let socket = Socket::SocketIo(link);
        // The engine's socket has what its TCP connection counts as.
        Arguments { gateway, socket, claims: None, user: None, opened, admitted: None }.start();
    }
}

impl EngineIoHandler for Edge {
    type Data = Session;

    fn on_connect(self: Arc<Self>, engine: Arc<Engine>) {
        let patience = Duration::from_millis(self.gateway.options.websocket.auth_timeout_ms);
        let engine = Arc::downgrade(&engine);
        tokio::spawn(async move {
            tokio::time::sleep(patience).await;
            if let Some(engine) = engine.upgrade()
                && !matches!(*engine.data.stage(), Stage::Connected(_))
            {
                engine.close(DisconnectReason::TransportClose);
            }
        });
    }

    fn on_disconnect(&self, engine: Arc<Engine>, _: DisconnectReason) {
        *engine.data.stage() = Stage::Ended;
    }

    fn on_message(self: &Arc<Self>, text: Str, engine: Arc<Engine>) {
        let mut stage = engine.data.stage();
        let taken = match (packet::parse(&text), &mut *stage) {
            (Some(Packet::Connect { auth }), waiting @ Stage::Waiting) => {
                self.connect(&auth, &engine, waiting);
                true
            }
            (Some(Packet::ConnectElsewhere { namespace }), _)
                if engine.data.refused.fetch_add(1, Ordering::Relaxed) < MAX_REFUSED =>
            {
                let refused = packet::refused(&namespace, "Invalid namespace", &json!(null));
                engine.emit(refused).is_ok()
            }
            (Some(Packet::Event { name, data, ack }), Stage::Connected(inbox)) => {
                inbox.event(packet::frame(&name, data, || self.gateway.mint("sio")), ack)
            }
            (Some(Packet::Disconnect), connected @ Stage::Connected(_)) => {
                *connected = Stage::Ended;
                true
            }
            // Whatever else it is, nobody could be answered.
            _ => matches!(*stage, Stage::Ended),
        };
        if !taken {
            *stage = Stage::Ended;
            drop(stage);
            engine.close(DisconnectReason::PacketParsingError);
        }
    }

    fn on_binary(self: &Arc<Self>, _: Bytes, engine: Arc<Engine>) {
        *engine.data.stage() = Stage::Ended;
        engine.close(DisconnectReason::PacketParsingError);
    }
}
