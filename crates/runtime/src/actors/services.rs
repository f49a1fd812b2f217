//! The background services of every node: they fire timers, wake entities with overdue deliveries, make idle entities
//! passive, and synchronise the list of parked ones with the store.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgPool;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::actors::firing::Fires;
use crate::actors::registry::Registry;
use crate::actors::runtime::{ParkNotice, Runtime};
use crate::kernel::error::AskError;
use crate::kernel::private::{EncryptionContext, Trouble};
use crate::persistence::outbox::Parked;
use crate::persistence::timers::DueTimer;
use crate::persistence::vault::TIMER;
use crate::persistence::{outbox, timers};

const TIMER_POLL: Duration = Duration::from_millis(200);
/// The most timers under way at once; more are claimed as these end.
const TIMER_WINDOW: usize = 1_000;
const SCAN_POLL: Duration = Duration::from_millis(250);
/// The most overdue deliveries that are claimed at once.
const SCAN_LIMIT: usize = 1_000;
/// The most full windows in a row before a pause. A timer that cannot be handled leaves the window with its claim, so
/// that those behind it do not wait for the next poll.
const ROUNDS: usize = 16;
/// The claim of a timer from which on an error is logged: about seven seconds after the first claim.
const SUSPICIOUS: i32 = 5;

/// Fires due timers. A timer's row is deleted by the commit that handles it, so a failed one is claimed again.
pub async fn fire_timers(pool: PgPool, rt: Arc<Runtime>, registry: Arc<Registry>) {
    let fires = Fires::default();
    let give_up_s = rt.options.give_up_after.as_secs() as i64;
    let mut tick = tokio::time::interval(TIMER_POLL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if rt.skew.is_too_much() {
            // This clock cannot be trusted to say what is due.
            continue;
        }
        let failed = fires.take_failed();
        if !failed.is_empty() {
            let _ = timers::failed(&pool, &failed).await;
        }
        for _ in 0..ROUNDS {
            let room = TIMER_WINDOW.saturating_sub(fires.under_way());
            if room == 0 {
                break;
            }
            let (incarnation, now) = (rt.lease.incarnation(), rt.clock.now());
            let claim = timers::claim(&pool, incarnation, now, give_up_s, room as i64);
            let Ok(due) = claim.await else { break };
            let full = due.len() == room;
            fire(opened(due, &rt, &pool).await, &fires, &registry);
            if !full {
                break;
            }
        }
    }
}

/// Opens sealed timers. Timers whose person was erased are dropped.
async fn opened(mut due: Vec<DueTimer>, rt: &Runtime, pool: &PgPool) -> Vec<DueTimer> {
    let mut opened = Vec::with_capacity(due.len());
    for mut timer in due.drain(..) {
        let place = EncryptionContext::new(&timer.kind, &timer.key);
        match rt.vault.open_text(&timer.command, &place, TIMER).await {
            Ok(Some(command)) => timer.command = command,
            // It is claimed again.
            Err(Trouble::Needs(_)) => continue,
            // What remains is no command: the node of its entity reports that.
            Err(Trouble::Broken(_)) => {}
            Ok(None) => {
                let _ = timers::forget(pool, &timer).await;
                continue;
            }
        }
        opened.push(timer);
    }
    opened
}

fn fire(due: Vec<DueTimer>, fires: &Fires, registry: &Registry) {
    let (mut dead, mut suspicious) = (Vec::new(), Vec::new());
    for timer in due {
        if timer.dead {
            dead.push(timer);
            continue;
        }
        if let Some(firing) = fires.begin(&timer) {
            let DueTimer { kind, key, name, id, command, .. } = &timer;
            let fired = match registry.kind(kind) {
                Some(kind) => kind.fire(key, name.clone(), id.clone(), command, firing),
                None => Err(AskError::BadCommand(format!("no kind {kind}"))),
            };
            if let Err(error) = fired {
                let why = match error {
                    AskError::BadCommand(_) => "unreadable",
                    _ => "unavailable",
                };
                metrics::counter!("proxie_timers_failed_total", "why" => why).increment(1);
                fires.note(&timer, &error.to_string());
            }
        }
        if timer.attempts == SUSPICIOUS {
            suspicious.push(timer);
        }
    }
    let such_as = |timers: &[DueTimer]| {
        timers.first().map(|DueTimer { kind, key, name, last_error, .. }| {
            format!("{kind}/{key}, {name}: {}", last_error.as_deref().unwrap_or("no reason known"))
        })
    };
    if let Some(such_as) = such_as(&suspicious) {
        tracing::error!(
            timers = suspicious.len(),
            such_as,
            "timers cannot be handled; they are tried less and less often"
        );
    }
    if let Some(such_as) = such_as(&dead) {
        metrics::counter!("proxie_dead_letters_total", "of" => "timer")
            .increment(dead.len() as u64);
        tracing::error!(
            timers = dead.len(),
            such_as,
            "timers are given up: `proxie dead-letter list`"
        );
    }
}

/// Wakes entities whose deliveries are overdue: their activation died with them, or became passive meanwhile.
pub async fn wake_owing(pool: PgPool, rt: Arc<Runtime>, registry: Arc<Registry>) {
    let give_up_s = rt.options.give_up_after.as_secs() as i64;
    let mut tick = tokio::time::interval(SCAN_POLL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let mut woken = 0;
        for _ in 0..ROUNDS {
            let (incarnation, now) = (rt.lease.incarnation(), rt.clock.now());
            let owing = outbox::owing(&pool, incarnation, now, give_up_s, SCAN_LIMIT as i64);
            let Ok(owing) = owing.await else { break };
            let full = owing.len() == SCAN_LIMIT;
            let dead = owing.iter().filter(|row| row.dead).count();
            if let Some(row) = owing.iter().find(|row| row.dead) {
                let of = "asleep";
                metrics::counter!("proxie_dead_letters_total", "of" => of).increment(dead as u64);
                tracing::error!(
                    deliveries = dead,
                    such_as = format!("of {}/{}", row.kind, row.key),
                    "deliveries are given up, as their senders cannot be woken: `proxie dead-letter list`"
                );
            }
            let owed = owing.into_iter().filter(|row| row.owed && !row.dead);
            let senders: HashSet<_> = owed.map(|row| (row.kind, row.key)).collect();
            let wakes = |(name, key): &(String, String)| {
                registry.kind(name).is_some_and(|kind| kind.wake(key))
            };
            let awake = senders.iter().filter(|sender| wakes(sender)).count();
            let asleep = (senders.len() - awake) as u64;
            metrics::counter!("proxie_senders_asleep_total").increment(asleep);
            woken += awake;
            // Those that cannot be woken cost nothing but their claim; the others are loaded.
            if !full || woken >= SCAN_LIMIT {
                break;
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

/// The most notices of parked and restarted entities that wait to be written.
const MAX_UNWRITTEN: usize = 10_000;
/// The most parked entities that are read at once.
const PARKED_PAGE: i64 = 10_000;

/// Writes newly parked entities to the store, and lets those start again whose row an operator has deleted.
pub async fn sync_parked(
    pool: PgPool,
    registry: Arc<Registry>,
    mut notices: UnboundedReceiver<ParkNotice>,
) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // What the tables of this node were last made from.
    let mut known = None;
    let mut unwritten: VecDeque<ParkNotice> = VecDeque::new();
    loop {
        tokio::select! {
            notice = notices.recv() => {
                let Some(notice) = notice else { return };
                let ParkNotice { kind, key, failed } = &notice;
                match failed {
                    Some((reason, failures)) => tracing::error!(kind, key = &**key, reason, failures, "an entity is parked: `proxie entity retry` lets it start again"),
                    None => tracing::info!(kind, key = &**key, "an entity that another release had parked has started"),
                }
                // One that is forgotten here starts again, fails, and is parked again.
                unwritten.truncate(MAX_UNWRITTEN);
                unwritten.push_front(notice);
                write_parked(&pool, &registry, &mut unwritten).await;
                known = None;
            }
            _ = tick.tick() => {
                write_parked(&pool, &registry, &mut unwritten).await;
                let Ok(version) = outbox::parked_version(&pool).await else { continue };
                if known == Some(version) {
                    continue;
                }
                let Ok(settled) = load_parked(&pool, &registry).await else { continue };
                metrics::gauge!("proxie_entities_parked").set(version.0 as f64);
                known = settled.then_some(version);
            }
        }
    }
}

/// As far as the store takes them.
async fn write_parked(pool: &PgPool, registry: &Registry, unwritten: &mut VecDeque<ParkNotice>) {
    while let Some(ParkNotice { kind, key, failed }) = unwritten.front() {
        let known_as = registry.kind(kind).map_or("", |kind| kind.known_as());
        let written = match failed {
            Some((reason, failures)) => {
                outbox::park(pool, kind, key, reason, *failures as i32, known_as).await
            }
            None => outbox::started(pool, kind, key, known_as).await,
        };
        if written.is_err() {
            return;
        }
        unwritten.pop_front();
    }
}

/// Keeps parked what the store says is: all of it, since one that is left out would start, fail and be parked again, each
/// second. False: this node has parked others a moment ago.
pub async fn load_parked(pool: &PgPool, registry: &Registry) -> Result<bool, sqlx::Error> {
    let mut by_kind: HashMap<String, HashMap<String, Parked>> = HashMap::new();
    let mut last = (String::new(), String::new());
    loop {
        let page = outbox::parked(pool, (&last.0, &last.1), PARKED_PAGE).await?;
        let full = page.len() as i64 == PARKED_PAGE;
        for row in page {
            last = (row.kind.clone(), row.key.clone());
            by_kind.entry(row.kind.clone()).or_default().insert(row.key.clone(), row);
        }
        if !full {
            break;
        }
    }
    Ok(registry.kinds().fold(true, |settled, (name, kind)| {
        kind.set_parked(by_kind.get(name).unwrap_or(&HashMap::new())) && settled
    }))
}
