//! What can be asked of models, budgets and agents.

pub mod models;
pub mod runs;
pub mod usage;
