//! Thousands of schedules of one person's devices: they write while they are offline, their clocks are wrong, messages are
//! lost, come twice and in any order, devices and nodes crash. In the end all of them show the same, which is what the
//! operations say by themselves.
//!
//! What decides is the real entity, `SyncLog`. Around it are models: a node with a journal and a bounded log, the network,
//! and a device that does what `clients/typescript` does.
//!
//! - `PROXIE_SYNC_SEED=n` runs one schedule, and says what happened in it.
//! - `PROXIE_SYNC_SCHEDULES=n` runs more of them, or fewer.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};

use proxie::kernel::codec;
use proxie::kernel::entity::{Caller, DecideCx, Effect, Entity, Role};
use proxie::kernel::ids::IdSource;
use proxie::systems::devices::domain::clock::{DeviceId, NTP64, tick, to_ntp};
use proxie::systems::devices::domain::operation::{Change, DeviceOperation, WatchPosition};
use proxie::systems::devices::domain::replica::{Entry, Mark, Replica};
use proxie::systems::devices::domain::shared::{
    Command, Event, Reply, State, SyncLimits, SyncLog, SyncStatus,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

const SCHEDULES: u64 = 150;
/// Then nothing is written any more, and nothing fails.
const TROUBLE_MS: i64 = 60_000;
const END_MS: i64 = 120_000;
const START_MS: i64 = 1_768_204_800_000;
/// An answer that has not come by then is asked for again.
const PATIENCE_MS: i64 = 2_000;
const KINDS: u64 = 6;

/// What a device asks. On the way it is text.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Ask {
    Update { seen: i64, operations: Vec<DeviceOperation> },
    Read { reading: u64, after: Option<Mark> },
    Fetch { after: i64 },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Tell {
    Updated { standing: SyncStatus, restamped: Vec<(u64, NTP64)> },
    Page { reading: u64, entries: Vec<Entry>, next: Option<Mark>, offset: i64, stable: i64 },
    Log { after: i64, deltas: Vec<(i64, Delta)>, head: i64, complete: bool },
    Live { offset: i64, delta: Delta },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Delta {
    device_id: DeviceId,
    operations: Vec<DeviceOperation>,
    stable: i64,
}

#[derive(Debug)]
enum Step {
    Write(usize),
    /// A device looks whether there is something to do.
    Look(usize),
    ToNode(usize, String),
    ToDevice(usize, String),
    Cut(usize),
    Mend(usize),
    CrashDevice(usize),
    CrashNode,
    StartNode,
    Skew(usize),
}

struct Node {
    journal: Vec<String>,
    snapshot: Option<(usize, Vec<u8>)>,
    log: Vec<(i64, Delta)>,
    keeps: usize,
    /// While it is up.
    state: Option<State>,
}

struct Queued {
    operation: DeviceOperation,
    /// How far the device had seen the log when it wrote this.
    seen: i64,
    /// It is in the log, up to here.
    acknowledged: Option<i64>,
}

struct Device {
    id: DeviceId,
    skew_ms: i64,
    reachable: bool,
    // What is on its disk.
    sequence: u64,
    queue: Vec<Queued>,
    clock: NTP64,
    confirmed: Replica,
    cursor: i64,
    saved: (Replica, i64),
    counts: BTreeMap<String, u64>,
    /// All it ever wrote, for the judge.
    written: Vec<DeviceOperation>,
    // What a crash takes.
    told_seen: i64,
    asked_at: Option<i64>,
    reading: Option<Reading>,
    readings: u64,
}

struct Reading {
    id: u64,
    replica: Replica,
    offset: Option<i64>,
    asked_at: i64,
}

#[derive(Default, Clone, Copy, Debug)]
struct Met {
    written: u64,
    crashes: u64,
    restamped: u64,
    resyncs: u64,
    left_behind: u64,
    most_tombstones: usize,
}

struct World {
    rng: StdRng,
    now: i64,
    order: u64,
    steps: BinaryHeap<Reverse<(i64, u64, usize)>>,
    waiting: Vec<Option<Step>>,
    node: Node,
    devices: Vec<Device>,
    limits: SyncLimits,
    /// Devices hear of each other's unsent additions on another way, and remove them.
    gossips: bool,
    met: Met,
    logs: bool,
}

impl Device {
    /// What it shows: all it has heard, and what it has written besides.
    fn shown(&self) -> Replica {
        let mut replica = self.confirmed.clone();
        for queued in &self.queue {
            replica.apply(self.id, &queued.operation, i64::MAX);
        }
        replica
    }

    fn apply(&mut self, offset: i64, delta: &Delta) {
        if offset != self.cursor + 1 {
            return;
        }
        for operation in &delta.operations {
            self.confirmed.apply(delta.device_id, operation, offset);
            self.clock = self.clock.max(operation.time);
        }
        if let (true, Some(last)) = (delta.device_id == self.id, delta.operations.last()) {
            let sent = |queued: &&mut Queued| queued.operation.sequence <= last.sequence;
            self.queue.iter_mut().filter(sent).for_each(|q| q.acknowledged = Some(offset));
        }
        self.confirmed.watchlist.forget_removed(delta.stable);
        self.cursor = offset;
        self.forget_heard();
    }

    /// What is in the log up to where this device has heard it need not be kept besides.
    fn forget_heard(&mut self) {
        let cursor = self.cursor;
        self.queue.retain(|queued| queued.acknowledged.is_none_or(|offset| offset > cursor));
    }
}

impl World {
    fn new(seed: u64, logs: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let gossips = rng.random_ratio(1, 4);
        let limits = SyncLimits {
            max_tombstones: if !gossips && rng.random_ratio(1, 2) { 4 } else { 1_000 },
            max_entries: 1_000,
            max_skew_ms: 5_000,
        };
        let keeps = if rng.random_ratio(1, 2) { 1_000 } else { rng.random_range(3..20) };
        let node =
            Node { journal: Vec::new(), snapshot: None, log: Vec::new(), keeps, state: None };
        let mut world = Self {
            now: 0,
            order: 0,
            steps: BinaryHeap::new(),
            waiting: Vec::new(),
            node,
            devices: Vec::new(),
            limits,
            gossips,
            met: Met::default(),
            logs,
            rng,
        };
        world.node.state = Some(State::default());
        for n in 0..world.rng.random_range(2..=8) {
            let device = Device {
                id: DeviceId::new(u128::from(world.rng.random::<u64>()) << 8 | n),
                skew_ms: 0,
                reachable: true,
                sequence: 0,
                queue: Vec::new(),
                clock: NTP64(0),
                confirmed: Replica::default(),
                cursor: 0,
                saved: Default::default(),
                counts: BTreeMap::new(),
                written: Vec::new(),
                told_seen: 0,
                asked_at: None,
                reading: None,
                readings: 0,
            };
            world.command(Command::Join { device: device.id, max_devices: 8 });
            let n = n as usize;
            world.devices.push(device);
            world.at(0, Step::Skew(n));
            world.at(0, Step::Look(n));
            let every = world.rng.random_range(200..4_000);
            for k in 0..TROUBLE_MS / every {
                let at = k * every + world.rng.random_range(0..every);
                world.at(at, Step::Write(n));
            }
            for _ in 0..world.rng.random_range(0..4) {
                let from = world.rng.random_range(0..TROUBLE_MS);
                let to = from + world.rng.random_range(100..30_000);
                world.at(from, Step::Cut(n));
                world.at(to.min(TROUBLE_MS), Step::Mend(n));
            }
            for _ in 0..world.rng.random_range(0..3) {
                let at = world.rng.random_range(0..TROUBLE_MS);
                world.at(at, Step::CrashDevice(n));
            }
            if world.rng.random_ratio(1, 3) {
                let at = world.rng.random_range(0..TROUBLE_MS);
                world.at(at, Step::Skew(n));
            }
        }
        for _ in 0..world.rng.random_range(0..4) {
            let at = world.rng.random_range(0..TROUBLE_MS);
            let back = at + world.rng.random_range(10..8_000);
            world.at(at, Step::CrashNode);
            world.at(back, Step::StartNode);
        }
        world.at(TROUBLE_MS + 8_000, Step::StartNode);
        world
    }

    fn at(&mut self, at: i64, step: Step) {
        self.order += 1;
        self.steps.push(Reverse((at, self.order, self.waiting.len())));
        self.waiting.push(Some(step));
    }

    fn log(&self, what: impl FnOnce() -> String) {
        if self.logs {
            eprintln!("{:>6} {}", self.now, what());
        }
    }

    fn in_trouble(&self) -> bool {
        self.now < TROUBLE_MS
    }

    /// One way over the network.
    fn send(&mut self, device: usize, text: String, step: impl Fn(usize, String) -> Step) {
        if !self.devices[device].reachable {
            return;
        }
        let copies = match self.rng.random_range(0..20) {
            0 if self.in_trouble() => 0,
            1 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let late = if self.rng.random_ratio(1, 10) { 3_000 } else { 150 };
            let at = self.now + self.rng.random_range(1..late);
            self.at(at, step(device, text.clone()));
        }
    }

    fn ask(&mut self, device: usize, ask: &Ask) {
        self.send(device, serde_json::to_string(ask).unwrap(), Step::ToNode);
    }

    fn tell(&mut self, device: usize, tell: &Tell) {
        self.send(device, serde_json::to_string(tell).unwrap(), Step::ToDevice);
    }

    /// The node decides; `None`: it crashed over it, before or after the commit.
    fn command(&mut self, command: Command) -> Option<(Reply, Vec<(i64, Delta)>)> {
        let now = jiff::Timestamp::from_millisecond(START_MS + self.now).unwrap();
        let ids = IdSource::new(now, 1);
        let caller = Caller::user("alice", Role::Consumer);
        let cx = DecideCx { key: "alice", now, caller: &caller, ids: &ids };
        let state = self.node.state.as_mut()?;
        let decision = SyncLog::decide(state, command, &cx).expect("it is registered");
        let crash = self.now > 0 && self.now < TROUBLE_MS && self.rng.random_ratio(1, 200);
        if crash && self.rng.random_ratio(1, 2) {
            self.crash_node();
            return None;
        }
        let mut said = Vec::new();
        let before = state.offset;
        for event in &decision.events {
            SyncLog::evolve(state, event);
            self.met.left_behind += u64::from(matches!(event, Event::LeftBehind { .. }));
            self.node.journal.push(serde_json::to_string(event).unwrap());
        }
        for effect in decision.effects {
            let Effect::Publish { publication, durable: true } = effect else {
                panic!("{effect:?}")
            };
            said.push((before + 1, serde_json::from_value(publication.data).unwrap()));
        }
        let tombstones = state.replica.watchlist.tombstones();
        self.met.most_tombstones = self.met.most_tombstones.max(tombstones);
        if self.rng.random_ratio(1, 20) {
            self.node.snapshot = Some((self.node.journal.len(), codec::encode(state)));
        }
        self.node.log.extend(said.clone());
        let surplus = self.node.log.len().saturating_sub(self.node.keeps);
        self.node.log.drain(..surplus);
        if crash {
            self.crash_node();
            return None;
        }
        decision.reply.map(|reply| (reply, said))
    }

    fn crash_node(&mut self) {
        self.met.crashes += 1;
        self.log(|| "the node crashes".into());
        self.node.state = None;
        let back = self.now + self.rng.random_range(10..3_000);
        self.at(back, Step::StartNode);
    }

    fn start_node(&mut self) {
        if self.node.state.is_some() {
            return;
        }
        let (from, mut state) = match &self.node.snapshot {
            Some((from, data)) => (*from, codec::decode(data).expect("a snapshot")),
            None => (0, State::default()),
        };
        for event in &self.node.journal[from..] {
            SyncLog::evolve(&mut state, &serde_json::from_str(event).unwrap());
        }
        self.node.state = Some(state);
    }

    fn node_hears(&mut self, from: usize, text: &str) {
        let device = self.devices[from].id;
        match serde_json::from_str(text).unwrap() {
            Ask::Update { seen, operations } => {
                let limits = self.limits;
                let update = Command::Update { device, seen, operations, limits };
                let Some((reply, said)) = self.command(update) else { return };
                let Reply::Updated { standing, restamped, refused } = reply else { panic!() };
                assert!(refused.is_empty(), "{refused:?}");
                self.met.restamped += restamped.len() as u64;
                let restamped = restamped.iter().map(|r| (r.sequence, r.time)).collect();
                self.tell(from, &Tell::Updated { standing, restamped });
                for (offset, delta) in said {
                    let text = serde_json::to_string(&Tell::Live { offset, delta }).unwrap();
                    for to in 0..self.devices.len() {
                        self.send(to, text.clone(), Step::ToDevice);
                    }
                }
            }
            Ask::Read { reading, after } => {
                let Some((reply, _)) = self.command(Command::Read { after }) else { return };
                let Reply::Page { entries, next, offset, stable } = reply else { panic!() };
                self.tell(from, &Tell::Page { reading, entries, next, offset, stable });
            }
            Ask::Fetch { after } => {
                let Some(state) = &self.node.state else { return };
                let head = state.offset;
                let first = self.node.log.partition_point(|(offset, _)| *offset <= after);
                let deltas = self.node.log[first..].to_vec();
                let complete = after == head || deltas.first().is_some_and(|d| d.0 == after + 1);
                self.tell(from, &Tell::Log { after, deltas, head, complete });
            }
        }
    }

    fn device_hears(&mut self, n: usize, text: &str) {
        match serde_json::from_str(text).unwrap() {
            Tell::Updated { standing, restamped } => {
                let device = &mut self.devices[n];
                for queued in &mut device.queue {
                    if queued.operation.sequence <= standing.sequence {
                        queued.acknowledged.get_or_insert(standing.offset);
                    }
                }
                device.forget_heard();
                device.told_seen = device.told_seen.max(standing.seen);
                if let Some((_, time)) = restamped.last() {
                    // Its clock is ahead, and is not believed: what it has heard is.
                    device.clock = *time;
                }
                device.asked_at = None;
                device.confirmed.watchlist.forget_removed(standing.stable.min(device.cursor));
                if standing.must_resync && device.reading.is_none() {
                    self.read(n);
                }
                self.look(n);
            }
            Tell::Live { offset, delta } => {
                if offset > self.devices[n].cursor + 1 {
                    let after = self.devices[n].cursor;
                    self.ask(n, &Ask::Fetch { after });
                } else {
                    self.devices[n].apply(offset, &delta);
                }
            }
            Tell::Log { after, deltas, head, complete } => {
                if !complete && after == self.devices[n].cursor && self.devices[n].reading.is_none()
                {
                    self.read(n);
                }
                for (offset, delta) in deltas {
                    self.devices[n].apply(offset, &delta);
                }
                if complete && head > self.devices[n].cursor {
                    self.log(|| format!("device {n} is behind"));
                }
            }
            Tell::Page { reading: id, entries, next, offset, .. } => {
                let device = &mut self.devices[n];
                let Some(reading) = device.reading.as_mut().filter(|reading| reading.id == id)
                else {
                    return;
                };
                let begun = *reading.offset.get_or_insert(offset);
                for Entry { by, change } in entries {
                    let operation =
                        DeviceOperation { sequence: 1, operation_id: None, time: by.time, change };
                    reading.replica.apply(by.device, &operation, begun);
                    device.clock = device.clock.max(by.time);
                }
                reading.asked_at = self.now;
                if next.is_some() {
                    return self.ask(n, &Ask::Read { reading: id, after: next });
                }
                let replica = std::mem::take(&mut reading.replica);
                device.reading = None;
                if begun >= device.cursor {
                    (device.confirmed, device.cursor) = (replica, begun);
                    device.forget_heard();
                    self.met.resyncs += 1;
                    self.log(|| format!("device {n} has read everything, up to {begun}"));
                }
                let after = self.devices[n].cursor;
                self.ask(n, &Ask::Fetch { after });
            }
        }
    }

    fn read(&mut self, n: usize) {
        let device = &mut self.devices[n];
        device.readings += 1;
        let id = device.readings;
        device.reading =
            Some(Reading { id, replica: Replica::default(), offset: None, asked_at: self.now });
        self.ask(n, &Ask::Read { reading: id, after: None });
    }

    /// Sends what waits, one message at a time.
    fn look(&mut self, n: usize) {
        let now = self.now;
        let device = &mut self.devices[n];
        if device.reading.as_ref().is_some_and(|reading| reading.asked_at + PATIENCE_MS < now) {
            return self.read(n);
        }
        if device.asked_at.is_some_and(|at| at + PATIENCE_MS > now) {
            return;
        }
        let mut pending = device.queue.iter().filter(|queued| queued.acknowledged.is_none());
        let batch: Vec<_> = pending.by_ref().take(5).map(|q| q.operation.clone()).collect();
        let seen = pending.next().map_or(device.cursor, |queued| queued.seen);
        if !batch.is_empty() || seen > device.told_seen {
            device.asked_at = Some(now);
            self.ask(n, &Ask::Update { seen, operations: batch });
        }
    }

    fn write(&mut self, n: usize) {
        let shown = self.devices[n].shown();
        let content_id = format!("c{}", self.rng.random_range(0..KINDS));
        let elsewhere = self.rng.random_range(0..self.devices.len());
        let change = match self.rng.random_range(0..10) {
            0..3 => Change::WatchlistAdd {
                content_id,
                tag: format!("{}.{}", self.devices[n].id, self.devices[n].sequence),
            },
            3..6 => {
                let mut tags: Vec<String> = shown
                    .watchlist
                    .additions_of(&content_id)
                    .iter()
                    .map(|a| a.tag.clone())
                    .collect();
                if self.gossips {
                    let theirs = self.devices[elsewhere].shown();
                    let theirs = theirs.watchlist.additions_of(&content_id).iter();
                    tags.extend(theirs.map(|a| a.tag.clone()));
                }
                if tags.is_empty() {
                    return;
                }
                Change::WatchlistRemove { content_id, tags }
            }
            6..9 => Change::PlaybackUpdate {
                content_id,
                position: WatchPosition {
                    position_ms: self.rng.random_range(0..9),
                    duration_ms: None,
                },
            },
            _ => {
                let count = self.devices[n].counts.entry(content_id.clone()).or_default();
                *count += 1;
                Change::CounterUpdate { content_id, count: *count }
            }
        };
        let device = &mut self.devices[n];
        let wall = jiff::Timestamp::from_millisecond(START_MS + self.now + device.skew_ms).unwrap();
        device.clock = tick(device.clock, to_ntp(wall));
        device.sequence += 1;
        let operation = DeviceOperation {
            sequence: device.sequence,
            operation_id: None,
            time: device.clock,
            change,
        };
        device.written.push(operation.clone());
        device.queue.push(Queued { operation, seen: device.cursor, acknowledged: None });
        self.met.written += 1;
        self.look(n);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(n) => self.write(n),
            Step::Look(n) => {
                self.look(n);
                let after = self.devices[n].cursor;
                self.ask(n, &Ask::Fetch { after });
                if self.rng.random_ratio(1, 3) {
                    let device = &mut self.devices[n];
                    device.saved = (device.confirmed.clone(), device.cursor);
                }
                let again = self.now + self.rng.random_range(500..1_500);
                self.at(again, Step::Look(n));
            }
            Step::ToNode(n, text) => self.node_hears(n, &text),
            Step::ToDevice(n, text) if self.devices[n].reachable => self.device_hears(n, &text),
            Step::ToDevice(..) => {}
            Step::Cut(n) => self.devices[n].reachable = false,
            Step::Mend(n) => self.devices[n].reachable = true,
            Step::CrashDevice(n) => {
                self.met.crashes += 1;
                self.log(|| format!("device {n} crashes"));
                let device = &mut self.devices[n];
                // What was written is on its disk. What was heard may not be.
                (device.confirmed, device.cursor) = device.saved.clone();
                device.queue.iter_mut().for_each(|queued| queued.acknowledged = None);
                (device.told_seen, device.asked_at, device.reading) = (0, None, None);
            }
            Step::CrashNode => self.crash_node(),
            Step::StartNode => self.start_node(),
            Step::Skew(n) => {
                self.devices[n].skew_ms = match self.rng.random_range(0..3) {
                    0 => 0,
                    1 => self.rng.random_range(-500..500),
                    _ => self.rng.random_range(-60_000..60_000),
                };
            }
        }
    }

    fn run(&mut self) {
        while let Some(Reverse((at, _, n))) = self.steps.pop() {
            if at > END_MS {
                break;
            }
            self.now = at;
            let step = self.waiting[n].take().expect("a step happens once");
            self.step(step);
        }
    }

    /// What the operations say by themselves, whatever order they came in.
    fn judge(&self) {
        let state = self.node.state.as_ref().expect("the node is up");
        let mut counted: BTreeMap<(DeviceId, u64), DeviceOperation> = BTreeMap::new();
        for event in &self.node.journal {
            if let Event::Merged { device, operations, .. } = serde_json::from_str(event).unwrap() {
                for operation in operations {
                    let twice = counted.insert((device, operation.sequence), operation);
                    assert!(twice.is_none(), "an operation counts twice");
                }
            }
        }
        let (mut added, mut removed) = (BTreeSet::new(), BTreeSet::new());
        let mut positions: BTreeMap<&str, (NTP64, DeviceId, &WatchPosition)> = BTreeMap::new();
        let mut counters: BTreeMap<&str, BTreeMap<DeviceId, u64>> = BTreeMap::new();
        for device in &self.devices {
            for operation in &device.written {
                let counts = counted.get(&(device.id, operation.sequence));
                let counts = counts.unwrap_or_else(|| panic!("lost: {} {operation:?}", device.id));
                match &operation.change {
                    Change::WatchlistAdd { content_id, tag } => {
                        added.insert((content_id.as_str(), tag.as_str()));
                    }
                    Change::WatchlistRemove { content_id, tags } => {
                        removed.extend(tags.iter().map(|tag| (content_id.as_str(), tag.as_str())));
                    }
                    Change::PlaybackUpdate { content_id, position } => {
                        let written = (counts.time, device.id, position);
                        let best = positions.entry(content_id).or_insert(written);
                        *best = written.max(*best);
                    }
                    Change::CounterUpdate { content_id, count } => {
                        counters.entry(content_id).or_default().insert(device.id, *count);
                    }
                    Change::Nothing {} => {}
                }
            }
        }
        let live: Vec<_> = added.difference(&removed).copied().collect();
        let of = |replica: &Replica, who: &str| {
            let shown: Vec<_> = replica
                .watchlist
                .items()
                .flat_map(|(item, additions)| {
                    additions.iter().map(move |added| (item.to_owned(), added.tag.clone()))
                })
                .collect();
            let shown: Vec<_> = shown.iter().map(|(i, t)| (i.as_str(), t.as_str())).collect();
            assert_eq!(shown, live, "the watchlist of {who}");
            let shown: BTreeMap<&str, (NTP64, DeviceId, &WatchPosition)> = replica
                .positions
                .iter()
                .map(|(id, r)| {
                    (id.as_str(), (r.wins.stamp.time, r.wins.stamp.device, &r.wins.value))
                })
                .collect();
            assert_eq!(shown, positions, "the positions of {who}");
            let shown: BTreeMap<&str, BTreeMap<DeviceId, u64>> =
                replica.counters.iter().map(|(id, c)| (id.as_str(), c.shares.clone())).collect();
            assert_eq!(shown, counters, "the counters of {who}");
        };
        of(&state.replica, "the node");
        for (n, device) in self.devices.iter().enumerate() {
            assert_eq!(device.cursor, state.offset, "device {n} has heard everything");
            assert!(device.queue.is_empty(), "device {n} has sent everything");
            of(&device.shown(), &format!("device {n}"));
        }
        assert_eq!(state.replica.watchlist.tombstones(), 0, "all devices have seen all");
        assert_eq!(state.stable, state.offset);
        // A batch, and what was there before somebody was not waited for.
        let bound = self.limits.max_tombstones + 5 * 64 * 2;
        assert!(self.met.most_tombstones <= bound, "{} removals kept", self.met.most_tombstones);
    }
}

fn schedule(seed: u64, logs: bool) -> Result<Met, String> {
    let result = catch_unwind(|| {
        let mut world = World::new(seed, logs);
        world.run();
        world.judge();
        world.met
    });
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap_or_default()
    })
}

#[test]
fn devices_come_to_the_same_whatever_happens() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    if let Some(seed) = number("PROXIE_SYNC_SEED") {
        let met = schedule(seed, true);
        return println!("{:?}", met.unwrap());
    }
    let schedules = number("PROXIE_SYNC_SCHEDULES").unwrap_or(SCHEDULES);
    let next = AtomicU64::new(0);
    let results: Vec<(u64, Result<Met, String>)> = std::thread::scope(|scope| {
        let work = || {
            let mut results = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= schedules {
                    return results;
                }
                results.push((seed, schedule(seed, false)));
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let mut all = Met::default();
    let mut wrong = Vec::new();
    for (seed, result) in results {
        match result {
            Ok(met) => {
                all.written += met.written;
                all.crashes += met.crashes;
                all.restamped += met.restamped;
                all.resyncs += met.resyncs;
                all.left_behind += met.left_behind;
                all.most_tombstones = all.most_tombstones.max(met.most_tombstones);
            }
            Err(why) => wrong.push((seed, why)),
        }
    }
    println!("{schedules} schedules, {} wrong: {all:?}", wrong.len());
    wrong.sort();
    let first: Vec<_> = wrong.iter().take(3).collect();
    assert!(wrong.is_empty(), "{} of {schedules} schedules: {first:#?}", wrong.len());
    assert!(all.restamped > 0 && all.resyncs > 0 && all.left_behind > 0 && all.crashes > 0);
}
