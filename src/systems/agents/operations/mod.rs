//! What can be asked of models, budgets and memories.

pub mod memories;
pub mod models;
pub mod usage;
