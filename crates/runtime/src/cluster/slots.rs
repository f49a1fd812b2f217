//! The slot table: the owner of each slot as this node knows it, and whether this node may serve its own slots.
//!
//! The truth is in the store, and every commit checks it there. This table decides only where a command is sent, and
//! when this node may answer without a commit.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::cluster::lease::boottime_ms;
use crate::kernel::ids::SLOTS;

/// `opens_at_ms` of a slot that is being handed over.
const SEALED: i64 = i64::MAX;
const NOBODY: i64 = 0;

struct Slot {
    owner: AtomicI64,
    epoch: AtomicI64,
    /// When a slot taken from a dead node opens: once that node can no longer answer reads. On the lease's clock.
    opens_at_ms: AtomicI64,
}

/// Where the entities of a slot are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotLocation {
    Here {
        epoch: i64,
    },
    There {
        incarnation: i64,
        epoch: i64,
    },
    /// No node serves the slot now: it has no owner, is being handed over, or waits for a dead owner's last reads.
    Nowhere,
}

/// A row of the slot table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotOwnership {
    pub owner: Option<i64>,
    pub epoch: i64,
}

/// A handle to the slot table; cheap to clone.
#[derive(Clone)]
pub struct Slots {
    me: i64,
    slots: Arc<[Slot]>,
    changed: Arc<watch::Sender<u64>>,
    /// Slots of this node that were asked for a kind or command which only a newer release knows.
    wanted: Arc<Mutex<BTreeMap<u16, i64>>>,
    /// The clock, which is read only for a slot that waits.
    now_ms: fn() -> i64,
}

impl Slots {
    /// An empty table: no owner is known yet.
    pub fn unknown(me: i64) -> Self {
        Self::on_clock(me, SLOTS, boottime_ms)
    }

    /// The table of a node without a cluster: it owns every slot, all claimed together.
    pub fn all_mine(me: i64, epoch: i64) -> Self {
        Self::filled(me, SLOTS, boottime_ms, me, epoch)
    }

    /// An empty table with a chosen number of slots and a clock, for simulations.
    pub fn on_clock(me: i64, count: u16, now_ms: fn() -> i64) -> Self {
        Self::filled(me, count, now_ms, NOBODY, 0)
    }

    fn filled(me: i64, count: u16, now_ms: fn() -> i64, owner: i64, epoch: i64) -> Self {
        let slot = |_| Slot {
            owner: AtomicI64::new(owner),
            epoch: AtomicI64::new(epoch),
            opens_at_ms: AtomicI64::new(0),
        };
        let changed = Arc::new(watch::Sender::new(0));
        Self { me, slots: (0..count).map(slot).collect(), changed, wanted: Arc::default(), now_ms }
    }

    pub fn me(&self) -> i64 {
        self.me
    }

    pub fn locate(&self, slot: u16) -> SlotLocation {
        let slot = &self.slots[usize::from(slot)];
        let epoch = slot.epoch.load(Ordering::Acquire);
        let opens = slot.opens_at_ms.load(Ordering::Acquire);
        let owner = slot.owner.load(Ordering::Acquire);
        // A slot is sealed while it changes, and every change has its own epoch: owner and state read under one epoch
        // belong together.
        if owner == NOBODY || opens == SEALED || slot.epoch.load(Ordering::Acquire) != epoch {
            return SlotLocation::Nowhere;
        }
        match owner == self.me {
            true if opens != 0 && (self.now_ms)() < opens => SlotLocation::Nowhere,
            true => SlotLocation::Here { epoch },
            false => SlotLocation::There { incarnation: owner, epoch },
        }
    }

    /// Whether an activation that began under `epoch` is still the current one.
    pub fn is_here(&self, slot: u16, epoch: i64) -> bool {
        self.locate(slot) == SlotLocation::Here { epoch }
    }

    /// The slot's owner and epoch, whether or not the owner serves it.
    pub fn owned(&self, slot: u16) -> SlotOwnership {
        let slot = &self.slots[usize::from(slot)];
        let owner = slot.owner.load(Ordering::Acquire);
        SlotOwnership {
            owner: (owner != NOBODY).then_some(owner),
            epoch: slot.epoch.load(Ordering::Acquire),
        }
    }

    pub fn count_mine(&self) -> usize {
        self.slots.iter().filter(|slot| slot.owner.load(Ordering::Relaxed) == self.me).count()
    }

    /// Adopts a slot's row from the store, unless a newer one is known. A slot that this node has gained opens `wait_ms`
    /// from now.
    pub fn learn(&self, slot: u16, row: SlotOwnership, wait_ms: i64) {
        let entry = &self.slots[usize::from(slot)];
        if row.epoch < entry.epoch.load(Ordering::Acquire) {
            return;
        }
        let owner = row.owner.unwrap_or(NOBODY);
        let same = row.epoch == entry.epoch.load(Ordering::Acquire)
            && owner == entry.owner.load(Ordering::Acquire);
        if same {
            return;
        }
        // The slot is closed while it changes: no reader sees the new owner with the old epoch.
        entry.opens_at_ms.store(SEALED, Ordering::Release);
        entry.epoch.store(row.epoch, Ordering::Release);
        entry.owner.store(owner, Ordering::Release);
        let opens = if wait_ms > 0 { (self.now_ms)() + wait_ms } else { 0 };
        entry.opens_at_ms.store(opens, Ordering::Release);
    }

    /// Stops serving the slot, for its hand-over. False: the slot still waits for a dead owner's last reads, and has to
    /// wait here, because its next owner would serve it at once.
    pub fn seal(&self, slot: u16) -> bool {
        let opens = &self.slots[usize::from(slot)].opens_at_ms;
        let at = opens.load(Ordering::Acquire);
        let waits = at != SEALED && at > (self.now_ms)();
        if !waits {
            opens.store(SEALED, Ordering::Release);
        }
        !waits
    }

    /// Serves the slot again after a hand-over that failed.
    pub fn unseal(&self, slot: u16) {
        let entry = &self.slots[usize::from(slot)];
        let _ = entry.opens_at_ms.compare_exchange(SEALED, 0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Notes that another node asked the slot for a kind or command which this one does not know.
    pub fn want(&self, slot: u16, by: i64) {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).insert(slot, by);
    }

    /// The slots noted since the last call. A slot that is not handed over is noted again by the next ask.
    pub fn take_wanted(&self) -> BTreeMap<u16, i64> {
        std::mem::take(&mut self.wanted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Wakes the asks that wait for a slot to be served.
    pub fn announce(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_served_by_its_owner_unless_it_is_sealed_or_waits() {
        let slots = Slots::unknown(7);
        assert_eq!(slots.locate(0), SlotLocation::Nowhere);
        slots.learn(0, SlotOwnership { owner: Some(8), epoch: 1 }, 0);
        assert_eq!(slots.locate(0), SlotLocation::There { incarnation: 8, epoch: 1 });
        slots.learn(0, SlotOwnership { owner: Some(7), epoch: 2 }, 0);
        assert_eq!(slots.locate(0), SlotLocation::Here { epoch: 2 });
        assert!(slots.is_here(0, 2) && !slots.is_here(0, 1));
        // An older row changes nothing; the same row does not open a sealed slot.
        slots.learn(0, SlotOwnership { owner: Some(8), epoch: 1 }, 0);
        assert!(slots.seal(0) && slots.seal(0));
        slots.learn(0, SlotOwnership { owner: Some(7), epoch: 2 }, 0);
        assert_eq!(slots.locate(0), SlotLocation::Nowhere);
        slots.unseal(0);
        assert_eq!(slots.locate(0), SlotLocation::Here { epoch: 2 });
        // A slot of a dead owner opens only after the wait.
        slots.learn(1, SlotOwnership { owner: Some(7), epoch: 5 }, 60_000);
        assert_eq!(slots.locate(1), SlotLocation::Nowhere);
        slots.unseal(1);
        assert_eq!(slots.locate(1), SlotLocation::Nowhere, "waiting is not sealing");
        assert!(!slots.seal(1), "nobody else may serve it before, either");
        slots.unseal(1);
        assert_eq!(slots.locate(1), SlotLocation::Nowhere, "and it waits on");
        assert_eq!(slots.count_mine(), 2);
    }

    #[test]
    fn no_owner_is_seen_with_the_epoch_of_another() {
        let slots = Slots::unknown(7);
        let changing = slots.clone();
        // The slot is here under odd epochs, and elsewhere under even ones.
        let changes = std::thread::spawn(move || {
            for epoch in 1..2_000_000 {
                let owner = Some(if epoch % 2 == 1 { 7 } else { 8 });
                changing.learn(0, SlotOwnership { owner, epoch }, 0);
            }
        });
        while !changes.is_finished() {
            match slots.locate(0) {
                SlotLocation::Here { epoch } => assert_eq!(epoch % 2, 1),
                SlotLocation::There { epoch, .. } => assert_eq!(epoch % 2, 0),
                SlotLocation::Nowhere => {}
            }
        }
        changes.join().unwrap();
    }
}
