//! What configuration says of devices.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::domain::platforms::Platforms;
use super::domain::shared::Limits;

#[derive(Clone, Debug)]
pub struct Settings {
    pub sync: Limits,
    /// Without a report for so long a playback session is over.
    pub idle_s: u32,
    pub platforms: Platforms,
    /// By name; `free` is that of tokens that name none.
    pub tiers: BTreeMap<String, Tier>,
    /// A device is there for as long as its connection answers pings.
    pub lease_s: i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sync: Limits::default(),
            idle_s: 14_400,
            platforms: Platforms::default(),
            tiers: BTreeMap::new(),
            lease_s: 90,
        }
    }
}

/// What a plan allows one person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tier {
    pub devices: usize,
    /// Playback sessions at the same time.
    pub streams: usize,
}

impl Default for Tier {
    fn default() -> Self {
        Self { devices: 5, streams: 1 }
    }
}

impl Settings {
    /// Of a plan that nobody knows: the least.
    pub fn tier(&self, plan: Option<&str>) -> Tier {
        self.tiers.get(plan.unwrap_or("free")).copied().unwrap_or_default()
    }
}
