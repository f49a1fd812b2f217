//! The state of a request.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Rejection;
use crate::systems::marketplace::domain::messages::Asked;
use crate::systems::marketplace::domain::offer::{Decline, Offer, OfferStatus};

/// Where a request stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "RequestStatus")]
pub enum Status {
    #[default]
    Matching,
    Open,
    Accepting,
    Booked,
    Cancelled,
    Expired,
    Unmatched,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Matching => "matching",
            Self::Open => "open",
            Self::Accepting => "accepting",
            Self::Booked => "booked",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Unmatched => "unmatched",
        }
    }

    /// Whether offers may still arrive.
    pub fn is_searching(self) -> bool {
        matches!(self, Self::Matching | Self::Open)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    Pending,
    Offered,
    Declined(Decline),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AskedProvider {
    pub provider_id: String,
    pub answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    pub offer_id: String,
    pub booking_id: String,
    pub tries: u8,
}

/// The request's state, bounded by [`super::MAX_LEADS`]: each lead leads to at most one offer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub asked: Option<Asked>,
    pub status: Status,
    pub leads: Vec<AskedProvider>,
    pub offers: Vec<Offer>,
    /// The reasons why offers are unavailable, by offer id: the provider's reason, or the failure to ask the provider.
    pub refused: BTreeMap<String, String>,
    /// The acceptance under way, or that of the booked offer.
    pub acceptance: Option<Acceptance>,
    /// Why it ended.
    pub reason: Option<String>,
    pub match_failures: u8,
    /// The task that asked for it.
    pub task_id: Option<String>,
    pub photos: Vec<String>,
    pub created_at: Option<Timestamp>,
    pub updated_at: Option<Timestamp>,
}

impl State {
    pub fn offer(&self, offer_id: &str) -> Option<&Offer> {
        self.offers.iter().find(|offer| offer.id == offer_id)
    }

    pub(super) fn open_offers(&self) -> impl Iterator<Item = &Offer> {
        self.offers.iter().filter(|offer| offer.status == OfferStatus::Open)
    }

    pub(super) fn pending_leads(&self) -> usize {
        self.leads.iter().filter(|lead| lead.answer == Answer::Pending).count()
    }

    pub(super) fn accepts(&self, booking_id: &str) -> bool {
        self.acceptance.as_ref().is_some_and(|a| a.booking_id == booking_id)
    }

    pub(super) fn booking_of(&self, offer_id: &str) -> Option<&str> {
        self.acceptance.as_ref().filter(|a| a.offer_id == offer_id).map(|a| a.booking_id.as_str())
    }

    /// The rejection for a consumer who wants an unavailable offer.
    pub(super) fn unavailable(&self, offer_id: &str) -> Rejection {
        match self.refused.get(offer_id).map(String::as_str) {
            None | Some("slot_taken" | "calendar_full") => Rejection::SlotTaken,
            Some("offer_expired") => Rejection::OfferExpired,
            Some("own_provider") => Rejection::OwnProvider,
            Some(_) => Rejection::OfferWithdrawn,
        }
    }

    pub(super) fn refuse_offer(&mut self, offer_id: &str, reason: Option<&String>) {
        self.set_offer(offer_id, OfferStatus::Unavailable);
        if let Some(reason) = reason {
            self.refused.insert(offer_id.into(), reason.clone());
        }
    }

    pub(super) fn set_offer(&mut self, offer_id: &str, status: OfferStatus) {
        for offer in self.offers.iter_mut().filter(|offer| offer.id == offer_id) {
            offer.status = status;
        }
    }

    pub(super) fn close(
        &mut self,
        status: Status,
        open_offers_become: OfferStatus,
        reason: Option<String>,
    ) {
        self.status = status;
        self.reason = reason;
        for offer in self.offers.iter_mut().filter(|offer| offer.status == OfferStatus::Open) {
            offer.status = open_offers_become;
        }
    }
}
