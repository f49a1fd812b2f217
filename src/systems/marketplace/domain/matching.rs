//! The score of a provider for a request: six parts from 0 to 1, with fixed weights.
//!
//! The weights are the product's (`skill .30, location .25, availability .20, price .10, rating .10, response .05`).
//! The score orders leads and is shown to the consumer with its parts; it decides nothing else. Whether a provider can
//! really do the job is up to its agent (`policy`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kernel::clock::Timestamp;
use crate::kernel::work::Work;
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::places::{Place, distance_km};
use crate::systems::marketplace::domain::pricing::Offering;
use crate::systems::marketplace::domain::profile::{Profile, Reputation};
use crate::systems::marketplace::domain::schedule::Span;
use crate::systems::marketplace::domain::schedule::When;
use crate::systems::marketplace::domain::service::Service;

/// The search for providers of a request: reads the candidates and calls [`rank`].
pub struct MatchProviders;

impl Work for MatchProviders {
    const NAME: &'static str = "match_providers";
    type Input = Criteria;
    type Outcome = Matches;
    const REPEATABLE: bool = true;
}

/// Most candidates in an outcome.
pub const MAX_RANKED: usize = 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Criteria {
    /// The consumer who asks, so that nobody is matched with themselves. Runs started by an older release do not have
    /// it.
    #[serde(default)]
    pub consumer_id: Option<String>,
    pub service: Service,
    pub place: Place,
    pub when: When,
    pub budget: Option<Money>,
}

/// A provider as in the read models.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    pub provider_id: String,
    pub owner_id: String,
    pub profile: Profile,
    pub rating: f64,
    pub reviews: u32,
    pub response_rate: f64,
    /// The `calendar` rows around the requested window.
    pub busy: Vec<Span>,
}

impl Candidate {
    /// Reads a row of the view `providers` (see `ProviderView`). `None`: the row has another shape.
    pub fn from_row(row: &Value, busy: Vec<Span>) -> Option<Self> {
        Some(Self {
            provider_id: row.get("id")?.as_str()?.into(),
            owner_id: row.get("owner_id")?.as_str()?.into(),
            profile: Profile::deserialize(row.get("profile")?).ok()?,
            rating: row.get("rating")?.as_f64()?,
            reviews: u32::try_from(row.get("reviews")?.as_u64()?).ok()?,
            response_rate: row.get("response_rate")?.as_f64()?,
            busy,
        })
    }
}

/// The parts of a score, 0 to 1 each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScoreParts {
    pub skill: f64,
    pub location: f64,
    pub availability: f64,
    pub price: f64,
    pub rating: f64,
    pub response: f64,
}

pub const WEIGHTS: ScoreParts = ScoreParts {
    skill: 0.30,
    location: 0.25,
    availability: 0.20,
    price: 0.10,
    rating: 0.10,
    response: 0.05,
};

/// The score of an offer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Score {
    /// 0 to 1: skill .30, location .25, availability .20, price .10, rating .10, response .05
    pub total: f64,
    pub parts: ScoreParts,
}

impl Score {
    pub fn of(parts: ScoreParts) -> Self {
        let w = WEIGHTS;
        let total = w.skill * parts.skill
            + w.location * parts.location
            + w.availability * parts.availability
            + w.price * parts.price
            + w.rating * parts.rating
            + w.response * parts.response;
        Self { total, parts }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    pub provider_id: String,
    pub name: String,
    pub distance_km: f64,
    pub score: Score,
}

/// The result of the runner.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Matches {
    pub candidates: Vec<Scored>,
}

/// The best candidates first, at most [`MAX_RANKED`]; equal totals in the order of their ids. Providers that do not
/// offer the service, do not travel that far, or belong to the consumer are left out.
pub fn rank(request: &Criteria, candidates: Vec<Candidate>, now: Timestamp) -> Vec<Scored> {
    let mut scored: Vec<Scored> =
        candidates.iter().filter_map(|candidate| score(request, candidate, now)).collect();
    scored.sort_by(|a, b| {
        b.score.total.total_cmp(&a.score.total).then_with(|| a.provider_id.cmp(&b.provider_id))
    });
    scored.truncate(MAX_RANKED);
    scored
}

fn score(request: &Criteria, candidate: &Candidate, now: Timestamp) -> Option<Scored> {
    if request.consumer_id.as_ref() == Some(&candidate.owner_id) {
        return None;
    }
    let profile = &candidate.profile;
    let place = profile.services.iter().position(|o| o.service == request.service)?;
    let offering = &profile.services[place];
    let distance_km = distance_km(
        (request.place.latitude, request.place.longitude),
        (profile.base.latitude, profile.base.longitude),
    );
    if distance_km > profile.radius_km {
        return None;
    }
    let parts = ScoreParts {
        skill: skill(place),
        location: location(distance_km, profile.radius_km),
        availability: availability(request, candidate, offering, now),
        price: price_fit(request.budget.as_ref(), offering, profile.max_discount_percent),
        rating: rating(candidate.rating, candidate.reviews),
        response: candidate.response_rate.clamp(0.0, 1.0),
    };
    Some(Scored {
        provider_id: candidate.provider_id.clone(),
        name: profile.name.clone(),
        distance_km,
        score: Score::of(parts),
    })
}

/// 1 for the speciality (the first listed service), 0.8 for any other.
fn skill(position: usize) -> f64 {
    if position == 0 { 1.0 } else { 0.8 }
}

/// `exp(-2 d / r)`: 1 next door, 0.37 halfway, 0.14 at the edge of the radius.
fn location(distance_km: f64, radius_km: f64) -> f64 {
    (-2.0 * distance_km / radius_km.max(0.1)).exp()
}

/// 1 with a free start at the beginning of the window (or within an hour of it), falling to 0.5 at its end; 0.2 when
/// the provider works that day but has no room; 0 when it does not work at all.
fn availability(
    request: &Criteria,
    candidate: &Candidate,
    offering: &Offering,
    now: Timestamp,
) -> f64 {
    let calendar = candidate.profile.calendar(&candidate.busy);
    let when = &request.when;
    match calendar.first_free(when, i64::from(offering.duration_minutes), now) {
        Some(slot) => {
            let from = when.earliest.max(now);
            let delay = (slot.starts_at.as_second() - from.as_second() - 3_600).max(0) as f64;
            let window = (when.latest.as_second() - from.as_second()).max(3_600) as f64;
            1.0 - 0.5 * (delay / window).min(1.0)
        }
        None if calendar.works_on_day_of(when.earliest.max(now)) => 0.2,
        None => 0.0,
    }
}

/// 1 when the list price is within the budget, falling to 0.5 when it takes the largest discount, and below in
/// proportion when even that is too much; 0 in another currency, 0.5 when no budget was named.
fn price_fit(budget: Option<&Money>, offering: &Offering, max_discount_percent: u8) -> f64 {
    let Some(budget) = budget else { return 0.5 };
    let list = offering.list_price();
    if budget.currency != list.currency {
        return 0.0;
    }
    let floor = offering.floor_price(max_discount_percent).amount_minor as f64;
    let (budget, list) = (budget.amount_minor as f64, list.amount_minor as f64);
    if budget >= list {
        1.0
    } else if budget >= floor {
        0.5 + 0.5 * (budget - floor) / (list - floor)
    } else {
        0.5 * (budget / floor).max(0.0)
    }
}

/// The Bayesian mean `(10·4.2 + n·r) / (10 + n)`, from 1..5 to 0..1: a few reviews move little.
fn rating(mean: f64, reviews: u32) -> f64 {
    const PRIOR_MEAN: f64 = 4.2;
    const PRIOR_REVIEWS: f64 = 10.0;
    let n = f64::from(reviews);
    let smoothed = (PRIOR_REVIEWS * PRIOR_MEAN + n * mean) / (PRIOR_REVIEWS + n);
    ((smoothed - 1.0) / 4.0).clamp(0.0, 1.0)
}

/// A candidate for callers that hold a provider's state instead of its row.
pub fn candidate(
    (provider_id, owner_id): (&str, &str),
    profile: &Profile,
    standing: &Reputation,
    busy: Vec<Span>,
) -> Candidate {
    Candidate {
        provider_id: provider_id.into(),
        owner_id: owner_id.into(),
        profile: profile.clone(),
        rating: standing.rating,
        reviews: standing.reviews,
        response_rate: standing.response_rate(),
        busy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::systems::marketplace::domain::fixtures::{
        NOW, alexanderplatz, at, eur, five_pm, profile,
    };
    use crate::systems::marketplace::domain::profile::ProviderView;

    fn criteria() -> Criteria {
        Criteria {
            consumer_id: Some("alice".into()),
            service: Service::Haircut,
            place: alexanderplatz(),
            when: five_pm(),
            budget: Some(eur(6_000)),
        }
    }

    fn somebody(id: &str, change: impl FnOnce(&mut Candidate)) -> Candidate {
        let mut somebody = Candidate {
            provider_id: id.into(),
            owner_id: "mirela".into(),
            profile: profile(),
            rating: 4.5,
            reviews: 30,
            response_rate: 0.9,
            busy: vec![],
        };
        change(&mut somebody);
        somebody
    }

    fn one(change: impl FnOnce(&mut Candidate)) -> ScoreParts {
        rank(&criteria(), vec![somebody("prv_1", change)], at(NOW))[0].score.parts
    }

    fn near(value: f64, expected: f64) {
        assert!((value - expected).abs() < 0.005, "{value} is not {expected}");
    }

    #[test]
    fn the_weights_add_up_to_one() {
        let all = ScoreParts {
            skill: 1.0,
            location: 1.0,
            availability: 1.0,
            price: 1.0,
            rating: 1.0,
            response: 1.0,
        };
        near(Score::of(all).total, 1.0);
        near(Score::of(ScoreParts { skill: 1.0, price: 1.0, ..ScoreParts::default() }).total, 0.4);
    }

    #[test]
    fn each_part_follows_its_formula() {
        let best = one(|_| ());
        near(best.skill, 1.0);
        near(best.location, 0.86);
        near(best.availability, 1.0);
        near(best.price, 1.0);
        near(best.rating, 0.856);
        near(best.response, 0.9);

        let second_trade = |c: &mut Candidate| {
            let plumbing = Offering { service: Service::Plumbing, ..c.profile.services[0].clone() };
            c.profile.services.insert(0, plumbing);
        };
        near(one(second_trade).skill, 0.8);
        near(one(|c| c.profile.base.latitude = 52.567).location, 0.365);
        near(one(|c| c.busy = vec![Span::new(five_pm().earliest, 45)]).availability, 0.2);
        near(one(|c| c.profile.weekly.clear()).availability, 0.0);
        near(one(|c| c.profile.services[0].price = eur(6_400)).price, 0.844);
        near(one(|c| c.profile.services[0].price = eur(10_000)).price, 0.375);
        near(one(|c| c.profile.services[0].price.currency = "USD".into()).price, 0.0);
        near(one(|c| (c.rating, c.reviews) = (0.0, 0)).rating, 0.8);
        near(one(|c| (c.rating, c.reviews) = (5.0, 1)).rating, 0.818);
        let unlimited = Criteria { budget: None, ..criteria() };
        near(rank(&unlimited, vec![somebody("prv_1", |_| ())], at(NOW))[0].score.parts.price, 0.5);
    }

    #[test]
    fn later_in_the_window_is_less_available() {
        let mut wide = criteria();
        wide.when = When { latest: at("2026-01-13T18:00:00Z"), exact: false, ..five_pm() };
        let busy_first = somebody("prv_1", |c| {
            c.busy = vec![Span {
                starts_at: at("2026-01-13T15:00:00Z"),
                ends_at: at("2026-01-13T17:45:00Z"),
            }];
        });
        near(rank(&wide, vec![busy_first], at(NOW))[0].score.parts.availability, 0.75);
    }

    #[test]
    fn who_cannot_come_is_left_out() {
        let far = somebody("prv_1", |c| c.profile.base.latitude = 52.7);
        let other = somebody("prv_2", |c| c.profile.services[0].service = Service::Cleaning);
        assert_eq!(rank(&criteria(), vec![far, other], at(NOW)), []);
    }

    #[test]
    fn nobody_is_matched_with_themselves() {
        let own = || vec![somebody("prv_1", |c| c.owner_id = "alice".into())];
        assert_eq!(rank(&criteria(), own(), at(NOW)), []);
        // A run that an older release asked for.
        let mut old = crate::kernel::entity::to_value(&criteria());
        old.as_object_mut().unwrap().remove("consumer_id");
        let old: Criteria = serde_json::from_value(old).unwrap();
        assert_eq!(rank(&old, own(), at(NOW)).len(), 1);
    }

    #[test]
    fn the_order_does_not_depend_on_the_order_of_rows() {
        let everybody = || {
            (0..30).map(|n| {
                somebody(&format!("prv_{n:02}"), |c| c.rating = 3.0 + f64::from(n % 3) / 2.0)
            })
        };
        let forwards = rank(&criteria(), everybody().collect(), at(NOW));
        let backwards = rank(&criteria(), everybody().rev().collect(), at(NOW));
        assert_eq!(forwards, backwards);
        assert_eq!(forwards.len(), MAX_RANKED);
        assert_eq!(forwards[0].provider_id, "prv_02");
        assert!(forwards.windows(2).all(|w| w[0].score.total >= w[1].score.total));
    }

    #[test]
    fn candidates_are_read_from_rows_of_the_read_model() {
        let standing = Reputation { rating: 4.5, reviews: 30, ..Reputation::default() };
        let row = ProviderView::new("prv_1", "mirela", &profile(), &standing, 1, at(NOW));
        let row = crate::kernel::entity::to_value(&row);
        assert_eq!(Candidate::from_row(&row, vec![]), Some(somebody("prv_1", |_| ())));
        assert_eq!(Candidate::from_row(&serde_json::json!({"id": "prv_1"}), vec![]), None);
    }
}
