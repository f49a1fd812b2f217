//! The shared data of a person's devices: the one place where their operations are ordered into the person's log.
//!
//! A device is registered here first. Its operations arrive in the order of their numbers; the reply is the number up
//! to which all of them are durable. The log is the topic `sync:<user>`. Each device reports how far it has *seen* the
//! log. The part that every device has seen is *stable*: no later operation can have been written without knowing it,
//! so data kept for such operations (the tags of removed additions) is forgotten. A device that lags too far behind is
//! not waited for: when it returns, it reads the whole state again (`must_resync`), and keeps everything that it wrote
//! meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::clock::{DeviceId, NTP64, admit, ntp, to_ntp};
use super::operation::{Change, DeviceOperation, SyncOperation};
use super::replica::{Entry, Explanation, Mark, Replica};
use crate::kernel::clock::Timestamp;
use crate::kernel::entity::{Announcement, DecideCx, Decided, Decision, Effect, Entity};
use crate::kernel::error::ErrorCode;

/// Most entries in one page of the state; `PAGE_BYTES` limits their size.
const PAGE: usize = 400;
const PAGE_BYTES: usize = 256 * 1024;
/// Most additions, removals and devices, each, in an explanation.
const EXPLAINED: usize = 200;
/// Most removed devices that are remembered here. Older ones are unknown here, but registering one is still refused
/// with `device_removed`: the device's own actor remembers for ever and is asked first.
const MAX_LEFT: usize = 1_000;

/// The configured limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SyncLimits {
    /// How far a device's clock may be ahead of the server's.
    pub max_skew_ms: u64,
    /// Most additions, positions and counts, each.
    pub max_entries: usize,
    /// Most removed additions that are kept. Beyond this, the devices that have seen the least are not waited for.
    pub max_tombstones: usize,
}

impl Default for SyncLimits {
    fn default() -> Self {
        Self { max_skew_ms: 5_000, max_entries: 20_000, max_tombstones: 20_000 }
    }
}

#[derive(Debug)]
pub struct SyncLog;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Registers a device. The operation decides how many devices a person may have.
    Join {
        device: DeviceId,
        max_devices: usize,
    },
    Leave {
        device: DeviceId,
    },
    /// Operations of a device. `seen`: every operation that the device has not sent yet was, or will be, written with
    /// knowledge of the log up to here.
    Update {
        device: DeviceId,
        seen: i64,
        operations: Vec<DeviceOperation>,
        limits: SyncLimits,
    },
    /// Queries.
    Read {
        after: Option<Mark>,
    },
    Device {
        device: DeviceId,
    },
    Devices,
    Explain {
        content_id: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    Joined {
        device: DeviceId,
        at: Timestamp,
    },
    Left {
        device: DeviceId,
    },
    /// Operations as they count: with admitted times, and `Nothing` in place of refused ones.
    Merged {
        device: DeviceId,
        seen: i64,
        operations: Vec<DeviceOperation>,
        restamped: Vec<Restamped>,
    },
    Saw {
        device: DeviceId,
        seen: i64,
    },
    /// The device is no longer waited for.
    LeftBehind {
        device: DeviceId,
    },
}

/// An operation whose time was too far ahead and has been replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "SyncRestamped")]
pub struct Restamped {
    pub sequence: u64,
    #[serde(with = "ntp")]
    #[schemars(with = "String")]
    pub claimed: NTP64,
    #[serde(with = "ntp")]
    #[schemars(with = "String")]
    pub time: NTP64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "SyncRefused")]
pub struct Refused {
    pub sequence: u64,
    pub reason: String,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SyncDelta")]
pub struct Delta<'a> {
    device_id: DeviceId,
    #[schemars(with = "Vec<SyncOperation>")]
    operations: &'a [DeviceOperation],
    stable: i64,
}

impl Announcement for Delta<'_> {
    const EVENT: &'static str = "sync:delta";
    const SUMMARY: &'static str = "Operations of one device, as they were merged";
    const TOPICS: &'static [&'static str] = &["sync"];
}

/// The person's shared state, bounded by [`SyncLimits`] and the number of devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub devices: BTreeMap<DeviceId, SyncMember>,
    /// Ids of removed devices, oldest first. They are not reused, because their operations still count.
    pub left: Vec<DeviceId>,
    pub replica: Replica,
    /// The offset of the newest entry in the log.
    pub offset: i64,
    pub stable: i64,
    /// The latest time of any operation.
    #[serde(with = "ntp")]
    pub latest: NTP64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncMember {
    /// The device's operations up to this number are merged.
    pub sequence: u64,
    /// The time of that operation.
    #[serde(with = "ntp")]
    pub last: NTP64,
    pub seen: i64,
    pub must_resync: bool,
    pub joined_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Joined(SyncStatus),
    Devices(Vec<(DeviceId, SyncStatus)>),
    Left,
    Updated { standing: SyncStatus, restamped: Vec<Restamped>, refused: Vec<Refused> },
    Page { entries: Vec<Entry>, next: Option<Mark>, offset: i64, stable: i64 },
    Explained { explanation: Explanation, stable: i64 },
}

/// The synchronisation status of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncStatus {
    pub sequence: u64,
    pub seen: i64,
    pub must_resync: bool,
    /// The newest offset of the log.
    pub offset: i64,
    pub stable: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("this belongs to another person")]
    NotYours,
    #[error("this device is not registered: register it, or take a new id if it was removed")]
    UnknownDevice,
    #[error("this device was removed: register with a new id")]
    DeviceRemoved,
    #[error("at most {max} devices are allowed: remove one first")]
    TooManyDevices { max: usize },
}

impl crate::kernel::entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotYours => ErrorCode::NotFound,
            Self::UnknownDevice | Self::DeviceRemoved | Self::TooManyDevices { .. } => {
                ErrorCode::Rejected
            }
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NotYours => "not_yours",
            Self::UnknownDevice => "unknown_device",
            Self::DeviceRemoved => "device_removed",
            Self::TooManyDevices { .. } => "too_many_devices",
        }
    }
}

impl State {
    fn member(&self, device: DeviceId) -> Result<&SyncMember, Rejection> {
        match self.devices.get(&device) {
            Some(member) => Ok(member),
            None if self.left.contains(&device) => Err(Rejection::DeviceRemoved),
            None => Err(Rejection::UnknownDevice),
        }
    }

    fn standing(&self, device: DeviceId) -> Result<SyncStatus, Rejection> {
        let member = self.member(device)?;
        Ok(SyncStatus {
            sequence: member.sequence,
            seen: member.seen,
            must_resync: member.must_resync,
            offset: self.offset,
            stable: self.stable,
        })
    }

    fn settle(&mut self) {
        let waited_for = self.devices.values().filter(|member| !member.must_resync);
        let stable = waited_for.map(|member| member.seen).min().unwrap_or(self.offset);
        if stable > self.stable {
            self.stable = stable;
            self.replica.watchlist.forget_removed(stable);
        }
    }

    fn saw(&mut self, device: DeviceId, seen: i64) {
        let stable = self.stable;
        if let Some(member) = self.devices.get_mut(&device) {
            member.seen = seen.max(member.seen);
            member.must_resync &= member.seen < stable;
        }
    }

    /// The devices that hold back tombstone collection the most.
    fn left_behind(&self, max_tombstones: usize) -> impl Iterator<Item = DeviceId> {
        let too_much = self.replica.watchlist.tombstones() > max_tombstones;
        let behind = self.devices.iter().filter(move |(_, member)| {
            too_much && !member.must_resync && member.seen <= self.stable
        });
        behind.map(|(device, _)| *device)
    }

    fn join(&self, device: DeviceId, max: usize, now: Timestamp) -> Decided<SyncLog> {
        if let Ok(standing) = self.standing(device) {
            return Ok(Decision::reply(Reply::Joined(standing)));
        }
        if self.left.contains(&device) {
            return Err(Rejection::DeviceRemoved);
        }
        if self.devices.len() >= max {
            return Err(Rejection::TooManyDevices { max });
        }
        // A new device has nothing written without knowledge of past removals, so it starts at the head.
        let standing = SyncStatus {
            sequence: 0,
            seen: self.offset,
            must_resync: false,
            offset: self.offset,
            stable: self.stable,
        };
        Ok(Decision::reply(Reply::Joined(standing)).event(Event::Joined { device, at: now }))
    }

    fn update(
        &self,
        device: DeviceId,
        seen: i64,
        operations: Vec<DeviceOperation>,
        limits: SyncLimits,
        now: Timestamp,
    ) -> Decided<SyncLog> {
        let member = self.member(device)?;
        let seen = seen.clamp(member.seen, self.offset);
        // Operations that already arrived are skipped, and nothing after a gap is taken. The reply says where to
        // continue.
        let first = member.sequence + 1;
        let operations = operations.into_iter().skip_while(|operation| operation.sequence < first);
        let next = (first..).zip(operations);
        let mut operations: Vec<DeviceOperation> = next
            .take_while(|(next, operation)| operation.sequence == *next)
            .map(|(_, operation)| operation)
            .collect();
        let (now, skew) = (to_ntp(now), Duration::from_millis(limits.max_skew_ms));
        let (mut before, mut latest) = (member.last, self.latest);
        let (mut restamped, mut refused) = (Vec::new(), Vec::new());
        for operation in &mut operations {
            let claimed = operation.time;
            operation.time = admit(claimed, before, latest, now, skew);
            let sequence = operation.sequence;
            if operation.time != claimed {
                restamped.push(Restamped { sequence, claimed, time: operation.time });
            }
            if self.replica.is_full_for(device, &operation.change, limits.max_entries) {
                refused.push(Refused { sequence, reason: "too_many_entries".into() });
                operation.change = Change::Nothing {};
            }
            // The addition was removed before it arrived. Readers of the log from here on may not know of the removal.
            if let Change::WatchlistAdd { content_id, tag } = &operation.change
                && self.replica.watchlist.is_removed(content_id, tag)
            {
                operation.change = Change::Nothing {};
            }
            before = operation.time;
            latest = latest.max(before);
        }
        let mut standing = self.standing(device)?;
        standing.seen = seen;
        standing.must_resync &= seen < self.stable;
        let sequence = operations.last().map_or(member.sequence, |last| last.sequence);
        standing.sequence = sequence;
        let changes = !operations.is_empty();
        standing.offset += i64::from(changes);
        let delta = changes.then(|| {
            Effect::announce(&Delta {
                device_id: device,
                operations: &operations,
                stable: self.stable,
            })
        });
        let behind: Vec<Event> = self
            .left_behind(limits.max_tombstones)
            .map(|device| Event::LeftBehind { device })
            .collect();
        let reply = Reply::Updated { standing, restamped: restamped.clone(), refused };
        let mut decision = Decision::reply(reply).effects(delta);
        if changes {
            decision = decision.event(Event::Merged { device, seen, operations, restamped });
        } else if seen > member.seen {
            decision = decision.event(Event::Saw { device, seen });
        }
        decision.events.extend(behind);
        Ok(decision)
    }
}

impl Entity for SyncLog {
    const KIND: &'static str = "sync";
    const GOLDEN: &'static str = include_str!("golden/sync.jsonl");
    const HAS_TOPIC: bool = true;

    crate::own_types!();

    fn is_query(command: &Command) -> bool {
        matches!(
            command,
            Command::Read { .. }
                | Command::Device { .. }
                | Command::Devices
                | Command::Explain { .. }
        )
    }

    fn decide(state: &State, command: Command, cx: &DecideCx<'_>) -> Decided<Self> {
        if !cx.caller.may_act_for(cx.key, "sync") {
            return Err(Rejection::NotYours);
        }
        match command {
            Command::Join { device, max_devices } => state.join(device, max_devices, cx.now),
            Command::Leave { device } => match state.member(device) {
                Ok(_) => Ok(Decision::reply(Reply::Left).event(Event::Left { device })),
                Err(Rejection::DeviceRemoved) => Ok(Decision::reply(Reply::Left)),
                Err(rejection) => Err(rejection),
            },
            Command::Update { device, seen, operations, limits } => {
                state.update(device, seen, operations, limits, cx.now)
            }
            Command::Read { after } => {
                let (entries, next) = state.replica.page(after.as_ref(), PAGE, PAGE_BYTES);
                let (offset, stable) = (state.offset, state.stable);
                Ok(Decision::reply(Reply::Page { entries, next, offset, stable }))
            }
            Command::Device { device } => {
                Ok(Decision::reply(Reply::Joined(state.standing(device)?)))
            }
            Command::Devices => {
                let standing = |device: &DeviceId| Some((*device, state.standing(*device).ok()?));
                let devices = state.devices.keys().filter_map(standing).collect();
                Ok(Decision::reply(Reply::Devices(devices)))
            }
            Command::Explain { content_id } => {
                let explanation = state.replica.explain(&content_id, EXPLAINED);
                Ok(Decision::reply(Reply::Explained { explanation, stable: state.stable }))
            }
        }
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Joined { device, at } => {
                let member = SyncMember {
                    sequence: 0,
                    last: NTP64(0),
                    seen: state.offset,
                    must_resync: false,
                    joined_at: *at,
                };
                state.devices.insert(*device, member);
            }
            Event::Left { device } => {
                if state.devices.remove(device).is_some() {
                    state.left.push(*device);
                    let forgotten = state.left.len().saturating_sub(MAX_LEFT);
                    state.left.drain(..forgotten);
                }
            }
            Event::Merged { device, seen, operations, .. } => {
                state.offset += 1;
                for operation in operations {
                    state.replica.apply(*device, operation, state.offset);
                    state.latest = state.latest.max(operation.time);
                }
                state.saw(*device, *seen);
                if let (Some(member), Some(last)) =
                    (state.devices.get_mut(device), operations.last())
                {
                    (member.sequence, member.last) = (last.sequence, last.time);
                }
            }
            Event::Saw { device, seen } => state.saw(*device, *seen),
            Event::LeftBehind { device } => {
                if let Some(member) = state.devices.get_mut(device) {
                    member.must_resync = true;
                }
            }
        }
        state.settle();
    }
}

#[cfg(test)]
mod tests;
