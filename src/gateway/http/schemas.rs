//! The shapes of answers, for the OpenAPI document. The values themselves come from the entities and read models.
#![allow(dead_code, reason = "these types are only described, never built")]

use serde_json::Value;
use utoipa::{OpenApi, ToSchema};

use crate::gateway::problem::FieldError;
use crate::gateway::{bodies, devices, playback};

#[derive(ToSchema)]
pub struct Money {
    /// In the currency's smallest unit: 4500 EUR is 45 euros.
    #[schema(example = 4500)]
    pub amount_minor: i64,
    /// ISO 4217.
    #[schema(example = "EUR")]
    pub currency: String,
}

#[derive(ToSchema)]
struct Place {
    name: String,
    city: String,
    country: String,
    latitude: f64,
    longitude: f64,
    time_zone: String,
}

#[derive(ToSchema)]
struct Request {
    id: String,
    consumer_id: String,
    session_id: Option<String>,
    service: String,
    /// matching, open, accepting, booked, cancelled, expired or unmatched
    status: String,
    reason: Option<String>,
    details: String,
    place: Place,
    #[schema(format = DateTime)]
    earliest: String,
    #[schema(format = DateTime)]
    latest: String,
    exact: Option<bool>,
    time_zone: Option<String>,
    budget: Option<Money>,
    offers_count: u32,
    booking_id: Option<String>,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
}

#[derive(ToSchema)]
struct ProviderCard {
    id: String,
    name: String,
    city: String,
    rating: f64,
    reviews: u32,
}

#[derive(ToSchema)]
struct Score {
    /// 0 to 1: skill .30, location .25, availability .20, price .10, rating .10, response .05
    total: f64,
    parts: ScoreParts,
}

#[derive(ToSchema)]
struct ScoreParts {
    skill: f64,
    location: f64,
    availability: f64,
    price: f64,
    rating: f64,
    response: f64,
}

#[derive(ToSchema)]
struct Offer {
    id: String,
    request_id: String,
    provider: ProviderCard,
    price: Money,
    #[schema(format = DateTime)]
    starts_at: String,
    #[schema(format = DateTime)]
    ends_at: String,
    message: String,
    score: Score,
    /// open, accepted, declined, withdrawn, expired or unavailable
    status: String,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    expires_at: String,
    booking_id: Option<String>,
}

#[derive(ToSchema)]
struct Accepted {
    booking_id: String,
}

#[derive(ToSchema)]
struct Declined {
    offer_id: String,
    request_id: String,
    status: String,
}

#[derive(ToSchema)]
struct Booking {
    id: String,
    request_id: String,
    offer_id: String,
    consumer_id: String,
    provider: ProviderCard,
    service: String,
    details: String,
    price: Money,
    #[schema(format = DateTime)]
    starts_at: String,
    #[schema(format = DateTime)]
    ends_at: String,
    place: Place,
    /// pending, confirmed, in_progress, completed, reviewed, cancelled or no_show
    status: String,
    review: Option<BookingReview>,
    cancellation: Option<Cancellation>,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
}

#[derive(ToSchema)]
struct BookingReview {
    rating: u8,
    comment: Option<String>,
}

#[derive(ToSchema)]
struct Cancellation {
    /// consumer, provider or system
    by: String,
    reason: Option<String>,
}

#[derive(ToSchema)]
struct Base {
    city: String,
    country: String,
    latitude: f64,
    longitude: f64,
    time_zone: String,
}

#[derive(ToSchema)]
struct Offering {
    service: String,
    price: Money,
    /// service or hour
    per: String,
    duration_minutes: u16,
}

#[derive(ToSchema)]
struct Hours {
    /// Minutes after local midnight.
    from_minute: u16,
    to_minute: u16,
}

/// A new profile needs `name`, `services` and `base`; a change names what changes, and a list replaces the whole list.
#[derive(ToSchema)]
struct Profile {
    name: Option<String>,
    bio: Option<String>,
    languages: Option<Vec<String>>,
    services: Option<Vec<Offering>>,
    base: Option<Base>,
    radius_km: Option<f64>,
    /// By weekday (`monday`…); a day that is missing is closed.
    weekly: Option<std::collections::BTreeMap<String, Vec<Hours>>>,
    #[schema(value_type = Option<Vec<String>>)]
    days_off: Option<Vec<String>>,
    minimum_notice_minutes: Option<u32>,
    max_discount_percent: Option<u8>,
}

#[derive(ToSchema)]
struct Provider {
    id: String,
    /// Only for the owner.
    owner_id: Option<String>,
    name: String,
    city: String,
    country: String,
    latitude: f64,
    longitude: f64,
    radius_km: f64,
    services: Vec<String>,
    profile: Profile,
    rating: Option<f64>,
    reviews: u32,
    response_rate: Option<f64>,
    version: u64,
    #[schema(format = DateTime)]
    updated_at: String,
}

#[derive(ToSchema)]
struct Session {
    id: String,
    user_id: String,
    time_zone: String,
    locale: String,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    last_active_at: String,
    ended: bool,
}

#[derive(ToSchema)]
struct Message {
    id: String,
    session_id: String,
    /// user or agent
    role: String,
    content: String,
    media: Vec<String>,
    #[schema(value_type = Option<Object>)]
    data: Option<Value>,
    #[schema(format = DateTime)]
    created_at: String,
}

#[derive(ToSchema)]
struct Sent {
    message_id: String,
}

#[derive(ToSchema)]
struct Position {
    epoch: String,
    offset: i64,
}

/// An operation of a device.
#[derive(ToSchema)]
struct SyncOperation {
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
struct SyncMerge {
    device_id: String,
    /// How far the device has seen the log.
    position: Option<Position>,
    operations: Option<Vec<SyncOperation>>,
}

#[derive(ToSchema)]
struct SyncRestamped {
    sequence: u64,
    claimed: String,
    time: String,
}

#[derive(ToSchema)]
struct SyncRefused {
    sequence: u64,
    /// too_many_entries
    reason: String,
}

#[derive(ToSchema)]
struct SyncDelta {
    device_id: String,
    operations: Vec<SyncOperation>,
    stable: i64,
}

#[derive(ToSchema)]
struct SyncMerged {
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
struct SyncAddition {
    tag: String,
    device_id: String,
    timestamp: String,
    #[schema(format = DateTime)]
    added_at: String,
}

#[derive(ToSchema)]
struct SyncItem {
    content_id: String,
    additions: Vec<SyncAddition>,
}

#[derive(ToSchema)]
struct SyncState {
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
struct SyncExplanation {
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
struct Device {
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
struct DeviceCommand {
    action: RemoteAction,
    /// Of a seek.
    position_ms: Option<u64>,
    from_device_id: Option<String>,
    /// After this the device must not carry it out any more; 10,000 without.
    #[schema(maximum = 60000)]
    ttl_ms: Option<u32>,
}

#[derive(ToSchema)]
struct DeviceCommanded {
    command_id: String,
    #[schema(format = DateTime)]
    expires_at: String,
}

#[derive(ToSchema)]
struct PlaybackSession {
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
struct InitiatedPlayback {
    session_id: String,
    /// An offline device is not told.
    device_status: DeviceStatus,
    #[serde(flatten)]
    #[schema(inline)]
    session: PlaybackSession,
}

#[derive(ToSchema)]
struct ControlPlayback {
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
struct ControlledPlayback {
    session_id: String,
    status: PlaybackStatus,
    /// Whether the device was told.
    delivered: bool,
    command_id: Option<String>,
    #[schema(format = DateTime)]
    expires_at: Option<String>,
}

#[derive(ToSchema)]
struct Platform {
    id: String,
    name: String,
    /// Those with a link of their own; others get that of `web`.
    device_types: Vec<String>,
}

#[derive(ToSchema)]
struct Availability {
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
struct SetAvailability {
    #[schema(max_items = 500)]
    availability: Vec<Availability>,
}

#[derive(ToSchema)]
struct Content {
    id: String,
    availability: Vec<Availability>,
    #[schema(format = DateTime)]
    updated_at: String,
    version: u64,
}

/// RFC 9457.
#[derive(ToSchema)]
struct ProblemDetails {
    r#type: String,
    title: String,
    status: u16,
    detail: String,
    /// bad_request, unauthenticated, forbidden, not_found, conflict, rejected, id_reused, rate_limited, overloaded,
    /// unavailable, deadline_exceeded, too_large or internal
    code: String,
    /// A stable word where the code is not enough: slot_taken.
    reason: Option<String>,
    errors: Option<Vec<FieldError>>,
    request_id: String,
}

#[derive(OpenApi)]
#[openapi(components(schemas(
    Money,
    Place,
    Request,
    ProviderCard,
    Score,
    ScoreParts,
    Offer,
    Accepted,
    Declined,
    Booking,
    BookingReview,
    Cancellation,
    Base,
    Offering,
    Hours,
    Profile,
    Provider,
    Session,
    Message,
    Sent,
    Position,
    SyncOperation,
    SyncMerge,
    SyncRestamped,
    SyncRefused,
    SyncDelta,
    SyncMerged,
    SyncAddition,
    SyncItem,
    SyncState,
    SyncExplanation,
    DeviceType,
    DeviceStatus,
    RemoteAction,
    Access,
    Quality,
    PlaybackStatus,
    PlaybackEnd,
    Capabilities,
    Device,
    DeviceCommand,
    DeviceCommanded,
    PlaybackSession,
    InitiatedPlayback,
    ControlPlayback,
    ControlledPlayback,
    Platform,
    Availability,
    SetAvailability,
    Content,
    ProblemDetails,
    FieldError,
    bodies::CreateRequest,
    bodies::PlaceBody,
    bodies::PointBody,
    bodies::Cancel,
    bodies::Review,
    bodies::OpenSession,
    bodies::SendMessage,
    devices::RegisterDevice,
    playback::InitiatePlayback,
    playback::ReportPlayback,
)))]
pub struct Schemas;

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::json;

    use super::*;
    use crate::domain::sync::{content, device, playback};

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
