//! A call of an operation: the caller, the command id, and the services within reach.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};

use super::bytes::{DownloadSlot, Upload};
use super::host::{AgentHost, HostAnswer, HostQuestion, LogLevel, cannot_ask};
use super::input;
use super::problem::{Outcome, Problem};
use crate::cluster::{CommandMeta, Entities, Presence, Topics};
use crate::kernel::clock::{Clock, Timestamp};
use crate::kernel::entity::{Caller, Entity, Role, Scopes};
use crate::kernel::error::ErrorCode;
use crate::kernel::ids::is_valid_id;
use crate::persistence::limits::{Policy, RateLimiter};
use crate::persistence::objects::Objects;
use crate::persistence::publications::Histories;
use crate::persistence::shared::SealedCache;
use crate::persistence::views::Views;

/// The reason of a refusal for want of a scope.
pub const INSUFFICIENT_SCOPE: &str = "insufficient_scope";

/// The settings of the systems, by their type.
#[derive(Default)]
pub struct Settings(HashMap<TypeId, Box<dyn Any + Send + Sync>>);

impl Settings {
    pub fn with<T: Any + Send + Sync>(mut self, section: T) -> Self {
        self.0.insert(TypeId::of::<T>(), Box::new(section));
        self
    }

    /// The settings of this type, or `None` if nobody has set them.
    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.0.get(&TypeId::of::<T>())?.downcast_ref()
    }
}

/// The services that operations use, the same for all calls of a node.
pub struct Services {
    pub entities: Entities,
    pub topics: Topics,
    pub presence: Arc<Presence>,
    pub clock: Clock,
    pub settings: Settings,
    /// The time for which something that a connection holds counts as present without a renewal.
    pub connection_lease_s: i64,
    /// Whether this node may answer from the read models: with the store up and the lease proven.
    pub may_read: Box<dyn Fn() -> bool + Send + Sync>,
    pub limiter: Arc<dyn RateLimiter>,
    /// The limit of one user's kept commands.
    pub commands: Policy,
    /// The epoch of the durable topics' offsets.
    pub epoch: watch::Receiver<Arc<str>>,
    pub views: Views,
    pub histories: Histories,
    pub sealed_cache: SealedCache,
    pub objects: Objects,
}

impl Services {
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub fn epoch(&self) -> Arc<str> {
        self.epoch.borrow().clone()
    }

    /// The read models, while this node may answer from them.
    pub fn views(&self) -> Outcome<&Views> {
        if (self.may_read)() { Ok(&self.views) } else { Err(Problem::unavailable()) }
    }

    /// The topics' histories, while this node may answer from them.
    pub fn histories(&self) -> Outcome<&Histories> {
        self.views().map(|_| &self.histories)
    }

    pub async fn may_command(&self, user_id: &str) -> Outcome<()> {
        let verdict = self.limiter.hit(format!("commands:{user_id}"), self.commands).await;
        if verdict.allowed {
            return Ok(());
        }
        let detail = format!("a user may send {} commands a minute", self.commands.quota);
        Err(Problem::new(ErrorCode::RateLimited, detail)
            .retry_after_ms(u64::from(verdict.reset_s) * 1_000))
    }
}

/// One request to run an operation: the caller, the command id and the input.
#[derive(Clone)]
pub struct Call {
    pub services: Arc<Services>,
    pub user_id: Arc<str>,
    pub role: Role,
    /// The scopes of the caller's token.
    pub scopes: Scopes,
    /// The user's plan, where the token names one.
    pub plan: Option<Arc<str>>,
    /// The command's id: the same for its retry, through whatever door.
    pub id: String,
    /// The connection that the call came over, where the operation holds something for it.
    pub connection: Option<Arc<str>>,
    /// Whether kept commands count against the user's limit for them: commands over sockets do.
    pub counted: bool,
    /// The unparsed input.
    pub given: Value,
    /// Where the operation says what it has so far, for a caller who hears the answer as it comes. A slow listener slows it.
    pub progress: Option<mpsc::Sender<Value>>,
    /// The session in whose conversation an agent of ours makes the call.
    pub session: Option<Arc<str>>,
    /// The agent's host that the call comes from.
    pub host: Option<Arc<dyn AgentHost>>,
    /// The body of the request, of an operation that takes bytes.
    pub upload: Option<Upload>,
    /// Where an operation that answers bytes leaves them. `None`: the caller cannot take any.
    pub download: Option<DownloadSlot>,
}

impl Call {
    pub fn caller(&self) -> Caller {
        let (id, scopes) = (self.user_id.to_string(), self.scopes.clone());
        Caller::User { id, role: self.role, scopes }
    }

    pub fn meta(&self) -> CommandMeta {
        CommandMeta::new(self.caller()).id(&self.id)
    }

    /// Metadata without a command id: for queries, and for commands that run again each time.
    pub fn undeduplicated(&self) -> CommandMeta {
        CommandMeta::new(self.caller())
    }

    /// The same with an earlier deadline than usual.
    pub fn within(&self, timeout: Duration) -> CommandMeta {
        CommandMeta::within(timeout, self.caller())
    }

    pub async fn ask<E: Entity>(
        &self,
        key: &str,
        command: E::Command,
        meta: CommandMeta,
    ) -> Outcome<E::Reply> {
        match self.services.entities.of::<E>(key).ask(command, meta).await? {
            Ok(reply) => Ok(reply),
            Err(rejection) => Err(Problem::rejection(&rejection)),
        }
    }

    pub fn views(&self) -> Outcome<&Views> {
        self.services.views()
    }

    pub fn now(&self) -> Timestamp {
        self.services.now()
    }

    /// The system's section of the configuration.
    pub fn settings<T: Any + Send + Sync>(&self) -> &T {
        self.services.settings.get().expect("`app` sets the section of every system")
    }

    /// Whether the token has the scope that an operation or a topic takes.
    pub fn may(&self, scope: &str) -> Outcome<()> {
        if self.scopes.have(scope) {
            return Ok(());
        }
        // RFC 6750: a client learns what to ask for.
        let challenge = format!("Bearer error=\"insufficient_scope\", scope=\"{scope}\"");
        let problem = Problem::forbidden(format!("this takes a token with the scope {scope}"));
        Err(problem.reason(INSUFFICIENT_SCOPE).header("www-authenticate", challenge))
    }

    pub fn check_user(&self, given: &Value) -> Outcome<()> {
        check_user(&self.user_id, given)
    }

    pub async fn may_command(&self) -> Outcome<()> {
        if self.counted { self.services.may_command(&self.user_id).await } else { Ok(()) }
    }

    /// Whether the caller's agent can be asked this.
    pub fn can_ask(&self, question: &HostQuestion) -> bool {
        self.host.as_ref().is_some_and(|host| host.can_answer(question))
    }

    /// Asks the caller's agent several things at once ([`AgentHost::ask`]).
    pub async fn ask_host(
        &self,
        questions: Vec<(&'static str, HostQuestion)>,
    ) -> Outcome<Vec<HostAnswer>> {
        match &self.host {
            Some(host) => host.ask(questions).await,
            None => Err(cannot_ask()),
        }
    }

    /// Asks the caller themself to fill in a form ([`AgentHost::ask`]). `None`: they would not.
    pub async fn ask_person<T: DeserializeOwned + JsonSchema>(
        &self,
        name: &'static str,
        message: impl Into<String>,
    ) -> Outcome<Option<T>> {
        let form = schemars::schema_for!(T).to_value();
        let question = HostQuestion::Person { message: message.into(), form };
        match self.ask_host(vec![(name, question)]).await?.pop() {
            Some(HostAnswer::Person(Some(filled))) => input::read(&filled).map(Some),
            _ => Ok(None),
        }
    }

    /// Says how far the operation is, where somebody hears it.
    pub async fn report(&self, done: u64, of: u64) {
        if let Some(progress) = &self.progress {
            let _ = progress.send(json!({"progress": done, "total": of})).await;
        }
    }

    /// Tells the caller's agent how the call goes, if there is one.
    pub fn log(&self, level: LogLevel, text: &str) {
        if let Some(host) = &self.host {
            host.log(level, text);
        }
    }

    /// An id that nothing else has, also not the call's retry.
    pub fn unique_id(&self, prefix: &str) -> String {
        format!("{prefix}_{}", ulid::Ulid::generate())
    }

    /// The id of what this call creates. The input is part of it: another input under a used command id reaches
    /// another entity, whose commit then finds the id taken.
    pub fn new_id(&self, prefix: &str) -> String {
        derived_id(prefix, &[&self.user_id, &self.id, &self.given.to_string()])
    }
}

/// Refuses an input that names another user than the caller.
pub fn check_user(user_id: &str, given: &Value) -> Outcome<()> {
    match given.get("user_id") {
        None | Some(Value::Null) => Ok(()),
        Some(id) if id.as_str() == Some(user_id) => Ok(()),
        Some(_) => Err(Problem::forbidden("user_id must be the token's")),
    }
}

/// The id of an object that a command creates: the same for the command's retry, whatever node it reaches.
pub fn derived_id(prefix: &str, parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    format!("{prefix}_{}", ulid::Ulid::from(u128::from_be_bytes(bytes)))
}

/// Answers `not_found` for a text that cannot be an id.
pub fn known_id<'a>(id: &'a str, what: &str) -> Outcome<&'a str> {
    if is_valid_id(id) { Ok(id) } else { Err(Problem::not_found(what)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_repeat_and_differ() {
        let id = derived_id("req", &["alice", "1"]);
        assert_eq!(id, derived_id("req", &["alice", "1"]));
        assert_ne!(id, derived_id("req", &["alic", "e1"]));
        assert!(is_valid_id(&id) && id.starts_with("req_") && id.len() == 30, "{id}");
    }
}
