//! Runners of agents: the start of one in a conversation, one turn of a model, and one call of a tool.

mod act;
mod engage;
mod outside;
mod said;
mod think;

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;

pub use act::Actor;
pub use engage::Engager;
pub use think::Thinker;

use super::domain::run::{self, AgentRun};
use super::domain::version::{AgentVersion, Command, Reply};
use crate::cluster::{CommandMeta, Entities};
use crate::contract::Services;
use crate::contract::runner::RunError;
use crate::kernel::agent::AgentDefinition;
use crate::kernel::entity::Caller;
use crate::kernel::error::AskError;

/// A look whether something is still wanted ends after so long, and is taken again.
const LOOK: Duration = Duration::from_secs(60);

/// The definitions that runs of this node use, by version. They never change.
#[derive(Clone)]
struct Versions(Cache<String, Arc<AgentDefinition>>);

impl Versions {
    fn new() -> Self {
        Self(Cache::new(1_000))
    }

    async fn get(
        &self,
        services: &Services,
        version: &str,
    ) -> Result<Arc<AgentDefinition>, RunError> {
        if let Some(known) = self.0.get(version) {
            return Ok(known);
        }
        let stored = services.entities.of::<AgentVersion>(version);
        match stored.ask(Command::Show, CommandMeta::runtime()).await.map_err(later)? {
            Ok(Reply::Shown(definition)) => {
                let definition: Arc<AgentDefinition> = Arc::from(definition);
                self.0.insert(version.to_owned(), definition.clone());
                Ok(definition)
            }
            Ok(Reply::Defined) => Err(RunError::Final("a version shows itself".into())),
            Err(rejection) => Err(RunError::Final(rejection.to_string())),
        }
    }
}

/// Until the run has gone on without what this query waits for.
async fn over(entities: &Entities, key: &str, query: run::Command) {
    let run = entities.of::<AgentRun>(key);
    loop {
        let meta = CommandMeta::within(LOOK, Caller::Runtime);
        if let Ok(Ok(run::Reply::Over)) = run.ask(query.clone(), meta).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn later(error: AskError) -> RunError {
    RunError::Retry(error.to_string())
}
