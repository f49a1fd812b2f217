//! Agents at work: their runs, on models that follow a script, through everything that happens to nodes and people.

mod chat;
mod desk;
mod injection;
mod kills;
mod outside;
mod peers;
mod runs;
mod servers;
mod smollm;
mod tools;
mod words;

use std::time::Duration;

use proxie::ai::Options;
use serde_json::{Value, json};

use crate::edges::Http;
use crate::models::fake;

/// A model at this address, without a limit of what it may cost.
pub fn model(url: String) -> Options {
    Options { route: "gpt".into(), daily_limit: String::new(), ..fake::one_model(url, 64, 10_000) }
}

/// Results that the model has seen so far.
pub fn results(body: &Value) -> usize {
    let messages = body["messages"].as_array().unwrap();
    messages.iter().filter(|message| message["role"] == "tool").count()
}

pub async fn start(http: &Http, agent: &str, text: &str) -> String {
    let run = http.post("/v1/runs", &json!({"agent": agent, "text": text})).await;
    assert_eq!(run.status, 201, "{}", run.text);
    run.json()["id"].as_str().unwrap().to_owned()
}

pub async fn get(http: &Http, run: &str) -> Value {
    http.get(&format!("/v1/runs/{run}")).await.json()
}

/// The run, once it is so.
pub async fn until(http: &Http, run: &str, status: &str) -> Value {
    for _ in 0..300 {
        let shown = get(http, run).await;
        if shown["run"]["status"] == status {
            return shown;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never {status}: {:#}", get(http, run).await)
}

/// The person's word on a call that waits.
pub async fn decide(http: &Http, run: &str, approval: &Value, allow: bool) -> u16 {
    let path = format!("/v1/runs/{run}/decisions/{}", approval["use_id"]);
    let word = json!({"arguments_hash": approval["arguments_hash"], "allow": allow});
    let answer = http.post(&path, &word).await;
    if answer.status == 400 {
        panic!("{}", answer.text);
    }
    answer.status
}
