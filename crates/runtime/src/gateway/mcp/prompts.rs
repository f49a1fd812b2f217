//! The prompts that systems declare, in the words of MCP.

use std::collections::BTreeMap;

use rmcp::model::{Prompt, PromptArgument};

use crate::contract::System;
use crate::contract::prompt::{AgentPrompt, PromptField};

pub struct Prompts(BTreeMap<&'static str, &'static AgentPrompt>);

impl Prompts {
    pub fn of(systems: &'static [&'static System]) -> Self {
        let all = systems.iter().flat_map(|system| system.prompts);
        let mut prompts = BTreeMap::new();
        for prompt in all {
            let taken = prompts.insert(prompt.name, prompt);
            assert!(taken.is_none(), "the name of a prompt is unique: {}", prompt.name);
        }
        Self(prompts)
    }

    pub fn get(&self, name: &str) -> Option<&'static AgentPrompt> {
        self.0.get(name).copied()
    }

    pub fn all(&self) -> impl Iterator<Item = &'static AgentPrompt> {
        self.0.values().copied()
    }

    pub fn shown(&self) -> Vec<Prompt> {
        self.all().map(shown).collect()
    }
}

fn shown(prompt: &AgentPrompt) -> Prompt {
    let argument = |field: &PromptField| {
        PromptArgument::new(field.name)
            .with_description(field.summary)
            .with_required(field.default.is_none())
    };
    let arguments = prompt.fields.iter().map(argument).collect();
    Prompt::new(prompt.name, Some(prompt.summary), Some(arguments))
}
