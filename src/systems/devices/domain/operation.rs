//! Operations that devices write. Their JSON is the same on the wire, in the journal and in the log.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::clock::{NTP64, ntp};

/// An operation, numbered by its device: 1, 2, 3, …
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceOperation {
    pub sequence: u64,
    /// The client's own id for it, which the acknowledgement repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation_id: Option<String>,
    #[serde(rename = "timestamp", with = "ntp")]
    pub time: NTP64,
    #[serde(flatten)]
    pub change: Change,
}

/// An operation of a device.
//
// For the documents only: `DeviceOperation` is what travels.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "it is only described: the real one has its parts flattened")]
pub struct SyncOperation {
    /// 1, 2, 3, … of this device.
    #[schemars(range(min = 1))]
    sequence: u64,
    /// Your own id for it, which the acknowledgement repeats.
    operation_id: Option<String>,
    /// A hybrid logical time of 64 bits as text (NTP64, as uhlc counts), or an RFC 3339 time.
    timestamp: String,
    /// WatchlistAdd, WatchlistRemove, PlaybackUpdate, CounterUpdate or Nothing
    operation_type: String,
    payload: serde_json::Map<String, serde_json::Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "operation_type", content = "payload")]
pub enum Change {
    WatchlistAdd {
        content_id: String,
        tag: String,
    },
    /// Removes the additions with these tags, which the device has seen.
    WatchlistRemove {
        content_id: String,
        #[serde(alias = "tag", deserialize_with = "one_or_more")]
        tags: Vec<String>,
    },
    PlaybackUpdate {
        content_id: String,
        #[serde(flatten)]
        position: WatchPosition,
    },
    /// The device's total so far rather than a difference, so sending it twice counts once.
    CounterUpdate {
        content_id: String,
        count: u64,
    },
    /// Takes the place of an operation that was refused.
    Nothing {},
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WatchPosition {
    pub position_ms: u64,
    #[serde(default)]
    pub duration_ms: Option<u64>,
}

impl WatchPosition {
    /// Whether the position is in the credits or after them: 95 % of the duration.
    pub fn is_nearly_over(&self) -> bool {
        let seen = self.position_ms.saturating_mul(100);
        self.duration_ms.is_some_and(|whole| seen >= whole.saturating_mul(95))
    }
}

const MAX_ID_BYTES: usize = 128;
/// Most tags of one removal.
const MAX_TAGS: usize = 64;
/// Largest position or count: JavaScript numbers hold it exactly.
pub const MAX_NUMBER: u64 = (1 << 53) - 1;

fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a tag, or a list of tags")]
    enum Tags {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Tags::deserialize(deserializer)? {
        Tags::One(tag) => vec![tag],
        Tags::Several(tags) => tags,
    })
}

pub fn is_name(name: &str) -> bool {
    (1..=MAX_ID_BYTES).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
}

impl DeviceOperation {
    /// Checks the fields; the error is the wrong field and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        const NAME: &str = "must have 1 to 128 visible ASCII characters";
        if self.sequence == 0 || self.sequence > MAX_NUMBER {
            return Err(("sequence", "must be 1 or more, and below 2^53"));
        }
        if self.operation_id.as_deref().is_some_and(|id| !is_name(id)) {
            return Err(("operation_id", NAME));
        }
        let content_id = match &self.change {
            Change::WatchlistAdd { content_id, .. }
            | Change::WatchlistRemove { content_id, .. }
            | Change::PlaybackUpdate { content_id, .. }
            | Change::CounterUpdate { content_id, .. } => content_id,
            Change::Nothing {} => return Ok(()),
        };
        if !is_name(content_id) {
            return Err(("payload/content_id", NAME));
        }
        match &self.change {
            Change::WatchlistAdd { tag, .. } if !is_name(tag) => Err(("payload/tag", NAME)),
            Change::WatchlistRemove { tags, .. } if !(1..=MAX_TAGS).contains(&tags.len()) => {
                Err(("payload/tags", "must have 1 to 64 tags"))
            }
            Change::WatchlistRemove { tags, .. } if !tags.iter().all(|tag| is_name(tag)) => {
                Err(("payload/tags", NAME))
            }
            Change::PlaybackUpdate { position, .. }
                if position.position_ms > MAX_NUMBER
                    || position.duration_ms.is_some_and(|ms| ms > MAX_NUMBER) =>
            {
                Err(("payload/position_ms", "must be below 2^53"))
            }
            Change::CounterUpdate { count, .. } if *count > MAX_NUMBER => {
                Err(("payload/count", "must be below 2^53"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(change: Value) -> Result<DeviceOperation, String> {
        let mut operation = json!({"sequence": 1, "timestamp": "12"});
        operation.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        serde_json::from_value(operation).map_err(|e| e.to_string())
    }

    #[test]
    fn the_form_on_the_wire_stays() {
        for text in [
            r#"{"sequence":7,"operation_id":"op-1","timestamp":"7386690599959157260","operation_type":"WatchlistAdd","payload":{"content_id":"tt0133093","tag":"t1"}}"#,
            r#"{"sequence":8,"timestamp":"12","operation_type":"WatchlistRemove","payload":{"content_id":"c","tags":["a","b"]}}"#,
            r#"{"sequence":9,"timestamp":"12","operation_type":"PlaybackUpdate","payload":{"content_id":"c","position_ms":5,"duration_ms":null}}"#,
            r#"{"sequence":1,"timestamp":"12","operation_type":"CounterUpdate","payload":{"content_id":"c","count":3}}"#,
            r#"{"sequence":1,"timestamp":"12","operation_type":"Nothing","payload":{}}"#,
        ] {
            let operation: DeviceOperation = serde_json::from_str(text).unwrap();
            assert_eq!(operation.check(), Ok(()));
            assert_eq!(serde_json::to_string(&operation).unwrap(), text);
        }
    }

    #[test]
    fn some_latitude_in_what_is_read() {
        let one = parsed(
            json!({"operation_type": "WatchlistRemove", "payload": {"content_id": "c", "tag": "t"}}),
        );
        let Change::WatchlistRemove { tags, .. } = one.unwrap().change else { panic!() };
        assert_eq!(tags, ["t"]);
        let mut rfc = json!({"sequence": 1, "timestamp": "1970-01-01T00:00:01Z", "operation_type": "Nothing", "payload": {}});
        assert_eq!(
            serde_json::from_value::<DeviceOperation>(rfc.clone()).unwrap().time,
            NTP64(1 << 32)
        );
        rfc["timestamp"] = json!(5);
        assert!(serde_json::from_value::<DeviceOperation>(rfc).is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let add = |content_id: &str, tag: &str| json!({"operation_type": "WatchlistAdd", "payload": {"content_id": content_id, "tag": tag}});
        let remove = |tags: Value| json!({"operation_type": "WatchlistRemove", "payload": {"content_id": "c", "tags": tags}});
        for (change, field) in [
            (add("", "t"), "payload/content_id"),
            (add(&"x".repeat(129), "t"), "payload/content_id"),
            (add("a b", "t"), "payload/content_id"),
            (add("c", "é"), "payload/tag"),
            (remove(json!([])), "payload/tags"),
            (remove(json!(vec!["t"; 65])), "payload/tags"),
            (remove(json!([""])), "payload/tags"),
            (
                json!({"operation_type": "PlaybackUpdate", "payload": {"content_id": "c", "position_ms": u64::MAX}}),
                "payload/position_ms",
            ),
            (
                json!({"operation_type": "CounterUpdate", "payload": {"content_id": "c", "count": u64::MAX}}),
                "payload/count",
            ),
            (
                json!({"operation_type": "Nothing", "payload": {}, "operation_id": ""}),
                "operation_id",
            ),
            (json!({"operation_type": "Nothing", "payload": {}, "sequence": 0}), "sequence"),
        ] {
            assert_eq!(parsed(change.clone()).unwrap().check().unwrap_err().0, field, "{change}");
        }
        for change in [
            json!({"operation_type": "Fly", "payload": {}}),
            json!({"operation_type": "WatchlistAdd", "payload": {"content_id": "c"}}),
            json!({"operation_type": "PlaybackUpdate", "payload": {"content_id": "c", "position_ms": -1}}),
            json!({}),
        ] {
            assert!(parsed(change.clone()).is_err(), "{change}");
        }
    }
}
