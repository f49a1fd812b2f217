//! What can be asked of models, budgets, agents and memories.

pub mod memories;
pub mod models;
pub mod runs;
pub mod usage;
