//! Asking an entity: what travels with a command, who answers on this node, and what it takes to ask again.

use std::any::Any;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::kernel::entity::{Caller, Entity};
use crate::kernel::error::AskError;

/// The metadata of a command.
#[derive(Clone, Debug)]
pub struct CommandMeta {
    pub caller: Caller,
    /// The command's id. A command with an id takes effect once: a retry gets the first reply.
    pub command_id: Option<String>,
    /// The deadline. Once it has passed, the command is dropped, but only before its decision.
    pub deadline: Instant,
}

impl CommandMeta {
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

    pub fn new(caller: Caller) -> Self {
        Self::within(Self::DEFAULT_TIMEOUT, caller)
    }

    pub fn within(timeout: Duration, caller: Caller) -> Self {
        Self { caller, command_id: None, deadline: Instant::now() + timeout }
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

/// The outcome of an ask: a reply or a rejection, or an error if there is no answer.
pub type EntityAnswer<E> = Result<Result<<E as Entity>::Reply, <E as Entity>::Rejection>, AskError>;

/// The future of an answer.
pub type Answering<T> = BoxFuture<'static, Result<T, AskError>>;

/// The activations of this node; `actors` implements it. A command is in its entity's mailbox when a call returns, so
/// calls are carried out in their order; the futures only wait for the answers.
pub trait LocalEntities: Send + Sync {
    /// `command` is the `E::Command` of the kind; the answer is a `Result<E::Reply, E::Rejection>`.
    fn ask(
        &self,
        kind: &'static str,
        key: &str,
        command: Box<dyn Any + Send>,
        meta: CommandMeta,
    ) -> Answering<Box<dyn Any + Send>>;

    /// Asks with a command in JSON. The answer is `Ok(reply)` or the rejection's reason.
    fn ask_json(
        &self,
        kind: &str,
        key: &str,
        command: &str,
        meta: CommandMeta,
    ) -> Answering<Result<Value, String>>;

    /// Asks for another node. The answer is `Result<E::Reply, E::Rejection>` as JSON.
    fn ask_outcome(
        &self,
        kind: &str,
        key: &str,
        command: &str,
        meta: CommandMeta,
    ) -> Answering<String>;

    /// Converts another node's answer to that of [`LocalEntities::ask_json`].
    fn outcome_json(&self, kind: &str, outcome: &str) -> Option<Result<Value, String>>;
}

/// A command that may be sent several times: each attempt makes its own copy.
pub trait Attempts: Send + Sync {
    type Answer: Send;
    fn kind(&self) -> &str;
    fn key(&self) -> &str;
    fn is_query(&self) -> bool;
    fn here(
        &self,
        local: &dyn LocalEntities,
        meta: CommandMeta,
    ) -> impl Future<Output = Result<Self::Answer, AskError>> + Send;
    fn command(&self) -> String;
    fn decode(&self, outcome: &str) -> Option<Self::Answer>;
}
