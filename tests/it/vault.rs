//! The vault, seen from outside: what concerns a person is nowhere in the database in the plain, is read by those who
//! may, and cannot be read by anybody when the person was erased.

use proxie::persistence::vault::{Erased, erase};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::edges::{Http, TestNode, text};
use crate::support::{eventually, pool};

/// Every table, as text.
async fn dump(store: &mut PgConnection) -> String {
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
fn holds(dump: &str, secret: &str) -> bool {
    let bytes: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    dump.contains(secret) || dump.contains(&bytes)
}

async fn register(client: &Http, id: &str, token: &str) -> Value {
    let body = json!({
        "device_id": id, "name": "Phone", "device_type": "ios", "push_token": token,
        "capabilities": {"remote_control": true},
    });
    let answer = client.post("/v1/devices/register", &body).await;
    assert!([200, 201].contains(&answer.status), "{}", answer.text);
    answer.json()
}

const ALICES: &str = "dev_01HZX3K5Q6R7S8T9VAWBXCYDZE";
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
