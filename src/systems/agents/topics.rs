//! The topics of agents.

use crate::contract::topic::Topic;
use crate::contract::{Call, Outcome};
use crate::kernel::entity::Entity;
use crate::systems::agents::domain::run::{AgentRun, Command};

/// What an agent does, for whom it works.
pub struct RunSteps;

impl Topic for RunSteps {
    const KIND: &'static str = AgentRun::KIND;
    const SUMMARY: &'static str = "A run of an agent, for its owner";
    const SCOPE: &'static str = "run";

    async fn may_listen(call: &Call, key: &str) -> Outcome<()> {
        call.ask::<AgentRun>(key, Command::Show, call.undeduplicated()).await.map(drop)
    }
}
