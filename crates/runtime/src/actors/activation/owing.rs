//! An entity's deliveries: sending them, and taking their outcomes.

use std::sync::Arc;

use ractor::ActorRef;

use super::{Activation, Next, Stop};
use crate::actors::ask::{ActivationMessage, Ask, Origin};
use crate::actors::delivery::{Delivered, Notice};
use crate::kernel::entity::Entity;
use crate::persistence::commit::{CommitItem, OutboxChange};

impl<E: Entity> Activation<E> {
    /// Takes the outcome of a delivery: deletes its row from the outbox, and notifies the entity if it asked for that.
    pub fn delivered(
        &mut self,
        myself: &ActorRef<ActivationMessage<E>>,
        delivered: Delivered,
    ) -> Result<(), Stop> {
        let rt = self.table.runtime.clone();
        let Some(outgoing) = &mut self.outgoing else { return Ok(()) };
        let end = outgoing.settle(delivered, rt.options.give_up_after, rt.clock.now());
        if outgoing.is_empty() {
            self.outgoing = None;
        }
        let Some(end) = end else {
            self.pump(myself);
            return Ok(());
        };
        if let (Some(Notice::Failed(_)), Some(OutboxChange::Done { id })) =
            (&end.notice, &end.change)
        {
            rt.runners.note(id.clone(), rt.clock.now());
        }
        let notice = match end.notice {
            Some(Notice::Run(outcome)) => E::run_finished(outcome),
            Some(Notice::Failed(failure)) => E::send_failed(failure),
            None => None,
        };
        match (end.change, notice) {
            (Some(OutboxChange::Done { id }), Some(command)) => {
                self.ask(myself, Ask::internal(command, Origin::Outbox { id }))?;
            }
            (change, notice) => {
                if let Some(change) = change {
                    self.change_outbox(change);
                }
                if let Some(command) = notice {
                    self.ask(myself, Ask::internal(command, Origin::Notice))?;
                }
            }
        }
        self.pump(myself);
        Ok(())
    }

    /// Writes bookkeeping of its own. Nobody waits for it, and nothing is lost if it fails.
    fn change_outbox(&mut self, change: OutboxChange) {
        let item = CommitItem { outbox_changes: vec![change], ..self.bare_item(Box::new(|_| {})) };
        let _ = self.table.runtime.lanes.submit(Box::new(item));
    }

    pub fn pump(&mut self, myself: &ActorRef<ActivationMessage<E>>) {
        if let Some(outgoing) = &mut self.outgoing {
            let myself = myself.clone();
            outgoing.pump(
                &self.table.runtime,
                E::KIND,
                &self.key,
                Arc::new(move |delivered| {
                    let _ = match delivered {
                        Some(delivered) => {
                            myself.cast(ActivationMessage::Delivered(Box::new(delivered)))
                        }
                        None => myself.cast(ActivationMessage::Wake),
                    };
                }),
            );
        }
    }

    pub fn reads_on_after(&self) -> Option<i64> {
        self.outgoing.as_ref()?.reads_on_after(self.table.runtime.clock.now())
    }

    /// Reads the next page of the outbox. If that fails, the next message or the recovery scan tries again.
    pub async fn read_on(&mut self, myself: &ActorRef<ActivationMessage<E>>) {
        let Some(after) = self.reads_on_after() else { return };
        let rt = self.table.runtime.clone();
        let Ok(rows) = rt.loader.owed_after(E::KIND, &self.key, after).await else { return };
        self.owed_to = rows.last().map_or(after, |last| last.row.position).max(self.owed_to);
        self.outgoing.get_or_insert_default().go_on(rows, rt.clock.now());
        self.outgoing.take_if(|outgoing| outgoing.is_empty());
        self.pump(myself);
    }

    pub fn owed(&mut self, myself: &ActorRef<ActivationMessage<E>>) -> Next {
        let idle = self.is_idle();
        let now = self.table.runtime.clock.now();
        let known = self.outgoing.as_ref().is_some_and(|o| o.is_due_within_s(0, now));
        if idle && !known {
            return Next::RollBack;
        }
        self.pump(myself);
        Next::GoOn
    }
}
