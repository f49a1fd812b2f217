//! What configuration says of models and of what may be spent on them.

use serde::Deserialize;

use crate::ai::{ModelRouter, Options};
use crate::contract::section::Section;
use crate::systems::agents::domain::budget::{Allowance, Period};

/// The models of this node, and what a person may spend where nobody has said otherwise.
pub struct Models {
    pub router: ModelRouter,
    pub allowance: Option<Allowance>,
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
        let limit = self.0.daily_limit().map_err(|why| format!("ai.daily_limit: {why}"))?;
        let allowance =
            limit.map(|limit| Allowance { limit, warn_percent: 80, period: Period::Day });
        Ok(Models { router, allowance })
    }
}
