use std::time::Duration;

use serde_json::json;

use super::{Agent, Revision, WISH};
use crate::cluster::Nodes;
use crate::edges::{Http, text};

/// Every request goes to the other node than the one before.
#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_answer_one_agent_in_turn() {
    let nodes = Nodes::with("mcp", 2, false, &[]).await;
    let token = nodes.token("anna", "consumer");
    nodes.settled(2).await;
    for revision in Revision::BOTH {
        let agents: Vec<Agent> = nodes
            .nodes
            .iter()
            .flatten()
            .map(|node| Http { address: node.address, token: Some(token.clone()) })
            .map(|http| Agent::new(http, revision))
            .collect();
        let mut turn = 0;
        let mut next = || {
            turn += 1;
            &agents[turn % agents.len()]
        };
        if revision == Revision::Before {
            let hello = json!({
                "protocolVersion": revision.name(), "capabilities": {},
                "clientInfo": {"name": "test", "version": "1"},
            });
            let answer = next().send("initialize", hello, &[]).await;
            // Nothing ties it to a node, and a client need not name it.
            assert!(answer.headers["mcp-session-id"].starts_with('-'), "its client can do nothing");
        }
        for _ in 0..4 {
            let created = next().done("create_service_request", json!({"text": WISH})).await;
            let id = text(&created["id"]);
            let seen = next().done("get_request", json!({"request_id": id})).await;
            assert_eq!(seen["id"], created["id"]);
            // The list is a read model, which every node reads.
            let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
            loop {
                let listed = next().done("list_requests", json!({"limit": 100})).await;
                if listed["items"].as_array().unwrap().iter().any(|one| one["id"] == created["id"])
                {
                    break;
                }
                assert!(tokio::time::Instant::now() < deadline, "{id} is never listed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
