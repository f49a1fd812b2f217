//! What `persistence::members`, `commit_batch` and Postgres' locks do, without Postgres: transactions of several
//! statements, each a round trip that can be late or lost, and the rows that they lock meanwhile.

mod lanes;
mod members;

use std::collections::BTreeMap;
use std::rc::Rc;

use proxie::persistence::members::MemberState;

use super::exec::{WORLD, between, now, one_in, sleep, spawn};
use super::node::Life;
use super::world::{Lost, World};

pub const SLOTS: u16 = 20;
pub const LEASE_MS: i64 = 4_000;
/// The server ends a transaction whose client says nothing for so long.
const IDLE_IN_TRANSACTION_MS: i64 = 2_000;

pub struct Node {
    pub name: usize,
    pub release: u32,
    /// `None`: dead.
    pub state: Option<MemberState>,
    lease_until: i64,
    /// A declaration of death that is not committed yet.
    locked: Option<u64>,
}

#[derive(Default)]
struct Lane {
    batch: i64,
    fenced: bool,
    /// `None`: the number was used up without a batch.
    result: Option<Vec<Written>>,
    lock: Option<u64>,
}

#[derive(Clone, Copy, Default)]
pub struct Slot {
    pub owner: Option<i64>,
    pub epoch: i64,
    pub claimed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Committed,
    Moved,
    Stale,
    Duplicate,
    After,
}

/// One event for one entity.
#[derive(Clone, Copy)]
pub struct Row {
    pub slot: u16,
    pub epoch: i64,
    pub head: usize,
    pub id: u64,
}

enum Change {
    Enrol(i64, usize, u32),
    State(i64, MemberState),
    Owner(u16, Slot),
    Dead(i64, Option<i64>),
}

#[derive(Default)]
struct Transaction {
    busy: bool,
    statements: u32,
    changes: Vec<Change>,
}

pub struct Store {
    /// Its clock is not the nodes', and may be set.
    pub clock_offset: i64,
    pub version: i64,
    next: i64,
    pub nodes: BTreeMap<i64, Node>,
    lanes: BTreeMap<i64, Lane>,
    suspicions: BTreeMap<(i64, i64), i64>,
    pub slots: Vec<Slot>,
    /// The entity of each slot: the ids of its events.
    pub journal: Vec<Vec<u64>>,
    lock: Option<u64>,
    open: BTreeMap<u64, Transaction>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            clock_offset: 0,
            version: 1,
            next: 0,
            nodes: BTreeMap::new(),
            lanes: BTreeMap::new(),
            suspicions: BTreeMap::new(),
            slots: vec![Slot::default(); usize::from(SLOTS)],
            journal: vec![Vec::new(); usize::from(SLOTS)],
            lock: None,
            open: BTreeMap::new(),
        }
    }
}

impl Store {
    pub fn clock(&self) -> i64 {
        now() + self.clock_offset
    }

    pub fn is_living(&self, incarnation: i64) -> bool {
        self.nodes.get(&incarnation).is_some_and(|node| node.state.is_some())
    }

    /// For whoever looks into a failure.
    pub fn locks(&self) -> String {
        let lanes = self.lanes.iter().filter_map(|(node, lane)| Some((*node, lane.lock?)));
        let open: Vec<_> = self.open.iter().map(|(id, tx)| (*id, tx.busy, tx.statements)).collect();
        format!("lock {:?}, lanes {:?}, open {open:?}", self.lock, lanes.collect::<Vec<_>>())
    }

    fn fresh(&mut self) -> i64 {
        self.next += 1;
        self.next
    }

    fn suspected_by(&self, suspect: i64) -> u32 {
        let active = |by: &i64| self.nodes[by].state == Some(MemberState::Active);
        let recent = |at: i64| at > self.clock() - 3_000;
        let of = self.suspicions.range((suspect, 0)..(suspect + 1, 0));
        of.filter(|((_, by), at)| active(by) && recent(**at)).count() as u32
    }

    /// False: somebody else has the members' lock. Who is not there any more needs it no more.
    fn try_lock(&mut self, tx: u64) -> bool {
        if self.lock.is_some() && self.open.contains_key(&tx) {
            return false;
        }
        if self.open.contains_key(&tx) {
            self.lock = Some(tx);
        }
        true
    }

    /// Ends a transaction or a batch: its locks are free.
    fn release(&mut self, holder: u64) {
        self.open.remove(&holder);
        if self.lock == Some(holder) {
            self.lock = None;
        }
        for lane in self.lanes.values_mut().filter(|lane| lane.lock == Some(holder)) {
            lane.lock = None;
        }
        for node in self.nodes.values_mut().filter(|node| node.locked == Some(holder)) {
            node.locked = None;
        }
    }
}

/// A transaction under the lock of `members.rs`. Dropped without a commit, its connection is closed.
pub struct Tx {
    world: Rc<World>,
    from: usize,
    id: u64,
}

impl Drop for Tx {
    fn drop(&mut self) {
        let (world, from, id) = (self.world.clone(), self.from, self.id);
        spawn(WORLD, async move {
            sleep(between(0, 5)).await;
            // What was sent arrives first, and the end of the connection not at all while the network is cut.
            while world.faults.borrow().cut(from) || world.is_busy(id) {
                sleep(50).await;
            }
            world.store.borrow_mut().release(id);
        });
    }
}

impl Tx {
    async fn begin(world: &Rc<World>, from: usize) -> Result<Self, Lost> {
        world.aim(from);
        let id = world.store.borrow_mut().fresh() as u64;
        let tx = Self { world: world.clone(), from, id };
        world.store.borrow_mut().open.insert(id, Transaction::default());
        let w = world.clone();
        tx.run(async move {
            let mut waited = 1;
            while !w.store.borrow_mut().try_lock(id) {
                sleep(waited).await;
                waited = (waited * 2).min(32);
            }
        })
        .await?;
        Ok(tx)
    }

    /// One statement. The server ends the transaction if the next one does not come.
    async fn run<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> Result<T, Lost> {
        let (world, id) = (self.world.clone(), self.id);
        let statement = async move {
            let statements = {
                let mut store = world.store.borrow_mut();
                let tx = store.open.get_mut(&id).ok_or(Lost)?;
                tx.busy = true;
                tx.statements += 1;
                tx.statements
            };
            let value = work.await;
            world.store.borrow_mut().open.get_mut(&id).ok_or(Lost)?.busy = false;
            if !world.breaks("no end of idle transactions") {
                let world = world.clone();
                spawn(WORLD, async move {
                    sleep(IDLE_IN_TRANSACTION_MS).await;
                    let mut store = world.store.borrow_mut();
                    let idle = |tx: &Transaction| !tx.busy && tx.statements == statements;
                    if store.open.get(&id).is_some_and(idle) {
                        store.release(id);
                    }
                });
            }
            Ok(value)
        };
        self.world.trip(self.from, statement).await?
    }

    async fn commit(self) -> Result<(), Lost> {
        let (world, id) = (self.world.clone(), self.id);
        self.world
            .trip(self.from, async move {
                let tx = world.store.borrow_mut().open.remove(&id).ok_or(Lost)?;
                let any = !tx.changes.is_empty();
                tx.changes.into_iter().for_each(|change| world.apply(change));
                world.store.borrow_mut().release(id);
                if any {
                    world.changed();
                }
                Ok(())
            })
            .await?
    }
}

impl World {
    fn is_busy(&self, tx: u64) -> bool {
        self.store.borrow().open.get(&tx).is_some_and(|tx| tx.busy)
    }

    fn stage(&self, tx: u64, change: Change) {
        if let Some(tx) = self.store.borrow_mut().open.get_mut(&tx) {
            tx.changes.push(change);
        }
    }

    /// The version is another one, and everybody is told.
    fn changed(self: &Rc<Self>) {
        self.store.borrow_mut().version += 1;
        for life in self.running() {
            // A notification may be late, or lost with its connection.
            let deaf = one_in(if self.faults.borrow().flaky { 2 } else { 8 });
            if !deaf && !self.faults.borrow().cut(life.name) {
                let delay = self.latency();
                spawn(WORLD, async move {
                    sleep(delay).await;
                    life.beat_now.ring();
                });
            }
        }
    }

    fn apply(&self, change: Change) {
        let mut store = self.store.borrow_mut();
        match change {
            Change::Enrol(incarnation, name, release) => {
                let state = Some(MemberState::Joining);
                let lease_until = store.clock() + LEASE_MS;
                let node = Node { name, release, state, lease_until, locked: None };
                store.nodes.insert(incarnation, node);
                store.lanes.insert(incarnation, Lane::default());
            }
            Change::State(incarnation, state) => {
                store.nodes.get_mut(&incarnation).expect("it joined").state = Some(state);
            }
            Change::Owner(slot, row) => {
                self.note(|| format!("store: slot {slot} of {:?}, epoch {}", row.owner, row.epoch));
                if self.hot_slot().is_none() || one_in(4) {
                    self.heat(slot);
                }
                store.slots[usize::from(slot)] = row;
            }
            Change::Dead(incarnation, by) => {
                self.note(|| format!("store: {incarnation} is dead, says {by:?}"));
                if let Some(by) = by.filter(|by| !store.is_living(*by)) {
                    self.wrong(format!("{by} was dead and declared {incarnation} dead"));
                }
                let running = |life: &Rc<Life>| life.me == incarnation;
                if self.faults.borrow().single
                    && by.is_some()
                    && self.lost.get() != Some(incarnation)
                    && self.lives.borrow().values().any(running)
                {
                    self.wrong(format!("{incarnation} was well, and was declared dead"));
                }
                store.nodes.get_mut(&incarnation).expect("it joined").state = None;
                store.lanes.get_mut(&incarnation).expect("it joined").fenced = true;
                store.suspicions.retain(|(a, b), _| *a != incarnation && *b != incarnation);
            }
        }
    }
}
