//! Frames of `proxie.v1` on one side, packets of Socket.IO on the other.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::extract::ws::Message;
use engineioxide::{DisconnectReason, TransportType};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::Engine;
use super::packet::{self, Sent};
use crate::gateway::ws::Limits;

/// The engine tells nobody when it has room again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// What a frame costs besides its text.
const OVERHEAD_BYTES: usize = 256;
/// The id of the `auth` that CONNECT stands for.
const CONNECT: &str = "connect";

/// Which acknowledgements the replies to an id are for. There may be several: a client may send one again.
type Acks = Arc<Mutex<HashMap<String, Vec<Option<u64>>>>>;

fn locked(acks: &Acks) -> MutexGuard<'_, HashMap<String, Vec<Option<u64>>>> {
    acks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For what the client sends.
pub struct Inbox {
    frames: UnboundedSender<(String, usize)>,
    acks: Acks,
    /// Of what waits in `frames`.
    waiting: Arc<AtomicUsize>,
    max_waiting: usize,
}

impl Inbox {
    pub fn connect(&self, auth: &Value) {
        let mut data = json!({});
        for field in ["token", "positions"] {
            if let Some(value) = auth.get(field) {
                data[field] = value.clone();
            }
        }
        let frame = json!({"id": CONNECT, "event": "auth", "data": data});
        let _ = self.frames.send((frame.to_string(), 0));
    }

    /// False: more waits than is kept, which only a flood does.
    pub fn event(&self, (id, frame): (String, String), ack: Option<u64>) -> bool {
        let bytes = frame.len() + OVERHEAD_BYTES;
        if self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes > self.max_waiting {
            return false;
        }
        locked(&self.acks).entry(id).or_default().push(ack);
        let _ = self.frames.send((frame, bytes));
        true
    }
}

pub struct Link {
    engine: Arc<Engine>,
    /// Bounded by `waiting`.
    frames: UnboundedReceiver<(String, usize)>,
    waiting: Arc<AtomicUsize>,
    acks: Acks,
    /// The client has been told that it is connected.
    connected: bool,
    /// The connection wants to ping. The engine does that by itself, so the answer is there at once.
    pong: bool,
    reader: Option<Waker>,
    full: Option<BoxFuture<'static, ()>>,
}

impl Link {
    pub fn new(engine: Arc<Engine>, limits: &Limits) -> (Self, Inbox) {
        let (sender, frames) = mpsc::unbounded_channel();
        let (acks, waiting) = (Acks::default(), Arc::<AtomicUsize>::default());
        let inbox = Inbox {
            frames: sender,
            acks: acks.clone(),
            waiting: waiting.clone(),
            max_waiting: limits.send_buffer_bytes,
        };
        let link = Self {
            engine,
            frames,
            waiting,
            acks,
            connected: false,
            pong: false,
            reader: None,
            full: None,
        };
        (link, inbox)
    }

    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Message, axum::Error>>> {
        if std::mem::take(&mut self.pong) {
            return Poll::Ready(Some(Ok(Message::Pong(Default::default()))));
        }
        self.reader = Some(cx.waker().clone());
        self.frames.poll_recv(cx).map(|frame| {
            let (text, bytes) = frame?;
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            Some(Ok(Message::text(text)))
        })
    }

    /// Room for two packets, so that the engine's own heartbeat always finds room for one.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        use tokio::sync::mpsc::error::TrySendError;
        loop {
            if let Some(full) = &mut self.full {
                std::task::ready!(full.poll_unpin(cx));
                self.full = None;
            }
            let room = self.engine.reserve().and_then(|one| Ok((one, self.engine.reserve()?)));
            match room {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(TrySendError::Full(())) => {
                    self.full = Some(tokio::time::sleep(LOOK_AGAIN).boxed());
                }
                Err(TrySendError::Closed(())) => {
                    let gone = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
                    return Poll::Ready(Err(axum::Error::new(gone)));
                }
            }
        }
    }

    pub fn send(&mut self, message: Message) {
        match message {
            Message::Text(text) => {
                let Ok(sent) = serde_json::from_str::<Sent<'_>>(text.as_str()) else { return };
                match (&sent.id, &sent.event) {
                    (Some(id), _) if id == CONNECT && !self.connected => self.connect(&sent),
                    (Some(id), _) => self.reply(id, &sent),
                    (None, Some(name)) => self.emit(sent.event_packet(name)),
                    (None, None) => {}
                }
            }
            Message::Ping(_) => {
                self.pong = true;
                self.reader.take().into_iter().for_each(Waker::wake);
            }
            Message::Close(frame) => {
                let (code, reason) =
                    frame.map_or((1000, "{}".into()), |frame| (frame.code, frame.reason));
                if self.connected {
                    let data = format!("{{\"code\":{code},\"reason\":{}}}", reason.as_str());
                    self.emit(packet::event("close", &[&data]));
                }
                // Clients do not come back by themselves after this; after an end of the transport they do.
                if (3500..4000).contains(&code) && self.connected {
                    self.emit(packet::DISCONNECT.into());
                }
                // A long poll fetches its last words; it is closed when this is dropped.
                if self.engine.transport_type() == TransportType::Websocket {
                    self.engine.close(DisconnectReason::ClosingServer);
                }
            }
            Message::Binary(_) | Message::Pong(_) => {}
        }
    }

    fn emit(&self, packet: String) {
        // There is room, `poll_ready` has seen it; or the client has gone.
        let _ = self.engine.emit(packet);
    }

    fn connect(&mut self, reply: &Sent<'_>) {
        if reply.ok {
            self.connected = true;
            self.emit(packet::connected(self.engine.id.as_str()));
            self.emit(packet::event("auth", &[reply.data.map_or("null", |data| data.get())]));
            return;
        }
        let error: Value = reply
            .error
            .and_then(|error| serde_json::from_str(error.get()).ok())
            .unwrap_or_default();
        if error["retryable"] == true {
            // Clients try again when the transport ends, and never after an answer.
            return self.engine.close(DisconnectReason::ClosingServer);
        }
        let message = error["message"].as_str().unwrap_or("the connection was refused");
        self.emit(packet::refused("", message, &error));
    }

    fn reply(&self, id: &str, reply: &Sent<'_>) {
        let mut acks = locked(&self.acks);
        let Some(waiting) = acks.get_mut(id) else { return };
        let ack = waiting.pop().flatten();
        if waiting.is_empty() {
            acks.remove(id);
        }
        match ack {
            Some(ack) => self.emit(packet::ack(ack, &reply.outcome())),
            None if reply.ok => {}
            // Nobody asked, but somebody should know.
            None => self.emit(packet::event("error", &[reply.error.map_or("null", |e| e.get())])),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.engine.close(DisconnectReason::ClosingServer);
    }
}
