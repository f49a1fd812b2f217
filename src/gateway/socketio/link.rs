//! Frames of `proxie.v1` on one side, packets of Socket.IO on the other.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use engineioxide::{DisconnectReason, TransportType};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio_tungstenite::tungstenite::Message;

use super::packet::{self, Sent};
use super::{ENGINE_BUFFER, Engine};
use crate::gateway::ws::Limits;

/// The engine tells nobody when it has room again. Doubled each time, up to [`LOOK_RARELY`].
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const LOOK_RARELY: Duration = Duration::from_millis(80);
/// Places of the engine's channel that are left to its heartbeat and to its upgrade.
const SPARE: usize = 2;
/// Of a long poll's answer, for what the engine adds by itself.
const SLACK: usize = 64;
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
    /// Packets that the engine has no room for yet.
    packets: VecDeque<String>,
    /// Given to the engine since its channel was last seen to be empty.
    unpolled: usize,
    max_payload: usize,
    looks: Option<Look>,
}

/// When the engine is looked at again.
struct Look {
    at: BoxFuture<'static, ()>,
    delay: Duration,
    /// It was empty already.
    empty: bool,
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
            packets: VecDeque::new(),
            unpolled: 0,
            max_payload: limits.max_frame_bytes,
            looks: None,
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

    /// The engine has all packets.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        while !self.packets.is_empty() {
            if let Some(look) = &mut self.looks {
                std::task::ready!(look.at.poll_unpin(cx));
            }
            match self.hand_over() {
                Ok(true) => self.looks = None,
                Ok(false) => {
                    let (delay, was_empty) = match &self.looks {
                        Some(look) => ((look.delay * 2).min(LOOK_RARELY), look.empty),
                        None => (LOOK_AGAIN, false),
                    };
                    let empty = has_room(&self.engine, ENGINE_BUFFER);
                    if empty && was_empty {
                        // The answer that took the last of it is complete by now.
                        self.unpolled = 0;
                    }
                    self.looks = Some(Look { at: tokio::time::sleep(delay).boxed(), delay, empty });
                }
                Err(gone) => return Poll::Ready(Err(axum::Error::new(gone))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Gives the engine one packet, if there is room. During the upgrade from long polling the engine forgets the packet
    /// that did not fit into the last answer, so no answer is given more than fits.
    fn hand_over(&mut self) -> Result<bool, std::io::Error> {
        let Some(packet) = self.packets.pop_front() else { return Ok(true) };
        let polls = self.engine.transport_type() == TransportType::Polling;
        let bytes = packet.len() + 2;
        let full = polls && self.unpolled > 0 && self.unpolled + bytes + SLACK > self.max_payload;
        if full || !has_room(&self.engine, 1 + SPARE) {
            self.packets.push_front(packet);
            return if self.engine.is_closed() { Err(gone()) } else { Ok(false) };
        }
        if self.engine.emit(packet).is_err() {
            // What came in between took the room: the client goes on from its positions.
            self.engine.close(DisconnectReason::ClosingServer);
            return Err(gone());
        }
        self.unpolled = if polls { self.unpolled + bytes } else { 0 };
        Ok(true)
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
                let (code, reason) = frame
                    .map_or((1000, "{}".into()), |frame| (u16::from(frame.code), frame.reason));
                if self.connected {
                    let data = format!("{{\"code\":{code},\"reason\":{}}}", reason.as_str());
                    self.emit(packet::event("close", &[&data]));
                }
                // Clients do not come back by themselves after this; after an end of the transport they do.
                if (3500..4000).contains(&code) && self.connected {
                    self.emit(packet::DISCONNECT.into());
                }
                // A long poll fetches its last words; it is closed when this is dropped.
                if self.packets.is_empty()
                    && self.engine.transport_type() == TransportType::Websocket
                {
                    self.engine.close(DisconnectReason::ClosingServer);
                }
            }
            Message::Binary(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }

    fn emit(&mut self, packet: String) {
        self.packets.push_back(packet);
        let _ = self.hand_over();
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

    fn reply(&mut self, id: &str, reply: &Sent<'_>) {
        let ack = {
            let mut acks = locked(&self.acks);
            let Some(waiting) = acks.get_mut(id) else { return };
            let ack = waiting.pop().flatten();
            if waiting.is_empty() {
                acks.remove(id);
            }
            ack
        };
        match ack {
            Some(ack) => self.emit(packet::ack(ack, &reply.outcome())),
            None if reply.ok => {}
            // Nobody asked, but somebody should know.
            None => self.emit(packet::event("error", &[reply.error.map_or("null", |e| e.get())])),
        }
    }
}

/// So many places of the engine's channel are free.
fn has_room(engine: &Engine, places: usize) -> bool {
    // Each is held while the next is asked for.
    places == 0 || engine.reserve().is_ok_and(|_permit| has_room(engine, places - 1))
}

fn gone() -> std::io::Error {
    std::io::ErrorKind::BrokenPipe.into()
}

impl Drop for Link {
    fn drop(&mut self) {
        self.engine.close(DisconnectReason::ClosingServer);
    }
}
