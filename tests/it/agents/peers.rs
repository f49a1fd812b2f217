//! Runs that talk to agents of others: to a provider's agent of another node, and to one that fails as it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use parking_lot::Mutex;
use proxie::ai::peers::options::{Options, OutsideAgentOptions};
use proxie::config::Config;
use proxie::kernel::entity::Role;
use proxie::systems::agents::definitions::AgentSection;
use proxie::systems::agents::settings::{AiSection, OutsideSection as PeersSection};
use serde_json::{Value, json};

use super::servers::{scout, shown};
use super::tools::{self, OutsideSection};
use super::{decide, model, results, start, until};
use crate::a2a::{of_provider, wish};
use crate::edges::TestNode;
use crate::models::fake::{Does, Fake};
use crate::support::eventually;

fn peer(url: &str, token: &str, idempotent: bool) -> OutsideAgentOptions {
    OutsideAgentOptions {
        url: url.into(),
        token: token.into(),
        summary: "It takes bookings.".into(),
        roles: vec!["scout".into()],
        idempotent,
        timeout_ms: 20_000,
    }
}

/// Two names of one agent: as `ours` it is known to recognise messages that come again.
pub fn peers(url: &str, token: &str) -> PeersSection {
    let agents = [
        ("theirs".to_owned(), peer(url, token, false)),
        ("ours".to_owned(), peer(url, token, true)),
    ];
    PeersSection(Options { agents: agents.into(), ..Options::default() })
}

async fn node(fake: &Fake, peers: PeersSection, agents: AgentSection) -> TestNode {
    let set = |config: &mut Config| {
        config.systems.set(AiSection(model(fake.url("v1"))));
        config.systems.set(agents);
        config.systems.set(peers);
        config.systems.set(OutsideSection::default());
    };
    TestNode::with_systems_and(tools::ALL, set).await
}

/// The last result that the model was shown.
fn last_result(body: &Value) -> Value {
    let messages = body["messages"].as_array().unwrap();
    let last = messages.iter().rev().find(|message| message["role"] == "tool").unwrap();
    serde_json::from_str(last["content"].as_str().unwrap()).unwrap()
}

/// Asks for a haircut, and takes what it is offered.
fn negotiates(body: &Value) -> Does {
    match results(body) {
        0 => Does::Calls("ask_ours", json!({"data": wish(5, 60)[0]["data"]})),
        1 => {
            let offer = last_result(body)["data"]["artifacts"]["offer"][0]["offer"]["id"].take();
            Does::Calls("ask_ours", json!({"data": {"accept": {"offer_id": offer}}}))
        }
        _ => Does::say("It is booked."),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_negotiates_with_a_providers_agent_of_another_node() {
    let fake = Fake::start().await;
    fake.otherwise(Does::Decides(negotiates));
    let theirs = TestNode::start().await;
    let salon = of_provider(&theirs.hairdresser().await);
    let token = theirs.token("anna", Role::Consumer, 3_600);
    let url = format!("http://{}{salon}", theirs.node.address);
    let ours = node(&fake, peers(&url, &token), scout(&["ask_ours"], &[])).await;
    let alice = ours.user("alice");
    let run = start(&alice, "scout", "a haircut in five days, please").await;
    let anna = theirs.user("anna");
    // Whatever is said outside waits for the person, with what is said.
    for said in ["ask", "accept"] {
        let waiting = until(&alice, &run, "waiting").await;
        let approval = &waiting["approvals"][0];
        assert!(approval["arguments"]["data"][said].is_object(), "{approval}");
        assert_eq!(anna.get("/v1/bookings").await.json()["items"], json!([]));
        assert_eq!(decide(&alice, &run, approval, true).await, 200);
        eventually("it is heard", async || {
            let now = super::get(&alice, &run).await;
            now["approvals"][0]["arguments"] != approval["arguments"]
        })
        .await;
    }
    let ended = until(&alice, &run, "answered").await;
    let results = shown(&ended);
    assert!(results[0].starts_with(r#"{"from_outside":"ask_ours","data":{"#), "{results:?}");
    let of = |n: usize| serde_json::from_str::<Value>(&results[n]).unwrap()["data"].take();
    assert_eq!((&of(0)["state"], &of(1)["state"]), (&json!("input_required"), &json!("completed")));
    let bookings = anna.get("/v1/bookings").await.json();
    assert_eq!(bookings["items"].as_array().unwrap().len(), 1, "{bookings}");
    assert_eq!(bookings["items"][0]["status"], "confirmed");
    assert!(!ended.to_string().contains(&token));
    // Both messages were one task's.
    let tasks = theirs.stranger("anna", &salon).ask("ListTasks", json!({})).await;
    assert_eq!(tasks["tasks"].as_array().unwrap().len(), 1, "{tasks}");
    ours.node.stop().await;
    theirs.node.stop().await;
}

/// What an agent does with a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Takes {
    Works,
    /// It does not answer.
    Silently,
    Breaks,
    Refuses,
    /// It answers with a message, and there is no task.
    Talks,
}

/// An agent of others, over A2A.
pub struct Peer {
    takes: Mutex<Takes>,
    state: Mutex<String>,
    messages: Mutex<Vec<Value>>,
    looks: AtomicUsize,
}

impl Peer {
    pub async fn start() -> (Arc<Self>, String) {
        let (takes, state) = (Takes::Works.into(), "WORKING".to_owned().into());
        let peer = Self { takes, state, messages: Mutex::default(), looks: AtomicUsize::new(0) };
        let peer = Arc::new(peer);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let card = json!({
            "name": "theirs", "description": "", "version": "1", "capabilities": {}, "skills": [],
            "defaultInputModes": [], "defaultOutputModes": [],
            "supportedInterfaces": [{
                "url": format!("{url}/rpc"), "protocolBinding": "JSONRPC", "protocolVersion": "1.0",
            }],
        });
        let router = Router::new()
            .route("/.well-known/agent-card.json", get(async move || card.to_string()))
            .route("/rpc", post(answer))
            .with_state(peer.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (peer, url)
    }

    /// From here on it does this, and was asked nothing.
    pub fn is(&self, takes: Takes, state: &str) {
        *self.takes.lock() = takes;
        self.messages.lock().clear();
        self.looks.store(0, Ordering::SeqCst);
        self.becomes(state);
    }

    /// Its tasks are in this state, and it is in order.
    pub fn becomes(&self, state: &str) {
        *self.state.lock() = format!("TASK_STATE_{state}");
        if state == "COMPLETED" {
            *self.takes.lock() = Takes::Works;
        }
    }

    pub fn sent(&self) -> Vec<Value> {
        self.messages.lock().clone()
    }

    pub fn looks(&self) -> usize {
        self.looks.load(Ordering::SeqCst)
    }

    fn task(&self, id: &str) -> Value {
        let said = json!([{"text": "as you like"}]);
        let message = json!({"messageId": "a", "role": "ROLE_AGENT", "parts": said});
        json!({"id": id, "contextId": "ctx_1", "status": {"state": *self.state.lock(), "message": message}})
    }
}

async fn answer(State(peer): State<Arc<Peer>>, body: String) -> Response {
    let asked: Value = serde_json::from_str(&body).unwrap();
    let result = |result: Value| json!({"jsonrpc": "2.0", "id": 1, "result": result}).to_string();
    if asked["method"] == "GetTask" {
        peer.looks.fetch_add(1, Ordering::SeqCst);
        return result(peer.task(asked["params"]["id"].as_str().unwrap())).into_response();
    }
    assert_eq!(asked["method"], "SendMessage");
    let takes = *peer.takes.lock();
    if takes == Takes::Refuses {
        let error = json!({"code": -32_602, "message": "no"});
        return json!({"jsonrpc": "2.0", "id": 1, "error": error}).to_string().into_response();
    }
    let message = asked["params"]["message"].clone();
    peer.messages.lock().push(message.clone());
    let begun = format!("task_{}", peer.messages.lock().len());
    let id = message["taskId"].as_str().unwrap_or(&begun).to_owned();
    match takes {
        Takes::Silently => std::future::pending().await,
        Takes::Breaks => StatusCode::BAD_GATEWAY.into_response(),
        Takes::Talks => {
            let parts = json!([{"text": "hello"}]);
            let message = json!({"messageId": "a", "role": "ROLE_AGENT", "parts": parts});
            result(json!({"message": message})).into_response()
        }
        _ => result(json!({"task": peer.task(&id)})).into_response(),
    }
}

fn asks_theirs(body: &Value) -> Does {
    let call = json!({"message": "book it"});
    if results(body) == 0 { Does::Calls("ask_theirs", call) } else { Does::say("done") }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_becomes_of_a_message_it_is_said_once_and_the_run_goes_on() {
    let fake = Fake::start().await;
    let (peer, url) = Peer::start().await;
    let all = ["ask_theirs", "ask_ours"];
    let node = node(&fake, peers(&url, "swordfish"), scout(&all, &all)).await;
    let alice = node.user("alice");
    fake.otherwise(Does::Decides(asks_theirs));
    let task = r#"{"from_outside":"ask_theirs","data":{"state":"completed","said":["as you like"],"artifacts":{}}}"#;
    // The result; `None`: a person is asked whether it happened.
    for (takes, times, result) in [
        (Takes::Works, 1, Some(task)),
        (Takes::Talks, 1, Some(r#"{"from_outside":"ask_theirs","data":{"said":["hello"]}}"#)),
        (Takes::Refuses, 0, Some("Nothing was said to it: the agent refused it")),
        (Takes::Breaks, 1, None),
    ] {
        peer.is(takes, "WORKING");
        let run = start(&alice, "scout", "an errand").await;
        if takes == Takes::Works {
            eventually("it is waited for", async || peer.looks() > 1).await;
            peer.becomes("COMPLETED");
        }
        if result.is_none() {
            let waiting = until(&alice, &run, "waiting").await;
            assert_eq!(waiting["approvals"][0]["is_unknown"], true, "{waiting}");
            decide(&alice, &run, &waiting["approvals"][0], false).await;
        }
        let ended = until(&alice, &run, "answered").await;
        let result = result.unwrap_or("It was begun, and nobody knows");
        let read = |text: &str| serde_json::from_str::<Value>(text).ok();
        let shown = &shown(&ended)[0];
        let is_so = match read(result) {
            // Whatever the order of its fields.
            Some(result) => read(shown) == Some(result),
            None => shown.starts_with(result),
        };
        assert!(is_so, "{takes:?}: {ended}");
        assert_eq!(peer.sent().len(), times, "{takes:?}");
    }
    // One that recognises messages is sent the same again, some times.
    peer.is(Takes::Breaks, "WORKING");
    fake.otherwise(Does::Decides(|body| match results(body) {
        0 => Does::Calls("ask_ours", json!({"message": "book it"})),
        _ => Does::say("done"),
    }));
    let run = start(&alice, "scout", "an errand").await;
    let ended = until(&alice, &run, "answered").await;
    assert!(shown(&ended)[0].starts_with("Whether it has happened is unknown"), "{ended}");
    let sent = peer.sent();
    let same = json!(format!("{run}-1"));
    assert!(sent.len() == 3 && sent.iter().all(|it| it["messageId"] == same), "{sent:?}");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_goes_on_with_its_task_and_begins_another_when_that_is_over() {
    let fake = Fake::start().await;
    let (peer, url) = Peer::start().await;
    // Asked before each message; whoever only looks says nothing.
    let node = node(&fake, peers(&url, "swordfish"), scout(&["ask_theirs"], &[])).await;
    let alice = node.user("alice");
    let say = |words: &str| json!({"message": words});
    fake.script([
        Does::Calls("ask_theirs", json!({})),
        Does::Calls("ask_theirs", say("one")),
        Does::Calls("ask_theirs", json!({})),
        Does::Calls("ask_theirs", say("two")),
        Does::Calls("ask_theirs", json!({"message": "three", "conversation": "another"})),
    ]);
    fake.otherwise(Does::say("done"));
    peer.is(Takes::Works, "INPUT_REQUIRED");
    let run = start(&alice, "scout", "an errand").await;
    for _ in 0..3 {
        let waiting = until(&alice, &run, "waiting").await;
        decide(&alice, &run, &waiting["approvals"][0], true).await;
        let word = waiting["approvals"][0]["arguments"].clone();
        eventually("it is said", async || {
            super::get(&alice, &run).await["approvals"][0]["arguments"] != word
        })
        .await;
    }
    let ended = until(&alice, &run, "answered").await;
    let results = shown(&ended);
    assert_eq!(results[0], "Nothing has been said in this conversation.");
    assert!(results[2].contains("input_required"), "{results:?}");
    fake.script([Does::Calls("ask_theirs", say("four"))]);
    peer.becomes("COMPLETED");
    alice.post(&format!("/v1/runs/{run}/messages"), &json!({"text": "once more"})).await;
    let waiting = until(&alice, &run, "waiting").await;
    decide(&alice, &run, &waiting["approvals"][0], true).await;
    until(&alice, &run, "answered").await;
    let sent = peer.sent();
    let of = |field: &str| sent.iter().map(|it| it[field].clone()).collect::<Vec<_>>();
    let parts: Vec<_> = sent.iter().map(|it| it["parts"][0]["text"].clone()).collect();
    assert_eq!(parts, ["one", "two", "three", "four"]);
    assert_eq!(of("taskId"), [Value::Null, json!("task_1"), Value::Null, Value::Null]);
    assert_eq!(of("contextId"), [Value::Null, json!("ctx_1"), Value::Null, json!("ctx_1")]);
    node.node.stop().await;
}
