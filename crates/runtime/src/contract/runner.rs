//! Runners: work outside of any entity, which entities ask for by its type.

use std::sync::{Arc, OnceLock, Weak};

pub use crate::actors::{AnyRunner, Rate, RunCx, RunError, RunLimits, Runner};
use crate::contract::call::Services;
use crate::kernel::clock::Clock;
use crate::persistence::views::Views;

/// The parts of a node that its runners are made from.
#[derive(Clone)]
pub struct RunnerParts {
    pub views: Views,
    pub clock: Clock,
    pub services: LateServices,
}

/// The services of a node, which are there once it serves: its runners are made before.
#[derive(Clone, Default)]
pub struct LateServices(Arc<OnceLock<Weak<Services>>>);

impl LateServices {
    pub fn set(&self, services: &Arc<Services>) {
        let _ = self.0.set(Arc::downgrade(services));
    }

    /// `Err`: not yet, or not any more.
    pub fn get(&self) -> Result<Arc<Services>, RunError> {
        let services = self.0.get().and_then(Weak::upgrade);
        services.ok_or_else(|| RunError::Retry("this node does not serve".into()))
    }
}

/// A runner of a system, made from what its node has.
pub trait SystemRunner: Runner {
    fn new(parts: &RunnerParts) -> Self;
}

/// A runner as a node makes it.
#[derive(Clone, Copy)]
pub struct RunnerKind {
    pub make: fn(&RunnerParts) -> AnyRunner,
}

/// A runner in the list of its system.
pub const fn runner<R: SystemRunner>() -> RunnerKind {
    RunnerKind { make: |parts| AnyRunner::new(R::new(parts)) }
}
