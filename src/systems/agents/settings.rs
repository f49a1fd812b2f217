//! What configuration says of models and of what may be spent on them.

use serde::Deserialize;

use crate::ai::options::SemanticOptions;
use crate::ai::peers::options::Options as OutsideOptions;
use crate::ai::peers::{Outside, OutsideAgents, PushSender};
use crate::ai::{ModelRouter, Options, OutsideTools};
use crate::contract::Services;
use crate::contract::section::Section;
use crate::kernel::secret::Secret;
use crate::systems::agents::domain::budget::{Allowance, Period};

/// The models of this node, and what a person may spend where nobody has said otherwise.
pub struct Models {
    pub router: ModelRouter,
    /// The tools of outside servers.
    pub outside: OutsideTools,
    pub allowance: Option<Allowance>,
    pub semantic_cache: SemanticOptions,
    secrets: Vec<Secret<String>>,
}

impl Models {
    /// The secrets of this node that its agents are near: none of them is said or passed on.
    pub fn withheld(&self, services: &Services) -> Vec<Secret<String>> {
        let peers = services.settings.get::<Outside>();
        let tokens = peers.into_iter().flat_map(|outside| outside.agents.tokens());
        self.secrets.iter().chain(tokens).cloned().collect()
    }
}

/// The section `[a2a]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct OutsideSection(pub OutsideOptions);

impl Section for OutsideSection {
    const NAME: &'static str = "a2a";
    type Ready = Outside;

    fn prepare(&self) -> Result<Outside, String> {
        Ok(Outside { push: PushSender::new(&self.0)?, agents: OutsideAgents::new(&self.0)? })
    }
}

/// The section `[ai]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct AiSection(pub Options);

impl Section for AiSection {
    const NAME: &'static str = "ai";
    type Ready = Models;

    fn prepare(&self) -> Result<Models, String> {
        let router = ModelRouter::new(&self.0)?;
        let outside = OutsideTools::new(&self.0.servers)?;
        let limit = self.0.daily_limit().map_err(|why| format!("ai.daily_limit: {why}"))?;
        let allowance =
            limit.map(|limit| Allowance { limit, warn_percent: 80, period: Period::Day });
        let semantic_cache = self.0.semantic_cache.clone();
        semantic_cache.check().map_err(|why| format!("ai.semantic_cache.{why}"))?;
        let secrets = self.0.secrets();
        Ok(Models { router, outside, allowance, semantic_cache, secrets })
    }
}

/// The section `[memory]`: what people's agents may remember.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemorySettings {
    /// Memories of a person.
    pub max: i64,
    /// Of one memory, and of what one is looked for by.
    pub max_bytes: usize,
    /// Whoever has fewer has each of them compared; the others' are looked up in an index, which may miss some.
    pub exact_below: i64,
}

impl Default for MemorySettings {
    fn default() -> Self {
        Self { max: 10_000, max_bytes: 8_192, exact_below: 5_000 }
    }
}

impl Section for MemorySettings {
    const NAME: &'static str = "memory";
    type Ready = Self;

    fn prepare(&self) -> Result<Self, String> {
        if self.max_bytes == 0 || self.max_bytes > 65_536 {
            return Err("memory.max_bytes: must be 1 to 65536".into());
        }
        Ok(self.clone())
    }
}
