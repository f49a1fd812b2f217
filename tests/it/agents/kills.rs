//! Nodes that are killed while agents work: every run ends, and each effect happens once.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proxie::ai::options::ServerOptions;
use proxie::app::node::Node;
use proxie::config::Config;
use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use proxie::kernel::secret::Secret;
use proxie::systems::agents::settings::AiSection;
use rand::Rng;
use serde_json::{Value, json};
use sqlx::ConnectOptions;

use super::outside::Outside;
use super::peers::{Peer, Takes, peers};
use super::servers::{key_of, scout, server};
use super::tools::{self, OutsideSection};
use super::{decide, get, model, results, start};
use crate::edges::Http;
use crate::mcp::outside::{Fault, Server};
use crate::models::fake::{Does, Fake};
use crate::support::{database, eventually};

const AS_A_NODE: &str = "PROXIE_TEST_AGENT_NODE";

/// A node in a process of its own, which is this program again.
pub struct NodeProcess {
    child: Child,
    pub http: Http,
}

impl NodeProcess {
    pub async fn start(settings: &Value) -> Self {
        let settings = settings.to_string();
        let starting = tokio::task::spawn_blocking(move || {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "agents::kills::as_a_node", "--nocapture", "--ignored"])
                .env(AS_A_NODE, settings)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
            let ready = said.find_map(|line| Some(line.ok()?.strip_prefix("ready ")?.to_owned()));
            let ready = ready.expect("the node starts");
            // It says nothing more that anybody reads.
            std::thread::spawn(move || said.for_each(drop));
            (child, ready)
        });
        let (child, ready) = starting.await.unwrap();
        let (address, token) = ready.split_once(' ').unwrap();
        let address = address.parse().unwrap();
        Self { child, http: Http { address, token: Some(token.to_owned()) } }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// No test: the process that the others kill.
#[tokio::test(flavor = "multi_thread")]
#[ignore]
async fn as_a_node() {
    let Ok(settings) = std::env::var(AS_A_NODE) else { return };
    let settings: Value = serde_json::from_str(&settings).unwrap();
    let text = |name: &str| settings[name].as_str().unwrap().to_owned();
    let mut config = Config::default();
    config.persistence.database_url = text("database").into();
    config.persistence.allow_fsync_off = true;
    config.vault.key = Secret::new("5e".repeat(32));
    config.gateway.listen = "127.0.0.1:0".into();
    config.systems.set(super::words::agents());
    let mut ai = model(text("model"));
    if let Some(url) = settings["servers"].as_str() {
        let server = server(url.to_owned(), &["book", "look"]);
        let server = ServerOptions { repeatable: vec!["look".into()], ..server };
        ai.servers.insert("maps".into(), server);
        let all = ["maps__book", "maps__look"];
        config.systems.set(scout(&all, &all));
    }
    if let Some(url) = settings["peers"].as_str() {
        config.systems.set(peers(url, "swordfish"));
        let all = ["ask_theirs", "ask_ours"];
        config.systems.set(scout(&all, &all));
    }
    config.systems.set(AiSection(ai));
    config.systems.set(OutsideSection { url: text("outside") });
    if let Some(cluster) = settings.get("cluster") {
        config.node.name = cluster["name"].as_str().unwrap().to_owned();
        config.cluster.enabled = true;
        config.cluster.cookie = "secret".into();
        config.cluster.listen = cluster["listen"].as_str().unwrap().to_owned();
        config.persistence.max_connections = 10;
    }
    let node = Node::start_systems(&config, Clock::System, tools::ALL).await.unwrap();
    let token = node.gateway().auth.mint("alice", Role::Consumer, Clock::System.now(), 86_400);
    println!("\nready {} {token}", node.address);
    std::future::pending::<()>().await;
}

/// Says yes to what waits, and looks first whether what is unknown has happened.
async fn allows(http: &Http, run: &str, outside: &Outside) {
    for approval in get(http, run).await["approvals"].as_array().into_iter().flatten() {
        let text = approval["arguments"]["text"].as_str().unwrap();
        let has_happened = outside.faxes.lock().iter().any(|fax| fax == text);
        decide(http, run, approval, !has_happened).await;
    }
}

/// `PROXIE_KILLS` says how often a node is killed at some step of its runs.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_step_a_node_dies_at_each_effect_happens_once() {
    let kills: usize = std::env::var("PROXIE_KILLS").map_or(4, |kills| kills.parse().unwrap());
    let (fake, outside) = (Fake::start().await, Outside::start().await);
    fake.otherwise(Does::Decides(super::runs::clerk));
    let database = database().await.to_url_lossy().to_string();
    let settings = json!({"database": database, "model": fake.url("v1"), "outside": outside.url});
    let mut node = NodeProcess::start(&settings).await;
    let mut runs = Vec::new();
    let mut unknown = 0;
    for n in 0..kills {
        let run = start(&node.http, "clerk", &format!("errand {n}")).await;
        runs.push(run.clone());
        let pause = Duration::from_micros(rand::rng().random_range(0..250_000));
        let deciding = async {
            loop {
                allows(&node.http, &run, &outside).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(pause, deciding).await;
        node.kill();
        node = NodeProcess::start(&settings).await;
        let was_unknown = AtomicBool::new(false);
        eventually(&format!("{run} ends"), async || {
            let shown = get(&node.http, &run).await;
            if shown["approvals"][0]["is_unknown"] == true {
                was_unknown.store(true, Ordering::Relaxed);
            }
            allows(&node.http, &run, &outside).await;
            shown["run"]["status"] == "answered"
        })
        .await;
        unknown += usize::from(was_unknown.into_inner());
    }
    let mut expected: Vec<_> = (0..kills).map(|n| format!("errand {n} 3")).collect();
    expected.sort();
    let mut faxes = outside.faxes.lock().clone();
    faxes.sort();
    assert_eq!(faxes, expected);
    let sent = outside.keyed.lock().clone();
    assert_eq!(sent.len(), 2 * kills, "{sent:?}");
    let notes = node.http.get("/v1/notes").await.json()["items"].clone();
    let mut notes: Vec<_> =
        notes.as_array().unwrap().iter().map(|note| note.as_str().unwrap().to_owned()).collect();
    notes.sort();
    let mut expected: Vec<_> =
        (0..kills).flat_map(|n| [1, 5].map(|m| format!("errand {n} {m}"))).collect();
    expected.sort();
    assert_eq!(notes, expected);
    let mut paid_twice = 0;
    for run in &runs {
        paid_twice += get(&node.http, run).await["run"]["repeated"].as_i64().unwrap();
    }
    let calls = fake.asked().len();
    println!(
        "{kills} kills: {calls} calls of the model for {} turns, {paid_twice} turns counted as begun before; {} repeated webhooks recognised; {unknown} outcomes asked of a person",
        4 * kills,
        outside.repeated.lock(),
    );
    assert!(calls >= 4 * kills && calls <= 4 * kills + paid_twice as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_to_an_outside_server_that_a_node_died_in_is_made_again_only_where_it_may_be() {
    let fake = Fake::start().await;
    let (outside, address) = Server::start().await;
    fake.otherwise(Does::Decides(|body| {
        let is_book = body["messages"].to_string().contains("book it");
        match results(body) {
            0 if is_book => Does::Calls("maps__book", json!({})),
            0 => Does::Calls("maps__look", json!({})),
            _ => Does::say("done"),
        }
    }));
    let database = database().await.to_url_lossy().to_string();
    let url = format!("http://{address}/mcp");
    let settings =
        json!({"database": database, "model": fake.url("v1"), "outside": "", "servers": url});
    let mut node = NodeProcess::start(&settings).await;
    for (words, status, calls) in [("book it", "waiting", 1), ("look it up", "answered", 2)] {
        outside.fails(&[Fault::Slow]);
        outside.calls.lock().clear();
        let run = start(&node.http, "scout", words).await;
        eventually("it is called", async || outside.calls.lock().len() == 1).await;
        node.kill();
        node = NodeProcess::start(&settings).await;
        eventually(&format!("{words}: {status}"), async || {
            get(&node.http, &run).await["run"]["status"] == status
        })
        .await;
        let keys: Vec<_> = outside.calls.lock().iter().map(key_of).collect();
        assert_eq!(keys, vec![format!("{run}-1"); calls], "{words}");
        let shown = get(&node.http, &run).await;
        let is_unknown = shown["approvals"][0]["is_unknown"] == true;
        assert_eq!(is_unknown, status == "waiting", "{words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_to_an_agent_of_others_that_a_node_died_in_is_not_sent_again_where_it_arrived() {
    let fake = Fake::start().await;
    let (peer, url) = Peer::start().await;
    fake.otherwise(Does::Decides(|body| {
        let words = body["messages"].to_string();
        let tool = if words.contains("to ours") { "ask_ours" } else { "ask_theirs" };
        match results(body) {
            0 => Does::Calls(tool, json!({"message": "book it"})),
            _ => Does::say("done"),
        }
    }));
    let database = database().await.to_url_lossy().to_string();
    let settings =
        json!({"database": database, "model": fake.url("v1"), "outside": "", "peers": url});
    let mut node = NodeProcess::start(&settings).await;
    // It took the message and works: whoever goes on looks the task up. It took the message and has not said so: that is
    // known to nobody where it does not recognise messages, and sent again under the same id where it does.
    for (words, takes, status, times) in [
        ("to theirs, at work", Takes::Works, "answered", 1),
        ("to theirs, silent", Takes::Silently, "waiting", 1),
        ("to ours, silent", Takes::Silently, "answered", 2),
    ] {
        peer.is(takes, "WORKING");
        let run = start(&node.http, "scout", words).await;
        eventually("it has the message", async || {
            peer.sent().len() == 1 && (takes == Takes::Silently || peer.looks() > 0)
        })
        .await;
        node.kill();
        peer.becomes("COMPLETED");
        node = NodeProcess::start(&settings).await;
        eventually(&format!("{words}: {status}"), async || {
            get(&node.http, &run).await["run"]["status"] == status
        })
        .await;
        let ids: Vec<_> = peer.sent().iter().map(|it| it["messageId"].clone()).collect();
        assert_eq!(ids, vec![json!(format!("{run}-1")); times], "{words}");
        let shown = get(&node.http, &run).await;
        assert_eq!(shown["approvals"][0]["is_unknown"] == true, status == "waiting", "{words}");
    }
}
