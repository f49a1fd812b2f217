//! The entity contract: pure state machines that the runtime makes durable, unique and addressable.
//!
//! A domain implements [`Entity`]. Everything else (loading, committing, replying, retrying, timers) is done by
//! one shell for all of them, `actors::shell`.

use std::fmt::{Debug, Display};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kernel::clock::Timestamp;
use crate::kernel::error::ErrorCode;
use crate::kernel::ids::IdSource;
use crate::kernel::private;
use crate::kernel::view::ViewRow;

pub trait Entity: Sized + Send + Sync + 'static {
    /// The first half of an entity's address, and of its topic's name. Persisted: never renamed.
    const KIND: &'static str;
    /// Raised when the meaning of the state changes without its layout changing.
    const STATE_VERSION: u16 = 1;
    /// Written with every event; older ones pass through [`Entity::upcast`] first.
    const EVENT_VERSION: u16 = 1;
    /// A journal (JSON lines of `{"version":…,"event":…}`) that holds every event of every version ever written, in
    /// an order that can happen. A test reads it with each release, and a node with each start.
    const GOLDEN: &'static str;
    /// The entity owns the durable topic `KIND:key`.
    const HAS_TOPIC: bool = false;
    /// Events, state or rows hold [`Private`](crate::kernel::private::Private) values. Without it they refuse to be written.
    const PRIVATE: bool = false;

    type State: Default + Serialize + DeserializeOwned + Send + Sync + 'static;
    type Command: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static;
    type Event: Debug + Serialize + DeserializeOwned + Send + Sync + 'static;
    type Reply: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static;
    type Rejection: Rejection;

    /// What the command does to this state. Pure: the same inputs give the same decision.
    fn decide(state: &Self::State, command: Self::Command, cx: &DecideCx<'_>) -> Decided<Self>;

    /// Total: an event that was once written always applies.
    fn evolve(state: &mut Self::State, event: &Self::Event);

    /// For whom it acts towards other entities. What turns somebody's words into sends acts for that person, and reaches
    /// only what is theirs. `None`: it speaks in its own right, in protocols whose other side knows its kind.
    fn acts_for(_key: &str, _state: &Self::State) -> Option<Principal> {
        None
    }

    /// Declared queries are answered without a dedupe row and may wait ([`Decision::wait`]); they cannot emit events.
    fn is_query(_command: &Self::Command) -> bool {
        false
    }

    /// Turns an event of an older version into the current form.
    fn upcast(_version: u16, event: Value) -> Value {
        event
    }

    /// The rows of read models that follow from `events`; written in the same commit. `state` is the state after them.
    fn project(_key: &str, _state: &Self::State, _events: &[Self::Event]) -> Vec<ViewRow> {
        Vec::new()
    }

    /// The command that puts somebody else's publication on this entity's topic.
    fn publication(_publication: Publication) -> Option<Self::Command> {
        None
    }

    /// The command that takes the outcome of a `run` effect this entity asked for.
    fn run_finished(_outcome: RunOutcome) -> Option<Self::Command> {
        None
    }

    /// The "no" that a database constraint behind a view stands for, where one is the last line of defence.
    fn constraint_violated(_constraint: &str) -> Option<Self::Rejection> {
        None
    }

    /// The command that learns that a `send` was refused or given up (a dead letter). `None`: nobody needs to know.
    fn send_failed(_failure: SendFailure) -> Option<Self::Command> {
        None
    }
}

/// Commands that other entities send. The sender knows them, and not the entity that takes them.
pub trait Message: Serialize {
    /// The kind of the receiver, which reads it as its command.
    const TO: &'static str;
}

/// A business "no": typed, remembered like a reply, and never an error of the runtime.
pub trait Rejection:
    Clone + Debug + Display + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// `rejected` unless the contract has a better name (`not_found`, `forbidden`, `conflict`).
    fn code(&self) -> ErrorCode {
        ErrorCode::Rejected
    }
    /// A stable word for programs: `slot_taken`.
    fn reason(&self) -> &'static str;
}

/// What `decide` may know besides the state.
#[derive(Debug)]
pub struct DecideCx<'a> {
    pub key: &'a str,
    pub now: Timestamp,
    pub caller: &'a Caller,
    pub ids: &'a IdSource,
}

/// Who sent a command. Edges fill in the authenticated user; the runtime fills in the rest.
/// Between nodes it is JSON: a field may be added where it has a default, since the release before leaves it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "who", rename_all = "snake_case")]
pub enum Caller {
    User {
        id: String,
        role: Role,
        /// What their token may do, which was checked where they came in.
        #[serde(default, skip_serializing_if = "Scopes::are_all")]
        scopes: Scopes,
    },
    Entity {
        kind: String,
        key: String,
        /// `None`: it speaks in its own right, in a protocol that its receivers know it by.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        for_user: Option<Principal>,
    },
    /// The entity itself, by a timer or by the outcome of what it asked for, or the node.
    Runtime,
}

/// The person for whom something acts, and what it may do for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    pub user_id: String,
    #[serde(default)]
    pub scopes: Scopes,
}

impl Principal {
    /// With everything that the person may do.
    pub fn of(user_id: impl Into<String>) -> Self {
        Self { user_id: user_id.into(), scopes: Scopes::ALL }
    }

    /// What follows from a command does not reach further than who sent it.
    pub fn narrowed(mut self, by: &Caller) -> Self {
        match by {
            Caller::User { scopes, .. }
            | Caller::Entity { for_user: Some(Self { scopes, .. }), .. } => {
                self.scopes = self.scopes.and(scopes);
            }
            Caller::Entity { for_user: None, .. } | Caller::Runtime => {}
        }
        self
    }
}

/// What a token or a grant may do, as operations name it: `playback`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scopes(Option<Arc<[String]>>);

impl Scopes {
    /// Everything that the role may.
    pub const ALL: Self = Self(None);

    /// In the form of a token's claim: words with spaces between them.
    pub fn parse(words: &str) -> Self {
        Self(Some(words.split_ascii_whitespace().map(str::to_owned).collect()))
    }

    pub fn have(&self, scope: &str) -> bool {
        self.0.as_ref().is_none_or(|scopes| scopes.iter().any(|known| known == scope))
    }

    /// What both may do.
    pub fn and(&self, other: &Self) -> Self {
        match (&self.0, &other.0) {
            (None, _) => other.clone(),
            (_, None) => self.clone(),
            (Some(scopes), Some(_)) => {
                Self(Some(scopes.iter().filter(|scope| other.have(scope)).cloned().collect()))
            }
        }
    }

    fn are_all(&self) -> bool {
        self.0.is_none()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Consumer,
    Provider,
    Operator,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Consumer => "consumer",
            Self::Provider => "provider",
            Self::Operator => "operator",
        }
    }
}

/// There are two kinds of authority, and neither is ambient. Whoever acts for a person may do what that person may, within
/// their scopes: [`Caller::may_act_for`]. An entity takes part in a protocol by its kind and its key, which the runtime
/// fills in: [`Caller::is_a`], [`Caller::is_the`]. What an entity has told itself it may do.
impl Caller {
    /// A person who has come in with all that their role may do.
    pub fn user(id: impl Into<String>, role: Role) -> Self {
        Self::User { id: id.into(), role, scopes: Scopes::ALL }
    }

    /// An entity in its own right.
    pub fn entity(kind: impl Into<String>, key: impl Into<String>) -> Self {
        Self::Entity { kind: kind.into(), key: key.into(), for_user: None }
    }

    pub fn user_id(&self) -> Option<&str> {
        match self {
            Self::User { id, .. } => Some(id),
            _ => None,
        }
    }

    /// The person for whom it may do what takes this scope. A person's own scopes were checked with the operation.
    pub fn acts_for(&self, scope: &str) -> Option<&str> {
        match self {
            Self::User { id, .. } => Some(id),
            Self::Entity { for_user: Some(person), .. } if person.scopes.have(scope) => {
                Some(&person.user_id)
            }
            Self::Entity { .. } | Self::Runtime => None,
        }
    }

    /// The person themself, whatever acts for them with this scope, or the entity itself.
    pub fn may_act_for(&self, person: &str, scope: &str) -> bool {
        *self == Self::Runtime || self.acts_for(scope) == Some(person)
    }

    /// An entity of this kind, or the asked one itself.
    pub fn is_a(&self, kind: &str) -> bool {
        match self {
            Self::Entity { kind: known, .. } => known == kind,
            Self::User { .. } => false,
            Self::Runtime => true,
        }
    }

    /// The entity of this kind and key, or the asked one itself.
    pub fn is_the(&self, kind: &str, key: &str) -> bool {
        self.is_a(kind) && !matches!(self, Self::Entity { key: known, .. } if known != key)
    }

    /// The asked entity itself: a timer, or the outcome of what it asked for.
    pub fn is_itself(&self) -> bool {
        *self == Self::Runtime
    }

    /// A part of the system that acts for nobody.
    pub fn is_system(&self) -> bool {
        matches!(self, Self::Entity { for_user: None, .. } | Self::Runtime)
    }
}

/// An entity's answer to a command.
pub type Decided<E> = Result<Decision<E>, <E as Entity>::Rejection>;

/// What follows from a command: facts, an answer, and things to do once both are durable.
#[derive(Debug)]
pub struct Decision<E: Entity> {
    pub events: Vec<E::Event>,
    /// `None`: ask again after the next change (declared queries only).
    pub reply: Option<E::Reply>,
    pub effects: Vec<Effect>,
}

impl<E: Entity> Decision<E> {
    pub fn reply(reply: E::Reply) -> Self {
        Self { events: Vec::new(), reply: Some(reply), effects: Vec::new() }
    }

    /// The query is decided again after each following event, until its deadline.
    pub fn wait() -> Self {
        Self { events: Vec::new(), reply: None, effects: Vec::new() }
    }

    pub fn event(mut self, event: E::Event) -> Self {
        self.events.push(event);
        self
    }

    pub fn effect(mut self, effect: Effect) -> Self {
        self.effects.push(effect);
        self
    }

    pub fn effects(mut self, effects: impl IntoIterator<Item = Effect>) -> Self {
        self.effects.extend(effects);
        self
    }
}

/// Something to be done after the commit. Sends and runs are written to the outbox in that commit, timers to the
/// timer table, so that a crash at any moment delays but never loses them.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// A command to another entity: in order per receiver, retried, effective once.
    Send {
        kind: &'static str,
        key: String,
        command: Value,
    },
    /// A durable timer of this entity. The same name again replaces it.
    Schedule {
        name: String,
        at: Timestamp,
        command: Value,
    },
    Cancel {
        name: String,
    },
    /// To this entity's own topic. Durable publications need an event in the same decision.
    Publish {
        publication: Publication,
        durable: bool,
    },
    /// To another entity's topic, through its owner.
    Notify {
        kind: String,
        key: String,
        publication: Publication,
    },
    /// Work outside of any entity (a query over read models, an LLM or HTTP call), by the runner of that name.
    /// At least once; the outcome comes back through [`Entity::run_finished`].
    Run {
        runner: &'static str,
        tag: String,
        input: Value,
    },
    /// The same, and what the store keeps of it is sealed for this person. So is all that is sent to an inbox.
    Private {
        of: String,
        effect: Box<Effect>,
    },
}

impl Effect {
    pub fn send<M: Message>(key: impl Into<String>, message: &M) -> Self {
        let (command, of) = private::plain(|| to_value(message));
        let effect = Self::Send { kind: M::TO, key: key.into(), command };
        effect.private_to_whom(of)
    }

    /// What the store keeps of it is sealed for this person.
    pub fn private_to(self, person: &str) -> Self {
        Self::Private { of: person.into(), effect: Box::new(self) }
    }

    /// The effect, private or not.
    pub fn bare(&self) -> &Self {
        match self {
            Self::Private { effect, .. } => effect.bare(),
            effect => effect,
        }
    }

    fn private_to_whom(self, of: Option<Arc<str>>) -> Self {
        match of {
            Some(person) => self.private_to(&person),
            None => self,
        }
    }

    pub fn schedule<T: Entity>(
        name: impl Into<String>,
        at: Timestamp,
        command: &T::Command,
    ) -> Self {
        let (command, of) = private::plain(|| to_value(command));
        let effect = Self::Schedule { name: name.into(), at, command };
        effect.private_to_whom(of)
    }

    pub fn cancel(name: impl Into<String>) -> Self {
        Self::Cancel { name: name.into() }
    }

    pub fn publish(event: &str, data: Value) -> Self {
        Self::Publish { publication: Publication::new(event, data), durable: true }
    }

    /// What a user said, under his name.
    pub fn publish_from(user_id: &str, event: &str, data: Value) -> Self {
        let publication =
            Publication { from: Some(user_id.into()), ..Publication::new(event, data) };
        Self::Publish { publication, durable: true }
    }

    /// A lossy publication: no offset, not replayed.
    pub fn stream(event: &str, data: Value) -> Self {
        Self::Publish { publication: Publication::new(event, data), durable: false }
    }

    pub fn notify(kind: &str, key: impl Into<String>, event: &str, data: Value) -> Self {
        Self::Notify {
            kind: kind.into(),
            key: key.into(),
            publication: Publication::new(event, data),
        }
    }

    /// To this entity's own topic.
    pub fn announce<A: Announcement>(announcement: &A) -> Self {
        let publication = Publication::new(A::EVENT, to_value(announcement));
        Self::Publish { publication, durable: A::DURABLE }
    }

    /// To the topic of another entity.
    pub fn announce_to<A: Announcement>(
        kind: &str,
        key: impl Into<String>,
        announcement: &A,
    ) -> Self {
        Self::notify(kind, key, A::EVENT, to_value(announcement))
    }

    pub fn run(runner: &'static str, tag: impl Into<String>, input: Value) -> Self {
        Self::Run { runner, tag: tag.into(), input }
    }
}

/// What clients hear of on a topic: declared once, with what it means and where it is said.
pub trait Announcement: Serialize + JsonSchema {
    /// `playback:changed`; never changed.
    const EVENT: &'static str;
    const SUMMARY: &'static str;
    /// The kinds of topics that carry it: `user`, `booking`.
    const TOPICS: &'static [&'static str];
    /// It has an offset and is replayed; else it may be lost.
    const DURABLE: bool = true;
}

/// Commands and events are plain data: their serialisation cannot fail.
pub fn to_value<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("plain data serialises")
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Publication {
    pub event: String,
    /// The user who said it, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    pub data: Value,
}

impl Publication {
    pub fn new(event: &str, data: Value) -> Self {
        Self { event: event.into(), from: None, data }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunOutcome {
    pub runner: String,
    pub tag: String,
    /// `Err` is final: the runner's own retries are spent.
    pub result: Result<Value, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SendFailure {
    pub kind: String,
    pub key: String,
    pub command: Value,
    /// The receiver's `reason` where it said no, else `dead_letter`.
    pub reason: String,
}

/// Folds a golden journal: what old releases wrote.
pub fn replay_golden<E: Entity>() -> Result<E::State, String> {
    #[derive(Deserialize)]
    struct Line {
        version: u16,
        event: Value,
    }
    let mut state = E::State::default();
    for (n, line) in E::GOLDEN.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let line: Line =
            serde_json::from_str(line).map_err(|e| format!("{} line {}: {e}", E::KIND, n + 1))?;
        let event = decode_event::<E>(line.version, line.event)
            .map_err(|e| format!("{} line {}: {e}", E::KIND, n + 1))?;
        E::evolve(&mut state, &event);
    }
    Ok(state)
}

pub fn decode_event<E: Entity>(version: u16, event: Value) -> Result<E::Event, serde_json::Error> {
    if version == E::EVENT_VERSION {
        serde_json::from_value(event)
    } else {
        serde_json::from_value(E::upcast(version, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_reaches_no_further_than_who_sent_it() {
        let scopes = |words| Scopes::parse(words);
        let user = |scopes| Caller::User { id: "alice".into(), role: Role::Consumer, scopes };
        let person = |scopes| Principal { user_id: "alice".into(), scopes };
        let all = Principal::of("alice");
        assert_eq!(all.clone().narrowed(&user(Scopes::ALL)), all);
        assert_eq!(all.clone().narrowed(&user(scopes("a b"))), person(scopes("a b")));
        assert_eq!(person(scopes("b c")).narrowed(&user(scopes("a b"))), person(scopes("b")));
        assert_eq!(person(scopes("b")).narrowed(&Caller::Runtime), person(scopes("b")));
        let for_user = Some(person(scopes("c")));
        let agent = Caller::Entity { kind: "agent".into(), key: "1".into(), for_user };
        assert_eq!(person(scopes("b c")).narrowed(&agent), person(scopes("c")));
        assert!(agent.may_act_for("alice", "c"));
        assert!(!agent.may_act_for("alice", "b") && !agent.may_act_for("bob", "c"));
        assert!(!Caller::entity("agent", "1").may_act_for("alice", "c"));
    }
}

/// Given/when/then for entity tests: `given(events).when(command).then(..)`.
#[cfg(test)]
pub mod spec {
    use super::*;

    pub struct Given<E: Entity> {
        pub state: E::State,
        pub now: Timestamp,
        pub caller: Caller,
        pub key: String,
    }

    pub fn given<E: Entity>(events: impl IntoIterator<Item = E::Event>) -> Given<E> {
        let mut state = E::State::default();
        for event in events {
            E::evolve(&mut state, &event);
        }
        Given { state, now: Timestamp::UNIX_EPOCH, caller: Caller::Runtime, key: "key".into() }
    }

    impl<E: Entity> Given<E> {
        pub fn at(mut self, now: Timestamp) -> Self {
            self.now = now;
            self
        }

        pub fn by_user(mut self, id: &str) -> Self {
            self.caller = Caller::user(id, Role::Consumer);
            self
        }

        pub fn key(mut self, key: &str) -> Self {
            self.key = key.into();
            self
        }

        /// Decides, and applies the events so that a chain of `when`s reads as a story.
        pub fn when(&mut self, command: E::Command) -> Outcome<E> {
            let ids = IdSource::new(self.now, 1);
            let cx = DecideCx { key: &self.key, now: self.now, caller: &self.caller, ids: &ids };
            let result = E::decide(&self.state, command, &cx);
            if let Ok(decision) = &result {
                for event in &decision.events {
                    E::evolve(&mut self.state, event);
                }
            }
            Outcome { result }
        }
    }

    pub struct Outcome<E: Entity> {
        pub result: Decided<E>,
    }

    impl<E: Entity> Outcome<E> {
        #[track_caller]
        pub fn decision(self) -> Decision<E> {
            match self.result {
                Ok(decision) => decision,
                Err(rejection) => panic!("rejected: {rejection:?}"),
            }
        }

        #[track_caller]
        pub fn then(self, events: impl IntoIterator<Item = E::Event>) -> Decision<E>
        where
            E::Event: PartialEq,
        {
            let decision = self.decision();
            let expected: Vec<_> = events.into_iter().collect();
            assert_eq!(decision.events, expected);
            decision
        }

        #[track_caller]
        pub fn then_rejected(self, reason: &str) {
            match self.result {
                Err(rejection) => assert_eq!(rejection.reason(), reason, "{rejection:?}"),
                Ok(decision) => panic!("accepted: {:?}", decision.events),
            }
        }
    }
}
