//! The store goes away under a node that is in use, and comes back.

use std::time::Duration;

use proxie::persistence::embedded::{DataLock, Embedded, Options};
use proxie::systems::devices::domain::clock::DeviceId;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Connection};

use super::{TestNode, Ws, id, text};
use crate::embedded::{Folder, postmaster};
use crate::support::eventually;

/// The server and all of its processes, the server first: it starts no others then.
fn signal_all(server: Pid, signal: Signal) {
    let _ = kill_process(server, signal);
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let status = std::fs::read_to_string(process.path().join("status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Pid::from_raw(line.trim().parse().ok()?)
        };
        if field("PPid:") == Some(server)
            && let Some(pid) = field("Pid:")
        {
            // It may be over by now.
            let _ = kill_process(pid, signal);
        }
    }
}

/// A server that was stopped goes on, also when a test fails.
pub struct Frozen(Pid);

impl Frozen {
    pub fn new(server: Pid) -> Self {
        signal_all(server, Signal::STOP);
        Self(server)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        signal_all(self.0, Signal::CONT);
    }
}

/// The same frame until it is taken. Nothing but `unavailable` is heard before.
pub async fn insist(ws: &mut Ws, id: &str, event: &str, data: &Value) -> Value {
    let deadline = tokio::time::Instant::now() + super::PATIENCE;
    loop {
        let reply = ws.ask_as(id, event, data.clone()).await;
        if reply["ok"] == true {
            return reply["data"].clone();
        }
        let error = &reply["error"];
        assert_eq!((&error["code"], &error["retryable"]), (&json!("unavailable"), &json!(true)));
        assert!(tokio::time::Instant::now() < deadline, "never taken: {reply}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub async fn server(folder: &Folder) -> Embedded {
    let options = Options { shared_buffers: "16MB".into(), ..Options::new(folder.data()) };
    let lock = DataLock::acquire(&folder.data()).unwrap();
    Embedded::start(options.without_durability(), lock).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_is_away_sockets_stay_and_commands_have_one_effect() {
    let folder = Folder::new("outage");
    let store = server(&folder).await;
    let database = store.create_database("outage", None).await.unwrap();
    let node = TestNode::with(|config| {
        config.persistence.database_url = database.to_url_lossy().to_string().into();
    })
    .await;
    let mut ws = node.ws("alice").await;
    let session = text(&ws.ok("session:open", json!({})).await["session_id"]);
    let topic = format!("session:{session}");
    let message = |content: &str| json!({"session_id": session, "content": content});
    ws.ok("chat:message", message("before")).await;
    let mut late = node.ws_silent("alice").await;
    let (anyone, alice) = (node.anonymous(), node.user("alice"));
    let ready = async |is: bool| {
        let wanted = if is { 200 } else { 503 };
        eventually("readiness follows the store", || async {
            anyone.get("/readyz").await.status == wanted
        })
        .await;
    };

    // It is gone.
    store.stop().await.unwrap();
    let gone = id();
    let reply = ws.ask_as(&gone, "chat:message", message("gone")).await;
    let error = &reply["error"];
    assert_eq!((&error["code"], &error["retryable"]), (&json!("unavailable"), &json!(true)));
    ready(false).await;
    assert_eq!(anyone.get("/healthz").await.status, 200);
    for answer in [
        alice.get("/v1/bookings").await,
        alice.post(&format!("/v1/sessions/{session}/messages"), &json!({"content": "http"})).await,
    ] {
        answer.problem(503, "unavailable");
        assert!(answer.headers.contains_key("retry-after"));
    }
    assert_eq!(ws.refused("chat:message", message("never")).await, "unavailable");
    assert_eq!(late.refused("auth", json!({})).await, "unavailable");
    ws.ok("ping", json!({})).await;

    // The same connections, and the same ids.
    let store = server(&folder).await;
    let taken = insist(&mut ws, &gone, "chat:message", &message("gone")).await;
    let again = insist(&mut ws, &gone, "chat:message", &message("gone")).await;
    assert_eq!(again, taken, "the same again");
    insist(&mut late, &id(), "auth", &json!({})).await;
    ready(true).await;

    // It is killed, and its supervisor starts another one, while a command is on its way.
    let killed = id();
    ws.say(&killed, "chat:message", message("killed")).await;
    let server = postmaster(&folder.data()).expect("it runs");
    kill_process(server, Signal::KILL).unwrap();
    ws.reply(&killed).await;
    insist(&mut ws, &killed, "chat:message", &message("killed")).await;
    let next = || postmaster(&folder.data()).filter(|next| *next != server);
    eventually("it is started again", || async { next().is_some() }).await;
    ready(true).await;

    // It does not answer for a while: whoever waits is told, as is whoever retries.
    let frozen = Frozen::new(next().expect("it runs"));
    let (waits, retry) = (id(), message("frozen"));
    ws.say(&waits, "chat:message", retry.clone()).await;
    late.say(&waits, "chat:message", retry.clone()).await;
    ready(false).await;
    alice.get("/v1/bookings").await.problem(503, "unavailable");
    ws.ok("ping", json!({})).await;
    assert_eq!(ws.reply_of(&waits).await["error"]["code"], "unavailable");
    assert_eq!(late.reply_of(&waits).await["error"]["code"], "unavailable");
    drop(frozen);
    let taken = insist(&mut ws, &waits, "chat:message", &retry).await;
    assert_eq!(insist(&mut late, &waits, "chat:message", &retry).await, taken);

    // The socket that was there all the time has heard of each once.
    let heard = ws.durable(&topic, 8).await;
    let offsets: Vec<_> = heard.iter().map(|event| event["offset"].as_i64().unwrap()).collect();
    assert_eq!(offsets, (1..=8).collect::<Vec<_>>());
    let said = heard.iter().filter(|event| event["event"] == "chat:message");
    let said: Vec<_> = said.map(|event| text(&event["data"]["content"])).collect();
    assert_eq!(said, ["before", "gone", "killed", "frozen"]);
    let kept = alice.get(&format!("/v1/sessions/{session}/messages")).await.json();
    let mine = kept["items"].as_array().unwrap().iter().filter(|m| m["role"] == "user").count();
    assert_eq!(mine, 4, "{kept}");
    node.node.stop().await;
    store.stop().await.unwrap();
}

/// Nobody writes anything, and the node says so all the same; and nobody waits for what cannot come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_not_used_knows_that_its_store_is_away() {
    let folder = Folder::new("unused");
    let store = server(&folder).await;
    let database = store.create_database("unused", None).await.unwrap();
    let node = TestNode::with(|config| {
        config.persistence.database_url = database.to_url_lossy().to_string().into();
        // Whoever waits for a connection hears of that instead.
        config.gateway.request_timeout_ms = 3_500;
    })
    .await;
    let (anyone, alice) = (node.anonymous(), node.user("alice"));
    let is_away = async |is: bool| {
        eventually("readiness follows the store", || async {
            let answer = anyone.get("/readyz").await;
            let page = answer.json();
            let said = page["details"]["store"].as_str().unwrap_or_default().to_owned();
            (answer.status == 503
                && page["checks"]["store"] == "failed"
                && said.contains("the store is away"))
                == is
                && (answer.status == 200) != is
        })
        .await;
    };
    store.stop().await.unwrap();
    is_away(true).await;
    // One that is live nowhere, and a read.
    alice.post("/v1/sessions", &json!({})).await.problem(503, "unavailable");
    alice.get("/v1/bookings").await.problem(503, "unavailable");
    let store = server(&folder).await;
    is_away(false).await;
    // Connections that broke meanwhile may show it once each.
    eventually("it is taken", || async {
        alice.post("/v1/sessions", &json!({})).await.status == 201
    })
    .await;
    // One that says nothing is no better.
    let frozen = Frozen::new(postmaster(&folder.data()).expect("it runs"));
    is_away(true).await;
    alice.post("/v1/sessions", &json!({})).await.problem(503, "unavailable");
    drop(frozen);
    is_away(false).await;
    node.node.stop().await;
    store.stop().await.unwrap();
}

/// Its callers were told that nobody knows. Listeners hear of it all the same, without waiting for the next publication.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_committed_late_is_heard() {
    let node = TestNode::start().await;
    let mut ws = node.ws("alice").await;
    let session = text(&ws.ok("session:open", json!({})).await["session_id"]);
    let topic = format!("session:{session}");
    let mut store = node.store().await;
    let mut blocking = store.begin().await.unwrap();
    sqlx::query("lock table publications in share mode").execute(&mut *blocking).await.unwrap();
    let (late, message) = (id(), json!({"session_id": session, "content": "late"}));
    let reply = ws.ask_as(&late, "chat:message", message.clone()).await;
    assert_eq!(reply["error"]["code"], "unavailable", "{reply}");
    blocking.rollback().await.unwrap();
    let heard = ws.durable(&topic, 2).await;
    assert_eq!(heard[0]["data"]["content"], "late");
    let taken = insist(&mut ws, &late, "chat:message", &message).await;
    assert_eq!(taken["message_id"], heard[0]["data"]["message_id"]);
}

/// Reads that hang have connections of their own: commands that need the store go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_hang_hold_up_no_command() {
    let node = TestNode::with(|config| {
        config.persistence.max_connections = 8;
        config.persistence.read_connections = 2;
    })
    .await;
    let mut store = node.store().await;
    let mut watching = node.store().await;
    let mut blocking = store.begin().await.unwrap();
    sqlx::query("lock table requests in access exclusive mode")
        .execute(&mut *blocking)
        .await
        .unwrap();
    let reads: Vec<_> = (0..30)
        .map(|_| {
            let alice = node.user("alice");
            tokio::spawn(async move { alice.get("/v1/requests").await.status })
        })
        .collect();
    loop {
        let waits =
            "select count(*) from pg_locks where not granted and relation = 'requests'::regclass";
        let waits: i64 = sqlx::query_scalar(waits).fetch_one(&mut watching).await.unwrap();
        if waits >= 2 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // A device that is in nobody's memory is loaded, and commits.
    let device = DeviceId::new(7).to_string();
    let body = json!({
        "device_id": device, "name": "a phone", "device_type": "ios",
        "capabilities": {"supported_platforms": [], "remote_control": true},
    });
    let answer = node.user("alice").post("/v1/devices/register", &body).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    assert!(reads.iter().all(|read| !read.is_finished()), "the command waited for reads");
    blocking.rollback().await.unwrap();
    for read in reads {
        assert!([200, 503].contains(&read.await.unwrap()));
    }
}
