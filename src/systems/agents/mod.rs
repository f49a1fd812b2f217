//! Agents: models that think for people, what they do for them, and what they may spend on it.

pub mod answers;
pub mod assistants;
pub mod definitions;
pub mod domain;
pub mod operations;
pub mod purse;
pub mod runners;
pub mod settings;
pub mod topics;

use crate::contract::System;
use crate::contract::declare::{announcement, entity, operation, runner, section, topic, view};
use domain::{budget, run, version};
use operations::{models, runs, usage};

pub const SYSTEM: System = System {
    entities: &[
        entity::<budget::Budget>(),
        entity::<version::AgentVersion>(),
        entity::<run::AgentRun>(),
    ],
    operations: &[
        operation::<models::Complete>(),
        operation::<models::List>(),
        operation::<usage::List>(),
        operation::<usage::GetBudget>(),
        operation::<usage::SetAllowance>(),
        operation::<runs::ListAgents>(),
        operation::<runs::Start>(),
        operation::<runs::Get>(),
        operation::<runs::List>(),
        operation::<runs::Say>(),
        operation::<runs::Decide>(),
        operation::<runs::Cancel>(),
    ],
    assistants: &[assistants::ASSISTANT],
    topics: &[topic::<topics::RunSteps>()],
    announcements: &[
        announcement::<budget::BudgetLow>(),
        announcement::<run::RunStep>(),
        announcement::<run::RunWaiting>(),
        announcement::<run::RunEnded>(),
        announcement::<run::RunDelta>(),
    ],
    views: &[view::<budget::UsageView>(), view::<run::RunView>()],
    sections: &[section::<settings::AiSection>(), section::<definitions::AgentSection>()],
    runners: &[runner::<runners::Thinker>(), runner::<runners::Actor>()],
    ..System::new("agents")
};
