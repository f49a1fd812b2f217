//! The announcements that clients of the marketplace receive.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::booking::BookingView;
use super::offer::OfferView;
use super::request::RequestView;
use super::session::Author;
use crate::kernel::entity::Announcement;

const USER: &[&str] = &["user"];
const SESSION: &[&str] = &["session"];
const BOOKING: &[&str] = &["user", "booking"];

impl Announcement for RequestView {
    const EVENT: &'static str = "request:updated";
    const SUMMARY: &'static str = "A request has changed; the data is the whole request";
    const TOPICS: &'static [&'static str] = USER;
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct OfferMade {
    pub request_id: String,
    pub offer: OfferView,
}

impl Announcement for OfferMade {
    const EVENT: &'static str = "offer:new";
    const SUMMARY: &'static str = "A provider makes an offer";
    const TOPICS: &'static [&'static str] = USER;
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct OfferChanged {
    pub request_id: String,
    pub offer: OfferView,
}

impl Announcement for OfferChanged {
    const EVENT: &'static str = "offer:updated";
    const SUMMARY: &'static str = "An offer has changed";
    const TOPICS: &'static [&'static str] = USER;
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct AppointmentAgreed {
    pub booking: BookingView,
}

impl Announcement for AppointmentAgreed {
    const EVENT: &'static str = "booking:confirmed";
    const SUMMARY: &'static str = "An appointment is agreed";
    const TOPICS: &'static [&'static str] = BOOKING;
}

/// What happened to a booking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BookingChange {
    Started,
    Completed,
    Cancelled,
    Reviewed,
    /// The consumer did not come.
    NoShow,
    /// The booking starts in `hours_before` hours.
    Reminder,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct BookingChanged {
    pub kind: BookingChange,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hours_before: Option<u8>,
    pub booking: BookingView,
}

impl Announcement for BookingChanged {
    const EVENT: &'static str = "booking:updated";
    const SUMMARY: &'static str = "A booking has changed, or is about to start; `kind` says which";
    const TOPICS: &'static [&'static str] = BOOKING;
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ChatMessage {
    pub session_id: String,
    pub message_id: String,
    pub role: Author,
    pub content: String,
    pub media: Vec<String>,
    pub created_at: Timestamp,
}

impl Announcement for ChatMessage {
    const EVENT: &'static str = "chat:message";
    const SUMMARY: &'static str = "A user's message, to all devices of the session";
    const TOPICS: &'static [&'static str] = SESSION;
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ChatToken<'a> {
    pub session_id: &'a str,
    pub message_id: &'a str,
    pub index: usize,
    pub token: &'a str,
}

impl Announcement for ChatToken<'_> {
    const EVENT: &'static str = "chat:stream";
    const SUMMARY: &'static str =
        "A part of the agent's answer; `chat:response` replaces all parts";
    const TOPICS: &'static [&'static str] = SESSION;
    const DURABLE: bool = false;
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ChatResponse {
    pub session_id: String,
    pub message_id: String,
    pub content: String,
    /// The objects that the words are about.
    #[schemars(with = "Map<String, Value>")]
    pub data: Value,
}

impl Announcement for ChatResponse {
    const EVENT: &'static str = "chat:response";
    const SUMMARY: &'static str = "The agent's answer";
    const TOPICS: &'static [&'static str] = SESSION;
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ChatTyping {
    pub session_id: String,
    pub user_id: String,
    pub is_typing: bool,
}

impl Announcement for ChatTyping {
    const EVENT: &'static str = "chat:typing";
    const SUMMARY: &'static str = "A user of the session is typing";
    const TOPICS: &'static [&'static str] = SESSION;
    const DURABLE: bool = false;
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct SessionEnded {
    pub session_id: String,
}

impl Announcement for SessionEnded {
    const EVENT: &'static str = "session:ended";
    const SUMMARY: &'static str = "The session has ended for all devices";
    const TOPICS: &'static [&'static str] = SESSION;
}
