//! A client of Socket.IO, above the engine that carries its packets: it joins the namespace `/`, which is a connection
//! like those of `/v1/ws`, leaves it, and may join again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::link::{Link, Sent, ToConnection};
use super::packet::{self, Packet};
use super::pipe::{Reader, Writer};
use crate::contract::problem::Problem;
use crate::gateway::Gateway;
use crate::gateway::ws::{Arguments, Socket};

/// Whoever asks for more other namespaces than that is closed.
const MAX_REFUSED: usize = 16;
/// Packets of its own that wait for the client; nothing is read from it beyond.
const MAX_WAITING: usize = 32;

/// A packet that Socket.IO does not allow: its sender is not understood any more.
#[derive(Debug, PartialEq)]
pub struct Wrong;

pub struct Client {
    gateway: Arc<Gateway>,
    stage: Stage,
    /// To what needed no connection.
    answers: VecDeque<String>,
    /// Namespaces that it was told do not exist.
    refused: usize,
    /// Packets that follow, of an event that was refused.
    attachments: u16,
}

enum Stage {
    /// It has to join the namespace until then.
    New(Instant),
    Joined(Joined),
    /// It has left, or was refused. What it had sent before it knew is of no use any more.
    Left(Instant),
}

struct Joined {
    to_connection: Writer<ToConnection>,
    from_connection: Reader<Sent>,
}

impl Client {
    pub fn new(gateway: Arc<Gateway>) -> Self {
        let stage = Stage::New(patience(&gateway));
        Self { gateway, stage, answers: VecDeque::new(), refused: 0, attachments: 0 }
    }

    /// Until then it has to be in a namespace.
    pub fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::New(until) | Stage::Left(until) => Some(until),
            Stage::Joined(_) => None,
        }
    }

    pub fn is_joined(&self) -> bool {
        matches!(self.stage, Stage::Joined(_))
    }

    /// It does not fetch what it has been answered.
    pub fn is_full(&self) -> bool {
        self.answers.len() >= MAX_WAITING
    }

    /// There is nothing that it has to be told.
    pub fn has_heard_all(&self) -> bool {
        self.answers.is_empty() && !self.is_joined()
    }

    /// The connection has room for one more packet of the client.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.stage {
            // Whether it is gone shows in what comes from there.
            Stage::Joined(joined) => joined.to_connection.poll_room(cx).map(|_| ()),
            Stage::New(_) | Stage::Left(_) => Poll::Ready(()),
        }
    }

    /// What the client is to be sent next; `None`: its transport is to end.
    pub fn poll_packet(&mut self, cx: &mut Context<'_>) -> Poll<Option<String>> {
        if let Some(answer) = self.answers.pop_front() {
            return Poll::Ready(Some(answer));
        }
        let Stage::Joined(joined) = &self.stage else { return Poll::Pending };
        Poll::Ready(match ready!(joined.from_connection.poll_next(cx)) {
            Some(Sent::Packet(packet)) => Some(packet),
            Some(Sent::Left(packet)) => {
                self.stage = Stage::Left(patience(&self.gateway));
                Some(packet)
            }
            None => None,
        })
    }

    /// A message of the client, where there was room for it.
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

    /// A binary message. Those that were announced are dropped: their event has been refused.
    pub fn hear_binary(&mut self) -> Result<(), Wrong> {
        self.attachments = self.attachments.checked_sub(1).ok_or(Wrong)?;
        Ok(())
    }

    /// A message that is too large to be read: its connection says so, where there is one.
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
        let (link, to_connection, from_connection) = Link::new(&gateway.options.websocket, auth);
        self.stage = Stage::Joined(Joined { to_connection, from_connection });
        let opened = gateway.connections.opened();
        let socket = Socket::SocketIo(link);
        // The engine has what its TCP connection counts as.
        Arguments { gateway, socket, claims: None, user: None, opened, admitted: None }.start();
    }
}

const NO_BINARY: &str = "must be JSON: binary attachments are not taken, send base64 in a string";

fn patience(gateway: &Gateway) -> Instant {
    Instant::now() + Duration::from_millis(gateway.options.websocket.connect_timeout_ms)
}
