//! Socket.IO packets (protocol revision 5) as text: `<type>[<namespace>,][<ack id>][<JSON>]`.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::contract::problem::{Outcome, Problem};
use crate::gateway::json;
use crate::gateway::ws::protocol::is_id;

/// A packet from a client.
#[derive(Debug, PartialEq)]
pub enum Packet {
    Connect {
        auth: Value,
    },
    /// Namespaces other than `/` do not exist.
    ConnectElsewhere {
        namespace: String,
    },
    Disconnect,
    Event {
        name: String,
        /// The first argument.
        data: Value,
        ack: Option<u64>,
    },
    /// An event that is valid in Socket.IO, but with data that we refuse: half a surrogate pair, `1e999`, or nesting
    /// that is too deep.
    Unreadable {
        ack: Option<u64>,
        why: String,
    },
    /// An event with this many attachments, which follow as separate packets.
    Binary {
        attachments: u16,
        ack: Option<u64>,
    },
}

/// Parses a packet. `None`: it is not a packet, or its JSON is not valid.
pub fn parse(text: &str) -> Option<Packet> {
    let (kind, rest) = (text.get(..1)?, text.get(1..)?);
    let (attachments, rest) = match kind {
        "5" => {
            let (count, rest) = rest.split_once('-')?;
            (count.parse().ok()?, rest)
        }
        _ => (0, rest),
    };
    let (namespace, rest) = match rest.strip_prefix('/') {
        Some(named) => named.split_once(',').unwrap_or((named, "")),
        None => ("", rest),
    };
    let namespace = namespace.split('?').next().unwrap_or_default();
    if kind == "0" && !namespace.is_empty() {
        let namespace = namespace.chars().take(64).collect();
        return Some(Packet::ConnectElsewhere { namespace });
    }
    if !namespace.is_empty() {
        return None;
    }
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (ack, json) = rest.split_at(digits);
    let ack = if ack.is_empty() { None } else { Some(ack.parse().ok()?) };
    match kind {
        "0" if json.is_empty() => Some(Packet::Connect { auth: Value::Null }),
        "0" => match serde_json::from_str(json).ok()? {
            auth @ (Value::Object(_) | Value::Null) => Some(Packet::Connect { auth }),
            _ => None,
        },
        "1" => Some(Packet::Disconnect),
        "2" => event_of(json, ack),
        "5" => {
            name_of(json)?;
            Some(Packet::Binary { attachments, ack })
        }
        // That includes acknowledgements: we never ask for one.
        _ => None,
    }
}

fn event_of(text: &str, ack: Option<u64>) -> Option<Packet> {
    match json::read(text.as_bytes()) {
        Ok(Value::Array(mut arguments)) => {
            let Value::String(name) = arguments.first_mut()?.take() else { return None };
            let data = arguments.get_mut(1).map_or(Value::Null, Value::take);
            Some(Packet::Event { name, data, ack })
        }
        Ok(_) => None,
        Err(error) => {
            name_of(text)?;
            Some(Packet::Unreadable { ack, why: error.to_string() })
        }
    }
}

/// The name of an event, whatever its data may be.
fn name_of(json: &str) -> Option<String> {
    let arguments: Vec<&RawValue> = serde_json::from_str(json).ok()?;
    serde_json::from_str(arguments.first()?.get()).ok()
}

pub fn connected(sid: &str) -> String {
    format!("0{}", json!({"sid": sid}))
}

pub fn refused(namespace: &str, message: &str, data: &Value) -> String {
    let prefix = if namespace.is_empty() { String::new() } else { format!("/{namespace},") };
    let mut error = json!({"message": message});
    if !data.is_null() {
        error["data"] = data.clone();
    }
    format!("4{prefix}{error}")
}

pub const DISCONNECT: &str = "1";

/// `arguments` are JSON texts.
pub fn event(name: &str, arguments: &[&str]) -> String {
    let mut text = format!("2[{}", Value::from(name));
    for argument in arguments {
        text.push(',');
        text.push_str(argument);
    }
    text.push(']');
    text
}

/// `argument` is a JSON text.
pub fn ack(id: u64, argument: &str) -> String {
    format!("3{id}[{argument}]")
}

/// A frame from the connection: a reply or an event.
#[derive(Deserialize)]
pub struct ServerFrame<'a> {
    #[serde(borrow)]
    pub id: Option<Cow<'a, str>>,
    #[serde(default)]
    pub ok: bool,
    #[serde(borrow)]
    pub event: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub topic: Option<&'a RawValue>,
    pub offset: Option<i64>,
    #[serde(borrow)]
    pub from: Option<&'a RawValue>,
    #[serde(borrow)]
    pub data: Option<&'a RawValue>,
    #[serde(borrow)]
    pub error: Option<&'a RawValue>,
}

impl ServerFrame<'_> {
    /// An event as a packet: its data first, as clients of Socket.IO expect it, then its topic and offset, for clients
    /// that resume.
    pub fn event_packet(&self, name: &str) -> String {
        let data = self.data.map_or("null", RawValue::get);
        let Some(topic) = self.topic else { return event(name, &[data]) };
        let mut place = format!("{{\"topic\":{}", topic.get());
        if let Some(offset) = self.offset {
            place.push_str(&format!(",\"offset\":{offset}"));
        }
        if let Some(from) = self.from {
            place.push_str(&format!(",\"from\":{}", from.get()));
        }
        place.push('}');
        event(name, &[data, &place])
    }

    /// A reply as the argument of an acknowledgement.
    pub fn outcome(&self) -> String {
        match (self.ok, self.data, self.error) {
            (true, data, _) => {
                format!("{{\"ok\":true,\"data\":{}}}", data.map_or("null", RawValue::get))
            }
            (false, _, error) => {
                format!("{{\"ok\":false,\"error\":{}}}", error.map_or("null", RawValue::get))
            }
        }
    }
}

/// An event as a frame, with the `id` from its data, or a `minted` one.
pub fn frame(
    name: &str,
    data: Value,
    minted: impl FnOnce() -> String,
) -> Outcome<(String, String)> {
    let (id, data) = match data {
        Value::Object(mut fields) => (fields.remove("id"), Value::Object(fields)),
        Value::Null => (None, Value::Object(Map::new())),
        other => (None, other),
    };
    let id = match id {
        None | Some(Value::Null) => minted(),
        Some(Value::String(id)) if is_id(&id) => id,
        Some(_) => return Err(Problem::field("/id", "must have 1 to 64 visible ASCII characters")),
    };
    let text = json!({"id": id, "event": name, "data": data}).to_string();
    Ok((id, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read() {
        let event = |data: Value, ack| Packet::Event { name: "chat:message".into(), data, ack };
        for (text, expected) in [
            ("0", Some(Packet::Connect { auth: Value::Null })),
            (r#"0{"token":"t"}"#, Some(Packet::Connect { auth: json!({"token": "t"}) })),
            (r#"0/,{"token":"t"}"#, Some(Packet::Connect { auth: json!({"token": "t"}) })),
            ("0/admin,", Some(Packet::ConnectElsewhere { namespace: "admin".into() })),
            ("0/admin?x=1,{}", Some(Packet::ConnectElsewhere { namespace: "admin".into() })),
            ("1", Some(Packet::Disconnect)),
            (r#"2["chat:message",{"a":1}]"#, Some(event(json!({"a": 1}), None))),
            (r#"212["chat:message"]"#, Some(event(Value::Null, Some(12)))),
            (r#"2["chat:message",[1],2]"#, Some(event(json!([1]), None))),
            ("31[]", None),
            ("2[]", None),
            ("2[7]", None),
            ("2{}", None),
            ("2/admin,[\"e\"]", None),
            (
                r#"52-7["e",{"_placeholder":true,"num":0}]"#,
                Some(Packet::Binary { attachments: 2, ack: Some(7) }),
            ),
            ("5-[\"e\"]", None),
            ("51-/admin,[\"e\"]", None),
            ("51-{}", None),
            ("61-1[]", None),
            ("0[]", None),
            (r#"299999999999999999999999["e"]"#, None),
            ("", None),
            ("é", None),
            ("9", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        let deep = format!("[\"e\",{}{}]", "[".repeat(500), "]".repeat(500));
        for json in [r#"["e",{"x":"\ud800"}]"#, r#"["e",1e999]"#, &deep] {
            let packet = parse(&format!("23{json}"));
            assert!(matches!(packet, Some(Packet::Unreadable { ack: Some(3), .. })), "{json}");
        }
    }

    #[test]
    fn a_refusal_has_data_where_there_is_some() {
        assert_eq!(
            refused("a", "Invalid namespace", &json!(null)),
            r#"4/a,{"message":"Invalid namespace"}"#
        );
        assert_eq!(refused("", "no", &json!({})), r#"4{"message":"no","data":{}}"#);
    }

    #[test]
    fn what_a_connection_sends_becomes_packets() {
        let sent = |text: &'static str| serde_json::from_str::<ServerFrame<'_>>(text).unwrap();
        let durable = sent(r#"{"event":"e\"","topic":"user:a","offset":3,"data":{"x":[1]}}"#);
        let name = durable.event.clone().unwrap();
        let expected = r#"2["e\"",{"x":[1]},{"topic":"user:a","offset":3}]"#;
        assert_eq!(durable.event_packet(&name), expected);
        let lossy = sent(r#"{"event":"app:e","topic":"app:t","from":"bob","data":null}"#);
        assert_eq!(
            lossy.event_packet("app:e"),
            r#"2["app:e",null,{"topic":"app:t","from":"bob"}]"#
        );
        let own = sent(r#"{"event":"token:expiring","data":{}}"#);
        assert_eq!(own.event_packet("token:expiring"), r#"2["token:expiring",{}]"#);
        assert_eq!(sent(r#"{"id":"1","ok":true,"data":{}}"#).outcome(), r#"{"ok":true,"data":{}}"#);
        let refused = sent(r#"{"id":"1","ok":false,"error":{"code":"forbidden"}}"#);
        assert_eq!(refused.outcome(), r#"{"ok":false,"error":{"code":"forbidden"}}"#);
    }

    #[test]
    fn the_id_of_a_frame_may_be_in_its_data() {
        for (data, id, rest) in [
            (json!({"id": "mine", "x": 1}), "mine", json!({"x": 1})),
            (json!({"id": null}), "new", json!({})),
            (json!(null), "new", json!({})),
            (json!([1]), "new", json!([1])),
        ] {
            let (named, text) = frame("e", data, || "new".into()).unwrap();
            assert_eq!(named, id);
            let text: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(text, json!({"id": id, "event": "e", "data": rest}));
        }
        for bad in [json!(7), json!(""), json!("a b"), json!("x".repeat(65)), json!({})] {
            assert!(frame("e", json!({"id": bad}), || "new".into()).is_err());
        }
    }
}
