//! Socket.IO from below: packets by hand, from clients that do what its own client would not.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use proxie::config::TopicGrant;
use proxie::kernel::entity::Role;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{PATIENCE, TestNode, grant, text};
use crate::support::eventually;

/// A WebSocket of the engine.
struct Engine {
    socket: WebSocketStream<TcpStream>,
    /// It answers heartbeats.
    lives: bool,
}

impl Engine {
    async fn open(node: &TestNode, origin: Option<&str>) -> Result<Self, u16> {
        let stream = TcpStream::connect(node.node.address).await.unwrap();
        Self::open_over(node, stream, origin).await
    }

    async fn open_over(
        node: &TestNode,
        stream: TcpStream,
        origin: Option<&str>,
    ) -> Result<Self, u16> {
        let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket", node.node.address);
        let mut request = url.into_client_request().unwrap();
        if let Some(origin) = origin {
            request.headers_mut().insert("origin", origin.parse().unwrap());
        }
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(Self { socket, lives: true }),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    async fn say(&mut self, packet: &str) {
        self.socket.send(Message::text(packet)).await.unwrap();
    }

    /// The next packet; `None`: closed.
    async fn hear(&mut self) -> Option<String> {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("silence");
            match next {
                Some(Ok(Message::Text(text))) if text == "2" => {
                    if self.lives {
                        let _ = self.socket.send(Message::text("3")).await;
                    }
                }
                Some(Ok(Message::Text(text))) => return Some(text.to_string()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// What begins with this, with what follows it; other packets are skipped.
    async fn until(&mut self, start: &str) -> String {
        loop {
            let packet = self.hear().await.unwrap_or_else(|| panic!("closed before {start}"));
            if let Some(rest) = packet.strip_prefix(start) {
                return rest.to_owned();
            }
        }
    }

    /// All packets until it is closed.
    async fn rest(&mut self) -> Vec<String> {
        let mut packets = Vec::new();
        let all = async {
            while let Some(packet) = self.hear().await {
                packets.push(packet);
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("an end");
        packets
    }

    async fn connect(&mut self, token: &str) {
        assert!(self.hear().await.unwrap().starts_with("0{"));
        self.say(&format!("40{}", json!({"token": token}))).await;
        self.until("40").await;
        self.until(r#"42["auth","#).await;
    }
}

/// The code of the event `close` among these packets.
fn close_code(packets: &[String]) -> Option<u64> {
    let close = packets.iter().find_map(|packet| packet.strip_prefix(r#"42["close","#))?;
    let close: Value = serde_json::from_str(close.strip_suffix(']')?).ok()?;
    close["code"].as_u64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_keep_to_socket_io_is_closed() {
    let node = TestNode::with(|config| {
        config.websocket.auth_timeout_ms = 700;
        config.websocket.ping_ms = 300;
        config.websocket.pong_timeout_ms = 1_500;
        config.websocket.frames_per_s = 50;
        config.websocket.frame_burst = 50;
    })
    .await;
    assert_eq!(Engine::open(&node, Some("http://evil.example")).await.err(), Some(403));
    let token = node.token("clara", Role::Consumer, 3_600);

    // Before it is connected: nothing said, something else said, what is no packet.
    for packet in ["", r#"42["chat:message",{}]"#, "41", "43[]", "4x", "6", r#"451-["e",{}]"#] {
        let mut engine = Engine::open(&node, None).await.unwrap();
        if !packet.is_empty() {
            engine.say(packet).await;
        }
        let said = engine.rest().await;
        assert!(said.iter().all(|packet| !packet.starts_with("40")), "{packet}: {said:?}");
    }
    // After: binary data, a packet that is none, a frame that is too large.
    let large = format!("42[\"e\",\"{}\"]", "x".repeat(70_000));
    for message in [Message::binary(vec![1]), Message::text("4x"), Message::text(large)] {
        let mut engine = Engine::open(&node, None).await.unwrap();
        engine.connect(&token).await;
        let _ = engine.socket.send(message).await;
        engine.rest().await;
    }
    // No sign of life.
    let mut engine = Engine::open(&node, None).await.unwrap();
    engine.connect(&token).await;
    engine.lives = false;
    engine.rest().await;
    // An id that is none, one that nobody could answer, and too much of what can be.
    let mut engine = Engine::open(&node, None).await.unwrap();
    engine.connect(&token).await;
    engine.say(&format!("42[\"ping\",{{\"id\":\"{}\"}}]", "x".repeat(100))).await;
    assert!(engine.until(r#"42["error","#).await.contains("/id"));
    engine.say(&format!("42[\"ping\",{{\"id\":\"{}\"}}]", "x".repeat(1_000))).await;
    let said = engine.rest().await;
    assert_eq!(close_code(&said), Some(3500), "{said:?}");
    assert!(said.contains(&"41".to_owned()), "it must not come back as it is: {said:?}");
    let mut engine = Engine::open(&node, None).await.unwrap();
    engine.connect(&token).await;
    for n in 0..100 {
        let _ = engine.socket.send(Message::text(format!("42{n}[\"ping\"]"))).await;
    }
    let said = engine.rest().await;
    assert_eq!(close_code(&said), Some(3009), "{said:?}");
    assert!(!said.contains(&"41".to_owned()), "it comes back by itself: {said:?}");
    eventually("nothing is left of them", || async { node.node.gateway().connections() == 0 })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_of_socket_io_is_cut_off_and_others_are_not() {
    let node = TestNode::with(|config| {
        config.websocket.send_buffer_bytes = 400_000;
        config.websocket.ping_ms = 60_000;
        config.topics.grants = vec![grant("app:noise")];
    })
    .await;
    let subscribe =
        |n: u32, topic: &str| format!("42{n}[\"topic:subscribe\",{{\"topic\":\"{topic}\"}}]");
    let mut slow = Engine::open_over(&node, node.narrow().await, None).await.unwrap();
    slow.connect(&node.token("clara", Role::Consumer, 3_600)).await;
    // The topic that only this one listens to tells when the node has given up on it.
    for (n, topic) in ["app:noise", "presence:clara"].into_iter().enumerate() {
        slow.say(&subscribe(n as u32, topic)).await;
        slow.until(&format!("43{n}[{{\"ok\":true")).await;
    }
    let mut quick = Engine::open(&node, None).await.unwrap();
    quick.connect(&node.token("quinn", Role::Consumer, 3_600)).await;
    quick.say(&subscribe(0, "app:noise")).await;
    quick.until("430[{\"ok\":true").await;

    let topics = &node.node.core.topics;
    let mut bob = node.ws("bob").await;
    for n in 0.. {
        if !topics.has_subscribers("presence:clara") {
            break;
        }
        assert!(n < 600, "the node keeps everything for somebody who does not read");
        let noise = json!({"topic": "app:noise", "event": "app:x", "data": "x".repeat(60_000)});
        bob.ok("topic:publish", noise).await;
        quick.until("42[\"app:x\",").await;
    }
    let said = tokio::time::timeout(Duration::from_secs(10), slow.rest()).await.unwrap();
    let noise = said.iter().filter(|packet| packet.starts_with("42[\"app:x\"")).count();
    assert!(noise > 0 && noise < 60, "{noise}");
}

/// What does not fit into one answer of a long poll is not lost when the client goes over to a WebSocket just then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_in_the_middle_of_a_replay_loses_nothing() {
    let node = TestNode::with(|config| {
        config.topics.grants = vec![TopicGrant { durable: true, ..grant("app:log") }];
    })
    .await;
    let mut bob = node.ws("bob").await;
    let start = bob.ok("topic:subscribe", json!({"topic": "app:log"})).await;
    for _ in 0..30 {
        let said = json!({"topic": "app:log", "event": "app:said", "data": "x".repeat(9_000)});
        bob.ok("topic:publish", said).await;
    }
    let http = node.anonymous();
    let opened = http.get("/socket.io/?EIO=4&transport=polling").await;
    let opened: Value = serde_json::from_str(opened.text.strip_prefix('0').unwrap()).unwrap();
    let sid = text(&opened["sid"]);
    let session = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    let token = node.token("clara", Role::Consumer, 3_600);
    let auth = json!({"token": token, "positions": {"app:log": start["position"]}});
    assert_eq!(http.send("POST", &session, &[], format!("40{auth}").as_bytes()).await.status, 200);
    // Until an answer is as full as it gets.
    let mut packets = Vec::new();
    while !packets.iter().any(|packet: &String| packet.starts_with("42[\"app:said\"")) {
        let answer = http.get(&session).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        packets.extend(answer.text.split('\u{1e}').map(str::to_owned));
    }
    let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket&sid={sid}", node.node.address);
    let stream = TcpStream::connect(node.node.address).await.unwrap();
    let upgraded = tokio_tungstenite::client_async(url, stream).await.unwrap();
    let mut engine = Engine { socket: upgraded.0, lives: true };
    engine.say("2probe").await;
    engine.until("3probe").await;
    engine.say("5").await;
    let offset = |packet: &String| {
        let event: Value = serde_json::from_str(packet.strip_prefix("42")?).ok()?;
        (event[0] == "app:said").then(|| event[2]["offset"].as_i64().unwrap())
    };
    let mut offsets: Vec<i64> = packets.iter().filter_map(offset).collect();
    while offsets.last() != Some(&30) {
        let packet = engine.hear().await.expect("it goes on");
        offsets.extend(offset(&packet));
    }
    assert_eq!(offsets, (1..=30).collect::<Vec<_>>());
}
