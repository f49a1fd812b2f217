//! The three kinds of shared values. Each has a `merge` that is commutative, associative and idempotent, so replicas
//! that have seen the same operations are equal, whatever the order and the number of times they saw them.

use std::collections::BTreeMap;
use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::clock::{DeviceId, Stamp};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamped<T> {
    pub stamp: Stamp,
    pub value: T,
}

/// A last-writer-wins register (LWW). The latest losing write is kept, to explain the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register<T> {
    pub wins: Stamped<T>,
    pub beaten: Option<Stamped<T>>,
}

impl<T: Ord> Register<T> {
    pub fn new(wins: Stamped<T>) -> Self {
        Self { wins, beaten: None }
    }

    pub fn write(&mut self, written: Stamped<T>) {
        if written > self.wins {
            self.beaten = Some(std::mem::replace(&mut self.wins, written));
        } else if written < self.wins && self.beaten.as_ref().is_none_or(|best| written > *best) {
            self.beaten = Some(written);
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.write(other.wins);
        if let Some(beaten) = other.beaten {
            self.write(beaten);
        }
    }
}

/// A counter that only grows (G-Counter): each device's own share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    pub shares: BTreeMap<DeviceId, u64>,
}

impl Counter {
    pub fn value(&self) -> u64 {
        self.shares.values().fold(0, |sum, share| sum.saturating_add(*share))
    }

    /// Raises the device's share to at least this total.
    pub fn raise(&mut self, device: DeviceId, share: u64) {
        let known = self.shares.entry(device).or_default();
        *known = share.max(*known);
    }

    pub fn merge(&mut self, other: Self) {
        for (device, share) in other.shares {
            self.raise(device, share);
        }
    }
}

/// One addition of an item.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Added {
    pub tag: String,
    pub stamp: Stamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Removed {
    /// The position of the removal in the person's log.
    pub at: i64,
    pub stamp: Stamp,
}

/// An observed-remove set (OR-Set), in which an item stays if an addition and a removal are concurrent: every addition
/// has its own tag, and a removal names the tags that its device has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedSet {
    /// The additions of each item, sorted by tag. No list is empty.
    live: BTreeMap<String, Vec<Added>>,
    /// The number of additions of all items.
    additions: usize,
    /// Removed additions by item and tag, including additions that never arrived.
    removed: BTreeMap<String, BTreeMap<String, Removed>>,
}

impl ObservedSet {
    pub fn len(&self) -> usize {
        self.live.len()
    }

    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    pub fn additions(&self) -> usize {
        self.additions
    }

    pub fn tombstones(&self) -> usize {
        self.removed.values().map(BTreeMap::len).sum()
    }

    pub fn items(&self) -> impl Iterator<Item = (&str, &[Added])> {
        self.live.iter().map(|(item, added)| (item.as_str(), added.as_slice()))
    }

    pub fn items_from(&self, from: Bound<&str>) -> impl Iterator<Item = (&str, &[Added])> {
        let items = self.live.range::<str, _>((from, Bound::Unbounded));
        items.map(|(item, added)| (item.as_str(), added.as_slice()))
    }

    /// The additions of an item; empty: the item is not in the set.
    pub fn additions_of(&self, item: &str) -> &[Added] {
        self.live.get(item).map_or(&[], Vec::as_slice)
    }

    /// Whether the addition was removed, and the removal is still remembered because not every device knows of it.
    pub fn is_removed(&self, item: &str, tag: &str) -> bool {
        self.removed.get(item).is_some_and(|tags| tags.contains_key(tag))
    }

    /// The removals of this item's additions that are still remembered.
    pub fn removals(&self, item: &str) -> impl Iterator<Item = (&str, Removed)> {
        let removed = self.removed.get(item).into_iter().flatten();
        removed.map(|(tag, removed)| (tag.as_str(), *removed))
    }

    pub fn add(&mut self, item: &str, added: Added) {
        if self.is_removed(item, &added.tag) {
            return;
        }
        if !self.live.contains_key(item) {
            self.live.insert(item.into(), Vec::new());
        }
        let Some(live) = self.live.get_mut(item) else { return };
        match live.binary_search_by(|known| known.tag.cmp(&added.tag)) {
            Ok(at) => live[at].stamp = live[at].stamp.max(added.stamp),
            Err(at) => {
                // Most items have one addition.
                live.reserve_exact(1);
                live.insert(at, added);
                self.additions += 1;
            }
        }
    }

    pub fn remove(&mut self, item: &str, tag: &str, removed: Removed) {
        if let Some(live) = self.live.get_mut(item) {
            let before = live.len();
            live.retain(|known| known.tag != tag);
            self.additions -= before - live.len();
            if live.is_empty() {
                self.live.remove(item);
            }
        }
        if !self.removed.contains_key(item) {
            self.removed.insert(item.into(), BTreeMap::new());
        }
        let Some(tags) = self.removed.get_mut(item) else { return };
        let known = tags.entry(tag.into()).or_insert(removed);
        *known = removed.max(*known);
    }

    pub fn merge(&mut self, other: Self) {
        for (item, tags) in other.removed {
            for (tag, removed) in tags {
                self.remove(&item, &tag, removed);
            }
        }
        for (item, added) in other.live {
            for added in added {
                self.add(&item, added);
            }
        }
    }

    /// Forgets the removals up to this position: no device can still send an addition that they cover.
    pub fn forget_removed(&mut self, through: i64) {
        self.removed.retain(|_, tags| {
            tags.retain(|_, removed| removed.at > through);
            !tags.is_empty()
        });
    }
}

#[cfg(test)]
mod tests;
