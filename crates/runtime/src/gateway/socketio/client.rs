//! A client of Socket.IO, above the engine that carries its packets: it joins the namespace `/`, which is a connection
//! like those of `/v1/ws`, leaves it, and may join again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::link::{FromConnection, SocketIoLink, ToConnection};
use super::packet::{self, Packet};
use super::pipe::{PipeReader, PipeWriter};
use crate::contract::problem::Problem;
use crate::gateway::Gateway;
use crate::gateway::ws::{Arguments, Socket};

/// Requests for other namespaces that are refused before the client is closed.
const MAX_REFUSED: usize = 16;
/// Answers that may wait for the client; beyond this, nothing more is read from it.
const MAX_WAITING: usize = 32;

/// The error for a packet that Socket.IO does not allow. Nothing that follows can be trusted.
#[derive(Debug, PartialEq)]
pub struct Wrong;

pub struct SocketIoClient {
    gateway: Arc<Gateway>,
    stage: Stage,
    /// Answers to packets that needed no connection.
    answers: VecDeque<String>,
    /// Number of requests for namespaces that do not exist.
    refused: usize,
    /// Binary packets still to come that belong to a refused event.
    attachments: u16,
}

enum Stage {
    /// Not in the namespace yet, and has to join it by this time.
    New(Instant),
    Joined(Joined),
    /// It has left, or was refused. Packets that it sent before it knew are ignored.
    Left(Instant),
}

struct Joined {
    to_connection: PipeWriter<ToConnection>,
    from_connection: PipeReader<FromConnection>,
}

impl SocketIoClient {
    pub fn new(gateway: Arc<Gateway>) -> Self {
        let stage = Stage::New(patience(&gateway));
        Self { gateway, stage, answers: VecDeque::new(), refused: 0, attachments: 0 }
    }

    /// The time by which it has to be in a namespace.
    pub fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::New(until) | Stage::Left(until) => Some(until),
            Stage::Joined(_) => None,
        }
    }

    pub fn is_joined(&self) -> bool {
        matches!(self.stage, Stage::Joined(_))
    }

    /// Whether it does not fetch its answers, so nothing more is read from it.
    pub fn is_full(&self) -> bool {
        self.answers.len() >= MAX_WAITING
    }

    /// Whether nothing is left to be sent to it.
    pub fn has_heard_all(&self) -> bool {
        self.answers.is_empty() && !self.is_joined()
    }

    /// Ready when the connection has room for one more packet of the client.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.stage {
            // If the connection has ended, `poll_packet` shows that.
            Stage::Joined(joined) => joined.to_connection.poll_room(cx).map(|_| ()),
            Stage::New(_) | Stage::Left(_) => Poll::Ready(()),
        }
    }

    /// The next packet for the client; `None`: its transport is to end.
    pub fn poll_packet(&mut self, cx: &mut Context<'_>) -> Poll<Option<String>> {
        if let Some(answer) = self.answers.pop_front() {
            return Poll::Ready(Some(answer));
        }
        let Stage::Joined(joined) = &self.stage else { return Poll::Pending };
        Poll::Ready(match ready!(joined.from_connection.poll_next(cx)) {
            Some(FromConnection::Packet(packet)) => Some(packet),
            Some(FromConnection::Left(packet)) => {
                self.stage = Stage::Left(patience(&self.gateway));
                Some(packet)
            }
            None => None,
        })
    }

    /// Handles a message of the client. Call it only when there is room.
    pub fn hear(&mut self, text: &str) -> Result<(), Wrong> {
        if self.attachments > 0 {
            return Err(Wrong);
        }
        match (packet::parse(text).ok_or(Wrong)?, &self.stage) {
            (Packet::Connect { auth }, Stage::New(_) | Stage::Left(_)) => self.join(&auth),
            (Packet::ConnectElsewhere { namespace }, _) if self.refused < MAX_REFUSED => {
                self.refused += 1;
                let refusal = packet::refused(&namespace, "Invalid namespace", &Value::Null);
                self.answers.push_back(refusal);
            }
            (Packet::Event { name, data, ack }, Stage::Joined(joined)) => {
                match packet::frame(&name, data, || self.gateway.mint("sio")) {
                    Ok((id, frame)) => {
                        let bytes = frame.len();
                        joined.to_connection.push(ToConnection::Frame { id, frame, ack }, bytes);
                    }
                    Err(problem) => self.refuse(ack, &problem),
                }
            }
            (Packet::Unreadable { ack, why }, Stage::Joined(_)) => {
                let problem = Problem::field("/data", format!("cannot be read: {why}"));
                self.refuse(ack, &problem);
            }
            (Packet::Binary { attachments, ack }, Stage::Joined(_)) => {
                self.attachments = attachments;
                self.refuse(ack, &Problem::field("/data", NO_BINARY));
            }
            (Packet::Binary { attachments, .. }, Stage::Left(_)) => self.attachments = attachments,
            (Packet::Disconnect, Stage::Joined(_)) => {
                self.stage = Stage::Left(patience(&self.gateway));
            }
            (
                Packet::Event { .. } | Packet::Unreadable { .. } | Packet::Disconnect,
                Stage::Left(_),
            ) => {}
            _ => return Err(Wrong),
        }
        Ok(())
    }

    /// Handles a binary message. An announced one is dropped, since its event has been refused.
    pub fn hear_binary(&mut self) -> Result<(), Wrong> {
        self.attachments = self.attachments.checked_sub(1).ok_or(Wrong)?;
        Ok(())
    }

    /// Handles a message that is too large to read: the connection, if there is one, reports it.
    pub fn hear_too_much(&self) {
        if let Stage::Joined(joined) = &self.stage {
            joined.to_connection.push(ToConnection::TooLarge, 0);
        }
    }

    fn refuse(&mut self, ack: Option<u64>, problem: &Problem) {
        let error = problem.ws_error();
        self.answers.push_back(match ack {
            Some(ack) => packet::ack(ack, &json!({"ok": false, "error": error}).to_string()),
            None => packet::event("error", &[&error.to_string()]),
        });
    }

    /// Hands the connection to a gateway actor, which reads the token first.
    fn join(&mut self, auth: &Value) {
        let gateway = self.gateway.clone();
        let (link, to_connection, from_connection) =
            SocketIoLink::new(&gateway.options.websocket, auth);
        self.stage = Stage::Joined(Joined { to_connection, from_connection });
        let opened = gateway.connections.opened();
        let socket = Socket::SocketIo(link);
        // `admitted` is `None`: the engine holds the TCP connection's place.
        Arguments { gateway, socket, claims: None, user: None, opened, admitted: None }.start();
    }
}

const NO_BINARY: &str =
    "must be JSON: binary attachments are not accepted, send base64 in a string";

fn patience(gateway: &Gateway) -> Instant {
    Instant::now() + Duration::from_millis(gateway.options.websocket.connect_timeout_ms)
}
