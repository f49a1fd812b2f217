use std::collections::BTreeSet;

use proxie::systems;
use serde_json::{Value, json};

use super::{Agent, Revision, WISH};
use crate::edges::{TestNode, text};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_books_a_haircut_in_either_revision() {
    let node = TestNode::start().await;
    node.hairdresser().await;
    for revision in Revision::BOTH {
        let agent = node.agent(&format!("anna-{}", revision.name()), revision);
        if revision == Revision::Before {
            let hello = json!({
                "protocolVersion": revision.name(), "capabilities": {},
                "clientInfo": {"name": "test", "version": "1"},
            });
            let welcome = agent.ask("initialize", hello).await;
            assert_eq!(welcome["protocolVersion"], revision.name());
            assert!(welcome["capabilities"]["tools"].is_object(), "{welcome}");
        } else {
            let found = agent.ask("server/discover", json!({})).await;
            let versions = found["supportedVersions"].as_array().unwrap();
            assert!(
                versions.contains(&json!("2026-07-28")) && versions.contains(&json!("2025-11-25"))
            );
        }
        // The hairdresser has one chair.
        let wish =
            if revision == Revision::Before { WISH.replace("5 pm", "2 pm") } else { WISH.into() };
        let created = agent.done("create_service_request", json!({"text": wish})).await;
        let request = text(&created["id"]);
        let offer = agent.http.offer(&request).await;
        let offers = agent.done("get_offers", json!({"request_id": request})).await;
        assert_eq!(offers["items"][0]["id"], offer["id"]);
        let accepted = agent.done("accept_offer", json!({"offer_id": offer["id"]})).await;
        let booking =
            agent.done("get_booking", json!({"booking_id": accepted["booking_id"]})).await;
        assert_eq!(booking["request_id"], request.as_str(), "{booking}");
        let bookings = agent.done("list_bookings", json!({})).await;
        assert_eq!(bookings["items"].as_array().unwrap().len(), 1);
    }
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_shows_every_declared_tool_in_the_words_of_the_protocol() {
    let node = TestNode::start().await;
    let declared: BTreeSet<&str> = systems::ALL
        .iter()
        .flat_map(|system| system.operations)
        .filter_map(|operation| Some(operation.meta.tool?.name))
        .collect();
    for revision in Revision::BOTH {
        let agent = node.agent("anna", revision);
        let listed = agent.ask("tools/list", json!({})).await;
        assert!(listed["nextCursor"].is_null());
        let tools = listed["tools"].as_array().unwrap();
        let names: Vec<&str> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
        assert_eq!(names, Vec::from_iter(declared.iter().copied()), "all, in the same order");
        let accept = tools.iter().find(|tool| tool["name"] == "accept_offer").unwrap();
        assert_eq!(accept["inputSchema"]["required"], json!(["offer_id"]));
        assert_eq!(accept["annotations"]["destructiveHint"], true);
        assert_eq!(accept["outputSchema"]["type"], "object");
        // They follow from the token.
        assert_eq!(listed["cacheScope"], "private");
        assert!(listed["ttlMs"].is_u64());
        let error = agent.refused("tools/list", json!({"cursor": "x"})).await;
        assert_eq!(error["code"], -32_602);
    }
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_in_the_place_that_the_protocol_has_for_it() {
    let node = TestNode::start().await;
    for revision in Revision::BOTH {
        let agent = node.agent("anna", revision);
        // A model can correct its arguments: that is the tool's answer.
        let problem = agent.problem("get_offers", json!({})).await;
        assert_eq!(
            (&problem["code"], &problem["retryable"]),
            (&json!("bad_request"), &json!(false))
        );
        assert_eq!(problem["errors"][0]["pointer"], "/request_id");
        let problem = agent.problem("accept_offer", json!({"offer_id": "off_1"})).await;
        assert_eq!(problem["code"], "not_found");
        // It cannot correct what is no call.
        let unknown = agent.refused("tools/call", json!({"name": "fly", "arguments": {}})).await;
        assert_eq!(unknown["code"], -32_602, "{unknown}");
        let unknown = agent.refused("tools/fly", json!({})).await;
        assert_eq!(unknown["code"], -32_601, "{unknown}");
        let list = json!({"name": "get_offers", "arguments": [1]});
        let error = agent.refused("tools/call", list).await;
        assert_eq!(error["code"], -32_602, "{error}");
    }
    let raw = async |body: &str| -> (u16, Value) {
        let headers = [
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
            ("mcp-protocol-version", "2025-11-25"),
        ];
        let answer = node.user("anna").send("POST", "/mcp", &headers, body.as_bytes()).await;
        (answer.status, answer.json()["error"]["code"].clone())
    };
    let parse_error = (400, json!(-32_700));
    assert_eq!(raw("{").await, parse_error);
    assert_eq!(raw("").await, parse_error);
    let twice = r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#;
    assert_eq!(raw(twice).await, parse_error);
    let unstorable = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list_devices","arguments":{"x":"\u0000"}}}"#;
    assert_eq!(raw(unstorable).await, parse_error);
    assert_eq!(raw(r#"{"hello":1}"#).await, (400, json!(-32_600)));
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_call_with_its_key_has_one_effect() {
    let node = TestNode::start().await;
    let agent = node.agent("anna", Revision::Newest);
    let wish = json!({"name": "create_service_request", "arguments": {"text": WISH}});
    let with_key = |key: &str| {
        let mut wish = wish.clone();
        wish["_meta"] = json!({"proxie/idempotency-key": key});
        wish
    };
    let id = async |agent: &Agent, params: Value, headers: &[(&str, &str)]| -> String {
        let answer = agent.send("tools/call", params, headers).await.json();
        text(&answer["result"]["structuredContent"]["id"])
    };
    let first = id(&agent, with_key("k1"), &[]).await;
    assert_eq!(id(&agent, with_key("k1"), &[]).await, first);
    assert_eq!(id(&agent, wish.clone(), &[("idempotency-key", "k1")]).await, first);
    assert_ne!(id(&agent, with_key("k2"), &[]).await, first);
    assert_ne!(id(&agent, wish.clone(), &[]).await, first);
    let error = agent.refused("tools/call", with_key("a b")).await;
    assert_eq!(error["code"], -32_602);
    node.node.stop().await;
}
