//! Activations and their lane, as `actors::activation`, `actors::registry` and `persistence::writer` have them. The entity of
//! a slot is a list of ids: a write adds one, a read says which is the last.

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use proxie::cluster::slots::SlotLocation;

use super::exec::{Queue, between, now, sleep, spawn, timeout};
use super::node::Life;
use super::store::{Row, Written};
use super::world::World;

#[derive(Clone, Copy)]
pub struct Ask {
    pub slot: u16,
    /// Of a write.
    pub id: Option<u64>,
    /// What was known when it began.
    pub known: usize,
}

enum Message {
    Ask(Ask),
    Finished(u64, Ending),
    Retire,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Written(Written),
    Refused,
    Unavailable,
}

pub struct Activation {
    slot: u16,
    epoch: i64,
    mailbox: Queue<Message>,
}

/// What waits in a lane.
pub struct Item {
    row: Row,
    ticket: u64,
    failed: Rc<Cell<bool>>,
    of: Rc<Activation>,
}

struct Pending {
    ticket: u64,
    ask: Ask,
    head: usize,
    last: u64,
    commits: bool,
}

/// What an activation knows.
struct State {
    head: usize,
    last: u64,
    next_ticket: u64,
    pending: VecDeque<Pending>,
    redo: Option<Vec<Ask>>,
    failed: Rc<Cell<bool>>,
}

/// The activation ends.
struct Stop;

impl Life {
    /// A command arrives here, for an entity that may be elsewhere.
    pub async fn route(self: Rc<Self>, world: Rc<World>, ask: Ask) {
        for _ in 0..3 {
            match self.slots.locate(ask.slot) {
                SlotLocation::Here { .. } if self.lane_is_up.get() => {
                    return self.take(&world, ask);
                }
                SlotLocation::There { incarnation, .. } => {
                    if let Some(other) = world.reaches(&self, incarnation) {
                        let (delay, world) = (world.latency(), world.clone());
                        return spawn(other.process, async move {
                            sleep(delay).await;
                            if matches!(other.slots.locate(ask.slot), SlotLocation::Here { .. })
                                && other.lane_is_up.get()
                            {
                                other.take(&world, ask);
                            }
                        });
                    }
                }
                _ => {}
            }
            sleep(25).await;
        }
    }

    /// `take_slip`: the activation that is there, or a new one.
    fn take(self: &Rc<Self>, world: &Rc<World>, ask: Ask) {
        let SlotLocation::Here { epoch } = self.slots.locate(ask.slot) else { return };
        let activation = self.activations.borrow().get(&ask.slot).cloned();
        let activation = activation.unwrap_or_else(|| {
            let mailbox = Queue::default();
            let activation = Rc::new(Activation { slot: ask.slot, epoch, mailbox });
            self.activations.borrow_mut().insert(ask.slot, activation.clone());
            spawn(self.process, activation.clone().live(self.clone(), world.clone()));
            activation
        });
        activation.mailbox.push(Message::Ask(ask));
    }

    /// Tells the activations of these slots to end. Returns how many there are.
    pub fn retire(&self, slots: &BTreeSet<u16>) -> usize {
        let activations = self.activations.borrow();
        let theirs = slots.iter().filter_map(|slot| activations.get(slot));
        theirs.map(|activation| activation.mailbox.push(Message::Retire)).count()
    }

    fn ended(&self, activation: &Rc<Activation>) {
        let mut activations = self.activations.borrow_mut();
        if activations.get(&activation.slot).is_some_and(|live| Rc::ptr_eq(live, activation)) {
            activations.remove(&activation.slot);
        }
    }

    /// The lane: one batch in flight, and what has come meanwhile in the next.
    pub async fn write(self: Rc<Self>, world: Rc<World>) {
        let mut batch = 1;
        loop {
            let first = self.lane.pop().await;
            self.lane_is_idle.set(false);
            let mut items = vec![first];
            while let Some(item) = (items.len() < 8).then(|| self.lane.try_pop()).flatten() {
                items.push(item);
            }
            let refused: Vec<Item> = items.extract_if(.., |item| item.failed.get()).collect();
            refused.into_iter().for_each(|item| item.finish(Ending::Refused));
            if !items.is_empty() && !self.write_batch(&world, items, &mut batch).await {
                self.lane_is_up.set(false);
                self.lane_is_idle.set(true);
                self.evicted(&world);
                return;
            }
            while !self.lane_is_up.get() {
                if let Some(item) = self.lane.try_pop() {
                    item.finish(Ending::Unavailable);
                    continue;
                }
                match timeout(3_000, world.settle(self.name, self.me, batch, 0)).await {
                    Some(Ok(Some(_))) => {
                        batch += 1;
                        self.lane_is_up.set(true);
                    }
                    Some(Ok(None)) => {
                        self.lane_is_idle.set(true);
                        self.evicted(&world);
                        return;
                    }
                    _ => sleep(between(20, 300)).await,
                }
            }
            self.lane_is_idle.set(true);
        }
    }

    /// False: the lane is fenced.
    async fn write_batch(&self, world: &Rc<World>, items: Vec<Item>, batch: &mut i64) -> bool {
        let rows: Vec<Row> = items.iter().map(|item| item.row).collect();
        let patience = now() + 1_000;
        let results = 'written: loop {
            let calling = world.commit(self.name, self.me, *batch, rows.clone());
            match timeout(3_000, calling).await {
                Some(Ok(Some(results))) => break 'written Some(results),
                Some(Ok(None)) => {
                    items.into_iter().for_each(|item| item.finish(Ending::Unavailable));
                    return false;
                }
                _ => {}
            }
            loop {
                match timeout(3_000, world.settle(self.name, self.me, *batch, rows.len())).await {
                    Some(Ok(Some(Some(results)))) => break 'written Some(results),
                    Some(Ok(Some(None))) => break,
                    Some(Ok(None)) => {
                        items.into_iter().for_each(|item| item.finish(Ending::Unavailable));
                        return false;
                    }
                    _ if now() < patience => sleep(between(10, 100)).await,
                    _ => break 'written None,
                }
            }
            *batch += 1;
            if now() > patience {
                break None;
            }
        };
        match results {
            Some(results) => {
                *batch += 1;
                for (item, result) in items.iter().zip(&results) {
                    item.failed.set(item.failed.get() || *result != Written::Committed);
                }
                for (item, result) in items.into_iter().zip(results) {
                    item.finish(match result {
                        Written::After => Ending::Refused,
                        result => Ending::Written(result),
                    });
                }
            }
            None => {
                self.lane_is_up.set(false);
                items.into_iter().for_each(|item| item.finish(Ending::Unavailable));
            }
        }
        true
    }
}

impl Item {
    fn finish(self, ending: Ending) {
        self.of.mailbox.push(Message::Finished(self.ticket, ending));
    }
}

impl Activation {
    async fn live(self: Rc<Self>, life: Rc<Life>, world: Rc<World>) {
        let mut state = State {
            head: 0,
            last: 0,
            next_ticket: 0,
            pending: VecDeque::new(),
            redo: None,
            failed: Rc::default(),
        };
        let (mut loaded, mut retiring) = (false, false);
        loop {
            let message = self.mailbox.pop().await;
            if !loaded && self.load(&life, &world, &mut state).await.is_err() {
                break;
            }
            loaded = true;
            let step = match message {
                Message::Ask(ask) => self.ask(&life, &world, &mut state, ask),
                Message::Finished(ticket, ending) => {
                    match self.finished(&life, &world, &mut state, ticket, ending) {
                        Ok(true) => self.roll_back(&life, &world, &mut state).await,
                        Ok(false) => Ok(()),
                        Err(stop) => Err(stop),
                    }
                }
                Message::Retire => {
                    retiring = true;
                    Ok(())
                }
            };
            if step.is_err() || (retiring && state.pending.is_empty() && state.redo.is_none()) {
                break;
            }
        }
        state.failed.set(true);
        life.ended(&self);
    }

    async fn load(&self, life: &Life, world: &Rc<World>, state: &mut State) -> Result<(), Stop> {
        let loading = timeout(10_000, world.load(life.name, self.slot)).await;
        (state.head, state.last) = loading.and_then(Result::ok).ok_or(Stop)?;
        Ok(())
    }

    fn is_here(&self, life: &Life, world: &World) -> bool {
        if world.breaks("an activation of another epoch is the one") {
            return matches!(life.slots.locate(self.slot), SlotLocation::Here { .. });
        }
        life.slots.is_here(self.slot, self.epoch)
    }

    fn ask(
        self: &Rc<Self>,
        life: &Life,
        world: &World,
        state: &mut State,
        ask: Ask,
    ) -> Result<(), Stop> {
        if let Some(redo) = &mut state.redo {
            redo.push(ask);
            return Ok(());
        }
        if !self.is_here(life, world) {
            return Ok(());
        }
        if !life.lane_is_up.get() {
            return Err(Stop);
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        if let Some(id) = ask.id {
            let row = Row { slot: self.slot, epoch: self.epoch, head: state.head, id };
            let failed = state.failed.clone();
            life.lane.push(Item { row, ticket, failed, of: self.clone() });
            state.head += 1;
            state.last = id;
        }
        let (head, last) = (state.head, state.last);
        let commits = ask.id.is_some();
        state.pending.push_back(Pending { ticket, ask, head, last, commits });
        if !commits {
            self.release(life, world, state);
        }
        Ok(())
    }

    /// Lets go of the answers at the front that need no commit.
    fn release(&self, life: &Life, world: &World, state: &mut State) {
        while let Some(pending) = state.pending.pop_front_if(|p| !p.commits) {
            let fresh = life.lease.is_fresh() || world.breaks("no lease for reads");
            if self.is_here(life, world) && fresh {
                world.answer(self.slot, pending.head, pending.last, pending.ask.known, life.me);
                world.answered.update(|(reads, writes)| (reads + 1, writes));
            }
        }
    }

    /// True: the state is to be read again.
    fn finished(
        &self,
        life: &Life,
        world: &World,
        state: &mut State,
        ticket: u64,
        ending: Ending,
    ) -> Result<bool, Stop> {
        let Some(pending) = state.pending.pop_front_if(|p| p.ticket == ticket) else {
            return Ok(false);
        };
        match ending {
            Ending::Written(Written::Committed) => {
                let known = pending.ask.known;
                world.answer(self.slot, pending.head, pending.last, known, life.me);
                world.answered.update(|(reads, writes)| (reads, writes + 1));
                self.release(life, world, state);
                return Ok(false);
            }
            Ending::Written(Written::Moved) | Ending::Unavailable => return Err(Stop),
            // A retry: its caller hears the first outcome.
            Ending::Written(Written::Duplicate) => {}
            _ => state.redo.get_or_insert_default().push(pending.ask),
        }
        Ok(true)
    }

    async fn roll_back(
        self: &Rc<Self>,
        life: &Life,
        world: &Rc<World>,
        state: &mut State,
    ) -> Result<(), Stop> {
        let redo = state.redo.get_or_insert_default();
        while let Some(pending) = state.pending.pop_front_if(|p| !p.commits) {
            redo.push(pending.ask);
        }
        if !state.pending.is_empty() {
            return Ok(());
        }
        state.failed.set(true);
        state.failed = Rc::default();
        self.load(life, world, state).await?;
        for ask in state.redo.take().unwrap_or_default() {
            self.ask(life, world, state, ask)?;
        }
        Ok(())
    }
}
