//! Packets of Engine.IO (protocol 4) as text: `<type>[<data>]`; in the body of a request several, between `\x1e`.

/// What a client sent.
#[derive(Debug, PartialEq)]
pub enum Packet {
    Close,
    /// A client that is about to upgrade says `probe`.
    Ping(String),
    Pong,
    Message(String),
    /// Its bytes are of no use here: Socket.IO's binary packets are refused.
    Binary,
    Upgrade,
    Noop,
}

/// Between the packets of a payload.
pub const SEPARATOR: char = '\u{1e}';

pub const PING: &str = "2";
pub const PROBED: &str = "3probe";
pub const CLOSE: &str = "1";
pub const NOOP: &str = "6";

/// `None`: it is no packet, or none that clients send.
pub fn parse(text: &str) -> Option<Packet> {
    let (kind, data) = (text.get(..1)?, text.get(1..)?);
    let empty = |packet| data.is_empty().then_some(packet);
    match kind {
        "1" => empty(Packet::Close),
        "2" => Some(Packet::Ping(data.to_owned())),
        "3" => Some(Packet::Pong),
        "4" => Some(Packet::Message(data.to_owned())),
        "5" => empty(Packet::Upgrade),
        "6" => empty(Packet::Noop),
        _ => None,
    }
}

/// The packets of a request's body.
pub fn payload(text: &str) -> Option<Vec<Packet>> {
    let one = |text: &str| if text.starts_with('b') { Some(Packet::Binary) } else { parse(text) };
    text.split(SEPARATOR).map(one).collect()
}

pub fn message(text: &str) -> String {
    format!("4{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read() {
        let message = |text: &str| Packet::Message(text.into());
        for (text, expected) in [
            ("1", Some(Packet::Close)),
            ("2probe", Some(Packet::Ping("probe".into()))),
            ("3", Some(Packet::Pong)),
            ("4", Some(message(""))),
            ("4häuser", Some(message("häuser"))),
            ("5", Some(Packet::Upgrade)),
            ("6", Some(Packet::Noop)),
            ("6x", None),
            ("0{}", None),
            ("7", None),
            ("abc", None),
            ("é", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        assert_eq!(
            payload("4a\u{1e}bAQIDBA==\u{1e}3"),
            Some(vec![message("a"), Packet::Binary, Packet::Pong])
        );
        for bad in ["", "4a\u{1e}", "\u{1e}4a", "4a\u{1e}x"] {
            assert_eq!(payload(bad), None, "{bad:?}");
        }
    }
}
