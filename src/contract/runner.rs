//! Runners, which do work outside of any entity. Entities ask for them by name.

use std::sync::Arc;

pub use crate::actors::{RunCx, RunError, RunLimits, Runner};
use crate::kernel::clock::Clock;
use crate::persistence::views::Views;

/// A runner of a system, and the function with which a node makes it.
#[derive(Clone, Copy)]
pub struct RunnerMade {
    pub name: &'static str,
    pub make: fn(&Views, &Clock) -> Arc<dyn Runner>,
}
