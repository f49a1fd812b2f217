//! Translation between messages of `/sync/ws` and frames of `proxie.v1`.
//!
//! A device sends `Subscribe` and gets the operations that it missed or, if they are no longer kept, the whole state;
//! then live ones. Frames with an `event` are those of `/v1/ws`, including `auth`, and pass unchanged.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::gateway::json;

/// The output for one message or frame.
#[derive(Debug, Default, PartialEq)]
pub struct Follows {
    /// Messages to the device.
    pub messages: Vec<String>,
    /// Frames to the connection behind.
    pub frames: Vec<String>,
}

impl Follows {
    fn message(message: Value) -> Self {
        Self { messages: vec![message.to_string()], frames: Vec::new() }
    }

    fn frame(frame: String) -> Self {
        Self { messages: Vec::new(), frames: vec![frame] }
    }
}

#[derive(Debug)]
enum Purpose {
    Update { operation_ids: Vec<Value> },
    Heartbeat,
    Command,
    Step(Step),
}

/// The steps of a subscription, in order.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Standing,
    Commands,
    Connect,
    Resume,
    Forget,
    Read,
    Listen,
}

#[derive(Debug)]
struct Subscribing {
    user_id: String,
    device_id: String,
    /// The device's position, or the position at which the state was read.
    position: Option<Value>,
    sequence: Value,
    pages: usize,
}

#[derive(Debug)]
pub struct Talk {
    /// Prefix of our frames' ids, which must be unique like those of clients.
    prefix: String,
    sent: u64,
    pending: HashMap<String, Purpose>,
    device_id: Option<String>,
    subscribing: Option<Subscribing>,
}

/// A frame from the connection.
#[derive(Deserialize)]
struct Frame<'a> {
    id: Option<Value>,
    #[serde(default)]
    ok: bool,
    event: Option<String>,
    topic: Option<String>,
    offset: Option<i64>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    error: Option<Value>,
}

fn parsed(data: Option<&RawValue>) -> Value {
    data.and_then(|data| serde_json::from_str(data.get()).ok()).unwrap_or_default()
}

fn wrong(message: impl std::fmt::Display) -> Follows {
    Follows::message(
        json!({"type": "Error", "code": "bad_request", "message": message.to_string(), "retryable": false}),
    )
}

/// The `error` of a frame as a message.
fn refused(what: &str, mut error: Value) -> Value {
    error["type"] = json!("Error");
    error["in_reply_to"] = json!(what);
    error
}

fn topic_key(topic: Option<&str>) -> Option<&str> {
    topic.and_then(|topic| topic.split_once(':')).map(|(_, key)| key)
}

impl Talk {
    pub fn new(prefix: String) -> Self {
        Self { prefix, sent: 0, pending: HashMap::new(), device_id: None, subscribing: None }
    }

    fn ask(&mut self, event: &str, data: Value, purpose: Purpose) -> Follows {
        self.sent += 1;
        let id = format!("{}-{}", self.prefix, self.sent);
        let frame = json!({"id": id, "event": event, "data": data});
        self.pending.insert(id, purpose);
        Follows::frame(frame.to_string())
    }

    /// Handles a message from the device. Text that is not JSON is passed on, and the connection refuses it.
    pub fn said(&mut self, text: &str) -> Follows {
        let mut message = match json::read(text.as_bytes()) {
            Ok(message) => message,
            Err(error) => {
                return match json::field_of(text, "type") {
                    Some(Value::String(_)) => wrong(format!("the message: {error}")),
                    _ => Follows::frame(text.to_owned()),
                };
            }
        };
        let Some(kind) = message["type"].as_str().map(str::to_owned) else {
            return Follows::frame(text.to_owned());
        };
        match kind.as_str() {
            "Subscribe" => self.subscribe(&message),
            "StateUpdate" => {
                let Some(device_id) = self.speaks_for(&message) else {
                    return wrong("StateUpdate: subscribe first, or name a device_id");
                };
                let operations = message["operations"].take();
                let operation_ids = match &operations {
                    Value::Array(operations) => {
                        operations.iter().map(|o| o["operation_id"].clone()).collect()
                    }
                    _ => Vec::new(),
                };
                let data = json!({
                    "device_id": device_id, "operations": operations, "position": message["position"],
                });
                self.ask("sync:update", data, Purpose::Update { operation_ids })
            }
            "Heartbeat" => match (message["position"].is_null(), self.speaks_for(&message)) {
                (false, Some(device_id)) => {
                    let data = json!({"device_id": device_id, "position": message["position"]});
                    self.ask("sync:update", data, Purpose::Heartbeat)
                }
                _ => self.ask("ping", json!({}), Purpose::Heartbeat),
            },
            "DeviceCommand" => {
                let from = self.device_id.clone();
                if let (Some(fields), Some(from)) = (message.as_object_mut(), from) {
                    fields.entry("from_device_id").or_insert(json!(from));
                }
                self.ask("device:command", message, Purpose::Command)
            }
            other => {
                let shown: String = other.chars().take(64).collect();
                wrong(format!("{shown:?} is not a known message"))
            }
        }
    }

    fn speaks_for(&self, message: &Value) -> Option<String> {
        message["device_id"].as_str().map(str::to_owned).or_else(|| self.device_id.clone())
    }

    fn subscribe(&mut self, message: &Value) -> Follows {
        let (Some(user_id), Some(device_id)) =
            (message["user_id"].as_str(), message["device_id"].as_str())
        else {
            return wrong("Subscribe: user_id and device_id are required");
        };
        if self.subscribing.is_some() {
            return wrong("Subscribe: another subscription is under way");
        }
        self.subscribing = Some(Subscribing {
            user_id: user_id.to_owned(),
            device_id: device_id.to_owned(),
            position: message.get("position").filter(|position| !position.is_null()).cloned(),
            sequence: Value::Null,
            pages: 0,
        });
        let data = json!({"device_id": device_id, "user_id": user_id});
        self.ask("sync:device", data, Purpose::Step(Step::Standing))
    }

    /// Handles a frame from the connection.
    pub fn heard(&mut self, text: &str) -> Follows {
        let Ok(frame) = serde_json::from_str::<Frame<'_>>(text) else { return Follows::default() };
        match (&frame.id, &frame.event) {
            (Some(id), _) => match id.as_str().and_then(|id| self.pending.remove(id)) {
                Some(purpose) => self.answered(purpose, &frame),
                // The device sent this frame itself, in the protocol of `/v1/ws`.
                None => Follows { messages: vec![text.to_owned()], frames: Vec::new() },
            },
            (None, Some(event)) => {
                self.happened(event, &frame).map_or_else(Follows::default, Follows::message)
            }
            (None, None) => Follows::default(),
        }
    }

    fn happened(&self, event: &str, frame: &Frame<'_>) -> Option<Value> {
        let mut data = parsed(frame.data);
        Some(match event {
            "sync:delta" => {
                let device_id = data["device_id"].take();
                let mut operations = data["operations"].take();
                for operation in operations.as_array_mut().into_iter().flatten() {
                    operation["device_id"] = device_id.clone();
                }
                json!({
                    "type": "StateDelta", "operations": operations, "stable": data["stable"],
                    "offset": frame.offset,
                })
            }
            "device:changed" => json!({
                "type": "DeviceEvent", "device_id": data["device_id"], "event": data["change"],
                "device": data["device"],
            }),
            "device:command" => {
                let device_id = topic_key(frame.topic.as_deref());
                json!({
                    "type": "DeviceEvent", "device_id": device_id, "event": "command",
                    "command": data,
                })
            }
            "playback:start" => json!({
                "type": "DeviceEvent", "device_id": topic_key(frame.topic.as_deref()),
                "event": "start", "playback": data,
            }),
            "token:expiring" => json!({"type": "TokenExpiring", "expires_at": data["expires_at"]}),
            // Other events do not concern a device.
            _ => return None,
        })
    }

    fn answered(&mut self, purpose: Purpose, frame: &Frame<'_>) -> Follows {
        let error = || frame.error.clone().unwrap_or_default();
        let mut data = parsed(frame.data);
        match purpose {
            Purpose::Step(_) if !frame.ok => {
                self.subscribing = None;
                Follows::message(refused("Subscribe", error()))
            }
            Purpose::Step(step) => self.next(step, &mut data),
            Purpose::Update { operation_ids } if !frame.ok => {
                let mut error = refused("StateUpdate", error());
                error["operation_ids"] = json!(operation_ids);
                Follows::message(error)
            }
            Purpose::Update { operation_ids } => {
                data["type"] = json!("Acknowledge");
                data["operation_id"] = operation_ids.last().cloned().unwrap_or_default();
                data["operation_ids"] = json!(operation_ids);
                Follows::message(data)
            }
            Purpose::Heartbeat if frame.ok => Follows::message(
                json!({"type": "Heartbeat", "now": data["now"], "stable": data["stable"]}),
            ),
            Purpose::Heartbeat => Follows::message(refused("Heartbeat", error())),
            Purpose::Command if frame.ok => Follows::message(
                json!({"type": "Acknowledge", "command_id": data["command_id"], "expires_at": data["expires_at"]}),
            ),
            Purpose::Command => Follows::message(refused("DeviceCommand", error())),
        }
    }

    /// Continues a subscription after a step.
    fn next(&mut self, step: Step, data: &mut Value) -> Follows {
        let Some(mut subscribing) = self.subscribing.take() else { return Follows::default() };
        let device_id = json!(subscribing.device_id);
        let topic = format!("sync:{}", subscribing.user_id);
        let mut before = Vec::new();
        let (event, asked, step) = match step {
            Step::Standing => {
                subscribing.sequence = data["sequence"].take();
                if data["must_resync"] == true {
                    subscribing.position = None;
                }
                // The device listens before others see it connected.
                let topic = format!("device:{}", subscribing.device_id);
                ("topic:subscribe", json!({"topic": topic}), Step::Commands)
            }
            Step::Commands => {
                self.device_id = Some(subscribing.device_id.clone());
                ("device:connect", json!({"device_id": device_id}), Step::Connect)
            }
            Step::Connect => match &subscribing.position {
                Some(position) => {
                    let asked = json!({"topic": topic, "position": position});
                    ("topic:subscribe", asked, Step::Resume)
                }
                None => ("sync:read", json!({}), Step::Read),
            },
            // Too much has happened since: start over from the whole state.
            Step::Resume | Step::Listen if data["recovered"] != true => {
                (subscribing.position, subscribing.pages) = (None, 0);
                ("topic:unsubscribe", json!({"topic": topic}), Step::Forget)
            }
            Step::Forget => ("sync:read", json!({}), Step::Read),
            Step::Read => {
                let position = data["position"].take();
                let position = subscribing.position.get_or_insert(position).clone();
                subscribing.pages += 1;
                let more = !data["next"].is_null();
                before.push(
                    json!({
                        "type": "StateDelta", "reset": subscribing.pages == 1, "more": more,
                        "operations": data["operations"].take(), "stable": data["stable"],
                        "position": position,
                    })
                    .to_string(),
                );
                if more {
                    ("sync:read", json!({"after": data["next"].take()}), Step::Read)
                } else {
                    let asked = json!({"topic": topic, "position": position});
                    ("topic:subscribe", asked, Step::Listen)
                }
            }
            Step::Resume | Step::Listen => {
                return Follows::message(json!({
                    "type": "Subscribed", "device_id": device_id, "user_id": subscribing.user_id,
                    "recovered": subscribing.pages == 0, "position": data["position"],
                    "sequence": subscribing.sequence,
                }));
            }
        };
        self.subscribing = Some(subscribing);
        let mut follows = self.ask(event, asked, Purpose::Step(step));
        follows.messages = before;
        follows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk() -> Talk {
        Talk::new("syn_1".into())
    }

    fn only(texts: &[String]) -> Value {
        let [text] = texts else { panic!("{texts:?}") };
        serde_json::from_str(text).unwrap()
    }

    /// The connection answers the frame that was just asked.
    fn answer(talk: &mut Talk, follows: &Follows, event: &str, data: Value) -> Follows {
        let frame = only(&follows.frames);
        assert_eq!(frame["event"], event, "{frame}");
        talk.heard(&json!({"id": frame["id"], "ok": true, "data": data}).to_string())
    }

    fn subscribe(position: Value) -> String {
        json!({"type": "Subscribe", "user_id": "alice", "device_id": "dev_1", "position": position})
            .to_string()
    }

    fn until_it_speaks(talk: &mut Talk, position: Value) -> Follows {
        let follows = talk.said(&subscribe(position));
        let follows =
            answer(talk, &follows, "sync:device", json!({"sequence": 7, "must_resync": false}));
        let follows = answer(talk, &follows, "topic:subscribe", json!({"recovered": true}));
        answer(talk, &follows, "device:connect", json!({}))
    }

    #[test]
    fn who_knows_where_it_was_goes_on_there() {
        let mut talk = talk();
        let position = json!({"epoch": "e", "offset": 3});
        let follows = until_it_speaks(&mut talk, position.clone());
        let asked = only(&follows.frames);
        assert_eq!(asked["data"], json!({"topic": "sync:alice", "position": position}));
        let follows = answer(
            &mut talk,
            &follows,
            "topic:subscribe",
            json!({"recovered": true, "position": position}),
        );
        let told = only(&follows.messages);
        assert_eq!(
            (&told["type"], &told["recovered"], &told["sequence"]),
            (&json!("Subscribed"), &json!(true), &json!(7))
        );
    }

    #[test]
    fn a_newcomer_and_one_who_was_away_too_long_read_everything() {
        for position in [Value::Null, json!({"epoch": "e", "offset": 3})] {
            let mut talk = talk();
            let mut follows = until_it_speaks(&mut talk, position.clone());
            if !position.is_null() {
                follows =
                    answer(&mut talk, &follows, "topic:subscribe", json!({"recovered": false}));
                follows = answer(&mut talk, &follows, "topic:unsubscribe", json!({}));
            }
            let page = |offset: i64, next: Value| json!({"operations": [1], "position": {"offset": offset}, "next": next, "stable": 0});
            let follows = answer(&mut talk, &follows, "sync:read", page(8, json!("c1")));
            let told = only(&follows.messages);
            assert_eq!((&told["reset"], &told["more"]), (&json!(true), &json!(true)));
            assert_eq!(only(&follows.frames)["data"]["after"], "c1");
            let follows = answer(&mut talk, &follows, "sync:read", page(9, Value::Null));
            let told = only(&follows.messages);
            assert_eq!((&told["reset"], &told["more"]), (&json!(false), &json!(false)));
            // The position is that of the first page.
            assert_eq!(only(&follows.frames)["data"]["position"]["offset"], 8);
            let follows =
                answer(&mut talk, &follows, "topic:subscribe", json!({"recovered": true}));
            assert_eq!(only(&follows.messages)["recovered"], false);
        }
    }

    #[test]
    fn one_that_was_not_waited_for_reads_everything_whatever_it_knows() {
        let mut talk = talk();
        let follows = talk.said(&subscribe(json!({"epoch": "e", "offset": 3})));
        let standing = json!({"sequence": 7, "must_resync": true});
        let follows = answer(&mut talk, &follows, "sync:device", standing);
        let follows = answer(&mut talk, &follows, "topic:subscribe", json!({"recovered": true}));
        let follows = answer(&mut talk, &follows, "device:connect", json!({}));
        assert_eq!(only(&follows.frames)["event"], "sync:read");
    }

    #[test]
    fn updates_are_acknowledged_by_their_names() {
        let mut talk = talk();
        until_it_speaks(&mut talk, json!({"epoch": "e", "offset": 3}));
        let update = json!({"type": "StateUpdate", "operations": [{"operation_id": "a"}, {"operation_id": "b"}]});
        let follows = talk.said(&update.to_string());
        assert_eq!(only(&follows.frames)["data"]["device_id"], "dev_1");
        let told = answer(&mut talk, &follows, "sync:update", json!({"sequence": 9}));
        let told = only(&told.messages);
        assert_eq!(
            (&told["type"], &told["operation_id"], &told["sequence"]),
            (&json!("Acknowledge"), &json!("b"), &json!(9))
        );
        let follows = talk.said(&update.to_string());
        let id = only(&follows.frames)["id"].clone();
        let error = json!({"code": "unavailable", "message": "m", "retryable": true});
        let told = talk.heard(&json!({"id": id, "ok": false, "error": error}).to_string());
        let told = only(&told.messages);
        assert_eq!(
            (&told["type"], &told["in_reply_to"], &told["code"]),
            (&json!("Error"), &json!("StateUpdate"), &json!("unavailable"))
        );
        assert!(talk.pending.values().all(|purpose| matches!(purpose, Purpose::Step(_))));
    }

    #[test]
    fn events_become_messages() {
        let mut talk = talk();
        let delta = json!({"event": "sync:delta", "topic": "sync:alice", "offset": 4,
            "data": {"device_id": "dev_2", "operations": [{"sequence": 1}], "stable": 2}});
        let told = only(&talk.heard(&delta.to_string()).messages);
        assert_eq!(
            told,
            json!({"type": "StateDelta", "offset": 4, "stable": 2,
            "operations": [{"sequence": 1, "device_id": "dev_2"}]})
        );
        let changed = json!({"event": "device:changed", "topic": "user:alice", "offset": 1,
            "data": {"device_id": "dev_2", "change": "online", "device": {}}});
        assert_eq!(only(&talk.heard(&changed.to_string()).messages)["event"], "online");
        let command = json!({"event": "device:command", "topic": "device:dev_1", "offset": 1, "data": {"action": "pause"}});
        let told = only(&talk.heard(&command.to_string()).messages);
        assert_eq!((&told["event"], &told["device_id"]), (&json!("command"), &json!("dev_1")));
        let start = json!({"event": "playback:start", "topic": "device:dev_1", "offset": 2, "data": {"deep_link": "x"}});
        let told = only(&talk.heard(&start.to_string()).messages);
        assert_eq!(
            (&told["event"], &told["playback"]["deep_link"]),
            (&json!("start"), &json!("x"))
        );
        let offer = json!({"event": "offer:new", "topic": "user:alice", "offset": 1, "data": {}});
        assert_eq!(talk.heard(&offer.to_string()), Follows::default());
    }

    #[test]
    fn the_other_protocol_passes() {
        let mut talk = talk();
        for text in [r#"{"id":"1","event":"auth","data":{}}"#, "not json"] {
            assert_eq!(talk.said(text), Follows::frame(text.into()));
        }
        let reply = r#"{"id":"1","ok":true,"data":{}}"#;
        assert_eq!(talk.heard(reply).messages, [reply]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut talk = talk();
        for text in [
            r#"{"type":"Fly"}"#,
            r#"{"type":"Subscribe"}"#,
            r#"{"type":"StateUpdate","operations":[]}"#,
        ] {
            let told = only(&talk.said(text).messages);
            assert_eq!(
                (&told["type"], &told["code"]),
                (&json!("Error"), &json!("bad_request")),
                "{text}"
            );
        }
        talk.said(&subscribe(Value::Null));
        assert_eq!(only(&talk.said(&subscribe(Value::Null)).messages)["type"], "Error");
    }
}
