//! Translation between frames of `proxie.v1` and packets of Socket.IO.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::task::{Context, Poll, Waker, ready};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::{self, Message};

use super::packet;
use super::pipe::{PipeReader, PipeWriter, pipe};
use crate::gateway::ws::ConnectionLimits;

/// Buffer between the engine and the connection, per direction.
const ROOM_BYTES: usize = 64 * 1024;
/// The id of the `auth` frame that CONNECT is translated to.
const CONNECT: &str = "connect";

/// A message to the connection.
pub enum ToConnection {
    Frame {
        id: String,
        frame: String,
        ack: Option<u64>,
    },
    /// The client sent a message that is larger than allowed.
    TooLarge,
}

/// A message from the connection. When the connection ends, the transport ends, unless the client has left the
/// namespace before.
pub enum FromConnection {
    Packet(String),
    /// The client is no longer in the namespace, as this packet says.
    Left(String),
}

pub struct SocketIoLink {
    frames: PipeReader<ToConnection>,
    /// `None`: the connection has ended.
    packets: Option<PipeWriter<FromConnection>>,
    /// The acknowledgement ids of unanswered frames, by frame id.
    unanswered: HashMap<String, Option<u64>>,
    /// Frames that reuse the id of an unanswered one. They wait for its reply, so that acknowledgements are not mixed
    /// up.
    waiting: VecDeque<(String, String, Option<u64>)>,
    /// Frames that the connection reads next.
    next: VecDeque<String>,
    /// Whether the client has been told that it is connected.
    connected: bool,
    /// Whether a pong is due: the engine does its own pings, so the connection's ping is answered at once.
    pong: bool,
    reader: Option<Waker>,
    max_in_flight: usize,
}

impl SocketIoLink {
    /// A link whose first frame is the `auth` that CONNECT is translated to.
    pub fn new(
        limits: &ConnectionLimits,
        auth: &Value,
    ) -> (Self, PipeWriter<ToConnection>, PipeReader<FromConnection>) {
        let mut data = json!({});
        for field in ["token", "positions"] {
            if let Some(value) = auth.get(field) {
                data[field] = value.clone();
            }
        }
        let frame = json!({"id": CONNECT, "event": "auth", "data": data}).to_string();
        let (to_connection, frames) = pipe(ROOM_BYTES);
        let (packets, from_connection) = pipe(ROOM_BYTES);
        let link = Self {
            frames,
            packets: Some(packets),
            unanswered: [(CONNECT.to_owned(), None)].into(),
            waiting: VecDeque::new(),
            next: [frame].into(),
            connected: false,
            pong: false,
            reader: None,
            max_in_flight: limits.max_in_flight.max(1),
        };
        (link, to_connection, from_connection)
    }

    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Message, axum::Error>>> {
        if self.packets.is_none() {
            // The engine drops its end once the last packets are on their way.
            while ready!(self.frames.poll_next(cx)).is_some() {}
            return Poll::Ready(None);
        }
        if std::mem::take(&mut self.pong) {
            return Poll::Ready(Some(Ok(Message::Pong(Default::default()))));
        }
        self.reader = Some(cx.waker().clone());
        loop {
            if let Some(frame) = self.next.pop_front() {
                return Poll::Ready(Some(Ok(Message::text(frame))));
            }
            if self.unanswered.len() + self.waiting.len() >= self.max_in_flight {
                // Beyond the limit a client waits, unlike on `/v1/ws`: after a reconnect, Socket.IO clients send their
                // whole backlog at once, and they do not repeat what is refused.
                return Poll::Pending;
            }
            match ready!(self.frames.poll_next(cx)) {
                Some(ToConnection::Frame { id, frame, ack }) => self.take(id, frame, ack),
                Some(ToConnection::TooLarge) => {
                    let error = CapacityError::MessageTooLong { size: 0, max_size: 0 };
                    let error = axum::Error::new(tungstenite::Error::Capacity(error));
                    return Poll::Ready(Some(Err(error)));
                }
                None => return Poll::Ready(None),
            }
        }
    }

    fn take(&mut self, id: String, frame: String, ack: Option<u64>) {
        match self.unanswered.entry(id) {
            Entry::Occupied(same) => self.waiting.push_back((same.key().clone(), frame, ack)),
            Entry::Vacant(new) => {
                new.insert(ack);
                self.next.push_back(frame);
            }
        }
    }

    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        let Some(packets) = &self.packets else { return Poll::Ready(Ok(())) };
        packets.poll_room(cx).map(|reads| if reads { Ok(()) } else { Err(gone()) })
    }

    pub fn send(&mut self, message: Message) {
        match message {
            Message::Text(text) => {
                let Ok(sent) = serde_json::from_str::<packet::ServerFrame<'_>>(text.as_str())
                else {
                    return;
                };
                match (&sent.id, &sent.event) {
                    (Some(id), _) => self.reply(id, &sent),
                    (None, Some(name)) => self.emit(sent.event_packet(name)),
                    (None, None) => {}
                }
            }
            Message::Ping(_) => {
                self.pong = true;
                self.wake();
            }
            Message::Close(frame) => {
                let (code, reason) = frame
                    .map_or((1000, "{}".into()), |frame| (u16::from(frame.code), frame.reason));
                self.close(code, reason.as_str());
            }
            Message::Binary(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }

    fn emit(&self, packet: String) {
        let bytes = packet.len();
        if let Some(packets) = &self.packets {
            packets.push(FromConnection::Packet(packet), bytes);
        }
    }

    fn wake(&mut self) {
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    fn reply(&mut self, id: &str, reply: &packet::ServerFrame<'_>) {
        let Some(ack) = self.unanswered.remove(id) else { return };
        if let Some(at) = self.waiting.iter().position(|(waiting, ..)| waiting == id)
            && let Some((id, frame, ack)) = self.waiting.remove(at)
        {
            self.take(id, frame, ack);
        }
        self.wake();
        match ack {
            _ if id == CONNECT && !self.connected => self.connect(reply),
            Some(ack) => self.emit(packet::ack(ack, &reply.outcome())),
            None if reply.ok => {}
            // The client asked for no acknowledgement, but it should know of the failure.
            None => self.emit(packet::event("error", &[reply.error.map_or("null", |e| e.get())])),
        }
    }

    fn connect(&mut self, reply: &packet::ServerFrame<'_>) {
        if reply.ok {
            self.connected = true;
            // A fresh id: the engine's own is a secret, since anyone who knows it can take part in the session.
            self.emit(packet::connected(&format!("{:032x}", rand::random::<u128>())));
            self.emit(packet::event("auth", &[reply.data.map_or("null", |data| data.get())]));
            return;
        }
        let error: Value = reply
            .error
            .and_then(|error| serde_json::from_str(error.get()).ok())
            .unwrap_or_default();
        if error["retryable"] == true {
            // Clients retry when the transport ends, but never after a refusal.
            self.packets = None;
            return;
        }
        let message = error["message"].as_str().unwrap_or("the connection was refused");
        self.leave(packet::refused("", message, &error));
    }

    fn close(&mut self, code: u16, reason: &str) {
        if self.connected {
            let data = format!("{{\"code\":{code},\"reason\":{reason}}}");
            self.emit(packet::event("close", &[&data]));
            // Clients do not reconnect by themselves after a disconnect packet; after an end of the transport they do.
            if (3500..4000).contains(&code) {
                self.leave(packet::DISCONNECT.into());
            }
        }
        self.packets = None;
        self.wake();
    }

    fn leave(&mut self, packet: String) {
        let bytes = packet.len();
        if let Some(packets) = self.packets.take() {
            packets.push(FromConnection::Left(packet), bytes);
        }
        self.wake();
    }
}

fn gone() -> axum::Error {
    axum::Error::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe))
}
