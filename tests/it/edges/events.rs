//! Server-Sent Events: what a WebSocket would have brought, and exactly on from where a stream ended.

use proxie::systems::app_topics::settings::Grants;
use std::net::SocketAddr;

use proxie::kernel::entity::Role;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{PATIENCE, TestNode, connect, grant, id, text};

struct Stream {
    lines: tokio::io::Lines<BufReader<TcpStream>>,
    status: String,
    last_id: Option<String>,
}

#[derive(Debug)]
struct Event {
    name: String,
    data: Value,
}

impl Stream {
    async fn open(address: SocketAddr, token: &str, query: &str, last_id: Option<&str>) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let last_id = last_id.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        // HTTP/1.0: the body ends with the connection, and is not in chunks.
        let head = format!(
            "GET /v1/events{query} HTTP/1.0\r\nhost: x\r\nauthorization: Bearer {token}\r\n{last_id}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        let status = lines.next_line().await.unwrap().unwrap();
        while lines.next_line().await.unwrap().is_some_and(|line| !line.is_empty()) {}
        Self { lines, status, last_id: None }
    }

    async fn next(&mut self) -> Option<Event> {
        let reading = async {
            let mut event = Event { name: String::new(), data: Value::Null };
            while let Some(line) = self.lines.next_line().await.unwrap() {
                match line.split_once(": ") {
                    Some(("event", name)) => event.name = name.into(),
                    Some(("id", id)) => self.last_id = Some(id.into()),
                    Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
                    _ if line.is_empty() && !event.name.is_empty() => return Some(event),
                    _ => {}
                }
            }
            None
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("an event")
    }

    /// So many events with an offset.
    async fn durable(&mut self, n: usize) -> Vec<Value> {
        let mut found = Vec::new();
        while found.len() < n {
            let event = self.next().await.expect("the stream goes on");
            if event.data["offset"].is_i64() {
                assert_eq!(event.data["event"], event.name);
                found.push(event.data);
            }
        }
        found
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_names_scopes_listens_to_topics_of_these_scopes_only() {
    let grants = Grants(vec![grant("app:plaza")]);
    let node = TestNode::with(|config| config.systems.set(grants)).await;
    let alice = node.token("alice", Role::Consumer, 3_600);
    let mut all = connect(node.node.address, &alice).await;
    let session = all.ask_as(&id(), "session:open", json!({"session_id": null})).await;
    let session = format!("session:{}", text(&session["data"]["session_id"]));
    let topics = ["user:alice", &session, "sync:alice", "presence:alice", "app:plaza"];
    let scopes = ["user", "session", "sync", "presence", "topic"];
    let auth = &node.node.gateway().auth;
    let query = topics.iter().map(|topic| format!("topic={topic}")).collect::<Vec<_>>().join("&");
    let is_allowed = |outcome: &Value, topic: &str| {
        let error = &outcome["error"];
        assert!(error.is_null() || error["reason"] == "insufficient_scope", "{topic}: {outcome}");
        error.is_null()
    };
    let named = scopes.iter().map(|scope| Some(*scope)).chain([None, Some(""), Some("chat")]);
    for scope in named {
        let now = node.clock.now();
        let token = auth.mint_for("alice", Role::Consumer, None, scope, now, 3_600);
        let mut ws = connect(node.node.address, &token).await;
        let welcome = ws.ask_as(&id(), "auth", json!({})).await;
        let inbox = &welcome["data"]["topics"]["user:alice"];
        let mut stream = Stream::open(node.node.address, &token, &format!("?{query}"), None).await;
        assert!(stream.status.contains("200"), "{}", stream.status);
        let ready = stream.next().await.unwrap();
        for (topic, takes) in topics.iter().zip(scopes) {
            let expected = scope.is_none_or(|scope| scope == takes);
            let subscribed = ws.ask_as(&id(), "topic:subscribe", json!({"topic": topic})).await;
            assert_eq!(is_allowed(&subscribed, topic), expected, "{topic} with {scope:?}");
            let shown = &ready.data["topics"][topic];
            assert_eq!(is_allowed(shown, topic), expected, "{topic} with {scope:?}");
        }
        assert_eq!(
            inbox["error"].is_null(),
            scope.is_none_or(|scope| scope == "user"),
            "{welcome}"
        );
    }
}

#[tokio::test]
async fn a_stream_goes_on_where_it_ended() {
    let node = TestNode::start().await;
    let (address, token) = (node.node.address, node.token("alice", Role::Consumer, 3_600));
    let mut alice = node.ws("alice").await;
    let session = text(&alice.ok("session:open", json!({})).await["session_id"]);
    let topic = format!("session:{session}");
    let query = format!("?topic={topic}&topic=presence:alice");
    let mut stream = Stream::open(address, &token, &query, None).await;
    let ready = stream.next().await.unwrap();
    assert_eq!((ready.name.as_str(), &ready.data["user_id"]), ("ready", &json!("alice")));
    assert_eq!(ready.data["topics"][&topic]["recovered"], true);
    let say = |n: usize| json!({"session_id": session, "content": format!("message {n}")});
    for n in 0..3 {
        alice.ok("chat:message", say(n)).await;
    }
    let offsets = |events: &[Value]| -> Vec<i64> {
        events.iter().map(|event| event["offset"].as_i64().unwrap()).collect()
    };
    // A message and its answer each. The stream is lost after the fourth.
    assert_eq!(offsets(&stream.durable(4).await), [1, 2, 3, 4]);
    let last = stream.last_id.clone().unwrap();
    drop(stream);
    // Far more than one page of history.
    for n in 3..80 {
        alice.ok("chat:message", say(n)).await;
    }
    let mut stream = Stream::open(address, &token, &query, Some(&last)).await;
    let ready = stream.next().await.unwrap();
    assert_eq!(ready.data["topics"][&topic]["recovered"], true, "{ready:?}");
    let missed = stream.durable(156).await;
    assert_eq!(offsets(&missed), (5..=160).collect::<Vec<_>>());
    // The same frames as over a socket.
    let mut alice = node.ws("alice").await;
    let resume = json!({"session_id": session, "position": {"epoch": text(&ready.data["topics"][&topic]["position"]["epoch"]), "offset": 4}});
    alice.ok("session:resume", resume).await;
    assert_eq!(alice.durable(&topic, 156).await, missed);
    // And what is live.
    alice.ok("presence:online", json!({"status": "here"})).await;
    loop {
        let event = stream.next().await.unwrap();
        if event.name == "presence:changed" && event.data["data"]["status"] == "here" {
            break;
        }
    }
}

#[tokio::test]
async fn a_stream_is_its_users_and_ends_with_the_token() {
    let node = TestNode::start().await;
    let address = node.node.address;
    let session = {
        let mut alice = node.ws("alice").await;
        text(&alice.ok("session:open", json!({})).await["session_id"])
    };
    let refused = Stream::open(address, "nonsense", "", None).await;
    assert!(refused.status.contains("401"), "{}", refused.status);
    let eve = node.token("eve", Role::Consumer, 3_600);
    for query in ["?topic=nonsense", "?what=user:eve"] {
        let refused = Stream::open(address, &eve, query, None).await;
        assert!(refused.status.contains("400"), "{query}: {}", refused.status);
    }
    let many: String = (0..40).map(|n| format!("&topic=app:t{n}")).collect();
    let refused = Stream::open(address, &eve, &format!("?{}", &many[1..]), None).await;
    assert!(refused.status.contains("422"), "{}", refused.status);
    // Another's session is an error beside her own topics.
    let mut stream = Stream::open(address, &eve, &format!("?topic=session:{session}"), None).await;
    let ready = stream.next().await.unwrap();
    let topics = &ready.data["topics"];
    assert_eq!(topics[format!("session:{session}")]["error"]["code"], "not_found");
    assert_eq!(topics["user:eve"]["recovered"], true);
    // A token that ends soon: a warning, and the end.
    let short = node.token("eve", Role::Consumer, 2);
    let mut stream = Stream::open(address, &short, "", None).await;
    let mut names = Vec::new();
    while let Some(event) = stream.next().await {
        names.push(event.name);
        if names.last().unwrap() == "close" {
            assert_eq!(event.data, json!({"code": 3502, "reason": {"code": "token_expired"}}));
        }
    }
    assert_eq!(names, ["ready", "token:expiring", "close"]);
}

/// A cursor that does not say where its client is in a topic leaves a hole there, and the client is told.
#[tokio::test]
async fn a_cursor_that_is_not_ours_is_no_silent_hole() {
    let node = TestNode::with(|config| config.systems.set(Grants(vec![grant("app:lobby")]))).await;
    let address = node.node.address;
    let mut alice = node.ws("alice").await;
    let session = text(&alice.ok("session:open", json!({})).await["session_id"]);
    let topic = format!("session:{session}");
    let query = format!("?topic={topic}&topic=app:lobby");
    let token = |user: &str| node.token(user, Role::Consumer, 3_600);
    let ready = |user: &'static str, last_id: Option<String>| {
        let (token, query) = (token(user), query.clone());
        async move {
            let mut stream = Stream::open(address, &token, &query, last_id.as_deref()).await;
            let ready =
                stream.next().await.unwrap_or_else(|| panic!("{last_id:?}: {}", stream.status));
            (ready.data["topics"].clone(), stream.last_id.unwrap())
        }
    };
    let recovered = |topics: &Value| {
        ["user:alice", &topic, "app:lobby"].map(|topic| topics[topic]["recovered"].as_bool())
    };
    let say = json!({"session_id": session, "content": "hello"});
    alice.ok("chat:message", say).await;
    let (topics, mine) = ready("alice", None).await;
    assert_eq!(recovered(&topics), [Some(true); 3], "{topics}");
    let (topics, _) = ready("alice", Some(mine.clone())).await;
    // What is not kept was missed, if there was any.
    assert_eq!(recovered(&topics), [Some(true), Some(true), Some(false)], "{topics}");

    let (_, bobs) = ready("bob", None).await;
    let epoch = mine.split(';').next().unwrap();
    for foreign in [
        "nonsense;x".to_owned(),
        "\u{e9}".into(),
        bobs,
        epoch.into(),
        format!("{epoch}x{}", &mine[epoch.len()..]),
        mine.replace("user:alice=", "user:alice=9")
            .replace(&format!("{topic}="), &format!("{topic}=9")),
        mine.replace('=', "=-1"),
        mine.replace('=', "=99999999999999999999"),
    ] {
        let (topics, _) = ready("alice", Some(foreign.clone())).await;
        assert_eq!(recovered(&topics), [Some(false); 3], "{foreign}: {topics}");
    }
    // A topic that was not listened to before is a newcomer's, so nobody knows what was missed there.
    let (topics, _) = ready("alice", Some(format!("{epoch};user:alice=0"))).await;
    assert_eq!(recovered(&topics), [Some(true), Some(false), Some(false)], "{topics}");
}

#[tokio::test]
async fn a_node_that_leaves_says_so() {
    let node = TestNode::start().await;
    let token = node.token("alice", Role::Consumer, 3_600);
    let mut stream = Stream::open(node.node.address, &token, "", None).await;
    assert_eq!(stream.next().await.unwrap().name, "ready");
    assert_eq!(node.node.gateway().connections(), 1);
    node.node.gateway().drain(PATIENCE).await;
    let close = stream.next().await.unwrap();
    assert_eq!((close.name.as_str(), &close.data["code"]), ("close", &json!(3000)));
    assert!(close.data["reason"]["retry_after_ms"].is_u64());
    assert!(stream.next().await.is_none());
}
