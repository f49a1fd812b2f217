//! A replica: the merged result of operations. Devices have one too: `clients/typescript` implements the same and is
//! tested with the same vectors.

use std::collections::BTreeMap;
use std::ops::Bound::{Included, Unbounded};

use serde::{Deserialize, Serialize};

use super::clock::{DeviceId, Stamp};
use super::crdt::{Added, Counter, ObservedSet, Register, Removed, Stamped};
use super::operation::{Change, DeviceOperation, WatchPosition};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    pub watchlist: ObservedSet,
    pub positions: BTreeMap<String, Register<WatchPosition>>,
    pub counters: BTreeMap<String, Counter>,
    /// The number of devices' shares in all counters.
    shares: usize,
}

/// One part of a replica's content, as the operation that would create it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub by: Stamp,
    pub change: Change,
}

impl Entry {
    /// An upper bound of its size as JSON, in bytes.
    fn size(&self) -> usize {
        let names = match &self.change {
            Change::WatchlistAdd { content_id, tag } => content_id.len() + tag.len(),
            Change::PlaybackUpdate { content_id, .. }
            | Change::CounterUpdate { content_id, .. } => content_id.len(),
            Change::WatchlistRemove { .. } | Change::Nothing {} => 0,
        };
        // Escaped quotes and backslashes take two bytes.
        256 + 2 * names
    }

    fn mark(&self) -> Option<Mark> {
        let (section, content_id, part) = match &self.change {
            Change::WatchlistAdd { content_id, tag } => {
                (ReplicaSection::Watchlist, content_id, Some(tag.clone()))
            }
            Change::PlaybackUpdate { content_id, .. } => {
                (ReplicaSection::Positions, content_id, None)
            }
            Change::CounterUpdate { content_id, .. } => {
                (ReplicaSection::Counters, content_id, Some(self.by.device.to_string()))
            }
            Change::WatchlistRemove { .. } | Change::Nothing {} => return None,
        };
        Some(Mark { section, content_id: content_id.clone(), part })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaSection {
    Watchlist,
    Positions,
    Counters,
}

/// The end of a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub section: ReplicaSection,
    pub content_id: String,
    /// The last tag or device of the content in the page; `None`: all parts were in it.
    #[serde(default)]
    pub part: Option<String>,
}

/// The explanation of a value. Long lists are cut off, with their full length beside them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The additions; the item is in the set as long as there is one.
    pub additions: Vec<Added>,
    pub additions_total: usize,
    /// The removals, remembered until every device has seen them.
    pub removals: Vec<(String, Removed)>,
    pub removals_total: usize,
    /// The latest write, and the best that it won against.
    pub position: Option<Register<WatchPosition>>,
    pub counter: Option<Counted>,
}

/// The sum of what each device counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    pub value: u64,
    pub shares: Vec<(DeviceId, u64)>,
    pub shares_total: usize,
}

impl Replica {
    /// Applies an operation. `at`: its position in the person's log.
    pub fn apply(&mut self, device: DeviceId, operation: &DeviceOperation, at: i64) {
        let stamp = Stamp { time: operation.time, device };
        match &operation.change {
            Change::WatchlistAdd { content_id, tag } => {
                self.watchlist.add(content_id, Added { tag: tag.clone(), stamp });
            }
            Change::WatchlistRemove { content_id, tags } => {
                for tag in tags {
                    self.watchlist.remove(content_id, tag, Removed { at, stamp });
                }
            }
            Change::PlaybackUpdate { content_id, position } => {
                let written = Stamped { stamp, value: position.clone() };
                match self.positions.get_mut(content_id) {
                    Some(register) => register.write(written),
                    None => {
                        self.positions.insert(content_id.clone(), Register::new(written));
                    }
                }
            }
            Change::CounterUpdate { content_id, count } => {
                let counter = self.counters.entry(content_id.clone()).or_default();
                let before = counter.shares.len();
                counter.raise(device, *count);
                self.shares += counter.shares.len() - before;
            }
            Change::Nothing {} => {}
        }
    }

    /// Whether there is no room for the change.
    pub fn is_full_for(&self, device: DeviceId, change: &Change, max_entries: usize) -> bool {
        match change {
            Change::WatchlistAdd { .. } => self.watchlist.additions() >= max_entries,
            Change::PlaybackUpdate { content_id, .. } => {
                self.positions.len() >= max_entries && !self.positions.contains_key(content_id)
            }
            Change::CounterUpdate { content_id, .. } => {
                let counter = self.counters.get(content_id);
                let counts = counter.is_some_and(|counter| counter.shares.contains_key(&device));
                self.shares >= max_entries && !counts
            }
            Change::WatchlistRemove { .. } | Change::Nothing {} => false,
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.watchlist.merge(other.watchlist);
        for (content_id, theirs) in other.positions {
            match self.positions.get_mut(&content_id) {
                Some(ours) => ours.merge(theirs),
                None => {
                    self.positions.insert(content_id, theirs);
                }
            }
        }
        for (content_id, theirs) in other.counters {
            self.counters.entry(content_id).or_default().merge(theirs);
        }
        self.shares = self.counters.values().map(|counter| counter.shares.len()).sum();
    }

    /// Entries in order, after the mark: at least one, if there is any, and no more than both limits allow.
    pub fn page(
        &self,
        after: Option<&Mark>,
        limit: usize,
        bytes: usize,
    ) -> (Vec<Entry>, Option<Mark>) {
        // The mark's content may have more parts after it.
        let from = |section: ReplicaSection| match after {
            Some(mark) if mark.section == section => Included(mark.content_id.as_str()),
            _ => Unbounded,
        };
        let wanted = |section: ReplicaSection| after.is_none_or(|mark| mark.section <= section);
        let is_new = |section: ReplicaSection, content_id: &str, part: Option<&str>| {
            let mark = after.filter(|m| m.section == section && m.content_id == content_id);
            mark.is_none_or(|mark| mark.part.is_some() && part > mark.part.as_deref())
        };
        let watchlist = wanted(ReplicaSection::Watchlist)
            .then(|| self.watchlist.items_from(from(ReplicaSection::Watchlist)))
            .into_iter()
            .flatten()
            .flat_map(|(content_id, added)| added.iter().map(move |added| (content_id, added)))
            .filter(|(content_id, added)| {
                is_new(ReplicaSection::Watchlist, content_id, Some(&added.tag))
            })
            .map(|(content_id, added)| Entry {
                by: added.stamp,
                change: Change::WatchlistAdd {
                    content_id: content_id.into(),
                    tag: added.tag.clone(),
                },
            });
        let positions = wanted(ReplicaSection::Positions)
            .then(|| self.positions.range::<str, _>((from(ReplicaSection::Positions), Unbounded)))
            .into_iter()
            .flatten()
            .filter(|(content_id, _)| is_new(ReplicaSection::Positions, content_id, None))
            .map(|(content_id, register)| {
                let Stamped { stamp, value } = register.wins.clone();
                let change =
                    Change::PlaybackUpdate { content_id: content_id.clone(), position: value };
                Entry { by: stamp, change }
            });
        let counters = wanted(ReplicaSection::Counters)
            .then(|| self.counters.range::<str, _>((from(ReplicaSection::Counters), Unbounded)))
            .into_iter()
            .flatten()
            .flat_map(|(content_id, counter)| {
                counter.shares.iter().map(move |(device, count)| (content_id, *device, *count))
            })
            // Devices are ordered by their text.
            .filter(|(content_id, device, _)| {
                is_new(ReplicaSection::Counters, content_id, Some(&device.to_string()))
            })
            .map(|(content_id, device, count)| Entry {
                by: Stamp { time: super::clock::NTP64(0), device },
                change: Change::CounterUpdate { content_id: content_id.clone(), count },
            });
        let mut all = watchlist.chain(positions).chain(counters).peekable();
        let (mut entries, mut size) = (Vec::new(), 0);
        while let Some(entry) = all.next_if(|entry: &Entry| {
            entries.is_empty() || (entries.len() < limit && size + entry.size() <= bytes)
        }) {
            size += entry.size();
            entries.push(entry);
        }
        let mark = all.peek().and(entries.last()).and_then(Entry::mark);
        (entries, mark)
    }

    /// Explains a content's values, with at most `limit` items in each list.
    pub fn explain(&self, content_id: &str, limit: usize) -> Explanation {
        let additions = self.watchlist.additions_of(content_id);
        let removals = self.watchlist.removals(content_id);
        Explanation {
            additions: additions.iter().take(limit).cloned().collect(),
            additions_total: additions.len(),
            removals: removals
                .take(limit)
                .map(|(tag, removed)| (tag.to_owned(), removed))
                .collect(),
            removals_total: self.watchlist.removals(content_id).count(),
            position: self.positions.get(content_id).cloned(),
            counter: self.counters.get(content_id).map(|counter| Counted {
                value: counter.value(),
                shares: counter.shares.iter().take(limit).map(|(d, n)| (*d, *n)).collect(),
                shares_total: counter.shares.len(),
            }),
        }
    }
}
