//! Agents: models that think for people, and what they may spend on it.

pub mod domain;
pub mod operations;
pub mod purse;
pub mod settings;

use crate::contract::System;
use crate::contract::declare::{announcement, entity, operation, section, view};
use domain::budget;
use operations::{models, usage};

pub const SYSTEM: System = System {
    entities: &[entity::<budget::Budget>()],
    operations: &[
        operation::<models::Complete>(),
        operation::<models::List>(),
        operation::<usage::List>(),
        operation::<usage::GetBudget>(),
        operation::<usage::SetAllowance>(),
    ],
    announcements: &[announcement::<budget::BudgetLow>()],
    views: &[view::<budget::UsageView>()],
    sections: &[section::<settings::AiSection>()],
    ..System::new("agents")
};
