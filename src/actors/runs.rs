//! Runs on their way: each within its runner's limits, and noted in the store before the outside call is made.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::kernel::clock::Timestamp;
use crate::persistence::outbox::{Begins, Begun};

/// Work outside of any entity (`Effect::Run`): a query over read models, a call to another service.
pub trait Runner: Send + Sync {
    /// `id` is the effect's id: the idempotency key for whatever is called. `Err` is retried with backoff. The future is
    /// dropped when it exceeds its limits, and when its entity's activation ends.
    fn run(&self, id: &str, input: Value) -> BoxFuture<'static, Result<Value, RunError>>;

    fn limits(&self) -> RunLimits {
        RunLimits::default()
    }
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
}

impl Default for RunLimits {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(60), concurrent: 64, max_outcome_bytes: 256 << 10 }
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
    Ended(Result<Value, RunError>),
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
        input: Value,
        now: impl Fn() -> Timestamp,
    ) -> Ran {
        let Some(bounded) = self.by_name.get(name) else {
            return Ran::Ended(Err(RunError::Final(format!("there is no runner {name}"))));
        };
        let _place = bounded.places.acquire().await.expect("the places are never closed");
        match self.begins.begin(id, now()).await {
            Ok(Begun::Yes) => {}
            Ok(Begun::Gone) => return Ran::Gone,
            Ok(Begun::GivenUp) => return Ran::GivenUp,
            Err(error) => {
                let reason = format!("its begin could not be noted: {error}");
                return Ran::Ended(Err(RunError::Retry(reason)));
            }
        }
        Ran::Ended(bounded.run(id, input).await)
    }

    /// Notes that an entity is about to learn of a send's end. Should it fail over that, as often as a run may, the send
    /// is a dead letter.
    pub fn note(&self, id: String, now: Timestamp) {
        let begins = self.begins.clone();
        tokio::spawn(async move { begins.begin(&id, now).await });
    }
}

impl Bounded {
    async fn run(&self, id: &str, input: Value) -> Result<Value, RunError> {
        let RunLimits { timeout, max_outcome_bytes, .. } = self.limits;
        let running = AssertUnwindSafe(async { self.runner.run(id, input).await }).catch_unwind();
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
