//! Assistants: the agents of our own that a system declares, as data.

use crate::kernel::agent::MessagePolicy;

/// An agent that thinks with a language model for whoever starts a run of it. The configuration may change it, and add
/// others (`[agents.NAME]`).
#[derive(Clone, Copy, Debug)]
pub struct Assistant {
    /// `assistant`: unique among all systems.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// What the model is told about its part.
    pub instructions: &'static str,
    /// The tools that it has, by their names. It acts in the scopes of these, and in no others.
    pub tools: &'static [&'static str],
    /// Those among them that it may call without asking its person first, although they bind, end something or reach outside.
    pub without_asking: &'static [&'static str],
    /// Other assistants that it may hand the conversation to.
    pub hands_over_to: &'static [&'static str],
    pub on_message: MessagePolicy,
    /// How long it may work on an answer. `None`: as usual.
    pub max_seconds: Option<u32>,
}
