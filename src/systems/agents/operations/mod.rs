//! What can be asked of models and budgets.

pub mod models;
pub mod usage;
