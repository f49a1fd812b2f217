//! Rejections of a booking.

use serde::{Deserialize, Serialize};

use crate::kernel::error::ErrorCode;
use crate::systems::marketplace::domain::rejection::{FieldError, summary};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("there is no such booking")]
    NotFound,
    #[error("only the system may do this")]
    InternalOnly,
    #[error("only the consumer may review a booking")]
    ConsumerOnly,
    #[error("you cannot review your own services")]
    OwnBooking,
    #[error("only the provider may report a no-show")]
    ProviderOnly,
    #[error("the appointment has started: it can no longer be cancelled")]
    AlreadyStarted,
    #[error("the appointment has not started yet: report a no-show after its start")]
    NotStarted,
    #[error("a no-show must be reported within a day after the end of the appointment")]
    TooLate,
    #[error("the appointment is not completed yet: review it after its end")]
    NotCompleted,
    #[error("this booking was already reviewed")]
    AlreadyReviewed,
    #[error("this booking was cancelled")]
    Cancelled,
    #[error("the provider reported that the consumer did not come")]
    NoShow,
    #[error("{}", summary(errors))]
    Invalid { errors: Vec<FieldError> },
}

impl crate::kernel::entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound => ErrorCode::NotFound,
            Self::InternalOnly | Self::ConsumerOnly | Self::OwnBooking | Self::ProviderOnly => {
                ErrorCode::Forbidden
            }
            Self::AlreadyStarted | Self::AlreadyReviewed | Self::Cancelled | Self::NoShow => {
                ErrorCode::Conflict
            }
            Self::NotStarted | Self::TooLate | Self::NotCompleted | Self::Invalid { .. } => {
                ErrorCode::Rejected
            }
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::InternalOnly => "internal_only",
            Self::ConsumerOnly => "consumer_only",
            Self::OwnBooking => "own_booking",
            Self::ProviderOnly => "provider_only",
            Self::AlreadyStarted => "already_started",
            Self::NotStarted => "not_started",
            Self::TooLate => "too_late",
            Self::NotCompleted => "not_completed",
            Self::AlreadyReviewed => "already_reviewed",
            Self::Cancelled => "booking_cancelled",
            Self::NoShow => "no_show",
            Self::Invalid { .. } => "invalid",
        }
    }
}
