//! A session of Engine.IO, in one task. It has one transport, long polling or a WebSocket, and while it polls, a
//! WebSocket may ask to take over. Until the client has sent `5` there, long polling stays in use.
//!
//! The client's packets are taken only as fast as its rate limit allows and as the connection reads them. In between,
//! nothing more is read from its socket, and its POST is not answered.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, poll_fn};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep};

use super::packet::{self, EnginePacket, Payload};
use super::wire::{Probe, Probed, Wire, WireEvent};
use super::{Refusal, SessionEntry};
use crate::gateway::socketio::client::{SocketIoClient, Wrong};
use crate::gateway::{Gateway, Leaving};
use crate::kernel::bucket::Bucket;

/// A request of the session's client.
pub enum EngineRequest {
    Poll(oneshot::Sender<EngineAnswer>),
    Post(String, oneshot::Sender<EngineAnswer>),
    Upgrade(Wire),
}

#[derive(Debug)]
pub enum EngineAnswer {
    Payload(String),
    Taken,
    Refused(Refusal),
}

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The client is gone, or did not answer a ping in time.
    Gone,
    /// The client has sent a close packet.
    Closed,
    /// Two requests overlapped that must follow one another.
    Overlap,
    /// The client sent something that is not a valid packet.
    Wrong,
    TooLarge,
    /// Nothing is left to send.
    Over,
}

impl From<Wrong> for Ending {
    fn from(_: Wrong) -> Self {
        Self::Wrong
    }
}

/// The outcome of one step. Ready: something has happened, so all steps are worth trying again.
type Step = Poll<Result<(), Ending>>;

enum Transport {
    Polling(Polling),
    WebSocket(Wire),
}

#[derive(Default)]
struct Polling {
    /// A GET that waits for packets to the client.
    poll: Option<oneshot::Sender<EngineAnswer>>,
    /// A POST that waits until the packets before it are handled.
    post: Option<(String, oneshot::Sender<EngineAnswer>)>,
}

pub struct EngineSession {
    client: SocketIoClient,
    requests: mpsc::Receiver<EngineRequest>,
    transport: Transport,
    probe: Option<Probe>,
    /// Packets of the engine itself, and those that a poll did not take.
    packets: VecDeque<String>,
    /// Posted packets that are not handled yet.
    posted: Payload,
    bucket: Bucket,
    /// Whether reading is paused because the client is too fast or its connection is busy.
    held: bool,
    /// The time until which the client has used up its rate limit.
    resume: Option<Instant>,
    /// Whether the client has sent a message that is too large; nothing after it can be read.
    too_large: bool,
    draining: bool,
    leaving: BoxFuture<'static, ()>,
    ping: Option<Instant>,
    pong: Option<Instant>,
    alarm: Pin<Box<Sleep>>,
    alarm_at: Option<Instant>,
    pace: Pace,
    /// The session's entry in this node's table.
    seat: Option<SessionEntry>,
}

struct Pace {
    ping: Duration,
    pong: Duration,
    max_payload: usize,
}

/// Most steps in a row before other tasks get their turn.
const STEPS: usize = 64;
/// Time limit for a client to take the last packets.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

impl EngineSession {
    pub fn new(
        gateway: &Arc<Gateway>,
        seat: SessionEntry,
        requests: mpsc::Receiver<EngineRequest>,
        wire: Option<Wire>,
    ) -> Self {
        let now = Instant::now();
        let limits = &gateway.options.websocket;
        let (ping, pong) = (limits.ping_ms, limits.pong_timeout_ms);
        let pace = Pace {
            ping: Duration::from_millis(ping),
            pong: Duration::from_millis(pong),
            max_payload: limits.max_frame_bytes,
        };
        let mut leaving = gateway.readiness.leaving();
        let leaving = async move {
            let _ = leaving.wait_for(|leaving| *leaving != Leaving::No).await;
        };
        Self {
            client: SocketIoClient::new(gateway.clone()),
            requests,
            packets: wire.iter().map(|_| super::opened(gateway, seat.sid(), false)).collect(),
            transport: wire
                .map_or_else(|| Transport::Polling(Polling::default()), Transport::WebSocket),
            probe: None,
            posted: Payload::default(),
            bucket: Bucket::new(limits.frames_per_s, limits.frame_burst, now.into_std()),
            held: false,
            resume: None,
            too_large: false,
            draining: false,
            leaving: leaving.boxed(),
            ping: Some(now + pace.ping),
            pong: None,
            alarm: Box::pin(tokio::time::sleep_until(now)),
            alarm_at: None,
            pace,
            seat: Some(seat),
        }
    }

    pub async fn run(mut self) {
        let ending = poll_fn(|cx| self.poll(cx)).await;
        self.finish(ending).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        for _ in 0..STEPS {
            match self.step(cx) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(ending) => return Poll::Ready(ending),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Result<bool, Ending> {
        let happened = [
            self.ask(cx)?,
            self.try_upgrade(cx)?,
            self.write(cx)?,
            self.read(cx)?,
            // Last, because the steps before change when the alarm is due.
            self.clock(cx)?,
        ];
        if !self.draining && self.leaving.poll_unpin(cx).is_ready() {
            self.draining = true;
        }
        if (self.draining || self.too_large)
            && self.packets.is_empty()
            && self.client.has_heard_all()
        {
            return Err(if self.too_large { Ending::TooLarge } else { Ending::Over });
        }
        Ok(happened.iter().any(Poll::is_ready))
    }

    fn ask(&mut self, cx: &mut Context<'_>) -> Step {
        let Some(request) = ready!(self.requests.poll_recv(cx)) else {
            return Poll::Ready(Err(Ending::Over));
        };
        let refused = |answer: oneshot::Sender<EngineAnswer>| {
            let _ = answer.send(EngineAnswer::Refused(Refusal::BadRequest));
        };
        Poll::Ready(match (request, &mut self.transport) {
            (EngineRequest::Poll(answer), Transport::Polling(polling)) => {
                match &polling.poll {
                    Some(waiting) if !waiting.is_closed() => {
                        refused(answer);
                        return Poll::Ready(Err(Ending::Overlap));
                    }
                    _ => polling.poll = Some(answer),
                }
                Ok(())
            }
            (EngineRequest::Post(text, answer), Transport::Polling(polling)) => {
                if polling.post.is_some() {
                    refused(answer);
                    return Poll::Ready(Err(Ending::Overlap));
                }
                polling.post = Some((text, answer));
                Ok(())
            }
            (
                EngineRequest::Poll(answer) | EngineRequest::Post(_, answer),
                Transport::WebSocket(_),
            ) => {
                refused(answer);
                Ok(())
            }
            (EngineRequest::Upgrade(wire), Transport::Polling(_)) => {
                // A second one is dropped, and the first goes on.
                self.probe.get_or_insert_with(|| Probe::new(wire));
                Ok(())
            }
            (EngineRequest::Upgrade(_), Transport::WebSocket(_)) => Ok(()),
        })
    }

    /// Advances a probing WebSocket. One that fails before `5` is dropped.
    fn try_upgrade(&mut self, cx: &mut Context<'_>) -> Step {
        let Some(probe) = &mut self.probe else { return Poll::Pending };
        let probed = ready!(probe.poll(cx));
        if probed == Probed::Goes {
            return Poll::Ready(Ok(()));
        }
        let Some(probe) = self.probe.take().filter(|_| probed == Probed::Upgrades) else {
            return Poll::Ready(Ok(()));
        };
        let transport = std::mem::replace(&mut self.transport, Transport::WebSocket(probe.wire));
        if let Transport::Polling(Polling { poll, post }) = transport {
            if let Some(poll) = poll {
                let _ = poll.send(EngineAnswer::Payload(packet::NOOP.into()));
            }
            if let Some((text, answer)) = post {
                self.posted.append(Payload::read(text).ok_or(Ending::Wrong)?);
                let _ = answer.send(EngineAnswer::Taken);
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The next packet for the client; `None`: the transport is to end.
    fn next_packet(&mut self, cx: &mut Context<'_>) -> Poll<Option<String>> {
        match self.packets.pop_front() {
            Some(packet) => Poll::Ready(Some(packet)),
            None => self.client.poll_packet(cx).map(|packet| Some(packet::message(&packet?))),
        }
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Step {
        if matches!(self.transport, Transport::Polling(_)) {
            return self.answer_poll(cx);
        }
        let mut wrote = false;
        for _ in 0..STEPS {
            let Transport::WebSocket(wire) = &mut self.transport else { return Poll::Pending };
            ready!(wire.poll_ready(cx)).map_err(|_| Ending::Gone)?;
            match self.next_packet(cx) {
                Poll::Ready(Some(packet)) => {
                    wrote = true;
                    if let Transport::WebSocket(wire) = &mut self.transport {
                        wire.send(packet).map_err(|_| Ending::Gone)?;
                    }
                }
                Poll::Ready(None) => return Poll::Ready(Err(Ending::Over)),
                Poll::Pending => break,
            }
        }
        if let Transport::WebSocket(wire) = &mut self.transport {
            let _ = wire.poll_flush(cx).map_err(|_| Ending::Gone)?;
        }
        if wrote { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn answer_poll(&mut self, cx: &mut Context<'_>) -> Step {
        let Transport::Polling(Polling { poll: waiting @ Some(_), .. }) = &mut self.transport
        else {
            return Poll::Pending;
        };
        if waiting.as_mut().is_some_and(|poll| poll.poll_closed(cx).is_ready()) {
            *waiting = None;
            return Poll::Ready(Ok(()));
        }
        let Some(poll) = waiting.take() else { return Poll::Pending };
        let mut payload = String::new();
        let mut over = false;
        while payload.len() < self.pace.max_payload {
            match self.next_packet(cx) {
                Poll::Ready(Some(packet)) => {
                    if payload.is_empty() {
                        payload = packet;
                    } else if payload.len() + packet.len() < self.pace.max_payload {
                        payload.push(packet::SEPARATOR);
                        payload.push_str(&packet);
                    } else {
                        self.packets.push_front(packet);
                        break;
                    }
                }
                Poll::Ready(None) => {
                    over = true;
                    break;
                }
                Poll::Pending => break,
            }
        }
        if payload.is_empty() && self.probe.as_mut().is_some_and(Probe::releases_a_poll) {
            // The client waits for the end of this request before it goes on with the upgrade.
            payload = packet::NOOP.into();
        }
        if payload.is_empty() {
            if let Transport::Polling(polling) = &mut self.transport {
                polling.poll = Some(poll);
            }
            return if over { Poll::Ready(Err(Ending::Over)) } else { Poll::Pending };
        }
        if let Err(EngineAnswer::Payload(payload)) = poll.send(EngineAnswer::Payload(payload)) {
            // The client did not get it: keep it for the next poll.
            for packet in payload.rsplit(packet::SEPARATOR) {
                self.packets.push_front(packet.to_owned());
            }
        }
        Poll::Ready(if over { Err(Ending::Over) } else { Ok(()) })
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Step {
        self.held = false;
        if self.client.is_full() {
            return Poll::Pending;
        }
        self.held = true;
        if self.resume.is_some() {
            return Poll::Pending;
        }
        ready!(self.client.poll_room(cx));
        self.held = false;
        let now = Instant::now();
        let wait = self.bucket.wait(now.into_std());
        if !wait.is_zero() {
            self.held = true;
            self.resume = Some(now + wait);
            return Poll::Ready(Ok(()));
        }
        let packet = match self.posted.next() {
            Some(packet) => {
                self.bucket.owe(1);
                packet
            }
            None => match ready!(self.receive(cx))? {
                Some(packet) => packet,
                None => return Poll::Ready(Ok(())),
            },
        };
        if self.pong.take().is_some() {
            self.ping = Some(now + self.pace.ping);
        }
        Poll::Ready(match packet {
            EnginePacket::Message(text) => self.client.hear(&text).map_err(Ending::from),
            EnginePacket::Binary => self.client.hear_binary().map_err(Ending::from),
            EnginePacket::Pong | EnginePacket::Noop | EnginePacket::Upgrade => Ok(()),
            EnginePacket::Close => Err(Ending::Closed),
            // In this protocol only the server pings.
            EnginePacket::Ping(_) => Err(Ending::Wrong),
        })
    }

    /// The next packet from the client; `None`: something arrived that is not a packet to handle.
    fn receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<EnginePacket>, Ending>> {
        match &mut self.transport {
            Transport::Polling(polling) => {
                let Some((text, answer)) = polling.post.take() else { return Poll::Pending };
                let Some(payload) = Payload::read(text) else {
                    let _ = answer.send(EngineAnswer::Refused(Refusal::BadRequest));
                    return Poll::Ready(Err(Ending::Wrong));
                };
                self.posted = payload;
                let _ = answer.send(EngineAnswer::Taken);
                Poll::Ready(Ok(None))
            }
            Transport::WebSocket(_) if self.too_large => Poll::Pending,
            Transport::WebSocket(wire) => {
                let heard = wire.poll_next(cx);
                // Including frames that are not a whole message yet.
                self.bucket.owe(wire.frames());
                Poll::Ready(match ready!(heard) {
                    WireEvent::Packet(packet) => Ok(Some(packet)),
                    WireEvent::Wrong => Err(Ending::Wrong),
                    WireEvent::TooLarge => {
                        self.too_large = true;
                        self.client.hear_too_much();
                        Ok(None)
                    }
                    WireEvent::End => Err(Ending::Gone),
                })
            }
        }
    }

    fn clock(&mut self, cx: &mut Context<'_>) -> Step {
        let polls = matches!(&self.transport, Transport::Polling(Polling { poll: Some(_), .. }));
        let probe = self.probe.as_ref().map(|probe| probe.next(polls));
        let next = [self.ping, self.pong, self.resume, probe, self.client.deadline()];
        let next = next.into_iter().flatten().min();
        if next != self.alarm_at {
            self.alarm_at = next;
            if let Some(next) = next {
                self.alarm.as_mut().reset(next);
            }
        }
        if next.is_none() {
            return Poll::Pending;
        }
        ready!(self.alarm.poll_unpin(cx));
        self.alarm_at = None;
        let now = Instant::now();
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.client.deadline()) {
            return Poll::Ready(Err(Ending::Over));
        }
        if due(self.pong) {
            if !self.held {
                return Poll::Ready(Err(Ending::Gone));
            }
            // The pong may be among the data that is not read yet.
            self.pong = Some(now + self.pace.pong);
        }
        if let Some(at) = self.ping.take_if(|at| *at <= now) {
            self.packets.push_back(packet::PING.into());
            self.pong = Some(at + self.pace.pong);
        }
        if due(self.resume) {
            self.resume = None;
        }
        if self.probe.as_ref().is_some_and(|probe| probe.until <= now) {
            self.probe = None;
        }
        Poll::Ready(Ok(()))
    }

    async fn finish(mut self, ending: Ending) {
        // From here on no request finds the session.
        self.seat = None;
        match self.transport {
            Transport::Polling(Polling { poll: Some(poll), .. }) => {
                let last = match ending {
                    Ending::Closed => EngineAnswer::Payload(packet::NOOP.into()),
                    Ending::Overlap => EngineAnswer::Payload(packet::CLOSE.into()),
                    // Never `1`: after it, some clients do not reconnect.
                    _ => EngineAnswer::Refused(Refusal::UnknownSid),
                };
                let _ = poll.send(last);
            }
            Transport::Polling(_) => {}
            Transport::WebSocket(wire) if ending != Ending::Gone => {
                let code = match ending {
                    Ending::TooLarge => 1009,
                    Ending::Wrong => 1002,
                    _ => 1000,
                };
                let _ = tokio::time::timeout(CLOSE_TIMEOUT, wire.close(code)).await;
            }
            Transport::WebSocket(_) => {}
        }
    }
}
