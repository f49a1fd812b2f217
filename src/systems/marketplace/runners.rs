//! The runner that looks for providers: candidates from the read models, ranked by the domain.

use crate::contract::runner::{RunCx, RunError, Runner, RunnerParts, SystemRunner};
use crate::kernel::clock::Clock;
use crate::kernel::entity::to_value;
use crate::persistence::views::Views;
use crate::systems::marketplace::domain::matching::{Criteria, MatchProviders, Matches, rank};
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
