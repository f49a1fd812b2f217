//! A conversation between a user and the agent that finds providers for them.
//!
//! A message is durable before anything else happens. Its meaning is read from the words (`language`): the agent asks
//! until service, time and place are known, then creates a request and reports its progress. Each of the agent's answers
//! is streamed token by token on the session's topic and then published whole.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kernel::conversation::{AGENT_RUN, Engage, RunDecision, RunTold, SayToRun};
use crate::kernel::entity::{
    Caller, DecideCx, Decided, Decision, Effect, Entity, Principal, Publication, RunOutcome,
    Scopes, SendFailure,
};
use crate::kernel::error::ErrorCode;
use crate::kernel::private::{Field, Private};
use crate::kernel::view::ViewRow;
use crate::systems::marketplace::domain::language::Understanding;
use crate::systems::marketplace::domain::messages::{
    AcceptOffer, AcceptPick, Asked, CancelForConsumer, Progress, REQUEST, RequestCancellation,
    RequestProgress, SESSION,
};
use crate::systems::marketplace::domain::offer::OfferSummary;
use crate::systems::marketplace::domain::rejection::{Check, FieldError, is_currency, summary};
use crate::systems::marketplace::domain::request;
use crate::systems::marketplace::domain::schedule::zone;
use crate::systems::marketplace::domain::service::Service;

mod acting;
mod agreeing;
mod announcements;
mod memory;
mod opening;
mod talk;
#[cfg(test)]
mod tests;
mod thinking;
mod view;
mod words;

use opening::{close, open};

pub use announcements::{ChatMessage, ChatResponse, ChatToken, ChatTyping, SessionEnded};
pub use memory::{Current, Pending};
pub use thinking::{AskedCall, Thinking, Unanswered};
pub use view::{MessageRow, MessageView, SessionView};

pub const MAX_CONTENT_BYTES: usize = 8 * 1024;
pub const MAX_MEDIA: usize = 8;
/// The number of messages in the state, each cut to [`RECENT_CHARS`]: the agent's context, not the history.
pub const MAX_RECENT: usize = 20;
pub const RECENT_CHARS: usize = 500;
/// The number of requests that the conversation can refer to.
pub const MAX_REQUESTS: usize = 8;

#[derive(Debug)]
pub struct Session;

/// The commands of a session. Names of variants and fields stay: nodes of another release read them too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Creates the session for the calling user, or opens it again.
    Open {
        time_zone: String,
        locale: String,
        currency: Option<String>,
    },
    SendMessage {
        content: String,
        media: Vec<String>,
        /// Whether there is a model that thinks.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        thinks: bool,
    },
    /// Query: whether this request of the agent's agrees with what the user said.
    Compare {
        asked: Box<Asked>,
    },
    /// A query that makes a lossy publication.
    Typing {
        is_typing: bool,
    },
    /// `end` ends the session for all devices.
    Close {
        end: bool,
    },
    /// Internal: another entity's `Effect::notify`.
    Publish {
        event: String,
        data: Value,
    },
    /// Internal: a request.
    RequestProgress(RequestProgress),
    /// Internal: the run that thinks for the session, and whether it was started.
    RunTold(RunTold),
    TakeEngaged {
        run_id: String,
        outcome: Result<(), String>,
    },
    /// Internal: a request or a booking rejected the agent's command.
    RequestRefused {
        request_id: String,
        asked: AskedOf,
        reason: String,
    },
}

/// A session's command to a request or a booking that was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskedOf {
    Create,
    Cancel,
    Accept,
    CancelBooking,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    Opened {
        user_id: String,
        time_zone: String,
        locale: String,
        currency: Option<String>,
        at: Timestamp,
    },
    MessageReceived {
        message_id: String,
        content: Private<String, MessageContent>,
        media: Vec<Private<String, Media>>,
        at: Timestamp,
    },
    /// The fields known so far, when they are not enough for a request; `None`: they were dropped.
    DraftChanged {
        draft: Option<Understanding>,
    },
    RequestStarted {
        request_id: String,
        service: Service,
        /// The content of the request.
        #[serde(default)]
        asked: Option<Box<Understanding>>,
        /// The request that this one replaces.
        #[serde(default)]
        replaces: Option<String>,
    },
    RequestFollowed {
        request_id: String,
        status: request::Status,
        offers: u32,
        /// The offers shown with the message, in that order; empty: the earlier ones still count.
        #[serde(default)]
        shown: Vec<OfferSummary>,
        /// Whether no further offers can arrive.
        #[serde(default)]
        complete: bool,
        #[serde(default)]
        booking_id: Option<String>,
    },
    /// The agent has read an act back, and a "yes" binds it.
    ReadBack {
        pending: Pending,
    },
    /// The message is left to this run.
    RunAsked {
        run_id: String,
        scopes: Scopes,
    },
    RunBegun {
        run_id: String,
    },
    /// The person's word on a call that was read back has gone to the run.
    CallDecided {
        run_id: String,
    },
    /// The run has spoken, having heard so many messages.
    RunHeard {
        run_id: String,
        heard: u32,
        turn: u32,
    },
    /// The run has stopped.
    RunLost {
        run_id: String,
    },
    /// What was read back for the run binds no more.
    CallDropped,
    Responded {
        message_id: String,
        content: Private<String, MessageContent>,
        data: Private<Value, Data>,
        at: Timestamp,
    },
    /// The publication, without its data, which is in the topic's history. Older releases wrote the data here too.
    Published {
        event: String,
    },
    Ended {
        at: Timestamp,
    },
}

/// The speaker of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Author {
    User,
    Agent,
}

/// The private field of a message's text.
#[derive(Debug)]
pub enum MessageContent {}

/// The private field of the data that accompanies a message.
#[derive(Debug)]
pub enum Media {}

/// The private field of the objects that the agent's words are about.
#[derive(Debug)]
pub enum Data {}

impl Field for MessageContent {
    const NAME: &'static str = "content";
}

impl Field for Media {
    const NAME: &'static str = "media";
}

impl Field for Data {
    const NAME: &'static str = "data";
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub author: Author,
    pub content: Private<String, MessageContent>,
}

/// The session's state, bounded to [`MAX_RECENT`] short lines; the view `messages` has all messages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub user_id: String,
    pub time_zone: String,
    pub locale: String,
    pub currency: Option<String>,
    pub messages: u64,
    pub recent: Vec<Line>,
    pub draft: Option<Understanding>,
    /// The last [`MAX_REQUESTS`], the newest at the end.
    pub requests: Vec<Current>,
    pub pending: Option<Pending>,
    /// The run that thinks for the session.
    pub thinking: Option<Thinking>,
    /// The last message, until something has become of it.
    pub heard: Option<Unanswered>,
    pub ended: bool,
    pub created_at: Option<Timestamp>,
    pub last_active_at: Option<Timestamp>,
}

impl State {
    fn remember(
        &mut self,
        author: Author,
        content: &Private<String, MessageContent>,
        at: Timestamp,
    ) {
        self.messages += 1;
        self.last_active_at = Some(at);
        if self.recent.len() >= MAX_RECENT {
            self.recent.remove(0);
        }
        let content = content.clone().belonging_to(&self.user_id);
        let content = content.map(|text| text.chars().take(RECENT_CHARS).collect());
        self.recent.push(Line { author, content });
    }

    fn tz(&self) -> TimeZone {
        zone(&self.time_zone).unwrap_or(TimeZone::UTC)
    }

    /// The request that the conversation is about, which is the last one.
    pub fn current(&self) -> Option<&Current> {
        self.requests.last()
    }

    fn start(&mut self, request: Current) {
        if self.requests.len() >= MAX_REQUESTS {
            let over = self.requests.iter().position(|old| !old.is_live());
            self.requests.remove(over.unwrap_or(0));
        }
        self.requests.push(request);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Opened {
        session_id: String,
        created: bool,
    },
    /// The user's own message.
    Sent {
        message_id: String,
    },
    Compared {
        /// What differs.
        differs: Option<String>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("there is no such session")]
    NotFound,
    #[error("only the system may do this")]
    InternalOnly,
    #[error("only a user may open a session")]
    UserOnly,
    #[error("this session has ended: open it again")]
    Ended,
    #[error("{}", summary(errors))]
    Invalid { errors: Vec<FieldError> },
}

impl crate::kernel::entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound => ErrorCode::NotFound,
            Self::InternalOnly | Self::UserOnly => ErrorCode::Forbidden,
            Self::Ended => ErrorCode::Conflict,
            Self::Invalid { .. } => ErrorCode::Rejected,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::InternalOnly => "internal_only",
            Self::UserOnly => "user_only",
            Self::Ended => "session_ended",
            Self::Invalid { .. } => "invalid",
        }
    }
}

impl Entity for Session {
    const KIND: &'static str = SESSION;
    const GOLDEN: &'static str = include_str!("golden/session.jsonl");
    const HAS_TOPIC: bool = true;
    const PRIVATE: bool = true;

    crate::own_types!();

    fn decide(state: &State, command: Command, cx: &DecideCx<'_>) -> Decided<Self> {
        if state.created_at.is_none() {
            return match command {
                Command::Open { time_zone, locale, currency } => {
                    open(state, time_zone, locale, currency, cx)
                }
                _ => Err(Rejection::NotFound),
            };
        }
        may(state, &command, cx.caller)?;
        match command {
            Command::Open { time_zone, locale, currency } => {
                open(state, time_zone, locale, currency, cx)
            }
            Command::Close { end } => Ok(close(state, end, cx)),
            Command::Publish { event, data } => {
                let publish = Effect::publish(&event, data).private_to(&state.user_id);
                let published = Event::Published { event };
                Ok(Decision::reply(Reply::Done).event(published).effect(publish))
            }
            Command::RequestProgress(_)
            | Command::RequestRefused { .. }
            | Command::RunTold(_)
            | Command::TakeEngaged { .. }
                if state.ended =>
            {
                Ok(Decision::reply(Reply::Done))
            }
            _ if state.ended => Err(Rejection::Ended),
            Command::Typing { is_typing } => {
                let user_id = &state.user_id;
                let (session_id, user_id) = (cx.key.into(), user_id.clone());
                let typing = ChatTyping { session_id, user_id, is_typing };
                Ok(Decision::reply(Reply::Done).effect(Effect::announce(&typing)))
            }
            Command::Compare { asked } => {
                let differs = agreeing::difference(state, &asked, cx.now).map(str::to_owned);
                Ok(Decision::reply(Reply::Compared { differs }))
            }
            Command::SendMessage { content, media, thinks } => {
                check_message(&content, &media)?;
                Ok(talk::answer(state, content, media, thinks, cx))
            }
            Command::RequestProgress(RequestProgress { request_id, progress, service }) => {
                Ok(talk::tell(state, request_id, progress, service, cx))
            }
            Command::RunTold(told) => Ok(thinking::told(state, told, cx)),
            Command::TakeEngaged { run_id, outcome } => {
                Ok(thinking::engaged(state, &run_id, outcome, cx))
            }
            Command::RequestRefused { request_id, asked, reason } => {
                Ok(talk::refused(state, request_id, asked, &reason, cx))
            }
        }
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Opened { user_id, time_zone, locale, currency, at } => {
                state.user_id = user_id.clone();
                state.time_zone = time_zone.clone();
                state.locale = locale.clone();
                state.currency = currency.clone();
                state.ended = false;
                state.created_at.get_or_insert(*at);
                state.last_active_at = Some(*at);
            }
            Event::MessageReceived { content, at, .. } => {
                state.pending = None;
                state.remember(Author::User, content, *at);
            }
            Event::DraftChanged { draft } => state.draft = draft.clone(),
            Event::RequestStarted { request_id, service, asked, replaces } => {
                state.draft = None;
                let old =
                    state.requests.iter_mut().find(|r| Some(&r.request_id) == replaces.as_ref());
                if let Some(old) = old {
                    old.status = request::Status::Cancelled;
                }
                state.start(Current::new(request_id, *service, asked.as_deref().cloned()));
            }
            Event::RequestFollowed { request_id, status, offers, shown, complete, booking_id } => {
                let read_back = state.pending.as_ref().and_then(Pending::request_id);
                if !status.is_searching() && read_back == Some(request_id) {
                    state.pending = None;
                }
                let followed = state.requests.iter_mut().find(|r| r.request_id == *request_id);
                if let Some(request) = followed {
                    request.follow(*status, *offers, shown, *complete, booking_id.as_ref());
                }
            }
            Event::ReadBack { pending } => state.pending = Some(pending.clone()),
            Event::Responded { content, at, .. } => state.remember(Author::Agent, content, *at),
            Event::CallDropped => state.pending = None,
            Event::RunAsked { .. }
            | Event::RunBegun { .. }
            | Event::CallDecided { .. }
            | Event::RunHeard { .. }
            | Event::RunLost { .. }
            | Event::Published { .. } => {}
            Event::Ended { at } => {
                state.ended = true;
                state.thinking = None;
                state.draft = None;
                state.pending = None;
                state.last_active_at = Some(*at);
            }
        }
        state.thinking_changes(event);
    }

    fn is_query(command: &Command) -> bool {
        matches!(command, Command::Typing { .. } | Command::Compare { .. })
    }

    fn project(key: &str, state: &State, events: &[Event]) -> Vec<ViewRow> {
        view::rows(key, state, events)
    }

    fn publication(publication: Publication) -> Option<Command> {
        Some(Command::Publish { event: publication.event, data: publication.data })
    }

    /// The session acts for its user, because its agent turns the user's words into sends.
    fn acts_for(_: &str, state: &State) -> Option<Principal> {
        Some(Principal::of(state.user_id.as_str()))
    }

    fn run_finished(outcome: RunOutcome) -> Option<Command> {
        let run_id = outcome.tag.clone();
        let outcome = outcome.of::<Engage>();
        Some(Command::TakeEngaged { run_id, outcome })
    }

    fn send_failed(failure: SendFailure) -> Option<Command> {
        if failure.of::<SayToRun>().is_some() || failure.of::<RunDecision>().is_some() {
            return Some(Command::TakeEngaged {
                run_id: failure.key,
                outcome: Err(failure.reason),
            });
        }
        let accepts =
            || failure.of::<AcceptOffer>().is_some() || failure.of::<AcceptPick>().is_some();
        let asked = if failure.of::<CancelForConsumer>().is_some() {
            AskedOf::CancelBooking
        } else if failure.of::<Asked>().is_some() {
            AskedOf::Create
        } else if failure.of::<RequestCancellation>().is_some() {
            AskedOf::Cancel
        } else if accepts() {
            AskedOf::Accept
        } else {
            return None;
        };
        Some(Command::RequestRefused { request_id: failure.key, asked, reason: failure.reason })
    }
}

/// Whether this caller may send this command: the user their own commands, and each other entity those of its part.
fn may(state: &State, command: &Command, caller: &Caller) -> Result<(), Rejection> {
    let users = |scope| caller.may_act_for(&state.user_id, scope);
    let may = match command {
        Command::Open { .. } | Command::Close { .. } => users("session"),
        Command::SendMessage { .. } | Command::Typing { .. } => users("chat"),
        Command::Compare { .. } => users("request"),
        Command::Publish { .. } => {
            caller.is_system() || caller.user_id().is_none() && users("session")
        }
        Command::RequestProgress(RequestProgress { request_id, .. }) => {
            caller.is_the(REQUEST, request_id)
        }
        Command::RunTold(told) => caller.is_the(AGENT_RUN, &told.run_id),
        Command::RequestRefused { .. } | Command::TakeEngaged { .. } => caller.is_itself(),
    };
    if may {
        return Ok(());
    }
    let is_theirs = caller.user_id() == Some(&*state.user_id);
    Err(if is_theirs { Rejection::InternalOnly } else { Rejection::NotFound })
}

fn check_message(content: &str, media: &[String]) -> Result<(), Rejection> {
    let mut check = Check::default();
    let empty = content.trim().is_empty() && media.is_empty();
    check.that(!empty, "/content", "must not be empty");
    check.that(
        content.len() <= MAX_CONTENT_BYTES,
        "/content",
        format!("must have at most {MAX_CONTENT_BYTES} bytes"),
    );
    check.that(!content.contains('\0'), "/content", "must not contain NUL");
    check.that(media.len() <= MAX_MEDIA, "/media", format!("at most {MAX_MEDIA}"));
    for (n, url) in media.iter().enumerate() {
        check.length(url, 1, 2_048, &format!("/media/{n}"));
    }
    check.finish(|errors| Rejection::Invalid { errors })
}
