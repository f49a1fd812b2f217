//! The places of a provider: how many calls are under way, how many begin a second, and how many wait.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout_at};

use super::failure::{Failure, FailureKind};
use super::options::ProviderOptions;
use crate::kernel::bucket::Bucket;

/// So many calls wait for a place, for each place that there is.
const WAITING_PER_PLACE: usize = 8;

pub(super) struct Provider {
    places: Semaphore,
    concurrency: usize,
    waiting: Mutex<usize>,
    rate: Mutex<Bucket>,
}

impl Provider {
    pub fn new(options: &ProviderOptions) -> Self {
        let concurrency = options.concurrency.clamp(1, 4_096);
        let per_second = options.per_second.max(1);
        let rate = Bucket::new(per_second, per_second, Instant::now().into_std());
        Self {
            places: Semaphore::new(concurrency),
            concurrency,
            waiting: Mutex::new(0),
            rate: Mutex::new(rate),
        }
    }

    /// A place among the calls that are under way, when it is this call's turn.
    pub async fn place(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, Failure> {
        if let Ok(place) = self.places.try_acquire()
            && self.rate.lock().take(Instant::now().into_std())
        {
            return Ok(place);
        }
        let _waiting = Waiting::new(self).ok_or_else(|| busy("too many calls wait for it"))?;
        let place = timeout_at(deadline, self.places.acquire()).await;
        let place = place.map_err(|_| busy("no place in time"))?;
        loop {
            let now = Instant::now();
            let wait = {
                let (mut rate, now) = (self.rate.lock(), now.into_std());
                if rate.take(now) { None } else { Some(rate.wait(now)) }
            };
            match wait {
                None => return place.map_err(|_| busy("it is closed")),
                Some(wait) if now + wait >= deadline => return Err(busy("no turn in time")),
                // Others that wait as long may be first.
                Some(wait) => sleep(wait.max(Duration::from_millis(1))).await,
            }
        }
    }
}

fn busy(why: &str) -> Failure {
    Failure::new(FailureKind::Busy, why)
}

/// One of the bounded number of calls that wait for a place.
struct Waiting<'a>(&'a Provider);

impl<'a> Waiting<'a> {
    fn new(provider: &'a Provider) -> Option<Self> {
        let mut waiting = provider.waiting.lock();
        if *waiting >= provider.concurrency * WAITING_PER_PLACE {
            return None;
        }
        *waiting += 1;
        Some(Self(provider))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *self.0.waiting.lock() -= 1;
    }
}
