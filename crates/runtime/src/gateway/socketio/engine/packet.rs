//! Packets of Engine.IO (protocol 4) as text: `<type>[<data>]`. The body of a request may hold several, separated by
//! `\x1e`.

/// A packet from a client.
#[derive(Debug, PartialEq)]
pub enum EnginePacket {
    Close,
    /// A client that is about to upgrade sends the data `probe`.
    Ping(String),
    Pong,
    Message(String),
    /// A binary message without its bytes: Socket.IO's binary packets are refused.
    Binary,
    Upgrade,
    Noop,
}

/// Separator between the packets of a payload.
pub const SEPARATOR: char = '\u{1e}';

pub const PING: &str = "2";
pub const PROBED: &str = "3probe";
pub const CLOSE: &str = "1";
pub const NOOP: &str = "6";

/// Parses a packet. `None`: it is not a packet, or not one that clients send.
pub fn parse(text: &str) -> Option<EnginePacket> {
    let (kind, data) = (text.get(..1)?, text.get(1..)?);
    let empty = |packet| data.is_empty().then_some(packet);
    match kind {
        "1" => empty(EnginePacket::Close),
        "2" => Some(EnginePacket::Ping(data.to_owned())),
        "3" => Some(EnginePacket::Pong),
        "4" => Some(EnginePacket::Message(data.to_owned())),
        "5" => empty(EnginePacket::Upgrade),
        "6" => empty(EnginePacket::Noop),
        _ => None,
    }
}

/// The remaining packets of a request's body. Each stays text until its turn.
#[derive(Default)]
pub struct Payload {
    text: String,
    /// Start of the next packet; `None`: nothing is left.
    at: Option<usize>,
}

impl Payload {
    /// Checks and keeps a body. `None`: a part of it is not a packet.
    pub fn read(text: String) -> Option<Self> {
        let good = text.split(SEPARATOR).all(|packet| one(packet).is_some());
        good.then_some(Self { text, at: Some(0) })
    }

    /// Appends these packets to the remaining ones.
    pub fn append(&mut self, later: Self) {
        match self.at {
            None => *self = later,
            Some(_) => {
                self.text.push(SEPARATOR);
                self.text.push_str(&later.text);
            }
        }
    }
}

impl Iterator for Payload {
    type Item = EnginePacket;

    fn next(&mut self) -> Option<EnginePacket> {
        let left = &self.text[self.at?..];
        let (packet, after) = match left.split_once(SEPARATOR) {
            Some((packet, after)) => (one(packet), Some(self.text.len() - after.len())),
            None => (one(left), None),
        };
        self.at = after;
        if after.is_none() {
            self.text = String::new();
        }
        packet
    }
}

fn one(text: &str) -> Option<EnginePacket> {
    if text.starts_with('b') { Some(EnginePacket::Binary) } else { parse(text) }
}

pub fn message(text: &str) -> String {
    format!("4{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read() {
        let message = |text: &str| EnginePacket::Message(text.into());
        for (text, expected) in [
            ("1", Some(EnginePacket::Close)),
            ("2probe", Some(EnginePacket::Ping("probe".into()))),
            ("3", Some(EnginePacket::Pong)),
            ("4", Some(message(""))),
            ("4häuser", Some(message("häuser"))),
            ("5", Some(EnginePacket::Upgrade)),
            ("6", Some(EnginePacket::Noop)),
            ("6x", None),
            ("0{}", None),
            ("7", None),
            ("abc", None),
            ("é", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn a_payload_is_packets_one_after_the_other() {
        let read = |text: &str| Payload::read(text.into());
        let message = |text: &str| EnginePacket::Message(text.into());
        let mut payload = read("4a\u{1e}bAQIDBA==\u{1e}3").unwrap();
        assert_eq!(payload.next(), Some(message("a")));
        payload.append(read("4b").unwrap());
        let left: Vec<_> = payload.by_ref().collect();
        assert_eq!(left, [EnginePacket::Binary, EnginePacket::Pong, message("b")]);
        payload.append(read("4c").unwrap());
        assert_eq!((payload.next(), payload.next()), (Some(message("c")), None));
        for bad in ["", "4a\u{1e}", "\u{1e}4a", "4a\u{1e}x"] {
            assert!(read(bad).is_none(), "{bad:?}");
        }
    }
}
