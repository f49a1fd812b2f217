//! Rejections of a request.

use serde::{Deserialize, Serialize};

use super::Status;
use crate::kernel::error::ErrorCode;
use crate::systems::marketplace::domain::rejection::{FieldError, summary};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("there is no such request")]
    NotFound,
    #[error("there is no such offer")]
    OfferNotFound,
    #[error("a request can only be made for yourself")]
    NotYours,
    #[error("only the system may do this")]
    InternalOnly,
    #[error("{}", summary(errors))]
    Invalid { errors: Vec<FieldError> },
    #[error("this request already exists")]
    AlreadyExists,
    #[error("another acceptance is under way")]
    AlreadyAccepting,
    #[error("this request is already booked")]
    AlreadyBooked,
    #[error("this request is {}", status.as_str())]
    Closed { status: Status },
    #[error("this offer has expired")]
    OfferExpired,
    #[error("this offer was declined")]
    OfferDeclined,
    #[error("the provider's time has been taken")]
    SlotTaken,
    #[error("the provider no longer makes this offer")]
    OfferWithdrawn,
    #[error("this provider is yours: you cannot book yourself")]
    OwnProvider,
    #[error("there is no such open offer")]
    NoOffers,
    #[error("this provider was not asked")]
    NotAsked,
    #[error("this offer is not being accepted")]
    NotAccepting,
}

impl crate::kernel::entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound | Self::OfferNotFound => ErrorCode::NotFound,
            Self::NotYours | Self::InternalOnly => ErrorCode::Forbidden,
            Self::AlreadyExists
            | Self::AlreadyAccepting
            | Self::AlreadyBooked
            | Self::Closed { .. }
            | Self::SlotTaken
            | Self::OfferWithdrawn
            | Self::NotAccepting => ErrorCode::Conflict,
            Self::Invalid { .. }
            | Self::OfferExpired
            | Self::OfferDeclined
            | Self::OwnProvider
            | Self::NoOffers
            | Self::NotAsked => ErrorCode::Rejected,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::OfferNotFound => "offer_not_found",
            Self::NotYours => "not_yours",
            Self::InternalOnly => "internal_only",
            Self::Invalid { .. } => "invalid",
            Self::AlreadyExists => "already_exists",
            Self::AlreadyAccepting => "already_accepting",
            Self::AlreadyBooked => "already_booked",
            Self::Closed { .. } => "request_closed",
            Self::OfferExpired => "offer_expired",
            Self::OfferDeclined => "offer_declined",
            Self::SlotTaken => "slot_taken",
            Self::OfferWithdrawn => "offer_withdrawn",
            Self::OwnProvider => "own_provider",
            Self::NoOffers => "no_offers",
            Self::NotAsked => "not_asked",
            Self::NotAccepting => "not_accepting",
        }
    }
}
