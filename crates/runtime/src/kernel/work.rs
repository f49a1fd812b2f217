//! Work outside of any entity: what entities ask for, by types.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Work that entities ask for by [`Effect::run`](crate::kernel::entity::Effect::run), and that a runner of their system
/// does: a query over read models, a call to another service.
pub trait Work: 'static {
    /// The name of the work in the outbox. Persisted: never renamed.
    const NAME: &'static str;
    /// What it is done with. An input may wait in the outbox while the release changes: a new field needs a default.
    type Input: Serialize + DeserializeOwned + Send + 'static;
    type Outcome: Serialize + DeserializeOwned + Send + 'static;
    /// Whether a repetition is harmless, so that nobody has to know of each begin. Its first begin is not noted in the store,
    /// which spares a commit; a run that is found again counts as begun once more.
    const REPEATABLE: bool = false;
}
