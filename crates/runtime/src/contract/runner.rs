//! Runners: work outside of any entity, which entities ask for by its type.

pub use crate::actors::{AnyRunner, Rate, RunCx, RunError, RunLimits, Runner};
use crate::kernel::clock::Clock;
use crate::persistence::views::Views;

/// A runner of a system, made from what its node has.
pub trait SystemRunner: Runner {
    fn new(views: &Views, clock: &Clock) -> Self;
}

/// A runner as a node makes it.
#[derive(Clone, Copy)]
pub struct RunnerKind {
    pub make: fn(&Views, &Clock) -> AnyRunner,
}

/// A runner in the list of its system.
pub const fn runner<R: SystemRunner>() -> RunnerKind {
    RunnerKind { make: |views, clock| AnyRunner::new(R::new(views, clock)) }
}
