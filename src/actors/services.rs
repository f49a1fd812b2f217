//! What runs beside the entities on every node: firing timers, waking entities that owe deliveries, making idle ones
//! passive, and carrying the list of parked ones to and from the store.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::postgres::PgPool;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::actors::Runtime;
use crate::actors::registry::{ParkNotice, Registry};
use crate::persistence::{outbox, timers};

const TIMER_POLL: Duration = Duration::from_millis(200);
/// Due timers fetched at once; the rest is fetched as these end.
const TIMER_WINDOW: i64 = 1_000;
const SCAN_POLL: Duration = Duration::from_secs(1);
const SCAN_LIMIT: i64 = 500;

/// Removes a fire from the set of those under way, however it ended.
struct Firing {
    id: String,
    all: Arc<Mutex<HashSet<String>>>,
}

impl Drop for Firing {
    fn drop(&mut self) {
        self.all.lock().expect("the lock is never poisoned").remove(&self.id);
    }
}

/// Fires due timers. The row goes with the commit that handles it, so a fire that came to nothing is fetched again.
pub async fn fire_timers(pool: PgPool, rt: Arc<Runtime>, registry: Arc<Registry>) {
    let all: Arc<Mutex<HashSet<String>>> = Arc::default();
    let mut tick = tokio::time::interval(TIMER_POLL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if rt.skew.is_too_much() {
            // What is due by this clock is not due.
            continue;
        }
        let Ok(due) =
            timers::due(&pool, rt.lease.incarnation(), rt.clock.now(), TIMER_WINDOW).await
        else {
            continue;
        };
        for timer in due {
            if !all.lock().expect("the lock is never poisoned").insert(timer.id.clone()) {
                continue;
            }
            let firing: Box<dyn Any + Send> =
                Box::new(Firing { id: timer.id.clone(), all: all.clone() });
            let Some(kind) = registry.kind(&timer.kind) else { continue };
            if let Err(error) = kind.fire(&timer.key, timer.name, timer.id, &timer.command, firing)
            {
                tracing::debug!(kind = timer.kind, key = timer.key, %error, "a timer could not fire yet");
            }
        }
    }
}

/// Wakes entities whose deliveries are overdue: their activation died with them, or became passive meanwhile.
pub async fn wake_owing(pool: PgPool, rt: Arc<Runtime>, registry: Arc<Registry>) {
    let mut tick = tokio::time::interval(SCAN_POLL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Ok(owing) = outbox::owing(&pool, rt.lease.incarnation(), SCAN_LIMIT).await else {
            continue;
        };
        for (kind, key) in owing {
            if let Some(kind) = registry.kind(&kind) {
                kind.wake(&key);
            }
        }
    }
}

/// Makes idle entities passive; under pressure (count or memory) sooner.
pub async fn passivate(rt: Arc<Runtime>, registry: Arc<Registry>) {
    let options = &rt.options;
    let mut tick = tokio::time::interval(Duration::from_secs(2));
    loop {
        tick.tick().await;
        let live = registry.live();
        metrics::gauge!("proxie_entities_live").set(live as f64);
        let memory = resident_bytes();
        let idle_s = if live > options.max_live || memory > options.memory_limit {
            1
        } else if live > options.max_live / 10 * 9 || memory > options.memory_limit / 10 * 9 {
            options.idle_s / 8
        } else {
            options.idle_s
        };
        for (_, kind) in registry.kinds() {
            kind.sweep(idle_s, 20_000);
        }
    }
}

/// Resident memory of this process.
pub fn resident_bytes() -> u64 {
    std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_whitespace().nth(1)?.parse::<u64>().ok())
        .map_or(0, |pages| pages * rustix::param::page_size() as u64)
}

/// Writes newly parked entities to the store, and lets those start again whose row an operator has deleted.
pub async fn sync_parked(
    pool: PgPool,
    registry: Arc<Registry>,
    mut notices: UnboundedReceiver<ParkNotice>,
) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            notice = notices.recv() => {
                let Some((kind, key, reason, failures)) = notice else { return };
                tracing::error!(kind, key = &*key, reason, failures, "an entity is parked: `proxie entity retry` lets it start again");
                let _ = outbox::park(&pool, kind, &key, &reason, failures as i32).await;
            }
            _ = tick.tick() => {
                let Ok(rows) = outbox::parked(&pool, 10_000).await else { continue };
                metrics::gauge!("proxie_entities_parked").set(rows.len() as f64);
                let mut by_kind: HashMap<String, HashMap<String, (String, u32)>> = HashMap::new();
                for row in rows {
                    by_kind.entry(row.kind).or_default().insert(row.key, (row.reason, row.failures as u32));
                }
                for (name, kind) in registry.kinds() {
                    kind.set_parked(by_kind.get(name).unwrap_or(&HashMap::new()));
                }
            }
        }
    }
}
