//! The runner behind `match_providers`: candidates from the read models, ranked by the domain.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::SignedDuration;
use serde_json::Value;

use crate::actors::{RunError, Runner};
use crate::domain::marketplace::matching::{Candidate, Criteria, Matches, rank};
use crate::domain::marketplace::schedule::Span;
use crate::kernel::clock::Clock;
use crate::kernel::entity::to_value;
use crate::persistence::views::Views;

/// Candidates looked at for one request.
const MAX_CANDIDATES: i64 = 500;

pub struct MatchProviders {
    pub views: Views,
    pub clock: Clock,
}

impl Runner for MatchProviders {
    fn run(&self, _id: &str, input: Value) -> BoxFuture<'static, Result<Value, RunError>> {
        let (views, now) = (self.views.clone(), self.clock.now());
        async move {
            let criteria: Criteria = serde_json::from_value(input).map_err(|e| RunError::Final(e.to_string()))?;
            let day = SignedDuration::from_hours(24);
            let around = (criteria.when.earliest - day, criteria.when.latest + day);
            let place = (criteria.place.latitude, criteria.place.longitude);
            let service = to_value(&criteria.service);
            let rows = views
                .candidates(service.as_str().unwrap_or_default(), place, around, MAX_CANDIDATES)
                .await
                .map_err(|e| RunError::Retry(e.to_string()))?;
            let candidates = rows
                .into_iter()
                .filter_map(|row| {
                    let busy = row.busy.into_iter().map(|(starts_at, ends_at)| Span { starts_at, ends_at }).collect();
                    Candidate::from_row(&row.provider, busy)
                })
                .collect();
            Ok(to_value(&Matches { candidates: rank(&criteria, candidates, now) }))
        }
        .boxed()
    }
}
