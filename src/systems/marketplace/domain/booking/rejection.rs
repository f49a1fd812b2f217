//! Why a booking says no.

use serde::{Deserialize, Serialize};

use crate::kernel::error::ErrorCode;
use crate::systems::marketplace::domain::rejection::{FieldError, summary};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("there is no such booking")]
    NotFound,
    #[error("only the system may do this")]
    InternalOnly,
    #[error("only the consumer may review")]
    ConsumerOnly,
    #[error("nobody reviews themselves")]
    OwnBooking,
    #[error("only the provider may say so")]
    ProviderOnly,
    #[error("the appointment has started")]
    AlreadyStarted,
    #[error("the appointment has not started")]
    NotStarted,
    #[error("that had to be said within a day after the end")]
    TooLate,
    #[error("the appointment is not completed")]
    NotCompleted,
    #[error("it is reviewed already")]
    AlreadyReviewed,
    #[error("the booking was cancelled")]
    Cancelled,
    #[error("the consumer did not come")]
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
