//! What a session remembers of requests and offers, and what it hears of them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::systems::marketplace::domain::booking::Party;
use crate::systems::marketplace::domain::language::Understanding;
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::offer::{DeclineReason, Offer};
use crate::systems::marketplace::domain::request::Status;
use crate::systems::marketplace::domain::service::Service;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskedOf {
    Create,
    Cancel,
    Accept,
    CancelBooking,
}

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
    /// The accepted offer could not be kept; so many others are open.
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
    /// What was booked is not any more.
    BookingCancelled {
        by: Party,
        offer: Option<OfferSummary>,
    },
}

/// What the agent says about an offer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OfferSummary {
    pub offer_id: String,
    pub provider_name: String,
    pub price: Money,
    pub starts_at: Timestamp,
    /// Of the place where it happens.
    pub time_zone: String,
    /// How well it fits, from 0 to 1.
    #[serde(default)]
    pub score: f64,
}

impl OfferSummary {
    /// Of equals the one that came first.
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

/// A request that was made here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Current {
    pub request_id: String,
    pub service: Service,
    pub status: Status,
    pub offers: u32,
    pub asked: Option<Understanding>,
    /// The offers that the user has been shown here, in that order. At most as many as are asked for.
    pub shown: Vec<OfferSummary>,
    /// Whether no more can come.
    pub complete: bool,
    pub booking_id: Option<String>,
}

impl Current {
    pub fn new(request_id: &str, service: Service, asked: Option<Understanding>) -> Self {
        Self {
            request_id: request_id.into(),
            service,
            status: Status::Matching,
            offers: 0,
            asked,
            shown: Vec::new(),
            complete: false,
            booking_id: None,
        }
    }

    pub fn follow(
        &mut self,
        status: Status,
        offers: u32,
        shown: &[OfferSummary],
        complete: bool,
        booking_id: Option<&String>,
    ) {
        (self.status, self.offers) = (status, offers);
        self.complete |= complete;
        if !shown.is_empty() {
            self.shown = shown.to_vec();
        }
        self.booking_id = booking_id.cloned().or(self.booking_id.take());
    }

    /// Whether there is something that could be cancelled.
    pub fn is_live(&self) -> bool {
        self.status.is_searching() || matches!(self.status, Status::Accepting | Status::Booked)
    }

    /// The booking, until its time has come.
    pub fn booking(&self, now: Timestamp) -> Option<&str> {
        let ahead = self.shown.first().is_none_or(|offer| offer.starts_at > now);
        self.booking_id.as_deref().filter(|_| self.status == Status::Booked && ahead)
    }
}

/// What was read back: the next "yes" means this, and nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Pending {
    Accept {
        request_id: String,
        offer_id: String,
    },
    CancelRequest {
        request_id: String,
    },
    CancelBooking {
        request_id: String,
        booking_id: String,
    },
    /// Another request in the place of an open one.
    Change {
        request_id: String,
        asked: Box<Understanding>,
    },
}

impl Pending {
    pub fn request_id(&self) -> Option<&String> {
        match self {
            Self::Accept { request_id, .. }
            | Self::CancelRequest { request_id }
            | Self::Change { request_id, .. } => Some(request_id),
            // It is booked, and stays so until it is cancelled.
            Self::CancelBooking { .. } => None,
        }
    }
}
