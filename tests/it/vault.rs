//! The vault, seen from outside: what concerns a person is nowhere in the database in the plain, is read by those who
//! may, and cannot be read by anybody when the person was erased.

use proxie::app::node::Node;
use proxie::kernel::clock::Clock;
use proxie::kernel::secret::Secret;
use proxie::persistence::vault::{Erased, Master, Masters, erase, rotate};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::cluster::Nodes;
use crate::edges::{Http, TestNode, connect, text};
use crate::support::{eventually, pool};

/// Every table, as text.
pub async fn dump(store: &mut PgConnection) -> String {
    let tables = "select quote_ident(table_name) from information_schema.tables
        where table_schema = 'public' and table_type = 'BASE TABLE'";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut *store).await.unwrap();
    assert!(tables.len() > 15, "{tables:?}");
    let mut all = String::new();
    for table in tables {
        let sql = format!("select coalesce(string_agg(t::text, chr(10)), '') from {table} t");
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut *store).await.unwrap();
        all += row.get::<&str, _>(0);
    }
    all
}

/// In the database: as text, or as the bytes of a snapshot.
pub fn holds(dump: &str, secret: &str) -> bool {
    let bytes: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    dump.contains(secret) || dump.contains(&bytes)
}

pub async fn register(client: &Http, id: &str, token: &str) -> Value {
    let body = json!({
        "device_id": id, "name": "Phone", "device_type": "ios", "push_token": token,
        "capabilities": {"remote_control": true},
    });
    let answer = client.post("/v1/devices/register", &body).await;
    assert!([200, 201].contains(&answer.status), "{}", answer.text);
    answer.json()
}

pub const ALICES: &str = "dev_01HZX3K5Q6R7S8T9VAWBXCYDZE";
const BOBS: &str = "dev_01HZX3K5Q6R7S8T9VAWBXCYDZF";

#[tokio::test(flavor = "multi_thread")]
async fn a_push_token_is_sealed_until_its_person_is_erased() {
    // With a snapshot of each command.
    let node = TestNode::with(|config| config.entities.snapshot_every = 1).await;
    let (alice, bob) = (node.user("alice"), node.user("bob"));
    let first = register(&alice, ALICES, "alices-push-token").await;
    assert_eq!(first["has_push_token"], true);
    register(&bob, BOBS, "bobs-push-token").await;
    let mut store = node.store().await;
    let all = dump(&mut store).await;
    for secret in ["alices-push-token", "bobs-push-token"] {
        assert!(!holds(&all, secret), "{secret} is in the database");
    }
    assert!(holds(&all, "Phone"), "a dump shows what is not sealed");
    assert!(all.contains("sealed:1:"), "the journal has something in its place");

    // It is read from a snapshot, and from the journal without one: the same token again changes nothing.
    for forget in ["select 1", "delete from snapshots"] {
        sqlx::query(forget).execute(&mut store).await.unwrap();
    }
    let node = node.restart().await;
    let alice = node.user("alice");
    let again = register(&alice, ALICES, "alices-push-token").await;
    assert_eq!((&again["version"], &again["has_push_token"]), (&first["version"], &json!(true)));
    let changed = register(&alice, ALICES, "alices-new-token").await;
    assert_eq!(changed["version"].as_u64(), first["version"].as_u64().map(|n| n + 1));
    let node = node.restart().await;
    let (alice, bob) = (node.user("alice"), node.user("bob"));
    let again = register(&alice, ALICES, "alices-new-token").await;
    assert_eq!(again["version"], changed["version"], "from the snapshot");

    let writing = pool(node.config.persistence.database_url.parse().unwrap()).await;
    assert_eq!(erase(&writing, "alice").await.unwrap(), Erased::Key);
    assert_eq!(erase(&writing, "alice").await.unwrap(), Erased::Nothing);
    // Also the entity that is live forgets it.
    let path = format!("/v1/devices/{ALICES}");
    eventually("the node forgets", async || {
        alice.get(&path).await.json()["has_push_token"] == false
    })
    .await;
    assert_eq!(bob.get(&format!("/v1/devices/{BOBS}")).await.json()["has_push_token"], true);
    let node = node.restart().await;
    let (alice, bob) = (node.user("alice"), node.user("bob"));
    let device = alice.get(&path).await.json();
    assert_eq!((&device["has_push_token"], text(&device["name"])), (&json!(false), "Phone".into()));
    assert_eq!(bob.get(&format!("/v1/devices/{BOBS}")).await.json()["has_push_token"], true);
    // Whoever comes back begins anew.
    let back = register(&alice, ALICES, "alices-last-token").await;
    assert_eq!(back["has_push_token"], true);
    assert!(!holds(&dump(&mut node.store().await).await, "alices-last-token"));
    node.node.stop().await;
}

/// Opens a session and says something. The session, and the agent's answer.
async fn say(node: &TestNode, user: &str, words: &str) -> (String, String) {
    let mut ws = node.ws(user).await;
    let opened = json!({"session_id": null, "time_zone": "Europe/Berlin", "locale": "en"});
    let session = text(&ws.ok("session:open", opened).await["session_id"]);
    let media = json!([format!("https://example.org/{user}.jpg")]);
    let message = json!({"session_id": session, "content": words, "media": media});
    ws.ok("chat:message", message).await;
    let response = ws.event_named("chat:response").await;
    (session, text(&response["data"]["content"]))
}

/// What was said, from the read model and from the topic's history.
async fn heard(node: &TestNode, user: &str, session: &str) -> (Vec<Value>, Vec<Value>) {
    let list = node.user(user).get(&format!("/v1/sessions/{session}/messages")).await;
    assert_eq!(list.status, 200, "{}", list.text);
    let messages = list.json()["items"].as_array().unwrap().clone();
    let mut ws = node.ws(user).await;
    let epoch = node.node.core.identity.epoch.clone();
    let from = json!({"session_id": session, "position": {"epoch": epoch, "offset": 0}});
    let resumed = ws.ok("session:resume", from).await;
    assert_eq!(resumed["recovered"], true, "{resumed}");
    let mut history = Vec::new();
    while history.len() < 2 {
        let event = ws.event().await;
        if event["topic"] == format!("session:{session}") && event["offset"].is_u64() {
            history.push(event);
        }
    }
    (messages, history)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_and_notifications_are_sealed_until_their_person_is_erased() {
    let node = TestNode::with(|config| config.entities.snapshot_every = 1).await;
    let words = |user: &str| format!("hello, this is {user}s-zebrafish");
    let (alices, answer) = say(&node, "alice", &words("alice")).await;
    let (bobs, _) = say(&node, "bob", &words("bob")).await;
    // A registered device is a notification.
    register(&node.user("alice"), ALICES, "alices-push-token").await;
    let mut store = node.store().await;
    let notified = "select count(*) from publications where topic = 'user:alice'";
    eventually("alice is notified", async || {
        sqlx::query_scalar::<_, i64>(notified).fetch_one(&mut node.store().await).await.unwrap() > 0
    })
    .await;
    let all = dump(&mut store).await;
    for secret in [&*words("alice"), "zebrafish", "alice.jpg", &answer, "alices-push-token"] {
        assert!(!holds(&all, secret), "{secret} is in the database");
    }
    let open = "select count(*) from publications where data not like ' \"sealed:1:%'";
    let open: i64 = sqlx::query_scalar(open).fetch_one(&mut store).await.unwrap();
    assert_eq!(open, 0, "publications in the plain");

    let check = async |node: &TestNode, user: &str, session: &str| {
        let (messages, history) = heard(node, user, session).await;
        assert_eq!(messages[0]["content"], words(user));
        assert_eq!(messages[0]["media"][0], format!("https://example.org/{user}.jpg"));
        assert_eq!(messages[1]["role"], "agent");
        assert!(!text(&messages[1]["content"]).is_empty());
        assert_eq!(history[0]["data"]["content"], messages[0]["content"]);
        assert_eq!(history[1]["data"]["content"], messages[1]["content"]);
    };
    check(&node, "alice", &alices).await;
    let node = node.restart().await;
    for (user, session) in [("alice", &alices), ("bob", &bobs)] {
        check(&node, user, session).await;
    }

    let writing = pool(node.config.persistence.database_url.parse().unwrap()).await;
    assert_eq!(erase(&writing, "alice").await.unwrap(), Erased::Key);
    let path = format!("/v1/sessions/{alices}/messages");
    eventually("the node forgets", async || {
        node.user("alice").get(&path).await.json()["items"][0]["content"] == ""
    })
    .await;
    for forget in ["select 1", "delete from snapshots"] {
        sqlx::query(forget).execute(&mut node.store().await).await.unwrap();
    }
    let node = node.restart().await;
    let (messages, history) = heard(&node, "alice", &alices).await;
    for message in &messages {
        assert_eq!((&message["content"], &message["media"]), (&json!(""), &json!([])));
        assert_eq!(message["data"], json!({"erased": true}));
    }
    for (event, offset) in history.iter().zip(1..) {
        assert_eq!((&event["event"], &event["offset"]), (&json!("topic:erased"), &json!(offset)));
        assert_eq!(event["data"], json!({}));
    }
    check(&node, "bob", &bobs).await;
    // The conversation goes on.
    let mut ws = node.ws("alice").await;
    let more = json!({"session_id": alices, "content": "hello again", "media": []});
    ws.ok("session:resume", json!({"session_id": alices})).await;
    ws.ok("chat:message", more).await;
    assert!(!text(&ws.event_named("chat:response").await["data"]["content"]).is_empty());
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_master_key_does_not_start_and_the_key_can_be_changed() {
    let node = TestNode::start().await;
    let (key, other) = ("5e".repeat(32), "6f".repeat(32));
    let first = register(&node.user("alice"), ALICES, "alices-push-token").await;
    let mut config = node.config.clone();
    node.node.stop().await;
    config.vault.key = Secret::new(other.clone());
    let refused = Node::start(&config).await.err().expect("it does not start").to_string();
    assert!(refused.contains("master key is another one"), "{refused}");
    assert!(!refused.contains(&other), "{refused}");

    let database = config.persistence.database_url.parse().unwrap();
    let writing = pool(database).await;
    let (before, now) = (Master::parse(&key).unwrap(), Master::parse(&other).unwrap());
    let unknown = rotate(&writing, &Masters::only(now.clone())).await.unwrap_err();
    assert!(unknown.contains("previous_key_file"), "{unknown}");
    let masters = Masters { current: now, previous: Some(before) };
    assert_eq!(rotate(&writing, &masters).await, Ok(1));
    assert_eq!(rotate(&writing, &masters).await, Ok(0));
    let node = TestNode::of(config, Clock::System).await;
    let again = register(&node.user("alice"), ALICES, "alices-push-token").await;
    assert_eq!(again["version"], first["version"], "it is the same token");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_keeps_the_master_key_until_one_is_configured() {
    let node = TestNode::with(|config| config.vault.key = Secret::new(String::new())).await;
    let first = register(&node.user("alice"), ALICES, "alices-push-token").await;
    let mut config = node.config.clone();
    node.node.stop().await;
    let writing = pool(config.persistence.database_url.parse().unwrap()).await;
    let kept = "select count(kept) from vault";
    let is_kept = async || sqlx::query_scalar::<_, i64>(kept).fetch_one(&writing).await.unwrap();
    assert_eq!(is_kept().await, 1);
    // Another machine needs nothing but the database; one with a key reads both, until all is wrapped with that.
    let now = "6f".repeat(32);
    for key in ["", &now] {
        config.vault.key = Secret::new(key.into());
        let node = TestNode::of(config.clone(), Clock::System).await;
        let again = register(&node.user("alice"), ALICES, "alices-push-token").await;
        assert_eq!(again["version"], first["version"], "it is the same token");
        node.node.stop().await;
    }
    let masters = Masters::only(Master::parse(&now).unwrap());
    assert_eq!((rotate(&writing, &masters).await, is_kept().await), (Ok(1), 0));
    let node = TestNode::of(config.clone(), Clock::System).await;
    let again = register(&node.user("alice"), ALICES, "alices-push-token").await;
    assert_eq!(again["version"], first["version"]);
    node.node.stop().await;
    config.vault.key = Secret::new(String::new());
    let refused = Node::start(&config).await.err().expect("it does not start").to_string();
    assert!(refused.contains("set vault.key"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_reads_it_and_all_forget_who_was_erased() {
    let nodes = Nodes::with("vault", 2, false, &[]).await;
    nodes.settled(2).await;
    let mut sessions = Vec::new();
    for user in ["alice", "bob"] {
        let mut ws = connect(nodes.address(0), &nodes.token(user, "consumer")).await;
        let opened = json!({"session_id": null, "time_zone": "UTC", "locale": "en"});
        let session = text(&ws.ok("session:open", opened).await["session_id"]);
        let message = json!({"session_id": session, "content": format!("hello, {user}-zebra")});
        ws.ok("chat:message", message).await;
        sessions.push(session);
    }
    let said = async |n: usize, user: &str, session: &str| {
        let token = Some(nodes.token(user, "consumer"));
        let http = Http { address: nodes.address(n), token };
        http.get(&format!("/v1/sessions/{session}/messages")).await.json()["items"][0]["content"]
            .clone()
    };
    for n in 0..2 {
        assert_eq!(said(n, "alice", &sessions[0]).await, "hello, alice-zebra");
    }
    assert!(!holds(&dump(&mut nodes.store().await).await, "zebra"));
    let erased = nodes.command(&["person", "erase", "alice"]);
    assert!(erased.contains("alice is erased") && erased.contains("Names, places"), "{erased}");
    assert!(nodes.command(&["person", "erase", "alice"]).contains("nothing is sealed for alice"));
    for n in 0..2 {
        eventually("the node forgets", async || said(n, "alice", &sessions[0]).await == "").await;
        assert_eq!(said(n, "bob", &sessions[1]).await, "hello, bob-zebra");
    }
    let shown = nodes.command(&["entity", "show", "session", &sessions[1], "--events"]);
    assert!(!shown.contains("zebra") && shown.contains("(private)"), "{shown}");
}
