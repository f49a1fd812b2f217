//! The topics that one client listens to, however it is connected: what it gets, in which order, and when history is
//! read for it.

mod outgoing;
pub mod subscribe;
mod track;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};

use crate::cluster::topics::{Published, Subscription};
use crate::gateway::Gateway;
use crate::gateway::problem::Outcome;
use crate::gateway::ws::protocol::split_topic;
use crate::persistence::publications::History;

use outgoing::Item;
pub use outgoing::Outgoing;
use subscribe::{PAGE, Started, is_ephemeral};
use track::{Next, Track};

/// Publications that are taken from the queue at once.
const BATCH_BYTES: usize = 64 * 1024;
/// Before a history that could not be read is tried again.
const READ_AGAIN: Duration = Duration::from_millis(500);

/// Why a client cannot go on from where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// More was waiting for it than is kept.
    TooSlow,
    /// What it needs next is not kept any more.
    HistoryLost,
}

/// One topic.
struct Listening {
    track: Track,
    /// Of the subscription: a later one to the same topic takes over, and outcomes of the earlier one that come after
    /// that are not for it.
    generation: u64,
    _handle: Option<Subscription>,
}

/// A page of history that has been read.
pub struct Page {
    topic: Arc<str>,
    generation: u64,
    after: i64,
    outcome: Outcome<History>,
}

pub struct Feed {
    gateway: Arc<Gateway>,
    pub outgoing: Arc<Outgoing>,
    topics: HashMap<Arc<str>, Listening>,
    generation: u64,
    /// At most one page a topic.
    reading: FuturesUnordered<BoxFuture<'static, Page>>,
}

impl Feed {
    pub fn new(gateway: Arc<Gateway>) -> Self {
        let limit = gateway.options.websocket.send_buffer_bytes;
        Self {
            gateway,
            outgoing: Arc::new(Outgoing::new(limit)),
            topics: HashMap::new(),
            generation: 0,
            reading: FuturesUnordered::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.topics.len()
    }

    pub fn has(&self, topic: &str) -> bool {
        self.topics.contains_key(topic)
    }

    pub fn remove(&mut self, topic: &str) {
        self.topics.remove(topic);
    }

    pub fn clear(&mut self) {
        self.topics.clear();
        self.reading.clear();
    }

    /// Makes room for a subscription, in the place of an earlier one to the same topic.
    pub fn track(&mut self, topic: Arc<str>) -> u64 {
        self.generation += 1;
        let listening =
            Listening { track: Track::starting(), generation: self.generation, _handle: None };
        self.topics.insert(topic, listening);
        self.generation
    }

    fn current(&mut self, topic: &str, generation: u64) -> Option<&mut Listening> {
        self.topics.get_mut(topic).filter(|listening| listening.generation == generation)
    }

    /// The client knows of its subscription: now what it missed, then what is live. `None`: there is none.
    pub fn begin(
        &mut self,
        topic: Arc<str>,
        generation: u64,
        started: Option<Started>,
        out: &mut Vec<Published>,
    ) -> Result<(), Cut> {
        let Some(listening) = self.current(&topic, generation) else { return Ok(()) };
        let Some(Started { handle, after, page, .. }) = started else {
            self.topics.remove(&topic);
            return Ok(());
        };
        listening._handle = Some(handle);
        let next = listening.track.start(after);
        if let Some(user) = topic.strip_prefix("presence:") {
            self.gateway.presence.ask(user);
        }
        match page {
            Some(history) => {
                let page = Page { topic, generation, after, outcome: Ok(history) };
                self.page(page, out)
            }
            None => self.go_on(topic, generation, next),
        }
    }

    /// Something waits in the queue, or a page has been read.
    pub async fn ready(&mut self) -> Option<Page> {
        tokio::select! {
            () = self.outgoing.ready() => None,
            Some(page) = self.reading.next(), if !self.reading.is_empty() => Some(page),
        }
    }

    pub fn page(&mut self, page: Page, out: &mut Vec<Published>) -> Result<(), Cut> {
        let Page { topic, generation, after, outcome } = page;
        let Ok(History { head, items, complete }) = outcome else {
            // The store is away. The client resumes where it is once it is back.
            self.read_after(topic, generation, after, READ_AGAIN);
            return Ok(());
        };
        let Some(listening) = self.current(&topic, generation) else { return Ok(()) };
        for item in items {
            if listening.track.replayed(item.offset) {
                out.push(Published::new(&topic, Some(item.offset), &item.event, &item.data));
            }
        }
        let next = listening.track.page_ended(after, head, complete);
        self.go_on(topic, generation, next)
    }

    /// Takes what waits in the queue.
    pub fn take(&mut self, out: &mut Vec<Published>) -> Result<(), Cut> {
        let mut batch = Vec::new();
        if !self.outgoing.take(&mut batch, BATCH_BYTES) {
            return Err(Cut::TooSlow);
        }
        for item in batch {
            match item {
                Item::Publication(published) => self.publication(published, out)?,
                Item::Resync(topic) => self.resync(topic)?,
            }
        }
        Ok(())
    }

    fn publication(&mut self, published: Published, out: &mut Vec<Published>) -> Result<(), Cut> {
        let Some(listening) = self.topics.get_mut(&published.topic) else { return Ok(()) };
        let generation = listening.generation;
        match listening.track.publication(published.offset) {
            Next::Send => out.push(published),
            next => self.go_on(published.topic.clone(), generation, next)?,
        }
        Ok(())
    }

    /// Publications may have been missed between the nodes. What comes meanwhile is sent all the same.
    fn resync(&mut self, topic: Arc<str>) -> Result<(), Cut> {
        let Some(listening) = self.topics.get_mut(&topic) else { return Ok(()) };
        if let Some(user) = topic.strip_prefix("presence:") {
            self.gateway.presence.ask(user);
        }
        if is_ephemeral(&topic) {
            return Ok(());
        }
        let next = listening.track.resync();
        let generation = listening.generation;
        self.go_on(topic, generation, next)
    }

    fn go_on(&mut self, topic: Arc<str>, generation: u64, next: Next) -> Result<(), Cut> {
        match next {
            Next::Send | Next::Skip => {}
            Next::Read { after } => self.read_after(topic, generation, after, Duration::ZERO),
            Next::Lost => return Err(Cut::HistoryLost),
        }
        Ok(())
    }

    /// Begins when it is polled, which is when the page before is in the socket: a replay goes as fast as its reader.
    fn read_after(&mut self, topic: Arc<str>, generation: u64, after: i64, delay: Duration) {
        let gateway = self.gateway.clone();
        let reading = async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let outcome = async {
                let (kind, key) = split_topic(&topic)?;
                Ok(gateway.views()?.history(kind, key, after, PAGE).await?)
            }
            .await;
            Page { topic, generation, after, outcome }
        };
        self.reading.push(reading.boxed());
    }
}
