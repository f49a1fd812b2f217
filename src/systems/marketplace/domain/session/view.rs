//! The views of a session and its messages: for clients, and as rows of read models.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Author, Data, Event, Media, MessageContent, State};
use crate::kernel::private::Private;
use crate::kernel::view::{Listed, View, ViewRow};

/// What the API and the read model show of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Session")]
pub struct SessionView {
    pub id: String,
    pub user_id: String,
    pub time_zone: String,
    pub locale: String,
    pub created_at: Timestamp,
    pub last_active_at: Timestamp,
    pub ended: bool,
}

impl SessionView {
    /// The view of a session; `None`: it was never opened.
    pub fn of(id: &str, state: &State) -> Option<Self> {
        Some(Self {
            id: id.into(),
            user_id: state.user_id.clone(),
            time_zone: state.time_zone.clone(),
            locale: state.locale.clone(),
            created_at: state.created_at?,
            last_active_at: state.last_active_at?,
            ended: state.ended,
        })
    }
}

/// A message of a session, as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Message")]
pub struct MessageView {
    pub id: String,
    pub session_id: String,
    pub role: Author,
    pub content: String,
    pub media: Vec<String>,
    /// The objects that the agent's words are about; `{"erased": true}` if the message was erased with its person.
    #[schemars(with = "Option<serde_json::Map<String, Value>>")]
    pub data: Value,
    pub created_at: Timestamp,
}

impl View for SessionView {
    const NAME: &'static str = "sessions";
    const LISTED: Option<Listed> = Listed::by("user_id", "created_at");
}

/// A message as the store keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MessageRow {
    pub id: String,
    pub session_id: String,
    pub role: Author,
    pub content: Private<String, MessageContent>,
    pub media: Vec<Private<String, Media>>,
    pub data: Private<Value, Data>,
    pub created_at: Timestamp,
}

impl From<MessageRow> for MessageView {
    fn from(row: MessageRow) -> Self {
        let erased = || json!({"erased": true});
        Self {
            id: row.id,
            session_id: row.session_id,
            role: row.role,
            content: row.content.reveal().cloned().unwrap_or_default(),
            media: row.media.iter().filter_map(Private::reveal).cloned().collect(),
            data: row.data.reveal().cloned().unwrap_or_else(erased),
            created_at: row.created_at,
        }
    }
}

impl View for MessageRow {
    const NAME: &'static str = "messages";
    const PRIVATE_TO: Option<(&'static str, &'static str)> = Some(("session", "session_id"));
    const LISTED: Option<Listed> = Listed::by("session_id", "created_at");
}

/// The rows of the session and of the messages in `events`.
pub(super) fn rows(key: &str, state: &State, events: &[Event]) -> Vec<ViewRow> {
    let mut rows = Vec::new();
    let mut changed = false;
    for event in events {
        let (id, role, content, media, data, at) = match event {
            Event::MessageReceived { message_id, content, media, at } => {
                let nothing = Private::new(&state.user_id, json!({}));
                (message_id, Author::User, content, media.clone(), nothing, *at)
            }
            Event::Responded { message_id, content, data, at } => {
                (message_id, Author::Agent, content, Vec::new(), data.clone(), *at)
            }
            Event::Opened { .. } | Event::Ended { .. } => {
                changed = true;
                continue;
            }
            Event::DraftChanged { .. }
            | Event::RequestStarted { .. }
            | Event::RequestFollowed { .. }
            | Event::ReadBack { .. }
            | Event::RunAsked { .. }
            | Event::RunBegun { .. }
            | Event::CallDecided { .. }
            | Event::RunHeard { .. }
            | Event::RunLost { .. }
            | Event::CallDropped
            | Event::Published { .. } => continue,
        };
        changed = true;
        let message = MessageRow {
            id: id.clone(),
            session_id: key.into(),
            role,
            content: content.clone(),
            media,
            data,
            created_at: at,
        };
        rows.push(ViewRow::of(&message));
    }
    if let Some(session) = SessionView::of(key, state).filter(|_| changed) {
        rows.push(ViewRow::of(&session));
    }
    rows
}
