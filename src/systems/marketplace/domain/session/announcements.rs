//! Announcements on the topic of a session.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::Author;
use crate::kernel::entity::Announcement;

const SESSION: &[&str] = &["session"];

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
    /// The objects that the agent's words are about.
    #[schemars(with = "Map<String, Value>")]
    pub data: Value,
    /// The model that thought: `local` is the parser of the node itself.
    pub model: String,
    /// Why it was the parser, where a model was asked: `unavailable`, `too_slow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fell_back: Option<String>,
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
