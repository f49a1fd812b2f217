//! Leads and offers: the messages between a request and a provider's agent.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::systems::marketplace::domain::matching::Score;
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::places::Place;
use crate::systems::marketplace::domain::profile::ProviderCard;
use crate::systems::marketplace::domain::schedule::When;
use crate::systems::marketplace::domain::service::Service;

/// A request as a provider's agent sees it, without the consumer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lead {
    pub request_id: String,
    pub service: Service,
    pub details: String,
    pub place: Place,
    pub when: When,
    pub budget: Option<Money>,
    pub score: Score,
}

/// The reason why an agent makes no offer.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DeclineReason {
    NoSkill,
    OutOfArea,
    NotAvailable,
    OverBudget,
    OtherCurrency,
    /// The provider could not be reached.
    Unreachable,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decline {
    pub reason: DeclineReason,
    /// The lowest price that the agent could have offered, if the budget was too low.
    pub lowest_price: Option<Money>,
}

/// The status of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OfferStatus {
    Open,
    Accepted,
    /// The consumer declined the offer.
    Declined,
    /// The request went another way.
    Withdrawn,
    Expired,
    /// The provider's time was given to another consumer, or the provider no longer makes the offer.
    Unavailable,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    pub id: String,
    pub provider: ProviderCard,
    pub price: Money,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
    pub message: String,
    pub score: Score,
    pub status: OfferStatus,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

/// The agent's summary of an offer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OfferSummary {
    pub offer_id: String,
    pub provider_name: String,
    pub price: Money,
    pub starts_at: Timestamp,
    /// The time zone of the place.
    pub time_zone: String,
    /// The score, from 0 to 1.
    #[serde(default)]
    pub score: f64,
}

impl OfferSummary {
    /// Whether this offer costs less; of two equal prices, neither does, so the first to arrive stays.
    pub fn costs_less(&self, other: &Self) -> bool {
        self.price.amount_minor < other.price.amount_minor
    }

    pub fn of(offer: &Offer, time_zone: &str) -> Self {
        Self {
            offer_id: offer.id.clone(),
            provider_name: offer.provider.name.clone(),
            price: offer.price.clone(),
            starts_at: offer.starts_at,
            time_zone: time_zone.into(),
            score: offer.score.total,
        }
    }
}

/// The offer as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Offer")]
pub struct OfferView {
    pub id: String,
    pub request_id: String,
    pub provider: ProviderCard,
    pub price: Money,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
    pub message: String,
    pub score: Score,
    pub status: OfferStatus,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    /// The booking that its acceptance led to.
    pub booking_id: Option<String>,
}

impl OfferView {
    pub fn new(request_id: &str, offer: &Offer, booking_id: Option<&str>) -> Self {
        let offer = offer.clone();
        Self {
            id: offer.id,
            request_id: request_id.into(),
            provider: offer.provider,
            price: offer.price,
            starts_at: offer.starts_at,
            ends_at: offer.ends_at,
            message: offer.message,
            score: offer.score,
            status: offer.status,
            created_at: offer.created_at,
            expires_at: offer.expires_at,
            booking_id: booking_id.map(str::to_owned),
        }
    }
}
