//! The protocol `proxie.v1`: frames, close codes, limits.
//!
//! Frames are text, one JSON object each. A client frame is `{"id","event","data"?}` and gets exactly one reply,
//! `{"id","ok":true,"data"}` or `{"id","ok":false,"error"}`. Frames that the server sends unasked have no `id`:
//! `{"event","topic"?,"offset"?,"from"?,"data"}`. Receivers ignore unknown fields.
//!
//! A frame that cannot be answered (not JSON, not an object, no `id`) ends the connection with 3500: its sender would
//! wait for a reply for ever. Every other bad frame is answered with `ok:false`, and the connection goes on.

use std::time::Duration;

use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::contract::problem::{Outcome, Problem};
pub use crate::contract::topic::{Position, split_topic};
use crate::gateway::json::{Strict, field_of};

pub const SUBPROTOCOL: &str = "proxie.v1";

/// The limits of connections. The defaults are the contract's minima.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectionLimits {
    pub max_frame_bytes: usize,
    pub frames_per_s: u32,
    pub frame_burst: u32,
    pub max_subscriptions: usize,
    pub max_connections_per_user: usize,
    /// Frames per minute over all of a user's connections.
    pub frames_per_minute_per_user: u32,
    /// Commands per minute that are journaled, over all of a user's connections.
    pub commands_per_minute_per_user: u32,
    /// Unanswered commands of one connection.
    pub max_in_flight: usize,
    /// Bytes that may wait for a slow client.
    pub send_buffer_bytes: usize,
    pub auth_timeout_ms: u64,
    /// How long a session of Socket.IO may be in no namespace.
    pub connect_timeout_ms: u64,
    pub ping_ms: u64,
    /// Time limit for any sign of life after a ping.
    pub pong_timeout_ms: u64,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            max_frame_bytes: 65_536,
            frames_per_s: 100,
            frame_burst: 500,
            max_subscriptions: 512,
            max_connections_per_user: 64,
            frames_per_minute_per_user: 500_000,
            commands_per_minute_per_user: 6_000,
            max_in_flight: 64,
            send_buffer_bytes: 1_048_576,
            auth_timeout_ms: 10_000,
            connect_timeout_ms: 45_000,
            ping_ms: 25_000,
            pong_timeout_ms: 10_000,
        }
    }
}

impl ConnectionLimits {
    /// The `limits` in the reply to `auth`.
    pub fn shown(&self) -> Value {
        json!({
            "frame_bytes": self.max_frame_bytes,
            "frames_per_s": self.frames_per_s,
            "frame_burst": self.frame_burst,
            "subscriptions": self.max_subscriptions,
            "connections_per_user": self.max_connections_per_user,
            "frames_per_minute_per_user": self.frames_per_minute_per_user,
            "commands_per_minute_per_user": self.commands_per_minute_per_user,
            "in_flight": self.max_in_flight,
            "send_buffer_bytes": self.send_buffer_bytes,
        })
    }
}

/// Longest id that is still answered, even though it is too long to be valid.
const MAX_ANSWERED_ID: usize = 256;

/// A frame from a client.
#[derive(Debug)]
pub struct Frame {
    pub id: String,
    pub event: String,
    /// Always an object.
    pub data: Value,
}

#[derive(Debug)]
pub enum Parsed {
    Frame(Frame),
    /// The frame has an id of some kind, so it is answered.
    Refused {
        id: Value,
        problem: Problem,
    },
    /// The frame has no id that a reply could be matched by.
    Unanswerable(&'static str),
}

/// The fields of a frame before they are checked. A repeated field is an error.
#[derive(Default)]
struct Fields {
    id: Option<Value>,
    event: Option<Value>,
    data: Option<Value>,
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "lowercase")]
        enum Name {
            Id,
            Event,
            Data,
            #[serde(other)]
            Other,
        }

        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = map.next_key()? {
                    let field = match name {
                        Name::Id => &mut fields.id,
                        Name::Event => &mut fields.event,
                        Name::Data => &mut fields.data,
                        Name::Other => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    if field.replace(map.next_value_seed(Strict::FIELD)?).is_some() {
                        return Err(A::Error::custom("id, event or data appears twice"));
                    }
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// Whether this is a valid id of a frame.
pub fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
}

pub fn parse(text: &str) -> Parsed {
    // A client can find any of these in a reply.
    let answerable = |id: &Value| match id {
        Value::String(id) => id.len() <= MAX_ANSWERED_ID,
        id => id.is_number(),
    };
    let none = Parsed::Unanswerable("not a JSON object with an id");
    let refused = |id: Value, problem: Problem| Parsed::Refused { id, problem };
    let fields = match serde_json::from_str::<Fields>(text) {
        Ok(fields) => fields,
        Err(error) => {
            return field_of(text, "id").filter(answerable).map_or(none, |id| {
                refused(id, Problem::bad_request(format!("the frame: {error}")))
            });
        }
    };
    let Some(id) = fields.id.filter(answerable) else { return none };
    if !id.as_str().is_some_and(is_id) {
        return refused(id, Problem::field("/id", "must have 1 to 64 visible ASCII characters"));
    }
    let event = match fields.event {
        Some(Value::String(event)) => event,
        _ => return refused(id, Problem::field("/event", "is required and must be a string")),
    };
    let data = match fields.data {
        None | Some(Value::Null) => json!({}),
        Some(data @ Value::Object(_)) => data,
        Some(_) => return refused(id, Problem::field("/data", "must be an object")),
    };
    match id {
        Value::String(id) => Parsed::Frame(Frame { id, event, data }),
        _ => none,
    }
}

/// The one reply to the frame with this id.
pub fn reply<T: Serialize>(id: &(impl Serialize + ?Sized), outcome: &Outcome<T>) -> Message {
    #[derive(Serialize)]
    struct Good<'a, I: ?Sized, T> {
        id: &'a I,
        ok: bool,
        data: &'a T,
    }
    match outcome {
        Ok(data) => {
            let text = serde_json::to_string(&Good { id, ok: true, data });
            Message::text(text.expect("a reply serialises"))
        }
        Err(problem) => refusal(id, problem),
    }
}

pub fn refusal(id: &(impl Serialize + ?Sized), problem: &Problem) -> Message {
    #[derive(Serialize)]
    struct Bad<'a, I: ?Sized> {
        id: &'a I,
        ok: bool,
        error: Value,
    }
    let text = serde_json::to_string(&Bad { id, ok: false, error: problem.ws_error() });
    Message::text(text.expect("a reply serialises"))
}

/// An event for this connection only.
pub fn event(event: &str, data: &Value) -> Message {
    Message::text(json!({"event": event, "data": data}).to_string())
}

/// The `position` in a frame's data, if there is one.
pub fn position(value: &Value) -> Outcome<Option<Position>> {
    if value.is_null() {
        return Ok(None);
    }
    Position::deserialize(value)
        .map(Some)
        .map_err(|error| Problem::field("/position", format!("must be {{epoch, offset}}: {error}")))
}

/// The reasons why the server closes a connection. Codes 3000–3499: reconnect. 3500–3999: do not reconnect unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    Draining,
    /// Declared dead by other nodes.
    Evicted,
    AuthTimeout,
    HeartbeatTimeout,
    SlowConsumer,
    /// Publications that the client missed are no longer kept. It learns this when it resumes.
    HistoryLost,
    TooManyFrames,
    TooManyConnections,
    BadFrame,
    Unauthenticated,
    Revoked,
    TokenExpired,
    FrameTooLarge,
    /// RFC 6455.
    ProtocolError,
    NotUtf8,
}

impl Close {
    pub fn code(self) -> u16 {
        match self {
            Self::Draining => 3000,
            Self::Evicted => 3001,
            Self::AuthTimeout | Self::HeartbeatTimeout => 3002,
            Self::SlowConsumer | Self::HistoryLost => 3008,
            Self::TooManyFrames | Self::TooManyConnections => 3009,
            Self::BadFrame => 3500,
            Self::Unauthenticated | Self::Revoked => 3501,
            Self::TokenExpired => 3502,
            Self::FrameTooLarge => 3504,
            Self::ProtocolError => 1002,
            Self::NotUtf8 => 1007,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Evicted => "evicted",
            Self::AuthTimeout => "authentication_timeout",
            Self::HeartbeatTimeout => "heartbeat_timeout",
            Self::SlowConsumer => "slow_consumer",
            Self::HistoryLost => "history_lost",
            Self::TooManyFrames => "too_many_frames",
            Self::TooManyConnections => "too_many_connections",
            Self::BadFrame => "bad_request",
            Self::Unauthenticated => "unauthenticated",
            Self::Revoked => "revoked",
            Self::TokenExpired => "token_expired",
            Self::FrameTooLarge => "too_large",
            Self::ProtocolError => "protocol_error",
            Self::NotUtf8 => "not_utf8",
        }
    }

    /// The close reason for the client. `spread` is the time over which clients that leave together are to reconnect.
    pub fn reason(self, spread: Duration) -> Value {
        let spread = spread.as_millis() as u64;
        let retry_after_ms = match self {
            Self::Draining | Self::Evicted => Some(rand::random_range(0..=spread.max(500))),
            Self::SlowConsumer | Self::HistoryLost | Self::TooManyFrames => Some(1_000),
            Self::TooManyConnections => Some(5_000),
            Self::AuthTimeout | Self::HeartbeatTimeout => Some(500),
            _ => None,
        };
        let mut reason = json!({"code": self.word()});
        if let Some(ms) = retry_after_ms {
            reason["retry_after_ms"] = json!(ms);
        }
        reason
    }

    pub fn frame(self, spread: Duration) -> CloseFrame {
        CloseFrame { code: self.code().into(), reason: self.reason(spread).to_string().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_answerable_or_not() {
        #[derive(Debug, PartialEq)]
        enum Is {
            Good,
            Refused,
            Unanswerable,
        }
        let nested = |depth: usize| {
            let (open, close) = (r#"{"a":"#.repeat(depth), "}".repeat(depth));
            format!(r#"{{"id":"1","event":"ping","data":{open}1{close}}}"#)
        };
        for (text, expected) in [
            (r#"{"id":"1","event":"ping"}"#, Is::Good),
            (r#"{"id":"1","event":"ping","data":null,"more":1}"#, Is::Good),
            (r#"{"id":"1","event":"ping","data":[]}"#, Is::Refused),
            (r#"{"id":"1","event":7}"#, Is::Refused),
            (r#"{"id":"1"}"#, Is::Refused),
            (r#"{"id":"1","event":"e","data":{"a":"\u0000"}}"#, Is::Refused),
            (r#"{"event":"ping"}"#, Is::Unanswerable),
            (r#"{"id":null,"event":"ping"}"#, Is::Unanswerable),
            (r#"{"id":["1"],"event":"ping"}"#, Is::Unanswerable),
            (r#"{"id":"2","id":"1","event":"ping"}"#, Is::Refused),
            (r#"{"id":"1","event":"ping","data":{"a":1,"a":1}}"#, Is::Refused),
            (r#"{"id":"1","event":"ping","data":{"a":"\ud800"}}"#, Is::Refused),
            (r#"{"\ud800":1,"id":"1","event":"ping"}"#, Is::Refused),
            (r#"{"id":"1","event":"ping","data":{"a":1e999}}"#, Is::Refused),
            (r#"{"id":"1","event":"ping","data":{"a":-123456789012345678901234567890}}"#, Is::Good),
            (r#"{"id":"1","event":"ping","more":[1e999,"\ud800"]}"#, Is::Good),
            (&nested(63), Is::Good),
            (&nested(64), Is::Refused),
            (&nested(30_000), Is::Refused),
            (r#"{"id":"\ud800","event":"ping"}"#, Is::Unanswerable),
            (r#"{"id":"1","event":"ping","data":{"a":01}}"#, Is::Unanswerable),
            (r#"{"id":"1","event":"ping"}}"#, Is::Unanswerable),
            (r#"["1","ping",{}]"#, Is::Unanswerable),
            ("[]", Is::Unanswerable),
            ("{", Is::Unanswerable),
            ("", Is::Unanswerable),
        ] {
            let is = match parse(text) {
                Parsed::Frame(frame) => {
                    assert!(frame.data.is_object());
                    Is::Good
                }
                Parsed::Refused { id, .. } => {
                    assert_eq!(id, "1");
                    Is::Refused
                }
                Parsed::Unanswerable(_) => Is::Unanswerable,
            };
            assert_eq!(is, expected, "{text}");
        }
    }

    #[test]
    fn an_id_that_is_none_of_ours_is_answered_under_it() {
        let long = "x".repeat(65);
        for id in [json!(1), json!(-1.5), json!(""), json!("a b"), json!("é"), json!(long)] {
            let text = json!({"id": id, "event": "ping"}).to_string();
            let Parsed::Refused { id: answered, problem } = parse(&text) else { panic!("{text}") };
            assert_eq!((&answered, problem.errors[0].pointer.as_str()), (&id, "/id"));
            let reply = refusal(&answered, &problem).to_string();
            assert_eq!(serde_json::from_str::<Value>(&reply).unwrap()["id"], id, "{reply}");
        }
        let endless = json!({"id": "x".repeat(5_000), "event": "ping"}).to_string();
        assert!(matches!(parse(&endless), Parsed::Unanswerable(_)));
    }

    #[test]
    fn topics_have_a_kind_and_a_key() {
        assert_eq!(split_topic("session:ses_1").unwrap(), ("session", "ses_1"));
        assert_eq!(split_topic("app:room:7").unwrap(), ("app", "room:7"));
        for bad in [
            "",
            "session",
            "session:",
            "session:a b",
            "user:a:b",
            &format!("app:{}", "x".repeat(300)),
        ] {
            assert!(split_topic(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn close_reasons_fit_a_control_frame() {
        for close in [Close::AuthTimeout, Close::TooManyConnections, Close::Draining] {
            assert!(close.frame(Duration::from_secs(3_600)).reason.len() <= 123);
        }
    }

    #[test]
    fn positions_are_checked() {
        assert_eq!(position(&Value::Null).unwrap(), None);
        assert!(position(&json!({"epoch": "e", "offset": 2})).unwrap().is_some());
        assert!(position(&json!({"epoch": "e"})).is_err());
    }
}
