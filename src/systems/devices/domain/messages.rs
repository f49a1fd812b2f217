//! What a device and a person's playback send each other, and what that carries.
//!
//! As JSON, messages stand in rows of the outbox and travel between nodes. Releases beside this one write and read them
//! too: names of messages and fields stay, and a new field has a default. `golden/commands.txt` has their text.

use serde::{Deserialize, Serialize};

use super::platforms::Choice;

pub const DEVICE: &str = "device";
pub const PLAYBACK: &str = "playback";

crate::messages! {
    DEVICE: Play as "Play", Stopped as "Stopped";
    PLAYBACK: DeviceIs as "DeviceIs";
}

/// What the device plays from now on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Play {
    pub session_id: String,
    pub start: SessionStart,
}

/// The beginning of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStart {
    pub content_id: String,
    pub device_id: String,
    pub choice: Choice,
    pub resume_position_ms: Option<u64>,
    /// The session ends after this time without a report.
    pub idle_s: u32,
}

/// The end of a session on its device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stopped {
    pub session_id: String,
}

/// The state of the device that plays a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceIs {
    pub session_id: String,
    pub there: DeviceState,
}

/// Whether a device is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    Online,
    Offline,
    Removed,
}
