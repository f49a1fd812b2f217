//! A run: an agent at work for a person, step by step. Each turn of its model and each call of a tool is an event, so a
//! run goes on where it was, whatever node dies.
//!
//! A run asks for [`Think`], one turn of the model, and for [`Act`], one call of a tool; what they came to are its next
//! events. A call that a person must allow waits for them, for days if need be.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::kernel::agent::RunTerms;
use crate::kernel::chat::{Cost, PromptMessage, ToolCall, Usage};
use crate::kernel::conversation::{AGENT_RUN, RunFollower};
use crate::kernel::entity::{
    DecideCx, Decided, Decision, Entity, Principal, Role, RunOutcome, Scopes,
};
use crate::kernel::outward::{Guarantee, OutwardEffect};
use crate::kernel::private::{Field, Private};
use crate::kernel::view::ViewRow;
use crate::kernel::work::Work;

mod rejection;
mod state;
mod steps;
#[cfg(test)]
mod tests;
mod view;

pub use rejection::Rejection;
pub use view::{
    ApprovalView, RunDelta, RunDetail, RunEnded, RunStep, RunView, RunWaiting, StepKind,
};

use steps::Steps;

/// Messages that wait for the agent.
const MAX_QUEUED: usize = 32;
/// Bytes of one message of a person.
const MAX_WORDS: usize = 64 << 10;
/// Calls of tools that one turn may ask for.
pub const MAX_CALLS: usize = 32;
const DEADLINE: &str = "deadline";
const APPROVAL: &str = "approval";

#[derive(Debug)]
pub struct AgentRun;

/// A message of a conversation with a model.
pub enum Spoken {}
/// A call that a model asked for.
pub enum Called {}

impl Field for Spoken {
    const NAME: &'static str = "run.message";
}

impl Field for Called {
    const NAME: &'static str = "run.call";
}

pub type StoredMessage = Arc<Private<PromptMessage, Spoken>>;

/// One turn of the model.
pub enum Think {}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Turn {
    pub turn: u32,
}

impl Work for Think {
    const NAME: &'static str = "agents.think";
    type Input = Turn;
    type Outcome = Thought;
    const REPEATABLE: bool = true;
}

/// One call of a tool, which must not happen twice.
pub enum Act {}

/// One call of a tool that commits here, or whose other side recognises a repetition.
pub enum RepeatableAct {}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UseOf {
    pub use_id: u32,
}

impl Work for Act {
    const NAME: &'static str = "agents.act";
    type Input = UseOf;
    type Outcome = Acted;
}

impl Work for RepeatableAct {
    const NAME: &'static str = "agents.repeatable_act";
    type Input = UseOf;
    type Outcome = Acted;
    const REPEATABLE: bool = true;
}

/// What came of a turn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Thought {
    Answered(Box<TurnAnswer>),
    Failed {
        reason: String,
        message: String,
        usage: Usage,
        cost: Cost,
    },
    /// The run has gone on without it.
    Over,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TurnAnswer {
    pub text: String,
    pub calls: Vec<ProposedCall>,
    pub model: String,
    pub usage: Usage,
    pub cost: Cost,
    /// Earlier begins of this turn whose end nobody knows: their calls may have been charged too.
    #[serde(default)]
    pub repeated: u32,
    /// The agent that goes on with the conversation.
    #[serde(default)]
    pub hand_over: Option<HandOver>,
}

/// A call of a tool, as it was checked against the agent's definition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProposedCall {
    pub call: ToolCall,
    pub guarantee: Guarantee,
    pub asks_first: bool,
    /// Why it is not made. The model is told.
    pub refusal: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HandOver {
    pub agent: String,
    pub version: String,
    pub terms: RunTerms,
}

/// A task of an agent of others, as it was when a message became part of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerTask {
    pub id: String,
    pub context_id: String,
    /// The call whose message came last.
    pub use_id: u32,
}

/// What came of a call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Acted {
    Returned {
        content: String,
        is_error: bool,
    },
    /// It was begun before, and nobody knows how it ended.
    Unknown,
    /// The run does not want it any more.
    Over,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    Start(Box<RunOrder>),
    /// What a person says to a run, also to one that has answered.
    Say {
        text: PromptMessage,
    },
    /// A person's word on a call that waits: by its arguments, so that it is this call and no other.
    Decide {
        use_id: u32,
        arguments: String,
        allow: bool,
    },
    Cancel,
    /// Query: the run and its conversation.
    Show,
    /// Query of its runners.
    Turn {
        turn: u32,
    },
    /// Query of its runners.
    Use {
        use_id: u32,
    },
    /// Query of its runners, which waits until the turn is over.
    TurnOver {
        turn: u32,
    },
    /// Query of its runners, which waits until the call is no longer wanted.
    UseOver {
        use_id: u32,
    },
    Thought {
        turn: u32,
        thought: Thought,
    },
    Acted {
        use_id: u32,
        acted: Acted,
    },
    /// An agent of others has taken the message of this call.
    Delivered {
        use_id: u32,
        task: PeerTask,
    },
    /// The timer's: it has worked for too long.
    TimeOut,
    /// The timer's: calls have waited for too long.
    ApprovalsExpire,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunOrder {
    pub agent: String,
    pub version: String,
    pub terms: RunTerms,
    /// The agent acts in these scopes and no others.
    pub scopes: Scopes,
    pub words: PromptMessage,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    Started {
        owner: String,
        role: Role,
        scopes: Scopes,
        agent: String,
        version: String,
        terms: RunTerms,
        words: StoredMessage,
        /// The entity in whose conversation it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        follower: Option<RunFollower>,
        at: Timestamp,
    },
    Said {
        words: StoredMessage,
        at: Timestamp,
    },
    /// The model is asked, with so many of the messages that waited.
    TurnBegan {
        turn: u32,
        takes: u32,
        /// It is asked for a summary of so many messages, the oldest ones.
        summarises: Option<u32>,
        at: Timestamp,
    },
    Thought {
        turn: u32,
        answer: StoredMessage,
        uses: Vec<NewUse>,
        model: String,
        usage: Usage,
        cost: Cost,
        repeated: u32,
        at: Timestamp,
    },
    Summarised {
        turn: u32,
        summary: StoredMessage,
        usage: Usage,
        cost: Cost,
        repeated: u32,
        at: Timestamp,
    },
    Interrupted {
        turn: u32,
        at: Timestamp,
    },
    Allowed {
        use_id: u32,
        at: Timestamp,
    },
    Returned {
        use_id: u32,
        result: StoredMessage,
        is_error: bool,
        effect: OutwardEffect,
        at: Timestamp,
    },
    /// A message has become part of a task that an agent of others works on.
    Delivered {
        conversation: String,
        task: PeerTask,
        at: Timestamp,
    },
    OutcomeUnknown {
        use_id: u32,
        until: Timestamp,
        at: Timestamp,
    },
    HandedOver {
        to: HandOver,
        at: Timestamp,
    },
    Ended {
        status: RunStatus,
        reason: Option<String>,
        /// What was spent and brought no answer.
        #[serde(default)]
        cost: Cost,
        at: Timestamp,
    },
}

/// A call as it becomes part of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewUse {
    pub tool: String,
    pub call: Arc<Private<ToolCall, Called>>,
    pub guarantee: Guarantee,
    pub effect: OutwardEffect,
    /// Until when a person may allow it.
    pub until: Option<Timestamp>,
    /// Where it is not made at all.
    pub refused: Option<StoredMessage>,
}

#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    #[default]
    Running,
    /// For a person.
    Waiting,
    /// The agent has answered. Whoever says more goes on with it.
    Answered,
    Failed,
    Cancelled,
}

/// A run as far as its runner for [`Think`] has to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TurnWork {
    pub agent: String,
    pub version: String,
    pub owner: String,
    pub messages: Vec<StoredMessage>,
    pub summarises: Option<u32>,
    /// What the run may still spend.
    pub left: Cost,
    /// Whether somebody goes on without it as soon as it stops: then it does not wait for a model that is away.
    #[serde(default)]
    pub is_awaited: bool,
}

/// A call as far as its runner for [`Act`] has to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UseWork {
    pub version: String,
    pub owner: String,
    pub role: Role,
    pub scopes: Scopes,
    pub call: Arc<Private<ToolCall, Called>>,
    pub guarantee: Guarantee,
    /// The task that an agent of others works on, where the call goes on with one.
    #[serde(default)]
    pub task: Option<PeerTask>,
    #[serde(default)]
    pub follower: Option<RunFollower>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    Run(RunView),
    Shown(Box<RunDetail>),
    Turn(Box<TurnWork>),
    Use(Box<UseWork>),
    /// What was asked for is over.
    Over,
    Done,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Empty: it has not begun.
    owner: String,
    role: Option<Role>,
    scopes: Scopes,
    agent: String,
    version: String,
    terms: RunTerms,
    follower: Option<RunFollower>,
    /// Messages of the person so far.
    said: u32,
    /// The model that thought last.
    model: Option<String>,
    status: RunStatus,
    reason: Option<String>,
    messages: Vec<StoredMessage>,
    queue: Vec<StoredMessage>,
    turn: u32,
    phase: Phase,
    uses: Vec<ToolUse>,
    /// The number of uses of all turns.
    used: u32,
    /// How often each call was asked for, by tool and arguments.
    same: BTreeMap<u64, u32>,
    usage: Usage,
    cost: Cost,
    /// Begun turns whose end nobody knows.
    repeated: u32,
    /// Tasks of agents of others, by tool and conversation.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tasks: BTreeMap<String, PeerTask>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// Between turns.
    #[default]
    Idle,
    Thinking {
        summarises: Option<u32>,
    },
    Acting,
}

/// A call of the current turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ToolUse {
    id: u32,
    tool: String,
    call: Arc<Private<ToolCall, Called>>,
    guarantee: Guarantee,
    effect: OutwardEffect,
    until: Option<Timestamp>,
    result: Option<StoredMessage>,
}

impl State {
    fn is_over(&self) -> bool {
        matches!(self.status, RunStatus::Failed | RunStatus::Cancelled)
    }

    fn is_thinking(&self, turn: u32) -> bool {
        matches!(self.phase, Phase::Thinking { .. }) && self.turn == turn && !self.is_over()
    }

    /// Whether a call is with its runner.
    fn wants(&self, use_id: u32) -> bool {
        let is_dispatched = |one: &ToolUse| one.effect == OutwardEffect::Dispatched;
        !self.is_over() && self.use_of(use_id).is_some_and(is_dispatched)
    }

    fn use_of(&self, use_id: u32) -> Option<&ToolUse> {
        self.uses.iter().find(|one| one.id == use_id)
    }

    fn waits_for_a_person(&self) -> impl Iterator<Item = &ToolUse> {
        use OutwardEffect::{Planned, Unknown};
        self.uses.iter().filter(|one| matches!(one.effect, Planned | Unknown))
    }
}

impl Entity for AgentRun {
    const KIND: &'static str = AGENT_RUN;
    const GOLDEN: &'static str = include_str!("golden/agent_run.jsonl");
    const HAS_TOPIC: bool = true;
    const PRIVATE: bool = true;

    crate::own_types!();

    fn decide(state: &State, command: Command, cx: &DecideCx<'_>) -> Decided<Self> {
        if let Command::Start(start) = command {
            return steps::start(state, *start, cx);
        }
        // Somebody else's run is none.
        let follows = state.follower.as_ref().is_some_and(|follower| follower.is(cx.caller));
        let may = follows || cx.caller.may_act_for(&state.owner, "run");
        if state.owner.is_empty() || !may {
            return Err(Rejection::Unknown);
        }
        let is_persons = matches!(
            command,
            Command::Say { .. } | Command::Decide { .. } | Command::Cancel | Command::Show
        );
        if !is_persons && !cx.caller.is_itself() {
            return Err(Rejection::Internal);
        }
        let asked = match command {
            Command::Show => Reply::Shown(Box::new(view::detail(cx.key, state))),
            Command::Turn { turn } => state.turn_work(turn),
            Command::Use { use_id } => state.use_work(use_id),
            Command::TurnOver { turn } if state.is_thinking(turn) => return Ok(Decision::wait()),
            Command::UseOver { use_id } if state.wants(use_id) => return Ok(Decision::wait()),
            Command::TurnOver { .. } | Command::UseOver { .. } => Reply::Over,
            command => return changed(state, command, is_persons, cx),
        };
        Ok(Decision::reply(asked))
    }

    fn evolve(state: &mut State, event: &Event) {
        state::evolve(state, event);
    }

    fn is_query(command: &Command) -> bool {
        use Command::{Show, Turn, TurnOver, Use, UseOver};
        matches!(command, Show | Turn { .. } | Use { .. } | TurnOver { .. } | UseOver { .. })
    }

    fn acts_for(_key: &str, state: &State) -> Option<Principal> {
        let (user_id, scopes) = (state.owner.clone(), state.scopes.clone());
        (!user_id.is_empty()).then_some(Principal { user_id, scopes })
    }

    /// Lists show what a run waits for and how it ended. How far it is at this moment is the run's own answer.
    fn project(key: &str, state: &State, events: &[Event]) -> Vec<ViewRow> {
        let is_shown = |event: &Event| {
            use Event::{Allowed, Ended, HandedOver, Returned, Said, Started};
            let is_shown = matches!(event, Started { .. } | Said { .. } | Allowed { .. });
            is_shown
                || matches!(event, Ended { .. } | HandedOver { .. })
                || (matches!(event, Returned { .. }) && state.status == RunStatus::Waiting)
        };
        let is_shown = state.status == RunStatus::Waiting || events.iter().any(is_shown);
        is_shown.then(|| ViewRow::of(&view::row(key, state))).into_iter().collect()
    }

    fn run_finished(outcome: RunOutcome) -> Option<Command> {
        let number = outcome.tag.parse().ok()?;
        match outcome.runner.as_str() {
            Think::NAME => {
                let thought = outcome.of::<Think>().unwrap_or_else(|message| Thought::Failed {
                    reason: "model_unavailable".into(),
                    message,
                    usage: Usage::default(),
                    cost: Cost(0),
                });
                Some(Command::Thought { turn: number, thought })
            }
            Act::NAME => {
                let acted = outcome.of::<Act>().unwrap_or(Acted::Unknown);
                Some(Command::Acted { use_id: number, acted })
            }
            RepeatableAct::NAME => {
                let acted = outcome.of::<RepeatableAct>().unwrap_or(Acted::Unknown);
                Some(Command::Acted { use_id: number, acted })
            }
            _ => None,
        }
    }
}

/// What follows from a command that is no query.
fn changed(
    state: &State,
    command: Command,
    is_persons: bool,
    cx: &DecideCx<'_>,
) -> Decided<AgentRun> {
    let mut steps = Steps::new(state, cx);
    match command {
        Command::Start(_)
        | Command::Show
        | Command::Turn { .. }
        | Command::Use { .. }
        | Command::TurnOver { .. }
        | Command::UseOver { .. } => return Err(Rejection::Internal),
        Command::Say { text } => steps.say(text)?,
        Command::Decide { use_id, arguments, allow } => {
            steps.person_decides(use_id, &arguments, allow)?;
        }
        Command::Cancel if state.is_over() => {}
        Command::Cancel => steps.end(RunStatus::Cancelled, None, Cost(0)),
        Command::TimeOut if state.status == RunStatus::Running => {
            steps.end(RunStatus::Failed, Some("too_slow"), Cost(0));
        }
        Command::TimeOut => {}
        Command::ApprovalsExpire => steps.approvals_expire(),
        Command::Thought { turn, thought } => steps.thought(turn, thought),
        Command::Acted { use_id, acted } => steps.acted(use_id, acted),
        Command::Delivered { use_id, task } => steps.delivered(use_id, task),
    }
    let shown = is_persons.then(|| Reply::Run(steps.view()));
    Ok(steps.decision(shown.unwrap_or(Reply::Done)))
}
