//! The commands of the entities that speak with each other, by receiver, and what they carry.
//!
//! A sender names the message and not the entity that takes it, so that entities do not import each other. As JSON, the
//! commands stand in rows of the outbox and of timers, and travel between nodes. Releases beside this one write and
//! read them too: names of variants and fields stay, and a new field has a default.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kernel::entity::Message;
use crate::systems::marketplace::domain::matching::Scored;
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::offer::{
    Decline, DeclineReason, Lead, Offer, OfferSummary,
};
use crate::systems::marketplace::domain::places::Place;
use crate::systems::marketplace::domain::profile::{
    Profile, ProfilePatch, ProviderCard, Reputation,
};
use crate::systems::marketplace::domain::schedule::When;
use crate::systems::marketplace::domain::service::Service;

pub const BOOKING: &str = "booking";
pub const PROVIDER: &str = "provider";
pub const REQUEST: &str = "request";
pub const SESSION: &str = "session";

impl Message for ToSession {
    const TO: &'static str = SESSION;
}

impl Message for ToRequest {
    const TO: &'static str = REQUEST;
}

impl Message for ToProvider {
    const TO: &'static str = PROVIDER;
}

impl Message for ToBooking {
    const TO: &'static str = BOOKING;
}

/// What a session is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToSession {
    /// Creates the session for the calling user, or opens it again.
    Open {
        time_zone: String,
        locale: String,
        currency: Option<String>,
    },
    SendMessage {
        content: String,
        media: Vec<String>,
    },
    /// Query, with a lossy publication.
    Typing {
        is_typing: bool,
    },
    /// `end` ends the session for all devices.
    Close {
        end: bool,
    },
    /// Internal: another entity's `Effect::notify`.
    Publish {
        event: String,
        data: Value,
    },
    /// Internal: how a request is going.
    RequestProgress {
        request_id: String,
        progress: Progress,
    },
    /// Internal: a request, or a booking, said no to what the agent asked of it.
    RequestRefused {
        request_id: String,
        asked: AskedOf,
        reason: String,
    },
}

/// What a session asked of a request or a booking, and was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskedOf {
    Create,
    Cancel,
    Accept,
    CancelBooking,
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

/// What a request is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToRequest {
    Create(Asked),
    /// Acceptance by the consumer.
    AcceptOffer {
        offer_id: String,
    },
    DeclineOffer {
        offer_id: String,
    },
    Cancel {
        reason: Option<String>,
    },
    /// Query.
    Get,
    /// Query that waits until the acceptance of this offer is decided.
    AwaitAcceptance {
        offer_id: String,
    },
    /// Internal: the session's agent accepts for its user.
    AcceptPick {
        pick: Pick,
    },
    /// Internal: the outcome of the matching run.
    TakeMatches {
        candidates: Vec<Scored>,
    },
    MatchFailed {
        error: String,
    },
    RetryMatch,
    /// Internal: a provider's agent.
    ReceiveOffer {
        offer: Offer,
    },
    ReceiveDecline {
        provider_id: String,
        decline: Decline,
    },
    WithdrawOffer {
        offer_id: String,
        #[serde(default)]
        reason: Option<String>,
    },
    HoldRefused {
        offer_id: String,
        booking_id: String,
        reason: String,
    },
    /// Internal: the booking.
    BookingConfirmed {
        booking_id: String,
        offer_id: String,
    },
    BookingCancelled {
        booking_id: String,
        by: Party,
    },
    /// Internal: timers, and commands that could not be delivered.
    ExpireOffer {
        offer_id: String,
    },
    AcceptanceOverdue {
        booking_id: String,
    },
    AbandonAcceptance {
        booking_id: String,
        reason: String,
    },
    Expire,
}

/// The content of a request.
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

/// What a provider is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToProvider {
    /// Enrolment by the owner. `standing` is only for profiles that the node itself seeds.
    Enroll {
        owner_id: String,
        profile: Profile,
        standing: Option<Reputation>,
    },
    /// An update by the owner. The version must be `expected_version`, which the editor saw, or one of `or_versions`.
    Update {
        patch: ProfilePatch,
        expected_version: Option<u64>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        or_versions: Vec<u64>,
    },
    /// Query. Profiles are public.
    Get,
    /// Internal: a request asks the agent.
    ConsiderLead {
        lead: Lead,
    },
    HoldSlot(Hold),
    /// Internal: a request gave up, or a booking was cancelled.
    ReleaseSlot {
        booking_id: String,
    },
    /// Internal: the request went another way.
    WithdrawOffer {
        offer_id: String,
    },
    /// Internal: the booking was reviewed.
    RecordReview {
        booking_id: String,
        stars: u8,
    },
}

/// The terms of an accepted offer, as the request received them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hold {
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

/// What a booking is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToBooking {
    /// Internal: the provider holds the time.
    Confirm(Box<Agreed>),
    /// Cancellation by either party, before the start. Internal: also by an abandoned acceptance.
    Cancel {
        reason: Option<String>,
    },
    /// Internal: the session's agent cancels for its user.
    CancelForConsumer {
        reason: Option<String>,
    },
    /// The consumer's review, once the booking is completed.
    Review {
        rating: u8,
        comment: Option<String>,
    },
    /// A no-show, reported by the provider's owner, from the start until a day after the end.
    MarkNoShow,
    /// Query by the parties.
    Get,
    /// Internal: timers.
    Remind {
        hours_before: u8,
    },
    Start,
    Complete,
}

/// The terms that both sides agreed on.
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

/// Who did something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Party {
    Consumer,
    Provider,
    System,
}
