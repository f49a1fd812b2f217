//! Tasks that agents of others give to agents of ours, as values: what was said, where it stands, what came of it.

use std::fmt::{self, Debug};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kernel::clock::Timestamp;
use crate::kernel::private::{Field, Private};
use crate::kernel::view::{Listed, View};

/// Where a task stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    #[default]
    Submitted,
    Working,
    InputRequired,
    Completed,
    Failed,
    Canceled,
    Rejected,
}

impl TaskState {
    /// Whether nothing more can happen to it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled | Self::Rejected)
    }

    /// Whether the agent does nothing until it is told something.
    pub fn is_at_rest(self) -> bool {
        self.is_over() || self == Self::InputRequired
    }
}

/// Who said a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskAuthor {
    /// The agent that gave the task.
    Client,
    /// The agent that works on it.
    Agent,
}

/// A piece of a message or of a result. Text is for people: nothing is done because of its words alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskPart {
    Text(String),
    Data(Value),
}

/// A message about a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskMessage {
    pub id: String,
    pub by: TaskAuthor,
    pub parts: Vec<TaskPart>,
}

/// A result of a task. One with the same id takes the place of the one before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskArtifact {
    pub id: String,
    pub name: String,
    pub parts: Vec<TaskPart>,
    /// The task's version in which it last changed.
    pub version: u64,
}

/// An address to which a task's changes are sent, and what its owner wants to see there.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskPush {
    pub id: String,
    pub url: String,
    pub token: Option<String>,
    /// The scheme and the credentials of `Authorization`.
    pub scheme: Option<String>,
    pub credentials: Option<String>,
}

/// Without its secrets, since debug output ends up in logs.
impl Debug for TaskPush {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskPush").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The field of what was said about a task, and of what came of it.
#[derive(Debug)]
pub enum TaskContent {}

impl Field for TaskContent {
    const NAME: &'static str = "task";
}

/// What a task holds of its person.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskBody {
    /// The agent's last word.
    pub said: Option<TaskMessage>,
    /// Everything before it, as far as it is kept.
    pub history: Vec<TaskMessage>,
    pub artifacts: Vec<TaskArtifact>,
    pub pushes: Vec<TaskPush>,
}

/// A task as the store keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskRow {
    pub id: String,
    /// The person for whom it is done.
    pub owner_id: String,
    /// The address of the agent that works on it.
    pub agent: String,
    pub context_id: String,
    pub state: TaskState,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Counts its changes.
    pub version: u64,
    /// The version in which its state, or what is said about it, last changed.
    pub said_at_version: u64,
    pub body: Private<TaskBody, TaskContent>,
}

impl View for TaskRow {
    const NAME: &'static str = "tasks";
    const PRIVATE_TO: Option<(&'static str, &'static str)> = Some((TASK, "id"));
    const LISTED: Option<Listed> = Listed::by("owner_id", "updated_at");
}

/// The kind of the entities that keep tasks.
pub const TASK: &str = "task";

/// The tasks that somebody wants to see.
#[derive(Clone, Debug, Default)]
pub struct TaskFilter<'a> {
    pub owner: &'a str,
    pub agent: &'a str,
    pub context_id: Option<&'a str>,
    pub state: Option<TaskState>,
    pub changed_since: Option<Timestamp>,
}
