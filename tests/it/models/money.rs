//! What is spent on models: reserved before, settled after, over nodes that are killed.

use std::time::Duration;

use proxie::ai::Options;
use proxie::ai::options::RouteOptions;
use proxie::kernel::entity::Role;
use proxie::systems::agents::settings::AiSection;
use serde_json::{Value, json};

use super::fake::{Does, Fake, OUTPUT, one_model};
use crate::cluster::Nodes;
use crate::edges::{Http, TestNode};
use crate::support::eventually;

/// One call costs what its answer of 50 tokens does: $0.0005.
const CALL: u64 = OUTPUT * 10_000;

pub fn question() -> Value {
    json!({"prompt": {"messages": [{"role": "user", "parts": [{"type": "text", "text": "hi"}]}], "max_tokens": OUTPUT}})
}

pub fn options(fake: &Fake) -> Options {
    let one = one_model(fake.url("v1"), 16, 1_000);
    let mut options = Options { daily_limit: "0.005".into(), ..one };
    let route = RouteOptions { simple: vec!["gpt".into()], ..RouteOptions::default() };
    options.routes.insert("default".into(), route);
    options
}

async fn ask(http: &Http) -> u16 {
    http.post("/v1/ai/complete", &question()).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_pays_for_their_questions_up_to_their_limit() {
    let fake = Fake::start().await;
    let ai = options(&fake);
    let node = TestNode::with(|config| config.systems.set(AiSection(ai))).await;
    let (alice, bob) = (node.user("alice"), node.user("bob"));
    let mut ws = node.ws("alice").await;
    let answer = alice.post("/v1/ai/complete", &question()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let answer = answer.json();
    assert_eq!(
        (&answer["text"], &answer["model"], &answer["cost"]),
        (&json!("yes"), &json!("gpt"), &json!(CALL))
    );
    for _ in 0..9 {
        assert_eq!(ask(&alice).await, 200);
    }
    let refused = alice.post("/v1/ai/complete", &question()).await.problem(422, "rejected");
    assert_eq!(refused["reason"], "budget_exceeded");
    assert_eq!(fake.asked().len(), 10);
    // What it came to, and for whom.
    let usage = alice.get("/v1/usage").await.json()["items"].clone();
    assert_eq!(usage.as_array().map(Vec::len), Some(1), "{usage}");
    let day = &usage[0];
    assert_eq!(
        (&day["calls"], &day["cost"], &day["model"]),
        (&json!(10), &json!(10 * CALL), &json!("gpt"))
    );
    assert_eq!((&day["output_tokens"], &day["cached_input_tokens"]), (&json!(500), &json!(4_000)));
    let budget = alice.get("/v1/budget").await.json();
    assert_eq!(
        (&budget["spent"], &budget["reserved"], &budget["left"]),
        (&json!(10 * CALL), &json!(0), &json!(0))
    );
    let low = ws.event_named("budget:low").await;
    assert_eq!(low["data"]["budget"]["id"], "user-alice");
    // Another person's is another.
    assert_eq!(bob.get("/v1/usage").await.json()["items"], json!([]));
    assert_eq!(ask(&bob).await, 200);
    // An operator gives more; nobody else does.
    let more = json!({"limit": 20 * CALL, "period": "month"});
    bob.send_json("PUT", "/v1/budgets/alice", &more).await.problem(403, "forbidden");
    let operator = node.user_as("olga", Role::Operator);
    let given = operator.send_json("PUT", "/v1/budgets/alice", &more).await;
    assert_eq!(given.json()["left"], json!(10 * CALL), "{}", given.text);
    assert_eq!(ask(&alice).await, 200);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_a_problem_with_a_name() {
    let fake = Fake::start().await;
    let ai = options(&fake);
    let node = TestNode::with(|config| config.systems.set(AiSection(ai))).await;
    let alice = node.user("alice");
    for (does, status, code, reason) in [
        (Does::Refuses(429, "{}", Some("3600")), 503, "unavailable", "model_busy"),
        (Does::BreaksOff("par"), 503, "unavailable", "model_busy"),
    ] {
        fake.script([does]);
        let problem = alice.post("/v1/ai/complete", &question()).await.problem(status, code);
        assert_eq!(problem["reason"], reason, "{problem}");
    }
    node.node.stop().await;
    // What is asked is kept out of what is said.
    let node = TestNode::with(|_| {}).await;
    let none = node.user("alice").post("/v1/ai/complete", &question()).await;
    assert_eq!(none.problem(422, "rejected")["reason"], "prompt_invalid");
    assert_eq!(node.user("alice").get("/v1/ai/models").await.json()["route"], Value::Null);
    let empty =
        node.user("alice").post("/v1/ai/complete", &json!({"prompt": {"messages": []}})).await;
    assert_eq!(empty.problem(400, "bad_request")["errors"][0]["pointer"], "/prompt/messages");
    node.node.stop().await;
}

/// Ten calls are allowed and a hundred are made, over two nodes, of which one is killed among them.
#[tokio::test(flavor = "multi_thread")]
async fn a_budget_of_ten_calls_is_ten_calls_over_two_nodes_and_a_kill() {
    let fake = Fake::start().await;
    fake.otherwise(Does::Says(vec!["y", "es"], Duration::from_millis(100)));
    let url: &'static str = fake.url("v1").leak();
    let settings = [
        ("PROXIE__AI__ROUTE", "gpt"),
        ("PROXIE__AI__DAILY_LIMIT", "0.005"),
        ("PROXIE__AI__DEADLINE_MS", "3000"),
        ("PROXIE__AI__PROVIDERS__FAKE__WIRE", "openai"),
        ("PROXIE__AI__PROVIDERS__FAKE__URL", url),
        ("PROXIE__AI__PROVIDERS__FAKE__KEY", "sk-secret"),
        ("PROXIE__AI__MODELS__GPT__PROVIDER", "fake"),
        ("PROXIE__AI__MODELS__GPT__INPUT", "0"),
        ("PROXIE__AI__MODELS__GPT__OUTPUT", "10"),
    ];
    let mut nodes = Nodes::with("budget", 2, false, &settings).await;
    nodes.settled(2).await;
    let token = nodes.token("alice", "consumer");
    let http = |n| Http { address: nodes.address(n), token: Some(token.clone()) };
    let (one, other) = (http(0), http(1));
    let asking: Vec<_> = (0..50)
        .flat_map(|_| [one.clone(), other.clone()])
        .map(|http| {
            tokio::spawn(async move { http.try_post("/v1/ai/complete", &question()).await })
        })
        .collect();
    eventually("calls are under way", async || fake.asked().len() >= 2).await;
    nodes.kill(1);
    let mut answered = 0;
    for asked in asking {
        answered += usize::from(asked.await.unwrap() == Some(200));
    }
    nodes.settled(1).await;
    // Whatever is left is asked for, until there is none.
    eventually("the budget is used up", async || {
        let status = one.post("/v1/ai/complete", &question()).await.status;
        status == 422
    })
    .await;
    let budget = async || one.get("/v1/budget").await.json();
    eventually("no reserve is left", async || budget().await["reserved"] == json!(0)).await;
    let asked = fake.asked().len();
    assert_eq!(asked, 10, "{answered} were answered");
    let (budget, usage) = (budget().await, one.get("/v1/usage").await.json());
    assert_eq!(budget["spent"], json!(10 * CALL), "{budget}");
    let calls = &usage["items"][0];
    assert_eq!(
        calls["calls"].as_u64().unwrap() + calls["unsettled"].as_u64().unwrap(),
        10,
        "{usage}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_heard_as_it_comes_and_a_broken_one_is_no_answer() {
    let fake = Fake::start().await;
    let ai = options(&fake);
    let node = TestNode::with(|config| config.systems.set(AiSection(ai))).await;
    let alice = node.user("alice");
    let headers = [("content-type", "application/json"), ("accept", "text/event-stream")];
    let ask = async || {
        let body = question().to_string();
        let answer = alice.send("POST", "/v1/ai/complete", &headers, body.as_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert!(answer.text.contains("event: "), "{:?} {}", answer.headers, answer.text);
        let events = answer.text.split("event: ").skip(1).map(|event| {
            let (name, rest) = event.split_once('\n').unwrap();
            let data = rest.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
            (name.to_owned(), serde_json::from_str::<Value>(data).unwrap())
        });
        events.collect::<Vec<_>>()
    };
    fake.script([Does::Says(vec!["hel", "lo"], Duration::from_millis(50)), Does::BreaksOff("par")]);
    let events = ask().await;
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["progress", "progress", "answer"]);
    assert_eq!((&events[0].1, &events[1].1), (&json!({"text": "hel"}), &json!({"text": "lo"})));
    assert_eq!(events[2].1["text"], "hello");
    let events = ask().await;
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["progress", "problem"]);
    assert_eq!(events[1].1["reason"], "model_uncertain");
    let usage = alice.get("/v1/usage").await.json()["items"][0].clone();
    assert_eq!((&usage["calls"], &usage["failed"]), (&json!(2), &json!(1)), "{usage}");
    node.node.stop().await;
}
