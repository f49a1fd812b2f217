//! A command on its way through the shell, and the other messages of an activation.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::actors::delivery::Delivered;
use crate::actors::firing::Firing;
use crate::cluster::ask::EntityAnswer;
use crate::kernel::entity::{Caller, Entity};
use crate::kernel::ids::stable_hash;
use crate::kernel::private;
use crate::persistence::commit::{CommitResult, DedupeRow};

/// A command on its way through the shell.
pub struct Ask<E: Entity> {
    pub command: E::Command,
    pub caller: Caller,
    pub command_id: Option<String>,
    pub deadline: Option<Instant>,
    pub origin: Origin<E>,
}

/// The origin of a command, to which its answer goes.
pub enum Origin<E: Entity> {
    /// A caller. The slip is released when the command is answered, or becomes a waiting query.
    Caller {
        reply: oneshot::Sender<EntityAnswer<E>>,
        slip: Option<Slip<E>>,
    },
    Timer {
        name: String,
        id: String,
        firing: Firing,
    },
    /// The outcome of an outbox row of this entity, whose row the commit deletes.
    Outbox {
        id: String,
    },
    /// A notice whose answer nobody waits for.
    Notice,
}

/// A slot for one command in flight; the count goes down when the command is answered or dropped.
pub struct Slip<E>(Arc<AtomicU32>, PhantomData<fn() -> E>);

impl<E> Slip<E> {
    /// Takes a slip, or `None` if `max` commands are in flight already.
    pub fn take(in_flight: &Arc<AtomicU32>, max: u32) -> Option<Self> {
        let slip = Self(in_flight.clone(), PhantomData);
        (in_flight.fetch_add(1, Ordering::AcqRel) < max).then_some(slip)
    }
}

impl<E> Drop for Slip<E> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A message to an activation's actor.
pub enum ActivationMessage<E: Entity> {
    Ask(Box<Ask<E>>),
    Finished {
        ticket: u64,
        result: CommitResult,
    },
    Delivered(Box<Delivered>),
    /// A row of the outbox may be due.
    Wake,
    /// The store has an overdue delivery: if it is not under way here, read the outbox again.
    Owed,
    /// Become passive if nothing is pending.
    Passivate,
    /// The slot is being handed over: finish pending commands, and end.
    Retire,
}

impl<E: Entity> ractor::Message for ActivationMessage<E> {}

impl<E: Entity> Ask<E> {
    pub fn internal(command: E::Command, origin: Origin<E>) -> Box<Self> {
        let caller = Caller::Runtime;
        Box::new(Self { command, caller, command_id: None, deadline: None, origin })
    }

    pub fn answer(self, answer: EntityAnswer<E>) {
        match self.origin {
            Origin::Caller { reply, slip } => {
                // Release the slip first: a caller that has its answer finds its place free.
                drop(slip);
                let _ = reply.send(answer);
            }
            Origin::Timer { mut firing, .. } => {
                if let Err(error) = answer {
                    firing.failed(error.to_string());
                }
            }
            Origin::Outbox { .. } | Origin::Notice => {}
        }
    }

    pub fn abandoned(&self) -> bool {
        match &self.origin {
            Origin::Caller { reply, .. } => reply.is_closed(),
            _ => false,
        }
    }

    /// The id and the fingerprint under which this command is remembered.
    pub fn dedupe(&self, key: &str) -> Option<DedupeRow> {
        let id = self.command_id.clone()?;
        let user_id = match &self.caller {
            Caller::User { id, .. } => id.clone(),
            Caller::Entity { .. } => "@outbox".into(),
            Caller::Runtime => "@runtime".into(),
        };
        let command = plain::<E, _>(|| serde_json::to_vec(&self.command));
        let command = command.expect("commands are plain data");
        let fingerprint = stable_hash(&[E::KIND.as_bytes(), key.as_bytes(), &command]) as i64;
        Some(DedupeRow { user_id, id, fingerprint, outcome: "".into() })
    }
}

/// Serialises a value that stays in memory or is on its way, in the plain.
fn plain<E: Entity, R>(serialise: impl FnOnce() -> R) -> R {
    if E::PRIVATE { private::plain(serialise).0 } else { serialise() }
}
