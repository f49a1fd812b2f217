//! The router: sends a command to the node where its entity lives, and again if it reached the wrong node or the answer
//! was lost.
//!
//! A command is sent again only where that is safe: it was not decided (no node served the slot, the node was the wrong
//! one, the activation was ending), it only reads, or it carries an id, under which it takes effect once. A command that
//! crosses to another node without an id gets one here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use metrics::Counter;
use tokio::sync::{oneshot, watch};

use crate::cluster::ask::{Attempts, CommandMeta, LocalEntities};
use crate::cluster::slots::{SlotLocation, Slots};
use crate::cluster::transport::{
    Credit, Envelope, Inbox, RemoteAnswer, RemoteAsk, SendError, Transport,
};
use crate::kernel::error::AskError;
use crate::kernel::ids::slot_of;

/// The pause between two attempts when no change of the slot has been reported.
const RETRY: Duration = Duration::from_millis(25);
/// The same pause when the entity's node does not know the kind or command: only a hand-over changes that.
const UNKNOWN_RETRY: Duration = Duration::from_millis(250);

/// A handle to the router; cheap to clone.
#[derive(Clone)]
pub struct Router(Arc<Ways>);

/// A handle that keeps neither the router nor anything behind it in memory.
pub(super) struct WeakRouter(Weak<Ways>);

impl WeakRouter {
    pub(super) fn upgrade(&self) -> Option<Router> {
        self.0.upgrade().map(Router)
    }
}

struct Ways {
    local: Arc<dyn LocalEntities>,
    slots: Slots,
    remote: OnceLock<Remote>,
    counters: Counters,
}

struct Counters {
    local: Counter,
    remote: Counter,
    redirects: Counter,
}

/// Asks on their way to other nodes.
struct Remote {
    transport: Arc<dyn Transport>,
    /// By correlation id: the node that was asked, and the waiting asker.
    pending: DashMap<u64, (i64, oneshot::Sender<RemoteAnswer>)>,
    next: AtomicU64,
    /// Messages between nodes other than asks.
    control: Arc<dyn Control>,
}

/// The kinds of [`Envelope::Control`], which its first byte names.
pub mod control {
    pub const PING: u8 = 0;
    pub const TOPICS: u8 = 1;
    pub const PRESENCE: u8 = 2;
}

/// The receiver of [`Envelope::Control`].
pub trait Control: Send + Sync + 'static {
    fn receive(&self, from: i64, message: Vec<u8>);
}

impl Router {
    pub fn new(local: Arc<dyn LocalEntities>, slots: Slots) -> Self {
        let counters = Counters {
            local: metrics::counter!("proxie_asks_total", "to" => "local"),
            remote: metrics::counter!("proxie_asks_total", "to" => "remote"),
            redirects: metrics::counter!("proxie_redirects_total"),
        };
        Self(Arc::new(Ways { local, slots, remote: OnceLock::new(), counters }))
    }

    /// Connects the router to other nodes.
    pub fn connect(&self, transport: Arc<dyn Transport>, control: Arc<dyn Control>) {
        let remote =
            Remote { transport, pending: DashMap::new(), next: AtomicU64::new(1), control };
        let _ = self.0.remote.set(remote);
    }

    pub(super) fn downgrade(&self) -> WeakRouter {
        WeakRouter(Arc::downgrade(&self.0))
    }

    pub(super) fn local(&self) -> &Arc<dyn LocalEntities> {
        &self.0.local
    }

    pub fn is_clustered(&self) -> bool {
        self.0.remote.get().is_some()
    }

    /// Fails the asks that were sent over this link: no answer will come.
    pub fn link_down(&self, incarnation: i64) {
        if let Some(remote) = self.0.remote.get() {
            remote.pending.retain(|_, (peer, _)| *peer != incarnation);
        }
    }

    /// Sends a control message to another node. It may be lost.
    pub fn announce(&self, incarnation: i64, message: Vec<u8>) -> Result<(), SendError> {
        let remote = self.0.remote.get().ok_or(SendError::Unreachable)?;
        remote.transport.send(incarnation, Envelope::Control(message))
    }

    pub(super) async fn route<A: Attempts>(
        &self,
        attempts: A,
        mut meta: CommandMeta,
    ) -> Result<A::Answer, AskError> {
        let slot = slot_of(attempts.kind(), attempts.key());
        let mut changes: Option<watch::Receiver<u64>> = None;
        let mut last = AskError::DeadlineExceeded;
        while Instant::now() < meta.deadline {
            let mut pause = RETRY;
            if let Some(changes) = &mut changes {
                changes.mark_unchanged();
            }
            let failed = match self.0.slots.locate(slot) {
                SlotLocation::Here { .. } => {
                    self.0.counters.local.increment(1);
                    match attempts.here(&*self.0.local, meta.clone()).await {
                        Err(AskError::NotHere) => AskError::NotHere,
                        answer => return answer,
                    }
                }
                SlotLocation::Nowhere => AskError::NotHere,
                SlotLocation::There { incarnation, epoch } => {
                    let Some(remote) = self.0.remote.get() else { return Err(AskError::NotHere) };
                    if !attempts.is_query() && meta.command_id.is_none() {
                        meta.command_id = Some(format!("cmd_{}", ulid::Ulid::generate()));
                    }
                    self.0.counters.remote.increment(1);
                    let asked = remote.ask(&attempts, &meta, incarnation, epoch).await;
                    match asked {
                        Ok(RemoteAnswer::Outcome(outcome)) => {
                            // The command was carried out: asked under the same id, another node returns its outcome.
                            let newer = || {
                                AskError::unavailable("only a newer release can read the answer")
                            };
                            return attempts.decode(&outcome).ok_or_else(newer);
                        }
                        // The sender knows the kind, so the other node runs another release: it hands the slot over, or
                        // is upgraded before long.
                        Ok(RemoteAnswer::Failed(AskError::BadCommand(what))) => {
                            pause = UNKNOWN_RETRY;
                            AskError::unavailable(format!(
                                "the entity's node does not know what is asked for: {what}"
                            ))
                        }
                        Ok(RemoteAnswer::Failed(AskError::NotHere)) => AskError::NotHere,
                        Ok(RemoteAnswer::Failed(error)) => return Err(error),
                        Ok(RemoteAnswer::NotOwner { .. }) => {
                            self.0.counters.redirects.increment(1);
                            AskError::NotHere
                        }
                        Err(AskError::NotHere) => {
                            AskError::unavailable("the entity's node cannot be reached")
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            last = failed;
            let wait = pause.min(meta.deadline.saturating_duration_since(Instant::now()));
            let changes = changes.get_or_insert_with(|| self.0.slots.changes());
            let _ = tokio::time::timeout(wait, changes.changed()).await;
        }
        Err(match last {
            AskError::NotHere => AskError::unavailable("the entity is moving to another node"),
            other => other,
        })
    }
}

impl Remote {
    /// Asks another node. `Err(NotHere)`: the command may be sent again.
    async fn ask<A: Attempts>(
        &self,
        attempts: &A,
        meta: &CommandMeta,
        incarnation: i64,
        epoch: i64,
    ) -> Result<RemoteAnswer, AskError> {
        let left = meta.deadline.saturating_duration_since(Instant::now());
        let ask = RemoteAsk {
            kind: attempts.kind().to_owned(),
            key: attempts.key().to_owned(),
            command: attempts.command(),
            caller: meta.caller.clone(),
            command_id: meta.command_id.clone(),
            remaining_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1),
            epoch,
            traceparent: None,
        };
        let correlation = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.pending.insert(correlation, (incarnation, answer));
        let forget = Forget { pending: &self.pending, correlation };
        match self.transport.send(incarnation, Envelope::Ask { correlation, ask }) {
            Ok(()) => {}
            Err(SendError::Unreachable) => return Err(AskError::NotHere),
            Err(SendError::Overloaded) => return Err(AskError::Overloaded),
            Err(SendError::TooLarge) => {
                return Err(AskError::BadCommand(SendError::TooLarge.to_string()));
            }
        }
        match tokio::time::timeout_at(meta.deadline.into(), answered).await {
            Ok(Ok(answer)) => {
                // The task that received the answer has removed it already.
                std::mem::forget(forget);
                Ok(answer)
            }
            // The link went down: the outcome is unknown, and the id makes asking again safe.
            Ok(Err(_)) => Err(AskError::NotHere),
            Err(_) => Err(AskError::DeadlineExceeded),
        }
    }
}

/// Removes an ask from the pending ones, however it ends.
struct Forget<'a> {
    pending: &'a DashMap<u64, (i64, oneshot::Sender<RemoteAnswer>)>,
    correlation: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.pending.remove(&self.correlation);
    }
}

/// The return path of one answer.
struct Reply {
    transport: Arc<dyn Transport>,
    to: i64,
    correlation: u64,
    /// Whether the asker has stopped waiting.
    until: Instant,
}

impl Reply {
    /// Sends the answer. An answer too large for any link becomes an error at once; without room in the window it waits.
    async fn send(self, answer: RemoteAnswer) {
        let Self { transport, to, correlation, until } = self;
        let send = |answer: &RemoteAnswer| {
            transport.send(to, Envelope::Answer { correlation, answer: answer.clone() })
        };
        let mut sent = send(&answer);
        if sent == Err(SendError::TooLarge) {
            tracing::warn!(to, "an answer is larger than may travel between nodes");
            metrics::counter!("proxie_answers_too_large_total").increment(1);
            sent = send(&RemoteAnswer::Failed(AskError::TooLarge));
        }
        while sent == Err(SendError::Overloaded) && Instant::now() < until {
            tokio::time::sleep(RETRY).await;
            sent = send(&answer);
        }
    }
}

impl Inbox for Router {
    fn receive(&self, from: i64, envelope: Envelope, credit: Credit) {
        let Some(remote) = self.0.remote.get() else { return };
        match envelope {
            Envelope::Ask { correlation, ask } => {
                let slot = slot_of(&ask.kind, &ask.key);
                let answering = match self.0.slots.locate(slot) {
                    SlotLocation::Here { .. } => {
                        let left = Duration::from_millis(ask.remaining_ms.into());
                        let meta = CommandMeta {
                            caller: ask.caller,
                            command_id: ask.command_id,
                            deadline: Instant::now() + left,
                        };
                        // The command is in its entity's mailbox before the next envelope is read, which keeps the order.
                        Ok(self.0.local.ask_outcome(&ask.kind, &ask.key, &ask.command, meta))
                    }
                    _ => {
                        let owned = self.0.slots.owned(slot);
                        let owner = owned.owner.filter(|owner| *owner != self.0.slots.me());
                        Err(RemoteAnswer::NotOwner { owner, epoch: owned.epoch })
                    }
                };
                let transport = remote.transport.clone();
                let slots = self.0.slots.clone();
                let left = Duration::from_millis(ask.remaining_ms.into());
                let reply =
                    Reply { transport, to: from, correlation, until: Instant::now() + left };
                drop(tokio::spawn(async move {
                    reply
                        .send(match answering {
                            Ok(outcome) => match outcome.await {
                                Ok(outcome) => RemoteAnswer::Outcome(outcome),
                                Err(error) => {
                                    if let AskError::BadCommand(_) = error {
                                        slots.want(slot, from);
                                    }
                                    RemoteAnswer::Failed(error)
                                }
                            },
                            Err(answer) => answer,
                        })
                        .await;
                    // The asker's window is occupied until here, which bounds the work that it can cause on this node.
                    drop(credit);
                }));
            }
            Envelope::Answer { correlation, answer } => {
                if let Some((_, (peer, waiting))) = remote.pending.remove(&correlation)
                    && peer == from
                {
                    let _ = waiting.send(answer);
                }
            }
            Envelope::Control(message) => remote.control.receive(from, message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fixtures::{Narrow, Nobody};
    use crate::kernel::entity::Caller;

    /// A node that was asked by node 2, and the link to it.
    fn asked(link: &Arc<Narrow>, key: String) {
        let router = Router::new(Arc::new(Nobody), Slots::all_mine(1, 1));
        router.connect(link.clone(), Arc::new(Nobody));
        let ask = RemoteAsk {
            kind: "any".into(),
            key,
            command: String::new(),
            caller: Caller::Runtime,
            command_id: None,
            remaining_ms: 60_000,
            epoch: 1,
            traceparent: None,
        };
        router.receive(2, Envelope::Ask { correlation: 9, ask }, Credit::new(|| {}));
    }

    async fn answer(link: &Narrow) -> RemoteAnswer {
        for _ in 0..4_000 {
            if let Some(Envelope::Answer { correlation: 9, answer }) = link.sent().pop() {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no answer")
    }

    #[tokio::test]
    async fn an_answer_that_cannot_travel_is_an_error_at_once() {
        let link = Arc::new(Narrow::default());
        asked(&link, "x".repeat(101));
        assert_eq!(answer(&link).await, RemoteAnswer::Failed(AskError::TooLarge));
    }

    #[tokio::test]
    async fn an_answer_without_room_waits_for_it() {
        let link = Arc::new(Narrow::default());
        link.room(false);
        asked(&link, "x".into());
        tokio::time::sleep(Duration::from_millis(60)).await;
        link.room(true);
        assert_eq!(answer(&link).await, RemoteAnswer::Outcome("x".into()));
    }
}
