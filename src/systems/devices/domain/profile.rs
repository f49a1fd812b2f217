//! A device's description of itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kernel::private::{Field, Private};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceProfile {
    pub name: String,
    pub device_type: DeviceType,
    pub capabilities: Capabilities,
    /// The token for push notifications that wake the device. Never shown.
    pub push_token: Option<Private<String, PushToken>>,
}

/// The field of a device's push token.
#[derive(Debug)]
pub enum PushToken {}

impl Field for PushToken {
    const NAME: &'static str = "push_token";
}

impl DeviceProfile {
    /// Assigns the profile to this person, also where it was read in the plain.
    pub(super) fn of(mut self, owner_id: &str) -> Self {
        self.push_token = self.push_token.map(|token| token.belonging_to(owner_id));
        self
    }
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DeviceType {
    Ios,
    Android,
    Web,
    Desktop,
    AppleTv,
    AndroidTv,
    FireTv,
    Roku,
    SamsungTv,
    LgTv,
    Console,
    Speaker,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Capabilities {
    pub supports_4k: bool,
    pub supports_hdr: bool,
    pub supports_dolby_atmos: bool,
    /// The platforms that it supports: `netflix`, `youtube`, …
    pub supported_platforms: Vec<String>,
    /// Whether it accepts remote commands from other devices.
    pub remote_control: bool,
}
