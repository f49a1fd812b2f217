//! A socket, from its upgrade to its close. One task does its I/O and its protocol, so a frame costs no hop to another
//! task.
//!
//! It waits for the first of these: a frame, a publication, the outcome of a command, a deadline, a revocation, the
//! node's drain. Publications and replies that are ready together go out in one write. Nothing is read from a client
//! that does not read.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::Opened;
use super::deadlines::{Deadlines, LAST_REPLIES};
use super::dispatch::{InFlight, TaskOutcome};
use super::ending::{Ending, Flow, ending_of, unless_too_slow};
use super::gate::Gate;
use super::guards::{HoldGuard, Present};
use super::protocol::{self, Close, Frame, Parsed};
use super::socket::Socket;
use crate::cluster::topics::Published;
use crate::contract::connection::ConnectionHold;
use crate::contract::problem::Outcome;
use crate::gateway::accept::Admitted;
use crate::gateway::auth::{Claims, Revocations};
use crate::gateway::listening::{Feed, HistoryPage};
use crate::gateway::users::ConnectionSlot;
use crate::gateway::{Gateway, Leaving};
use crate::kernel::bucket::Bucket;

pub struct Arguments {
    pub gateway: Arc<Gateway>,
    pub socket: Socket,
    /// The claims from the `Authorization` header.
    pub claims: Option<Arc<Claims>>,
    pub user: Option<ConnectionSlot>,
    pub opened: Opened,
    pub admitted: Option<Admitted>,
}

impl Arguments {
    /// Gives the connection to a gateway actor.
    pub fn start(self) {
        let gateway = self.gateway.clone();
        gateway.connections.owners.own(self);
    }
}

/// Owns the socket until it is closed.
pub async fn run(arguments: Arguments) {
    let mut connection = Box::new(Connection::new(arguments));
    let ending = connection.serve().await;
    connection.finish(ending).await;
}

pub struct Connection {
    pub gateway: Arc<Gateway>,
    pub id: Arc<str>,
    pub claims: Option<Arc<Claims>>,
    pub user: Option<ConnectionSlot>,
    pub topics: Feed,
    /// Commands whose outcome is awaited. They are bounded: beyond, commands are refused.
    pub in_flight: FuturesUnordered<InFlight>,
    /// Publications from a history, which go out with the next write, before live ones.
    pub publications: Vec<Arc<Published>>,
    /// Replies that are ready.
    answers: Vec<Message>,
    /// Whether authentication is under way. Frames that arrive meanwhile are read after it.
    pub authenticating: bool,
    /// A frame that came before its connection had subscribed to its user.
    pub held: Option<Frame>,
    pub present: Option<Present>,
    /// The holds that operations have placed on the connection, at most one per operation.
    pub holds: Vec<HoldGuard>,
    pub deadlines: Deadlines,
    /// The close code to end with, once the replies on their way have been sent.
    pub last_words: Option<Close>,
    socket: Socket,
    /// Whether publications had the last turn.
    published_last: bool,
    /// The gate in front of reading from the socket.
    inbound: Gate,
    /// Rate limit of the positions that `auth` names: each costs a read, as if the client had subscribed to its topic
    /// alone.
    pub positions: Bucket,
    /// Frames that are not counted against the user's limit yet.
    uncounted: u32,
    news: FuturesUnordered<BoxFuture<'static, News>>,
    /// Rings at the next deadline, or earlier if that deadline has been postponed.
    alarm: Pin<Box<Sleep>>,
    /// When the alarm rings; `None`: it has rung.
    alarm_at: Option<Instant>,
    /// The gate in front of the news and the alarm, which are rare.
    rare: Gate,
    leaving: watch::Receiver<Leaving>,
    _opened: Opened,
    _admitted: Option<Admitted>,
}

/// The next thing that a connection has to do.
enum Event {
    Publications,
    Message(Option<Result<Message, axum::Error>>),
    Done(TaskOutcome),
    Page(HistoryPage),
    News(News),
    Alarm,
}

/// Rare events of a connection, besides frames and publications.
enum News {
    /// Whether the user may go on sending, given the frames over all of their connections.
    Counted(bool),
    Revoked(watch::Receiver<Revocations>),
    Leaving(watch::Receiver<Leaving>),
}

async fn revocation(mut revocations: watch::Receiver<Revocations>) -> News {
    match revocations.changed().await {
        Ok(()) => News::Revoked(revocations),
        Err(_) => std::future::pending().await,
    }
}

async fn leave(mut leaving: watch::Receiver<Leaving>) -> News {
    match leaving.changed().await {
        Ok(()) => News::Leaving(leaving),
        Err(_) => std::future::pending().await,
    }
}

/// Time that a client with a header has to send positions with `auth` before it listens "from now".
const LISTEN_AFTER: Duration = Duration::from_secs(1);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of publications that are sent in a row before anything else gets its turn.
const BATCH_BYTES: usize = 64 * 1024;
/// Frames of a connection that are counted against the user's limit together.
const COUNTED_AT_ONCE: u32 = 64;
/// Frames that are read in a row before anything else gets its turn.
const FRAMES_IN_A_ROW: usize = 32;

impl Connection {
    fn new(arguments: Arguments) -> Self {
        let Arguments { gateway, socket, claims, user, opened, admitted } = arguments;
        let now = Instant::now();
        let limits = &gateway.options.websocket;
        let leaving = gateway.readiness.leaving();
        let mut revocations = gateway.auth.revocations();
        // The token may have been revoked between the upgrade and now.
        revocations.mark_changed();
        let mut connection = Self {
            id: gateway.mint("con").into(),
            topics: Feed::new(gateway.clone()),
            publications: Vec::new(),
            in_flight: FuturesUnordered::new(),
            answers: Vec::new(),
            authenticating: false,
            held: None,
            present: None,
            holds: Vec::new(),
            deadlines: Deadlines {
                auth: None,
                listen: None,
                token_warning: None,
                token_end: None,
                // Spread, so that connections that were opened together do not ping together.
                ping: now
                    + Duration::from_millis(limits.ping_ms).mul_f64(rand::random_range(0.8..1.0)),
                pong: None,
                leave: None,
                end: None,
                holds: None,
            },
            last_words: None,
            socket,
            published_last: false,
            inbound: Gate::default(),
            rare: Gate::default(),
            uncounted: 0,
            positions: Bucket::new(
                limits.frames_per_s,
                u32::try_from(limits.max_subscriptions).unwrap_or(u32::MAX),
                now.into_std(),
            ),
            news: [revocation(revocations).boxed(), leave(leaving.clone()).boxed()]
                .into_iter()
                .collect(),
            alarm: Box::pin(tokio::time::sleep_until(now)),
            alarm_at: None,
            leaving,
            claims: None,
            user,
            _opened: opened,
            _admitted: admitted,
            gateway,
        };
        match claims {
            Some(claims) => {
                connection.deadlines.listen = Some(now + LISTEN_AFTER);
                connection.identify(claims);
            }
            None => {
                let timeout = connection.gateway.options.websocket.auth_timeout_ms;
                connection.deadlines.auth = Some(now + Duration::from_millis(timeout));
            }
        }
        // The drain may have begun between the upgrade and now.
        connection.plan_to_leave();
        connection
    }

    /// Makes the connection speak for this user from now on, until the token expires.
    pub fn identify(&mut self, claims: Arc<Claims>) {
        let now = Instant::now();
        let left = claims.expires_at().duration_since(self.gateway.now());
        let left = Duration::try_from(left).unwrap_or_default();
        self.deadlines.auth = None;
        self.deadlines.token_end = Some(now + left);
        self.deadlines.token_warning = Some(now + left.saturating_sub(Duration::from_secs(60)));
        self.claims = Some(claims);
    }

    async fn serve(&mut self) -> Ending {
        loop {
            if let Err(ending) = self.step().await {
                return ending;
            }
        }
    }

    async fn step(&mut self) -> Flow {
        // Nothing more is read from a client that is being closed.
        let reads = !self.authenticating && self.last_words.is_none() && !self.is_leaving();
        let next = self.deadlines.next();
        if self.alarm_at.is_none_or(|at| next < at) {
            self.alarm.as_mut().reset(next);
            self.alarm_at = Some(next);
            self.rare.open();
        }
        let event = loop {
            match poll_fn(|cx| self.poll_event(cx, reads)).await {
                // Publications do not change `reads` or the deadlines, so the loop can go on.
                Event::Publications if self.last_words.is_none() => {
                    self.send_publications().await?;
                    self.flush().await?;
                }
                event => break event,
            }
        };
        match event {
            Event::Publications => {}
            Event::Message(message) => {
                self.incoming(message)?;
                // Read the other frames that have arrived before writing anything.
                for _ in 0..FRAMES_IN_A_ROW {
                    if self.authenticating || self.last_words.is_some() {
                        break;
                    }
                    let (socket, inbound) = (&mut self.socket, &mut self.inbound);
                    let more =
                        |cx: &mut Context<'_>| inbound.poll(cx, |cx| socket.poll_next_unpin(cx));
                    let Poll::Ready(message) = poll_once(more).await else { break };
                    self.incoming(message)?;
                }
            }
            Event::Done(done) => self.done(done).await?,
            Event::Page(page) => self.topics.page(page, &mut self.publications)?,
            Event::News(news) => self.hear(news)?,
            Event::Alarm => {
                self.alarm_at = None;
                self.tick().await?;
            }
        }
        self.send_answers().await?;
        // Outcomes that are already there go into the same write.
        while !self.in_flight.is_empty()
            && let Some(Some(done)) = self.in_flight.next().now_or_never()
        {
            self.done(done).await?;
        }
        self.send_answers().await?;
        self.send_publications().await?;
        self.flush().await?;
        match self.last_words {
            Some(close) if self.in_flight.is_empty() => Err(Ending::Close(close)),
            Some(_) => Ok(()),
            None if self.is_leaving() && self.in_flight.is_empty() => {
                Err(Ending::Close(Close::Draining))
            }
            None => Ok(()),
        }
    }

    /// The next event. Publications may never end, so they get only every other turn.
    fn poll_event(&mut self, cx: &mut Context<'_>, reads: bool) -> Poll<Event> {
        let had_their_turn = std::mem::replace(&mut self.published_last, false);
        if !had_their_turn && self.topics.poll_publications(cx).is_ready() {
            self.published_last = true;
            return Poll::Ready(Event::Publications);
        }
        let (news, alarm) = (&mut self.news, &mut self.alarm);
        let rare = self.rare.poll(cx, |cx| match alarm.poll_unpin(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => news.poll_next_unpin(cx),
        });
        if let Poll::Ready(news) = rare {
            return Poll::Ready(news.map_or(Event::Alarm, Event::News));
        }
        if let Poll::Ready(page) = self.topics.poll_page(cx) {
            return Poll::Ready(Event::Page(page));
        }
        if !self.in_flight.is_empty()
            && let Poll::Ready(Some(done)) = self.in_flight.poll_next_unpin(cx)
        {
            return Poll::Ready(Event::Done(done));
        }
        let socket = &mut self.socket;
        if reads
            && let Poll::Ready(message) = self.inbound.poll(cx, |cx| socket.poll_next_unpin(cx))
        {
            return Poll::Ready(Event::Message(message));
        }
        if had_their_turn && self.topics.poll_publications(cx).is_ready() {
            self.published_last = true;
            return Poll::Ready(Event::Publications);
        }
        Poll::Pending
    }

    fn hear(&mut self, news: News) -> Flow {
        match news {
            News::Leaving(leaving) => {
                let evicted = *leaving.borrow() == Leaving::Evicted;
                self.news.push(leave(leaving).boxed());
                if evicted {
                    return Err(Ending::Close(Close::Evicted));
                }
                self.plan_to_leave();
            }
            News::Counted(true) => {}
            News::Counted(false) => return Err(Ending::Close(Close::TooManyFrames)),
            News::Revoked(revocations) => {
                self.news.push(revocation(revocations).boxed());
                let revoked = |claims: &Arc<Claims>| self.gateway.auth.is_revoked(claims);
                if self.claims.as_ref().is_some_and(revoked) {
                    return Err(Ending::Close(Close::Revoked));
                }
            }
        }
        Ok(())
    }

    fn incoming(&mut self, message: Option<Result<Message, axum::Error>>) -> Flow {
        let message = match message {
            None => return Err(Ending::Gone),
            Some(Err(error)) => match ending_of(error) {
                Ending::Close(Close::FrameTooLarge) => {
                    self.end_with(Close::FrameTooLarge);
                    return Ok(());
                }
                ending => return Err(ending),
            },
            Some(Ok(message)) => message,
        };
        // Any sign of life is as good as a pong.
        self.deadlines.pong = None;
        let frames = self.socket.frames();
        self.count(frames);
        match message {
            Message::Text(text) => match protocol::parse(text.as_str()) {
                Parsed::Frame(frame) => {
                    self.gateway.frames.increment(1);
                    self.frame(frame);
                }
                Parsed::Refused { id, problem } => {
                    self.answers.push(protocol::refusal(&id, &problem));
                }
                Parsed::Unanswerable(why) => {
                    tracing::debug!(connection = %self.id, why, "a frame cannot be answered");
                    self.end_with(Close::BadFrame);
                }
            },
            Message::Binary(_) | Message::Frame(_) => self.end_with(Close::BadFrame),
            Message::Close(_) => return Err(Ending::Gone),
            Message::Ping(_) | Message::Pong(_) => {}
        }
        Ok(())
    }

    /// Stops reading, and closes once the commands in flight have been answered.
    pub fn end_with(&mut self, close: Close) {
        self.last_words = Some(close);
        self.deadlines.end = Some(Instant::now() + LAST_REPLIES);
    }

    /// Counts frames against the user's limit, many at a time, since they may be counted on another machine.
    pub fn count(&mut self, frames: u32) {
        self.uncounted = self.uncounted.saturating_add(frames);
        let Some(claims) = self.claims.as_ref().filter(|_| self.uncounted >= COUNTED_AT_ONCE)
        else {
            return;
        };
        let (gateway, claims) = (self.gateway.clone(), claims.clone());
        let frames = std::mem::take(&mut self.uncounted);
        let counting =
            async move { News::Counted(gateway.users.may_send(&claims.sub, frames).await) };
        self.news.push(counting.boxed());
        self.rare.open();
    }

    pub fn answer(&mut self, id: &str, outcome: Outcome) {
        self.answers.push(protocol::reply(id, &outcome));
    }

    async fn send_answers(&mut self) -> Flow {
        for answer in std::mem::take(&mut self.answers) {
            self.feed(answer).await?;
        }
        Ok(())
    }

    async fn send_publications(&mut self) -> Flow {
        self.feed_publications().await?;
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some(published) = self.topics.next()?
        {
            bytes += published.frame.len();
            self.feed_publication(&published).await?;
        }
        Ok(())
    }

    pub async fn feed_publications(&mut self) -> Flow {
        for published in std::mem::take(&mut self.publications) {
            self.feed_publication(&published).await?;
        }
        Ok(())
    }

    async fn feed_publication(&mut self, published: &Published) -> Flow {
        match Utf8Bytes::try_from(published.frame.clone()) {
            Ok(text) => self.feed(Message::Text(text)).await,
            Err(_) => Ok(()),
        }
    }

    /// Puts a message into the socket's buffer, which is written when it is full or flushed.
    pub async fn feed(&mut self, message: Message) -> Flow {
        match poll_once(|cx| self.socket.poll_ready_unpin(cx)).await {
            Poll::Ready(ready) => {
                ready.and_then(|()| self.socket.start_send_unpin(message)).map_err(ending_of)
            }
            Poll::Pending => {
                unless_too_slow(&self.topics.outgoing, self.socket.feed(message)).await
            }
        }
    }

    async fn flush(&mut self) -> Flow {
        match poll_once(|cx| self.socket.poll_flush_unpin(cx)).await {
            Poll::Ready(flushed) => flushed.map_err(ending_of),
            Poll::Pending => unless_too_slow(&self.topics.outgoing, self.socket.flush()).await,
        }
    }

    async fn tick(&mut self) -> Flow {
        let now = Instant::now();
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let limits = &self.gateway.options.websocket;
        if due(self.deadlines.auth) {
            return Err(Ending::Close(Close::AuthTimeout));
        }
        if due(self.deadlines.pong) {
            return Err(Ending::Close(Close::HeartbeatTimeout));
        }
        if self.deadlines.leave.is_some_and(|at| at + LAST_REPLIES <= now) {
            return Err(Ending::Close(Close::Draining));
        }
        if let Some(close) = self.last_words.filter(|_| due(self.deadlines.end)) {
            return Err(Ending::Close(close));
        }
        if self.deadlines.ping <= now {
            self.deadlines.ping = now + Duration::from_millis(limits.ping_ms);
            // If pings are more frequent than the pong timeout is long, the first ping's timeout still counts.
            let timeout = Duration::from_millis(limits.pong_timeout_ms);
            self.deadlines.pong.get_or_insert(now + timeout);
            self.holds.iter().for_each(HoldGuard::renew);
            self.feed(Message::Ping(Default::default())).await?;
        }
        if due(self.deadlines.token_end) {
            return Err(Ending::Close(Close::TokenExpired));
        }
        if due(self.deadlines.token_warning) {
            self.deadlines.token_warning = None;
            if let Some(claims) = &self.claims {
                let data = serde_json::json!({"expires_at": claims.expires_at()});
                self.feed(protocol::event("token:expiring", &data)).await?;
            }
        }
        if due(self.deadlines.listen) {
            self.listen_to_user(None, Vec::new());
        }
        if due(self.deadlines.holds) {
            self.holds.retain(|held| held.until.is_none_or(|at| at > now));
            self.deadlines.holds = self.holds.iter().filter_map(|held| held.until).min();
        }
        Ok(())
    }

    /// Adds a hold, replacing an earlier one of the same operation.
    pub fn hold(&mut self, held: HoldGuard) {
        let hold = held.hold;
        self.holds.retain_mut(|other| {
            let replaced = std::ptr::eq(other.hold, hold);
            // The hold was requested twice at once, and one guard is enough.
            other.is_over = replaced && other.name == held.name;
            !replaced
        });
        self.holds.push(held);
        self.deadlines.holds = self.holds.iter().filter_map(|held| held.until).min();
    }

    /// Forgets a hold that its operation has already ended.
    pub fn release(&mut self, hold: &'static ConnectionHold) {
        self.holds.retain_mut(|held| {
            held.is_over = std::ptr::eq(held.hold, hold);
            !held.is_over
        });
    }

    /// Picks a random moment to leave, so that the connections of this node do not leave all at once.
    fn plan_to_leave(&mut self) {
        if *self.leaving.borrow() != Leaving::No && self.deadlines.leave.is_none() {
            let spread = self.gateway.options.drain;
            self.deadlines.leave =
                Some(Instant::now() + spread.mul_f64(rand::random_range(0.0..1.0)));
        }
    }

    fn is_leaving(&self) -> bool {
        self.deadlines.leave.is_some_and(|at| at <= Instant::now())
    }

    async fn finish(&mut self, ending: Ending) {
        self.present = None;
        self.holds.clear();
        // Nothing more will be delivered. Commands in flight go on without the connection, and their effects are
        // durable.
        self.topics.clear();
        self.in_flight.clear();
        if let Ending::Close(close) = ending {
            metrics::counter!("proxie_ws_closed_total", "code" => close.code().to_string())
                .increment(1);
            let frame = close.frame(self.gateway.options.drain);
            let answers = std::mem::take(&mut self.answers);
            let last = answers.into_iter().chain([Message::Close(Some(frame))]).map(Ok);
            let mut last = futures_util::stream::iter(last);
            let said = self.socket.send_all(&mut last);
            if tokio::time::timeout(CLOSE_TIMEOUT, said).await.is_err() {
                return;
            }
        }
        // Wait until the client has closed too: dropping a socket with unread data resets it, and the close reason is
        // lost.
        let closed = async { while let Some(Ok(_)) = self.socket.next().await {} };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
    }
}

/// Polls once without waiting. If it is pending, the task is woken when the polled thing is ready.
async fn poll_once<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    poll_fn(|cx| Poll::Ready(poll(cx))).await
}
