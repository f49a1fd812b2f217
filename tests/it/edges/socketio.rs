//! Socket.IO from below: packets by hand, from clients that do what its own client would not.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use proxie::config::Config;
use proxie::kernel::entity::Role;
use proxie::systems::app_topics::settings::{Grant as TopicGrant, Grants};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{Answer, Http, PATIENCE, TestNode, grant, text};
use crate::support::eventually;

/// A WebSocket of the engine.
struct Engine {
    socket: WebSocketStream<TcpStream>,
    /// It answers heartbeats.
    lives: bool,
    /// With which it was closed.
    code: Option<u16>,
}

impl Engine {
    async fn open(node: &TestNode, origin: Option<&str>) -> Result<Self, u16> {
        let stream = TcpStream::connect(node.node.address).await.unwrap();
        Self::open_over(node, stream, "", origin).await
    }

    /// For a session that polls so far.
    async fn upgrade(node: &TestNode, sid: &str) -> Result<Self, u16> {
        let stream = TcpStream::connect(node.node.address).await.unwrap();
        Self::open_over(node, stream, &format!("&sid={sid}"), None).await
    }

    async fn open_over(
        node: &TestNode,
        stream: TcpStream,
        query: &str,
        origin: Option<&str>,
    ) -> Result<Self, u16> {
        let address = node.node.address;
        let url = format!("ws://{address}/socket.io/?EIO=4&transport=websocket{query}");
        let mut request = url.into_client_request().unwrap();
        if let Some(origin) = origin {
            request.headers_mut().insert("origin", origin.parse().unwrap());
        }
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(Self { socket, lives: true, code: None }),
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
                Some(Ok(Message::Close(frame))) => {
                    self.code = frame.map(|frame| frame.code.into());
                    return None;
                }
                Some(Err(_)) | None => return None,
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
        self.until("0{").await;
        self.join(token).await;
    }

    async fn join(&mut self, token: &str) {
        self.say(&format!("40{}", json!({"token": token}))).await;
        self.until("40").await;
        self.until(r#"42["auth","#).await;
    }

    /// The acknowledgement of this event.
    async fn ask(&mut self, ack: u32, event: &str, data: &str) -> Value {
        self.say(&format!("42{ack}[\"{event}\",{data}]")).await;
        self.answer(ack).await
    }

    async fn answer(&mut self, ack: u32) -> Value {
        let answer = self.until(&format!("43{ack}")).await;
        serde_json::from_str::<Value>(&answer).unwrap()[0].take()
    }
}

/// A session that polls.
struct Polling {
    http: Http,
    sid: String,
    path: String,
    /// Polls so far.
    polls: usize,
}

impl Polling {
    async fn open(node: &TestNode) -> Self {
        let http = node.anonymous();
        let opened = http.get("/socket.io/?EIO=4&transport=polling").await;
        assert_eq!(opened.status, 200, "{}", opened.text);
        let opened: Value = serde_json::from_str(opened.text.strip_prefix('0').unwrap()).unwrap();
        assert_eq!(opened["upgrades"], json!(["websocket"]));
        let sid = text(&opened["sid"]);
        let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
        Self { http, sid, path, polls: 0 }
    }

    async fn join(node: &TestNode, user: &str) -> Self {
        let mut polling = Self::open(node).await;
        let token = node.token(user, Role::Consumer, 3_600);
        polling.say(&format!("40{}", json!({"token": token}))).await;
        polling.until("42[\"auth\",").await;
        polling
    }

    async fn post(&self, payload: &str) -> Answer {
        self.http.send("POST", &self.path, &[], payload.as_bytes()).await
    }

    async fn say(&self, payload: &str) {
        let answer = self.post(payload).await;
        assert_eq!((answer.status, answer.text.as_str()), (200, "ok"));
    }

    async fn poll(&mut self) -> Answer {
        self.polls += 1;
        self.http.get(&self.path).await
    }

    /// All packets up to the one that begins with this. Heartbeats are answered.
    async fn until(&mut self, start: &str) -> Vec<String> {
        let mut packets = Vec::new();
        loop {
            let answer = self.poll().await;
            assert_eq!(answer.status, 200, "{} before {start}: {packets:?}", answer.text);
            packets.extend(answer.text.split('\u{1e}').map(str::to_owned));
            if packets.iter().any(|packet| packet.starts_with(start)) {
                return packets;
            }
            if packets.last().is_some_and(|packet| packet == "2") {
                self.say("3").await;
            }
        }
    }

    async fn asks(&mut self, ack: u32) {
        self.say(&format!("42{ack}[\"ping\"]")).await;
        self.until(&format!("43{ack}[{{\"ok\":true")).await;
    }
}

/// The code of the event `close` among these packets.
fn close_code(packets: &[String]) -> Option<u64> {
    let close = packets.iter().find_map(|packet| packet.strip_prefix(r#"42["close","#))?;
    let close: Value = serde_json::from_str(close.strip_suffix(']')?).ok()?;
    close["code"].as_u64()
}

fn quiet(config: &mut Config) {
    config.websocket.ping_ms = 60_000;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_keep_to_socket_io_is_closed() {
    let node = TestNode::with(|config| {
        config.websocket.connect_timeout_ms = 700;
        config.websocket.ping_ms = 300;
        config.websocket.pong_timeout_ms = 1_500;
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
        assert!(said.iter().all(|said| said.starts_with("0{")), "{packet}: {said:?}");
    }
    // After: binary data that was not announced, packets that are none. Clients come back by themselves after that: they
    // would not if they were sent the engine's `1`.
    for message in
        [Message::binary(vec![1]), Message::text("4x"), Message::text("42{}"), Message::text("x")]
    {
        let mut engine = Engine::open(&node, None).await.unwrap();
        engine.connect(&token).await;
        engine.socket.send(message).await.unwrap();
        let said = engine.rest().await;
        assert!(!said.iter().any(|packet| packet == "1" || packet == "41"), "{said:?}");
    }
    // No sign of life.
    let mut engine = Engine::open(&node, None).await.unwrap();
    engine.connect(&token).await;
    engine.lives = false;
    engine.rest().await;
    eventually("nothing is left of them", || async { node.node.gateway().connections() == 0 })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_does_not_fit_is_told_by_the_codes_of_engine_io() {
    let node = TestNode::with(quiet).await;
    let http = node.anonymous();
    let polling = Polling::open(&node).await;
    for (method, query, code) in [
        ("GET", "EIO=4".into(), 0),
        ("GET", "EIO=4&transport=flashsocket".into(), 0),
        ("GET", "EIO=4&transport=polling&sid=none".into(), 1),
        ("POST", "EIO=4&transport=polling&sid=none".into(), 1),
        ("GET", "EIO=4&transport=websocket&sid=none".into(), 1),
        ("POST", "EIO=4&transport=polling".into(), 2),
        ("PUT", "EIO=4&transport=polling".into(), 2),
        ("GET", "EIO=4&transport=websocket".into(), 3),
        ("GET", format!("EIO=4&transport=websocket&sid={}", polling.sid), 3),
        ("DELETE", format!("EIO=4&transport=polling&sid={}", polling.sid), 3),
        ("GET", "transport=polling".into(), 5),
        ("GET", "EIO=3&transport=polling".into(), 5),
    ] {
        let answer = http.send(method, &format!("/socket.io/?{query}"), &[], b"").await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.text);
        assert_eq!(answer.json()["code"], code, "{method} {query}");
        assert!(answer.json()["message"].is_string());
    }
    // None of it has harmed the session.
    polling.say("3").await;

    // What ends a session: no packet, none in UTF-8, and requests at once that must come one after the other.
    for bad in [&b"abc"[..], b"", b"4a\x1e", b"4\xff"] {
        let mut polling = Polling::open(&node).await;
        assert_eq!(polling.http.send("POST", &polling.path, &[], bad).await.json()["code"], 3);
        assert_eq!(polling.poll().await.json()["code"], 1, "it is gone");
    }
    let polling = Polling::open(&node).await;
    let polls = [polling.http.get(&polling.path), polling.http.get(&polling.path)];
    let mut said: Vec<_> = futures_util::future::join_all(polls)
        .await
        .into_iter()
        .map(|a| (a.status, a.text))
        .collect();
    said.sort();
    assert_eq!(said[0], (200, "1".into()));
    assert_eq!(said[1].0, 400);
    // Its client closes it.
    let mut polling = Polling::open(&node).await;
    let (http, path) = (polling.http.clone(), polling.path.clone());
    let waiting = tokio::spawn(async move { http.get(&path).await.text });
    tokio::time::sleep(Duration::from_millis(200)).await;
    polling.say("1").await;
    assert!(
        ["6", r#"{"code":1,"message":"Session ID unknown"}"#].contains(&&*waiting.await.unwrap())
    );
    assert_eq!(polling.poll().await.json()["code"], 1);
}

/// Middleboxes let the handshake of a WebSocket pass and then drop it, or swallow its frames.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_that_fails_leaves_long_polling_as_it_was() {
    let node = TestNode::with(quiet).await;
    let mut polling = Polling::join(&node, "clara").await;
    // Dropped at once; after `2probe`; after something else; and one that says nothing and stays.
    drop(Engine::upgrade(&node, &polling.sid).await.unwrap());
    polling.asks(1).await;
    let mut probes = Engine::upgrade(&node, &polling.sid).await.unwrap();
    probes.say("2probe").await;
    assert_eq!(probes.hear().await.as_deref(), Some("3probe"));
    drop(probes);
    polling.asks(2).await;
    for wrong in ["5", "4hello", "2other", "abc"] {
        let mut probes = Engine::upgrade(&node, &polling.sid).await.unwrap();
        probes.say(wrong).await;
        assert_eq!(probes.rest().await, [""; 0], "{wrong}");
        polling.asks(3).await;
    }
    let _silent = Engine::upgrade(&node, &polling.sid).await.unwrap();
    for n in 10..20 {
        polling.asks(n).await;
    }
    // Another one is not taken while this one may still speak.
    let mut second = Engine::upgrade(&node, &polling.sid).await.unwrap();
    assert_eq!(second.hear().await, None);
    polling.asks(20).await;
    polling.say("41").await;
}

/// Where the answer to `2probe` is swallowed, the client polls on, and is not kept busy with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_goes_no_further_does_not_make_its_client_poll_without_end() {
    let node = TestNode::with(quiet).await;
    let mut polling = Polling::join(&node, "clara").await;
    let mut probes = Engine::upgrade(&node, &polling.sid).await.unwrap();
    probes.say("2probe").await;
    // Until the engine has given up on it, which it does after 10 s.
    assert_eq!(probes.hear().await.as_deref(), Some("3probe"));
    polling.polls = 0;
    let http = polling.http.clone();
    let path = polling.path.clone();
    let polls = tokio::spawn(async move {
        let mut polls = Vec::new();
        while http.get(&path).await.text == "6" {
            polls.push("6");
        }
        polls.len()
    });
    assert_eq!(probes.rest().await, [""; 0]);
    polling.say(r#"427["ping"]"#).await;
    let polls = polls.await.unwrap();
    assert!((1..20).contains(&polls), "{polls} polls were released");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_goes_on_where_the_polls_have_ended() {
    let node = TestNode::with(quiet).await;
    let polling = Polling::join(&node, "clara").await;
    let (http, path) = (polling.http.clone(), polling.path.clone());
    let waiting = tokio::spawn(async move { http.get(&path).await.text });
    let mut engine = Engine::upgrade(&node, &polling.sid).await.unwrap();
    engine.say("2probe").await;
    assert_eq!(engine.hear().await.as_deref(), Some("3probe"));
    assert_eq!(waiting.await.unwrap(), "6", "so that the client can go on");
    engine.say("5").await;
    assert_eq!(engine.ask(1, "ping", "{}").await["ok"], true);
    // Nothing but its WebSocket is its transport now.
    assert_eq!(polling.http.get(&polling.path).await.json()["code"], 3);
    assert_eq!(polling.post("3").await.json()["code"], 3);
    let mut second = Engine::upgrade(&node, &polling.sid).await.unwrap();
    assert_eq!(second.hear().await, None);
    assert_eq!(engine.ask(2, "ping", "{}").await["ok"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_ping_comes_after_its_interval() {
    let node = TestNode::with(quiet).await;
    let mut polling = Polling::open(&node).await;
    let token = node.token("clara", Role::Consumer, 3_600);
    polling.say(&format!("40{}", json!({"token": token}))).await;
    let said = polling.until("42[\"auth\",").await;
    assert!(!said.contains(&"2".to_owned()), "{said:?}");
    let node = TestNode::with(|config| config.websocket.ping_ms = 300).await;
    let mut polling = Polling::open(&node).await;
    for _ in 0..3 {
        assert_eq!(polling.poll().await.text, "2");
        polling.say("3").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_or_is_refused_may_join_again() {
    let node = TestNode::with(|config| {
        quiet(config);
        config.websocket.connect_timeout_ms = 4_000;
    })
    .await;
    let token = node.token("clara", Role::Consumer, 3_600);
    let mut engine = Engine::open(&node, None).await.unwrap();
    engine.until("0{").await;
    for bad in [r#"40{"token":"not-a-token"}"#, "40"] {
        engine.say(bad).await;
        let error: Value = serde_json::from_str(&engine.until("44").await).unwrap();
        assert_eq!(error["data"]["code"], "unauthenticated");
    }
    engine.say("40/admin,{}").await;
    assert_eq!(engine.until("44/admin,").await, r#"{"message":"Invalid namespace"}"#);
    for n in 0..3 {
        engine.join(&token).await;
        assert_eq!(engine.ask(n, "ping", "{}").await["ok"], true);
        // What was on its way when it left is of no use any more.
        engine.say("41").await;
        engine.say("42[\"ping\"]").await;
    }
    eventually("it has left", || async { node.node.gateway().connections() == 0 }).await;
    // Who is in no namespace does not stay for ever.
    let said = engine.rest().await;
    assert_eq!((said, engine.code), (vec![], Some(1000)));
    // Who does is not asked to leave.
    let mut engine = Engine::open(&node, None).await.unwrap();
    engine.connect(&token).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(engine.ask(1, "ping", "{}").await["ok"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_node_that_stops_are_not_told_to_stay_away() {
    let node = TestNode::with(quiet).await;
    let token = node.token("clara", Role::Consumer, 3_600);
    let mut engine = Engine::open(&node, None).await.unwrap();
    engine.connect(&token).await;
    let mut lobby = Engine::open(&node, None).await.unwrap();
    let mut polling = Polling::join(&node, "clara").await;
    let waiting = tokio::spawn(async move {
        let said = polling.until("42[\"close\",").await;
        (said, polling.poll().await)
    });
    let other = Polling::open(&node).await;
    let unjoined = tokio::spawn(async move { other.http.get(&other.path).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.node.gateway().drain(PATIENCE).await;
    let said = engine.rest().await;
    assert_eq!(close_code(&said), Some(3000), "{said:?}");
    assert!(!said.iter().any(|packet| packet == "1" || packet == "41"), "{said:?}");
    assert!(lobby.rest().await.iter().all(|packet| packet.starts_with("0{")));
    let (said, next) = waiting.await.unwrap();
    assert_eq!(close_code(&said), Some(3000), "{said:?}");
    assert!(!said.iter().any(|packet| packet == "1" || packet == "41"), "{said:?}");
    assert_eq!(next.json()["code"], 1, "an error is what clients try again after");
    assert_eq!(unjoined.await.unwrap().json()["code"], 1);
    assert_eq!(node.anonymous().get("/socket.io/?EIO=4&transport=polling").await.status, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_gets_its_own_answer() {
    let node = TestNode::with(|config| {
        quiet(config);
        config.systems.set(Grants(vec![TopicGrant { durable: true, ..grant("app:log") }]));
    })
    .await;
    let mut engine = Engine::open(&node, None).await.unwrap();
    engine.connect(&node.token("clara", Role::Consumer, 3_600)).await;
    // Two with one id, at once: what is known at once and what is committed first, in both orders.
    for n in 0..20 {
        let publish = format!(
            r#"["topic:publish",{{"id":"same{n}","topic":"app:log","event":"app:x","data":{n}}}]"#
        );
        let unknown = format!(r#"["no:such",{{"id":"same{n}"}}]"#);
        let (first, second) = if n % 2 == 0 { (&unknown, &publish) } else { (&publish, &unknown) };
        for (ack, event) in [(1, first), (2, second)] {
            engine.socket.feed(Message::text(format!("42{ack}{event}"))).await.unwrap();
        }
        engine.socket.flush().await.unwrap();
        let mut answers = [engine.answer(1).await, engine.answer(2).await];
        answers.rotate_left(n % 2);
        assert_eq!(answers[0]["error"]["code"], "bad_request", "{answers:?}");
        assert_eq!(answers[1]["data"]["offset"], n + 1, "{answers:?}");
    }
    // An id that is none, and data that JSON cannot mean.
    let long = format!("{{\"id\":\"{}\"}}", "x".repeat(65));
    let deep = format!("{}{}", "[".repeat(300), "]".repeat(300));
    let bad = [
        ("/id", r#"{"id":7}"#),
        ("/id", r#"{"id":""}"#),
        ("/id", r#"{"id":"a b"}"#),
        ("/id", &long),
        ("/data", r#"{"content":"\ud83d"}"#),
        ("/data", r#"{"content":1e999}"#),
        ("/data", &deep),
        ("/data", "7"),
    ];
    for (pointer, data) in bad {
        let answer = engine.ask(7, "ping", data).await;
        assert_eq!(answer["error"]["code"], "bad_request", "{data}: {answer}");
        assert_eq!(answer["error"]["errors"][0]["pointer"], pointer, "{data}: {answer}");
    }
    engine.say(r#"42["ping",{"id":7}]"#).await;
    assert!(engine.until("42[\"error\",").await.contains("bad_request"));
    // Binary data is refused, not the client.
    engine.say(r#"452-9["ping",{"a":{"_placeholder":true,"num":0}}]"#).await;
    for _ in 0..2 {
        engine.socket.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    }
    let answer = engine.answer(9).await;
    assert!(text(&answer["error"]["message"]).contains("base64"), "{answer}");
    assert_eq!(engine.ask(10, "ping", "{}").await["ok"], true);
    let mut polling = Polling::join(&node, "clara").await;
    polling
        .say("451-9[\"ping\",{\"_placeholder\":true,\"num\":0}]\u{1e}bAQIDBA==\u{1e}4210[\"ping\"]")
        .await;
    let said = polling.until("4310[{\"ok\":true").await;
    let is_refused = |packet: &String| packet.starts_with("439[") && packet.contains("bad_request");
    assert!(said.iter().any(is_refused), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_at_once_is_told_by_a_code() {
    let node = TestNode::with(quiet).await;
    let large = format!("42[\"e\",\"{}\"]", "x".repeat(70_000));
    let mut engine = Engine::open(&node, None).await.unwrap();
    engine.connect(&node.token("clara", Role::Consumer, 3_600)).await;
    let _ = engine.socket.send(Message::text(large.clone())).await;
    let said = engine.rest().await;
    assert_eq!((close_code(&said), engine.code), (Some(3504), Some(1009)), "{said:?}");
    assert!(said.contains(&"41".to_owned()), "it must not come back as it is: {said:?}");
    let mut lobby = Engine::open(&node, None).await.unwrap();
    let _ = lobby.socket.send(Message::text(large.clone())).await;
    lobby.rest().await;
    assert_eq!(lobby.code, Some(1009));
    let mut polling = Polling::join(&node, "clara").await;
    polling.post(&large).await.problem(413, "too_large");
    polling.asks(1).await;
}

/// Clients keep what is emitted while they are away, and send it at once when they are back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_emits_is_read_more_slowly() {
    let node = TestNode::with(|config| {
        config.websocket.ping_ms = 500;
        config.websocket.pong_timeout_ms = 1_500;
        config.websocket.frames_per_s = 400;
        config.websocket.frame_burst = 100;
        config.websocket.max_in_flight = 8;
        config.systems.set(Grants(vec![TopicGrant { durable: true, ..grant("app:log") }]));
    })
    .await;
    let emit = |n: usize| {
        format!(r#"42{n}["topic:publish",{{"topic":"app:log","event":"app:x","data":{n}}}]"#)
    };
    let good = |packet: &str| packet.starts_with("43") && packet.contains("[{\"ok\":true");
    let mut engine = Engine::open(&node, None).await.unwrap();
    engine.connect(&node.token("clara", Role::Consumer, 3_600)).await;
    let (mut writer, mut reader) = engine.socket.split();
    let (pongs, mut pinged) = tokio::sync::mpsc::unbounded_channel();
    let writing = tokio::spawn(async move {
        for n in 0..2_000 {
            writer.send(Message::text(emit(n))).await.unwrap();
        }
        while let Some(()) = pinged.recv().await {
            writer.send(Message::text("3")).await.unwrap();
        }
    });
    let mut answered = 0;
    while answered < 2_000 {
        let next = tokio::time::timeout(PATIENCE, reader.next()).await.expect("silence");
        let Some(Ok(Message::Text(packet))) = next else { panic!("{answered} answers, {next:?}") };
        if packet == "2" {
            let _ = pongs.send(());
            continue;
        }
        assert!(good(&packet), "{packet}");
        answered += 1;
    }
    drop(pongs);
    writing.await.unwrap();

    // Over long polling a POST is answered when there is room for the next one.
    let mut polling = Polling::join(&node, "clara").await;
    let (http, path) = (polling.http.clone(), polling.path.clone());
    let (pongs, mut pinged) = tokio::sync::mpsc::unbounded_channel();
    let posting = tokio::spawn(async move {
        let payloads: Vec<String> = (0..20)
            .map(|n| (0..50).map(|m| emit(n * 50 + m)).collect::<Vec<_>>().join("\u{1e}"))
            .collect();
        let post = async |payload: &str| {
            let answer = http.send("POST", &path, &[], payload.as_bytes()).await;
            assert_eq!((answer.status, answer.text.as_str()), (200, "ok"));
        };
        for payload in payloads {
            while pinged.try_recv().is_ok() {
                post("3").await;
            }
            post(&payload).await;
        }
        while let Some(()) = pinged.recv().await {
            post("3").await;
        }
    });
    let mut answered = 0;
    while answered < 1_000 {
        let answer = polling.poll().await;
        assert_eq!(answer.status, 200, "{answered} answers, then {}", answer.text);
        for packet in answer.text.split('\u{1e}') {
            match packet {
                "2" => drop(pongs.send(())),
                packet => {
                    assert!(good(packet), "{packet}");
                    answered += 1;
                }
            }
        }
    }
    drop(pongs);
    posting.await.unwrap();
}

/// Each piece of a message counts, empty ones too: what follows waits longer than a heartbeat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pieces_of_a_message_count() {
    let node = TestNode::with(|config| {
        config.websocket.ping_ms = 3_000;
        config.websocket.frames_per_s = 2;
        config.websocket.frame_burst = 20;
    })
    .await;
    let mut engine = Engine::open(&node, None).await.unwrap();
    engine.connect(&node.token("clara", Role::Consumer, 3_600)).await;
    engine.lives = false;
    let text = b"42[\"ping\"]";
    let head = [&[0x01, 0x80 | text.len() as u8, 0, 0, 0, 0], &text[..]].concat();
    let pieces = [0x00, 0x80, 0, 0, 0, 0].repeat(38);
    let last = [0x80, 0x80, 0, 0, 0, 0];
    engine.socket.get_mut().write_all(&[&head[..], &pieces, &last].concat()).await.unwrap();
    engine.say("421[\"ping\"]").await;
    let mut said = Vec::new();
    while !said.last().is_some_and(|packet: &String| packet.starts_with("431")) {
        match tokio::time::timeout(PATIENCE, engine.socket.next()).await.expect("silence") {
            Some(Ok(Message::Text(text))) => said.push(text.to_string()),
            other => panic!("{other:?} after {said:?}"),
        }
    }
    assert_eq!(said[0], "2", "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_of_socket_io_is_cut_off_and_others_are_not() {
    let node = TestNode::with(|config| {
        config.websocket.send_buffer_bytes = 400_000;
        config.websocket.ping_ms = 60_000;
        config.systems.set(Grants(vec![grant("app:noise")]));
    })
    .await;
    let subscribe = |topic: &str| json!({"topic": topic}).to_string();
    let mut slow = Engine::open_over(&node, node.narrow().await, "", None).await.unwrap();
    slow.connect(&node.token("clara", Role::Consumer, 3_600)).await;
    // The topic that only this one listens to tells when the node has given up on it.
    for topic in ["app:noise", "presence:clara"] {
        assert_eq!(slow.ask(0, "topic:subscribe", &subscribe(topic)).await["ok"], true);
    }
    let mut quick = Engine::open(&node, None).await.unwrap();
    quick.connect(&node.token("quinn", Role::Consumer, 3_600)).await;
    assert_eq!(quick.ask(0, "topic:subscribe", &subscribe("app:noise")).await["ok"], true);

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
        config.systems.set(Grants(vec![TopicGrant { durable: true, ..grant("app:log") }]));
    })
    .await;
    let mut bob = node.ws("bob").await;
    let start = bob.ok("topic:subscribe", json!({"topic": "app:log"})).await;
    for _ in 0..30 {
        let said = json!({"topic": "app:log", "event": "app:said", "data": "x".repeat(9_000)});
        bob.ok("topic:publish", said).await;
    }
    let mut polling = Polling::open(&node).await;
    let token = node.token("clara", Role::Consumer, 3_600);
    let auth = json!({"token": token, "positions": {"app:log": start["position"]}});
    polling.say(&format!("40{auth}")).await;
    // Until an answer is as full as it gets.
    let packets = polling.until("42[\"app:said\"").await;
    let mut engine = Engine::upgrade(&node, &polling.sid).await.unwrap();
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
