//! What configuration says of models and of what may be spent on them.

use crate::ai::options::Options;
use crate::ai::{ModelRouter, OutsideTools};
use crate::contract::section::Section;
use crate::systems::agents::domain::budget::{Allowance, Period};

/// The models of this node, and what a person may spend where nobody has said otherwise.
pub struct Models {
    pub router: ModelRouter,
    /// The tools of outside servers.
    pub outside: OutsideTools,
    pub allowance: Option<Allowance>,
}

impl Section for Options {
    const NAME: &'static str = "ai";
    type Ready = Models;

    fn prepare(&self) -> Result<Models, String> {
        let router = ModelRouter::new(self)?;
        let outside = OutsideTools::new(&self.servers)?;
        let limit = self.daily_limit().map_err(|why| format!("ai.daily_limit: {why}"))?;
        let allowance =
            limit.map(|limit| Allowance { limit, warn_percent: 80, period: Period::Day });
        Ok(Models { router, outside, allowance })
    }
}
