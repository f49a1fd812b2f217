//! Clients: each command has an id and is asked again, anywhere, until it is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use rand::Rng;
use tokio::sync::{mpsc::UnboundedSender, watch};
use tokio::task::JoinHandle;

use super::node::{Op, Outcome};
use super::recorder::Seen;
use super::world::Clients;

/// What the clients have seen, and how long it took.
#[derive(Default)]
pub struct Tally {
    pub answered: AtomicU64,
    /// Attempts that came to nothing, and were made again.
    pub repeated: AtomicU64,
    pub longest_us: AtomicU64,
}

pub struct Load {
    pub clients: Arc<Clients>,
    pub tally: Arc<Tally>,
    /// The clients' one clock.
    pub clock: Instant,
    pub sees: Option<UnboundedSender<Seen>>,
    pub keys: usize,
    /// One of so many operations sends to another entity; 0: none does.
    pub spread_one_in: u32,
    /// What a client waits between two commands.
    pub pause: Duration,
}

const ATTEMPT: Duration = Duration::from_secs(3);
/// No fault lasts so long.
const PATIENCE: Duration = Duration::from_secs(90);

/// Until it is answered, under one id, wherever somebody answers.
pub async fn insist(
    clients: &Clients,
    tally: &Tally,
    key: &str,
    op: impl Fn() -> Op,
    id: Option<&str>,
) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let mut n: usize = rand::random_range(0..1_024);
    loop {
        let failed = match clients.some(n).await {
            Ok((address, client)) => match client.ask(key, op(), id, ATTEMPT).await {
                Ok(Outcome::Failed(why)) => why,
                Ok(outcome) => {
                    let took = started.elapsed().as_micros() as u64;
                    tally.longest_us.fetch_max(took, Ordering::Relaxed);
                    return Ok(outcome);
                }
                Err(error) => {
                    clients.forget(address);
                    error.to_string()
                }
            },
            Err(error) => error.to_string(),
        };
        tally.repeated.fetch_add(1, Ordering::Relaxed);
        if started.elapsed() > PATIENCE {
            bail!("{key} is not answered: {failed}");
        }
        n += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Load {
    pub fn start(
        self: &Arc<Self>,
        clients: usize,
        stop: &watch::Receiver<bool>,
    ) -> Vec<JoinHandle<anyhow::Result<()>>> {
        let one = |n: usize| tokio::spawn(self.clone().client(n, stop.clone()));
        (0..clients).map(one).collect()
    }

    fn now(&self) -> u64 {
        self.clock.elapsed().as_micros() as u64
    }

    fn see(&self, seen: Seen) {
        if let Some(sees) = &self.sees {
            let _ = sees.send(seen);
        }
    }

    async fn client(
        self: Arc<Self>,
        client: usize,
        stop: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let mut n = 0_u64;
        while !*stop.borrow() {
            n += 1;
            let key = format!("key-{}", rand::rng().random_range(0..self.keys));
            let die = rand::rng().random_range(0..100_u32);
            if die < 30 {
                self.get(&key).await?;
            } else if self.spread_one_in > 0 && n.is_multiple_of(u64::from(self.spread_one_in)) {
                self.spread(format!("spread-{client}-{n}"), client).await?;
            } else {
                self.add(&key, format!("add-{client}-{n}")).await?;
            }
            self.tally.answered.fetch_add(1, Ordering::Relaxed);
            if !self.pause.is_zero() {
                tokio::time::sleep(self.pause).await;
            }
        }
        Ok(())
    }

    async fn add(&self, key: &str, id: String) -> anyhow::Result<()> {
        self.see(Seen::Began { id: id.clone(), key: key.into(), at: self.now() });
        let outcome = insist(&self.clients, &self.tally, key, || Op::Add, Some(&id)).await?;
        let Outcome::Total(total) = outcome else { bail!("{key}: {outcome:?}") };
        self.see(Seen::Added { id, total, at: self.now() });
        Ok(())
    }

    /// Only the attempt that is answered counts: it may have begun later than the first.
    async fn get(&self, key: &str) -> anyhow::Result<()> {
        let began = std::sync::atomic::AtomicU64::new(0);
        let op = || {
            began.store(self.now(), Ordering::Relaxed);
            Op::Get
        };
        let outcome = insist(&self.clients, &self.tally, key, op, None).await?;
        let Outcome::Total(total) = outcome else { bail!("{key}: {outcome:?}") };
        let began = began.into_inner();
        self.see(Seen::Got { key: key.into(), total, began, at: self.now() });
        Ok(())
    }

    async fn spread(&self, id: String, client: usize) -> anyhow::Result<()> {
        let (key, to) = (format!("source-{client}"), format!("sink-{}", client % 7));
        self.see(Seen::SpreadBegan { id: id.clone(), key: key.clone(), to: to.clone() });
        let op = || Op::Spread(to.clone());
        insist(&self.clients, &self.tally, &key, op, Some(&id)).await?;
        self.see(Seen::Spread { id });
        Ok(())
    }
}
