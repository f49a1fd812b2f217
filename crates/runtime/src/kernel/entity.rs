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

pub mod spec;

use crate::kernel::clock::Timestamp;
use crate::kernel::error::ErrorCode;
use crate::kernel::ids::IdSource;
use crate::kernel::private;
use crate::kernel::view::ViewRow;
use crate::kernel::work::Work;

pub trait Entity: Sized + Send + Sync + 'static {
    /// The first half of an entity's address, and of its topic's name. Persisted: never renamed.
    const KIND: &'static str;
    /// The version of the state, raised when its meaning changes and its layout does not.
    const STATE_VERSION: u16 = 1;
    /// The version written with every event; older events pass through [`Entity::upcast`] first.
    const EVENT_VERSION: u16 = 1;
    /// A journal (JSON lines of `{"version":…,"event":…}`) that holds every event of every version ever written, in
    /// an order that can happen. A test reads it with each release, and a node with each start.
    const GOLDEN: &'static str;
    /// Whether the entity owns the durable topic `KIND:key`.
    const HAS_TOPIC: bool = false;
    /// Whether events, state or rows hold [`Private`](crate::kernel::private::Private) values. Without it such values refuse
    /// to be written.
    const PRIVATE: bool = false;

    type State: Default + Serialize + DeserializeOwned + Send + Sync + 'static;
    type Command: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static;
    type Event: Debug + Serialize + DeserializeOwned + Send + Sync + 'static;
    type Reply: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static;
    type Rejection: Rejection;

    /// What the command does to this state. Pure: the same inputs give the same decision.
    fn decide(state: &Self::State, command: Self::Command, cx: &DecideCx<'_>) -> Decided<Self>;

    /// Applies an event to the state. Total: an event that was once written always applies.
    fn evolve(state: &mut Self::State, event: &Self::Event);

    /// The person for whom the entity acts towards other entities. An entity that turns somebody's words into sends acts for
    /// that person, and reaches only what is theirs. `None`: it acts in its own right, in protocols whose receivers know
    /// its kind.
    fn acts_for(_key: &str, _state: &Self::State) -> Option<Principal> {
        None
    }

    /// Whether the command is a query. Queries are answered without a dedupe row and may wait ([`Decision::wait`]); they
    /// cannot emit events.
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

    /// The command that publishes for another entity on this entity's topic.
    fn publication(_publication: Publication) -> Option<Self::Command> {
        None
    }

    /// The command that takes the outcome of a `run` effect this entity asked for: see [`RunOutcome::of`].
    fn run_finished(_outcome: RunOutcome) -> Option<Self::Command> {
        None
    }

    /// The rejection that a violated database constraint of a view stands for, where a constraint is the last line of defence.
    fn constraint_violated(_constraint: &str) -> Option<Self::Rejection> {
        None
    }

    /// The command that learns that a `send` was refused or given up (a dead letter). `None`: nobody needs to know.
    fn send_failed(_failure: SendFailure) -> Option<Self::Command> {
        None
    }
}

/// A command that one entity sends another. The sender knows the message, and not the entity that takes it.
pub trait Message: Serialize + DeserializeOwned {
    /// The kind of the receiver.
    const TO: &'static str;
    /// Its name among the receiver's commands, whose variant holds the message. Persisted: never renamed.
    const NAME: &'static str;
}

/// Declares the [`Message`]s of a domain by receiver, each with the name under which it stands in rows.
#[macro_export]
macro_rules! messages {
    ($($to:ident: $($message:ident as $name:literal),+;)+) => {
        $($(impl $crate::kernel::entity::Message for $message {
            const TO: &'static str = $to;
            const NAME: &'static str = $name;
        })+)+

        /// All messages of the domain, by the kind of their receiver and their name.
        #[cfg(test)]
        pub const ALL: &[(&str, &str)] = &[$($(($to, $name)),+),+];
    };
}

/// The associated types of an [`Entity`] whose module calls them `State`, `Command`, `Event`, `Reply` and `Rejection`.
#[macro_export]
macro_rules! own_types {
    () => {
        type State = State;
        type Command = Command;
        type Event = Event;
        type Reply = Reply;
        type Rejection = Rejection;
    };
}

/// A refusal by the business rules: typed, remembered like a reply, and never an error of the runtime.
pub trait Rejection:
    Clone + Debug + Display + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// `rejected` unless the contract has a better name (`not_found`, `forbidden`, `conflict`).
    fn code(&self) -> ErrorCode {
        ErrorCode::Rejected
    }
    /// A stable reason for programs: `slot_taken`.
    fn reason(&self) -> &'static str;
}

/// The context of a decision: all that `decide` may know besides the state and the command.
#[derive(Debug)]
pub struct DecideCx<'a> {
    pub key: &'a str,
    pub now: Timestamp,
    pub caller: &'a Caller,
    pub ids: &'a IdSource,
}

/// The sender of a command. Doors fill in the authenticated user; the runtime fills in the rest.
/// Between nodes it is JSON: a field may be added where it has a default, since the release before leaves it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "who", rename_all = "snake_case")]
pub enum Caller {
    User {
        id: String,
        role: Role,
        /// The scopes of their token, which the door has checked.
        #[serde(default, skip_serializing_if = "Scopes::are_all")]
        scopes: Scopes,
    },
    Entity {
        kind: String,
        key: String,
        /// The person for whom it acts. `None`: it acts in its own right, in a protocol whose receivers know its kind.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        for_user: Option<Principal>,
    },
    /// The entity itself (through a timer or the outcome of a run), or the node.
    Runtime,
}

/// The person for whom something acts, and the scopes in which it may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    pub user_id: String,
    #[serde(default)]
    pub scopes: Scopes,
}

impl Principal {
    /// A principal with everything that the person may do.
    pub fn of(user_id: impl Into<String>) -> Self {
        Self { user_id: user_id.into(), scopes: Scopes::ALL }
    }

    /// Limits the principal to the rights of the command's sender: what follows from a command must not reach further.
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

/// The scopes of a token or a grant, as operations name them: `playback`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scopes(Option<Arc<[String]>>);

impl Scopes {
    /// All scopes: everything that the role may do.
    pub const ALL: Self = Self(None);

    /// Parses the form of a token's claim: words with spaces between them.
    pub fn parse(words: &str) -> Self {
        Self(Some(words.split_ascii_whitespace().map(str::to_owned).collect()))
    }

    pub fn have(&self, scope: &str) -> bool {
        self.0.as_ref().is_none_or(|scopes| scopes.iter().any(|known| known == scope))
    }

    /// The intersection: scopes that both have.
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

/// Checks of authority. There are two kinds, and neither is ambient. A caller that acts for a person may do what that
/// person may, within its scopes: [`Caller::may_act_for`]. An entity takes part in a protocol by its kind and its key,
/// which the runtime fills in: [`Caller::is_a`], [`Caller::is_the`]. An entity's commands to itself are always allowed.
impl Caller {
    /// An authenticated person with all that their role may do.
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

    /// The scopes of the person that the caller is or acts for; all, where it is nobody's.
    pub fn scopes(&self) -> Scopes {
        match self {
            Self::User { scopes, .. }
            | Self::Entity { for_user: Some(Principal { scopes, .. }), .. } => scopes.clone(),
            Self::Entity { for_user: None, .. } | Self::Runtime => Scopes::ALL,
        }
    }

    /// The person for whom the caller may act with this scope. A person's own scopes were checked with the operation.
    pub fn acts_for(&self, scope: &str) -> Option<&str> {
        match self {
            Self::User { id, .. } => Some(id),
            Self::Entity { for_user: Some(person), .. } if person.scopes.have(scope) => {
                Some(&person.user_id)
            }
            Self::Entity { .. } | Self::Runtime => None,
        }
    }

    /// Whether the caller is the person, acts for them with this scope, or is the entity itself.
    pub fn may_act_for(&self, person: &str, scope: &str) -> bool {
        *self == Self::Runtime || self.acts_for(scope) == Some(person)
    }

    /// Whether the caller is an entity of this kind, or the receiving entity itself.
    pub fn is_a(&self, kind: &str) -> bool {
        match self {
            Self::Entity { kind: known, .. } => known == kind,
            Self::User { .. } => false,
            Self::Runtime => true,
        }
    }

    /// Whether the caller is the entity of this kind and key, or the receiving entity itself.
    pub fn is_the(&self, kind: &str, key: &str) -> bool {
        self.is_a(kind) && !matches!(self, Self::Entity { key: known, .. } if known != key)
    }

    /// Whether the caller is the receiving entity itself: a timer, or the outcome of a run.
    pub fn is_itself(&self) -> bool {
        *self == Self::Runtime
    }

    /// Whether the caller is a part of the system that acts for nobody.
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
    /// The reply. `None`: decide again after the next change (declared queries only).
    pub reply: Option<E::Reply>,
    pub effects: Vec<Effect>,
}

impl<E: Entity> Decision<E> {
    pub fn reply(reply: E::Reply) -> Self {
        Self { events: Vec::new(), reply: Some(reply), effects: Vec::new() }
    }

    /// Waits: the query is decided again after each following event, until its deadline.
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

/// A side effect that follows the commit. Sends and runs are written to the outbox in that commit, timers to the
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
    /// A publication on this entity's own topic. Durable publications need an event in the same decision.
    Publish {
        publication: Publication,
        durable: bool,
    },
    /// A publication on another entity's topic, through the entity that owns it.
    Notify {
        kind: String,
        key: String,
        publication: Publication,
    },
    /// [`Work`] outside of any entity, by the runner that does it. At least once; the outcome comes back through
    /// [`Entity::run_finished`].
    Run {
        runner: &'static str,
        tag: String,
        input: Value,
    },
    /// Another effect whose stored form is sealed for this person, as everything sent to an inbox is.
    Private {
        of: String,
        effect: Box<Effect>,
    },
}

impl Effect {
    pub fn send<M: Message>(key: impl Into<String>, message: &M) -> Self {
        let (message, of) = private::plain(|| to_value(message));
        let command = Value::Object([(M::NAME.into(), message)].into_iter().collect());
        let effect = Self::Send { kind: M::TO, key: key.into(), command };
        effect.private_to_whom(of)
    }

    /// Seals the stored form of the effect for this person.
    pub fn private_to(self, person: &str) -> Self {
        Self::Private { of: person.into(), effect: Box::new(self) }
    }

    /// The effect without its privacy wrapper.
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

    /// A publication of a user's own words, under their name.
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

    /// A publication of an announcement on this entity's own topic.
    pub fn announce<A: Announcement>(announcement: &A) -> Self {
        let publication = Publication::new(A::EVENT, to_value(announcement));
        Self::Publish { publication, durable: A::DURABLE }
    }

    /// A publication of an announcement on another entity's topic.
    pub fn announce_to<A: Announcement>(
        kind: &str,
        key: impl Into<String>,
        announcement: &A,
    ) -> Self {
        Self::notify(kind, key, A::EVENT, to_value(announcement))
    }

    /// Work outside of any entity. The `tag` comes back with its outcome.
    pub fn run<W: Work>(tag: impl Into<String>, input: &W::Input) -> Self {
        let (input, of) = private::plain(|| to_value(input));
        let effect = Self::Run { runner: W::NAME, tag: tag.into(), input };
        effect.private_to_whom(of)
    }
}

/// An event that clients hear on a topic: declared once, with its meaning and its topics.
pub trait Announcement: Serialize + JsonSchema {
    /// Its name, which never changes: `playback:changed`.
    const EVENT: &'static str;
    const SUMMARY: &'static str;
    /// The kinds of topics that carry it: `user`, `booking`.
    const TOPICS: &'static [&'static str];
    /// Whether it has an offset and is replayed; otherwise it may be lost.
    const DURABLE: bool = true;
}

/// The value as JSON, its fields sorted by name: fingerprints and rows are the same whatever order they were said in.
/// Commands and events are plain data, so it cannot fail.
pub fn to_value<T: Serialize>(value: &T) -> Value {
    let mut value = serde_json::to_value(value).expect("plain data serialises");
    value.sort_all_objects();
    value
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Publication {
    pub event: String,
    /// The user who published it, if a user did.
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
    /// The outcome. `Err` is final: the runner's own retries are exhausted.
    pub result: Result<Value, String>,
}

impl RunOutcome {
    /// The outcome of this work, or why there is none. What cannot be read is an error too.
    pub fn of<W: Work>(self) -> Result<W::Outcome, String> {
        let Self { runner, result, .. } = self;
        if runner != W::NAME {
            return Err(format!("this is an outcome of {runner}, not of {}", W::NAME));
        }
        serde_json::from_value(result?)
            .map_err(|error| format!("its outcome cannot be read: {error}"))
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SendFailure {
    pub kind: String,
    pub key: String,
    pub command: Value,
    /// The reason of the receiver's rejection, else `dead_letter`.
    pub reason: String,
}

impl SendFailure {
    /// The message, if it is of this type.
    pub fn of<M: Message>(&self) -> Option<M> {
        let message = self.command.get(M::NAME).filter(|_| self.kind == M::TO)?;
        M::deserialize(message).ok()
    }
}

/// Folds a golden journal, which holds events of all releases so far.
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

    struct Counting;

    impl Work for Counting {
        const NAME: &'static str = "counting";
        type Input = u32;
        type Outcome = Vec<u32>;
    }

    #[test]
    fn an_outcome_is_of_its_work_or_an_error() {
        let input = Value::from(3);
        let run = Effect::Run { runner: "counting", tag: "t".into(), input };
        assert_eq!(Effect::run::<Counting>("t", &3), run);
        let of = |runner: &str, result| {
            RunOutcome { runner: runner.into(), tag: "t".into(), result }.of::<Counting>()
        };
        assert_eq!(of("counting", Ok(vec![1, 2].into())), Ok(vec![1, 2]));
        assert_eq!(of("counting", Err("no".into())), Err("no".into()));
        assert!(of("counting", Ok(Value::Null)).unwrap_err().contains("cannot be read"));
        assert!(of("another", Ok(vec![1].into())).unwrap_err().contains("of another"));
    }

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
