//! The socket behind a connection: a WebSocket, or the translation of Socket.IO or `/sync/ws`.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Sink, Stream};
use tokio_tungstenite::tungstenite::Message;

use super::WebSocket;
use crate::gateway::socketio::SocketIoLink;
use crate::gateway::sync;

#[expect(clippy::large_enum_variant, reason = "most are the large one")]
#[expect(clippy::enum_variant_names, reason = "it is called Socket.IO")]
pub enum Socket {
    WebSocket(WebSocket),
    SocketIo(SocketIoLink),
    Devices(Box<sync::SyncLink>),
}

impl Socket {
    /// The number of frames since the last call. They already counted against the connection's own limit as they
    /// arrived.
    pub fn frames(&mut self) -> u32 {
        match self {
            Self::WebSocket(socket) => socket.frames(),
            Self::SocketIo(_) => 1,
            Self::Devices(link) => link.frames(),
        }
    }
}

impl Stream for Socket {
    type Item = Result<Message, axum::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.get_mut() {
            Self::WebSocket(socket) => socket.poll_next(cx),
            Self::SocketIo(link) => link.poll_next(cx),
            Self::Devices(link) => link.poll_next(cx),
        }
    }
}

impl Sink<Message> for Socket {
    type Error = axum::Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        match self.get_mut() {
            Self::WebSocket(socket) => socket.poll_ready(cx),
            Self::SocketIo(link) => link.poll_ready(cx),
            Self::Devices(link) => link.poll_ready(cx),
        }
    }

    fn start_send(self: Pin<&mut Self>, message: Message) -> Result<(), axum::Error> {
        match self.get_mut() {
            Self::WebSocket(socket) => socket.start_send(message),
            Self::SocketIo(link) => {
                link.send(message);
                Ok(())
            }
            Self::Devices(link) => link.send(message),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        match self.get_mut() {
            Self::WebSocket(socket) => socket.poll_flush(cx),
            // The engine writes by itself what it was given.
            Self::SocketIo(link) => link.poll_ready(cx),
            Self::Devices(link) => link.poll_flush(cx),
        }
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        match self.get_mut() {
            Self::WebSocket(socket) => socket.poll_close(cx),
            Self::SocketIo(_) => Poll::Ready(Ok(())),
            Self::Devices(link) => link.poll_close(cx),
        }
    }
}
