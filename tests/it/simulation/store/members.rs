//! The functions of `persistence::members`, statement by statement.

use std::rc::Rc;

use proxie::persistence::members::{Beat, Evidence, Member, MemberState};

use super::{Change, LEASE_MS, Node, Slot, Store, Tx};
use crate::simulation::exec::{now, one_in, sleep};
use crate::simulation::world::{Lost, World};

impl World {
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
                    kinds: Vec::new(),
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
                let fit =
                    node.state == Some(MemberState::Active) && node.lease_until > store.clock();
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
            let fit = world.store.borrow().nodes[&to].state == Some(MemberState::Active);
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
        state: MemberState,
    ) -> Result<(), Lost> {
        let before =
            if state == MemberState::Active { MemberState::Joining } else { MemberState::Active };
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
                let may = state == Some(MemberState::Active)
                    || (joins && state == Some(MemberState::Joining));
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
}
