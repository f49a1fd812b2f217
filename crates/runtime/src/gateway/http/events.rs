//! `GET /v1/events`: the topics of a client that only listens, as Server-Sent Events.
//!
//! `data` is the frame that a WebSocket would carry. `id` is one cursor over all topics: a client that sends it back as
//! `Last-Event-ID` resumes exactly there.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::extract::AuthenticatedUser;
use crate::cluster::topics::Published;
use crate::contract::problem::{Outcome, Problem};
use crate::gateway::auth::{Claims, Revocations};
use crate::gateway::listening::subscribe;
use crate::gateway::listening::{Cut, Feed};
use crate::gateway::users::ConnectionSlot;
use crate::gateway::ws::Opened;
use crate::gateway::ws::protocol::{Close, Position, split_topic};
use crate::gateway::{Gateway, Leaving};

/// Most topics of a stream: the cursor names each of them, and every event carries the cursor.
const MAX_TOPICS: usize = 32;
/// An offset that no topic ever has.
const NOWHERE: i64 = -1;
/// How long before the token expires its client is warned.
const WARNING: Duration = Duration::from_secs(60);

/// A client's position in each of its durable topics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct StreamCursor {
    epoch: String,
    offsets: BTreeMap<Arc<str>, i64>,
}

impl StreamCursor {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';');
        let is_epoch = |e: &&str| !e.is_empty() && e.bytes().all(|b| b.is_ascii_alphanumeric());
        let epoch = parts.next().filter(is_epoch)?.to_owned();
        let offset = |part: &str| {
            let (topic, offset) = part.rsplit_once('=')?;
            split_topic(topic).ok()?;
            Some((Arc::from(topic), offset.parse().ok()?))
        };
        let offsets: BTreeMap<_, _> = parts.map(offset).collect::<Option<_>>()?;
        (offsets.len() <= MAX_TOPICS).then_some(Self { epoch, offsets })
    }

    /// The position in one topic. A topic that the cursor does not name is new to this client, or was not part of the
    /// cursor's stream, so we cannot say that the client missed nothing in it.
    fn position(&self, topic: &str) -> Position {
        let offset = self.offsets.get(topic).copied().unwrap_or(NOWHERE);
        Position { epoch: self.epoch.clone(), offset }
    }
}

impl std::fmt::Display for StreamCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.epoch)?;
        self.offsets.iter().try_for_each(|(topic, offset)| write!(f, ";{topic}={offset}"))
    }
}

pub async fn events(
    State(gateway): State<Arc<Gateway>>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
    user: AuthenticatedUser,
) -> Outcome<Response> {
    let claims = Arc::new(user.claims);
    gateway.takes_connections()?;
    let counted = gateway.users.seat(&claims.sub).await?;
    let cursor = match headers.get("last-event-id").map(HeaderValue::to_str) {
        None | Some(Ok("")) => None,
        // An unreadable cursor counts as a position that does not exist. Browsers repeat the header for ever, so a
        // refusal would end the stream for good.
        Some(text) => Some(text.ok().and_then(StreamCursor::parse).unwrap_or_default()),
    };
    let own: Arc<str> = format!("user:{}", claims.sub).into();
    let mut topics = vec![own.clone()];
    for (name, topic) in query {
        if name != "topic" {
            return Err(Problem::field(
                "/topic",
                "is the only parameter allowed; repeat it for several topics",
            ));
        }
        split_topic(&topic)?;
        if !topics.iter().any(|known| **known == *topic) {
            topics.push(topic.into());
        }
    }
    if topics.len() > MAX_TOPICS {
        return Err(Problem::rejected(
            "too_many_subscriptions",
            format!("a stream may have {MAX_TOPICS} topics"),
        ));
    }
    let listener = Listener::start(gateway, claims, topics, cursor, counted).await?;
    let every = Duration::from_millis(listener.gateway.options.websocket.ping_ms);
    let events = stream::unfold(listener, |mut listener| async move {
        let event = listener.next().await?;
        Some((Ok::<_, Infallible>(event), listener))
    });
    Ok(event_stream(events, every))
}

/// Events as a response, with a comment in between where there are none for so long.
pub fn event_stream(
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
    every: Duration,
) -> Response {
    let mut response =
        Sse::new(events.boxed()).keep_alive(KeepAlive::new().interval(every)).into_response();
    // Proxies that buffer responses would hold events back.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// One event stream. It runs in the connection's task: while the client does not read, no event is taken, new ones wait
/// within the limit of [`Feed`], and beyond that limit the stream ends.
struct Listener {
    gateway: Arc<Gateway>,
    claims: Arc<Claims>,
    feed: Feed,
    cursor: StreamCursor,
    ready: VecDeque<Event>,
    publications: Vec<Arc<Published>>,
    revocations: watch::Receiver<Revocations>,
    leaving: watch::Receiver<Leaving>,
    token_warning: Option<Instant>,
    token_end: Instant,
    leaves_at: Option<Instant>,
    ended: bool,
    _counted: ConnectionSlot,
    _opened: Opened,
}

impl Listener {
    async fn start(
        gateway: Arc<Gateway>,
        claims: Arc<Claims>,
        topics: Vec<Arc<str>>,
        cursor: Option<StreamCursor>,
        counted: ConnectionSlot,
    ) -> Outcome<Self> {
        let left = claims.expires_at().duration_since(gateway.now());
        let token_end = Instant::now() + Duration::try_from(left).unwrap_or_default();
        let mut revocations = gateway.auth.revocations();
        revocations.mark_changed();
        let mut leaving = gateway.readiness.leaving();
        leaving.mark_changed();
        let mut feed = Feed::new(gateway.clone());
        let wanted = topics.into_iter().map(|topic| {
            let position = cursor.as_ref().map(|cursor| cursor.position(&topic));
            (topic.clone(), feed.track(topic), position)
        });
        let wanted = wanted.collect();
        let started = subscribe::start_all(&gateway, &claims, &feed.outgoing, wanted).await;
        if let Some(problem) = subscribe::own_refused(&started, &claims) {
            return Err(problem);
        }
        let shown = subscribe::shown(&started);
        let mut listener = Self {
            cursor: StreamCursor { epoch: gateway.epoch().to_string(), ..StreamCursor::default() },
            _opened: gateway.connections.opened(),
            _counted: counted,
            ready: VecDeque::new(),
            publications: Vec::new(),
            token_warning: Some(token_end.checked_sub(WARNING).unwrap_or(token_end)),
            token_end,
            leaves_at: None,
            ended: false,
            gateway,
            claims,
            feed,
            revocations,
            leaving,
        };
        for (topic, _, outcome) in &started {
            if let Ok(started) = outcome
                && !listener.gateway.is_ephemeral(topic)
            {
                listener.cursor.offsets.insert(topic.clone(), started.after);
            }
        }
        let data = json!({
            "user_id": listener.claims.sub,
            "expires_at": listener.claims.expires_at(),
            "ping_ms": listener.gateway.options.websocket.ping_ms,
            "topics": shown,
        });
        let id = listener.cursor.to_string();
        listener.ready.push_back(Event::default().event("ready").id(id).data(data.to_string()));
        for (_, key, outcome) in started {
            let begun = listener.feed.begin(key, outcome.ok(), &mut listener.publications);
            listener.unless_cut(begun);
        }
        Ok(listener)
    }

    /// The next event; `None`: the stream has ended.
    async fn next(&mut self) -> Option<Event> {
        loop {
            for published in std::mem::take(&mut self.publications) {
                self.publication(&published);
            }
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            let deadline = [self.token_warning, self.leaves_at]
                .into_iter()
                .flatten()
                .fold(self.token_end, Instant::min);
            tokio::select! {
                page = self.feed.ready() => {
                    let done = match page {
                        Some(page) => self.feed.page(page, &mut self.publications),
                        None => self.take(),
                    };
                    self.unless_cut(done);
                }
                Ok(()) = self.revocations.changed() => {
                    self.revocations.borrow_and_update();
                    if self.gateway.auth.is_revoked(&self.claims) {
                        self.close(Close::Revoked);
                    }
                }
                Ok(()) = self.leaving.changed() => {
                    let leaving = *self.leaving.borrow_and_update();
                    match leaving {
                        Leaving::No => {}
                        Leaving::Evicted => self.close(Close::Evicted),
                        Leaving::Draining => {
                            let spread = self.gateway.options.drain;
                            let at = spread.mul_f64(rand::random_range(0.0..1.0));
                            self.leaves_at = Some(Instant::now() + at);
                        }
                    }
                }
                () = tokio::time::sleep_until(deadline) => self.tick(),
            }
        }
    }

    fn publication(&mut self, published: &Published) {
        let mut event = Event::default().event(&*published.event).data(published.text());
        if let Some(offset) = published.offset {
            self.cursor.offsets.insert(published.topic.clone(), offset);
            event = event.id(self.cursor.to_string());
        }
        self.ready.push_back(event);
    }

    fn take(&mut self) -> Result<(), Cut> {
        while let Some(published) = self.feed.next()? {
            self.publications.push(published);
        }
        Ok(())
    }

    fn unless_cut(&mut self, done: Result<(), Cut>) {
        match done {
            Ok(()) => {}
            Err(cut) => self.close(cut.into()),
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if self.token_end <= now {
            self.close(Close::TokenExpired);
        } else if self.leaves_at.is_some_and(|at| at <= now) {
            self.close(Close::Draining);
        } else if self.token_warning.is_some_and(|at| at <= now) {
            self.token_warning = None;
            let data = json!({"expires_at": self.claims.expires_at()});
            let frame = json!({"event": "token:expiring", "data": data}).to_string();
            self.ready.push_back(Event::default().event("token:expiring").data(frame));
        }
    }

    /// Ends the stream with `close`, after the publications that were already taken from the queue.
    fn close(&mut self, close: Close) {
        let reason = close.reason(self.gateway.options.drain);
        let data = json!({"code": close.code(), "reason": reason}).to_string();
        for published in std::mem::take(&mut self.publications) {
            self.publication(&published);
        }
        self.ready.push_back(Event::default().event("close").data(data));
        self.feed.clear();
        self.ended = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_goes_there_and_back() {
        let text = "ep1;session:ses_1=12;user:alice=3";
        let cursor = StreamCursor::parse(text).unwrap();
        assert_eq!(cursor.to_string(), text);
        assert_eq!(cursor.position("user:alice").offset, 3);
        assert_eq!(StreamCursor::parse("ep1").unwrap().position("user:alice").offset, NOWHERE);
        let many: String = (0..40).map(|n| format!(";user:u{n}=1")).collect();
        for bad in
            ["", "-", ";user:a=1", "e;user:a", "e;user:a=x", "e;nonsense=1", &format!("e{many}")]
        {
            assert_eq!(StreamCursor::parse(bad), None, "{bad}");
        }
    }
}
