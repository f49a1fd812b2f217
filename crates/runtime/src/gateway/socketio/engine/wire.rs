//! A WebSocket of Engine.IO: one packet per message.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};

use super::packet::{self, EnginePacket};
use crate::gateway::accept::Admitted;
use crate::gateway::ws::WebSocket;

pub struct Wire {
    socket: Box<WebSocket>,
    unflushed: bool,
    /// Keeps the TCP connection counted.
    _admitted: Option<Admitted>,
}

/// An event from the client's socket.
pub enum WireEvent {
    Packet(EnginePacket),
    Wrong,
    TooLarge,
    End,
}

impl Wire {
    pub fn new(socket: WebSocket, admitted: Option<Admitted>) -> Self {
        Self { socket: Box::new(socket), unflushed: false, _admitted: admitted }
    }

    /// The number of frames since the last call.
    pub fn frames(&mut self) -> u32 {
        self.socket.frames()
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<WireEvent> {
        Poll::Ready(match ready!(self.socket.poll_next(cx)) {
            Some(Ok(Message::Text(text))) => {
                packet::parse(text.as_str()).map_or(WireEvent::Wrong, WireEvent::Packet)
            }
            Some(Ok(Message::Binary(_))) => WireEvent::Packet(EnginePacket::Binary),
            // Control frames count against the limit, so they are reported as packets.
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                WireEvent::Packet(EnginePacket::Noop)
            }
            Some(Ok(Message::Close(_))) | None => WireEvent::End,
            Some(Err(error)) => match error.into_inner().downcast_ref::<tungstenite::Error>() {
                Some(tungstenite::Error::Capacity(_)) => WireEvent::TooLarge,
                _ => WireEvent::End,
            },
        })
    }

    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        self.socket.poll_ready(cx)
    }

    /// Sends a packet. Call it only after `poll_ready`.
    pub fn send(&mut self, packet: String) -> Result<(), axum::Error> {
        self.unflushed = true;
        self.socket.start_send(Message::text(packet))
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        if self.unflushed {
            ready!(self.socket.poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Closes the socket and waits until the client has closed too: dropping a socket with unread data resets it, and
    /// the last packets are lost.
    pub async fn close(mut self, code: u16) {
        let close = Message::Close(Some(CloseFrame { code: code.into(), reason: "".into() }));
        let ready = poll_fn(|cx| self.socket.poll_ready(cx)).await;
        let said = ready.and_then(|()| self.socket.start_send(close));
        if said.is_ok() && poll_fn(|cx| self.socket.poll_flush(cx)).await.is_ok() {
            while let Some(Ok(_)) = poll_fn(|cx| self.socket.poll_next(cx)).await {}
        }
    }
}

/// A WebSocket that asks to take over from long polling.
pub struct Probe {
    pub wire: Wire,
    /// The probe is given up at this time.
    pub until: Instant,
    /// Whether the client has sent `2probe`.
    probed: bool,
    messages: usize,
    /// The earliest time to release the next waiting poll.
    release: Instant,
    pause: Duration,
}

/// The progress of an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    Goes,
    Upgrades,
    Fails,
}

const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two released polls, doubled each time. The client may never notice that it could go on, and would poll
/// in a busy loop.
const RELEASE_AGAIN: Duration = Duration::from_millis(100);
/// Most messages during a probe, of which two are needed.
const MAX_MESSAGES: usize = 16;

impl Probe {
    pub fn new(wire: Wire) -> Self {
        let now = Instant::now();
        Self {
            wire,
            until: now + UPGRADE_TIMEOUT,
            probed: false,
            messages: 0,
            release: now,
            pause: RELEASE_AGAIN,
        }
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Probed> {
        if self.wire.poll_flush(cx).map(|flushed| flushed.is_err()) == Poll::Ready(true) {
            return Poll::Ready(Probed::Fails);
        }
        let heard = ready!(self.wire.poll_next(cx));
        self.messages += 1;
        Poll::Ready(match heard {
            WireEvent::Packet(EnginePacket::Ping(data)) if data == "probe" && !self.probed => {
                self.probed = true;
                self.release = Instant::now();
                match self.wire.send(packet::PROBED.into()) {
                    Ok(()) => Probed::Goes,
                    Err(_) => Probed::Fails,
                }
            }
            WireEvent::Packet(EnginePacket::Upgrade) if self.probed => Probed::Upgrades,
            WireEvent::Packet(EnginePacket::Noop) if self.messages < MAX_MESSAGES => Probed::Goes,
            _ => Probed::Fails,
        })
    }

    /// When the probe is due next; `polls`: a poll waits to be released.
    pub fn next(&self, polls: bool) -> Instant {
        if polls && self.probed { self.until.min(self.release) } else { self.until }
    }

    /// Whether a waiting poll is released now although there is no packet for it.
    pub fn releases_a_poll(&mut self) -> bool {
        let now = Instant::now();
        let releases = self.probed && self.release <= now;
        if releases {
            self.release = now + self.pause;
            self.pause *= 2;
        }
        releases
    }
}
