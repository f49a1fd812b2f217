//! A session's memory of the requests that were made in it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::thinking::AskedCall;
use crate::systems::marketplace::domain::language::Understanding;
use crate::systems::marketplace::domain::offer::OfferSummary;
use crate::systems::marketplace::domain::request::Status;
use crate::systems::marketplace::domain::service::Service;

/// A request that was made in this session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Current {
    pub request_id: String,
    pub service: Service,
    pub status: Status,
    pub offers: u32,
    pub asked: Option<Understanding>,
    /// The offers that the user has been shown here, in that order. There are at most as many as leads.
    pub shown: Vec<OfferSummary>,
    /// Whether no further offers can arrive.
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

    /// Whether the request or its booking could be cancelled.
    pub fn is_live(&self) -> bool {
        self.status.is_searching() || matches!(self.status, Status::Accepting | Status::Booked)
    }

    /// The booking, until it starts.
    pub fn booking(&self, now: Timestamp) -> Option<&str> {
        let ahead = self.shown.first().is_none_or(|offer| offer.starts_at > now);
        self.booking_id.as_deref().filter(|_| self.status == Status::Booked && ahead)
    }
}

/// The act that was read back: the next "yes" means this act and nothing else.
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
    /// A call of the run that thinks for the session.
    Call(AskedCall),
    /// A request that replaces an open one.
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
            // A booked request stays booked until it is cancelled.
            Self::CancelBooking { .. } | Self::Call(_) => None,
        }
    }
}
