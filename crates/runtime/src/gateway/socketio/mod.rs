//! Socket.IO v4 at `/socket.io/`, for existing clients: the same events, replies and topics as on `/v1/ws`.
//!
//! An [`engine`] carries the messages. A [`client`] reads Socket.IO's packets in them, and a [`SocketIoLink`] turns them into
//! frames of `proxie.v1`. Behind it is the same connection as behind a WebSocket, with the same deadlines and rights
//! (ADR 11).

mod client;
mod engine;
mod link;
mod packet;
mod pipe;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::any;

use crate::gateway::Gateway;

pub use link::SocketIoLink;

pub fn router() -> Router<Arc<Gateway>> {
    let sessions = Arc::<engine::EngineSessions>::default();
    let handle = move |State(gateway): State<Arc<Gateway>>, request: Request| {
        engine::handle(gateway, sessions, request)
    };
    Router::new().route("/socket.io/", any(handle))
}
