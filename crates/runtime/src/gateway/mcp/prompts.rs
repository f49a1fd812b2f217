//! The prompts that systems declare, in the words of MCP: texts with fields, and queries that answer content.

use std::collections::BTreeMap;

use rmcp::model::{Prompt, PromptArgument};
use serde_json::Value;

use crate::contract::content;
use crate::contract::operation::Sort;
use crate::contract::prompt::{AgentPrompt, PromptField};
use crate::contract::{Declared, System};

pub struct Prompts(BTreeMap<&'static str, OfferedPrompt>);

#[derive(Clone, Copy)]
pub enum OfferedPrompt {
    Text(&'static AgentPrompt),
    Query(&'static Declared),
}

impl Prompts {
    pub fn of(systems: &'static [&'static System]) -> Self {
        let texts = systems.iter().flat_map(|system| system.prompts);
        let texts = texts.map(|prompt| (prompt.name, OfferedPrompt::Text(prompt)));
        let queries = systems.iter().flat_map(|system| system.operations);
        let queries = queries.filter_map(|query| {
            let name = query.meta.prompt?;
            let is_content = query.answer_schema() == *content::schema();
            assert!(is_content && query.meta.sort == Sort::Query, "a query for content: {name}");
            Some((name, OfferedPrompt::Query(query)))
        });
        let mut prompts = BTreeMap::new();
        for (name, prompt) in texts.chain(queries) {
            let taken = prompts.insert(name, prompt);
            assert!(taken.is_none(), "the name of a prompt is unique: {name}");
        }
        Self(prompts)
    }

    pub fn get(&self, name: &str) -> Option<OfferedPrompt> {
        self.0.get(name).copied()
    }

    /// The texts among them.
    pub fn texts(&self) -> impl Iterator<Item = &'static AgentPrompt> {
        self.0.values().filter_map(|prompt| match prompt {
            OfferedPrompt::Text(prompt) => Some(*prompt),
            OfferedPrompt::Query(_) => None,
        })
    }

    /// Those whose queries the caller may make.
    pub fn shown(&self, allows: impl Fn(&Declared) -> bool) -> Vec<Prompt> {
        let allowed = self.0.iter().filter(|(_, prompt)| match prompt {
            OfferedPrompt::Text(_) => true,
            OfferedPrompt::Query(query) => allows(query),
        });
        allowed.map(|(name, prompt)| prompt.shown(name)).collect()
    }
}

impl OfferedPrompt {
    fn shown(&self, name: &str) -> Prompt {
        match self {
            Self::Text(prompt) => {
                let argument = |field: &PromptField| {
                    PromptArgument::new(field.name)
                        .with_description(field.summary)
                        .with_required(field.default.is_none())
                };
                let arguments = prompt.fields.iter().map(argument).collect();
                Prompt::new(prompt.name, Some(prompt.summary), Some(arguments))
            }
            Self::Query(query) => {
                let arguments = arguments(&query.input_schema());
                Prompt::new(name, Some(query.meta.summary), Some(arguments))
            }
        }
    }
}

/// The fields of a query's input as arguments.
fn arguments(schema: &Value) -> Vec<PromptArgument> {
    let required: Vec<&Value> = schema["required"].as_array().into_iter().flatten().collect();
    let fields = schema["properties"].as_object().into_iter().flatten();
    let argument = |(name, field): (&String, &Value)| {
        let argument = PromptArgument::new(name.clone())
            .with_required(required.iter().any(|one| *one == name));
        match field["description"].as_str() {
            Some(words) => argument.with_description(words),
            None => argument,
        }
    };
    fields.map(argument).collect()
}
