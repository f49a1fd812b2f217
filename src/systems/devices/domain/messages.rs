//! The commands of a device and of a person's playback, which speak with each other, and what they carry.
//!
//! As JSON, the commands stand in rows of the outbox and of timers, and travel between nodes. Releases beside this one
//! write and read them too: names of variants and fields stay, and a new field has a default.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::platforms::Choice;
use super::profile::DeviceProfile;
use crate::kernel::entity::Message;

pub const DEVICE: &str = "device";
pub const PLAYBACK: &str = "playback";

impl Message for ToDevice {
    const TO: &'static str = DEVICE;
}

impl Message for ToPlayback {
    const TO: &'static str = PLAYBACK;
}

/// What a device is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToDevice {
    /// Anew, or with changes.
    Register(DeviceProfile),
    Remove,
    /// This connection speaks for it from now on.
    Connect {
        connection: String,
        lease_s: i64,
    },
    /// Within the lease, which is the gateway's word. It takes the device from nobody.
    Renew {
        connection: String,
        lease_s: i64,
    },
    Disconnect {
        connection: String,
    },
    /// The timer.
    LeaseEnded,
    /// From another device of the same person.
    Control {
        action: Action,
        from: Option<String>,
        /// Only if it plays this.
        session_id: Option<String>,
        /// Who hears it later must not carry it out.
        ttl_ms: u32,
    },
    /// From the person's playback: it plays this from now on.
    Play {
        session_id: String,
        start: SessionStart,
    },
    Stopped {
        session_id: String,
    },
    Get,
}

/// What a device can do at the word of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    Play,
    Pause,
    Stop,
    Seek { position_ms: u64 },
    Next,
    Previous,
}

/// What a person's playback is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToPlayback {
    /// Starts a session. The operation decides what is played on which device, and the limits.
    Start {
        session_id: String,
        start: SessionStart,
        /// A session to end in the same step.
        replaces: Option<String>,
        max_streams: usize,
    },
    /// A report from the device.
    Report {
        session_id: String,
        report: PlaybackReport,
    },
    Stop {
        session_id: String,
    },
    /// The device's state, sent by the device's actor.
    DeviceIs {
        session_id: String,
        there: DeviceState,
    },
    /// A timer fired.
    TimedOut {
        session_id: String,
        why: EndReason,
    },
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

/// What a device says of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaybackReport {
    pub status: Status,
    pub position_ms: Option<u64>,
    pub duration_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "PlaybackStatus")]
pub enum Status {
    /// The device has the link, and has not said anything yet.
    Starting,
    Playing,
    Paused,
    Ended,
}

/// Whether a device is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    Online,
    Offline,
    Removed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "PlaybackEnd")]
pub enum EndReason {
    /// It was stopped by a command.
    Stopped,
    /// It was watched to its end, or left.
    Finished,
    /// Its device plays something else, or another session was started instead.
    Replaced,
    DeviceOffline,
    DeviceRemoved,
    TimedOut,
}
