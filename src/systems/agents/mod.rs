//! Agents: models that think for people, what they may spend on it, and what they remember.

pub mod answers;
pub mod domain;
pub mod embedding;
pub mod memories;
pub mod operations;
pub mod purse;
pub mod settings;
pub mod views;

use crate::contract::System;
use crate::contract::declare::{announcement, entity, operation, section, view};
use domain::budget;
use operations::{models, usage};

pub const SYSTEM: System = System {
    entities: &[entity::<budget::Budget>()],
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
    ],
    announcements: &[announcement::<budget::BudgetLow>()],
    views: &[view::<budget::UsageView>()],
    migrations: &[(17, "memories", include_str!("migrations/0017_memories.sql"))],
    sections: &[section::<crate::ai::Options>(), section::<settings::MemorySettings>()],
    tasks: &[embedding::keep_vectors],
    ..System::new("agents")
};
