//! The vault's keys that an activation waits for, and erased ones.

use std::fmt::Display;

use ractor::ActorRef;

use super::{Activation, Stop, away};
use crate::actors::ask::{ActivationMessage, Ask};
use crate::kernel::entity::Entity;
use crate::kernel::error::AskError;
use crate::kernel::private::{Need, Trouble};

/// The most keys that one piece of data may need: one for each person in it.
const MAX_NEEDS: usize = 64;

impl<E: Entity> Activation<E> {
    /// Holds commands back until a key is in memory: this command cannot be written without it, and later ones keep their
    /// order.
    pub(super) fn wait_for(&mut self, need: Need, ask: Box<Ask<E>>) {
        self.needs = Some(Box::new(need));
        self.redo.get_or_insert_default().push(ask);
    }

    pub fn needs_keys(&self) -> bool {
        self.needs.is_some()
    }

    /// Fetches the missing key, and decides the commands that waited for it.
    pub async fn fetch_keys(
        &mut self,
        myself: &ActorRef<ActivationMessage<E>>,
    ) -> Result<(), Stop> {
        while let Some(need) = self.needs.take() {
            let fetched = self.table.runtime.vault.fetch(*need).await;
            for ask in self.redo.take().unwrap_or_default() {
                match &fetched {
                    Ok(()) => self.ask(myself, ask)?,
                    Err(reason) => ask.answer(Err(AskError::unavailable(reason.clone()))),
                }
            }
        }
        Ok(())
    }

    /// Repeats work that needs keys once they have been fetched. The inner error is about the data.
    pub(super) async fn with_keys<R, F: Display>(
        &self,
        work: impl Fn() -> Result<R, F>,
    ) -> Result<Result<R, String>, Stop> {
        for _ in 0..MAX_NEEDS {
            match self.in_the_vault(&work) {
                Ok(done) => return Ok(Ok(done)),
                Err(Trouble::Broken(why)) => return Ok(Err(why)),
                Err(Trouble::Needs(need)) => {
                    self.table.runtime.vault.fetch(need).await.map_err(away)?
                }
            }
        }
        Err(away("the keys of its people do not stay in memory"))
    }

    /// Whether a person was erased since the state was read, which may hold their data.
    pub fn is_outdated(&self) -> bool {
        E::PRIVATE && self.loaded && self.erasures != self.table.runtime.vault.erasures()
    }

    /// Whether an outdated state can be read again now. Until then nothing new is decided on it.
    pub fn holds_back(&mut self) -> bool {
        self.redo.get_or_insert_default();
        self.pending.is_empty()
    }
}
