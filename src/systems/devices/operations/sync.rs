//! Operations on the data that a person's devices share: a watchlist, playback positions and counters.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::contract::operation::ToolEffect;
use crate::contract::topic::Position;
use crate::contract::{Call, Meta, Operation, Outcome, Problem, input};
use crate::kernel::clock::Timestamp;
use crate::kernel::entity::to_value;
use crate::kernel::error::AskError;
use crate::systems::devices::domain::clock::{DeviceId, NTP64, Stamp, ntp, to_timestamp};
use crate::systems::devices::domain::crdt::Stamped;
use crate::systems::devices::domain::operation::{self, Change, SyncOperation, WatchPosition};
use crate::systems::devices::domain::replica::{Entry, Mark};
use crate::systems::devices::domain::shared::{self, Command, Refused, Reply, Restamped, SyncLog};

/// The most operations in one message. A frame of 64 KiB holds fewer.
const MAX_OPERATIONS: usize = 1_000;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct SyncUpdate {
    device_id: DeviceId,
    /// The position up to which the device has seen the log.
    position: Option<Position>,
    #[schemars(with = "Option<Vec<SyncOperation>>")]
    operations: Option<Vec<Value>>,
}

impl SyncUpdate {
    fn operations(&self) -> Outcome<Vec<operation::DeviceOperation>> {
        let Some(given) = &self.operations else { return Ok(Vec::new()) };
        let check = operation::DeviceOperation::check;
        let operations = input::items(given, "operations", MAX_OPERATIONS, check)?;
        if operations.windows(2).all(|pair| pair[0].sequence < pair[1].sequence) {
            Ok(operations)
        } else {
            Err(Problem::field("/operations", "must be in the order of their sequence"))
        }
    }

    /// The offset up to which the device has seen this log. A position in another log means nothing here.
    fn offset(&self, call: &Call) -> Option<i64> {
        let epoch = call.services.epoch();
        let here = self.position.as_ref();
        here.filter(|seen| *seen.epoch == *epoch && seen.offset >= 0).map(|seen| seen.offset)
    }
}

fn position_at(call: &Call, offset: i64) -> Position {
    Position { epoch: call.services.epoch().to_string(), offset }
}

/// A device's state of synchronisation with the person's log.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "SyncStanding")]
pub struct SyncStatusView {
    /// The sequence number up to which this device's operations are durable.
    sequence: u64,
    position: Position,
    seen: i64,
    stable: i64,
    /// Whether the device has been offline for too long, and has to read the whole state.
    must_resync: bool,
}

pub fn shown_standing(call: &Call, standing: &shared::SyncStatus) -> SyncStatusView {
    SyncStatusView {
        sequence: standing.sequence,
        position: position_at(call, standing.offset),
        seen: standing.seen,
        stable: standing.stable,
        must_resync: standing.must_resync,
    }
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct SyncUpdated {
    #[serde(flatten)]
    standing: SyncStatusView,
    restamped: Vec<Restamped>,
    refused: Vec<Refused>,
}

async fn update(call: &Call, asked: &SyncUpdate) -> Outcome<SyncUpdated> {
    let command = Command::Update {
        device: asked.device_id,
        seen: asked.offset(call).unwrap_or(0),
        operations: asked.operations()?,
        limits: *call.settings::<shared::SyncLimits>(),
    };
    // The sequence numbers tell which operations are new, so no command id has to be remembered.
    match call.ask::<SyncLog>(&call.user_id, command, call.undeduplicated()).await? {
        Reply::Updated { standing, restamped, refused } => {
            Ok(SyncUpdated { standing: shown_standing(call, &standing), restamped, refused })
        }
        _ => Err(AskError::Internal.into()),
    }
}

/// Appends operations of a device, in their order. They are durable up to the answer's `sequence`.
pub struct Update;

impl Operation for Update {
    const META: Meta = Meta::command(
        "sync.update",
        "Append operations of a device, in their order; they are durable up to the answer's sequence",
    );
    type Input = SyncUpdate;
    type Answer = SyncUpdated;

    async fn run(call: &Call, input: SyncUpdate) -> Outcome<SyncUpdated> {
        update(call, &input).await
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct SyncDevice {
    device_id: DeviceId,
}

/// Returns a device's state of synchronisation, which the device needs before its first operation.
pub struct Standing;

impl Operation for Standing {
    const META: Meta = Meta::query("sync.device", "Get a device's state of synchronisation");
    type Input = SyncDevice;
    type Answer = SyncStatusView;

    async fn run(call: &Call, SyncDevice { device_id }: SyncDevice) -> Outcome<SyncStatusView> {
        let command = Command::Device { device: device_id };
        match call.ask::<SyncLog>(&call.user_id, command, call.undeduplicated()).await? {
            Reply::Joined(standing) => Ok(shown_standing(call, &standing)),
            _ => Err(AskError::Internal.into()),
        }
    }
}

struct Part {
    entries: Vec<Entry>,
    next: Option<Mark>,
    offset: i64,
    stable: i64,
}

async fn part(call: &Call, after: Option<Mark>) -> Outcome<Part> {
    let command = Command::Read { after };
    match call.ask::<SyncLog>(&call.user_id, command, call.undeduplicated()).await? {
        Reply::Page { entries, next, offset, stable } => Ok(Part { entries, next, offset, stable }),
        _ => Err(AskError::Internal.into()),
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct SyncRead {
    /// The `next` of the previous page.
    #[schemars(with = "Option<Map<String, Value>>")]
    after: Option<Value>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct SyncPage {
    operations: Vec<Map<String, Value>>,
    #[schemars(with = "Value")]
    next: Option<Mark>,
    position: Position,
    stable: i64,
}

/// Returns the shared state in pages, as the operations that produce it. The position is that of this page: a client
/// continues from the position of the first page, since applying an operation twice changes nothing.
pub struct Read;

impl Operation for Read {
    const META: Meta = Meta::query("sync.read", "Read the shared state in pages, as operations");
    type Input = SyncRead;
    type Answer = SyncPage;

    async fn run(call: &Call, SyncRead { after }: SyncRead) -> Outcome<SyncPage> {
        let wrong = |_| Problem::field("/after", "must be the `next` of the page before");
        let after = after.map(serde_json::from_value).transpose().map_err(wrong)?;
        let part = part(call, after).await?;
        let operations = part.entries.iter().map(shown_entry).collect();
        let position = position_at(call, part.offset);
        Ok(SyncPage { operations, next: part.next, position, stable: part.stable })
    }
}

fn shown_entry(entry: &Entry) -> Map<String, Value> {
    let Value::Object(mut operation) = to_value(&entry.change) else { return Map::new() };
    operation.insert("device_id".into(), to_value(&entry.by.device));
    operation.insert("timestamp".into(), json!(entry.by.time.0.to_string()));
    operation
}

/// The shared state. It is typed, since a `Value` would be several times as slow where the state is large.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SyncState {
    user_id: String,
    position: Position,
    stable: i64,
    watchlist: Vec<SyncItem>,
    playback_positions: BTreeMap<String, SyncPosition>,
    counters: BTreeMap<String, SyncCounter>,
    last_sync: Option<Timestamp>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct SyncItem {
    content_id: String,
    additions: Vec<Addition>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SyncAddition")]
pub struct Addition {
    tag: String,
    device_id: DeviceId,
    #[serde(with = "ntp")]
    #[schemars(with = "String")]
    timestamp: NTP64,
    added_at: Timestamp,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct SyncPosition {
    position_ms: u64,
    duration_ms: Option<u64>,
    device_id: DeviceId,
    #[serde(with = "ntp")]
    #[schemars(with = "String")]
    timestamp: NTP64,
    updated_at: Timestamp,
}

#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct SyncCounter {
    value: u64,
    devices: BTreeMap<DeviceId, u64>,
}

impl SyncState {
    fn take(&mut self, Entry { by, change }: Entry) {
        let (device_id, timestamp, at) = (by.device, by.time, to_timestamp(by.time));
        match change {
            Change::WatchlistAdd { content_id, tag } => {
                let addition = Addition { tag, device_id, timestamp, added_at: at };
                // The additions of one item are adjacent.
                match self.watchlist.last_mut() {
                    Some(item) if item.content_id == content_id => item.additions.push(addition),
                    _ => self.watchlist.push(SyncItem { content_id, additions: vec![addition] }),
                }
            }
            Change::PlaybackUpdate { content_id, position } => {
                let WatchPosition { position_ms, duration_ms } = position;
                let shown =
                    SyncPosition { position_ms, duration_ms, device_id, timestamp, updated_at: at };
                self.playback_positions.insert(content_id, shown);
            }
            Change::CounterUpdate { content_id, count } => {
                let counter = self.counters.entry(content_id).or_default();
                counter.value = counter.value.saturating_add(count);
                counter.devices.insert(device_id, count);
            }
            Change::WatchlistRemove { .. } | Change::Nothing {} => {}
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct SyncStateOf {
    /// The user, whom the door has checked.
    #[serde(rename = "user_id")]
    _user_id: Option<String>,
}

/// Returns the whole shared state, joined from its pages.
pub struct GetState;

impl Operation for GetState {
    const META: Meta = Meta::query(
        "sync.state",
        "Get the state that your devices share; the user's id is `me`, or your own",
    )
    .get("/v1/sync/state/{user_id}")
    .tool("get_shared_state", ToolEffect::ReadOnly)
    .tool_description("Get what your devices share: the watchlist, positions of playback, counters")
    .resource("proxie://shared");
    type Input = SyncStateOf;
    type Answer = SyncState;

    async fn run(call: &Call, _: SyncStateOf) -> Outcome<SyncState> {
        let mut read = part(call, None).await?;
        let mut state = SyncState {
            user_id: call.user_id.to_string(),
            position: position_at(call, read.offset),
            stable: read.stable,
            watchlist: Vec::new(),
            playback_positions: BTreeMap::new(),
            counters: BTreeMap::new(),
            last_sync: None,
        };
        let mut latest = NTP64(0);
        loop {
            for entry in read.entries {
                latest = latest.max(entry.by.time);
                state.take(entry);
            }
            match read.next {
                Some(mark) => read = part(call, Some(mark)).await?,
                None => break,
            }
        }
        state.last_sync = (latest > NTP64(0)).then(|| to_timestamp(latest));
        Ok(state)
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ExplainSync {
    content_id: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct SyncExplanation {
    content_id: String,
    #[schemars(with = "Map<String, Value>")]
    watchlist: Value,
    #[schemars(with = "Option<Map<String, Value>>")]
    playback_position: Option<Value>,
    #[schemars(with = "Option<Map<String, Value>>")]
    counter: Option<Value>,
}

/// Explains the values of a content: which operations produced them.
pub struct Explain;

impl Operation for Explain {
    const META: Meta = Meta::query(
        "sync.explain",
        "Explain the values of a content: which operations produced them",
    )
    .get("/v1/sync/explain/{content_id}")
    .tool("explain_shared_state", ToolEffect::ReadOnly);
    type Input = ExplainSync;
    type Answer = SyncExplanation;

    async fn run(call: &Call, ExplainSync { content_id }: ExplainSync) -> Outcome<SyncExplanation> {
        let command = Command::Explain { content_id: content_id.clone() };
        let reply = call.ask::<SyncLog>(&call.user_id, command, call.undeduplicated()).await?;
        let Reply::Explained { explanation, stable } = reply else {
            return Err(AskError::Internal.into());
        };
        let by = |stamp: &Stamp| {
            json!({
                "device_id": stamp.device,
                "timestamp": stamp.time.0.to_string(),
                "at": to_timestamp(stamp.time),
            })
        };
        let additions: Vec<Value> = explanation
            .additions
            .iter()
            .map(|added| json!({"tag": added.tag, "by": by(&added.stamp)}))
            .collect();
        let removals: Vec<Value> = explanation
            .removals
            .iter()
            .map(|(tag, removed)| json!({"tag": tag, "by": by(&removed.stamp), "offset": removed.at}))
            .collect();
        let why = match (additions.is_empty(), removals.is_empty()) {
            (false, true) => "it was added, and no removal has seen that",
            (false, false) => "an addition is left that no removal has seen",
            (true, false) => "every addition was seen by a removal",
            (true, true) => "it was never added, or removed so long ago that every device knows",
        };
        let position = explanation.position.map(|register| {
            let written = |written: &Stamped<_>| {
                let mut shown = to_value(&written.value);
                shown["by"] = by(&written.stamp);
                shown
            };
            let why = match &register.beaten {
                None => "it is the only one",
                Some(beaten) if beaten.stamp.time < register.wins.stamp.time => {
                    "it was written later than any other"
                }
                Some(beaten) if beaten.stamp.device < register.wins.stamp.device => {
                    "two were written at the same time; the higher device id wins"
                }
                Some(_) => "one device wrote two at the same time; the higher value wins",
            };
            json!({
                "wins": written(&register.wins),
                "beaten": register.beaten.as_ref().map(written),
                "why": why,
            })
        });
        let counter = explanation.counter.map(|counter| {
            json!({
                "value": counter.value,
                "devices_total": counter.shares_total,
                "devices": counter.shares.iter().map(|(d, n)| (d.to_string(), json!(n))).collect::<Map<_, _>>(),
                "why": "it is the sum of what each device has counted",
            })
        });
        Ok(SyncExplanation {
            content_id,
            watchlist: json!({
                "present": !additions.is_empty(),
                "additions": additions,
                "additions_total": explanation.additions_total,
                "removals": removals,
                "removals_total": explanation.removals_total,
                "stable": stable,
                "why": why,
            }),
            playback_position: position,
            counter,
        })
    }
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct SyncMerged {
    #[serde(flatten)]
    updated: SyncUpdated,
    /// The changes after the given position.
    #[schemars(with = "Vec<shared::Delta<'static>>")]
    deltas: Vec<Box<RawValue>>,
    /// Whether there are more changes after the position of this answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    more: Option<bool>,
}

/// Appends the operations of a device without a socket, and returns the changes it has not seen; or `must_resync` where
/// the log does not reach back so far.
pub struct Merge;

impl Operation for Merge {
    const META: Meta = Meta::command(
        "sync.merge",
        "Append the operations of a device without a socket, and get the changes it has not seen",
    )
    .post("/v1/sync/merge");
    type Input = SyncUpdate;
    type Answer = SyncMerged;

    async fn run(call: &Call, input: SyncUpdate) -> Outcome<SyncMerged> {
        let from = input.offset(call);
        let mut updated = update(call, &input).await?;
        let history = match from {
            Some(from) => {
                Some(call.services.histories()?.after("sync", &call.user_id, from).await?)
            }
            None => None,
        };
        let history = history.filter(|history| history.complete);
        updated.standing.must_resync = history.is_none();
        let (mut deltas, mut more) = (Vec::new(), None);
        if let (Some(history), Some(from)) = (history, from) {
            let last = history.items.last().map_or(from, |item| item.offset);
            updated.standing.position = position_at(call, last);
            // This is one page; the client asks again from its end.
            more = Some(last < history.head);
            for item in &history.items {
                let delta = RawValue::from_string(item.data.to_string());
                deltas.push(delta.map_err(|_| AskError::Internal)?);
            }
        }
        Ok(SyncMerged { updated, deltas, more })
    }
}
