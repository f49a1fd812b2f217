//! Runs on their way: each within its runner's limits, and noted in the store before the outside call is made, unless a
//! repetition is harmless.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit, watch};

use crate::cluster::Topics;
use crate::cluster::topics::Published;
use crate::kernel::bucket::Bucket;
use crate::kernel::clock::Timestamp;
use crate::kernel::entity::{Announcement, Principal, to_value};
use crate::kernel::work::Work;
use crate::persistence::outbox::{Begins, Begun};

/// A runner, which does one kind of [`Work`].
pub trait Runner: Send + Sync + 'static {
    type Work: Work;
    const LIMITS: RunLimits = RunLimits::DEFAULT;

    /// `Err` is retried with backoff. The future is dropped when it exceeds its limits, and when its entity's activation
    /// ends, as it does when its slot moves.
    fn run(
        &self,
        cx: RunCx,
        input: <Self::Work as Work>::Input,
    ) -> impl Future<Output = Result<<Self::Work as Work>::Outcome, RunError>> + Send;
}

/// A runner behind its work's name: what it takes and returns is JSON.
pub struct AnyRunner {
    name: &'static str,
    limits: RunLimits,
    repeatable: bool,
    run: Box<dyn AnyRun>,
}

type AnyRunning<'a> = BoxFuture<'a, Result<Value, RunError>>;

trait AnyRun: Send + Sync {
    fn run(&self, cx: RunCx, input: Value) -> AnyRunning<'_>;
}

impl<R: Runner> AnyRun for R {
    fn run(&self, cx: RunCx, input: Value) -> AnyRunning<'_> {
        async move {
            let unreadable = |error| RunError::Final(format!("its input cannot be read: {error}"));
            let input = serde_json::from_value(input).map_err(unreadable)?;
            Ok(to_value(&Runner::run(self, cx, input).await?))
        }
        .boxed()
    }
}

impl AnyRunner {
    pub fn new<R: Runner>(runner: R) -> Self {
        let (name, repeatable) = (R::Work::NAME, R::Work::REPEATABLE);
        Self { name, limits: R::LIMITS, repeatable, run: Box::new(runner) }
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
    /// Begins of this run before this one.
    pub earlier: u32,
    /// Those among them that have had no end, since a node died: what they called for may have happened.
    pub unfinished: u32,
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
    /// How often runs begin on one node; more wait. `None`: as often as they can.
    pub rate: Option<Rate>,
    /// Runs that wait on one node for their turn. One more is put off, as is one that has waited for [`LONGEST_TURN`]:
    /// it waits in the outbox, which is no attempt.
    pub waiting: usize,
    /// A larger outcome, as JSON, is an error and final.
    pub max_outcome_bytes: usize,
    /// Attempts that ask for another, after which the run is a dead letter.
    pub tries: u32,
    /// The age from which the next of these is the last, where that is less than for all deliveries.
    pub give_up_after: Duration,
}

impl RunLimits {
    pub const DEFAULT: Self = Self {
        timeout: Duration::from_secs(60),
        concurrent: 64,
        rate: None,
        waiting: 10_000,
        max_outcome_bytes: 256 << 10,
        tries: 1_000,
        give_up_after: Duration::MAX,
    };
}

/// A rate of begins: so many over each `per`, and as many at once after a pause.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub begins: u32,
    pub per: Duration,
}

/// The longest wait for a place and for the rate.
const LONGEST_TURN: Duration = Duration::from_secs(300);
/// Whoever waits for the rate looks at the clock so often, which may be set.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
    runner: AnyRunner,
    waiting: Semaphore,
    places: Semaphore,
    rate: Option<Mutex<Bucket<Timestamp>>>,
}

/// How a run ended.
pub enum Ran {
    /// With an outcome, or finally without.
    Ended(Result<Value, String>),
    /// Trying again may help, so often and until it is so old.
    Again { error: String, tries: u32, give_up_after: Duration },
    /// It had no turn in time: later, until it is so old.
    PutOff { give_up_after: Duration },
    /// Its row is gone: somebody else has had the outcome.
    Gone,
    /// It was begun too often without an end. Its row is a dead letter.
    GivenUp,
}

impl Runners {
    pub fn new(begins: Begins, runners: Vec<AnyRunner>, now: Timestamp) -> Self {
        let by_name = runners.into_iter().map(|runner| (runner.name, Bounded::new(runner, now)));
        Self { begins: Arc::new(begins), by_name: by_name.collect() }
    }

    /// `is_new`: this activation has just written the row, and has not begun it before.
    pub async fn run(
        &self,
        name: &str,
        (id, is_new): (&str, bool),
        asker: Asker,
        input: Value,
        now: impl Fn() -> Timestamp,
    ) -> Ran {
        let Some(bounded) = self.by_name.get(name) else {
            return Ran::Ended(Err(format!("there is no runner {name}")));
        };
        let RunLimits { tries, give_up_after, .. } = bounded.runner.limits;
        let again = |error| Ran::Again { error, tries, give_up_after };
        let Some(_place) = bounded.turn(&now).await else {
            return Ran::PutOff { give_up_after };
        };
        let repeatable = bounded.runner.repeatable;
        let begins = if repeatable && is_new {
            (0, 0)
        } else {
            match self.begins.begin(id, repeatable, now()).await {
                Ok(Begun::Yes { earlier, unfinished }) => (earlier, unfinished),
                Ok(Begun::Gone) => return Ran::Gone,
                Ok(Begun::GivenUp) => return Ran::GivenUp,
                Err(error) => {
                    return again(format!("its begin could not be noted: {error}"));
                }
            }
        };
        match bounded.run(id, asker, input, begins).await {
            Ok(outcome) => Ran::Ended(Ok(outcome)),
            Err(RunError::Final(error)) => Ran::Ended(Err(error)),
            Err(RunError::Retry(error)) => again(error),
        }
    }

    /// Notes that an entity is about to learn of a send's end. Should it fail over that, as often as a run may, the send
    /// is a dead letter.
    pub fn note(&self, id: String, now: Timestamp) {
        let begins = self.begins.clone();
        tokio::spawn(async move { begins.begin(&id, false, now).await });
    }
}

impl Bounded {
    fn new(runner: AnyRunner, now: Timestamp) -> Self {
        let RunLimits { concurrent, rate, waiting, .. } = runner.limits;
        let bucket = |Rate { begins, per }| Bucket::every(per, begins, begins, now).into();
        let (waiting, places) = (Semaphore::new(waiting), Semaphore::new(concurrent));
        Self { runner, waiting, places, rate: rate.map(bucket) }
    }

    /// A place to run in, once the rate allows one more begin. `None`: too many wait, or it has waited for too long.
    async fn turn(&self, now: &impl Fn() -> Timestamp) -> Option<SemaphorePermit<'_>> {
        let _waits = self.waiting.try_acquire().ok()?;
        let turn = async {
            let place = self.places.acquire().await.expect("the places are never closed");
            if let Some(rate) = &self.rate {
                // Its lock is given in the order of asking, so nobody is overtaken.
                let mut rate = rate.lock().await;
                while !rate.take(now()) {
                    // A wait of nothing would not let the clock go on.
                    let wait = rate.wait(now()).clamp(Duration::from_millis(1), LOOK_AGAIN);
                    tokio::time::sleep(wait).await;
                }
            }
            place
        };
        tokio::time::timeout(LONGEST_TURN, turn).await.ok()
    }

    async fn run(
        &self,
        id: &str,
        asker: Asker,
        input: Value,
        (earlier, unfinished): (u32, u32),
    ) -> Result<Value, RunError> {
        let RunLimits { timeout, max_outcome_bytes, .. } = self.runner.limits;
        // Dropped with this future.
        let (_running, running) = watch::channel(());
        let Asker { kind, key, principal, topics } = asker;
        let deadline = Instant::now() + timeout;
        let id = id.to_owned();
        let cx = RunCx { id, kind, key, principal, deadline, earlier, unfinished, running, topics };
        let running =
            AssertUnwindSafe(async { self.runner.run.run(cx, input).await }).catch_unwind();
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
