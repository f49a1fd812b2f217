//! Loading an entity: its snapshot, its journal, and its undelivered outbox rows.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Activation, Stop, away};
use crate::actors::delivery::Outgoing;
use crate::kernel::entity::{Entity, decode_event};
use crate::kernel::error::AskError;
use crate::persistence::loader::{StoredEvent, is_full};

/// The number of journal pages after which a snapshot saves the progress of a long load.
const SNAPSHOT_PAGES: u32 = 10;

impl<E: Entity> Activation<E> {
    pub async fn load(&mut self) -> Result<(), Stop> {
        let rt = &self.table.runtime;
        self.erasures = rt.vault.erasures();
        let loaded = rt.loader.load(E::KIND, self.key.clone()).await.map_err(|e| {
            tracing::warn!(
                kind = E::KIND,
                key = &*self.key,
                error = e,
                "an entity could not be read"
            );
            away("the store cannot be read")
        })?;
        self.state = E::State::default();
        (self.head, self.topic_head, self.snapshot_seq) = (0, 0, 0);
        let mut more = loaded.may_have_more();
        let mut events = loaded.events;
        let mut dropped = None;
        if let Some(snapshot) = loaded.snapshot {
            let codec = self.table.codec;
            let decoded = self.with_keys(|| codec.decode(&snapshot.data).ok_or("another layout"));
            if let Ok(state) = decoded.await? {
                self.state = state;
                self.head = snapshot.seq;
                self.topic_head = snapshot.topic_head;
                self.snapshot_seq = snapshot.seq;
            } else {
                tracing::info!(
                    kind = E::KIND,
                    key = &*self.key,
                    "a snapshot of another layout is dropped; replaying"
                );
                (events, more, dropped) = (Vec::new(), true, Some(snapshot.seq));
            }
        }
        self.fold(events).await?;
        let mut pages = 0;
        while more {
            if !self.table.runtime.slots.is_here(self.slot, self.epoch) {
                return Err(Stop::Orderly(AskError::NotHere));
            }
            let page = self.table.runtime.loader.events_after(E::KIND, &self.key, self.head);
            let events = page.await.map_err(|_| away("the store cannot be read"))?;
            more = is_full(&events);
            self.fold(events).await?;
            pages += 1;
            if more && pages % SNAPSHOT_PAGES == 0 {
                // Without the snapshot the next start only has more to read.
                if let Some(snapshot) = self.snapshot() {
                    let loader = &self.table.runtime.loader;
                    let _ = loader.keep_snapshot(E::KIND, &self.key, &snapshot, dropped).await;
                }
            }
        }
        self.owed_to = loaded.outbox.last().map_or(0, |last| last.row.position);
        self.outgoing = Outgoing::resume(loaded.outbox, self.table.runtime.clock.now());
        self.next_position = loaded.last_position + 1;
        self.loaded = true;
        self.table.started(&self.key);
        if let Some(witness) = &self.table.runtime.witness {
            witness.loaded(self.witnessed(), self.head);
        }
        metrics::counter!("proxie_activations_total", "kind" => E::KIND).increment(1);
        Ok(())
    }

    /// Applies the next events of the journal.
    async fn fold(&mut self, events: Vec<StoredEvent>) -> Result<(), Stop> {
        for stored in events {
            if stored.seq != self.head + 1 {
                return Err(self
                    .start_failed(format!("the journal has a hole before event {}", stored.seq)));
            }
            let read = || {
                let value = serde_json::from_str(&stored.event)?;
                decode_event::<E>(stored.version, value)
            };
            let event = match self.with_keys(read).await? {
                Ok(event) => event,
                Err(e) => {
                    return Err(
                        self.start_failed(format!("event {} cannot be read: {e}", stored.seq))
                    );
                }
            };
            if catch_unwind(AssertUnwindSafe(|| E::evolve(&mut self.state, &event))).is_err() {
                return Err(self.start_failed(format!("event {} cannot be applied", stored.seq)));
            }
            self.head = stored.seq;
            self.topic_head = stored.topic_head;
        }
        Ok(())
    }

    fn start_failed(&self, reason: String) -> Stop {
        tracing::error!(kind = E::KIND, key = &*self.key, reason, "an entity cannot start");
        self.table.start_failed(&self.key, &reason);
        Stop::Failed(reason)
    }
}
