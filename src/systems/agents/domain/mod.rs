//! Agents' entities: what they may spend, the versions of their definitions, and their runs.

pub mod budget;
pub mod run;
pub mod version;
