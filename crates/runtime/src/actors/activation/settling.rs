//! Settling decided commands: they are committed, refused and decided again, or end with the activation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ractor::{ActorProcessingErr, ActorRef};

use super::memory::Claim;
use super::{Activation, Next, Pending, Stop, away};
use crate::actors::ask::{ActivationMessage, Ask};
use crate::cluster::ask::EntityAnswer;
use crate::cluster::topics::Published;
use crate::kernel::entity::Entity;
use crate::kernel::error::AskError;
use crate::persistence::commit::CommitResult;

impl<E: Entity> Activation<E> {
    /// Queues an answer that needs no commit of its own, but waits for the commits before it.
    pub(super) fn push_answer(
        &mut self,
        ask: Box<Ask<E>>,
        answer: EntityAnswer<E>,
        publish: Vec<Arc<Published>>,
    ) {
        let ticket = self.take_ticket();
        self.pending.push_back(Box::new(Pending {
            ticket,
            ask,
            answer,
            publish,
            unheard: false,
            outbox: Vec::new(),
            claim: None,
            commits: false,
            head: self.head,
        }));
    }

    /// Releases answers at the front of the queue that need no commit.
    pub(super) fn release(&mut self) {
        while self.pending.front().is_some_and(|p| !p.commits) {
            let pending = self.pending.pop_front().expect("there is a front");
            self.settle(*pending.ask, pending.answer, &pending.publish);
        }
    }

    /// Answers a command that needs no commit. Only a fresh lease and the slot prove that this is still the one activation.
    pub(super) fn settle(&self, ask: Ask<E>, answer: EntityAnswer<E>, publish: &[Arc<Published>]) {
        let rt = &self.table.runtime;
        ask.answer(if !rt.slots.is_here(self.slot, self.epoch) {
            Err(AskError::NotHere)
        } else if !rt.lease.is_fresh() {
            Err(AskError::unavailable("the lease is not proven"))
        } else {
            for published in publish {
                rt.topics.publish(published);
            }
            answer
        });
    }

    pub fn finished(
        &mut self,
        myself: &ActorRef<ActivationMessage<E>>,
        ticket: u64,
        result: CommitResult,
    ) -> Result<Next, Stop> {
        if self.pending.front().is_none_or(|p| p.ticket != ticket) {
            return Ok(Next::GoOn);
        }
        let mut pending = self.pending.pop_front().expect("there is a front");
        let followers = self.memory.end(ticket, pending.claim.as_ref());
        match result {
            CommitResult::Committed => {
                self.table.started(&self.key);
                if let Some(witness) = &self.table.runtime.witness {
                    witness.committed(self.witnessed(), pending.head);
                }
                let topics = &self.table.runtime.topics;
                for published in &pending.publish {
                    topics.publish(published);
                }
                if pending.unheard {
                    topics.missed(E::KIND, &self.key);
                }
                if let Some(claim) = pending.claim.take() {
                    for (_, asked, follower) in followers {
                        follower.answer(claim.recall::<E>(asked));
                    }
                    self.memory.remember(claim);
                }
                pending.ask.answer(pending.answer);
                let mut rows = std::mem::take(&mut pending.outbox);
                // Rows that a page from the store has brought meanwhile are there already.
                rows.retain(|row| row.position > self.owed_to);
                if !rows.is_empty() {
                    let now = self.table.runtime.clock.now();
                    self.outgoing.get_or_insert_default().add(rows, now);
                    self.pump(myself);
                }
                self.release();
                return Ok(Next::GoOn);
            }
            CommitResult::Duplicate { fingerprint, outcome } => {
                let asked = pending.claim.map_or(0, |claim| claim.fingerprint);
                let first = Claim { id_hash: 0, fingerprint, outcome: outcome.into() };
                for (_, asked, follower) in followers {
                    follower.answer(first.recall::<E>(asked));
                }
                pending.ask.answer(first.recall::<E>(asked));
            }
            CommitResult::Gone => pending.ask.answer(Err(AskError::Internal)),
            CommitResult::Invalid { constraint, message } => {
                let rejection = constraint.as_deref().and_then(E::constraint_violated);
                if rejection.is_none() {
                    tracing::error!(
                        kind = E::KIND,
                        key = &*self.key,
                        message,
                        "a command could not be written"
                    );
                }
                pending.ask.answer(rejection.map(Err).ok_or(AskError::Internal));
            }
            CommitResult::Moved => {
                // Neither this nor any later decision was written, nor will be.
                pending.ask.answer(Err(AskError::NotHere));
                for (_, _, follower) in followers {
                    follower.answer(Err(AskError::NotHere));
                }
                return Err(Stop::Orderly(AskError::NotHere));
            }
            CommitResult::Unavailable => {
                pending.ask.answer(Err(AskError::unavailable("the store is away")));
                return Err(away("the store is away"));
            }
            CommitResult::Stale | CommitResult::Refused => {
                self.redo.get_or_insert_default().push(pending.ask);
                self.redo
                    .get_or_insert_default()
                    .extend(followers.into_iter().map(|(_, _, ask)| ask));
            }
        }
        Ok(Next::RollBack)
    }

    /// Reads the state again after a failed commit, and decides all later commands again on it.
    pub async fn roll_back(&mut self, myself: &ActorRef<ActivationMessage<E>>) -> Result<(), Stop> {
        self.redo.get_or_insert_default();
        while self.pending.front().is_some_and(|p| !p.commits) {
            let pending = self.pending.pop_front().expect("there is a front");
            self.redo.get_or_insert_default().push(pending.ask);
        }
        if !self.pending.is_empty() {
            // The writer is about to refuse the rest, in order.
            return Ok(());
        }
        self.failed.store(true, Ordering::SeqCst);
        self.failed = Arc::new(AtomicBool::new(false));
        self._entry.failed = self.failed.clone();
        self.memory.forget_ids();
        let outgoing = self.outgoing.take();
        self.load().await?;
        if let (Some(kept), Some(fresh)) = (outgoing, &mut self.outgoing) {
            fresh.keep_in_flight(*kept);
        }
        for ask in self.redo.take().unwrap_or_default() {
            self.ask(myself, ask)?;
        }
        // The new state may be the one that they wait for.
        for waiting in std::mem::take(&mut self.waiting) {
            self.decide(myself, waiting)?;
        }
        self.pump(myself);
        Ok(())
    }

    /// Ends the activation. Waiting callers hear the reason; uncommitted decisions are dropped.
    pub fn end(
        &mut self,
        myself: &ActorRef<ActivationMessage<E>>,
        message: Option<ActivationMessage<E>>,
        stop: Stop,
    ) -> Result<(), ActorProcessingErr> {
        self.failed.store(true, Ordering::SeqCst);
        self.table.ended(&self.key, myself.get_id());
        let (error, reason) = match stop {
            Stop::Orderly(error) => (error, None),
            Stop::Failed(reason) => (AskError::Internal, Some(reason)),
        };
        // Covers commits that have already completed. `finish_with` reports later ones.
        if self.pending.iter().any(|p| p.commits && (p.unheard || !p.publish.is_empty())) {
            self.table.runtime.topics.missed(E::KIND, &self.key);
        }
        let waiting = self.pending.drain(..).map(|p| p.ask);
        let waiting = waiting.chain(self.memory.drain_followers());
        let waiting =
            waiting.chain(self.waiting.drain(..)).chain(self.redo.take().into_iter().flatten());
        for ask in waiting.chain(message.and_then(|m| match m {
            ActivationMessage::Ask(ask) => Some(ask),
            _ => None,
        })) {
            ask.answer(Err(error.clone()));
        }
        match reason {
            None => {
                myself.stop(None);
                Ok(())
            }
            Some(reason) => Err(reason.into()),
        }
    }
}
