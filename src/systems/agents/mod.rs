//! Agents: models that think for people, what they do for them, what they may spend on it, and what they remember.

pub mod answers;
pub mod api;
pub mod definitions;
pub mod domain;
pub mod embedding;
pub mod memories;
pub mod operations;
pub mod outside;
pub mod purse;
pub mod runners;
pub mod settings;
pub mod similar;
pub mod topics;
pub mod views;

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
        operation::<operations::memories::Write>(),
        operation::<operations::memories::Recall>(),
        operation::<operations::memories::List>(),
        operation::<operations::memories::Forget>(),
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
    topics: &[topic::<topics::RunSteps>()],
    scopes: &[outside::SCOPE],
    announcements: &[
        announcement::<budget::BudgetLow>(),
        announcement::<run::RunStep>(),
        announcement::<run::RunWaiting>(),
        announcement::<run::RunEnded>(),
        announcement::<run::RunDelta>(),
    ],
    views: &[view::<budget::UsageView>(), view::<run::RunView>()],
    migrations: &[
        (17, "memories", include_str!("migrations/0017_memories.sql")),
        (21, "similar_answers", include_str!("migrations/0021_similar_answers.sql")),
    ],
    sections: &[
        section::<settings::AiSection>(),
        section::<settings::OutsideSection>(),
        section::<definitions::AgentSection>(),
        section::<settings::MemorySettings>(),
    ],
    runners: &[
        runner::<runners::Engager>(),
        runner::<runners::Thinker>(),
        runner::<runners::Actor<run::Act>>(),
        runner::<runners::Actor<run::RepeatableAct>>(),
    ],
    tasks: &[embedding::keep_vectors, similar::keep_few],
    ..System::new("agents")
};
