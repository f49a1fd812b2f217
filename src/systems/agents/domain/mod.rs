//! The entities of agents, pure.

pub mod budget;
