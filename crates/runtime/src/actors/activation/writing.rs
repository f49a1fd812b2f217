//! The rows that a decision becomes in the store, sealed where they concern a person.

use std::cell::LazyCell;
use std::sync::Arc;

use super::Activation;
use crate::cluster::topics::Published;
use crate::kernel::entity::{Effect, Entity};
use crate::kernel::private::{self, EncryptionContext, INBOX, Trouble};
use crate::persistence::commit::{JournalRow, OutboxRow, PublicationRow, SnapshotRow, TimerChange};
use crate::persistence::vault::{PUBLICATION, TIMER, outbox_field};

/// The rows of a decision, and their last positions.
#[derive(Default)]
pub struct DecisionRows {
    pub events: Vec<JournalRow>,
    pub outbox: Vec<OutboxRow>,
    pub timers: Vec<TimerChange>,
    pub publications: Vec<PublicationRow>,
    pub publish: Vec<Arc<Published>>,
    /// Whether a durable publication was not rendered, since nobody listened.
    pub unheard: bool,
    pub topic_head: i64,
    pub next_position: i64,
}

impl<E: Entity> Activation<E> {
    /// Renders the rows. It changes no state, so that it can be repeated once a missing key is in memory.
    pub(super) fn write(
        &self,
        events: &[E::Event],
        effects: Vec<Effect>,
    ) -> Result<DecisionRows, Trouble> {
        let rt = &self.table.runtime;
        // Most commands publish nothing, and nothing of theirs is sealed.
        let topic = LazyCell::new(|| [E::KIND, ":", &*self.key].concat());
        let heard = LazyCell::new(|| rt.topics.has_subscribers(&topic));
        let (topic_head, next_position) = (self.topic_head, self.next_position);
        let mut written = DecisionRows { topic_head, next_position, ..DecisionRows::default() };
        for effect in effects {
            let (effect, of) = match effect {
                Effect::Private { of, effect } => (*effect, Some(of.into())),
                effect => (effect, None),
            };
            match effect {
                Effect::Publish { publication, durable } => {
                    let data = LazyCell::new(|| publication.data.to_string());
                    let offset = durable.then(|| {
                        written.topic_head += 1;
                        written.topic_head
                    });
                    written.unheard |= durable && !*heard;
                    if *heard {
                        let (event, from) = (&publication.event, publication.from.as_deref());
                        written.publish.push(Published::said(&topic, offset, event, from, &data));
                    }
                    if let Some(offset) = offset {
                        written.publications.push(PublicationRow {
                            offset,
                            data: self.seal(of, PUBLICATION, data.clone())?,
                            event: publication.event,
                            from: publication.from,
                        });
                    }
                }
                Effect::Send { kind, key, command } => {
                    self.owe(&mut written, of, kind, key, command.to_string())?;
                }
                Effect::Notify { kind, key, publication } => {
                    let body = serde_json::json!({ "@publication": publication }).to_string();
                    self.owe(&mut written, of, &kind, key, body)?;
                }
                Effect::Run { runner, tag, input } => {
                    let body = serde_json::json!({ "tag": tag, "input": input }).to_string();
                    self.owe(&mut written, of, "run", runner.to_owned(), body)?;
                }
                Effect::Schedule { name, at, command } => written.timers.push(TimerChange::Set {
                    name,
                    id: ulid::Ulid::generate().to_string(),
                    due: at,
                    command: self.seal(of, TIMER, command.to_string())?,
                }),
                Effect::Cancel { name } => written.timers.push(TimerChange::Cancel { name }),
                Effect::Private { .. } => {
                    return Err(Trouble::Broken("an effect is private to two people".into()));
                }
            }
        }
        for event in events {
            let event = self.in_the_vault(|| serde_json::to_string(event))?;
            let row = JournalRow { version: E::EVENT_VERSION, topic_head: 0, event };
            written.events.push(row);
        }
        for row in &mut written.events {
            row.topic_head = written.topic_head;
        }
        Ok(written)
    }

    fn owe(
        &self,
        written: &mut DecisionRows,
        of: Option<Arc<str>>,
        kind: &str,
        key: String,
        body: String,
    ) -> Result<(), Trouble> {
        let of = of.or_else(|| (kind == INBOX).then(|| key.as_str().into()));
        let body = match of {
            None => body,
            of => self.seal(of, &outbox_field(kind, &key), body)?,
        };
        written.next_position += 1;
        written.outbox.push(OutboxRow {
            id: format!("eff_{}", ulid::Ulid::generate()),
            position: written.next_position,
            target_kind: kind.to_owned(),
            target_key: key,
            body,
            principal: None,
        });
        Ok(())
    }

    fn seal(&self, of: Option<Arc<str>>, field: &str, text: String) -> Result<String, Trouble> {
        let Some(person) = of else { return Ok(text) };
        let cipher = self.table.runtime.vault.cipher();
        private::seal_text(&*cipher, &person, &self.place(), field, &text)
    }

    pub(super) fn place(&self) -> EncryptionContext {
        EncryptionContext { kind: E::KIND.into(), key: self.key.clone() }
    }

    /// Seals and opens private values of this entity. Entities that declare none pay nothing, and can write none.
    pub(super) fn in_the_vault<R, F: std::fmt::Display>(
        &self,
        work: impl FnOnce() -> Result<R, F>,
    ) -> Result<R, Trouble> {
        if !E::PRIVATE {
            return work().map_err(|error| Trouble::Broken(error.to_string()));
        }
        private::sealed(&self.table.runtime.vault.cipher(), &self.place(), work)
    }

    /// From here on the next one is counted, before this one is written: one that is not leads to a fresh load. `None`: a
    /// key that it needs is not in memory. It will be, the next time.
    pub(super) fn snapshot(&mut self) -> Option<SnapshotRow> {
        let data = match self.in_the_vault(|| self.table.codec.encode(&self.state)) {
            Ok(data) => data,
            Err(Trouble::Needs(need)) => {
                self.needs = Some(Box::new(need));
                return None;
            }
            Err(Trouble::Broken(error)) => {
                tracing::error!(
                    kind = E::KIND,
                    key = &*self.key,
                    error,
                    "a snapshot is not written"
                );
                return None;
            }
        };
        self.snapshot_seq = self.head;
        Some(SnapshotRow { seq: self.head, topic_head: self.topic_head, data })
    }
}
