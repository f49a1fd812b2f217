//! Work outside of entities: providers are looked for, candidates from the read models being ranked by the domain; and
//! who waits for a task is told of its changes.

use std::time::Duration;

use crate::ai::peers::{Outside, PushFailure};
use crate::contract::runner::{
    LateServices, RunCx, RunError, RunLimits, Runner, RunnerParts, SystemRunner,
};
use crate::kernel::clock::Clock;
use crate::kernel::entity::to_value;
use crate::persistence::views::Views;
use crate::systems::marketplace::domain::matching::{Criteria, MatchProviders, Matches, rank};
use crate::systems::marketplace::domain::task::{Notification, NotifyAgent};
use crate::systems::marketplace::views::{Window, candidates};

pub struct Matcher {
    views: Views,
    clock: Clock,
}

impl SystemRunner for Matcher {
    fn new(parts: &RunnerParts) -> Self {
        Self { views: parts.views.clone(), clock: parts.clock.clone() }
    }
}

impl Runner for Matcher {
    type Work = MatchProviders;

    async fn run(&self, _: RunCx, criteria: Criteria) -> Result<Matches, RunError> {
        let now = self.clock.now();
        let (latitude, longitude) = (criteria.place.latitude, criteria.place.longitude);
        // The widest radius a profile may have is 200 km; a degree of latitude is 111 km.
        let (north, east) = (1.85, 1.85 / latitude.to_radians().cos().abs().max(0.05));
        let window = Window {
            service: to_value(&criteria.service).as_str().unwrap_or_default().into(),
            south: latitude - north,
            north: latitude + north,
            west: longitude - east,
            east: longitude + east,
            earliest: criteria.when.earliest,
            latest: criteria.when.latest,
        };
        let found = candidates(&self.views, &window).await;
        let candidates = found.map_err(|e| RunError::Retry(e.to_string()))?;
        Ok(Matches { candidates: rank(&criteria, candidates, now) })
    }
}

/// Posts a task to an address that waits for it.
pub struct Notifier {
    services: LateServices,
}

impl SystemRunner for Notifier {
    fn new(parts: &RunnerParts) -> Self {
        Self { services: parts.services.clone() }
    }
}

impl Runner for Notifier {
    type Work = NotifyAgent;
    const LIMITS: RunLimits = RunLimits {
        timeout: Duration::from_secs(20),
        concurrent: 16,
        waiting: 1_000,
        tries: 8,
        give_up_after: Duration::from_secs(3_600),
        ..RunLimits::DEFAULT
    };

    async fn run(&self, _: RunCx, notification: Notification) -> Result<(), RunError> {
        // Who was erased waits for nothing.
        let Some(push) = notification.push.reveal() else { return Ok(()) };
        let services = self.services.get()?;
        let Some(outside) = services.settings.get::<Outside>() else {
            return Err(RunError::Final("this node sends no notifications".into()));
        };
        match outside.push.send(&notification.task, push).await {
            Ok(()) => Ok(()),
            Err(PushFailure::Later(why)) => Err(RunError::Retry(why)),
            Err(PushFailure::Never(why)) => Err(RunError::Final(why)),
        }
    }
}
