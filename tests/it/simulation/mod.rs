//! Thousands of schedules of a cluster in virtual time: who takes part, who owns which slot, who may write and answer,
//! and how slots change hands, while processes stop and die and the network and the store fail.
//!
//! What decides is the real code: `ClusterView`, `Slots`, `Pulses`, `Lease`, `placement`. Around it are models: the shell of a
//! node (`node`, `entity`), the store (`store`), the network (`world`), and time (`exec`). See docs/adr/0009.
//!
//! - `PROXIE_SEED=n` runs one schedule, and says what happened in it.
//! - `PROXIE_SCHEDULES=n` runs more of them, or fewer.

mod entity;
mod exec;
mod node;
mod store;
mod world;

use std::cell::Cell;
use std::panic::catch_unwind;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use proxie::persistence::members::{Evidence, MemberState};

use entity::Ask;
use exec::{WORLD, between, now, one_in, pick, sleep, spawn, timeout};
use node::Life;
use store::SLOTS;
use world::{OPERATOR, World};

const SCHEDULES: u64 = 1_000;
/// Trouble ends here, and from then on everything has to become good again.
const TROUBLE_MS: i64 = 60_000;
const HEALING_MS: i64 = 30_000;
/// One single failure has been dealt with, without any help, after this time.
const RECOVERY_MS: i64 = 16_000;

struct Outcome {
    wrong: Option<String>,
    steps: u64,
    reads: u64,
    writes: u64,
    log: Vec<String>,
}

fn schedule(seed: u64, broken: &'static str, logs: bool) -> Outcome {
    exec::reset(seed);
    let world = World::new(broken, logs);
    let single = one_in(6);
    let nodes = between(if single { 2 } else { 3 }, 5) as usize;
    world.faults.borrow_mut().single = single;
    world.faults.borrow_mut().slow_ms = if one_in(3) { between(3, 200) } else { 0 };
    world.faults.borrow_mut().slow_loads = one_in(4);
    world.faults.borrow_mut().flaky = one_in(4);
    for name in 0..nodes {
        let (world, delay) = (world.clone(), between(0, if one_in(2) { 200 } else { 8_000 }));
        spawn(WORLD, async move {
            sleep(delay).await;
            Life::start(world, name).await;
        });
    }
    spawn(WORLD, commands(world.clone()));
    if single {
        one_failure(&world);
    } else {
        spawn(WORLD, trouble(world.clone(), nodes));
        exec::run(TROUBLE_MS, || world.went_wrong().is_some());
    }
    heal(&world);
    let (good, until) = (Rc::new(Cell::new(false)), now() + HEALING_MS);
    spawn(WORLD, watch(world.clone(), good.clone(), nodes));
    exec::run(until, || good.get() || world.went_wrong().is_some());
    if !good.get() && world.went_wrong().is_none() {
        world.wrong(format!(
            "nothing is wrong any more, and it does not recover: {}",
            state(&world)
        ));
    }
    let (reads, writes) = world.answered.get();
    let outcome = Outcome {
        wrong: world.went_wrong(),
        steps: exec::steps(),
        reads,
        writes,
        log: world.log(),
    };
    exec::reset(0);
    outcome
}

/// Commands from everywhere, also to nodes that are declared dead and do not know it. Most of them where a slot has just
/// changed hands: writes, and reads at every node that may believe that it is the one.
async fn commands(world: Rc<World>) {
    loop {
        let hot = world.hot_slot().filter(|_| !one_in(4));
        sleep(if hot.is_some() { between(5, 80) } else { between(50, 500) }).await;
        let slot = hot.unwrap_or_else(|| between(0, i64::from(SLOTS) - 1) as u16);
        let write = Ask { slot, id: Some(world.new_id()), known: world.known(slot) };
        // A command with an id may be sent again, and counts once.
        for _ in 0..if one_in(10) { 2 } else { 1 } {
            if let Some(life) = world.any_running() {
                spawn(life.process, life.clone().route(world.clone(), write));
            }
        }
        let read = Ask { id: None, ..write };
        let everywhere = hot.is_some() && one_in(2);
        for life in world.running().into_iter().filter(|_| everywhere || one_in(4)) {
            spawn(life.process, life.clone().route(world.clone(), read));
        }
    }
}

/// One failure after the other, and some at the same time.
async fn trouble(world: Rc<World>, nodes: usize) {
    let (least, most) = pick(&[(50, 1_500), (300, 4_000), (2_000, 12_000)]).expect("three");
    // Some schedules are about one kind of failure.
    let only = one_in(3).then(|| between(0, 8));
    loop {
        sleep(between(least, most)).await;
        let for_ms = if one_in(4) { between(3_000, 20_000) } else { between(50, 3_000) };
        if world.faults.borrow().healed {
            return;
        }
        let Some(life) = world.any_running() else { continue };
        let name = life.name;
        let other = (name + between(1, nodes as i64 - 1) as usize) % nodes;
        let w = world.clone();
        match only.unwrap_or_else(|| between(0, 8)) {
            0 => world.kill(&life, between(100, 5_000)),
            1 | 2 => world.stop(&life, for_ms),
            3 => {
                let refuses = one_in(4);
                world.part(name, other, refuses || one_in(2), refuses);
                spawn(WORLD, async move {
                    sleep(for_ms).await;
                    w.reunite(name, other);
                });
            }
            4 => {
                let cut = pick(&[(true, true), (true, false), (false, true)]).expect("three");
                world.note(|| format!("node {name} and the store: {cut:?} are cut, {for_ms} ms"));
                world.faults.borrow_mut().store.insert(name, cut);
                spawn(WORLD, async move {
                    sleep(for_ms).await;
                    w.faults.borrow_mut().store.remove(&name);
                });
            }
            5 => {
                let until = now() + for_ms.min(8_000);
                world.note(|| format!("the store is away until {until}"));
                let mut faults = world.faults.borrow_mut();
                match one_in(2) {
                    true => faults.hangs_until = until,
                    false => faults.refuses_until = until,
                }
            }
            6 => {
                let by = between(-10_000, 10_000);
                world.note(|| format!("the store's clock is set by {by} ms"));
                world.store.borrow_mut().clock_offset += by;
            }
            7 => life.drain(&world, between(100, 3_000)),
            _ if one_in(2) => spawn(WORLD, async move {
                if one_in(2) {
                    // It does not hear of its end.
                    w.faults.borrow_mut().store.insert(name, (true, true));
                }
                let evicting = w.evict(OPERATOR, None, life.me, Evidence::Operator);
                timeout(5_000, evicting).await;
                sleep(for_ms).await;
                w.faults.borrow_mut().store.remove(&name);
            }),
            _ => spawn(WORLD, async move {
                let draining = w.set_state(OPERATOR, life.me, MemberState::Draining);
                timeout(5_000, draining).await;
            }),
        }
    }
}

/// While slots change hands for the first time, or later, one thing goes wrong and nothing else. The cluster gets over
/// it by itself, and nobody is declared dead who is well.
fn one_failure(world: &Rc<World>) {
    let wait = |ms| exec::run(now() + ms, || world.went_wrong().is_some());
    let what = between(0, 3);
    if what == 2 {
        wait(between(8_000, 20_000));
        let until = now() + between(1_000, 9_000);
        world.note(|| format!("the store is away until {until}"));
        match one_in(2) {
            true => world.faults.borrow_mut().hangs_until = until,
            false => world.faults.borrow_mut().refuses_until = until,
        }
        return wait(RECOVERY_MS);
    }
    wait(between(100, 20_000));
    let Some(lost) = world.any_running() else { return };
    if one_in(3) {
        lost.clone().drain(world, 60_000);
        wait(between(0, 300));
    }
    world.lost.set(Some(lost.me));
    if what == 3 {
        world.stop(&lost, between(900, 1_600));
        return wait(RECOVERY_MS);
    }
    world.stop(&lost, 60_000);
    if one_in(3) {
        world.kill(&lost, 60_000);
    }
    if world.running().iter().all(|life| life.me == lost.me) {
        return;
    }
    wait(RECOVERY_MS);
    let store = world.store.borrow();
    let owned = |slot: &store::Slot| {
        slot.owner.is_some_and(|owner| owner != lost.me && store.is_living(owner))
    };
    if !store.slots.iter().all(owned) {
        world.wrong(format!("{} is lost, and not everything has a new owner", lost.me));
    }
}

fn heal(world: &Rc<World>) {
    world.note(|| "everything is well".into());
    let apart: Vec<_> = world.faults.borrow().apart.keys().copied().collect();
    {
        let mut faults = world.faults.borrow_mut();
        faults.store.clear();
        (faults.hangs_until, faults.refuses_until, faults.healed) = (0, 0, true);
    }
    apart.into_iter().for_each(|(a, b)| world.reunite(a, b));
    for life in world.running() {
        exec::stop_until(life.process, now());
    }
}

/// Waits until every node takes part, every slot has one owner who serves it, everybody knows where, and each entity
/// has taken a write and a read.
async fn watch(world: Rc<World>, good: Rc<Cell<bool>>, nodes: usize) {
    loop {
        sleep(100).await;
        let lives = world.running();
        let all = lives.len() == nodes
            && lives.iter().all(|life| life.state.get() == Some(MemberState::Active))
            && (0..SLOTS).all(|slot| {
                let row = world.store.borrow().slots[usize::from(slot)];
                lives.iter().all(|life| life.slots.owned(slot).owner == row.owner)
                    && lives.iter().any(|life| row.owner == Some(life.me))
            });
        if !all {
            continue;
        }
        let (before, heads) = (world.answered.get(), heads(&world));
        for slot in 0..SLOTS {
            for life in &lives {
                for id in [Some(world.new_id()), None] {
                    let ask = Ask { slot, id, known: world.known(slot) };
                    spawn(life.process, life.clone().route(world.clone(), ask));
                }
            }
        }
        sleep(400).await;
        let (reads, writes) = world.answered.get();
        let grew = heads.iter().zip(self::heads(&world)).all(|(old, new)| old + lives.len() <= new);
        let asked = lives.len() as u64 * u64::from(SLOTS);
        world.note(|| format!("asked everywhere: {heads:?}, then {:?}", self::heads(&world)));
        if grew && writes >= before.1 + asked && reads >= before.0 + asked {
            good.set(true);
        }
    }
}

fn heads(world: &World) -> Vec<usize> {
    world.store.borrow().journal.iter().map(Vec::len).collect()
}

/// For whoever looks into a failure.
fn state(world: &World) -> String {
    let owners: Vec<_> = world.store.borrow().slots.iter().map(|slot| slot.owner).collect();
    let nodes = world.running().into_iter().map(|life| {
        let live = life.activations.borrow().len();
        (life.me, life.state.get(), live, life.lane_is_up.get(), life.lane_is_idle.get())
    });
    let locks = world.store.borrow().locks();
    format!("nodes {:?}, owners {owners:?}, {locks}", nodes.collect::<Vec<_>>())
}

/// What came out of many schedules: how many went wrong, and the first of them.
#[derive(Default)]
struct Sum {
    wrong: u64,
    first: Option<(u64, String)>,
    steps: u64,
    reads: u64,
    writes: u64,
}

fn schedules(seeds: std::ops::Range<u64>, broken: &'static str, enough: u64) -> Sum {
    let (next, sum) = (AtomicU64::new(seeds.start), Mutex::new(Sum::default()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || sum.lock().unwrap().wrong >= enough {
                        return;
                    }
                    let one = || schedule(seed, broken, false);
                    let outcome =
                        catch_unwind(one).unwrap_or_else(|_| panic!("PROXIE_SEED={seed}"));
                    let mut sum = sum.lock().unwrap();
                    sum.steps += outcome.steps;
                    sum.reads += outcome.reads;
                    sum.writes += outcome.writes;
                    if let Some(wrong) = outcome.wrong {
                        sum.wrong += 1;
                        if sum.first.as_ref().is_none_or(|(first, _)| seed < *first) {
                            sum.first = Some((seed, wrong));
                        }
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap()
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|n| n.parse().expect("a number"))
}

#[test]
fn every_schedule_keeps_every_promise() {
    let broken: &'static str = std::env::var("PROXIE_BREAK").unwrap_or_default().leak();
    if let Some(seed) = number("PROXIE_SEED") {
        let outcome = schedule(seed, broken, true);
        println!("{}", outcome.log.join("\n"));
        assert_eq!(outcome.wrong, None);
        return;
    }
    let began = std::time::Instant::now();
    let count = number("PROXIE_SCHEDULES").unwrap_or(SCHEDULES);
    let sum = schedules(0..count, broken, 1_000_000);
    println!(
        "{count} schedules in {:?}, {} steps: {} reads and {} writes were answered, {} went wrong",
        began.elapsed(),
        sum.steps,
        sum.reads,
        sum.writes,
        sum.wrong
    );
    if let Some((seed, wrong)) = sum.first {
        let log = schedule(seed, broken, true).log;
        println!("{}", log[log.len().saturating_sub(60)..].join("\n"));
        panic!("PROXIE_SEED={seed}: {wrong}");
    }
    assert!(sum.reads > count * 50 && sum.writes > count * 50, "hardly anything was answered");
}

/// A simulation that finds nothing proves nothing.
#[test]
fn a_broken_rule_is_noticed() {
    for rule in [
        "no wait after a claim",
        "lease counted from the answer",
        "a burned batch is taken for a written one",
        "no end of idle transactions",
        "no lease for reads",
        "eviction by the unfit",
        "hand-over without retiring",
        "hand-over without flush + hand-over without the lane's lock",
    ] {
        let sum = schedules(0..1_000, rule, 1);
        assert!(sum.wrong > 0, "{rule}");
    }
}
