//! Sessions: conversations between a user and the agent.

use std::time::Duration;

use futures_util::FutureExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::contract::call::{derived_id, known_id};
use crate::contract::connection::{ConnectionHold, OnConnection};
use crate::contract::list::{After, Limit, Page, Paging};
use crate::contract::operation::Done;
use crate::contract::topic::Position;
use crate::contract::{Call, Meta, Operation, Outcome};
use crate::kernel::error::AskError;
use crate::systems::marketplace::domain::session::{
    self, MessageRow, MessageView, Session, SessionView,
};

/// How long somebody's typing waits to be told.
const TYPING_WAITS: Duration = Duration::from_secs(3);

#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct OpenSession {
    session_id: Option<String>,
    /// IANA name. Default: what the session had, or UTC.
    time_zone: Option<String>,
    /// BCP 47. Its region says which of day and month comes first in 3/12; a language alone leaves that to the place.
    #[schemars(length(min = 2, max = 35))]
    locale: Option<String>,
    /// What amounts without a currency mean. Default: what the session had, or the currency of the place.
    #[schemars(regex(pattern = "^[A-Z]{3}$"))]
    currency: Option<String>,
}

/// The id of a session that is open. Opening twice changes nothing, so it needs no remembered id.
async fn open(call: &Call, input: OpenSession, remembered: bool) -> Outcome<String> {
    let OpenSession { session_id, time_zone, locale, currency } = input;
    let (key, time_zone, locale) = match session_id {
        None => {
            let key = derived_id("ses", &[&call.user_id, &call.id]);
            (key, time_zone.unwrap_or_else(|| "UTC".into()), locale.unwrap_or_else(|| "en".into()))
        }
        Some(id) => {
            let known = shown(call, &id).await?;
            (id, time_zone.unwrap_or(known.time_zone), locale.unwrap_or(known.locale))
        }
    };
    let meta = if remembered { call.meta() } else { call.undeduplicated() };
    call.ask::<Session>(&key, session::Command::Open { time_zone, locale, currency }, meta).await?;
    Ok(key)
}

/// Opens a session, and shows it.
pub struct Create;

impl Operation for Create {
    const META: Meta = Meta::command("session.create", "Open a session, or a new one")
        .post("/v1/sessions")
        .creates("/v1/sessions/");
    type Input = OpenSession;
    type Answer = SessionView;

    async fn run(call: &Call, input: OpenSession) -> Outcome<SessionView> {
        let id = open(call, input, true).await?;
        shown(call, &id).await
    }
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct SessionOpened {
    session_id: String,
}

/// Opens a session for the connection that asks.
pub struct Open;

impl Operation for Open {
    const META: Meta = Meta::command(
        "session.open",
        "Opens a session, or a new one, and subscribes to it from now",
    )
    .on_connection(OnConnection::Listens(|_, answer| topic(answer)))
    .or_post("/v1/sessions");
    type Input = OpenSession;
    type Answer = SessionOpened;

    async fn run(call: &Call, input: OpenSession) -> Outcome<SessionOpened> {
        Ok(SessionOpened { session_id: open(call, input, false).await? })
    }
}

/// The topic of the session that an input or an answer names.
fn topic(value: &Value) -> Option<String> {
    Some(format!("session:{}", value["session_id"].as_str()?))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[expect(dead_code, reason = "the connection reads the position itself")]
pub struct ResumeSession {
    session_id: String,
    position: Option<Position>,
}

/// Subscribes the connection that asks to a session.
pub struct Resume;

impl Operation for Resume {
    const META: Meta = Meta::query(
        "session.resume",
        "Subscribes to a session from a position: `topic:subscribe` on `session:<id>`",
    )
    .on_connection(OnConnection::Listens(|input, _| topic(input)));
    type Input = ResumeSession;
    type Answer = Done;

    async fn run(_call: &Call, _input: ResumeSession) -> Outcome<Done> {
        Ok(Done {})
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct CloseSession {
    session_id: String,
    /// For all devices.
    end: Option<bool>,
}

/// Ends a session for all devices, or only for the connection that asks.
pub struct Close;

impl Operation for Close {
    const META: Meta = Meta::command(
        "session.close",
        "Unsubscribes this connection; with `end` the session ends for all devices",
    )
    // Whoever ends it stays subscribed, to hear `session:ended` like the others.
    .on_connection(OnConnection::Leaves(|input| {
        topic(input).filter(|_| input["end"].as_bool() != Some(true))
    }));
    type Input = CloseSession;
    type Answer = Done;

    fn is_kept(_call: &Call, input: &CloseSession) -> bool {
        input.end == Some(true)
    }

    async fn run(call: &Call, CloseSession { session_id, end }: CloseSession) -> Outcome<Done> {
        if end == Some(true) {
            let session_id = known_id(&session_id, "session")?;
            let close = session::Command::Close { end: true };
            call.ask::<Session>(session_id, close, call.undeduplicated()).await?;
        }
        Ok(Done {})
    }
}

/// The caller's sessions.
pub struct List;

impl Operation for List {
    const META: Meta =
        Meta::query("session.list", "Your sessions, newest first").get("/v1/sessions");
    type Input = Paging;
    type Answer = Page<SessionView>;

    async fn run(call: &Call, paging: Paging) -> Outcome<Page<SessionView>> {
        call.own_rows::<Self, _>(paging).await
    }
}

/// A session of the caller, else not found.
pub async fn shown(call: &Call, id: &str) -> Outcome<SessionView> {
    call.own(id, "session").await
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "SessionId")]
pub struct SessionById {
    session_id: String,
}

/// A session of the caller.
pub struct Get;

impl Operation for Get {
    const META: Meta = Meta::query("session.get", "A session").get("/v1/sessions/{session_id}");
    type Input = SessionById;
    type Answer = SessionView;

    async fn run(call: &Call, SessionById { session_id }: SessionById) -> Outcome<SessionView> {
        shown(call, &session_id).await
    }
}

/// Which message comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The oldest.
    #[default]
    Asc,
    /// The newest.
    Desc,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListMessages {
    session_id: String,
    /// `asc` (default) or `desc`
    order: Option<Order>,
    limit: Option<Limit>,
    cursor: Option<After>,
}

/// What was said in a session of the caller.
pub struct Messages;

impl Operation for Messages {
    const META: Meta = Meta::query("session.messages", "What was said in a session")
        .get("/v1/sessions/{session_id}/messages");
    type Input = ListMessages;
    type Answer = Page<MessageView>;

    async fn run(call: &Call, input: ListMessages) -> Outcome<Page<MessageView>> {
        let ListMessages { session_id, order, limit, cursor } = input;
        shown(call, &session_id).await?;
        let newest_first = order.unwrap_or_default() == Order::Desc;
        let paging = Paging { limit, cursor };
        let rows = call.rows_of::<Self, MessageRow>(&session_id, newest_first, paging).await?;
        Ok(rows.map(MessageView::from))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "SendMessage")]
pub struct NewMessage {
    session_id: String,
    #[schemars(length(max = 8_192))]
    content: String,
    /// Addresses of pictures and the like.
    #[schemars(length(max = 8))]
    media: Option<Vec<String>>,
}

/// The user's own message.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Sent")]
pub struct MessageSent {
    message_id: String,
}

/// Durable when it is answered; what the agent says comes on the session's topic.
pub struct SendMessage;

impl Operation for SendMessage {
    const META: Meta =
        Meta::command("chat.message", "Say something; the answer comes on the session's topic")
            .post("/v1/sessions/{session_id}/messages")
            .creates("");
    type Input = NewMessage;
    type Answer = MessageSent;

    async fn run(call: &Call, input: NewMessage) -> Outcome<MessageSent> {
        let NewMessage { session_id, content, media } = input;
        let session_id = known_id(&session_id, "session")?;
        let send = session::Command::SendMessage { content, media: media.unwrap_or_default() };
        match call.ask::<Session>(session_id, send, call.meta()).await? {
            session::Reply::Sent { message_id } => Ok(MessageSent { message_id }),
            _ => Err(AskError::Internal.into()),
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Typing")]
pub struct TypingInput {
    session_id: String,
    is_typing: bool,
}

/// Typing that is not said again ends by itself.
const TYPING: ConnectionHold = ConnectionHold {
    field: "session_id",
    is_held: |input| input["is_typing"].as_bool() == Some(true),
    lasts: Some(Duration::from_secs(6)),
    renew: None,
    end: |call, session_id| {
        async move { typing(&call, &session_id, false).await.map(drop) }.boxed()
    },
};

/// Somebody types, or has stopped. Lossy, so it gives up early.
async fn typing(call: &Call, session_id: &str, is_typing: bool) -> Outcome<Done> {
    let session_id = known_id(session_id, "session")?;
    let typing = session::Command::Typing { is_typing };
    call.ask::<Session>(session_id, typing, call.within(TYPING_WAITS)).await?;
    Ok(Done {})
}

/// Tells the user's other devices.
pub struct Typing;

impl Operation for Typing {
    const META: Meta = Meta::signal("chat.typing", "Tells the user's other devices")
        .on_connection(OnConnection::Holds(&TYPING));
    type Input = TypingInput;
    type Answer = Done;

    async fn run(call: &Call, TypingInput { session_id, is_typing }: TypingInput) -> Outcome<Done> {
        typing(call, &session_id, is_typing).await
    }
}
