//! What a person's devices share: the commands behind `/v1/sync`, `/v1/ws` and `/sync/ws`.

mod link;
mod talk;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::contract::problem::{Outcome, Problem};
use crate::gateway::bodies::{list, object, text};
use crate::gateway::commands::Call;
use crate::gateway::ws::protocol::{Position, position};
use crate::kernel::clock::Timestamp;
use crate::kernel::entity::to_value;
use crate::kernel::error::AskError;
use crate::systems::devices::domain::clock::{DeviceId, NTP64, ntp, to_timestamp};
use crate::systems::devices::domain::operation::{Change, Operation, Playback};
use crate::systems::devices::domain::replica::{Entry, Mark};
use crate::systems::devices::domain::shared::{Command, Reply, Shared, Standing};

pub use link::Link;

/// In one message. A frame of 64 KiB holds fewer.
const MAX_OPERATIONS: usize = 1_000;

pub fn device_id(body: &Value) -> Outcome<DeviceId> {
    let wrong = |error| Problem::field("/device_id", format!("{error}"));
    text(body, "device_id")?.parse().map_err(wrong)
}

fn operations(body: &Value) -> Outcome<Vec<Operation>> {
    if matches!(body.get("operations"), None | Some(Value::Null)) {
        return Ok(Vec::new());
    }
    let operations = list(body, "operations", MAX_OPERATIONS, Operation::check)?;
    if operations.windows(2).all(|pair| pair[0].sequence < pair[1].sequence) {
        Ok(operations)
    } else {
        Err(Problem::field("/operations", "must be in the order of their sequence"))
    }
}

/// `position` of a body. What a device has seen of another log says nothing about this one.
fn offset(call: &Call<'_>, body: &Value) -> Outcome<Option<i64>> {
    let seen = position(body.get("position").unwrap_or(&Value::Null))?;
    let epoch = call.gateway.epoch();
    let here = seen.filter(|seen| *seen.epoch == *epoch && seen.offset >= 0);
    Ok(here.map(|seen| seen.offset))
}

fn position_at(call: &Call<'_>, offset: i64) -> Value {
    json!(Position { epoch: call.gateway.epoch().to_string(), offset })
}

pub fn shown_standing(call: &Call<'_>, standing: &Standing) -> Value {
    json!({
        "sequence": standing.sequence,
        "position": position_at(call, standing.offset),
        "seen": standing.seen,
        "stable": standing.stable,
        "must_resync": standing.must_resync,
    })
}

/// `sync:update`. Everything up to the answer's `sequence` is durable.
pub async fn update(call: &Call<'_>, body: &Value) -> Outcome {
    call.check_user(body)?;
    let device = device_id(body)?;
    let operations = operations(body)?;
    let seen = offset(call, body)?.unwrap_or(0);
    let command = Command::Update { device, seen, operations, limits: call.gateway.options.sync };
    // The numbers of the operations say which are new, so nothing else has to be remembered.
    match call.ask::<Shared>(call.user_id, command, call.undeduplicated()).await? {
        Reply::Updated { standing, restamped, refused } => {
            let mut answer = shown_standing(call, &standing);
            answer["restamped"] = to_value(&restamped);
            answer["refused"] = to_value(&refused);
            Ok(answer)
        }
        _ => Err(AskError::Internal.into()),
    }
}

/// `sync:device`: how a device stands, before it says anything.
pub async fn device(call: &Call<'_>, body: &Value) -> Outcome {
    call.check_user(body)?;
    let command = Command::Device { device: device_id(body)? };
    match call.ask::<Shared>(call.user_id, command, call.undeduplicated()).await? {
        Reply::Joined(standing) => Ok(shown_standing(call, &standing)),
        _ => Err(AskError::Internal.into()),
    }
}

struct Page {
    entries: Vec<Entry>,
    next: Option<Mark>,
    offset: i64,
    stable: i64,
}

async fn page(call: &Call<'_>, after: Option<Mark>) -> Outcome<Page> {
    let command = Command::Read { after };
    match call.ask::<Shared>(call.user_id, command, call.undeduplicated()).await? {
        Reply::Page { entries, next, offset, stable } => Ok(Page { entries, next, offset, stable }),
        _ => Err(AskError::Internal.into()),
    }
}

/// `sync:read`: the state in pages, as the operations that would make it. The position is that of this page: a client
/// goes on from the first page's, as hearing an operation twice changes nothing.
pub async fn read(call: &Call<'_>, body: &Value) -> Outcome {
    call.check_user(body)?;
    let after = match body.get("after") {
        None | Some(Value::Null) => None,
        Some(after) => Some(
            serde_json::from_value(after.clone())
                .map_err(|_| Problem::field("/after", "must be the `next` of the page before"))?,
        ),
    };
    let page = page(call, after).await?;
    let operations: Vec<Value> = page.entries.iter().map(shown_entry).collect();
    Ok(json!({
        "operations": operations,
        "next": page.next,
        "position": position_at(call, page.offset),
        "stable": page.stable,
    }))
}

fn shown_entry(entry: &Entry) -> Value {
    let mut operation = to_value(&entry.change);
    operation["device_id"] = to_value(&entry.by.device);
    operation["timestamp"] = json!(entry.by.time.0.to_string());
    operation
}

/// As the API shows it. Typed, because a long one would be several times as slow as a `Value`.
#[derive(Debug, Serialize)]
pub struct State {
    user_id: String,
    position: Value,
    stable: i64,
    watchlist: Vec<Item>,
    playback_positions: BTreeMap<String, Shown>,
    counters: BTreeMap<String, Counted>,
    last_sync: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
struct Item {
    content_id: String,
    additions: Vec<Addition>,
}

#[derive(Debug, Serialize)]
struct Addition {
    tag: String,
    device_id: DeviceId,
    #[serde(with = "ntp")]
    timestamp: NTP64,
    added_at: Timestamp,
}

#[derive(Debug, Serialize)]
struct Shown {
    position_ms: u64,
    duration_ms: Option<u64>,
    device_id: DeviceId,
    #[serde(with = "ntp")]
    timestamp: NTP64,
    updated_at: Timestamp,
}

#[derive(Debug, Default, Serialize)]
struct Counted {
    value: u64,
    devices: BTreeMap<DeviceId, u64>,
}

impl State {
    fn take(&mut self, Entry { by, change }: Entry) {
        let (device_id, timestamp, at) = (by.device, by.time, to_timestamp(by.time));
        match change {
            Change::WatchlistAdd { content_id, tag } => {
                let addition = Addition { tag, device_id, timestamp, added_at: at };
                // The additions of one item follow each other.
                match self.watchlist.last_mut() {
                    Some(item) if item.content_id == content_id => item.additions.push(addition),
                    _ => self.watchlist.push(Item { content_id, additions: vec![addition] }),
                }
            }
            Change::PlaybackUpdate { content_id, position } => {
                let Playback { position_ms, duration_ms } = position;
                let shown =
                    Shown { position_ms, duration_ms, device_id, timestamp, updated_at: at };
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

/// The whole state, put together from its pages.
pub async fn state(call: &Call<'_>) -> Outcome<State> {
    let mut read = page(call, None).await?;
    let mut state = State {
        user_id: call.user_id.into(),
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
            Some(mark) => read = page(call, Some(mark)).await?,
            None => break,
        }
    }
    state.last_sync = (latest > NTP64(0)).then(|| to_timestamp(latest));
    Ok(state)
}

/// Why the values of this content are what they are.
pub async fn explain(call: &Call<'_>, content_id: &str) -> Outcome {
    let command = Command::Explain { content_id: content_id.into() };
    let reply = call.ask::<Shared>(call.user_id, command, call.undeduplicated()).await?;
    let Reply::Explained { explanation, stable } = reply else {
        return Err(AskError::Internal.into());
    };
    let by = |stamp: &crate::systems::devices::domain::clock::Stamp| {
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
        let written = |written: &crate::systems::devices::domain::crdt::Written<_>| {
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
    Ok(json!({
        "content_id": content_id,
        "watchlist": {
            "present": !additions.is_empty(),
            "additions": additions,
            "additions_total": explanation.additions_total,
            "removals": removals,
            "removals_total": explanation.removals_total,
            "stable": stable,
            "why": why,
        },
        "playback_position": position,
        "counter": counter,
    }))
}

/// `POST /v1/sync/merge`, for devices without a socket: takes operations, and answers with what the device has not seen,
/// or with `must_resync` where the log does not reach back so far.
pub async fn merge(call: &Call<'_>, body: &Value) -> Outcome {
    object(body)?;
    let from = offset(call, body)?;
    let mut answer = update(call, body).await?;
    let history = match from {
        Some(from) => Some(call.gateway.histories()?.after("sync", call.user_id, from).await?),
        None => None,
    };
    let history = history.filter(|history| history.complete);
    answer["must_resync"] = json!(history.is_none());
    let mut deltas: Vec<Value> = Vec::new();
    if let (Some(history), Some(from)) = (history, from) {
        let last = history.items.last().map_or(from, |item| item.offset);
        answer["position"] = position_at(call, last);
        // A page of it; the client asks again from there.
        answer["more"] = json!(last < history.head);
        for item in &history.items {
            deltas.push(serde_json::from_str(&item.data).map_err(|_| AskError::Internal)?);
        }
    }
    answer["deltas"] = json!(deltas);
    Ok(answer)
}
