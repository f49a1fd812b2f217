//! The thread that renews this node's lease. On the way it finds out whether the store is available, whether it is
//! still the same one, and how far this node's clock is from the database's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::sync::{Notify, oneshot, watch};

use crate::actors::Runtime;
use crate::actors::registry::Registry;
use crate::app::core::Fate;
use crate::cluster::lease::boottime_ms;
use crate::cluster::skew;
use crate::persistence::members::{self, Beat};
use crate::persistence::session;
use crate::persistence::store::Identity;

/// A third of the default `read_ttl`, so that one lost renewal does not silence the node.
const INTERVAL: Duration = Duration::from_millis(300);
/// A store that is silent for this long counts as unavailable.
const SILENCE: Duration = Duration::from_millis(1_500);

/// The renewal of the lease, on a thread and a connection of its own: a node whose workers or pool are busy is not
/// dead.
pub struct Renewal {
    pub options: PgConnectOptions,
    pub runtime: Arc<Runtime>,
    pub registry: Arc<Registry>,
    pub identity: Arc<Identity>,
    pub lease_s: f64,
    pub connections: Arc<AtomicUsize>,
    pub fate: watch::Sender<Fate>,
    pub beats: watch::Sender<Beat>,
    /// Requests a renewal at once, because members have changed.
    pub now: Arc<Notify>,
}

/// Why a lease was not renewed.
enum Failure {
    /// It never will be renewed.
    Fate(Fate),
    Sql(sqlx::Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl Renewal {
    /// Starts the thread. It ends when the returned sender is dropped.
    pub fn start(self) -> anyhow::Result<oneshot::Sender<()>> {
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("lease".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! { () = self.run() => {}, _ = stopped => {} }
            });
        })?;
        Ok(stop)
    }

    async fn run(self) {
        let mut fenced = self.runtime.lanes.fenced();
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut connection = None;
        let mut was_down = false;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.now.notified() => {}
                _ = fenced.wait_for(|fenced| *fenced) => {
                    let _ = self.fate.send(self.why_fenced().await);
                    return;
                }
            }
            let sent = boottime_ms();
            let began = std::time::Instant::now();
            let written = self.runtime.lanes.written();
            let renewed = match tokio::time::timeout(SILENCE, self.renew(&mut connection)).await {
                Ok(renewed) => renewed,
                Err(_) => Err(Failure::Sql(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))),
            };
            match renewed {
                Ok(beat) => {
                    if was_down {
                        tracing::info!("the lease is renewed again");
                    }
                    was_down = false;
                    let took = began.elapsed().as_secs_f64();
                    metrics::histogram!("proxie_lease_renewal_seconds").record(took);
                    self.runtime.lanes.set_away(false);
                    self.runtime.lease.renewed(sent);
                    self.beats.send_replace(beat);
                }
                Err(Failure::Fate(fate)) => {
                    let _ = self.fate.send(fate);
                    return;
                }
                Err(Failure::Sql(error)) => {
                    if !was_down {
                        tracing::warn!(%error, "the lease could not be renewed");
                    }
                    (was_down, connection) = (true, None);
                    // A slow store is not an unavailable one.
                    if is_away(&error) && self.runtime.lanes.written() == written {
                        self.runtime.lanes.set_away(true);
                    }
                }
            }
        }
    }

    /// Renews the lease. A broken connection does not mean that the store is unavailable, so a new one is tried at
    /// once.
    async fn renew(&self, connection: &mut Option<PgConnection>) -> Result<Beat, Failure> {
        if let Some(connection) = connection {
            match self.beat(connection).await {
                Err(Failure::Sql(_)) => {}
                renewed => return renewed,
            }
        }
        *connection = None;
        let mut fresh = session::open(&self.options).await?;
        // Checked before anything is written: a promoted replica may lack recent commits.
        if let Some(what) = self.identity.differs(&mut fresh).await? {
            return Err(Failure::Fate(Fate::StoreReplaced(what)));
        }
        self.beat(connection.insert(fresh)).await
    }

    async fn beat(&self, connection: &mut PgConnection) -> Result<Beat, Failure> {
        let live = serde_json::json!({
            "entities": self.registry.live(),
            "connections": self.connections.load(Ordering::Relaxed),
        });
        let incarnation = self.runtime.lease.incarnation();
        let before = self.runtime.clock.now();
        let beat = members::beat(connection, incarnation, self.lease_s, &live).await?;
        let after = self.runtime.clock.now();
        let (beat, theirs) = beat.ok_or(Failure::Fate(Fate::Evicted))?;
        let skew = &self.runtime.skew;
        let (noted, stopped) = (skew.is_notable(), skew.is_too_much());
        let ms = skew.compare(before, theirs, after);
        metrics::gauge!("proxie_clock_skew_seconds").set(ms as f64 / 1_000.0);
        if skew.is_too_much() && !stopped {
            tracing::error!(
                "this node's clock is {} the database's: nothing is swept and no timer fires until both agree (node.clock_limit_ms)",
                skew::words(ms)
            );
        } else if skew.is_notable() && !noted {
            tracing::warn!(
                "this node's clock is {} the database's: is NTP running on both?",
                skew::words(ms)
            );
        } else if noted && !skew.is_notable() {
            tracing::info!("this node's clock and the database's agree again");
        }
        Ok(beat)
    }

    /// The reason why a lane was fenced: a successor, or a different database that lacks what the lane has written.
    async fn why_fenced(&self) -> Fate {
        for _ in 0..5 {
            let asking = async {
                let mut connection = session::open(&self.options).await?;
                self.identity.differs(&mut connection).await
            };
            if let Ok(Ok(differs)) = tokio::time::timeout(SILENCE, asking).await {
                return differs.map_or(Fate::Evicted, Fate::StoreReplaced);
            }
            tokio::time::sleep(INTERVAL).await;
        }
        Fate::Evicted
    }
}

/// Whether an error means that the store is unavailable. A server that answers that it lacks resources (class 53) is
/// there, and open connections may go on.
fn is_away(error: &sqlx::Error) -> bool {
    !error
        .as_database_error()
        .is_some_and(|error| error.code().is_some_and(|code| code.starts_with("53")))
}
