//! `commit_batch` and `persistence::commit`: what a lane writes and an activation reads.

use std::rc::Rc;

use super::{Row, Store, Written};
use crate::simulation::exec::{between, one_in, sleep};
use crate::simulation::world::{Lost, World};

impl World {
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

    /// How long the store takes for a batch, while it holds its lane.
    fn writing_ms(&self) -> i64 {
        let faults = self.faults.borrow();
        if faults.healed || faults.single || !one_in(60) {
            return between(1, 4);
        }
        between(50, 6_000)
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
