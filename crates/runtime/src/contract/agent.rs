//! Agents that agents of others talk to: each says what it can do, and takes tasks.
//!
//! A task's row ([`TaskRow`](crate::kernel::task::TaskRow)) is what the doors show, so a system with agents also lists
//! `view::<TaskRow>()` and an entity that projects it.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::call::{Call, Services};
use super::problem::Outcome;
use crate::kernel::task::{TaskPart, TaskPush};

/// An agent of a system. `key` says which one, where it has many.
pub trait Agent: 'static {
    /// What a token that names scopes must name to talk to it.
    const SCOPE: &'static str;

    /// What it says of itself to anybody.
    fn describe<'a>(
        services: &'a Services,
        key: Option<&'a str>,
    ) -> impl Future<Output = Outcome<AgentProfile>> + Send + 'a;

    /// Takes a message, which begins a task or goes on with one. The answer is the task's id.
    fn take<'a>(
        call: &'a Call,
        key: Option<&'a str>,
        message: IncomingMessage,
    ) -> impl Future<Output = Outcome<String>> + Send + 'a;

    fn cancel<'a>(
        call: &'a Call,
        task_id: &'a str,
    ) -> impl Future<Output = Outcome<()>> + Send + 'a;

    /// Waits until the task has a later version than this one, or until `patience` is over.
    fn changed<'a>(
        call: &'a Call,
        task_id: &'a str,
        after: u64,
        patience: Duration,
    ) -> impl Future<Output = Outcome<()>> + Send + 'a;

    fn put_push<'a>(
        call: &'a Call,
        task_id: &'a str,
        push: TaskPush,
    ) -> impl Future<Output = Outcome<()>> + Send + 'a;

    fn drop_push<'a>(
        call: &'a Call,
        task_id: &'a str,
        id: &'a str,
    ) -> impl Future<Output = Outcome<()>> + Send + 'a;
}

/// What an agent says of itself.
#[derive(Clone, Debug)]
pub struct AgentProfile {
    pub name: String,
    pub description: String,
    /// Changes with what it says.
    pub version: String,
    pub skills: Vec<AgentAbility>,
}

/// Something that an agent can do.
#[derive(Clone, Debug)]
pub struct AgentAbility {
    pub id: String,
    pub name: String,
    pub description: String,
    pub tags: Vec<String>,
    pub examples: Vec<String>,
}

/// A message for an agent.
#[derive(Clone, Debug)]
pub struct IncomingMessage {
    /// The agent's address, which its tasks keep.
    pub agent: String,
    /// `None`: it begins a task.
    pub task_id: Option<String>,
    pub context_id: Option<String>,
    pub id: String,
    pub parts: Vec<TaskPart>,
    /// Where the task's changes are to be sent.
    pub push: Option<TaskPush>,
}

type Describe = for<'a> fn(&'a Services, Option<&'a str>) -> BoxFuture<'a, Outcome<AgentProfile>>;
type Take =
    for<'a> fn(&'a Call, Option<&'a str>, IncomingMessage) -> BoxFuture<'a, Outcome<String>>;
type Cancel = for<'a> fn(&'a Call, &'a str) -> BoxFuture<'a, Outcome<()>>;
type Changed = for<'a> fn(&'a Call, &'a str, u64, Duration) -> BoxFuture<'a, Outcome<()>>;
type PutPush = for<'a> fn(&'a Call, &'a str, TaskPush) -> BoxFuture<'a, Outcome<()>>;
type DropPush = for<'a> fn(&'a Call, &'a str, &'a str) -> BoxFuture<'a, Outcome<()>>;

/// An agent as the doors see it.
#[derive(Clone, Copy)]
pub struct AgentKind {
    /// Where it is reached: `/a2a/providers/{agent_id}`, whose `{agent_id}` is the key.
    pub path: &'static str,
    pub scope: &'static str,
    pub describe: Describe,
    pub take: Take,
    pub cancel: Cancel,
    pub changed: Changed,
    pub put_push: PutPush,
    pub drop_push: DropPush,
}

/// An agent in the list of its system.
pub const fn agent<A: Agent>(path: &'static str) -> AgentKind {
    AgentKind {
        path,
        scope: A::SCOPE,
        describe: |services, key| A::describe(services, key).boxed(),
        take: |call, key, message| A::take(call, key, message).boxed(),
        cancel: |call, task_id| A::cancel(call, task_id).boxed(),
        changed: |call, task_id, after, patience| {
            A::changed(call, task_id, after, patience).boxed()
        },
        put_push: |call, task_id, push| A::put_push(call, task_id, push).boxed(),
        drop_push: |call, task_id, id| A::drop_push(call, task_id, id).boxed(),
    }
}

impl AgentKind {
    /// The address of one agent.
    pub fn address(&self, key: Option<&str>) -> String {
        key.map_or_else(|| self.path.to_owned(), |key| self.path.replace("{agent_id}", key))
    }
}
