//! Sessions of the revision that has them. No node keeps one: its id says what the client is capable of, and what a client
//! has asked to hear is known to the stream that it is heard on.

use std::convert::Infallible;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName};
use axum::response::Response;
use axum::response::sse::Event;
use futures_util::stream;
use rmcp::model::{ClientCapabilities, ErrorData};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::answers::Answers;
use super::asking::level;
use super::server::Offers;
use super::watching::{Heard, MAX_WATCHED, Watching, over};
use crate::cluster::topics::{Published, Subscription, Topics};
use crate::contract::call::derived_id;
use crate::contract::host::{HostQuestion, LogLevel};
use crate::contract::problem::Outcome;
use crate::gateway::Gateway;
use crate::gateway::auth::Claims;
use crate::gateway::http::event_stream;
use crate::gateway::users::ConnectionSlot;
use crate::gateway::ws::Opened;
use crate::kernel::entity::to_value;

pub const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT_ID: &str = "last-event-id";
/// How long an order is repeated until the session's stream has taken it. A client may open it at the same time.
const PATIENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(250);
/// How often a stream says that it is open.
const OPENED_TOLD: usize = 4;
const COMMENT_EVERY: Duration = Duration::from_secs(15);

/// What a client can be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skills {
    person: bool,
    model: bool,
    folders: bool,
}

impl Skills {
    pub fn of(capabilities: &ClientCapabilities) -> Self {
        // A client that names no way of asking its person knows forms.
        let form = |it: &rmcp::model::ElicitationCapability| it.form.is_some() || it.url.is_none();
        Self {
            person: capabilities.elicitation.as_ref().is_some_and(form),
            model: capabilities.sampling.is_some(),
            folders: capabilities.roots.is_some(),
        }
    }

    pub fn have(&self, question: &HostQuestion) -> bool {
        match question {
            HostQuestion::Person { .. } => self.person,
            HostQuestion::Model { .. } => self.model,
            HostQuestion::Folders => self.folders,
        }
    }
}

/// A session: `pmf-3b2e…`, the skills of its client and what makes it unique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSession {
    pub skills: Skills,
    id: Arc<str>,
}

impl AgentSession {
    pub fn open(capabilities: &ClientCapabilities) -> Self {
        let skills = Skills::of(capabilities);
        let letters = [(skills.person, 'p'), (skills.model, 'm'), (skills.folders, 'f')];
        let named: String = letters.iter().filter(|(has, _)| *has).map(|(_, one)| *one).collect();
        Self { skills, id: format!("{named}-{:032x}", rand::random::<u128>()).into() }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The session that a request names; `Some(None)`: one that no node has opened.
    pub fn named(headers: &HeaderMap) -> Option<Option<Self>> {
        let named = headers.get(SESSION_ID)?;
        Some(named.to_str().ok().and_then(|id| id.parse().ok()))
    }

    pub fn line(&self, topics: &Topics, user: &str) -> SessionLine {
        let topic = format!("mcp-session:{}", derived_id("ses", &[user, &self.id])).into();
        SessionLine { topics: topics.clone(), topic }
    }
}

impl FromStr for AgentSession {
    type Err = ();

    fn from_str(id: &str) -> Result<Self, ()> {
        let (letters, rest) = id.split_once('-').ok_or(())?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if rest.len() != 32 || !rest.bytes().all(is_hex) || letters.len() > 3 {
            return Err(());
        }
        let mut skills = Skills::default();
        for letter in letters.chars() {
            match letter {
                'p' => skills.person = true,
                'm' => skills.model = true,
                'f' => skills.folders = true,
                _ => return Err(()),
            }
        }
        Ok(Self { skills, id: id.into() })
    }
}

/// What is said to the session's stream, from any node.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Watch(String),
    Unwatch(String),
    /// The name of the level from which on the client wants lines.
    Level(String),
    Log {
        level: String,
        line: Value,
    },
    /// A stream of the session has opened.
    Opened(Opening),
}

#[derive(Serialize, Deserialize)]
struct Said {
    order: Order,
    /// The id under which the stream answers.
    #[serde(default)]
    reply: Option<String>,
}

/// The way to a session's stream, wherever it is.
#[derive(Clone)]
pub struct SessionLine {
    topics: Topics,
    topic: Arc<str>,
}

impl SessionLine {
    fn say(&self, order: Order, reply: Option<&str>) -> bool {
        let said = Said { order, reply: reply.map(str::to_owned) };
        let data = to_value(&said).to_string();
        self.topics.post(&Published::new(&self.topic, None, "order", &data))
    }

    /// A line of a call's log; whether the client wants it is known to the stream.
    pub fn log(&self, level: LogLevel, line: Value) {
        let level = super::asking::level_name(level).to_owned();
        self.say(Order::Log { level, line }, None);
    }

    pub async fn watch(&self, answers: &Arc<Answers>, user: &Arc<str>, address: String) -> Told {
        self.tell(answers, user, &|| Order::Watch(address.clone())).await
    }

    pub async fn unwatch(&self, answers: &Arc<Answers>, user: &Arc<str>, address: String) -> Told {
        self.tell(answers, user, &|| Order::Unwatch(address.clone())).await
    }

    pub async fn set_level(&self, answers: &Arc<Answers>, user: &Arc<str>, level: String) -> Told {
        self.tell(answers, user, &|| Order::Level(level.clone())).await
    }

    /// Tells the stream, until it has answered. What it is told may be told twice.
    async fn tell(
        &self,
        answers: &Arc<Answers>,
        user: &Arc<str>,
        order: &(dyn Fn() -> Order + Sync),
    ) -> Told {
        let too_many = || ErrorData::internal_error("too many questions wait", None);
        let mut question = answers.question(user).ok_or_else(too_many)?;
        let asked = async {
            loop {
                self.say(order(), Some(&question.id));
                if let Ok(answer) = tokio::time::timeout(AGAIN, &mut question.answer).await {
                    return answer;
                }
            }
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => match answer["refused"].as_str() {
                None => Ok(()),
                Some(why) => Err(ErrorData::invalid_params(why.to_owned(), None)),
            },
            _ => {
                let why = "the session has no open stream: GET this address first";
                Err(ErrorData::internal_error(why, None))
            }
        }
    }
}

type Told = Result<(), ErrorData>;

/// The opening of a session's stream. A stream ends when it hears of a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Opening {
    at_ms: i64,
    nonce: u64,
}

/// What the client has asked to hear. It travels as the id of the last event, so that a client that opens its stream
/// again hears the same.
#[derive(Default, Serialize, Deserialize)]
struct Wishes {
    /// When the stream was opened, in milliseconds.
    #[serde(default)]
    opened_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    level: Option<String>,
    #[serde(default)]
    watch: Vec<String>,
}

impl Wishes {
    fn named(headers: &HeaderMap) -> Option<Self> {
        let named = headers.get(LAST_EVENT_ID)?.to_str().ok()?;
        serde_json::from_str(named).ok().filter(|it: &Self| it.watch.len() <= MAX_WATCHED)
    }
}

/// The stream of a session.
struct SessionStream {
    gateway: Arc<Gateway>,
    offers: Arc<Offers>,
    answers: Arc<Answers>,
    claims: Arc<Claims>,
    watching: Watching,
    level: String,
    opening: Opening,
    line: SessionLine,
    /// How often the streams before it are still told that this one is open: a message between nodes may be lost.
    tells_again: usize,
    told: tokio::time::Interval,
    /// The first event says what is heard here.
    greets: bool,
    over: Pin<Box<dyn Future<Output = ()> + Send>>,
    _line: Subscription,
    _seat: ConnectionSlot,
    _opened: Opened,
}

pub async fn stream(
    gateway: Arc<Gateway>,
    offers: Arc<Offers>,
    answers: Arc<Answers>,
    claims: Claims,
    session: &AgentSession,
    headers: &HeaderMap,
) -> Outcome<Response> {
    gateway.takes_connections()?;
    let seat = gateway.users.seat(&claims.sub).await?;
    let claims = Arc::new(claims);
    let line = session.line(&gateway.topics, &claims.sub);
    let mut watching = Watching::default();
    let subscription = watching.hear(&gateway, &line.topic);
    let wishes = Wishes::named(headers).unwrap_or_default();
    // The clock of this node may be behind the one on which the stream before was opened.
    let at_ms = gateway.now().as_millisecond().max(wishes.opened_ms.saturating_add(1));
    let opening = Opening { at_ms, nonce: rand::random() };
    for address in &wishes.watch {
        if let Err(problem) = watching.add(&gateway, &offers, &claims, address).await {
            tracing::debug!(%address, detail = problem.detail, "it cannot be watched any more");
        }
    }
    let over = {
        let (gateway, claims) = (gateway.clone(), claims.clone());
        Box::pin(async move { over(&gateway, &claims).await })
    };
    let level = wishes.level.filter(|name| level(name).is_some());
    let stream = SessionStream {
        _opened: gateway.connections.opened(),
        _seat: seat,
        _line: subscription,
        level: level.unwrap_or_else(|| "info".into()),
        greets: true,
        gateway,
        offers,
        answers,
        claims,
        watching,
        opening,
        line,
        tells_again: OPENED_TOLD,
        told: tokio::time::interval(AGAIN),
        over,
    };
    let events = stream::unfold(stream, |mut stream| async move {
        let event = stream.next().await?;
        Some((Ok::<_, Infallible>(event), stream))
    });
    Ok(event_stream(events, COMMENT_EVERY))
}

impl SessionStream {
    fn event(&self) -> Event {
        let wishes = Wishes {
            opened_ms: self.opening.at_ms,
            level: Some(self.level.clone()),
            watch: self.watching.addresses().map(str::to_owned).collect(),
        };
        Event::default().event("message").id(to_value(&wishes).to_string())
    }

    async fn next(&mut self) -> Option<Event> {
        if std::mem::take(&mut self.greets) {
            return Some(self.event().data(""));
        }
        loop {
            let heard = tokio::select! {
                () = &mut self.over => return None,
                _ = self.told.tick(), if self.tells_again > 0 => {
                    self.tells_again -= 1;
                    self.line.say(Order::Opened(self.opening), None);
                    continue;
                }
                heard = self.watching.next() => heard,
            };
            match heard {
                Heard::Changed(address) => {
                    let method = "notifications/resources/updated";
                    let changed =
                        json!({"jsonrpc": "2.0", "method": method, "params": {"uri": address}});
                    return Some(self.event().data(changed.to_string()));
                }
                Heard::Message(message) => match self.ordered(&message).await {
                    Ordered::Nothing => {}
                    Ordered::Say(event) => return Some(event),
                    Ordered::End => return None,
                },
                Heard::TooMuch => return None,
            }
        }
    }

    async fn ordered(&mut self, message: &Published) -> Ordered {
        #[derive(Deserialize)]
        struct Frame {
            data: Said,
        }
        let said = match serde_json::from_slice::<Frame>(&message.frame) {
            Ok(Frame { data }) => data,
            Err(error) => {
                tracing::warn!(%error, "an order to a session cannot be read");
                return Ordered::Nothing;
            }
        };
        let refused = match said.order {
            Order::Opened(other) if other > self.opening => return Ordered::End,
            Order::Opened(_) => return Ordered::Nothing,
            Order::Log { level: of, line } => {
                let (of, from) = (level(&of).flatten(), level(&self.level).flatten());
                let wanted = of.zip(from).is_some_and(|(of, from)| of >= from);
                return match wanted {
                    true => Ordered::Say(self.event().data(line.to_string())),
                    false => Ordered::Nothing,
                };
            }
            Order::Watch(address) => {
                let (gateway, offers) = (self.gateway.clone(), self.offers.clone());
                let added = self.watching.add(&gateway, &offers, &self.claims, &address).await;
                added.err().map(|problem| problem.detail)
            }
            Order::Unwatch(address) => {
                self.watching.remove(&address);
                None
            }
            Order::Level(name) => {
                self.level = name;
                None
            }
        };
        if let Some(reply) = said.reply {
            let answer = json!({"refused": refused});
            self.answers.send(&self.claims.sub, &reply, answer, None);
        }
        // The id of the last event is to say it.
        Ordered::Say(self.event().data(""))
    }
}

enum Ordered {
    Nothing,
    Say(Event),
    End,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_says_what_its_client_can_do() {
        let capable = serde_json::from_value(json!({"elicitation": {}, "roots": {}})).unwrap();
        let session = AgentSession::open(&capable);
        assert!(session.id().starts_with("pf-"), "{}", session.id());
        assert_eq!(session.id().parse(), Ok(session));
        let none = AgentSession::open(&ClientCapabilities::default());
        assert_eq!(none.id().parse(), Ok(none));
        let long = "0".repeat(32);
        for bad in
            ["", "-", "x", &format!("x-{long}"), &format!("pmfp-{long}"), &format!("p-{long}0")]
        {
            assert!(bad.parse::<AgentSession>().is_err(), "{bad}");
        }
        let by_address = serde_json::from_value(json!({"elicitation": {"url": {}}})).unwrap();
        assert!(!Skills::of(&by_address).person, "it knows no forms");
    }
}
