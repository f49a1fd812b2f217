//! [`EntityRef`]: the only way to reach an entity, wherever it lives.

use std::any::Any;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use crate::kernel::entity::{Caller, Entity};
use crate::kernel::error::AskError;

/// What travels with a command.
#[derive(Clone, Debug)]
pub struct Meta {
    pub caller: Caller,
    /// With an id the command is effective once: a retry gets the first reply.
    pub command_id: Option<String>,
    /// Past it the command is dropped before it is decided, never after.
    pub deadline: Instant,
}

impl Meta {
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

    pub fn new(caller: Caller) -> Self {
        Self { caller, command_id: None, deadline: Instant::now() + Self::DEFAULT_TIMEOUT }
    }

    pub fn runtime() -> Self {
        Self::new(Caller::Runtime)
    }

    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.command_id = Some(id.into());
        self
    }

    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.deadline = Instant::now() + timeout;
        self
    }
}

/// A reply or a rejection, or no answer.
pub type Answer<E> = Result<Result<<E as Entity>::Reply, <E as Entity>::Rejection>, AskError>;

/// The activations of this node; `actors` implements it.
pub trait LocalEntities: Send + Sync {
    /// `command` is the `E::Command` of the kind; the answer is a `Result<E::Reply, E::Rejection>`.
    fn ask(
        &self,
        kind: &'static str,
        key: &str,
        command: Box<dyn Any + Send>,
        meta: Meta,
    ) -> BoxFuture<'static, Result<Box<dyn Any + Send>, AskError>>;

    /// The same for a command that travels as JSON. The answer is `Ok(reply)` or the rejection's reason.
    fn ask_json(
        &self,
        kind: &str,
        key: &str,
        command: &str,
        meta: Meta,
    ) -> BoxFuture<'static, Result<Result<serde_json::Value, String>, AskError>>;
}

/// The door to all entities. Cheap to clone.
#[derive(Clone)]
pub struct Entities {
    local: Arc<dyn LocalEntities>,
}

impl Entities {
    pub fn new(local: Arc<dyn LocalEntities>) -> Self {
        Self { local }
    }

    pub fn of<E: Entity>(&self, key: impl Into<String>) -> EntityRef<E> {
        EntityRef { local: self.local.clone(), key: key.into(), entity: PhantomData }
    }

    pub fn ask_json(
        &self,
        kind: &str,
        key: &str,
        command: &str,
        meta: Meta,
    ) -> BoxFuture<'static, Result<Result<serde_json::Value, String>, AskError>> {
        self.local.ask_json(kind, key, command, meta)
    }
}

pub struct EntityRef<E: Entity> {
    local: Arc<dyn LocalEntities>,
    key: String,
    entity: PhantomData<fn() -> E>,
}

impl<E: Entity> EntityRef<E> {
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Asks and waits for the answer, which comes only after the commit it follows from.
    pub fn ask(
        &self,
        command: E::Command,
        meta: Meta,
    ) -> impl Future<Output = Answer<E>> + Send + use<E> {
        let answer = self.local.ask(E::KIND, &self.key, Box::new(command), meta);
        async move { Ok(*answer.await?.downcast().expect("a kind answers with its own types")) }
    }

    /// Sends without waiting for the outcome; the in-flight bound of the entity holds all the same.
    pub fn tell(&self, command: E::Command, meta: Meta) {
        let ask = self.local.ask(E::KIND, &self.key, Box::new(command), meta);
        tokio::spawn(async move { drop(ask.await) });
    }
}
