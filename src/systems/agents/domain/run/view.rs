//! A run as people see it.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{RunStatus, State, ToolUse};
use crate::kernel::chat::{Cost, Part, PromptMessage};
use crate::kernel::entity::{Announcement, to_value};
use crate::kernel::ids::digest;
use crate::kernel::outward::OutwardEffect;
use crate::kernel::view::{Listed, View};

/// A run in a list, without anybody's words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunView {
    pub id: String,
    pub owner_id: String,
    pub agent: String,
    /// The version of the agent that it began with, or that it was handed to.
    pub version: String,
    pub status: RunStatus,
    /// Why it failed: `too_many_turns`, `too_expensive`, `too_slow`, `loop`, or what the model's failure was.
    pub reason: Option<String>,
    /// Questions to the model so far.
    pub turns: i64,
    /// Calls of tools that wait for the owner.
    pub waiting: i64,
    pub input_tokens: i64,
    pub output_tokens: i64,
    /// In billionths of a US dollar.
    pub cost: i64,
    /// Questions whose end nobody knows, since a node died: they may have been charged too.
    pub repeated: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl View for RunView {
    const NAME: &'static str = "agent_runs";
    const LISTED: Option<Listed> = Listed::by("owner_id", "created_at");
}

/// A run with its conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunDetail {
    pub run: RunView,
    pub messages: Vec<SpokenView>,
    /// Calls that wait for the owner's word.
    pub approvals: Vec<ApprovalView>,
    /// Messages that the agent has not seen yet.
    pub queued: Vec<SpokenView>,
}

/// A message of the conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SpokenView {
    /// `user`, `assistant` or `tool`.
    pub role: String,
    pub text: String,
    /// The tools that it asks for, or whose result it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// The number of its pictures.
    #[serde(default, skip_serializing_if = "is_none")]
    pub images: u32,
}

fn is_none(number: &u32) -> bool {
    *number == 0
}

/// A call that waits for a person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalView {
    pub use_id: u32,
    pub tool: String,
    pub arguments: Value,
    /// What an approval names, so that it is for these arguments and no others.
    pub arguments_hash: String,
    /// It was begun, and nobody knows whether it has happened: to allow it is to do it again.
    pub is_unknown: bool,
    pub until: Option<Timestamp>,
}

/// A run has taken a step.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct RunStep {
    pub run_id: String,
    pub turn: u32,
    pub step: StepKind,
    /// What the model said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The tools that it asks for, or the one that has returned.
    pub tools: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The call that has returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_id: Option<u32>,
    pub is_error: bool,
    pub at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// The model has answered.
    Thought,
    /// A call has its result.
    Returned,
}

impl Announcement for RunStep {
    const EVENT: &'static str = "run:step";
    const SUMMARY: &'static str = "An agent has taken a step";
    const TOPICS: &'static [&'static str] = &["agent_run"];
}

/// A run waits for its owner.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct RunWaiting {
    pub run: RunView,
}

impl Announcement for RunWaiting {
    const EVENT: &'static str = "run:waiting";
    const SUMMARY: &'static str = "An agent waits for its person's word";
    const TOPICS: &'static [&'static str] = &["agent_run", "user"];
}

/// A run has answered, failed or been cancelled.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct RunEnded {
    pub run: RunView,
}

impl Announcement for RunEnded {
    const EVENT: &'static str = "run:ended";
    const SUMMARY: &'static str = "An agent has answered, or has stopped";
    const TOPICS: &'static [&'static str] = &["agent_run"];
}

/// Words of an answer, as they come.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct RunDelta {
    pub run_id: String,
    pub turn: u32,
    pub text: String,
}

impl Announcement for RunDelta {
    const EVENT: &'static str = "run:delta";
    const SUMMARY: &'static str = "Words of an agent's answer, as they come";
    const TOPICS: &'static [&'static str] = &["agent_run"];
    const DURABLE: bool = false;
}

pub fn row(key: &str, state: &State) -> RunView {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let Cost(cost) = state.cost;
    RunView {
        id: key.into(),
        owner_id: state.owner.clone(),
        agent: state.agent.clone(),
        version: state.version.clone(),
        status: state.status,
        reason: state.reason.clone(),
        turns: state.turn.into(),
        waiting: state.waits_for_a_person().count() as i64,
        input_tokens: number(state.usage.input + state.usage.cached_input),
        output_tokens: number(state.usage.output),
        cost: number(cost),
        repeated: state.repeated.into(),
        created_at: state.created_at,
        updated_at: state.updated_at,
    }
}

pub fn detail(key: &str, state: &State) -> RunDetail {
    let shown =
        |message: &super::StoredMessage| message.reveal().map(spoken).unwrap_or_else(erased);
    let approvals = state.waits_for_a_person().map(|one| ApprovalView {
        use_id: one.id,
        tool: one.tool.clone(),
        arguments: one.call.reveal().map(|call| call.arguments.clone()).unwrap_or_default(),
        arguments_hash: arguments_of(one),
        is_unknown: one.effect == OutwardEffect::Unknown,
        until: one.until,
    });
    RunDetail {
        run: row(key, state),
        messages: state.messages.iter().map(shown).collect(),
        approvals: approvals.collect(),
        queued: state.queue.iter().map(shown).collect(),
    }
}

/// A hash of exactly what a call would do.
pub fn arguments_of(one: &ToolUse) -> String {
    let arguments = one.call.reveal().map(|call| to_value(&call.arguments));
    digest(&format!("{}\n{}", one.tool, arguments.unwrap_or_default()))
}

fn erased() -> SpokenView {
    SpokenView { role: "erased".into(), text: String::new(), tools: Vec::new(), images: 0 }
}

fn spoken(message: &PromptMessage) -> SpokenView {
    match message {
        PromptMessage::User { parts } => {
            let texts = parts.iter().filter_map(|part| match part {
                Part::Text { text } => Some(text.as_str()),
                Part::Image { .. } | Part::Photo { .. } => None,
            });
            let text = texts.collect::<Vec<_>>().join("\n");
            let images = parts.iter().filter(|part| part.is_picture()).count();
            SpokenView { role: "user".into(), text, tools: Vec::new(), images: images as u32 }
        }
        PromptMessage::Assistant { text, calls } => {
            let tools = calls.iter().map(|call| call.name.clone()).collect();
            SpokenView { role: "assistant".into(), text: text.clone(), tools, images: 0 }
        }
        PromptMessage::Tool { name, content, .. } => {
            let tools = vec![name.clone()];
            SpokenView { role: "tool".into(), text: content.clone(), tools, images: 0 }
        }
    }
}
