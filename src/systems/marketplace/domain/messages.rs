//! What the entities send each other, by receiver, and what that carries.
//!
//! A sender names the message and not the entity that takes it, so that entities do not import each other. As JSON,
//! messages stand in rows of the outbox and travel between nodes. Releases beside this one write and read them too: names
//! of messages and fields stay, and a new field has a default. `golden/commands.txt` has their text.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kernel::task::TASK;
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::offer::{
    Decline, DeclineReason, Lead, Offer, OfferSummary, OfferView,
};
use crate::systems::marketplace::domain::places::Place;
use crate::systems::marketplace::domain::profile::ProviderCard;
use crate::systems::marketplace::domain::schedule::When;
use crate::systems::marketplace::domain::service::Service;

pub const BOOKING: &str = "booking";
pub const PROVIDER: &str = "provider";
pub const REQUEST: &str = "request";
pub const SESSION: &str = "session";

crate::messages! {
    SESSION: RequestProgress as "RequestProgress";
    TASK: RequestTold as "RequestTold";
    REQUEST: Asked as "Create",
        AskFor as "AskFor",
        AcceptOffer as "AcceptOffer",
        AcceptPick as "AcceptPick",
        RequestCancellation as "Cancel",
        ReceiveOffer as "ReceiveOffer",
        ReceiveDecline as "ReceiveDecline",
        WithdrawOffer as "WithdrawOffer",
        HoldRefused as "HoldRefused",
        BookingConfirmed as "BookingConfirmed",
        BookingCancelled as "BookingCancelled";
    PROVIDER: ConsiderLead as "ConsiderLead",
        HoldSlot as "HoldSlot",
        ReleaseSlot as "ReleaseSlot",
        DropOffer as "WithdrawOffer",
        RecordReview as "RecordReview";
    BOOKING: Agreed as "Confirm",
        BookingCancellation as "Cancel",
        CancelForConsumer as "CancelForConsumer";
}

// ---- To a session ----------------------------------------------------------------------------------------------------

/// Word from a request to the session's agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestProgress {
    pub request_id: String,
    pub progress: Progress,
    /// What is asked for, where it was not the session that asked. `None` also in messages of older releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
}

/// How a request is going, for the agent to put into words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Progress {
    Matched {
        providers: u32,
    },
    FirstOffer {
        offer: OfferSummary,
    },
    AllAnswered {
        offers: u32,
        cheapest: OfferSummary,
        /// The open ones, in the order of their arrival.
        #[serde(default)]
        open: Vec<OfferSummary>,
    },
    /// `reason` as in `request::Event::Unmatched`.
    Unmatched {
        reason: String,
        reasons: BTreeMap<DeclineReason, u32>,
        lowest_price: Option<Money>,
    },
    /// The accepted offer could not be kept; `offers` others are open.
    OfferRefused {
        offers: u32,
        /// A word such as `slot_taken`. Empty: an older release did not say it.
        #[serde(default)]
        reason: String,
    },
    Booked {
        booking_id: String,
        offer: OfferSummary,
    },
    Cancelled,
    Expired,
    /// The booking was cancelled.
    BookingCancelled {
        by: Party,
        offer: Option<OfferSummary>,
    },
}

// ---- To a task -------------------------------------------------------------------------------------------------------

/// Word from a request to the task that asked for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestTold {
    pub request_id: String,
    pub progress: Progress,
    /// All of them, as they are now.
    pub offers: Vec<OfferView>,
    /// Providers that have not answered yet.
    pub pending: u32,
}

// ---- To a request ----------------------------------------------------------------------------------------------------

/// The content of a request, with which it is created.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    pub consumer_id: String,
    /// The session in which the agent talks about it.
    pub session_id: Option<String>,
    pub service: Service,
    pub details: String,
    pub place: Place,
    pub when: When,
    pub budget: Option<Money>,
    pub time_zone: String,
}

/// A request of a task, which is told how it goes. With a provider nobody else is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AskFor {
    pub asked: Asked,
    pub provider_id: Option<String>,
    pub task_id: String,
}

/// Acceptance by the consumer, or by their session's agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AcceptOffer {
    pub offer_id: String,
}

/// Acceptance by the session's agent, which only older releases send.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AcceptPick {
    pub pick: Pick,
}

/// Which of the open offers is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    /// The highest score.
    Best,
    Cheapest,
    /// The n-th offer in order of arrival, from 1.
    Nth(u8),
}

/// The end of the search, by the consumer or their session's agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestCancellation {
    pub reason: Option<String>,
}

/// The offer of a provider's agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReceiveOffer {
    pub offer: Offer,
}

/// The refusal of a provider's agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReceiveDecline {
    pub provider_id: String,
    pub decline: Decline,
}

/// The end of an offer, by its provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WithdrawOffer {
    pub offer_id: String,
    #[serde(default)]
    pub reason: Option<String>,
}

/// The provider's answer to terms that cannot be kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HoldRefused {
    pub offer_id: String,
    pub booking_id: String,
    pub reason: String,
}

/// The booking's answer to an acceptance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BookingConfirmed {
    pub booking_id: String,
    pub offer_id: String,
}

/// The end of the booking before its start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BookingCancelled {
    pub booking_id: String,
    pub by: Party,
}

/// Who did something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Party {
    Consumer,
    Provider,
    System,
}

// ---- To a provider ---------------------------------------------------------------------------------------------------

/// A request's question to the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConsiderLead {
    pub lead: Lead,
}

/// The terms of an accepted offer, as the request received them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HoldSlot {
    pub booking_id: String,
    pub offer_id: String,
    pub request_id: String,
    pub consumer_id: String,
    pub service: Service,
    pub details: String,
    pub place: Place,
    pub price: Money,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
    pub expires_at: Timestamp,
}

/// The end of a hold: a request gave up, or a booking was cancelled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReleaseSlot {
    pub booking_id: String,
}

/// The end of an offer, whose request went another way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DropOffer {
    pub offer_id: String,
}

/// The stars of a booking that was reviewed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordReview {
    pub booking_id: String,
    pub stars: u8,
}

// ---- To a booking ----------------------------------------------------------------------------------------------------

/// The terms that both sides agreed on, once the provider holds the time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreed {
    pub request_id: String,
    pub offer_id: String,
    pub consumer_id: String,
    pub provider: ProviderCard,
    pub provider_owner_id: String,
    pub service: Service,
    pub details: String,
    pub place: Place,
    pub price: Money,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
}

/// Cancellation by either party before the start, or because the acceptance was abandoned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BookingCancellation {
    pub reason: Option<String>,
}

/// Cancellation by the agent of the consumer's session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CancelForConsumer {
    pub reason: Option<String>,
}
