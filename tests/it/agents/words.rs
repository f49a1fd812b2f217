//! Words in the middle of runs, on two nodes that are killed now and then: each agent's policy is kept, and no word is lost
//! or heard twice.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use proxie::kernel::agent::MessagePolicy;
use proxie::systems::agents::definitions::{AgentOptions, AgentSection};
use rand::Rng;
use serde_json::{Value, json};
use sqlx::ConnectOptions;

use super::kills::NodeProcess;
use super::outside::Outside;
use crate::cluster::free_address;
use crate::edges::Http;
use crate::models::fake::{Does, Fake};
use crate::support::database;

const POLICIES: [(&str, MessagePolicy); 4] = [
    ("enqueue", MessagePolicy::Enqueue),
    ("reject", MessagePolicy::Reject),
    ("interrupt", MessagePolicy::Interrupt),
    ("steer", MessagePolicy::Steer),
];
/// At the same time.
const RUNS: usize = 24;
/// Said in the middle of each.
const WORDS: usize = 4;

/// An agent of each policy.
pub fn agents() -> AgentSection {
    let agents = POLICIES.map(|(name, on_message)| {
        let agent = AgentOptions {
            instructions: Some("Note what is said.".into()),
            tools: Some(vec!["write_note".into()]),
            on_message: Some(on_message),
            ..AgentOptions::default()
        };
        (name.to_owned(), agent)
    });
    AgentSection(agents.into())
}

/// Notes what was said last, and is done.
fn notes(body: &Value) -> Does {
    let messages = body["messages"].as_array().unwrap();
    let last = messages.last().unwrap();
    if last["role"] == "tool" {
        return Does::Says(vec!["do", "ne"], Duration::from_millis(10));
    }
    let spoken = messages.iter().rfind(|message| message["role"] == "user").unwrap();
    let text = spoken["content"].as_str().or_else(|| spoken["content"][0]["text"].as_str());
    Does::Calls("write_note", json!({"text": text.unwrap()}))
}

struct Nodes {
    client: reqwest::Client,
    nodes: [Mutex<Http>; 2],
}

/// The answer of one of the nodes, asked again under the same id while there is none.
async fn ask(nodes: &Nodes, key: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    for _ in 0..600 {
        let n = rand::rng().random_range(0..2);
        let Http { address, token } = nodes.nodes[n].lock().clone();
        let url = format!("http://{address}{path}");
        let request = match &body {
            Some(body) => nodes.client.post(url).body(body.to_string()),
            None => nodes.client.get(url),
        };
        let request = request
            .timeout(Duration::from_secs(10))
            .bearer_auth(token.unwrap())
            .header("content-type", "application/json")
            .header("idempotency-key", key);
        if let Ok(answer) = request.send().await
            && let status = answer.status().as_u16()
            && !matches!(status, 429 | 500..)
            && let Ok(text) = answer.text().await
        {
            return (status, serde_json::from_str(&text).unwrap());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{path} was never answered");
}

fn pause(ms: u64) -> Duration {
    Duration::from_micros(rand::rng().random_range(0..ms * 1_000))
}

/// One run with words in its middle. Returns how many were refused, as its agent was at work.
async fn talk(nodes: &Nodes, name: String) -> usize {
    let (agent, policy) = POLICIES[rand::rng().random_range(0..POLICIES.len())];
    let first = format!("{name}-first");
    let (status, run) =
        ask(nodes, &name, "/v1/runs", Some(json!({"agent": agent, "text": first}))).await;
    assert_eq!(status, 201, "{run}");
    let path = format!("/v1/runs/{}", run["id"].as_str().unwrap());
    let (mut heard, mut refused) = (vec![first], 0);
    for n in 0..WORDS {
        tokio::time::sleep(pause(100)).await;
        let word = format!("{name}-word-{n}");
        let said = Some(json!({"text": word}));
        let (status, answer) = ask(nodes, &word, &format!("{path}/messages"), said).await;
        match (status, policy) {
            (200, _) => heard.push(word),
            (409, MessagePolicy::Reject) => refused += 1,
            _ => panic!("{policy:?} {status} {answer}"),
        }
    }
    let mut shown = Value::Null;
    for _ in 0..1_200 {
        shown = ask(nodes, "-", &path, None).await.1;
        if shown["run"]["status"] == "answered" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(shown["run"]["status"], "answered", "{shown:#}");
    let messages = shown["messages"].as_array().unwrap();
    let spoken = messages.iter().filter(|message| message["role"] == "user");
    let spoken: Vec<_> = spoken.map(|message| message["text"].as_str().unwrap()).collect();
    assert_eq!(spoken, heard, "{policy:?} {shown:#}");
    assert_eq!(messages.last().unwrap()["text"], "done");
    for (before, message) in messages.iter().zip(&messages[1..]) {
        let is_done = before["text"] == "done" || before["role"] == "user";
        let may_be_next = is_done || policy.is_taken_soon();
        assert!(message["role"] != "user" || may_be_next, "{policy:?} {shown:#}");
    }
    refused
}

/// `PROXIE_WORDS` says how many are said.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_said_while_nodes_die_is_heard_once_as_its_agent_takes_it() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let words: usize = std::env::var("PROXIE_WORDS").map_or(96, |words| words.parse().unwrap());
    let (fake, outside) = (Fake::start().await, Outside::start().await);
    fake.otherwise(Does::Decides(notes));
    let database = database().await.to_url_lossy().to_string();
    let settings = [0, 1].map(|n| {
        let cluster = json!({"name": format!("node-{n}"), "listen": free_address()});
        json!({"database": database, "model": fake.url("v1"), "outside": outside.url, "cluster": cluster})
    });
    let mut processes = join_all(settings.iter().map(NodeProcess::start)).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let nodes = [0, 1].map(|n: usize| Mutex::new(processes[n].http.clone()));
    let nodes = Nodes { client, nodes };
    let refused = AtomicUsize::new(0);
    let rounds = words.div_ceil(RUNS * WORDS);
    for round in 0..rounds {
        let talks = (0..RUNS).map(async |n| {
            let those = talk(&nodes, format!("run-{round}-{n}")).await;
            refused.fetch_add(those, Ordering::Relaxed);
        });
        let n = round % 2;
        let killed = async {
            tokio::time::sleep(pause(500)).await;
            processes[n].kill();
            processes[n] = NodeProcess::start(&settings[n]).await;
            *nodes.nodes[n].lock() = processes[n].http.clone();
        };
        futures_util::join!(join_all(talks), killed);
    }
    let noted = ask(&nodes, "-", "/v1/notes", None).await.1["items"].clone();
    let noted: Vec<_> = noted.as_array().unwrap().iter().map(|note| note.to_string()).collect();
    let once: BTreeSet<_> = noted.iter().collect();
    assert_eq!(once.len(), noted.len(), "a note was written twice");
    let said = rounds * RUNS * WORDS;
    println!(
        "{said} words and {rounds} kills: {} words refused, {} turns of the model, {} notes",
        refused.into_inner(),
        fake.asked().len(),
        noted.len(),
    );
}
