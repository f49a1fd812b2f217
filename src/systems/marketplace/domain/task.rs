//! A task that an agent of somebody's gives to one of ours: to find an offer for its person, or to ask one provider for one.
//!
//! ```text
//! Submitted ──Take──▶ Working ──offer, counter, question──▶ InputRequired ──Take──▶ Working …
//!                        │                                     │
//!                        ├── booked ───▶ Completed             └── Cancel, Expired, declined: Canceled, Failed, Rejected
//! ```
//! Offers stay with the request: the task starts one and is told how it goes. Words start a search at the most; what
//! binds is a [`TaskAct::Accept`], which names the offer.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::kernel::entity::{
    Caller, DecideCx, Decided, Decision, Entity, Principal, RunOutcome, SendFailure,
};
use crate::kernel::error::ErrorCode;
use crate::kernel::private::{Field, Private};
use crate::kernel::task::{
    TASK, TaskArtifact, TaskBody, TaskMessage, TaskPart, TaskPush, TaskRow, TaskState,
};
use crate::kernel::view::ViewRow;
use crate::systems::marketplace::domain::language::Understanding;
use crate::systems::marketplace::domain::messages::{
    AcceptOffer, AskFor, Asked, REQUEST, RequestCancellation, RequestTold,
};
use crate::systems::marketplace::domain::rejection::{FieldError, summary};

mod notify;
mod steps;
#[cfg(test)]
mod tests;
mod words;

pub use notify::{Notification, NotifyAgent};

/// Messages of the client that one task takes.
pub const MAX_TURNS: u32 = 64;
/// Messages that are kept; older ones are forgotten.
pub const MAX_HISTORY: usize = 32;
pub const MAX_PUSHES: usize = 4;

#[derive(Debug)]
pub struct Task;

/// What a message asks the agent to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskAct {
    /// Words alone: a search at the most.
    Say(String),
    Ask(Box<Asked>),
    Accept {
        offer_id: String,
    },
}

/// What a task is asked. Names of variants and fields stay: nodes of another release read them too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// The next message of the client; the first one makes the task.
    Take {
        /// The address of the agent.
        agent: String,
        /// The provider, where the agent is one's.
        provider_id: Option<String>,
        context_id: String,
        begins: bool,
        message_id: String,
        parts: Vec<TaskPart>,
        act: TaskAct,
        push: Option<TaskPush>,
    },
    Cancel,
    PutPush {
        push: TaskPush,
    },
    DropPush {
        id: String,
    },
    /// Query that waits until the task has a later version.
    AwaitChange {
        after: u64,
    },
    /// Internal: a request.
    RequestTold(RequestTold),
    /// Internal: a request said no to what the task asked of it.
    RequestRefused {
        request_id: String,
        asked: AskedOfRequest,
        reason: String,
    },
    /// Internal: a notification was delivered, or given up.
    Notified,
}

/// What a task asked of a request, and was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskedOfRequest {
    Create,
    Accept,
    Cancel,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    Begun {
        owner_id: String,
        agent: String,
        provider_id: Option<String>,
        context_id: String,
        at: Timestamp,
    },
    Received {
        message: Private<TaskMessage, Said>,
        at: Timestamp,
    },
    /// What is known so far and not enough; `None`: nothing.
    Drafted {
        draft: Option<Box<Understanding>>,
    },
    RequestStarted {
        request_id: String,
    },
    AcceptanceSent {
        offer_id: String,
    },
    AcceptanceEnded,
    CancelSent,
    CancelRefused,
    ArtifactMade {
        artifact: Private<TaskArtifact, Artifact>,
        at: Timestamp,
    },
    StateChanged {
        state: TaskState,
        message: Private<TaskMessage, Said>,
        at: Timestamp,
    },
    PushPut {
        id: String,
        push: Private<TaskPush, Push>,
    },
    PushDropped {
        id: String,
    },
}

/// The field of what is said about a task.
#[derive(Debug)]
pub enum Said {}

/// The field of what came of a task.
#[derive(Debug)]
pub enum Artifact {}

/// The field of where a task's changes are sent.
#[derive(Debug)]
pub enum Push {}

impl Field for Said {
    const NAME: &'static str = "said";
}

impl Field for Artifact {
    const NAME: &'static str = "artifact";
}

impl Field for Push {
    const NAME: &'static str = "push";
}

/// The task's state, bounded by [`MAX_HISTORY`], [`MAX_PUSHES`] and the offers of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub owner_id: String,
    pub agent: String,
    pub provider_id: Option<String>,
    pub context_id: String,
    pub state: TaskState,
    pub said: Option<Private<TaskMessage, Said>>,
    pub history: Vec<Private<TaskMessage, Said>>,
    pub turns: u32,
    /// By their ids.
    pub artifacts: Vec<(String, Private<TaskArtifact, Artifact>)>,
    pub pushes: Vec<(String, Private<TaskPush, Push>)>,
    pub draft: Option<Box<Understanding>>,
    pub request_id: Option<String>,
    /// The offer whose acceptance is under way.
    pub accepting: Option<String>,
    pub canceling: bool,
    pub version: u64,
    pub said_at_version: u64,
    pub created_at: Option<Timestamp>,
    pub updated_at: Option<Timestamp>,
}

impl State {
    fn remember(&mut self, message: Private<TaskMessage, Said>) {
        if self.history.len() >= MAX_HISTORY {
            self.history.remove(0);
        }
        self.history.push(message);
    }

    fn has_heard(&self, message_id: &str) -> bool {
        let heard = |message: &Private<TaskMessage, Said>| {
            message.reveal().is_some_and(|message| message.id == message_id)
        };
        self.history.iter().any(heard)
    }

    /// What is shown of it; `None`: nobody has begun it.
    fn row(&self, key: &str) -> Option<TaskRow> {
        let body = TaskBody {
            said: self.said.as_ref().and_then(Private::reveal).cloned(),
            history: self.history.iter().filter_map(Private::reveal).cloned().collect(),
            artifacts: self.artifacts.iter().filter_map(|(_, one)| one.reveal()).cloned().collect(),
            pushes: self.pushes.iter().filter_map(|(_, one)| one.reveal()).cloned().collect(),
        };
        Some(TaskRow {
            id: key.into(),
            owner_id: self.owner_id.clone(),
            agent: self.agent.clone(),
            context_id: self.context_id.clone(),
            state: self.state,
            created_at: self.created_at?,
            updated_at: self.updated_at?,
            version: self.version,
            said_at_version: self.said_at_version,
            body: Private::new(&self.owner_id, body),
        })
    }

    fn changed(&mut self, at: Timestamp) {
        self.version += 1;
        self.updated_at = Some(at);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    /// The task is at this version, or at a later one.
    At {
        version: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("there is no such task")]
    NotFound,
    #[error("only the system may do this")]
    InternalOnly,
    #[error("this task is over: begin another")]
    Over,
    #[error("the agent is still working on the last message")]
    Busy,
    #[error("this task has had {MAX_TURNS} messages: begin another")]
    Full,
    #[error("this task cannot be canceled now")]
    NotCancelable,
    #[error("the agent has made no such offer, or it is no longer open")]
    NoSuchOffer,
    #[error("a task has at most {MAX_PUSHES} push configurations")]
    TooManyPushes,
    #[error("{}", summary(errors))]
    Invalid { errors: Vec<FieldError> },
}

impl crate::kernel::entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound => ErrorCode::NotFound,
            Self::InternalOnly => ErrorCode::Forbidden,
            Self::Over | Self::Busy | Self::Full | Self::NotCancelable => ErrorCode::Conflict,
            Self::NoSuchOffer | Self::TooManyPushes | Self::Invalid { .. } => ErrorCode::Rejected,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::InternalOnly => "internal_only",
            Self::Over => "task_over",
            Self::Busy => "task_busy",
            Self::Full => "task_full",
            Self::NotCancelable => "task_not_cancelable",
            Self::NoSuchOffer => "no_such_offer",
            Self::TooManyPushes => "too_many_pushes",
            Self::Invalid { .. } => "invalid",
        }
    }
}

impl Entity for Task {
    const KIND: &'static str = TASK;
    const GOLDEN: &'static str = include_str!("golden/task.jsonl");
    const PRIVATE: bool = true;

    crate::own_types!();

    fn decide(state: &State, command: Command, cx: &DecideCx<'_>) -> Decided<Self> {
        if state.created_at.is_none() && !matches!(command, Command::Take { begins: true, .. }) {
            return Err(Rejection::NotFound);
        }
        may(state, &command, cx.caller)?;
        match command {
            command @ Command::Take { .. } => steps::take(state, command, cx),
            Command::Cancel => steps::cancel(state, cx),
            Command::PutPush { push } => steps::put_push(state, push, cx),
            Command::DropPush { id } => {
                let known = state.pushes.iter().any(|(known, _)| *known == id);
                let event = known.then_some(Event::PushDropped { id });
                Ok(Decision { events: event.into_iter().collect(), ..Decision::reply(Reply::Done) })
            }
            Command::AwaitChange { after } if state.version > after => {
                Ok(Decision::reply(Reply::At { version: state.version }))
            }
            Command::AwaitChange { .. } => Ok(Decision::wait()),
            Command::RequestTold(told) => Ok(steps::told(state, told, cx)),
            Command::RequestRefused { request_id, asked, reason } => {
                Ok(steps::refused(state, &request_id, asked, &reason, cx))
            }
            Command::Notified => Ok(Decision::reply(Reply::Done)),
        }
    }

    fn evolve(state: &mut State, event: &Event) {
        let owner = state.owner_id.clone();
        match event {
            Event::Begun { owner_id, agent, provider_id, context_id, at } => {
                state.owner_id = owner_id.clone();
                state.agent = agent.clone();
                state.provider_id = provider_id.clone();
                state.context_id = context_id.clone();
                state.created_at = Some(*at);
                state.updated_at = Some(*at);
            }
            Event::Received { message, at } => {
                state.turns += 1;
                if let Some(said) = state.said.take() {
                    state.remember(said);
                }
                state.remember(message.clone().belonging_to(&owner));
                state.changed(*at);
            }
            Event::Drafted { draft } => state.draft = draft.clone(),
            Event::RequestStarted { request_id } => {
                state.draft = None;
                state.request_id = Some(request_id.clone());
                state.artifacts.clear();
            }
            Event::AcceptanceSent { offer_id } => state.accepting = Some(offer_id.clone()),
            Event::AcceptanceEnded => state.accepting = None,
            Event::CancelSent => state.canceling = true,
            Event::CancelRefused => state.canceling = false,
            Event::ArtifactMade { artifact, at } => {
                state.changed(*at);
                let artifact = artifact.clone().belonging_to(&owner);
                if let Some(id) = artifact.reveal().map(|artifact| artifact.id.clone()) {
                    state.artifacts.retain(|(known, _)| *known != id);
                    state.artifacts.push((id, artifact));
                }
            }
            Event::StateChanged { state: new, message, at } => {
                if let Some(said) = state.said.take() {
                    state.remember(said);
                }
                state.changed(*at);
                state.state = *new;
                state.said = Some(message.clone().belonging_to(&owner));
                state.said_at_version = state.version;
                if new.is_over() {
                    state.accepting = None;
                    state.canceling = false;
                }
            }
            Event::PushPut { id, push } => {
                state.pushes.retain(|(known, _)| known != id);
                state.pushes.push((id.clone(), push.clone().belonging_to(&owner)));
            }
            Event::PushDropped { id } => state.pushes.retain(|(known, _)| known != id),
        }
    }

    fn is_query(command: &Command) -> bool {
        matches!(command, Command::AwaitChange { .. })
    }

    fn project(key: &str, state: &State, events: &[Event]) -> Vec<ViewRow> {
        let row = state.row(key).filter(|_| !events.is_empty());
        row.iter().map(ViewRow::of).collect()
    }

    /// It asks requests for its person, with the scopes of the message.
    fn acts_for(_: &str, state: &State) -> Option<Principal> {
        Some(Principal::of(state.owner_id.as_str()))
    }

    fn run_finished(_: RunOutcome) -> Option<Command> {
        Some(Command::Notified)
    }

    fn send_failed(failure: SendFailure) -> Option<Command> {
        let asked = if failure.of::<AskFor>().is_some() {
            AskedOfRequest::Create
        } else if failure.of::<AcceptOffer>().is_some() {
            AskedOfRequest::Accept
        } else if failure.of::<RequestCancellation>().is_some() {
            AskedOfRequest::Cancel
        } else {
            return None;
        };
        Some(Command::RequestRefused { request_id: failure.key, asked, reason: failure.reason })
    }
}

/// Whether this caller may send this command: the person theirs, and each other entity its own part.
fn may(state: &State, command: &Command, caller: &Caller) -> Result<(), Rejection> {
    let begins = state.created_at.is_none() && caller.user_id().is_some();
    let owners = begins || caller.may_act_for(&state.owner_id, "request");
    let may = match command {
        Command::Take { .. }
        | Command::Cancel
        | Command::PutPush { .. }
        | Command::DropPush { .. }
        | Command::AwaitChange { .. } => owners,
        Command::RequestTold(told) => caller.is_the(REQUEST, &told.request_id),
        Command::RequestRefused { .. } | Command::Notified => caller.is_itself(),
    };
    if may {
        return Ok(());
    }
    let is_theirs = caller.user_id() == Some(&*state.owner_id);
    Err(if is_theirs { Rejection::InternalOnly } else { Rejection::NotFound })
}
