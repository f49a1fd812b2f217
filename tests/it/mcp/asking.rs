//! Questions in the middle of a call, what is heard meanwhile, and sessions that no node keeps.

use std::net::SocketAddr;

use proxie::app::node::Node;
use proxie::cluster::topics::Published;
use proxie::config::Config;
use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use proxie::kernel::ids::SLOTS;
use proxie::kernel::secret::Secret;
use proxie::persistence::membership;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgPool};

use super::streams::Stream;
use super::{Agent, Revision, system};
use crate::edges::{Answer, Http, TestNode, text};
use crate::support::{self, eventually};

const CAPABLE: &str = r#"{"elicitation": {}, "sampling": {}, "roots": {}}"#;

fn capable() -> Value {
    serde_json::from_str(CAPABLE).unwrap()
}

/// The agent's next attempt, with the answers so far.
fn with(tool: &str, answers: Value, state: &Value) -> Value {
    let mut params = json!({"name": tool, "arguments": {}});
    if !answers.is_null() {
        params["inputResponses"] = answers;
    }
    if !state.is_null() {
        params["requestState"] = state.clone();
    }
    params
}

fn accept(content: Value) -> Value {
    json!({"action": "accept", "content": content})
}

impl Agent {
    /// A request of an agent that can be asked everything.
    async fn try_as(&self, method: &str, mut params: Value, capabilities: Value) -> Answer {
        // `send` fills in the rest.
        params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = capabilities;
        self.send(method, params, &[]).await
    }

    async fn asked(&self, params: Value) -> Value {
        let mut answer = self.try_as("tools/call", params, capable()).await.json();
        assert!(answer["result"].is_object(), "{answer}");
        answer["result"].take()
    }
}

/// Two nodes on one database, in this process, with their slots shared out: what is only said, and not stored, may be
/// lost while a slot moves.
async fn two_nodes() -> Vec<Node> {
    let database = support::database().await.to_url_lossy().to_string();
    let mut nodes = Vec::new();
    for n in 0..2 {
        let mut config = Config::default();
        config.persistence.database_url = database.clone().into();
        config.persistence.allow_fsync_off = true;
        config.persistence.max_connections = 10;
        config.vault.key = Secret::new("5e".repeat(32));
        config.gateway.listen = "127.0.0.1:0".into();
        config.gateway.drain_ms = 0;
        config.gateway.drain_grace_ms = Some(0);
        config.node.name = format!("node-{n}");
        config.cluster.enabled = true;
        config.cluster.cookie = "secret".into();
        config.cluster.listen = crate::cluster::free_address();
        nodes.push(Node::start_systems(&config, Clock::System, system::all()).await.unwrap());
    }
    let options: PgConnectOptions = database.parse().unwrap();
    let store = PgPool::connect_with(support::observer(options)).await.unwrap();
    eventually("the slots are shared out", async || {
        let shared = membership::nodes(&store).await.unwrap();
        shared.len() == 2 && shared.iter().all(|node| node.slots == i64::from(SLOTS) / 2)
    })
    .await;
    store.close().await;
    nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_ends_the_request_and_its_answers_go_on_with_it() {
    let node = TestNode::with_systems(system::all()).await;
    let anna = Agent::new(node.user("anna"), Revision::Newest);
    let tool = "test_command_id";
    let first = anna.asked(with(tool, Value::Null, &Value::Null)).await;
    assert_eq!(first["resultType"], "input_required", "{first}");
    let question = &first["inputRequests"]["sure"];
    assert_eq!(question["method"], "elicitation/create", "{first}");
    assert_eq!(question["params"]["requestedSchema"]["required"], json!(["ok"]), "{first}");
    let message = text(&question["params"]["message"]);
    let made = message.strip_prefix("Keep ").unwrap().strip_suffix('?').unwrap();
    let state = &first["requestState"];
    // What is no answer is asked for again.
    for wrong in [json!(1), json!({"action": "accept"}), accept(json!({"ok": "yes"}))] {
        let again = anna.asked(with(tool, json!({"sure": wrong}), state)).await;
        assert_eq!(again["resultType"], "input_required", "{again}");
    }
    let answers = json!({"sure": accept(json!({"ok": true})), "more": 1});
    let done = anna.asked(with(tool, answers.clone(), state)).await;
    let said = text(&done["content"][0]["text"]);
    assert_eq!(said, format!("{made} true"), "under the same command id");
    let declined = json!({"sure": {"action": "decline"}});
    let done = anna.asked(with(tool, declined, state)).await;
    assert_eq!(done["content"][0]["text"], format!("{made} false"));
    // The state is for this person, this tool and these arguments; nobody can change it.
    let mallory = Agent::new(node.user("mallory"), Revision::Newest);
    let refused = async |agent: &Agent, params: Value| {
        let answer = agent.try_as("tools/call", params, capable()).await.json();
        assert_eq!(answer["error"]["code"], -32_602, "{answer}");
    };
    refused(&mallory, with(tool, answers.clone(), state)).await;
    refused(&anna, with("test_input_required_result_elicitation", answers.clone(), state)).await;
    let mut other = with(tool, answers.clone(), state);
    other["arguments"] = json!({"x": 1});
    refused(&anna, other).await;
    refused(&anna, with(tool, answers.clone(), &json!(text(state) + "x"))).await;
    let token = node.token("anna", Role::Consumer, 60);
    refused(&anna, with(tool, answers, &json!(token))).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_carry_the_answers_of_several_rounds() {
    let nodes = two_nodes().await;
    let token = nodes[0].gateway().auth.mint("anna", Role::Consumer, Clock::System.now(), 3_600);
    let http = |node: &Node| Http { address: node.address, token: Some(token.clone()) };
    let agents: Vec<_> =
        nodes.iter().map(|node| Agent::new(http(node), Revision::Newest)).collect();
    let tool = "test_input_required_result_multi_round";
    let first = agents[0].asked(with(tool, Value::Null, &Value::Null)).await;
    let answers = json!({"step1": accept(json!({"name": "Alice"}))});
    let second = agents[1].asked(with(tool, answers, &first["requestState"])).await;
    assert_eq!(second["inputRequests"].as_object().unwrap().len(), 1, "{second}");
    let answers = json!({"step2": accept(json!({"color": "red"}))});
    let third = agents[0].asked(with(tool, answers, &second["requestState"])).await;
    assert_eq!(third["content"][0]["text"], r#"Some("Alice") likes Some("red")"#, "{third}");
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_asked_what_their_client_cannot_answer() {
    let node = TestNode::with_systems(system::all()).await;
    let anna = Agent::new(node.user("anna"), Revision::Newest);
    let tool = json!({"name": "test_missing_capability"});
    let answer = anna.try_as("tools/call", tool.clone(), json!({"elicitation": {}})).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!(-32_021)));
    let required = &answer.json()["error"]["data"]["requiredCapabilities"];
    assert_eq!(*required, json!({"sampling": {}}));
    let before = Agent::new(node.user("anna"), Revision::Before);
    let problem = before.problem("test_missing_capability", json!({})).await;
    assert_eq!(problem["reason"], "cannot_ask", "{problem}");
    node.node.stop().await;
}

/// The session of a client that can be asked everything.
async fn session(address: SocketAddr, token: &str) -> String {
    let agent = Agent::new(Http { address, token: Some(token.to_owned()) }, Revision::Before);
    let hello = json!({
        "protocolVersion": "2025-11-25", "capabilities": capable(),
        "clientInfo": {"name": "test", "version": "1"},
    });
    let answer = agent.send("initialize", hello, &[]).await;
    answer.headers["mcp-session-id"].clone()
}

async fn answers(address: SocketAddr, token: &str, id: &Value, result: Value) -> u16 {
    let http = Http { address, token: Some(token.to_owned()) };
    let headers = [
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("mcp-protocol-version", "2025-11-25"),
    ];
    let body = json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string();
    http.send("POST", "/mcp", &headers, body.as_bytes()).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_revision_before_the_question_comes_meanwhile_and_any_node_takes_the_answer() {
    let nodes = two_nodes().await;
    let auth = &nodes[0].gateway().auth;
    let token = |user: &str| auth.mint(user, Role::Consumer, Clock::System.now(), 3_600);
    let (anna, mallory) = (token("anna"), token("mallory"));
    let (here, there) = (nodes[0].address, nodes[1].address);
    let session = session(here, &anna).await;
    let more = [("mcp-session-id", session.as_str())];
    // Asked by one node, answered to the other.
    let call = json!({"name": "test_elicitation", "arguments": {"message": "Who are you?"}});
    let call = ("tools/call", call);
    let mut stream = Stream::request(there, &anna, Revision::Before, call.clone(), &more).await;
    let question = stream.next().await.unwrap();
    assert_eq!(question["method"], "elicitation/create", "{question}");
    assert_eq!(question["params"]["message"], "Who are you?");
    let filled = accept(json!({"username": "anna", "email": "anna@example.org"}));
    assert_eq!(answers(there, &mallory, &question["id"], filled.clone()).await, 400);
    assert_eq!(answers(here, &mallory, &question["id"], accept(json!({}))).await, 400);
    assert_eq!(answers(here, &anna, &question["id"], filled.clone()).await, 202);
    let done = stream.next().await.unwrap();
    assert_eq!(done["id"], 7, "{done}");
    assert!(text(&done["result"]["content"][0]["text"]).contains("anna@example.org"), "{done}");
    assert_eq!(stream.next().await, None, "the answer is the last event");
    assert_eq!(answers(there, &anna, &question["id"], filled).await, 400, "it is answered");
    // A client that has its own reasons.
    let mut stream = Stream::request(here, &anna, Revision::Before, call, &more).await;
    let question = stream.next().await.unwrap();
    let answered = answers(there, &anna, &question["id"], json!({"action": "accept"})).await;
    assert_eq!(answered, 202);
    let done = stream.next().await.unwrap();
    assert_eq!(done["result"]["_meta"]["proxie/problem"]["reason"], "not_answered", "{done}");
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_and_log_are_heard_as_they_are_asked_for() {
    let node = TestNode::with_systems(system::all()).await;
    let token = node.token("anna", Role::Consumer, 3_600);
    let address = node.node.address;
    for revision in Revision::BOTH {
        let call = json!({"name": "test_tool_with_progress", "_meta": {"progressToken": "p"}});
        let mut stream =
            Stream::request(address, &token, revision, ("tools/call", call), &[]).await;
        for done in [0, 50, 100] {
            let said = stream.next().await.unwrap();
            let params = json!({"progressToken": "p", "progress": done, "total": 100});
            assert_eq!(said["params"], params, "{said}");
        }
        assert_eq!(stream.next().await.unwrap()["result"]["content"][0]["text"], "done");
    }
    // The newest revision hears the log of a call that asks for it.
    for (level, lines) in [("info", 3), ("error", 0)] {
        let call = json!({"name": "test_tool_with_logging",
                          "_meta": {"io.modelcontextprotocol/logLevel": level}});
        let call = ("tools/call", call);
        let mut stream = Stream::request(address, &token, Revision::Newest, call, &[]).await;
        for _ in 0..lines {
            assert_eq!(stream.next().await.unwrap()["params"]["level"], "info");
        }
        assert!(stream.next().await.unwrap()["result"].is_object());
    }
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_has_asked_to_hear_is_known_to_its_stream() {
    let nodes = two_nodes().await;
    let token = nodes[0].gateway().auth.mint("anna", Role::Consumer, Clock::System.now(), 3_600);
    let (here, there) = (nodes[0].address, nodes[1].address);
    let session = session(here, &token).await;
    let more = [("mcp-session-id", session.as_str())];
    let http = Http { address: there, token: Some(token.clone()) };
    let agent = Agent::new(http, Revision::Before);
    let watched = json!({"uri": "test://watched-resource"});
    let unheard = agent.send("resources/subscribe", watched.clone(), &[]).await.json();
    assert_eq!(unheard["error"]["code"], -32_600, "without a session: {unheard}");
    let mut stream = Stream::of_session(here, &token, &session, None).await;
    assert!(stream.head[0].contains("200"), "{:?}", stream.head);
    // Through the other node.
    let told = agent.send("resources/subscribe", watched.clone(), &more).await.json();
    assert_eq!(told["result"], json!({}), "{told}");
    let unknown = json!({"uri": "test://static-text"});
    let unknown = agent.send("resources/subscribe", unknown, &more).await.json();
    assert_eq!(unknown["error"]["code"], -32_602, "{unknown}");
    let level = json!({"level": "info"});
    assert_eq!(agent.send("logging/setLevel", level, &more).await.json()["result"], json!({}));
    let changed = |n: &Node| {
        n.gateway().topics.post(&Published::new("conformance:watched", None, "changed", "{}"));
    };
    changed(&nodes[1]);
    let said = stream.next().await.unwrap();
    assert_eq!(said["method"], "notifications/resources/updated", "{said}");
    assert_eq!(said["params"], watched);
    let call = json!({"name": "test_tool_with_logging", "arguments": {}});
    agent.send("tools/call", call.clone(), &more).await;
    // What may have changed is told as a change, once the other node sends what it hears.
    let mut said = stream.next().await.unwrap();
    while said["method"] == "notifications/resources/updated" {
        said = stream.next().await.unwrap();
    }
    assert_eq!(said["params"]["data"], "Tool execution started", "{said}");
    // A stream that is opened again hears the same, and the one before ends.
    let last_id = stream.last_id.clone().unwrap();
    let mut again = Stream::of_session(there, &token, &session, Some(&last_id)).await;
    while stream.next().await.is_some() {}
    changed(&nodes[0]);
    assert_eq!(again.next().await.unwrap()["params"], watched);
    let level = json!({"level": "emergency"});
    agent.send("logging/setLevel", level, &more).await;
    agent.send("tools/call", call, &more).await;
    let told = agent.send("resources/unsubscribe", watched.clone(), &more).await.json();
    assert_eq!(told["result"], json!({}), "{told}");
    changed(&nodes[0]);
    let told = agent.send("resources/subscribe", watched.clone(), &more).await.json();
    assert_eq!(told["result"], json!({}), "{told}");
    changed(&nodes[0]);
    assert_eq!(again.next().await.unwrap()["params"], watched, "and no line of the log");
    let strange = Stream::of_session(here, &token, "x-1", None).await;
    assert!(strange.head[0].contains("404"), "{:?}", strange.head);
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_of_the_newest_revision_hears_what_it_may_read() {
    let node = TestNode::with_systems(system::all()).await;
    node.hairdresser().await;
    let anna = Agent::new(node.user("anna"), Revision::Newest);
    let created = anna.done("create_service_request", json!({"text": super::WISH})).await;
    let offer = anna.http.offer(&text(&created["id"])).await;
    let booking =
        text(&anna.done("accept_offer", json!({"offer_id": offer["id"]})).await["booking_id"]);
    let uri = format!("proxie://bookings/{booking}");
    let listen = json!({"notifications": {"resourceSubscriptions": [uri, "proxie://devices"]}});
    let listen = ("subscriptions/listen", listen);
    let token = node.token("anna", Role::Consumer, 3_600);
    let address = node.node.address;
    let mut stream = Stream::request(address, &token, Revision::Newest, listen.clone(), &[]).await;
    let said = stream.next().await.unwrap();
    assert_eq!(said["method"], "notifications/subscriptions/acknowledged", "{said}");
    let accepted = &said["params"]["notifications"]["resourceSubscriptions"];
    assert_eq!(*accepted, json!([uri]), "the list of devices says nothing of changes");
    let mallory = node.token("mallory", Role::Consumer, 3_600);
    let mut theirs = Stream::request(address, &mallory, Revision::Newest, listen, &[]).await;
    assert!(theirs.next().await.unwrap()["method"].is_string());
    let refused = theirs.next().await.unwrap();
    assert!(refused["error"].is_object(), "{refused}");
    let gateway = node.node.gateway();
    eventually("it is watched", async || {
        gateway.topics.is_subscribed(&format!("booking:{booking}"))
    })
    .await;
    anna.call("cancel_booking", json!({"booking_id": booking, "reason": "ill"})).await;
    let said = stream.next().await.unwrap();
    assert_eq!(said["params"]["uri"], uri.as_str(), "{said}");
    let id = &said["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"];
    assert_eq!(*id, 7, "{said}");
    node.node.stop().await;
}
