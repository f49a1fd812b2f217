//! The topics that one client listens to, over any transport: which publications it gets, in which order, and when
//! history is read for it.

mod outgoing;
pub mod subscribe;
mod track;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};

use crate::cluster::topics::{Published, Subscription};
use crate::contract::problem::Outcome;
use crate::contract::topic::TopicDelivery;
use crate::gateway::Gateway;
use crate::gateway::ws::protocol::{Close, split_topic};
use crate::persistence::publications::History;

pub use outgoing::SendQueue;
use outgoing::{Overflowed, QueuedItem};
use subscribe::StartedSubscription;
use track::{ReplayStep, Track};

/// Pause before a failed read of history is tried again.
const READ_AGAIN: Duration = Duration::from_millis(500);

/// Why a client cannot go on from where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// More publications were waiting for it than are kept.
    TooSlow,
    /// The publication that it needs next is no longer kept.
    HistoryLost,
}

impl From<Cut> for Close {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::TooSlow => Self::SlowConsumer,
            Cut::HistoryLost => Self::HistoryLost,
        }
    }
}

/// One subscription of the client.
struct Listening {
    /// The subscription's key. A later subscription to the same topic has a new key, so publications for the earlier
    /// one are dropped.
    key: u64,
    topic: Arc<str>,
    track: Track,
    _handle: Option<Subscription>,
}

/// A page of history that has been read.
pub struct HistoryPage {
    key: u64,
    after: i64,
    outcome: Outcome<Arc<History>>,
}

pub struct Feed {
    gateway: Arc<Gateway>,
    pub outgoing: Arc<SendQueue>,
    /// Items taken from `outgoing`, to be sent next.
    taken: VecDeque<QueuedItem>,
    /// A list rather than a map: most clients have few subscriptions, and their number is bounded.
    topics: Vec<Listening>,
    next_key: u64,
    /// Reads of history under way, at most one page per topic.
    reading: FuturesUnordered<BoxFuture<'static, HistoryPage>>,
}

impl Feed {
    pub fn new(gateway: Arc<Gateway>) -> Self {
        let limit = gateway.options.websocket.send_buffer_bytes;
        Self {
            gateway,
            outgoing: Arc::new(SendQueue::new(limit)),
            taken: VecDeque::new(),
            topics: Vec::new(),
            next_key: 0,
            reading: FuturesUnordered::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.topics.len()
    }

    pub fn has(&self, topic: &str) -> bool {
        self.topics.iter().any(|listening| *listening.topic == *topic)
    }

    pub fn remove(&mut self, topic: &str) {
        self.topics.retain(|listening| *listening.topic != *topic);
    }

    pub fn clear(&mut self) {
        self.topics.clear();
        self.reading.clear();
    }

    /// Adds a subscription, replacing an earlier one to the same topic, and returns its key.
    pub fn track(&mut self, topic: Arc<str>) -> u64 {
        self.remove(&topic);
        self.next_key += 1;
        let latest_only =
            self.gateway.carriage(&topic) == TopicDelivery::Lossy { latest_only: true };
        let key = self.next_key << 1 | u64::from(latest_only);
        self.topics.push(Listening { key, topic, track: Track::starting(), _handle: None });
        key
    }

    fn get(&mut self, key: u64) -> Option<&mut Listening> {
        let at = self.topics.binary_search_by_key(&key, |listening| listening.key).ok()?;
        self.topics.get_mut(at)
    }

    /// Begins to deliver, once the client has the reply to its subscription: first what it missed, then live
    /// publications. `None`: the subscription failed.
    pub fn begin(
        &mut self,
        key: u64,
        started: Option<StartedSubscription>,
        out: &mut Vec<Arc<Published>>,
    ) -> Result<(), Cut> {
        let Some(listening) = self.get(key) else { return Ok(()) };
        let Some(StartedSubscription { handle, after, page, .. }) = started else {
            self.topics.retain(|listening| listening.key != key);
            return Ok(());
        };
        listening._handle = Some(handle);
        let next = listening.track.start(after);
        let topic = listening.topic.clone();
        self.ask_presence(&topic);
        match page {
            Some(history) => self.page(HistoryPage { key, after, outcome: Ok(history) }, out),
            None => self.go_on(key, next),
        }
    }

    /// Asks for the user's current presence, since it has no history.
    fn ask_presence(&self, topic: &str) {
        if let Some(user) = topic.strip_prefix("presence:") {
            self.gateway.presence.ask(user);
        }
    }

    /// Waits until a publication is queued (`None`) or a page has been read.
    pub async fn ready(&mut self) -> Option<HistoryPage> {
        poll_fn(|cx| match self.poll_page(cx) {
            Poll::Ready(page) => Poll::Ready(Some(page)),
            Poll::Pending => self.poll_publications(cx).map(|()| None),
        })
        .await
    }

    pub fn poll_publications(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.taken.is_empty() { self.outgoing.poll_ready(cx) } else { Poll::Ready(()) }
    }

    pub fn poll_page(&mut self, cx: &mut Context<'_>) -> Poll<HistoryPage> {
        // Polling an empty set would still register the waker, so it is skipped.
        if !self.reading.is_empty()
            && let Poll::Ready(Some(page)) = self.reading.poll_next_unpin(cx)
        {
            return Poll::Ready(page);
        }
        Poll::Pending
    }

    pub fn page(&mut self, page: HistoryPage, out: &mut Vec<Arc<Published>>) -> Result<(), Cut> {
        let HistoryPage { key, after, outcome } = page;
        let Ok(history) = outcome else {
            // The store is unavailable. The client resumes from the same offset once it is back.
            self.read_after(key, after, READ_AGAIN);
            return Ok(());
        };
        let Some(listening) = self.get(key) else { return Ok(()) };
        for item in &history.items {
            if listening.track.replayed(item.offset) {
                let Listening { topic, .. } = listening;
                let from = item.from.as_deref();
                out.push(Published::said(topic, Some(item.offset), &item.event, from, &item.data));
            }
        }
        let next = listening.track.page_ended(after, history.head, history.complete);
        self.go_on(key, next)
    }

    /// The next queued publication that the client is to get.
    pub fn next(&mut self) -> Result<Option<Arc<Published>>, Cut> {
        loop {
            if self.taken.is_empty() {
                self.outgoing.take(&mut self.taken).map_err(|Overflowed| Cut::TooSlow)?;
            }
            let Some(QueuedItem { key, published }) = self.taken.pop_front() else {
                return Ok(None);
            };
            let Some(listening) = self.get(key) else { continue };
            let Some(published) = published else {
                self.resync(key)?;
                continue;
            };
            match listening.track.publication(published.offset) {
                ReplayStep::Send => return Ok(Some(published)),
                next => self.go_on(key, next)?,
            }
        }
    }

    /// Reads history again, since publications may have been lost between nodes. Live ones are still sent meanwhile.
    fn resync(&mut self, key: u64) -> Result<(), Cut> {
        let Some(listening) = self.get(key) else { return Ok(()) };
        let topic = listening.topic.clone();
        if self.gateway.is_ephemeral(&topic) {
            self.ask_presence(&topic);
            return Ok(());
        }
        let next = self.get(key).map_or(ReplayStep::Skip, |listening| listening.track.resync());
        self.go_on(key, next)
    }

    fn go_on(&mut self, key: u64, next: ReplayStep) -> Result<(), Cut> {
        match next {
            ReplayStep::Send | ReplayStep::Skip => {}
            ReplayStep::Read { after } => self.read_after(key, after, Duration::ZERO),
            ReplayStep::Lost => return Err(Cut::HistoryLost),
        }
        Ok(())
    }

    /// Queues the read of a page. It starts when polled, which is once the previous page is in the socket, so a replay
    /// goes as fast as its reader.
    fn read_after(&mut self, key: u64, after: i64, delay: Duration) {
        let gateway = self.gateway.clone();
        let Some(topic) = self.get(key).map(|listening| listening.topic.clone()) else { return };
        let reading = async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let outcome = async {
                let (kind, key) = split_topic(&topic)?;
                Ok(gateway.histories()?.after(kind, key, after).await?)
            }
            .await;
            HistoryPage { key, after, outcome }
        };
        self.reading.push(reading.boxed());
    }
}
