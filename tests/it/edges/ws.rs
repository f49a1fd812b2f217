//! `GET /v1/ws`.

use std::time::Duration;

use proxie::kernel::clock::Timestamp;
use proxie::kernel::entity::Role;
use proxie::config::TopicGrant;
use proxie::persistence::keys;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::{TestNode, Ws, id, text};

const SENTENCE: &str =
    "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros";

async fn session(ws: &mut Ws) -> String {
    let data = json!({"session_id": null, "time_zone": "Europe/Berlin", "locale": "en"});
    text(&ws.ok("session:open", data).await["session_id"])
}

fn message(session: &str, content: &str) -> Value {
    json!({"session_id": session, "content": content, "media": []})
}

/// Their offsets, which must follow each other from 1.
#[track_caller]
fn contiguous(events: &[Value]) {
    let offsets: Vec<i64> = events.iter().map(|e| e["offset"].as_i64().unwrap()).collect();
    assert_eq!(offsets, (1..=events.len() as i64).collect::<Vec<_>>(), "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_conversation_from_a_sentence_to_a_booking() {
    let node = TestNode::start().await;
    node.hairdresser().await;
    let mut ws = node.try_ws(&[("sec-websocket-protocol", "other, proxie.v1")]).await.unwrap();
    assert_eq!(ws.subprotocol.as_deref(), Some("proxie.v1"));
    let token = node.token("alice", Role::Consumer, 3_600);
    let auth = ws.ok("auth", json!({"token": token, "positions": {}})).await;
    assert_eq!(auth["user_id"], "alice");
    assert!(text(&auth["connection_id"]).starts_with("con_"));
    assert!(auth["ping_ms"].is_u64() && auth["expires_at"].is_string());
    for (limit, least) in [
        ("subscriptions", 512), ("connections_per_user", 64), ("frames_per_s", 100),
        ("frame_burst", 500), ("frame_bytes", 65_536),
    ] {
        assert!(auth["limits"][limit].as_u64().unwrap() >= least, "{limit}");
    }
    let own = &auth["topics"]["user:alice"];
    assert_eq!((&own["recovered"], &own["position"]["offset"]), (&json!(true), &json!(0)));
    let epoch = own["position"]["epoch"].clone();

    let open = json!({"session_id": null, "time_zone": "Europe/Berlin", "locale": "en"});
    let opened = ws.ok("session:open", open).await;
    let session = text(&opened["session_id"]);
    assert!(session.starts_with("ses_"));
    assert_eq!(opened["position"], json!({"epoch": epoch, "offset": 0}));
    let sent = ws.ok("chat:message", message(&session, SENTENCE)).await;
    assert!(text(&sent["message_id"]).starts_with("msg_"));

    let (mut on_session, mut on_user, mut streamed) = (Vec::new(), Vec::new(), String::new());
    let topic = format!("session:{session}");
    let response = loop {
        let event = ws.event().await;
        match (event["topic"].as_str().unwrap(), event["event"].as_str().unwrap()) {
            (_, "chat:stream") => {
                assert!(event.get("offset").is_none());
                streamed += event["data"]["token"].as_str().unwrap();
            }
            (t, name) if t == topic => {
                let done = name == "chat:response";
                on_session.push(event.clone());
                if done {
                    break event;
                }
            }
            _ => on_user.push(event),
        }
    };
    assert_eq!(response["data"]["session_id"], session.as_str());
    assert_eq!(streamed.trim(), response["data"]["content"].as_str().unwrap().trim());
    assert_eq!(on_session[0]["event"], "chat:message");
    assert_eq!(on_session[0]["data"]["content"], SENTENCE);
    contiguous(&on_session);
    let position = on_user.iter().position(|e| e["event"] == "offer:new");
    let offer = match position {
        Some(at) => on_user[at].clone(),
        None => loop {
            let event = ws.event().await;
            if event["topic"] == "user:alice" {
                on_user.push(event.clone());
            }
            if event["event"] == "offer:new" {
                break event;
            }
        },
    };
    assert!(text(&offer["data"]["request_id"]).starts_with("req_"));
    let offer_id = text(&offer["data"]["offer"]["id"]);
    let accepted = ws.ok("offer:accept", json!({"offer_id": offer_id})).await;
    let confirmed = loop {
        let event = ws.event().await;
        if event["topic"] == "user:alice" {
            on_user.push(event.clone());
        }
        if event["event"] == "booking:confirmed" {
            break event;
        }
    };
    contiguous(&on_user);
    assert!(confirmed.to_string().contains(&text(&accepted["booking_id"])), "{confirmed}");

    // Another device hears all of it, in the same order.
    let mut late = node.ws("alice").await;
    let from_start = json!({"epoch": epoch, "offset": 0});
    let resume = json!({"session_id": session, "position": from_start});
    let resumed = late.ok("session:resume", resume).await;
    assert_eq!(resumed["recovered"], true);
    assert_eq!(late.durable(&topic, on_session.len()).await, on_session);
    let listen = json!({"topic": "user:alice", "position": from_start});
    late.ok("topic:subscribe", listen).await;
    assert_eq!(late.durable("user:alice", on_user.len()).await, on_user);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_come_in() {
    let node = TestNode::with(|config| config.websocket.auth_timeout_ms = 700).await;
    let good = node.token("alice", Role::Consumer, 3_600);
    let old = Timestamp::from_second(1_000_000_000).unwrap();
    let expired = node.node.gateway().auth.mint("alice", Role::Consumer, old, 60);
    for bad in ["Bearer nonsense".to_owned(), format!("Bearer {expired}"), format!("Basic {good}")] {
        assert_eq!(node.try_ws(&[("authorization", &bad)]).await.err(), Some(401), "{bad}");
    }
    assert_eq!(node.try_ws(&[("sec-websocket-protocol", "graphql-ws")]).await.err(), Some(400));
    assert_eq!(node.try_ws(&[("origin", "https://evil.example")]).await.err(), Some(403));
    let same = format!("http://{}", node.node.address);
    assert!(node.try_ws(&[("origin", &same)]).await.is_ok());

    let mut by_header = node.ws_silent("alice").await;
    let data = by_header.ok("auth", json!({})).await;
    assert_eq!(data["user_id"], "alice");

    for bad in [json!({"token": "nonsense"}), json!({"token": expired}), json!({}), json!({"token": 7})] {
        let mut ws = node.try_ws(&[]).await.unwrap();
        assert_eq!(ws.refused("auth", bad).await, "unauthenticated");
        let (code, reason) = ws.closed().await;
        assert_eq!((code, &reason["code"]), (3501, &json!("unauthenticated")));
    }
    let mut ws = node.try_ws(&[]).await.unwrap();
    assert_eq!(ws.refused("session:open", json!({})).await, "unauthenticated");
    ws.ok("auth", json!({"token": good})).await;
    session(&mut ws).await;
    let mut silent = node.try_ws(&[]).await.unwrap();
    assert_eq!(silent.closed().await.0, 3002);

    // A refresh is for the same user only, and a bad one leaves things as they are.
    let bob = node.token("bob", Role::Consumer, 3_600);
    assert_eq!(ws.refused("auth:refresh", json!({"token": bob})).await, "forbidden");
    assert_eq!(ws.refused("auth:refresh", json!({"token": "x"})).await, "unauthenticated");
    ws.ok("auth:refresh", json!({"token": node.token("alice", Role::Consumer, 60)})).await;
    ws.ok("ping", json!({})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_are_wrong() {
    let node = TestNode::with(|config| {
        config.websocket.max_frame_bytes = 4_096;
        config.websocket.frames_per_s = 50;
        config.websocket.frame_burst = 60;
    })
    .await;
    for bad in [
        Message::text("{"), Message::text("[]"), Message::text("7"), Message::text(""),
        Message::text(r#"{"event":"ping"}"#), Message::binary(&b"{}"[..]),
    ] {
        let mut ws = node.ws("alice").await;
        ws.raw(bad.clone()).await;
        let (code, reason) = ws.closed().await;
        assert_eq!((code, &reason["code"]), (3500, &json!("bad_request")), "{bad:?}");
    }
    let mut ws = node.ws("alice").await;
    assert_eq!(ws.refused("no:such", json!({})).await, "bad_request");
    assert_eq!(ws.refused("chat:message", json!({})).await, "bad_request");
    assert_eq!(ws.refused("chat:message", json!({"session_id": "s", "content": "\0"})).await, "bad_request");
    assert_eq!(ws.refused("ping", json!([])).await, "bad_request");
    assert_eq!(ws.refused("topic:subscribe", json!({"topic": "nonsense"})).await, "bad_request");
    assert_eq!(ws.refused("topic:subscribe", json!({"topic": "what:x"})).await, "not_found");
    assert_eq!(ws.refused("session:open", json!({"time_zone": "Mars/Base"})).await, "rejected");
    assert_eq!(ws.refused("session:open", json!({"user_id": "bob"})).await, "forbidden");
    let reply = ws.ask_as("with-more", "ping", json!({"unknown": 1})).await;
    assert!(reply["data"]["now"].is_string());
    ws.raw(Message::text("x".repeat(5_000))).await;
    let (code, reason) = ws.closed().await;
    assert_eq!((code, &reason["code"]), (3504, &json!("too_large")));

    let mut ws = node.ws("alice").await;
    for n in 0..400 {
        if !ws.try_raw(Message::text(format!(r#"{{"id":"p{n}","event":"ping"}}"#))).await {
            break;
        }
    }
    let (code, reason) = ws.closed().await;
    assert_eq!((code, reason["retry_after_ms"].is_u64()), (3009, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_id_has_one_effect() {
    let node = TestNode::start().await;
    let (mut one, mut two) = (node.ws("alice").await, node.ws("alice").await);
    let session = session(&mut one).await;
    let key = id();
    let said = message(&session, "hello");
    let (first, twin) = tokio::join!(
        one.ask_as(&key, "chat:message", said.clone()),
        two.ask_as(&key, "chat:message", said.clone()),
    );
    assert_eq!((&first["ok"], &first), (&json!(true), &twin));
    assert_eq!(one.ask_as(&key, "chat:message", said.clone()).await, first);
    let other = two.ask_as(&key, "chat:message", message(&session, "bye")).await;
    assert_eq!(other["error"]["code"], "id_reused", "{other}");
    let event = two.ask_as(&key, "request:create", json!({"text": SENTENCE, "time_zone": "Europe/Berlin"})).await;
    assert_eq!(event["error"]["code"], "id_reused", "{event}");
    let listed = node.user("alice").get(&format!("/v1/sessions/{session}/messages")).await.json();
    let mine = listed["items"].as_array().unwrap().iter().filter(|m| m["role"] == "user").count();
    assert_eq!(mine, 1, "{listed}");
    // Over the other edge it is still the same command.
    let path = format!("/v1/sessions/{session}/messages");
    let body = json!({"content": "hello", "media": []});
    let answer = node.user("alice").post_as(&key, &path, &body).await;
    assert_eq!(answer.json(), first["data"]);
    // A pure query always runs.
    let key = id();
    let now = one.ask_as(&key, "ping", json!({})).await;
    assert_ne!(one.ask_as(&key, "ping", json!({})).await["data"], now["data"]);
    // A business rejection is remembered too.
    let key = id();
    let past = json!({"service": "haircut", "place": "Alexanderplatz, Berlin", "starts_at": "2001-01-01T00:00:00Z"});
    let no = one.ask_as(&key, "request:create", past.clone()).await;
    assert_eq!(no["ok"], false);
    assert_eq!(two.ask_as(&key, "request:create", past).await, no);
}
