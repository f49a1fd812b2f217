//! The start of a run, in the conversation of an entity.

use std::time::Duration;

use super::later;
use crate::cluster::CommandMeta;
use crate::contract::runner::{
    LateServices, RunCx, RunError, RunLimits, Runner, RunnerParts, SystemRunner,
};
use crate::kernel::conversation::{Engage, Engagement};
use crate::kernel::entity::{Caller, Rejection as _};
use crate::systems::agents::api::has_models;
use crate::systems::agents::definitions::Agents;
use crate::systems::agents::domain::run::{AgentRun, Command, Rejection, RunOrder};

pub struct Engager {
    services: LateServices,
}

impl SystemRunner for Engager {
    fn new(parts: &RunnerParts) -> Self {
        Self { services: parts.services.clone() }
    }
}

impl Runner for Engager {
    type Work = Engage;
    /// Whoever asks goes on without an agent when none comes.
    const LIMITS: RunLimits = RunLimits {
        timeout: Duration::from_secs(15),
        concurrent: 512,
        give_up_after: Duration::from_secs(30),
        ..RunLimits::DEFAULT
    };

    /// Starts it for the person for whom the entity asks, which then follows the run.
    async fn run(&self, cx: RunCx, engagement: Engagement) -> Result<(), RunError> {
        let end = |reason: &str| RunError::Final(reason.to_owned());
        let Engagement { agent: name, run_id, words, owner } = engagement;
        let services = self.services.get()?;
        if !has_models(&services) {
            return Err(end("no_model"));
        }
        let words = words.reveal().cloned().ok_or_else(|| end("erased"))?;
        let agents = services.settings.get::<Agents>().ok_or_else(|| end("no_agents"))?;
        let all = agents.all(&services).map_err(|why| {
            tracing::error!(why, "the agents of this node are not what the configuration says");
            end("agents_misconfigured")
        })?;
        let agent = all.get(&name);
        let agent = agent.ok_or_else(|| end("no_such_agent"))?;
        let agent = agents.store(&services, agent).await.map_err(later)?;
        let order = RunOrder {
            agent: name,
            version: agent.version.clone(),
            terms: agent.definition.terms,
            scopes: agent.definition.scopes.clone(),
            words,
        };
        let (kind, key) = (cx.kind.to_owned(), cx.key.to_string());
        let for_user = cx.principal.clone().or(owner);
        let caller = Caller::Entity { kind, key, for_user };
        let run = services.entities.of::<AgentRun>(run_id);
        let meta = CommandMeta::new(caller).id(&cx.id);
        match run.ask(Command::Start(Box::new(order)), meta).await.map_err(later)? {
            // Busy: an earlier attempt has started it.
            Ok(_) | Err(Rejection::Busy) => Ok(()),
            Err(rejection) => Err(end(rejection.reason())),
        }
    }
}
