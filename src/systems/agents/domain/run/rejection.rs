//! Why a run does not do what it is asked for.

use serde::{Deserialize, Serialize};

use super::{MAX_QUEUED, MAX_WORDS};
use crate::kernel::error::ErrorCode;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("there is no such run")]
    Unknown,
    #[error("this run has ended")]
    Ended,
    #[error("the agent is at work, and takes no message before it has answered")]
    Busy,
    #[error("{MAX_QUEUED} messages wait for the agent already")]
    TooMany,
    #[error("a message has {MAX_WORDS} bytes at most")]
    TooLong,
    #[error("this call does not wait for anybody")]
    NotWaiting,
    #[error("this call has other arguments")]
    OtherArguments,
    #[error("this is the run's own")]
    Internal,
}

impl crate::kernel::entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Unknown => ErrorCode::NotFound,
            Self::Ended | Self::Busy | Self::NotWaiting | Self::OtherArguments => {
                ErrorCode::Conflict
            }
            Self::TooMany | Self::TooLong => ErrorCode::Rejected,
            Self::Internal => ErrorCode::Forbidden,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Unknown => "no_such_run",
            Self::Ended => "run_ended",
            Self::Busy => "run_busy",
            Self::TooMany => "too_many_messages",
            Self::TooLong => "message_too_long",
            Self::NotWaiting => "not_waiting",
            Self::OtherArguments => "other_arguments",
            Self::Internal => "internal_command",
        }
    }
}
