use proxie::kernel::entity::Role;
use serde_json::{Value, json};

use super::{Agent, Revision, WISH};
use crate::edges::{Http, TestNode, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_reads_and_changes_nothing() {
    let node = TestNode::start().await;
    node.hairdresser().await;
    let (anna, mallory) =
        (node.agent("anna", Revision::Newest), node.agent("mallory", Revision::Before));
    let request = text(&anna.done("create_service_request", json!({"text": WISH})).await["id"]);
    let offer = anna.http.offer(&request).await;
    let session = text(&anna.done("open_session", json!({})).await["id"]);
    for (tool, arguments) in [
        ("get_request", json!({"request_id": request})),
        ("get_offers", json!({"request_id": request})),
        ("cancel_request", json!({"request_id": request})),
        ("accept_offer", json!({"offer_id": offer["id"]})),
        ("decline_offer", json!({"offer_id": offer["id"]})),
        ("get_messages", json!({"session_id": session})),
        ("send_message", json!({"session_id": session, "content": "hello"})),
    ] {
        let problem = mallory.problem(tool, arguments.clone()).await;
        assert_eq!(problem["code"], "not_found", "{tool}: {problem}");
        // Nobody else's user can be named either.
        let mut arguments = arguments;
        arguments["user_id"] = json!("anna");
        let problem = mallory.problem(tool, arguments).await;
        assert_eq!(problem["code"], "forbidden", "{tool}: {problem}");
    }
    for tool in ["list_requests", "list_bookings", "list_sessions", "list_devices"] {
        assert_eq!(mallory.done(tool, json!({})).await["items"], json!([]), "{tool}");
    }
    let accepted = anna.done("accept_offer", json!({"offer_id": offer["id"]})).await;
    let booking = json!({"booking_id": accepted["booking_id"]});
    for tool in ["get_booking", "cancel_booking"] {
        assert_eq!(mallory.problem(tool, booking.clone()).await["code"], "not_found", "{tool}");
    }
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_shows_and_does_what_its_scopes_and_its_role_allow() {
    let node = TestNode::start().await;
    let agent = node.limited("anna", "playback offer");
    let tools = agent.tools().await;
    assert!(tools.contains(&"get_offers".into()) && tools.contains(&"list_playback".into()));
    assert!(!tools.contains(&"create_service_request".into()), "{tools:?}");
    let problem = agent.problem("create_service_request", json!({"text": WISH})).await;
    assert_eq!(problem["reason"], "insufficient_scope", "{problem}");
    assert!(problem["message"].as_str().unwrap().contains("scope request"), "{problem}");
    assert_eq!(node.limited("anna", "").tools().await, Vec::<String>::new());
    let all = node.agent("anna", Revision::Newest).done("list_requests", json!({})).await;
    assert_eq!(all["items"], json!([]), "nothing came of it");
    node.node.stop().await;
}

fn challenge(answer: &crate::edges::Answer) -> &str {
    assert_eq!(answer.status, 401, "{}", answer.text);
    &answer.headers["www-authenticate"]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_token_learns_where_to_ask_for_one() {
    let node = TestNode::start().await;
    let at = format!("http://{}", node.node.address);
    let anonymous = Agent::new(node.anonymous(), Revision::Newest);
    let answer = anonymous.send("tools/list", json!({}), &[]).await;
    answer.problem(401, "unauthenticated");
    let metadata = format!("{at}/.well-known/oauth-protected-resource/mcp");
    assert!(challenge(&answer).ends_with(&format!(", resource_metadata=\"{metadata}\"")));
    let forged = Http { token: Some("a.b.c".into()), ..node.anonymous() };
    let answer = Agent::new(forged, Revision::Before).send("ping", json!({}), &[]).await;
    assert!(challenge(&answer).contains(&metadata));
    for path in ["", "/mcp"] {
        let path = format!("/.well-known/oauth-protected-resource{path}");
        let found = node.anonymous().get(&path).await;
        assert_eq!(found.status, 200, "{}", found.text);
        let found = found.json();
        assert_eq!(found["resource"], format!("{at}/mcp"));
        assert_eq!(found["bearer_methods_supported"], json!(["header"]));
        let scopes: Vec<&str> = found["scopes_supported"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        for scope in ["playback", "offer", "outside"] {
            assert!(scopes.contains(&scope), "{scopes:?}");
        }
    }
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_and_pages_that_are_not_ours_are_refused() {
    let node = TestNode::with(|config| {
        config.gateway.allowed_hosts = vec!["api.example.org".into()];
        config.gateway.requests_per_minute = 1_000;
    })
    .await;
    let token = node.token("anna", Role::Consumer, 60);
    let bearer = format!("Bearer {token}");
    let listed = async |path: &str, host: &str, more: &[(&str, &str)]| {
        let mut headers = vec![("host", host), ("authorization", &bearer), ("connection", "close")];
        headers.extend(more);
        node.anonymous().shake(path, &headers).await
    };
    let metadata = "/.well-known/oauth-protected-resource";
    for path in ["/mcp", metadata, "/.well-known/oauth-protected-resource/mcp"] {
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80"] {
            let answer = listed(path, host, &[]).await;
            assert_eq!(answer.problem(403, "forbidden")["reason"], "host_not_allowed", "{path}");
            assert!(!answer.headers.contains_key("www-authenticate"));
        }
        // A stranger's forwarded host counts for nothing.
        let answer = listed(path, "evil.example", &[("x-forwarded-host", "api.example.org")]).await;
        answer.problem(403, "forbidden");
    }
    let answer = listed(metadata, "api.example.org", &[("x-forwarded-proto", "https")]).await;
    assert_eq!(answer.json()["resource"], "http://api.example.org/mcp", "no proxy is trusted here");
    let page = listed("/mcp", "api.example.org", &[("origin", "https://evil.example")]).await;
    assert_eq!(page.problem(403, "forbidden")["reason"], "origin_not_allowed");
    let ours = listed("/mcp", "api.example.org", &[("origin", "https://api.example.org")]).await;
    assert_eq!(ours.status, 405, "there is no stream to read: {}", ours.text);
    node.node.stop().await;
    let node = TestNode::with(|config| {
        config.gateway.allowed_hosts = vec!["api.example.org".into()];
        config.gateway.trusted_proxies = vec!["127.0.0.1".into()];
    })
    .await;
    let headers = [
        ("host", "127.0.0.1"),
        ("x-forwarded-host", "api.example.org"),
        ("x-forwarded-proto", "https"),
        ("connection", "close"),
    ];
    let answer = node.anonymous().shake(metadata, &headers).await;
    assert_eq!(answer.json()["resource"], "https://api.example.org/mcp", "through its proxy");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_the_other_doors_hold() {
    let node = TestNode::with(|config| {
        config.gateway.max_body_bytes = 4_096;
        config.gateway.requests_per_minute = 5;
    })
    .await;
    let agent = node.agent("anna", Revision::Newest);
    let long = agent.send("tools/call", json!({"name": "x".repeat(5_000)}), &[]).await;
    // The name is in a header too, which alone would be refused as well.
    assert!(matches!(long.status, 400 | 413 | 431), "{}", long.text);
    let huge = json!({"name": "get_offers", "arguments": {"x": "x".repeat(5_000)}});
    agent.send("tools/call", huge, &[]).await.problem(413, "too_large");
    for _ in 0..8 {
        agent.send("tools/list", json!({}), &[]).await;
    }
    let limited = agent.send("tools/list", json!({}), &[]).await;
    limited.problem(429, "rate_limited");
    assert!(limited.headers.contains_key("retry-after"));
    node.node.stop().await;
}
