//! What is refused, and with which of the protocol's errors.

use serde_json::json;

use super::{VERSION, accept, message, of_provider, offer_of, state_of, to_task, wish};
use crate::edges::{TestNode, id};

/// Each code of JSON-RPC and of the protocol that can happen here.
#[tokio::test(flavor = "multi_thread")]
async fn each_error_has_its_code() {
    let node = TestNode::start().await;
    let salon = node.stranger("anna", &of_provider(&node.hairdresser().await));
    let code = async |headers: &[(&str, &str)], body: &str| {
        let answer = salon.raw(headers, body).await;
        assert_eq!(answer.status, 200, "{body}: {}", answer.text);
        let answer = answer.json();
        assert!(answer["result"].is_null(), "{body}: {answer}");
        answer["error"]["code"].as_i64().unwrap()
    };
    for (body, expected) in [
        ("{", -32_700),
        (r#"{"jsonrpc": "2.0", "id": 1, "id": 2, "method": "ListTasks"}"#, -32_700),
        ("[]", -32_600),
        (r#"{"jsonrpc": "1.0", "id": 1, "method": "ListTasks"}"#, -32_600),
        (r#"{"jsonrpc": "2.0", "id": {}, "method": "ListTasks"}"#, -32_600),
        (r#"{"jsonrpc": "2.0", "id": 1.5, "method": "ListTasks"}"#, -32_600),
        (r#"{"jsonrpc": "2.0", "method": "ListTasks"}"#, -32_600),
        (r#"{"jsonrpc": "2.0", "id": 1}"#, -32_600),
        (r#"{"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {}}"#, -32_601),
        (r#"{"jsonrpc": "2.0", "id": 1, "method": "ListTasks", "params": []}"#, -32_602),
        (r#"{"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {}}"#, -32_602),
    ] {
        assert_eq!(code(&[VERSION], body).await, expected, "{body}");
    }
    let list = r#"{"jsonrpc": "2.0", "id": 1, "method": "ListTasks"}"#;
    for headers in [&[][..], &[("a2a-version", "0.3")], &[("a2a-version", "2.0")]] {
        assert_eq!(code(headers, list).await, -32_009, "{headers:?}");
    }
    let task = salon.send(message(wish(2, 60))).await;
    let wrong = |change: fn(&mut serde_json::Value)| {
        let mut message = message(wish(2, 60));
        change(&mut message);
        json!({"message": message})
    };
    for (method, params, expected) in [
        ("GetTask", json!({}), -32_602),
        ("GetTask", json!({"id": "task_unknown"}), -32_001),
        ("GetTask", json!({"id": "no id at all \u{1}"}), -32_001),
        ("GetTask", json!({"id": task["id"], "historyLength": -1}), -32_602),
        ("CancelTask", json!({"id": "task_unknown"}), -32_001),
        ("SubscribeToTask", json!({"id": "task_unknown"}), -32_001),
        ("ListTasks", json!({"pageSize": 0}), -32_602),
        ("ListTasks", json!({"pageSize": 101}), -32_602),
        ("ListTasks", json!({"pageToken": "x"}), -32_602),
        ("ListTasks", json!({"status": "TASK_STATE_RUNNING"}), -32_602),
        ("GetExtendedAgentCard", json!({}), -32_004),
        ("SendMessage", wrong(|m| m["role"] = "ROLE_AGENT".into()), -32_602),
        ("SendMessage", wrong(|m| m["messageId"] = "".into()), -32_602),
        ("SendMessage", wrong(|m| m["messageId"] = "x".repeat(300).into()), -32_602),
        ("SendMessage", wrong(|m| m["parts"] = json!([])), -32_602),
        ("SendMessage", wrong(|m| m["parts"] = json!([{}])), -32_602),
        ("SendMessage", wrong(|m| m["contextId"] = "a b".into()), -32_602),
        ("SendMessage", wrong(|m| m["taskId"] = "task_unknown".into()), -32_001),
        ("SendMessage", wrong(|m| m["parts"] = json!([{"url": "https://x/y.png"}])), -32_005),
        ("SendMessage", wrong(|m| m["parts"] = json!([{"raw": "AAAA"}])), -32_005),
        (
            "SendMessage",
            wrong(|m| m["parts"] = json!([{"text": "<p>", "mediaType": "text/html"}])),
            -32_005,
        ),
        ("SendMessage", wrong(|m| m["parts"] = json!([{"data": {"buy": {}}}])), -32_602),
        ("SendMessage", wrong(|m| m["parts"] = json!([{"data": 7}])), -32_602),
        (
            "SendMessage",
            wrong(|m| m["parts"] = json!([{"data": {"accept": {"offer_id": "o"}, "ask": {}}}])),
            -32_602,
        ),
        (
            "SendMessage",
            wrong(|m| m["parts"] = json!([{"data": {"x": "y".repeat(20_000)}}])),
            -32_602,
        ),
        ("SendMessage", wrong(|m| m["parts"] = json!([{"text": "y".repeat(9_000)}])), -32_602),
        (
            "SendMessage",
            wrong(|m| m["parts"][0]["data"]["ask"]["starts_at"] = "2020-01-01T00:00:00Z".into()),
            -32_602,
        ),
        (
            "SendMessage",
            json!({"message": message(wish(2, 60)),
                   "configuration": {"acceptedOutputModes": ["image/png"]}}),
            -32_005,
        ),
        ("SendMessage", json!({"message": to_task(&task, accept(&json!("off_unknown")))}), -32_602),
    ] {
        let error = salon.refused(method, params.clone()).await;
        assert_eq!(error["code"], expected, "{method} {params}: {error}");
        assert!(error["data"][0]["@type"].is_string(), "{error}");
    }
    let mut mismatch = to_task(&task, wish(2, 60));
    mismatch["contextId"] = "another".into();
    let error = salon.refused("SendMessage", json!({"message": mismatch})).await;
    assert_eq!(error["code"], -32_602);
    // What was refused has changed nothing.
    assert_eq!(salon.task(&task["id"]).await, task);
    salon.ask("CancelTask", json!({"id": task["id"]})).await;
    assert_eq!(salon.refused("CancelTask", json!({"id": task["id"]})).await["code"], -32_002);
    assert_eq!(salon.refused("SubscribeToTask", json!({"id": task["id"]})).await["code"], -32_004);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_fields_are_named() {
    let node = TestNode::start().await;
    let salon = node.stranger("anna", &of_provider(&node.hairdresser().await));
    let mut bad = wish(2, 60);
    bad[0]["data"]["ask"]["service"] = "flying".into();
    bad[0]["data"]["ask"]["place"] = json!(7);
    let error = salon.refused("SendMessage", json!({"message": message(bad.clone())})).await;
    let fields: Vec<_> = error["data"][0]["fieldViolations"].as_array().unwrap().iter().collect();
    let named: Vec<_> = fields.iter().map(|one| one["field"].as_str().unwrap()).collect();
    assert_eq!(named, ["message.parts.0.data.ask.service", "message.parts.0.data.ask.place"]);
    let answer = salon.rest("POST", "/message:send", &json!({"message": message(bad)})).await;
    assert_eq!(answer.status, 400);
    let error = answer.json()["error"].take();
    assert_eq!((&error["code"], &error["status"]), (&json!(400), &json!("INVALID_ARGUMENT")));
    assert_eq!(error["details"][0]["fieldViolations"].as_array().unwrap().len(), 2, "{error}");
    let nothing = salon.rest("GET", "/tasks/task_unknown", &json!({})).await;
    assert_eq!(nothing.status, 404);
    assert_eq!(nothing.json()["error"]["details"][0]["reason"], "TASK_NOT_FOUND");
    assert_eq!(nothing.json()["error"]["details"][0]["domain"], "a2a-protocol.org");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_its_owners_and_its_agents() {
    let node = TestNode::start().await;
    let (here, there) = (node.hairdresser().await, node.hairdresser().await);
    let anna = node.stranger("anna", &of_provider(&here));
    let task = anna.send(message(wish(2, 60))).await;
    assert_eq!(state_of(&task), "INPUT_REQUIRED");
    let offer = offer_of(&task);
    for other in [
        node.stranger("bob", &of_provider(&here)),
        node.stranger("anna", &of_provider(&there)),
        node.stranger("anna", "/a2a"),
        node.stranger("pat", &of_provider(&here)),
    ] {
        for (method, params) in [
            ("GetTask", json!({"id": task["id"]})),
            ("CancelTask", json!({"id": task["id"]})),
            ("SubscribeToTask", json!({"id": task["id"]})),
            ("SendMessage", json!({"message": to_task(&task, accept(&offer["id"]))})),
            (
                "CreateTaskPushNotificationConfig",
                json!({"taskId": task["id"], "url": "https://example.org/"}),
            ),
            ("ListTaskPushNotificationConfigs", json!({"taskId": task["id"]})),
            ("GetTaskPushNotificationConfig", json!({"taskId": task["id"], "id": "x"})),
            ("DeleteTaskPushNotificationConfig", json!({"taskId": task["id"], "id": "x"})),
        ] {
            let error = other.refused(method, params).await;
            assert_eq!(error["code"], -32_001, "{method}: {error}");
        }
        assert_eq!(other.ask("ListTasks", json!({})).await["tasks"], json!([]));
    }
    // Bob's message of the same id is another one, and begins another task.
    let (first, bob) = (message(wish(2, 60)), node.stranger("bob", &of_provider(&here)));
    let (hers, his) = (anna.send(first.clone()).await, bob.send(first).await);
    assert_ne!(hers["id"], his["id"]);
    assert_eq!(anna.task(&task["id"]).await, task);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_does_what_its_scopes_say() {
    let node = TestNode::start().await;
    let salon = of_provider(&node.hairdresser().await);
    let asks = node.limited_stranger("anna", "request", &salon);
    let task = asks.send(message(wish(2, 60))).await;
    let take = json!({"message": to_task(&task, accept(&offer_of(&task)["id"]))});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": take});
    let refused = asks.raw(&[VERSION], &body.to_string()).await;
    refused.problem(403, "forbidden");
    assert!(refused.headers["www-authenticate"].contains("scope=\"offer\""));
    assert_eq!(state_of(&asks.task(&task["id"]).await), "INPUT_REQUIRED");
    let none = node.limited_stranger("anna", "playback offer", &salon);
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "ListTasks"}).to_string();
    none.raw(&[VERSION], &list).await.problem(403, "forbidden");
    let both = node.limited_stranger("anna", "request offer", &salon);
    let done = both.send(take["message"].clone()).await;
    assert_eq!(state_of(&done), "COMPLETED", "{done}");
    // Without a token nobody is anybody, and an address that is none is not found out about.
    let mut nobody = both;
    nobody.http.token = None;
    nobody.raw(&[VERSION], &list).await.problem(401, "unauthenticated");
    let elsewhere = node.stranger("anna", "/a2a/providers/prv_nobody");
    let error = elsewhere.refused("SendMessage", json!({"message": message(wish(2, 60))})).await;
    assert_eq!(error["code"], -32_001, "{error}");
    let evil = [VERSION, ("x-request-id", &id()), ("origin", "https://evil.example")];
    let page = node.stranger("anna", &salon).raw(&evil, &list).await;
    page.problem(403, "forbidden");
}
