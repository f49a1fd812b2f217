//! Runs on their way: each within its runner's limits, and noted in the store before the outside call is made.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::{Semaphore, watch};

use crate::cluster::Topics;
use crate::cluster::topics::Published;
use crate::kernel::clock::Timestamp;
use crate::kernel::entity::{Announcement, Principal, to_value};
use crate::persistence::outbox::{Begins, Begun};

/// Work outside of any entity (`Effect::Run`): a query over read models, a call to another service.
pub trait Runner: Send + Sync {
    /// `Err` is retried with backoff. The future is dropped when it exceeds its limits, and when its entity's activation
    /// ends, as it does when its slot moves.
    fn run(&self, cx: RunCx, input: Value) -> BoxFuture<'static, Result<Value, RunError>>;

    fn limits(&self) -> RunLimits {
        RunLimits::default()
    }
}

/// Who asked for a run, and how long it may take.
pub struct RunCx {
    /// The effect's id: the idempotency key for whatever is called.
    pub id: String,
    /// The entity that asked for it.
    pub kind: &'static str,
    pub key: Arc<str>,
    /// The person for whom it asked. `None`: it did so in its own right.
    pub principal: Option<Principal>,
    /// When the run is dropped.
    pub deadline: Instant,
    running: watch::Receiver<()>,
    topics: Topics,
}

impl RunCx {
    /// Ends with the run, however that ends: for what it has started beside itself, which is not dropped with it.
    pub fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut running = self.running.clone();
        async move { while running.changed().await.is_ok() {} }
    }

    /// Says something on the topic of the entity that asked, which may be lost: the words of an answer, as they come.
    pub fn stream<A: Announcement>(&self, announcement: &A) {
        const { assert!(!A::DURABLE, "what is kept is an event's") };
        let topic = [self.kind, ":", &*self.key].concat();
        if self.topics.has_subscribers(&topic) {
            let data = to_value(announcement).to_string();
            self.topics.publish(&Published::new(&topic, None, A::EVENT, &data));
        }
    }
}

/// For whom a run is made, as the outbox has it.
pub struct Asker {
    pub kind: &'static str,
    pub key: Arc<str>,
    pub principal: Option<Principal>,
    pub topics: Topics,
}

/// What runs of one runner may take.
#[derive(Clone, Copy, Debug)]
pub struct RunLimits {
    /// A run without an outcome for so long is dropped, and made again later.
    pub timeout: Duration,
    /// Runs on one node at the same time; more wait.
    pub concurrent: usize,
    /// A larger outcome, as JSON, is an error and final.
    pub max_outcome_bytes: usize,
    /// Attempts that ask for another, after which the run is a dead letter.
    pub tries: u32,
    /// The age from which the next of these is the last, where that is less than for all deliveries.
    pub give_up_after: Duration,
}

impl Default for RunLimits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(60),
            concurrent: 64,
            max_outcome_bytes: 256 << 10,
            tries: 1_000,
            give_up_after: Duration::MAX,
        }
    }
}

pub enum RunError {
    /// Trying again may help.
    Retry(String),
    /// It will not; the entity learns of it.
    Final(String),
}

/// The runners of a node.
pub struct Runners {
    begins: Arc<Begins>,
    by_name: HashMap<&'static str, Bounded>,
}

struct Bounded {
    runner: Arc<dyn Runner>,
    limits: RunLimits,
    places: Semaphore,
}

/// How a run ended.
pub enum Ran {
    /// With an outcome, or finally without.
    Ended(Result<Value, String>),
    /// Trying again may help, so often and until it is so old.
    Again { error: String, tries: u32, give_up_after: Duration },
    /// Its row is gone: somebody else has had the outcome.
    Gone,
    /// It was begun too often without an end. Its row is a dead letter.
    GivenUp,
}

impl Runners {
    pub fn new(begins: Begins, runners: HashMap<&'static str, Arc<dyn Runner>>) -> Self {
        let bounded = |runner: Arc<dyn Runner>| {
            let limits = runner.limits();
            Bounded { runner, limits, places: Semaphore::new(limits.concurrent) }
        };
        let by_name = runners.into_iter().map(|(name, runner)| (name, bounded(runner))).collect();
        Self { begins: Arc::new(begins), by_name }
    }

    pub async fn run(
        &self,
        name: &str,
        id: &str,
        asker: Asker,
        input: Value,
        now: impl Fn() -> Timestamp,
    ) -> Ran {
        let Some(bounded) = self.by_name.get(name) else {
            return Ran::Ended(Err(format!("there is no runner {name}")));
        };
        let RunLimits { tries, give_up_after, .. } = bounded.limits;
        let again = |error| Ran::Again { error, tries, give_up_after };
        let _place = bounded.places.acquire().await.expect("the places are never closed");
        match self.begins.begin(id, now()).await {
            Ok(Begun::Yes) => {}
            Ok(Begun::Gone) => return Ran::Gone,
            Ok(Begun::GivenUp) => return Ran::GivenUp,
            Err(error) => {
                return again(format!("its begin could not be noted: {error}"));
            }
        }
        match bounded.run(id, asker, input).await {
            Ok(outcome) => Ran::Ended(Ok(outcome)),
            Err(RunError::Final(error)) => Ran::Ended(Err(error)),
            Err(RunError::Retry(error)) => again(error),
        }
    }

    /// Notes that an entity is about to learn of a send's end. Should it fail over that, as often as a run may, the send
    /// is a dead letter.
    pub fn note(&self, id: String, now: Timestamp) {
        let begins = self.begins.clone();
        tokio::spawn(async move { begins.begin(&id, now).await });
    }
}

impl Bounded {
    async fn run(&self, id: &str, asker: Asker, input: Value) -> Result<Value, RunError> {
        let RunLimits { timeout, max_outcome_bytes, .. } = self.limits;
        // Dropped with this future.
        let (_running, running) = watch::channel(());
        let Asker { kind, key, principal, topics } = asker;
        let deadline = Instant::now() + timeout;
        let cx = RunCx { id: id.to_owned(), kind, key, principal, deadline, running, topics };
        let running = AssertUnwindSafe(async { self.runner.run(cx, input).await }).catch_unwind();
        let outcome = match tokio::time::timeout(timeout, running).await {
            Ok(Ok(outcome)) => outcome?,
            Ok(Err(_)) => return Err(RunError::Retry("the runner panicked".into())),
            Err(_) => return Err(RunError::Retry(format!("no outcome within {timeout:?}"))),
        };
        let bytes = outcome.to_string().len();
        if bytes > max_outcome_bytes {
            let reason = format!("the outcome has {bytes} bytes; {max_outcome_bytes} are taken");
            return Err(RunError::Final(reason));
        }
        Ok(outcome)
    }
}
