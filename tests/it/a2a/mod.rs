//! The door for agents of others: A2A 1.0 in both bindings.

mod cards;
mod negotiation;
mod nodes;
mod outside;
mod push;
mod python;
mod refusals;
mod streams;

use std::net::SocketAddr;
use std::time::Duration;

use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::edges::{Answer, Http, TestNode, id};

const PATIENCE: Duration = Duration::from_secs(20);
const VERSION: (&str, &str) = ("a2a-version", "1.0");

/// An agent of somebody's, which speaks to one of ours.
#[derive(Clone)]
pub struct Stranger {
    pub http: Http,
    /// `/a2a`, or a provider's.
    pub agent: String,
}

impl Stranger {
    pub fn new(http: Http, agent: &str) -> Self {
        Self { http, agent: agent.into() }
    }

    /// With what is sent and what comes back as it is.
    pub async fn raw(&self, headers: &[(&str, &str)], body: &str) -> Answer {
        let json = [("content-type", "application/json")];
        let headers = [&json, headers].concat();
        self.http.send("POST", &self.agent, &headers, body.as_bytes()).await
    }

    async fn rpc(&self, method: &str, params: Value) -> Value {
        let body = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        let answer = self.raw(&[VERSION], &body.to_string()).await;
        assert_eq!(answer.status, 200, "{method}: {}", answer.text);
        let answer = answer.json();
        assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!(7)), "{answer}");
        answer
    }

    pub async fn ask(&self, method: &str, params: Value) -> Value {
        let mut answer = self.rpc(method, params).await;
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].take()
    }

    /// The error of a request that is refused.
    pub async fn refused(&self, method: &str, params: Value) -> Value {
        let mut answer = self.rpc(method, params).await;
        assert!(answer["result"].is_null(), "{method}: {answer}");
        answer["error"].take()
    }

    /// Over the other binding.
    pub async fn rest(&self, method: &str, path: &str, body: &Value) -> Answer {
        let headers = [VERSION, ("content-type", "application/a2a+json")];
        let body =
            if method == "GET" || method == "DELETE" { String::new() } else { body.to_string() };
        self.http.send(method, &format!("{}{path}", self.agent), &headers, body.as_bytes()).await
    }

    /// The task after this message.
    pub async fn send(&self, message: Value) -> Value {
        self.ask("SendMessage", json!({"message": message})).await["task"].take()
    }

    pub async fn task(&self, id: &Value) -> Value {
        self.ask("GetTask", json!({"id": id})).await
    }

    /// The task once it is in this state.
    pub async fn in_state(&self, id: &Value, state: &str) -> Value {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let task = self.task(id).await;
            if state_of(&task) == state {
                return task;
            }
            assert!(tokio::time::Instant::now() < deadline, "never {state}: {task}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

pub fn message(parts: Value) -> Value {
    json!({"messageId": id(), "role": "ROLE_USER", "parts": parts})
}

pub fn to_task(task: &Value, parts: Value) -> Value {
    let mut message = message(parts);
    message["taskId"] = task["id"].clone();
    message
}

pub fn accept(offer_id: &Value) -> Value {
    json!([{"data": {"accept": {"offer_id": offer_id}}}])
}

/// A haircut at Alexanderplatz, so many days from now.
pub fn wish(days: i64, euros: i64) -> Value {
    let at = Clock::System.now() + std::time::Duration::from_secs(days as u64 * 86_400);
    json!([{"data": {"ask": {
        "service": "haircut", "place": "Alexanderplatz, Berlin", "starts_at": at,
        "budget": {"amount_minor": euros * 100, "currency": "EUR"},
    }}}])
}

pub fn state_of(task: &Value) -> &str {
    task["status"]["state"].as_str().unwrap().strip_prefix("TASK_STATE_").unwrap()
}

/// The offer among a task's artifacts.
pub fn offer_of(task: &Value) -> Value {
    let all = task["artifacts"].as_array().into_iter().flatten();
    let mut offers = all.filter_map(|one| one["parts"][0]["data"].get("offer"));
    offers.next().unwrap_or_else(|| panic!("no offer: {task}")).clone()
}

impl TestNode {
    pub fn stranger(&self, user: &str, agent: &str) -> Stranger {
        Stranger::new(self.user(user), agent)
    }

    /// One whose token has these scopes only.
    pub fn limited_stranger(&self, user: &str, scopes: &str, agent: &str) -> Stranger {
        let auth = &self.node.gateway().auth;
        let now = Clock::System.now();
        let token = auth.mint_for(user, Role::Consumer, None, Some(scopes), now, 3_600);
        Stranger::new(Http { address: self.node.address, token: Some(token) }, agent)
    }
}

pub fn of_provider(id: &str) -> String {
    format!("/a2a/providers/{id}")
}

/// A stream of events.
pub struct Stream {
    lines: tokio::io::Lines<BufReader<TcpStream>>,
    rpc: bool,
}

impl Stream {
    /// Over JSON-RPC.
    pub async fn rpc(stranger: &Stranger, method: &str, params: Value) -> Self {
        let body = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        Self::open(&stranger.http, &stranger.agent, body, true).await
    }

    /// Over HTTP+JSON.
    pub async fn rest(stranger: &Stranger, path: &str, body: Value) -> Self {
        Self::open(&stranger.http, &format!("{}{path}", stranger.agent), body, false).await
    }

    async fn open(http: &Http, path: &str, body: Value, rpc: bool) -> Self {
        let address: SocketAddr = http.address;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let (token, body) = (http.token.as_ref().unwrap(), body.to_string());
        // HTTP/1.0: the body ends with the connection, and is not in chunks.
        let head = format!(
            "POST {path} HTTP/1.0\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\na2a-version: 1.0\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        while lines.next_line().await.unwrap().is_some_and(|line| !line.is_empty()) {}
        Self { lines, rpc }
    }

    /// The next event. `None`: the stream has ended.
    pub async fn next(&mut self) -> Option<Value> {
        let reading = async {
            while let Ok(Some(line)) = self.lines.next_line().await {
                if let Some(data) = line.strip_prefix("data: ") {
                    let mut event: Value = serde_json::from_str(data).unwrap();
                    return Some(if self.rpc { event["result"].take() } else { event });
                }
            }
            None
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("an event")
    }

    /// All that comes until it ends.
    pub async fn rest_of_it(mut self) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}
