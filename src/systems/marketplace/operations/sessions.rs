//! Sessions: conversations between a user and the agent.

use std::time::Duration;

use futures_util::FutureExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::contract::call::{derived_id, known_id};
use crate::contract::connection::{ConnectionHold, OnConnection};
use crate::contract::list::{After, Limit, Page, Paging};
use crate::contract::operation::{Done, ToolEffect};
use crate::contract::topic::Position;
use crate::contract::{Call, Meta, Operation, Outcome};
use crate::kernel::error::AskError;
use crate::systems::agents::api::has_models;
use crate::systems::marketplace::domain::session::{
    self, MessageRow, MessageView, Session, SessionView,
};

/// The longest time that a typing signal waits for its entity.
const TYPING_WAITS: Duration = Duration::from_secs(3);

#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct OpenSession {
    session_id: Option<String>,
    /// The time zone (IANA name). Default: the one the session had, or UTC.
    time_zone: Option<String>,
    /// The locale (BCP 47). Its region decides whether day or month comes first in 3/12; a language alone leaves that to the
    /// place.
    #[schemars(length(min = 2, max = 35))]
    locale: Option<String>,
    /// The currency of amounts that name none. Default: the one the session had, or the currency of the place.
    #[schemars(regex(pattern = "^[A-Z]{3}$"))]
    currency: Option<String>,
}

/// The id of the session, once it is open. Opening twice changes nothing, so no command id has to be remembered.
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

/// Opens a session, and returns it.
pub struct Create;

impl Operation for Create {
    const META: Meta =
        Meta::command("session.create", "Open a session: the given one, or a new one")
            .post("/v1/sessions")
            .creates("/v1/sessions/")
            .tool("open_session", ToolEffect::Additive);
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

/// Opens a session, and subscribes the calling connection to it.
pub struct Open;

impl Operation for Open {
    const META: Meta = Meta::command(
        "session.open",
        "Open a session (the given one, or a new one) and subscribe to it from now",
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

/// Subscribes the calling connection to a session.
pub struct Resume;

impl Operation for Resume {
    const META: Meta = Meta::query(
        "session.resume",
        "Subscribe to a session from a position: `topic:subscribe` on `session:<id>`",
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
    /// Whether the session ends for all devices.
    end: Option<bool>,
}

/// Ends a session for all devices, or only unsubscribes the calling connection.
pub struct Close;

impl Operation for Close {
    const META: Meta = Meta::command(
        "session.close",
        "Unsubscribe this connection; with `end` the session ends for all devices",
    )
    // A connection that ends the session stays subscribed, to hear `session:ended` like the others.
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

/// Lists the caller's sessions.
pub struct List;

impl Operation for List {
    const META: Meta = Meta::query("session.list", "List your sessions, newest first")
        .get("/v1/sessions")
        .tool("list_sessions", ToolEffect::ReadOnly);
    type Input = Paging;
    type Answer = Page<SessionView>;

    async fn run(call: &Call, paging: Paging) -> Outcome<Page<SessionView>> {
        call.own_rows::<Self, _>(paging).await
    }
}

/// A session of the caller, else `not_found`.
pub async fn shown(call: &Call, id: &str) -> Outcome<SessionView> {
    call.own(id, "session").await
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "SessionId")]
pub struct SessionById {
    session_id: String,
}

/// Returns a session of the caller.
pub struct Get;

impl Operation for Get {
    const META: Meta = Meta::query("session.get", "Get a session").get("/v1/sessions/{session_id}");
    type Input = SessionById;
    type Answer = SessionView;

    async fn run(call: &Call, SessionById { session_id }: SessionById) -> Outcome<SessionView> {
        shown(call, &session_id).await
    }
}

/// The order of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Oldest first.
    #[default]
    Asc,
    /// Newest first.
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

/// Lists the messages of a session of the caller.
pub struct Messages;

impl Operation for Messages {
    const META: Meta = Meta::query("session.messages", "List the messages of a session")
        .get("/v1/sessions/{session_id}/messages")
        .tool("get_messages", ToolEffect::ReadOnly);
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

/// The id of the user's message.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Sent")]
pub struct MessageSent {
    message_id: String,
}

/// Sends a message, which is durable when it is answered. The agent's answer is published on the session's topic.
pub struct SendMessage;

impl Operation for SendMessage {
    const META: Meta = Meta::command(
        "chat.message",
        "Send a message; the agent's answer is published on the session's topic",
    )
    .post("/v1/sessions/{session_id}/messages")
    .creates("")
    .tool("send_message", ToolEffect::Additive)
    .tool_description(
        "Send a message to the agent of a session; read its answer with get_messages",
    );
    type Input = NewMessage;
    type Answer = MessageSent;

    async fn run(call: &Call, input: NewMessage) -> Outcome<MessageSent> {
        let NewMessage { session_id, content, media } = input;
        let session_id = known_id(&session_id, "session")?;
        let (media, thinks) = (media.unwrap_or_default(), has_models(&call.services));
        let send = session::Command::SendMessage { content, media, thinks };
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

/// The typing state of a connection, which ends by itself unless it is repeated.
const TYPING: ConnectionHold = ConnectionHold {
    field: "session_id",
    is_held: |input| input["is_typing"].as_bool() == Some(true),
    lasts: Some(Duration::from_secs(6)),
    renew: None,
    end: |call, session_id| {
        async move { typing(&call, &session_id, false).await.map(drop) }.boxed()
    },
};

/// Signals that a user types, or has stopped. It is lossy, so it gives up early.
async fn typing(call: &Call, session_id: &str, is_typing: bool) -> Outcome<Done> {
    let session_id = known_id(session_id, "session")?;
    let typing = session::Command::Typing { is_typing };
    call.ask::<Session>(session_id, typing, call.within(TYPING_WAITS)).await?;
    Ok(Done {})
}

/// Signals to the user's other devices that the user types.
pub struct Typing;

impl Operation for Typing {
    const META: Meta =
        Meta::signal("chat.typing", "Signal to your other devices that you are typing")
            .on_connection(OnConnection::Holds(&TYPING));
    type Input = TypingInput;
    type Answer = Done;

    async fn run(call: &Call, TypingInput { session_id, is_typing }: TypingInput) -> Outcome<Done> {
        typing(call, &session_id, is_typing).await
    }
}
