//! Every operation at every door: whatever is wrong with it is said in the same words.

use std::collections::BTreeSet;

use proxie::contract::Declared;
use proxie::contract::operation::Method;
use proxie::systems;
use serde_json::{Map, Value, json};

use super::TestNode;
use crate::mcp::{Agent, Revision};

/// What a refusal says: its code, and the fields that it names.
type Refusal = (String, BTreeSet<String>);

fn refusal(problem: &Value) -> Refusal {
    let errors = problem["errors"].as_array().into_iter().flatten();
    let pointers = errors.filter_map(|error| error["pointer"].as_str()).map(str::to_owned);
    (problem["code"].as_str().unwrap_or_default().into(), pointers.collect())
}

/// Every field with something that it cannot be.
fn wrong(operation: &Declared) -> Map<String, Value> {
    let schema = operation.input_schema();
    let fields = schema["properties"].as_object().cloned().unwrap_or_default();
    let is_plain = |field: &Value| match &field["type"] {
        Value::String(kind) => kind != "object",
        Value::Array(kinds) => kinds.iter().all(|kind| kind != "object"),
        _ => false,
    };
    let plain = fields.into_iter().filter(|(name, field)| name != "user_id" && is_plain(field));
    plain.map(|(name, _)| (name, json!({"is": "wrong"}))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_the_same_at_every_door() {
    let node = TestNode::start().await;
    let (user, mut ws) = (node.user("alice"), node.ws("alice").await);
    let agent = Agent::new(user.clone(), Revision::Newest);
    let mut compared = 0;
    for (n, operation) in systems::ALL.iter().flat_map(|system| system.operations).enumerate() {
        let name = operation.meta.name;
        let given = wrong(operation);
        let reply =
            ws.ask_as(&format!("op{n}"), &operation.meta.event(), given.clone().into()).await;
        if given.is_empty() {
            continue;
        }
        assert_eq!(reply["ok"], false, "{name}: {reply}");
        let over_ws = refusal(&reply["error"]);
        if let Some(tool) = operation.meta.tool {
            let over_mcp = refusal(&agent.problem(tool.name, given.clone().into()).await);
            assert_eq!(over_mcp, over_ws, "{name}");
        }
        let with_body = |method| matches!(method, Method::Post | Method::Put | Method::Patch);
        for route in operation.meta.routes().filter(|route| with_body(route.method)) {
            // A field of the path is a text and one of a header has its form, so they are not wrong there.
            let in_path = |name: &str| {
                route.path.contains(&format!("{{{name}}}")) || operation.meta.if_match == Some(name)
            };
            let mut path = route.path.to_owned();
            let mut body = given.clone();
            for field in given.keys().filter(|field| in_path(field)) {
                let kind = &operation.input_schema()["properties"][field]["type"];
                let value = if kind == "integer" { "1" } else { "x_1" };
                path = path.replace(&format!("{{{field}}}"), value);
                body.remove(field);
            }
            if body.is_empty() {
                continue;
            }
            let method = route.method.as_str().to_uppercase();
            let headers = [
                ("content-type", "application/json"),
                ("idempotency-key", name),
                ("if-match", "*"),
            ];
            let body = Value::from(body).to_string();
            let answer = user.send(&method, &path, &headers, body.as_bytes()).await;
            let (code, pointers) = refusal(&answer.json());
            assert_eq!(code, over_ws.0, "{name}: {} and {reply}", answer.text);
            let expected = over_ws.1.iter().filter(|pointer| !in_path(&pointer[1..]));
            assert_eq!(pointers, expected.cloned().collect(), "{name}: {}", answer.text);
            compared += 1;
        }
    }
    assert!(compared >= 10, "{compared} operations were compared");
    node.node.stop().await;
}
