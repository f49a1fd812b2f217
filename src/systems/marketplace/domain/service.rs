//! The services that can be requested.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A kind of service.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    Haircut,
    Cleaning,
    Plumbing,
    Photography,
}

impl Service {
    pub fn title(self) -> &'static str {
        match self {
            Self::Haircut => "haircut",
            Self::Cleaning => "cleaning",
            Self::Plumbing => "plumbing",
            Self::Photography => "photography",
        }
    }
}
