//! What `persistence::members`, `commit_batch` and Postgres' locks do, without Postgres: transactions of several
//! statements, each a round trip that can be late or lost, and the rows that they lock meanwhile.

use std::collections::BTreeMap;
use std::rc::Rc;

use proxie::persistence::members::{Beat, Evidence, Member, State};

use super::exec::{self, WORLD, between, now, one_in, sleep, spawn};
use super::world::{Lost, World};

pub const SLOTS: u16 = 20;
pub const LEASE_MS: i64 = 4_000;
/// The server ends a transaction whose client says nothing for so long.
const IDLE_IN_TRANSACTION_MS: i64 = 2_000;

pub struct Node {
    pub name: usize,
    pub release: u32,
    /// `None`: dead.
    pub state: Option<State>,
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
    State(i64, State),
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
        let active = |by: &i64| self.nodes[by].state == Some(State::Active);
        let recent = |at: i64| at > self.clock() - 3_000;
        let of = self.suspicions.range((suspect, 0)..(suspect + 1, 0));
        of.filter(|((_, by), at)| active(by) && recent(**at)).count() as u32
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
            loop {
                {
                    let mut store = w.store.borrow_mut();
                    if !store.open.contains_key(&id) {
                        return;
                    }
                    if store.lock.is_none() {
                        store.lock = Some(id);
                        return;
                    }
                }
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
                let state = Some(State::Joining);
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
                store.nodes.get_mut(&incarnation).expect("it joined").state = None;
                store.lanes.get_mut(&incarnation).expect("it joined").fenced = true;
                store.suspicions.retain(|(a, b), _| *a != incarnation && *b != incarnation);
            }
        }
    }

    pub async fn join(self: &Rc<Self>, name: usize, release: u32) -> Result<Option<i64>, Lost> {
        let world = self.clone();
        let twins = self.trip(name, async move {
            let store = world.store.borrow();
            let twins = store.nodes.iter().filter(|(_, n)| n.name == name && n.state.is_some());
            twins.map(|(twin, node)| (*twin, node.lease_until > store.clock())).collect::<Vec<_>>()
        });
        for (twin, leased) in twins.await? {
            // The last process of this name is gone; whether that can be seen depends on the host.
            let evidence = match one_in(3) {
                true if leased => return Ok(None),
                true => Evidence::Lease,
                false => Evidence::Operator,
            };
            self.evict(name, None, twin, evidence).await?;
        }
        let tx = Tx::begin(self, name).await?;
        let (world, id) = (self.clone(), tx.id);
        let enrolled = tx.run(async move {
            let incarnation = world.store.borrow_mut().fresh();
            world.stage(id, Change::Enrol(incarnation, name, release));
            incarnation
        });
        let incarnation = enrolled.await?;
        tx.commit().await?;
        Ok(Some(incarnation))
    }

    pub async fn beat(
        self: &Rc<Self>,
        name: usize,
        incarnation: i64,
    ) -> Result<Option<Beat>, Lost> {
        let world = self.clone();
        self.trip(name, async move {
            while world.store.borrow().nodes[&incarnation].locked.is_some() {
                sleep(10).await;
            }
            let mut store = world.store.borrow_mut();
            if !store.is_living(incarnation) {
                return None;
            }
            let clock = store.clock();
            store.nodes.get_mut(&incarnation).expect("it lives").lease_until = clock + LEASE_MS;
            let member = |(incarnation, node): (&i64, &Node)| {
                Some(Member {
                    incarnation: *incarnation,
                    name: String::new(),
                    peer_address: String::new(),
                    version: if node.release == 0 { "1.0.9".into() } else { "1.0.10".into() },
                    weight: 1,
                    state: node.state?,
                    lease_left_ms: node.lease_until - clock,
                    suspected_by: store.suspected_by(*incarnation),
                })
            };
            let members = store.nodes.iter().filter_map(member).collect();
            Some(Beat { version: store.version, members })
        })
        .await
    }

    pub async fn slots(self: &Rc<Self>, name: usize) -> Result<(i64, Vec<Slot>), Lost> {
        let world = self.clone();
        self.trip(name, async move {
            let store = world.store.borrow();
            let living = |slot: &Slot| Slot {
                owner: slot.owner.filter(|owner| store.is_living(*owner)),
                ..*slot
            };
            (store.version, store.slots.iter().map(living).collect())
        })
        .await
    }

    pub async fn claim(
        self: &Rc<Self>,
        name: usize,
        me: i64,
        wanted: Vec<(u16, i64)>,
    ) -> Result<Vec<(u16, i64)>, Lost> {
        let tx = Tx::begin(self, name).await?;
        let (world, id) = (self.clone(), tx.id);
        let claimed = tx.run(async move {
            let mut claimed = Vec::new();
            for (slot, epoch) in wanted {
                let store = world.store.borrow();
                let row = store.slots[usize::from(slot)];
                let node = &store.nodes[&me];
                let fit = node.state == Some(State::Active) && node.lease_until > store.clock();
                if row.epoch == epoch && !row.owner.is_some_and(|o| store.is_living(o)) && fit {
                    drop(store);
                    let row = Slot { owner: Some(me), epoch: epoch + 1, claimed: true };
                    world.stage(id, Change::Owner(slot, row));
                    claimed.push((slot, epoch + 1));
                }
            }
            claimed
        });
        let claimed = claimed.await?;
        tx.commit().await?;
        Ok(claimed)
    }

    pub async fn hand_over(
        self: &Rc<Self>,
        name: usize,
        me: i64,
        to: i64,
        leaving: Vec<(u16, i64)>,
    ) -> Result<Vec<(u16, i64)>, Lost> {
        let tx = Tx::begin(self, name).await?;
        let (world, id) = (self.clone(), tx.id);
        if !self.breaks("hand-over without the lane's lock") {
            tx.run(async move {
                while world.store.borrow().lanes[&me].lock.is_some() {
                    sleep(5).await;
                }
                let mut store = world.store.borrow_mut();
                if store.open.contains_key(&id) {
                    store.lanes.get_mut(&me).expect("it joined").lock = Some(id);
                }
            })
            .await?;
        }
        let world = self.clone();
        let moved = tx.run(async move {
            let mut moved = Vec::new();
            let fit = world.store.borrow().nodes[&to].state == Some(State::Active);
            for (slot, epoch) in leaving {
                let row = world.store.borrow().slots[usize::from(slot)];
                if row.epoch == epoch && row.owner == Some(me) && fit {
                    let row = Slot { owner: Some(to), epoch: epoch + 1, claimed: false };
                    world.stage(id, Change::Owner(slot, row));
                    moved.push((slot, epoch + 1));
                }
            }
            moved
        });
        let moved = moved.await?;
        tx.commit().await?;
        Ok(moved)
    }

    pub async fn still_owned(
        self: &Rc<Self>,
        name: usize,
        me: i64,
        slots: Vec<(u16, i64)>,
    ) -> Result<Vec<u16>, Lost> {
        let tx = Tx::begin(self, name).await?;
        let world = self.clone();
        let mine = tx.run(async move {
            let store = world.store.borrow();
            let row = |slot: &u16| &store.slots[usize::from(*slot)];
            let mine = slots
                .iter()
                .filter(|(slot, epoch)| row(slot).owner == Some(me) && row(slot).epoch == *epoch);
            mine.map(|(slot, _)| *slot).collect()
        });
        let mine = mine.await?;
        tx.commit().await?;
        Ok(mine)
    }

    pub async fn set_state(
        self: &Rc<Self>,
        name: usize,
        incarnation: i64,
        state: State,
    ) -> Result<(), Lost> {
        let before = if state == State::Active { State::Joining } else { State::Active };
        let tx = Tx::begin(self, name).await?;
        let (world, id) = (self.clone(), tx.id);
        tx.run(async move {
            let is = world.store.borrow().nodes[&incarnation].state;
            if is == Some(before) {
                world.stage(id, Change::State(incarnation, state));
            }
        })
        .await?;
        tx.commit().await
    }

    pub async fn suspect(self: &Rc<Self>, name: usize, me: i64, suspect: i64) -> Result<(), Lost> {
        let world = self.clone();
        self.trip(name, async move {
            let mut store = world.store.borrow_mut();
            if store.is_living(suspect) {
                let clock = store.clock();
                store.suspicions.insert((suspect, me), clock);
            }
        })
        .await
    }

    pub async fn evict(
        self: &Rc<Self>,
        name: usize,
        by: Option<i64>,
        target: i64,
        evidence: Evidence,
    ) -> Result<bool, Lost> {
        for _ in 0..4 {
            match self.try_evict(name, by, target, evidence).await? {
                Some(done) => return Ok(done),
                None => {
                    let world = self.clone();
                    self.trip(name, async move {
                        let mut store = world.store.borrow_mut();
                        if let Some(holder) = store.lanes[&target].lock {
                            store.release(holder);
                        }
                    })
                    .await?;
                    sleep(20).await;
                }
            }
        }
        Ok(false)
    }

    /// `None`: the lane is held by somebody else.
    async fn try_evict(
        self: &Rc<Self>,
        name: usize,
        by: Option<i64>,
        target: i64,
        evidence: Evidence,
    ) -> Result<Option<bool>, Lost> {
        let tx = Tx::begin(self, name).await?;
        let (world, id) = (self.clone(), tx.id);
        let judged = tx.run(async move {
            let mut store = world.store.borrow_mut();
            if !store.open.contains_key(&id) {
                return false;
            }
            let clock = store.clock();
            let leased = |store: &Store, node| store.nodes[&node].lease_until > clock;
            let fit = by.is_none_or(|by| {
                let joins = evidence == Evidence::Lease;
                let state = store.nodes[&by].state;
                let may = state == Some(State::Active) || (joins && state == Some(State::Joining));
                may && leased(&store, by)
            });
            let holds = store.is_living(target)
                && match evidence {
                    Evidence::Lease => !leased(&store, target),
                    Evidence::Suspected { by } => store.suspected_by(target) >= by,
                    Evidence::Refused | Evidence::Operator => true,
                };
            for node in by.into_iter().chain([target]) {
                store.nodes.get_mut(&node).expect("it joined").locked = Some(id);
            }
            (fit || world.breaks("eviction by the unfit")) && holds
        });
        if !judged.await? {
            return Ok(Some(false));
        }
        let world = self.clone();
        let locked = tx.run(async move {
            let patience = now() + 500;
            while world.store.borrow().lanes[&target].lock.is_some() {
                if now() >= patience {
                    return false;
                }
                sleep(20).await;
            }
            let mut store = world.store.borrow_mut();
            if store.open.contains_key(&id) {
                store.lanes.get_mut(&target).expect("it joined").lock = Some(id);
            }
            drop(store);
            world.stage(id, Change::Dead(target, by));
            true
        });
        if !locked.await? {
            return Ok(None);
        }
        tx.commit().await?;
        Ok(Some(true))
    }

    /// An orderly end.
    pub async fn leave(self: &Rc<Self>, name: usize, incarnation: i64) -> Result<(), Lost> {
        let world = self.clone();
        self.trip(name, async move {
            while world.store.borrow().lanes[&incarnation].lock.is_some()
                || world.store.borrow().nodes[&incarnation].locked.is_some()
            {
                sleep(5).await;
            }
            world.apply(Change::Dead(incarnation, None));
            for slot in &mut world.store.borrow_mut().slots {
                slot.owner = slot.owner.filter(|owner| *owner != incarnation);
            }
            world.changed();
        })
        .await
    }

    /// `commit_batch`. `None`: fenced.
    pub async fn commit(
        self: &Rc<Self>,
        name: usize,
        incarnation: i64,
        batch: i64,
        rows: Vec<Row>,
    ) -> Result<Option<Vec<Written>>, Lost> {
        let world = self.clone();
        let committing = async move {
            while world.store.borrow().lanes[&incarnation].lock.is_some() {
                sleep(2).await;
            }
            let (holder, results) = {
                let mut store = world.store.borrow_mut();
                let lane = &store.lanes[&incarnation];
                if lane.fenced || lane.batch != batch - 1 {
                    return Ok(None);
                }
                let holder = store.fresh() as u64;
                store.lanes.get_mut(&incarnation).expect("it joined").lock = Some(holder);
                (holder, check(&store, incarnation, &rows))
            };
            sleep(world.writing_ms()).await;
            if world.store.borrow().lanes[&incarnation].lock != Some(holder) {
                return Err(Lost);
            }
            for (row, _) in rows.iter().zip(&results).filter(|(_, r)| **r == Written::Committed) {
                world.append(incarnation, *row);
            }
            let mut store = world.store.borrow_mut();
            let lane = store.lanes.get_mut(&incarnation).expect("it joined");
            (lane.batch, lane.lock, lane.result) = (batch, None, Some(results.clone()));
            Ok(Some(results))
        };
        self.trip(name, committing).await?
    }

    /// Settles a batch whose answer was lost. `Some(None)`: it was not written and never will be.
    pub async fn settle(
        self: &Rc<Self>,
        name: usize,
        incarnation: i64,
        batch: i64,
        items: usize,
    ) -> Result<Option<Option<Vec<Written>>>, Lost> {
        let world = self.clone();
        self.trip(name, async move {
            while world.store.borrow().lanes[&incarnation].lock.is_some() {
                sleep(2).await;
            }
            let mut store = world.store.borrow_mut();
            let lane = store.lanes.get_mut(&incarnation).expect("it joined");
            if lane.fenced {
                return None;
            }
            if lane.batch == batch - 1 {
                lane.batch = batch;
                lane.result = None;
                return Some(None);
            }
            let mut result = lane.result.clone();
            if world.breaks("a burned batch is taken for a written one") {
                result.get_or_insert(vec![Written::Committed; items]);
            }
            (lane.batch == batch).then_some(result)
        })
        .await
    }

    /// What an activation starts from: its journal.
    pub async fn load(self: &Rc<Self>, name: usize, slot: u16) -> Result<(usize, u64), Lost> {
        let world = self.clone();
        self.trip(name, async move {
            let head = {
                let journal = &world.store.borrow().journal[usize::from(slot)];
                (journal.len(), journal.last().copied().unwrap_or(0))
            };
            let (slow, healed) = (world.faults.borrow().slow_loads, world.faults.borrow().healed);
            if one_in(if slow { 2 } else { 20 }) && !healed {
                sleep(between(50, if slow { 8_000 } else { 2_000 })).await;
            }
            head
        })
        .await
    }

    /// What the journal must never hold, whatever let it come to that.
    fn append(&self, incarnation: i64, row: Row) {
        let mut store = self.store.borrow_mut();
        let slot = store.slots[usize::from(row.slot)];
        if !store.is_living(incarnation) {
            self.wrong(format!("{incarnation} was dead and has written {}", row.id));
        }
        if (slot.owner, slot.epoch) != (Some(incarnation), row.epoch) {
            self.wrong(format!("{incarnation} wrote to slot {}, which it has not", row.slot));
        }
        let journal = &mut store.journal[usize::from(row.slot)];
        if journal.len() != row.head {
            self.wrong(format!("event {} of slot {} was written twice", row.head, row.slot));
        }
        if journal.contains(&row.id) {
            self.wrong(format!("command {} counted twice", row.id));
        }
        journal.push(row.id);
    }
}

fn check(store: &Store, incarnation: i64, rows: &[Row]) -> Vec<Written> {
    let mut results: Vec<Written> = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        let slot = store.slots[usize::from(row.slot)];
        let journal = &store.journal[usize::from(row.slot)];
        let before = || rows[..at].iter().zip(&results).filter(|(r, _)| r.slot == row.slot);
        let result = if before().any(|(_, result)| *result != Written::Committed) {
            Written::After
        } else if (slot.owner, slot.epoch) != (Some(incarnation), row.epoch) {
            Written::Moved
        } else if row.head != journal.len() + before().count() {
            Written::Stale
        } else if journal.contains(&row.id) || before().any(|(r, _)| r.id == row.id) {
            Written::Duplicate
        } else {
            Written::Committed
        };
        results.push(result);
    }
    results
}

/// How long the store takes for a batch, while it holds its lane.
impl World {
    fn writing_ms(&self) -> i64 {
        if self.faults.borrow().healed || !one_in(60) {
            return between(1, 4);
        }
        exec::between(50, 6_000)
    }
}
