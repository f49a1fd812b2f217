//! Agents as data: who they are, what they may use, and how far they may go.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kernel::chat::{Cost, ToolSpec};
use crate::kernel::entity::{Scopes, to_value};
use crate::kernel::ids::digest;
use crate::kernel::outward::Guarantee;

/// One version of an agent, with everything that its runs depend on. It never changes: another prompt is another version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentDefinition {
    /// `assistant`.
    pub name: String,
    /// What the model is told about its part.
    pub instructions: String,
    /// A route or a model of the configuration. `None`: its default.
    #[serde(default)]
    pub route: Option<String>,
    pub tools: Vec<AgentTool>,
    /// Its tools of outside servers that were away when this version was made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub away: Vec<String>,
    /// The agent acts for its person in these scopes only.
    pub scopes: Scopes,
    /// Agents that it may hand a conversation to.
    #[serde(default)]
    pub hands_over_to: Vec<String>,
    pub terms: RunTerms,
    /// How long an answer may be.
    pub max_tokens: u32,
    #[serde(default)]
    pub temperature: Option<f64>,
}

impl AgentDefinition {
    /// The version's id, which follows from its content.
    pub fn version(&self) -> String {
        format!("ver_{}", digest(&to_value(self).to_string()))
    }

    pub fn tool(&self, name: &str) -> Option<&AgentTool> {
        self.tools.iter().find(|tool| tool.spec.name == name)
    }
}

/// A tool as an agent has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentTool {
    pub spec: ToolSpec,
    pub guarantee: Guarantee,
    /// Whether a person allows each call.
    pub asks_first: bool,
    #[serde(default, skip_serializing_if = "ToolPlace::is_here")]
    pub place: ToolPlace,
}

/// Where a tool's calls go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolPlace {
    /// To an operation of this node.
    #[default]
    Here,
    /// To an outside server, over MCP.
    Server,
    /// To an agent of others, over A2A.
    Peer,
}

impl ToolPlace {
    fn is_here(&self) -> bool {
        *self == Self::Here
    }
}

/// The terms of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunTerms {
    pub on_message: MessagePolicy,
    /// Questions to the model, summaries included.
    pub max_turns: u32,
    /// The run's own limit, besides its person's budget.
    pub max_cost: Cost,
    /// The time of uninterrupted work, without waiting for people.
    pub max_seconds: u32,
    /// How long a call waits for a person.
    pub approval_seconds: u32,
    /// The same call with the same arguments so often is a loop.
    pub max_same_calls: u32,
    /// A longer conversation is summarised, by estimate.
    pub context_tokens: u32,
}

impl Default for RunTerms {
    fn default() -> Self {
        Self {
            on_message: MessagePolicy::Enqueue,
            max_turns: 24,
            max_cost: Cost(Cost::DOLLAR / 2),
            max_seconds: 600,
            approval_seconds: 3 * 24 * 3_600,
            max_same_calls: 3,
            context_tokens: 24_000,
        }
    }
}

/// What becomes of a message that comes while an agent works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MessagePolicy {
    /// It waits until the agent has answered.
    #[default]
    Enqueue,
    /// It is refused.
    Reject,
    /// The model stops, and is asked again with the message.
    Interrupt,
    /// The model is not stopped, and sees the message with its next question.
    Steer,
}

impl MessagePolicy {
    /// Whether a message is taken with the next question, and not only after the answer.
    pub fn is_taken_soon(self) -> bool {
        matches!(self, Self::Interrupt | Self::Steer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_its_content() {
        let definition = AgentDefinition {
            name: "a".into(),
            instructions: "Help.".into(),
            route: None,
            tools: Vec::new(),
            away: Vec::new(),
            scopes: Scopes::ALL,
            hands_over_to: Vec::new(),
            terms: RunTerms::default(),
            max_tokens: 100,
            temperature: None,
        };
        let version = definition.version();
        assert_eq!(version, definition.clone().version());
        assert!(version.starts_with("ver_") && version.len() == 36);
        let mut other = definition.clone();
        other.instructions.push('!');
        assert_ne!(other.version(), version);
        let other =
            AgentDefinition { terms: RunTerms { max_turns: 1, ..definition.terms }, ..definition };
        assert_ne!(other.version(), version);
    }
}
