//! Routes: chains of models, by how hard a question is.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::options::RouteOptions;
use super::router::{Complexity, Model, ModelAsk};
use crate::kernel::chat::Cost;

/// The models that a name of the configuration leads to.
pub(super) struct Route {
    simple: Vec<Arc<Model>>,
    complex: Vec<Arc<Model>>,
    pub max_cost: Option<Cost>,
    complex_from_tokens: u64,
    complex_from_tools: usize,
}

impl Route {
    pub fn new(
        options: &RouteOptions,
        models: &BTreeMap<String, Arc<Model>>,
    ) -> Result<Self, String> {
        let chain = |field: &str, names: &[String]| {
            let found = names.iter().map(|name| {
                let unknown = || format!("{field}: there is no [ai.models.\"{name}\"]");
                models.get(name).cloned().ok_or_else(unknown)
            });
            found.collect::<Result<Vec<_>, _>>()
        };
        let simple = chain("simple", &options.simple)?;
        let complex = chain("complex", &options.complex)?;
        let (simple, complex) = match (simple.is_empty(), complex.is_empty()) {
            (true, true) => return Err("simple: a route has at least one model".into()),
            (true, false) => (complex.clone(), complex),
            (false, true) => (simple.clone(), simple),
            (false, false) => (simple, complex),
        };
        let max_cost = match options.max_cost.as_str() {
            "" => None,
            text => {
                let wrong = || format!("max_cost: {text:?} is no price; \"0.05\" would be one");
                Some(Cost::parse(text).ok_or_else(wrong)?)
            }
        };
        Ok(Self {
            simple,
            complex,
            max_cost,
            complex_from_tokens: options.complex_from_tokens.unwrap_or(2_000),
            complex_from_tools: options.complex_from_tools.unwrap_or(4),
        })
    }

    pub fn models(&self, ask: &ModelAsk<'_>) -> &Vec<Arc<Model>> {
        let is_complex = ask.prompt.tools.len() >= self.complex_from_tools
            || ask.prompt.estimated_tokens() >= self.complex_from_tokens;
        let by_rule = if is_complex { Complexity::Complex } else { Complexity::Simple };
        match ask.complexity.unwrap_or(by_rule) {
            Complexity::Simple => &self.simple,
            Complexity::Complex => &self.complex,
        }
    }
}
