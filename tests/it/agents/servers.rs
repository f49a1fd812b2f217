//! Runs with tools of outside servers: a real one, and one that fails as it is told.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use proxie::ai::options::ServerOptions;
use proxie::app::node::Node;
use proxie::config::Config;
use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use proxie::systems::agents::definitions::{AgentOptions, AgentSection};
use proxie::systems::agents::settings::AiSection;
use serde_json::{Value, json};

use super::tools::{self, OutsideSection};
use super::{decide, get, model, results, start, until};
use crate::edges::{Http, TestNode};
use crate::mcp::outside::{Fault, Server};
use crate::models::fake::{Does, Fake};
use crate::support::eventually;

/// A server of whose tools the scout may use these.
pub fn server(url: String, tools: &[&str]) -> ServerOptions {
    let tools = tools.iter().map(|tool| (*tool).to_owned()).collect();
    ServerOptions {
        url,
        roles: BTreeMap::from([("scout".to_owned(), tools)]),
        ..ServerOptions::default()
    }
}

/// An agent with these tools, some of which it calls without asking.
pub fn scout(tools: &[&str], without_asking: &[&str]) -> AgentSection {
    let names = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
    let scout = AgentOptions {
        instructions: Some("You are a scout.".into()),
        tools: names(tools),
        without_asking: names(without_asking),
        ..AgentOptions::default()
    };
    AgentSection([("scout".to_owned(), scout)].into())
}

fn set(config: &mut Config, fake: &Fake, name: &str, server: ServerOptions, agents: AgentSection) {
    let mut ai = model(fake.url("v1"));
    ai.servers.insert(name.into(), server);
    config.systems.set(AiSection(ai));
    config.systems.set(agents);
    config.systems.set(OutsideSection::default());
}

async fn node(fake: &Fake, name: &str, server: ServerOptions, agents: AgentSection) -> TestNode {
    TestNode::with_systems_and(tools::ALL, |config| set(config, fake, name, server, agents)).await
}

/// The results that a run's model was shown, in their order.
pub fn shown(run: &Value) -> Vec<String> {
    let messages = run["messages"].as_array().unwrap().iter();
    let results = messages.filter(|message| message["role"] == "tool");
    results.map(|message| message["text"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_works_with_tools_of_a_real_server() {
    let fake = Fake::start().await;
    let theirs = TestNode::with_systems_and(tools::ALL, |config| {
        config.systems.set(OutsideSection::default());
    })
    .await;
    let token = theirs.token("anna", Role::Consumer, 3_600);
    let options = ServerOptions {
        headers: BTreeMap::from([("authorization".into(), format!("Bearer {token}").into())]),
        ..server(format!("http://{}/mcp", theirs.node.address), &["write_note", "read_notes"])
    };
    let agents = scout(&["home__write_note", "home__read_notes"], &["home__read_notes"]);
    let ours = node(&fake, "home", options, agents).await;
    fake.otherwise(Does::Decides(|body| match results(body) {
        0 => Does::Calls("home__write_note", json!({"text": "hello"})),
        1 => Does::Calls("home__read_notes", json!({})),
        2 => Does::Calls("home__burn_notes", json!({})),
        _ => Does::say("done"),
    }));
    let alice = ours.user("alice");
    let run = start(&alice, "scout", "leave a note").await;
    let waiting = until(&alice, &run, "waiting").await;
    let anna = theirs.user("anna");
    assert_eq!(anna.get("/v1/notes").await.json()["items"], json!([]), "nobody allowed it");
    assert_eq!(decide(&alice, &run, &waiting["approvals"][0], true).await, 200);
    let ended = until(&alice, &run, "answered").await;
    let shown = shown(&ended);
    assert_eq!(shown[0], r#"{"from_outside":"home__write_note","data":{}}"#);
    assert_eq!(shown[1], r#"{"from_outside":"home__read_notes","data":{"items":["hello"]}}"#);
    assert_eq!(shown[2], "There is no tool \"home__burn_notes\".");
    // What its version is made of was its model's to see.
    let body = fake.journal().pop().unwrap().body;
    let system = body["messages"][0]["content"].as_str().unwrap();
    assert!(
        system.starts_with("You are a scout.") && system.contains("no instruction"),
        "{system}"
    );
    let tools = body["tools"].as_array().unwrap();
    let names: Vec<_> = tools.iter().map(|tool| &tool["function"]["name"]).collect();
    assert_eq!(names, ["home__write_note", "home__read_notes"]);
    assert!(tools[0]["function"]["parameters"]["properties"]["text"].is_object(), "{tools:?}");
    // Whoever's token is for runs alone does not reach outside by one.
    let now = Clock::System.now();
    let auth = &ours.node.gateway().auth;
    let narrow = auth.mint_for("alice", Role::Consumer, None, Some("run"), now, 3_600);
    let narrow = Http { token: Some(narrow), ..alice.clone() };
    let run = start(&narrow, "scout", "leave a note").await;
    let waiting = until(&narrow, &run, "waiting").await;
    decide(&narrow, &run, &waiting["approvals"][0], true).await;
    let ended = until(&narrow, &run, "answered").await;
    let first = &self::shown(&ended)[0];
    assert_eq!(first, "The person's token does not let their agent reach outside.");
    assert_eq!(anna.get("/v1/notes").await.json()["items"], json!(["hello"]));
    ours.node.stop().await;
    theirs.node.stop().await;
}

/// One call, and what is said about its result.
fn books(body: &Value) -> Does {
    if results(body) == 0 { Does::Calls("maps__book", json!({})) } else { Does::say("done") }
}

fn looks(body: &Value) -> Does {
    if results(body) == 0 { Does::Calls("maps__look", json!({})) } else { Does::say("done") }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_becomes_of_a_call_it_is_done_once_and_the_run_goes_on() {
    let fake = Fake::start().await;
    let (server_of, address) = Server::start().await;
    let options = ServerOptions {
        repeatable: vec!["look".into()],
        timeouts_ms: BTreeMap::from([("book".into(), 5_000)]),
        ..server(format!("http://{address}/mcp"), &["book", "look"])
    };
    let all = ["maps__book", "maps__look"];
    let node = node(&fake, "maps", options, scout(&all, &all)).await;
    let alice = node.user("alice");
    let done = r#"{"from_outside":"maps__TOOL","data":"done"}"#;
    type Decides = fn(&Value) -> Does;
    // The faults, the calls that were done, and the result; `None`: a person is asked whether it happened.
    let cases: [(&[Fault], Decides, usize, Option<&str>); 8] = [
        (&[], books, 1, Some(done)),
        (&[Fault::LostSession], books, 1, Some(done)),
        (&[Fault::Broken], books, 1, None),
        (&[Fault::Cut], books, 1, None),
        (&[Fault::Slow], books, 1, None),
        (&[Fault::Busy], books, 0, Some("Nothing was done: the server takes no more calls now.")),
        (&[Fault::Broken], looks, 2, Some(done)),
        (
            &[Fault::Cut, Fault::Broken],
            looks,
            2,
            Some("Whether it has happened is unknown: the connection has ended before the answer."),
        ),
    ];
    for (n, (faults, decides, times, result)) in cases.into_iter().enumerate() {
        server_of.fails(faults);
        fake.otherwise(Does::Decides(decides));
        let run = start(&alice, "scout", &format!("errand {n}")).await;
        let expected = match result {
            Some(result) => result.replace("TOOL", if n < 6 { "book" } else { "look" }),
            None => {
                let waiting = until(&alice, &run, "waiting").await;
                assert_eq!(waiting["approvals"][0]["is_unknown"], true, "{faults:?}: {waiting}");
                decide(&alice, &run, &waiting["approvals"][0], false).await;
                "It was begun, and nobody knows whether it has happened. It is left as it is. The person does not allow \
                 this."
                    .to_owned()
            }
        };
        let ended = until(&alice, &run, "answered").await;
        assert_eq!(shown(&ended), [expected], "{faults:?}");
        assert_eq!(server_of.done.load(Ordering::SeqCst), times, "{faults:?}");
        // A repetition is one by its key.
        let keys: Vec<_> = server_of.calls.lock().drain(..).map(|params| key_of(&params)).collect();
        assert!(keys.iter().all(|key| *key == format!("{run}-1")), "{keys:?}");
    }
    // A run that is stopped stops its call.
    server_of.fails(&[Fault::Slow]);
    fake.otherwise(Does::Decides(books));
    let run = start(&alice, "scout", "never mind").await;
    eventually("it is called", async || server_of.done.load(Ordering::SeqCst) == 1).await;
    let before = server_of.cancelled.load(Ordering::SeqCst);
    assert_eq!(alice.post(&format!("/v1/runs/{run}/cancel"), &json!({})).await.status, 200);
    let is_off = async || server_of.cancelled.load(Ordering::SeqCst) > before;
    eventually("the call is called off", is_off).await;
    eventually("what is unknown stays so", async || {
        get(&alice, &run).await["approvals"][0]["is_unknown"] == true
    })
    .await;
    assert_eq!(get(&alice, &run).await["run"]["status"], "cancelled");
    node.node.stop().await;
}

/// The key that a call was sent with.
pub fn key_of(params: &Value) -> String {
    params["_meta"]["proxie/idempotency-key"].as_str().unwrap().to_owned()
}

/// A tool as its server has it on one day.
fn book(required: &[&str]) -> Value {
    let fields: serde_json::Map<_, _> =
        required.iter().map(|name| ((*name).to_owned(), json!({"type": "string"}))).collect();
    let schema = json!({"type": "object", "properties": fields, "required": required});
    json!([{"name": "book", "description": "Books", "inputSchema": schema}])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_keeps_the_tools_it_began_with_whatever_becomes_of_their_server() {
    let fake = Fake::start().await;
    let (server_of, address) = Server::start().await;
    *server_of.tools.lock() = Some(book(&["seat"]));
    let options = server(format!("http://{address}/mcp"), &["book"]);
    let today = node(&fake, "maps", options.clone(), scout(&["maps__book"], &[])).await;
    fake.otherwise(Does::Decides(|body| match results(body) {
        0 => Does::Calls("maps__book", json!({"seat": "12a"})),
        1 => Does::Calls("maps__book", json!({"seat": 12})),
        _ => Does::say("done"),
    }));
    let alice = today.user("alice");
    let mut runs = Vec::new();
    for n in 0..3 {
        runs.push(start(&alice, "scout", &format!("trip {n}")).await);
    }
    for run in &runs {
        until(&alice, run, "waiting").await;
    }
    let version = get(&alice, &runs[0]).await["run"]["version"].clone();
    // Another node, or this one after a while, sees what the server has become.
    let restart = async |node: TestNode| {
        let config = node.config.clone();
        node.node.stop().await;
        TestNode::with_systems_of(tools::ALL, config).await
    };
    let go_on = async |alice: &Http, run: &str| {
        let waiting = until(alice, run, "waiting").await;
        assert_eq!(decide(alice, run, &waiting["approvals"][0], true).await, 200);
        let ended = until(alice, run, "answered").await;
        assert_eq!(ended["run"]["version"], version, "it is not switched");
        shown(&ended)
    };
    // It takes less than before: what was asked for still fits.
    *server_of.tools.lock() = Some(book(&[]));
    let tomorrow = restart(today).await;
    let results = go_on(&tomorrow.user("alice"), &runs[0]).await;
    assert_eq!(results[0], r#"{"from_outside":"maps__book","data":"done"}"#);
    assert!(results[1].starts_with("These arguments do not fit: seat must be"), "{results:?}");
    let body = fake.journal().pop().unwrap().body;
    let parameters = &body["tools"][0]["function"]["parameters"];
    assert_eq!(parameters["required"], json!(["seat"]), "the model sees what it began with");
    // A new run has the tool as it is now.
    let fresh = start(&tomorrow.user("alice"), "scout", "another trip").await;
    let fresh = until(&tomorrow.user("alice"), &fresh, "waiting").await;
    assert_ne!(fresh["run"]["version"], version);
    // It takes more.
    *server_of.tools.lock() = Some(book(&["seat", "class"]));
    let after = restart(tomorrow).await;
    let results = go_on(&after.user("alice"), &runs[1]).await;
    assert_eq!(
        results[0],
        "The tool has changed since this conversation began: class is required."
    );
    // It is gone.
    *server_of.tools.lock() = Some(json!([]));
    let last = restart(after).await;
    let results = go_on(&last.user("alice"), &runs[2]).await;
    let gone = "This tool cannot be used any more: its server does not have it any more.";
    assert_eq!(results[0], gone);
    // And what is gone when a run begins, that run does not have.
    let run = start(&last.user("alice"), "scout", "one more trip").await;
    let ended = until(&last.user("alice"), &run, "answered").await;
    assert!(shown(&ended).iter().all(|result| result.contains("was away when it began")));
    assert_eq!(server_of.done.load(Ordering::SeqCst), 1);
    last.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_takes_no_run_with_it() {
    let fake = Fake::start().await;
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", nobody.local_addr().unwrap());
    drop(nobody);
    let agents = scout(&["maps__book", "write_note"], &[]);
    let node = node(&fake, "maps", server(url, &["book"]), agents).await;
    fake.otherwise(Does::Decides(books));
    let alice = node.user("alice");
    let run = start(&alice, "scout", "a trip").await;
    let ended = until(&alice, &run, "answered").await;
    assert!(shown(&ended)[0].contains("its server was away"), "{ended}");
    let body = fake.journal().pop().unwrap().body;
    let system = body["messages"][0]["content"].as_str().unwrap();
    assert!(system.ends_with("Away now, and not to be had: maps__book."), "{system}");
    assert_eq!(body["tools"].as_array().unwrap().len(), 1, "the others are there");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_outside_tools_cannot_be_meant_is_refused_at_the_start() {
    let fake = Fake::start().await;
    let options = || server("http://127.0.0.1:9/mcp".into(), &["book"]);
    for (agents, why) in [
        (scout(&["other__book"], &[]), "there is no ai.servers.other"),
        (scout(&["maps__pay"], &[]), "ai.servers.maps.roles.scout does not have it"),
        (scout(&[], &["maps__book"]), "without_asking"),
    ] {
        let mut config = TestNode::config().await;
        set(&mut config, &fake, "maps", options(), agents);
        let started = Node::start_systems(&config, Clock::System, tools::ALL).await;
        let error = format!("{:#}", started.err().expect("it does not start"));
        assert!(error.contains("agents.scout.") && error.contains(why), "{error}");
    }
}
