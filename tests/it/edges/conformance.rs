//! RFC 6455 byte by byte, in the order of the Autobahn test suite's chapters; and frames that nobody would send.

use std::time::Duration;

use proxie::kernel::entity::Role;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{PATIENCE, TestNode};
use crate::support::eventually;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;
const FIN: u8 = 0x80;

/// A masked frame, with whatever is wrong about it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = vec![first];
    match payload.len() {
        short @ 0..=125 => bytes.push(0x80 | short as u8),
        medium @ 126..=65_535 => {
            bytes.push(0x80 | 126);
            bytes.extend((medium as u16).to_be_bytes());
        }
        long => {
            bytes.push(0x80 | 127);
            bytes.extend((long as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A socket without any library's opinion.
struct Raw(TcpStream);

impl Raw {
    async fn open(node: &TestNode, token: &str) -> Self {
        Self::open_at(node, "/v1/ws", &format!("authorization: Bearer {token}\r\n")).await
    }

    async fn open_at(node: &TestNode, path: &str, header: &str) -> Self {
        let mut raw = Self(TcpStream::connect(node.node.address).await.unwrap());
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n{header}\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        raw.0.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(raw.0.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        raw
    }

    async fn send(&mut self, bytes: &[u8]) {
        // The node may have closed already; what it said is still to be read.
        let _ = self.0.write_all(bytes).await;
    }

    /// `None` at the end of the stream.
    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let read = async {
            let first = self.0.read_u8().await.ok()?;
            let length = match self.0.read_u8().await.ok()? {
                126 => self.0.read_u16().await.ok()? as usize,
                127 => self.0.read_u64().await.ok()? as usize,
                // Servers do not mask.
                short => usize::from(short),
            };
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).await.ok()?;
            Some((first, payload))
        };
        tokio::time::timeout(PATIENCE, read).await.expect("an answer or the end")
    }

    /// The next that is neither an event nor a ping of the node's.
    async fn answer(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            match self.next().await? {
                (first, _) if first == FIN | PING => {}
                (first, payload) if first == FIN | TEXT => {
                    let value: Value = serde_json::from_slice(&payload).unwrap();
                    if value["id"].is_string() {
                        return Some((first, payload));
                    }
                }
                other => return Some(other),
            }
        }
    }

    async fn closed(&mut self) -> Option<u16> {
        while let Some((first, payload)) = self.answer().await {
            if first == FIN | CLOSE {
                assert!(payload.len() <= 125);
                return Some(match payload.as_slice() {
                    [] => 1005,
                    [high, low, reason @ ..] => {
                        std::str::from_utf8(reason).unwrap();
                        u16::from_be_bytes([*high, *low])
                    }
                    [_] => panic!("half a code"),
                });
            }
        }
        None
    }
}

fn ping(id: &str, pad: usize) -> String {
    let empty = json!({"id": id, "event": "ping", "data": {"pad": ""}}).to_string();
    let pad = "é".repeat(pad.saturating_sub(empty.len()) / 2)
        + &"x".repeat(pad.saturating_sub(empty.len()) % 2);
    json!({"id": id, "event": "ping", "data": {"pad": pad}}).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rfc_6455_allows_works() {
    let node = TestNode::with(|config| config.websocket.frame_burst = 100_000).await;
    let token = node.token("alice", Role::Consumer, 3_600);
    let mut raw = Raw::open(&node, &token).await;
    let is_reply = |answer: Option<(u8, Vec<u8>)>, id: &str| {
        let (first, payload) = answer.unwrap();
        assert_eq!(first, FIN | TEXT);
        let value: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!((&value["id"], &value["ok"]), (&json!(id), &json!(true)), "{value}");
    };
    // Chapter 1: every way to write a length.
    for (n, length) in [60, 125, 126, 127, 128, 65_535, 65_536].into_iter().enumerate() {
        let text = ping(&n.to_string(), length);
        assert_eq!(text.len(), length);
        raw.send(&frame(FIN | TEXT, text.as_bytes())).await;
        is_reply(raw.answer().await, &n.to_string());
    }
    // 2: pings come back, with what is in them, in order, also when many come in one piece or one in many.
    for payload in [&b""[..], b"hello", &[0, 0xff, 0xfe], &[b'x'; 125]] {
        raw.send(&frame(FIN | PING, payload)).await;
        assert_eq!(raw.answer().await, Some((FIN | PONG, payload.to_vec())));
    }
    let ten: Vec<u8> = (0..10).flat_map(|n| frame(FIN | PING, &[n])).collect();
    raw.send(&ten).await;
    let mut last = None;
    while last != Some(9) {
        // Pings that wait may be answered by one pong, that of the last.
        let (first, payload) = raw.answer().await.unwrap();
        assert!(first == FIN | PONG && last < payload.first().copied(), "{payload:?}");
        last = payload.first().copied();
    }
    raw.send(&frame(FIN | PONG, b"nobody asked")).await;
    for byte in frame(FIN | PING, b"slow") {
        raw.send(&[byte]).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(raw.answer().await, Some((FIN | PONG, b"slow".to_vec())));
    // 5 and 6: pieces, pings between them, and a character that is cut in two.
    let text = ping("pieces", 90).replace('x', "κόσμε𐍈");
    for size in [1, 2, 7] {
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
        for (n, piece) in pieces.iter().enumerate() {
            let opcode = if n == 0 { TEXT } else { CONTINUATION };
            let fin = if n + 1 == pieces.len() { FIN } else { 0 };
            raw.send(&frame(fin | opcode, piece)).await;
            if n == 3 {
                raw.send(&frame(FIN | PING, b"between")).await;
                assert_eq!(raw.answer().await, Some((FIN | PONG, b"between".to_vec())));
            }
        }
        is_reply(raw.answer().await, "pieces");
    }
    raw.send(&frame(TEXT, b"")).await;
    raw.send(&frame(CONTINUATION, b"")).await;
    raw.send(&frame(FIN | CONTINUATION, ping("empty-pieces", 0).as_bytes())).await;
    is_reply(raw.answer().await, "empty-pieces");
    // 7: a close is answered with its code, and nothing after it.
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999_u16] {
        let mut raw = Raw::open(&node, &token).await;
        let payload = [&code.to_be_bytes()[..], "bye κόσμε".as_bytes()].concat();
        let both =
            [frame(FIN | CLOSE, &payload), frame(FIN | TEXT, ping("late", 0).as_bytes())].concat();
        raw.send(&both).await;
        assert_eq!(raw.closed().await, Some(code));
        assert_eq!(raw.answer().await, None);
    }
    let mut raw = Raw::open(&node, &token).await;
    raw.send(&frame(FIN | CLOSE, b"")).await;
    assert!(matches!(raw.closed().await, Some(1000 | 1005)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rfc_6455_forbids_closes() {
    let node = TestNode::start().await;
    let token = node.token("alice", Role::Consumer, 3_600);
    let text = ping("1", 0);
    let text = text.as_bytes();
    let mut cases: Vec<(String, Vec<u8>, &[u16])> = Vec::new();
    let mut case = |name: &str, bytes: Vec<u8>, codes: &'static [u16]| {
        cases.push((name.to_owned(), bytes, codes));
    };
    // 2 and 5: control frames are short and whole.
    case("a long ping", frame(FIN | PING, &[0; 126]), &[1002]);
    case("a ping in pieces", frame(PING, b"a"), &[1002]);
    case("a close in pieces", frame(CLOSE, &1000_u16.to_be_bytes()), &[1002]);
    // 3 and 4: what is reserved.
    for bit in [0x10, 0x20, 0x40, 0x70] {
        case("a reserved bit", frame(FIN | bit | TEXT, text), &[1002]);
        case("a reserved bit of a ping", frame(FIN | bit | PING, b""), &[1002]);
    }
    for opcode in [3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf] {
        case("a reserved opcode", frame(FIN | opcode, text), &[1002]);
    }
    // 5: pieces that do not fit together.
    case("the end of nothing", frame(FIN | CONTINUATION, text), &[1002]);
    case("the middle of nothing", frame(CONTINUATION, text), &[1002]);
    let two = [frame(TEXT, text), frame(FIN | TEXT, text)].concat();
    case("a second message within the first", two, &[1002]);
    case("not masked", vec![FIN | TEXT, 1, b'a'], &[1002]);
    // 6: what is not UTF-8, whole and in pieces.
    for bad in [
        &[0xff][..],
        &[0xc0, 0xaf],
        &[0xe0, 0x80, 0xaf],
        &[0xed, 0xa0, 0x80],
        &[0xf4, 0x90, 0x80, 0x80],
        &[0xf8, 0x88, 0x80, 0x80, 0x80],
        &[0xce],
        &[0x80],
    ] {
        case("not UTF-8", frame(FIN | TEXT, bad), &[1007]);
        let pieces = [frame(TEXT, b"{\"id\":\""), frame(FIN | CONTINUATION, bad)].concat();
        case("not UTF-8, in pieces", pieces, &[1007]);
    }
    // 7: closes that are none.
    case("half a code", frame(FIN | CLOSE, &[3]), &[1002]);
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535_u16] {
        case("a code that may not be sent", frame(FIN | CLOSE, &code.to_be_bytes()), &[1002]);
    }
    let reason = [&1000_u16.to_be_bytes()[..], &[0xce]].concat();
    case("a reason that is not UTF-8", frame(FIN | CLOSE, &reason), &[1007, 1002]);
    // 9: what is too large, and a length that lies. Ours: binary, and what is no frame of the protocol.
    case("too large", frame(FIN | TEXT, &[b' '; 65_537]), &[3504]);
    let pieces = [frame(TEXT, &[b' '; 40_000]), frame(FIN | CONTINUATION, &[b' '; 40_000])];
    case("too large in pieces", pieces.concat(), &[3504]);
    let huge = [&[FIN | TEXT, 0xff][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
    case("longer than anything", huge, &[3504, 1002]);
    case("binary", frame(FIN | BINARY, text), &[3500]);
    case("empty", frame(FIN | TEXT, b""), &[3500]);
    for (name, bytes, codes) in cases {
        let mut raw = Raw::open(&node, &token).await;
        raw.send(&bytes).await;
        let code = raw.closed().await.unwrap_or_else(|| panic!("{name}: no close frame"));
        assert!(codes.contains(&code), "{name} ({:x?}): {code}", &bytes[..bytes.len().min(24)]);
    }
}

/// Nobody has authenticated here. What the protocol's implementation keeps for itself counts like what it shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_show_nothing_count_too() {
    let node = TestNode::with(|config| {
        config.websocket.frames_per_s = 1;
        config.websocket.frame_burst = 50;
        // Nothing else ends a connection.
        config.websocket.auth_timeout_ms = 600_000;
        config.websocket.ping_ms = 600_000;
    })
    .await;
    let begun = frame(TEXT, b"");
    for (name, begin, more) in [
        ("empty pieces", &begun[..], frame(CONTINUATION, b"")),
        ("pieces", &begun[..], frame(CONTINUATION, b"a")),
        ("pings", b"", frame(FIN | PING, b"")),
        ("pongs", b"", frame(FIN | PONG, b"x")),
        ("messages", b"", frame(FIN | TEXT, br#"{"id":"more","event":"ping"}"#)),
    ] {
        for path in ["/v1/ws", "/sync/ws"] {
            let mut raw = Raw::open_at(&node, path, "").await;
            let first = frame(FIN | TEXT, ping("first", 0).as_bytes());
            // Far more than the buffers on the way take: the flood goes on while the node says why it ends.
            raw.send(&[&first, begin, &more.repeat(100_000)].concat()).await;
            let mut replies = Vec::new();
            let mut last = raw.answer().await;
            while let Some((first, payload)) = last.as_ref().filter(|last| last.0 != FIN | CLOSE) {
                if *first == FIN | TEXT {
                    replies.push(serde_json::from_slice::<Value>(payload).unwrap());
                }
                last = raw.answer().await;
            }
            assert_eq!(replies[0]["id"], "first", "{path}: {name}");
            assert_eq!(replies.len(), if name == "messages" { 50 } else { 1 }, "{path}: {name}");
            let (_, close) = last.unwrap_or_else(|| panic!("{path}: {name}: no close frame"));
            assert_eq!(close[..2], 3009_u16.to_be_bytes(), "{path}: {name}");
        }
    }
    // As many as are allowed are, whatever they are.
    let mut raw = Raw::open_at(&node, "/v1/ws", "").await;
    let pieces = [begun, frame(CONTINUATION, b"").repeat(40)].concat();
    let last = frame(FIN | CONTINUATION, ping("whole", 0).as_bytes());
    raw.send(&[pieces, last].concat()).await;
    let (_, payload) = raw.answer().await.unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&payload).unwrap()["id"], "whole");
}

/// A frame that may be anything, and whether the connection can go on after it.
fn anything(random: &mut StdRng, session: &str) -> (Vec<u8>, bool) {
    const EVENTS: [&str; 16] = [
        "ping",
        "auth",
        "session:resume",
        "session:close",
        "chat:message",
        "chat:typing",
        "presence:online",
        "topic:subscribe",
        "topic:unsubscribe",
        "topic:publish",
        "request:create",
        "offer:accept",
        "booking:cancel",
        "booking:review",
        "nothing:known",
        "",
    ];
    const WORDS: [&str; 12] = [
        "id",
        "event",
        "data",
        "topic",
        "session_id",
        "content",
        "position",
        "epoch",
        "offset",
        "rating",
        "text",
        "media",
    ];
    fn value(random: &mut StdRng, session: &str, depth: u32) -> Value {
        match random.random_range(0..if depth > 3 { 8 } else { 11 }) {
            0 => Value::Null,
            1 => json!(random.random::<bool>()),
            2 => json!(random.random::<i64>()),
            3 => json!(random.random::<f64>() * 1e300),
            4 => json!(session),
            5 => json!(format!("session:{session}")),
            6 => json!(WORDS[random.random_range(0..WORDS.len())]),
            7 => {
                let chars = (0..random.random_range(0..40)).map(|_| random.random::<char>());
                json!(chars.collect::<String>())
            }
            8 => {
                (0..random.random_range(0..5)).map(|_| value(random, session, depth + 1)).collect()
            }
            _ => {
                let fields = (0..random.random_range(0..6)).map(|_| {
                    let name = WORDS[random.random_range(0..WORDS.len())].to_owned();
                    (name, value(random, session, depth + 1))
                });
                Value::Object(fields.collect())
            }
        }
    }
    if random.random_ratio(1, 200) {
        // Bytes: whatever they are, the connection is over or waits for more.
        let mut bytes: Vec<u8> =
            (0..random.random_range(1..300)).map(|_| random.random()).collect();
        if random.random() {
            bytes = frame(random.random(), &bytes);
        }
        return (bytes, false);
    }
    let mut event = EVENTS[random.random_range(0..EVENTS.len())];
    if event == "auth" && random.random_ratio(15, 16) {
        // Connections take longer than frames: what ends one is rarer.
        event = "ping";
    }
    let id = format!("f{}", random.random::<u32>());
    let mut text = json!({"id": id, "event": event, "data": value(random, session, 0)}).to_string();
    let mutate = random.random_ratio(1, 100);
    if mutate {
        let mut bytes = text.into_bytes();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random_range(0x20..0x7f);
        }
        text = String::from_utf8_lossy(&bytes).into_owned();
    }
    (frame(FIN | TEXT, text.as_bytes()), !mutate && event != "auth")
}

/// Sends so many frames, over one connection after the other. How many connections that took.
async fn fuzz(node: &TestNode, token: &str, session: &str, seed: u64, frames: u64) -> u64 {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut sent, mut connections) = (0, 0);
    while sent < frames {
        connections += 1;
        let raw = Raw::open(node, token).await;
        let (mut reader, mut writer) = raw.0.into_split();
        let read = tokio::spawn(async move {
            let mut buffer = vec![0; 65_536];
            while let Ok(1..) = reader.read(&mut buffer).await {}
        });
        let mut goes_on = true;
        while goes_on && sent < frames {
            let mut batch = Vec::new();
            while goes_on && batch.len() < 4_096 {
                let (bytes, next) = anything(&mut random, session);
                batch.extend(bytes);
                sent += 1;
                // Replies come in time, so that none is cut off as too slow.
                goes_on = next;
            }
            goes_on &= writer.write_all(&batch).await.is_ok();
        }
        drop(writer);
        tokio::time::timeout(PATIENCE, read).await.expect("the connection ends").unwrap();
    }
    connections
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1_024
}

/// `PROXIE_FUZZ` frames, from seeds, in ten rounds of 48 connections at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fuzzed_frames_break_nothing() {
    let frames: u64 = std::env::var("PROXIE_FUZZ").map_or(10_000, |n| n.parse().unwrap());
    let node = TestNode::with(|config| {
        config.websocket.frames_per_s = 1_000_000;
        config.websocket.frame_burst = 1_000_000;
        config.websocket.frames_per_minute_per_user = u32::MAX;
        config.gateway.requests_per_minute = 100_000_000;
    })
    .await;
    let token = node.token("mallory", Role::Consumer, 86_400);
    let mut ws = node.ws("mallory").await;
    let session = super::text(&ws.ok("session:open", json!({})).await["session_id"]);
    drop(ws);
    let (mut connections, mut memory) = (0, Vec::new());
    for round in 0..10 {
        let workers =
            (0..48).map(|n| fuzz(&node, &token, &session, round * 48 + n, frames.div_ceil(480)));
        connections += futures_util::future::join_all(workers).await.iter().sum::<u64>();
        memory.push(resident_mib());
    }
    eventually("all of them have gone", || async { node.node.gateway().connections() == 0 }).await;
    let metrics = node.anonymous().get("/metrics").await.text;
    for never in ["proxie_ws_connection_failures_total", "proxie_http_panics_total"] {
        assert!(!metrics.contains(never), "{never} after {frames} frames");
    }
    println!("{frames} frames over {connections} connections; MiB after each tenth: {memory:?}");
    // Caches and allocators have what they want after the first rounds of a long run.
    if frames >= 1_000_000 {
        assert!(memory[9] < memory[2] + 64, "something is never given back: {memory:?}");
    }
    let mut ws = node.ws("mallory").await;
    ws.ok("ping", json!({})).await;
}
