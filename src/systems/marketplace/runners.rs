//! The runner behind `match_providers`: candidates from the read models, ranked by the domain.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::contract::runner::{RunCx, RunError, Runner};
use crate::kernel::clock::Clock;
use crate::kernel::entity::to_value;
use crate::persistence::views::Views;
use crate::systems::marketplace::domain::matching::{Criteria, Matches, rank};
use crate::systems::marketplace::views::{Window, candidates};

pub struct MatchProviders {
    pub views: Views,
    pub clock: Clock,
}

impl Runner for MatchProviders {
    fn run(&self, _: RunCx, input: Value) -> BoxFuture<'static, Result<Value, RunError>> {
        let (views, now) = (self.views.clone(), self.clock.now());
        async move {
            let criteria: Criteria =
                serde_json::from_value(input).map_err(|e| RunError::Final(e.to_string()))?;
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
            let found = candidates(&views, &window).await;
            let candidates = found.map_err(|e| RunError::Retry(e.to_string()))?;
            Ok(to_value(&Matches { candidates: rank(&criteria, candidates, now) }))
        }
        .boxed()
    }
}
