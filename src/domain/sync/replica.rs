//! What operations add up to. Also on devices: `clients/typescript` has the same, held to the same vectors.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use serde::{Deserialize, Serialize};

use super::clock::{DeviceId, Stamp};
use super::crdt::{Added, Counter, ObservedSet, Register, Removed, Written};
use super::operation::{Change, Operation, Playback};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    pub watchlist: ObservedSet,
    pub positions: BTreeMap<String, Register<Playback>>,
    pub counters: BTreeMap<String, Counter>,
    /// Of all counters: the devices that count.
    shares: usize,
}

/// One thing that a replica holds, as the operation that would make it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub by: Stamp,
    pub change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Section {
    Watchlist,
    Positions,
    Counters,
}

/// Where a page ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub section: Section,
    pub content_id: String,
}

/// Why a value is what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// It is there as long as one addition is.
    pub additions: Vec<Added>,
    /// Known until every device has seen them.
    pub removals: Vec<(String, Removed)>,
    /// The latest write, and the best that it won against.
    pub position: Option<Register<Playback>>,
    /// The sum of what each device counted.
    pub counter: Option<Counter>,
}

impl Replica {
    /// `at`: where the operation is in the person's log.
    pub fn apply(&mut self, device: DeviceId, operation: &Operation, at: i64) {
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
                let written = Written { stamp, value: position.clone() };
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

    /// There is no room for it.
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

    /// Entries in order, after the mark, at most `limit` contents.
    pub fn page(&self, after: Option<&Mark>, limit: usize) -> (Vec<Entry>, Option<Mark>) {
        let from = |section: Section| match after {
            Some(mark) if mark.section == section => Excluded(mark.content_id.as_str()),
            _ => Unbounded,
        };
        let wanted = |section: Section| after.is_none_or(|mark| mark.section <= section);
        let watchlist = wanted(Section::Watchlist)
            .then(|| match from(Section::Watchlist) {
                Excluded(item) => {
                    Box::new(self.watchlist.items_after(item)) as Box<dyn Iterator<Item = _>>
                }
                _ => Box::new(self.watchlist.items()),
            })
            .into_iter()
            .flatten()
            .map(|(content_id, added)| {
                let add = |added: &Added| Entry {
                    by: added.stamp,
                    change: Change::WatchlistAdd {
                        content_id: content_id.into(),
                        tag: added.tag.clone(),
                    },
                };
                (Section::Watchlist, content_id, added.iter().map(add).collect::<Vec<_>>())
            });
        let positions = wanted(Section::Positions)
            .then(|| self.positions.range::<str, _>((from(Section::Positions), Unbounded)))
            .into_iter()
            .flatten()
            .map(|(content_id, register)| {
                let Written { stamp, value } = register.wins.clone();
                let change =
                    Change::PlaybackUpdate { content_id: content_id.clone(), position: value };
                (Section::Positions, content_id.as_str(), vec![Entry { by: stamp, change }])
            });
        let counters = wanted(Section::Counters)
            .then(|| self.counters.range::<str, _>((from(Section::Counters), Unbounded)))
            .into_iter()
            .flatten()
            .map(|(content_id, counter)| {
                let share = |(device, count): (&DeviceId, &u64)| Entry {
                    by: Stamp { time: super::clock::NTP64(0), device: *device },
                    change: Change::CounterUpdate { content_id: content_id.clone(), count: *count },
                };
                let shares = counter.shares.iter().map(share).collect();
                (Section::Counters, content_id.as_str(), shares)
            });
        let mut all = watchlist.chain(positions).chain(counters).peekable();
        let (mut entries, mut last) = (Vec::new(), None);
        for (section, content_id, of_it) in all.by_ref().take(limit) {
            entries.extend(of_it);
            last = Some((section, content_id));
        }
        let more = all.peek().is_some();
        let mark = last
            .filter(|_| more)
            .map(|(section, content_id)| Mark { section, content_id: content_id.into() });
        (entries, mark)
    }

    pub fn explain(&self, content_id: &str) -> Explanation {
        let removals = self.watchlist.removals(content_id);
        Explanation {
            additions: self.watchlist.additions_of(content_id).to_vec(),
            removals: removals.map(|(tag, removed)| (tag.to_owned(), removed)).collect(),
            position: self.positions.get(content_id).cloned(),
            counter: self.counters.get(content_id).cloned(),
        }
    }
}
