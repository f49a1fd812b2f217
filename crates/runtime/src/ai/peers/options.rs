//! What the configuration says of agents of others: `[a2a]`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::kernel::secret::Secret;

/// The section `[a2a]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Whether notifications may go to this machine, and over http: for development.
    pub push_to_loopback: bool,
    /// The agents that ours may call, by name.
    pub agents: BTreeMap<String, OutsideAgentOptions>,
}

/// An agent of somebody's.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutsideAgentOptions {
    /// Its address, below which its card is.
    pub url: String,
    pub token: Secret<String>,
    /// What it is for, in the operator's words: our agents are told no others.
    pub summary: String,
    /// Who may call it.
    pub roles: Vec<String>,
    /// Whether it recognises a message by its id, so that one may be repeated.
    pub idempotent: bool,
    /// How long our agents wait for the end of a task that it works on.
    pub timeout_ms: u64,
}

impl Default for OutsideAgentOptions {
    fn default() -> Self {
        Self {
            url: String::new(),
            token: Secret::default(),
            summary: String::new(),
            roles: Vec::new(),
            idempotent: false,
            timeout_ms: 60_000,
        }
    }
}
