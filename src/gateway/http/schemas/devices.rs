//! What devices share, do and play.

use serde_json::Value;
use utoipa::ToSchema;

#[derive(ToSchema)]
pub struct Position {
    epoch: String,
    offset: i64,
}

/// An operation of a device.
#[derive(ToSchema)]
pub struct SyncOperation {
    /// 1, 2, 3, … of this device.
    #[schema(minimum = 1)]
    sequence: u64,
    /// Your own name for it.
    operation_id: Option<String>,
    /// A hybrid logical time of 64 bits as text (NTP64, as uhlc counts), or an RFC 3339 time.
    timestamp: String,
    /// WatchlistAdd, WatchlistRemove, PlaybackUpdate, CounterUpdate or Nothing
    operation_type: String,
    #[schema(value_type = Object)]
    payload: Value,
}

#[derive(ToSchema)]
pub struct SyncMerge {
    device_id: String,
    /// How far the device has seen the log.
    position: Option<Position>,
    operations: Option<Vec<SyncOperation>>,
}

#[derive(ToSchema)]
pub struct SyncRestamped {
    sequence: u64,
    claimed: String,
    time: String,
}

#[derive(ToSchema)]
pub struct SyncRefused {
    sequence: u64,
    /// too_many_entries
    reason: String,
}

#[derive(ToSchema)]
pub struct SyncDelta {
    device_id: String,
    operations: Vec<SyncOperation>,
    stable: i64,
}

#[derive(ToSchema)]
pub struct SyncMerged {
    /// Everything of this device up to here is durable.
    sequence: u64,
    position: Position,
    seen: i64,
    stable: i64,
    /// The device has been away for too long: read the state.
    must_resync: bool,
    restamped: Vec<SyncRestamped>,
    refused: Vec<SyncRefused>,
    /// What came after the position that was given.
    deltas: Vec<SyncDelta>,
    /// There are more, after the position of this answer.
    more: Option<bool>,
}

#[derive(ToSchema)]
pub struct SyncAddition {
    tag: String,
    device_id: String,
    timestamp: String,
    #[schema(format = DateTime)]
    added_at: String,
}

#[derive(ToSchema)]
pub struct SyncItem {
    content_id: String,
    additions: Vec<SyncAddition>,
}

#[derive(ToSchema)]
pub struct SyncState {
    user_id: String,
    position: Position,
    stable: i64,
    watchlist: Vec<SyncItem>,
    /// By content: position_ms, duration_ms, device_id, timestamp, updated_at
    #[schema(value_type = Object)]
    playback_positions: Value,
    /// By content: value, and what each device has counted
    #[schema(value_type = Object)]
    counters: Value,
    #[schema(format = DateTime)]
    last_sync: Option<String>,
}

#[derive(ToSchema)]
pub struct SyncExplanation {
    content_id: String,
    #[schema(value_type = Object)]
    watchlist: Value,
    #[schema(value_type = Option<Object>)]
    playback_position: Option<Value>,
    #[schema(value_type = Option<Object>)]
    counter: Option<Value>,
}

/// Words of the API, which a test holds to the domain's.
macro_rules! words {
    ($($name:ident { $($word:ident),* })*) => {
        $(
            #[derive(ToSchema)]
            #[schema(rename_all = "snake_case")]
            pub enum $name { $($word),* }
        )*
    };
}

words! {
    DeviceType {
        Ios, Android, Web, Desktop, AppleTv, AndroidTv, FireTv, Roku, SamsungTv, LgTv, Console, Speaker
    }
    DeviceStatus { Online, Offline, Watching }
    RemoteAction { Play, Pause, Stop, Seek, Next, Previous }
    Access { Free, Subscription, Ads, Rent, Buy }
    Quality { Sd, Hd, Uhd }
    PlaybackStatus { Starting, Playing, Paused, Ended }
    PlaybackEnd { Stopped, Finished, Replaced, DeviceOffline, DeviceRemoved, TimedOut }
}

#[derive(ToSchema)]
pub struct Capabilities {
    supports_4k: Option<bool>,
    supports_hdr: Option<bool>,
    supports_dolby_atmos: Option<bool>,
    /// Where it can play from: `netflix`, `youtube`, …
    #[schema(max_items = 64)]
    supported_platforms: Option<Vec<String>>,
    /// It does what other devices tell it.
    remote_control: Option<bool>,
}

#[derive(ToSchema)]
pub struct Device {
    id: String,
    name: String,
    device_type: DeviceType,
    capabilities: Capabilities,
    has_push_token: bool,
    status: DeviceStatus,
    playback_session_id: Option<String>,
    #[schema(format = DateTime)]
    last_seen: Option<String>,
    #[schema(format = DateTime)]
    registered_at: String,
    version: u64,
    /// How it stands in the person's log.
    #[schema(value_type = Object)]
    sync: Value,
}

#[derive(ToSchema)]
pub struct DeviceCommand {
    action: RemoteAction,
    /// Of a seek.
    position_ms: Option<u64>,
    from_device_id: Option<String>,
    /// After this the device must not carry it out any more; 10,000 without.
    #[schema(maximum = 60000)]
    ttl_ms: Option<u32>,
}

#[derive(ToSchema)]
pub struct DeviceCommanded {
    command_id: String,
    #[schema(format = DateTime)]
    expires_at: String,
}

#[derive(ToSchema)]
pub struct PlaybackSession {
    id: String,
    user_id: String,
    content_id: String,
    device_id: String,
    platform: String,
    access: Access,
    quality: Quality,
    deep_link: String,
    web_fallback: String,
    resume_position_ms: Option<u64>,
    status: PlaybackStatus,
    position_ms: Option<u64>,
    duration_ms: Option<u64>,
    #[schema(format = DateTime)]
    started_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
    #[schema(format = DateTime)]
    ended_at: Option<String>,
    end_reason: Option<PlaybackEnd>,
}

/// The session, and
#[derive(ToSchema)]
pub struct InitiatedPlayback {
    session_id: String,
    /// An offline device is not told.
    device_status: DeviceStatus,
    #[serde(flatten)]
    #[schema(inline)]
    session: PlaybackSession,
}

#[derive(ToSchema)]
pub struct ControlPlayback {
    session_id: String,
    action: RemoteAction,
    /// Of a seek.
    position_ms: Option<u64>,
    from_device_id: Option<String>,
    /// After this the device must not carry it out any more; 10,000 without.
    #[schema(maximum = 60000)]
    ttl_ms: Option<u32>,
}

#[derive(ToSchema)]
pub struct ControlledPlayback {
    session_id: String,
    status: PlaybackStatus,
    /// Whether the device was told.
    delivered: bool,
    command_id: Option<String>,
    #[schema(format = DateTime)]
    expires_at: Option<String>,
}

#[derive(ToSchema)]
pub struct Platform {
    id: String,
    name: String,
    /// Those with a link of their own; others get that of `web`.
    device_types: Vec<String>,
}

#[derive(ToSchema)]
pub struct Availability {
    platform: String,
    /// The platform's own id of it, for links; required where there is no web_url.
    platform_content_id: Option<String>,
    /// Where it is watched in a browser, if not by the platform's usual link.
    web_url: Option<String>,
    access: Access,
    /// hd without
    quality: Option<Quality>,
    /// ISO 3166-1; everywhere without
    region: Option<String>,
    #[schema(format = DateTime)]
    available_from: Option<String>,
    #[schema(format = DateTime)]
    expires_at: Option<String>,
}

#[derive(ToSchema)]
pub struct SetAvailability {
    #[schema(max_items = 500)]
    availability: Vec<Availability>,
}

#[derive(ToSchema)]
pub struct Content {
    id: String,
    availability: Vec<Availability>,
    #[schema(format = DateTime)]
    updated_at: String,
    version: u64,
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::json;
    use utoipa::OpenApi;

    use super::*;
    use crate::gateway::http::schemas::Schemas;
    use crate::systems::devices::domain::{content, device, playback};

    /// serde names all variants when it is given none of them.
    fn words_of<T: DeserializeOwned>(none: Value) -> Vec<String> {
        let Err(error) = serde_json::from_value::<T>(none) else { panic!("it is one of them") };
        let error = error.to_string();
        error.split('`').skip(1).step_by(2).skip(1).map(Into::into).collect()
    }

    #[test]
    fn the_words_are_those_of_the_domain() {
        let schemas = serde_json::to_value(Schemas::openapi()).unwrap();
        let none = || json!("?");
        for (schema, words) in [
            ("DeviceType", words_of::<device::DeviceType>(none())),
            ("RemoteAction", words_of::<device::Action>(json!({"action": "?"}))),
            ("Access", words_of::<content::Access>(none())),
            ("Quality", words_of::<content::Quality>(none())),
            ("PlaybackStatus", words_of::<playback::Status>(none())),
            ("PlaybackEnd", words_of::<playback::EndReason>(none())),
        ] {
            assert_eq!(schemas["components"]["schemas"][schema]["enum"], json!(words), "{schema}");
        }
    }
}
