//! `GET /v1/ws`.

use std::time::Duration;

use proxie::kernel::clock::{Clock, Timestamp};
use proxie::kernel::entity::Role;
use proxie::persistence::keys;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::{Came, TestNode, Ws, id, text};

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
        ("subscriptions", 512),
        ("connections_per_user", 64),
        ("frames_per_s", 100),
        ("frame_burst", 500),
        ("frame_bytes", 65_536),
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
    for bad in ["Bearer nonsense".to_owned(), format!("Bearer {expired}"), format!("Basic {good}")]
    {
        assert_eq!(node.try_ws(&[("authorization", &bad)]).await.err(), Some(401), "{bad}");
    }
    assert_eq!(node.try_ws(&[("sec-websocket-protocol", "graphql-ws")]).await.err(), Some(400));
    assert_eq!(node.try_ws(&[("origin", "https://evil.example")]).await.err(), Some(403));
    let same = format!("http://{}", node.node.address);
    assert!(node.try_ws(&[("origin", &same)]).await.is_ok());

    let mut by_header = node.ws_silent("alice").await;
    let data = by_header.ok("auth", json!({})).await;
    assert_eq!(data["user_id"], "alice");

    for bad in
        [json!({"token": "nonsense"}), json!({"token": expired}), json!({}), json!({"token": 7})]
    {
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
    let (code, reason) = silent.closed().await;
    assert_eq!((code, &reason["code"]), (3002, &json!("authentication_timeout")));

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
        Message::text("{"),
        Message::text("[]"),
        Message::text("7"),
        Message::text(""),
        Message::text(r#"{"event":"ping"}"#),
        Message::binary(&b"{}"[..]),
    ] {
        let mut ws = node.ws("alice").await;
        ws.raw(bad.clone()).await;
        let (code, reason) = ws.closed().await;
        assert_eq!((code, &reason["code"]), (3500, &json!("bad_request")), "{bad:?}");
    }
    let mut ws = node.ws("alice").await;
    assert_eq!(ws.refused("no:such", json!({})).await, "bad_request");
    assert_eq!(ws.refused("chat:message", json!({})).await, "bad_request");
    assert_eq!(
        ws.refused("chat:message", json!({"session_id": "s", "content": "\0"})).await,
        "bad_request"
    );
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

/// JSON that is not taken is answered, and nothing that is under way is lost to it, nor to what is no JSON.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_with_an_id_is_answered_whatever_is_in_it() {
    let node = TestNode::start().await;
    let mut ws = node.ws("alice").await;
    let session = session(&mut ws).await;
    let say = |id: &str| json!({"id": id, "event": "chat:message", "data": message(&session, id)});
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    for (n, what) in [r#""\ud800""#, "1e999", r#"{"a": 1, "a": 2}"#, r#""\u0000""#, deep.as_str()]
        .into_iter()
        .enumerate()
    {
        ws.raw(Message::text(say(&format!("before-{n}")).to_string())).await;
        let wrong = format!(r#"{{"id": "wrong-{n}", "event": "ping", "data": {{"a": {what}}}}}"#);
        ws.raw(Message::text(wrong)).await;
        let wrong = ws.reply_of(&format!("wrong-{n}")).await;
        assert_eq!((&wrong["ok"], &wrong["error"]["code"]), (&json!(false), &json!("bad_request")));
        assert_eq!(ws.reply_of(&format!("before-{n}")).await["ok"], true);
    }
    ws.ok("ping", json!({})).await;
    // On /sync/ws messages have no id: what says its type is answered.
    let token = format!("Bearer {}", node.token("alice", Role::Consumer, 3_600));
    let mut device = node.try_ws_at("/sync/ws", &[("authorization", &token)]).await.unwrap();
    device.raw(Message::text(r#"{"type": "Heartbeat", "position": 1e999}"#)).await;
    let error = device.event().await;
    assert_eq!((&error["type"], &error["code"]), (&json!("Error"), &json!("bad_request")));

    for bad in [Message::text("{"), Message::text(r#"{"event": "ping"}"#), Message::binary("{}")] {
        let mut ws = node.ws("alice").await;
        for n in 0..20 {
            ws.raw(Message::text(say(&format!("last-{n}-{}", id())).to_string())).await;
        }
        ws.raw(bad.clone()).await;
        let (mut replies, mut last) = (0, ws.next().await);
        while let Came::Frame(frame) = &last {
            replies += usize::from(frame["ok"] == true);
            last = ws.next().await;
        }
        assert!(matches!(last, Came::Closed(3500, _)), "{bad:?}: {last:?}");
        assert_eq!(replies, 20, "{bad:?}");
    }
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
    let event = two
        .ask_as(&key, "request:create", json!({"text": SENTENCE, "time_zone": "Europe/Berlin"}))
        .await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_belong_to_their_user_and_resume_where_they_were() {
    let node = TestNode::start().await;
    let (mut one, mut two, mut eve) =
        (node.ws("alice").await, node.ws("alice").await, node.ws("eve").await);
    let opened = one.ok("session:open", json!({"session_id": null})).await;
    let (session, start) = (text(&opened["session_id"]), opened["position"].clone());
    let topic = format!("session:{session}");
    for (event, data) in [
        ("session:open", json!({"session_id": session})),
        ("session:resume", json!({"session_id": session, "position": start})),
        ("topic:subscribe", json!({"topic": topic})),
        ("chat:message", message(&session, "hello")),
        ("chat:typing", json!({"session_id": session, "is_typing": true})),
        ("session:close", json!({"session_id": session, "end": true})),
        ("topic:subscribe", json!({"topic": "session:ses_nobody"})),
        ("chat:message", message("ses_nobody", "hello")),
        ("offer:accept", json!({"offer_id": "off_nobody"})),
        ("booking:cancel", json!({"booking_id": "bkg_nobody"})),
        ("request:cancel", json!({"request_id": "req_nobody"})),
        ("topic:subscribe", json!({"topic": "booking:bkg_nobody"})),
    ] {
        assert_eq!(eve.refused(event, data).await, "not_found", "{event}");
    }
    for topic in ["user:alice", "presence:alice", "app:room"] {
        assert_eq!(eve.refused("topic:subscribe", json!({"topic": topic})).await, "forbidden");
    }

    two.ok("session:open", json!({"session_id": session})).await;
    for n in 0..4 {
        let from = if n % 2 == 0 { &mut one } else { &mut two };
        from.ok("chat:message", message(&session, &format!("hello {n}"))).await;
    }
    let heard = one.durable(&topic, 8).await;
    contiguous(&heard);
    assert_eq!(two.durable(&topic, 8).await, heard, "two devices see the same");

    // From anywhere in it: exactly what comes after, then what is live.
    for from in [0, 3, 8] {
        let mut late = node.ws("alice").await;
        let position = json!({"epoch": start["epoch"], "offset": from});
        let resume = json!({"session_id": session, "position": position});
        let resumed = late.ok("session:resume", resume).await;
        assert_eq!(
            (&resumed["recovered"], &resumed["position"]["offset"]),
            (&json!(true), &json!(8))
        );
        let missed = late.durable(&topic, 8 - from).await;
        assert_eq!(missed, heard[from..]);
        late.ok("chat:typing", json!({"session_id": session, "is_typing": true})).await;
        let live = late.event().await;
        assert_eq!((&live["event"], live.get("offset")), (&json!("chat:typing"), None));
    }
    for (epoch, offset) in
        [(json!("another"), 0), (start["epoch"].clone(), 99), (start["epoch"].clone(), -1)]
    {
        let mut late = node.ws("alice").await;
        let resume = json!({"session_id": session, "position": {"epoch": epoch, "offset": offset}});
        let resumed = late.ok("session:resume", resume).await;
        let now = json!({"epoch": start["epoch"], "offset": 8});
        assert_eq!(resumed, json!({"recovered": false, "position": now}), "{epoch} {offset}");
    }
    let bad = json!({"session_id": session, "position": {"epoch": 1}});
    assert_eq!(one.refused("session:resume", bad).await, "bad_request");
    // By `auth`, together with the user's own topic.
    let mut late = node.ws_silent("alice").await;
    let positions = json!({ &topic: start, "user:alice": start, "session:ses_nobody": start });
    let auth = late.ok("auth", json!({"positions": positions})).await;
    assert_eq!(auth["topics"][&topic]["recovered"], true, "{auth}");
    assert_eq!(auth["topics"]["session:ses_nobody"]["error"]["code"], "not_found", "{auth}");
    assert_eq!(late.durable(&topic, 8).await, heard);

    // Closing is for this connection, ending is for all.
    two.ok("session:close", json!({"session_id": session})).await;
    two.forget();
    one.ok("chat:message", message(&session, "more")).await;
    assert_eq!(one.durable(&topic, 2).await[1]["offset"], 10);
    one.ok("session:close", json!({"session_id": session, "end": true})).await;
    one.event_named("session:ended").await;
    late.event_named("session:ended").await;
    two.ok("ping", json!({})).await;
    assert!(!two.has_heard(&topic), "a closed session is silent");
    let reply = one.ask_as(&id(), "chat:message", message(&session, "x")).await;
    assert_eq!(reply["ok"], false, "{reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_end_and_nodes_leave() {
    let node = TestNode::start().await;
    let mut short = node.try_ws(&[]).await.unwrap();
    short.ok("auth", json!({"token": node.token("alice", Role::Consumer, 2)})).await;
    assert!(short.event_named("token:expiring").await["data"]["expires_at"].is_string());
    let (code, reason) = short.closed().await;
    assert_eq!((code, &reason["code"]), (3502, &json!("token_expired")));

    // A refresh in time keeps the connection.
    let mut kept = node.try_ws(&[]).await.unwrap();
    kept.ok("auth", json!({"token": node.token("alice", Role::Consumer, 2)})).await;
    kept.ok("auth:refresh", json!({"token": node.token("alice", Role::Consumer, 600)})).await;
    let mut bob = node.ws("bob").await;
    tokio::time::sleep(Duration::from_millis(2_300)).await;
    kept.ok("ping", json!({})).await;

    let revoked = std::time::Instant::now();
    keys::revoke(&node.node.core.pool, "user:alice").await.unwrap();
    let (code, reason) = kept.closed().await;
    assert_eq!((code, &reason["code"]), (3501, &json!("revoked")));
    assert!(revoked.elapsed() < Duration::from_secs(2), "{:?}", revoked.elapsed());
    bob.ok("ping", json!({})).await;

    let gateway = node.node.gateway().clone();
    let ((), (code, reason)) = tokio::join!(gateway.drain(Duration::from_secs(5)), bob.closed());
    assert_eq!((code, &reason["code"]), (3000, &json!("draining")));
    assert!(reason["retry_after_ms"].is_u64());
    assert_eq!(node.try_ws(&[]).await.err(), Some(503));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_who_want_the_same_hour_one_gets_it() {
    let node = TestNode::start().await;
    node.hairdresser().await;
    for round in 0..5_i64 {
        let (mut alice, mut bob) = (node.ws("alice").await, node.ws("bob").await);
        let noon =
            Clock::System.now().as_second() / 86_400 * 86_400 + (2 + round) * 86_400 + 43_200;
        let ask = |start: i64| {
            let at = Timestamp::from_second(start).unwrap().to_string();
            json!({"service": "haircut", "place": "Alexanderplatz, Berlin", "starts_at": at})
        };
        alice.ok("request:create", ask(noon)).await;
        bob.ok("request:create", ask(noon + 900)).await;
        let offer = |event: Value| json!({"offer_id": event["data"]["offer"]["id"]});
        let hers = offer(alice.event_named("offer:new").await);
        let his = offer(bob.event_named("offer:new").await);
        let (a_id, b_id) = (id(), id());
        let (a, b) = tokio::join!(
            alice.ask_as(&a_id, "offer:accept", hers.clone()),
            bob.ask_as(&b_id, "offer:accept", his.clone()),
        );
        assert_ne!(a["ok"], b["ok"], "{a} {b}");
        let (winner, won, id, data, lost) = if a["ok"] == true {
            (&mut alice, a.clone(), a_id, hers, b)
        } else {
            (&mut bob, b.clone(), b_id, his, a)
        };
        assert_eq!(lost["error"]["code"], "conflict", "{lost}");
        assert_eq!(winner.ask_as(&id, "offer:accept", data).await, won, "the same again");
    }
    let count = |items: Value| items["items"].as_array().unwrap().len();
    let alice = count(node.user("alice").get("/v1/bookings").await.json());
    let bob = count(node.user("bob").get("/v1/bookings").await.json());
    assert_eq!(alice + bob, 5);
}

/// Frames that break RFC 6455 itself, byte by byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_are_no_frames() {
    let node = TestNode::start().await;
    for (bytes, code) in [
        (&[0x81, 0x81, 0, 0, 0, 0, 0xff][..], 1007),
        (&[0x81, 0x01, b'a'], 1002),
        (&[0x83, 0x80, 0, 0, 0, 0], 1002),
        (&[0xc1, 0x80, 0, 0, 0, 0], 1002),
        (&[0x80, 0x80, 0, 0, 0, 0], 1002),
        (&[0x09, 0x80, 0, 0, 0, 0], 1002),
        (&[0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], 3504),
    ] {
        let mut ws = node.ws("alice").await;
        ws.bytes(bytes).await;
        assert_eq!(ws.closed().await.0, code, "{bytes:x?}");
    }
    // In pieces it is still one frame, and pieces count together.
    let mut ws = node.ws("alice").await;
    let text = br#"{"id":"7","event":"ping"}"#;
    ws.bytes(&[&[0x01, 0x80 | 7, 0, 0, 0, 0][..], &text[..7]].concat()).await;
    ws.bytes(&[&[0x80, 0x80 | 18, 0, 0, 0, 0][..], &text[7..]].concat()).await;
    assert_eq!(ws.reply("7").await["ok"], true);
}

/// What one connection says is done in the order in which it was said, also where the entity has to be loaded first;
/// and positions, ids and tokens outlive the node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_changes_nothing_and_order_is_kept() {
    let node = TestNode::start().await;
    let mut ws = node.ws("alice").await;
    let opened = ws.ok("session:open", json!({})).await;
    let (session, start) = (text(&opened["session_id"]), opened["position"].clone());
    let topic = format!("session:{session}");
    let key = id();
    let first = ws.ask_as(&key, "chat:message", message(&session, "message 0")).await;
    let before = ws.durable(&topic, 2).await;
    let token = node.token("alice", Role::Consumer, 3_600);
    drop(ws);

    let node = node.restart().await;
    let mut ws = node.try_ws(&[("authorization", &format!("Bearer {token}"))]).await.unwrap();
    // At once, without waiting for anything.
    let ids: Vec<String> = (1..=20).map(|_| id()).collect();
    for (n, id) in ids.iter().enumerate() {
        ws.say(id, "chat:message", message(&session, &format!("message {}", n + 1))).await;
    }
    for id in &ids {
        let reply = ws.reply_of(id).await;
        assert_eq!(reply["ok"], true, "{reply}");
    }
    assert_eq!(ws.ask_as(&key, "chat:message", message(&session, "message 0")).await, first);
    let resume = json!({"session_id": session, "position": start});
    assert_eq!(ws.ok("session:resume", resume).await["recovered"], true);
    let events = ws.durable(&topic, 42).await;
    assert_eq!(events[..2], before);
    contiguous(&events);
    let said: Vec<String> = events
        .iter()
        .filter(|event| event["event"] == "chat:message")
        .map(|event| text(&event["data"]["content"]))
        .collect();
    assert_eq!(said, (0..=20).map(|n| format!("message {n}")).collect::<Vec<_>>());
    let mut names = events.iter().map(|e| text(&e["event"])).collect::<Vec<_>>();
    names.sort();
    names.dedup();
    assert_eq!(names, ["chat:message", "chat:response"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_parties_follow_a_booking() {
    let node = TestNode::start().await;
    node.hairdresser().await;
    let (mut alice, mut pat, mut eve) =
        (node.ws("alice").await, node.ws("pat").await, node.ws("eve").await);
    let body = json!({"text": SENTENCE, "time_zone": "Europe/Berlin"});
    let request = alice.ok("request:create", body).await;
    let offer = alice.event_named("offer:new").await["data"].clone();
    assert_eq!(offer["request_id"], request["id"]);
    let accept = json!({"offer_id": offer["offer"]["id"]});
    let booking = text(&alice.ok("offer:accept", accept).await["booking_id"]);
    pat.event_named("booking:confirmed").await;
    let topic = format!("booking:{booking}");
    assert_eq!(eve.refused("topic:subscribe", json!({"topic": topic})).await, "not_found");
    let mut heard = Vec::new();
    for ws in [&mut alice, &mut pat] {
        ws.ok("topic:subscribe", json!({"topic": topic})).await;
    }
    let cancel = json!({"booking_id": booking, "reason": "ill"});
    assert_eq!(eve.refused("booking:cancel", cancel.clone()).await, "not_found");
    assert_eq!(alice.ok("booking:cancel", cancel).await["status"], "cancelled");
    for ws in [&mut alice, &mut pat] {
        heard.push(ws.durable(&topic, 1).await);
    }
    assert_eq!(heard[0], heard[1]);
    assert_eq!(heard[0][0]["event"], "booking:updated");
    let shown = node.user("pat").get(&format!("/v1/bookings/{booking}")).await.json();
    assert_eq!(shown["status"], "cancelled");
}

#[tokio::test]
async fn presence_is_shown_to_whom_it_concerns() {
    let node = TestNode::start().await;
    node.hairdresser().await;
    let (mut alice, mut pat, mut eve) =
        (node.ws("alice").await, node.ws("pat").await, node.ws("eve").await);
    let presence = json!({"topic": "presence:alice"});
    for stranger in [&mut pat, &mut eve] {
        assert_eq!(stranger.refused("topic:subscribe", presence.clone()).await, "forbidden");
    }
    let body = json!({"text": SENTENCE, "time_zone": "Europe/Berlin"});
    alice.ok("request:create", body).await;
    alice.event_named("offer:new").await;
    // He has made her an offer.
    pat.ok("topic:subscribe", presence.clone()).await;
    assert_eq!(eve.refused("topic:subscribe", presence).await, "forbidden");
    alice.ok("presence:online", json!({"status": "away"})).await;
    let changed = pat.presence("alice", &["away"]).await;
    assert_eq!(changed["data"]["joins"].as_array().unwrap().len(), 1);
    assert_eq!(changed.get("offset"), None);
    let mut twin = node.ws("alice").await;
    twin.ok("presence:online", json!({})).await;
    let changed = pat.presence("alice", &["away", "online"]).await;
    assert_eq!(changed["data"]["status"], "online", "the latest word");
    // A device that comes back in time was never away; one that does not is.
    drop(alice);
    let mut alice = node.ws("alice").await;
    alice.ok("presence:online", json!({"status": "busy"})).await;
    let changed = pat.presence("alice", &["busy", "online"]).await;
    assert_eq!((&changed["data"]["joins"], &changed["data"]["leaves"]), (&json!([]), &json!([])));
    drop(alice);
    drop(twin);
    let changed = pat.presence("alice", &[]).await;
    assert_eq!(changed["data"]["status"], "offline");
}

#[tokio::test]
async fn typing_ends_by_itself() {
    let node = TestNode::start().await;
    let (mut phone, mut laptop) = (node.ws("alice").await, node.ws("alice").await);
    let session = text(&phone.ok("session:open", json!({})).await["session_id"]);
    laptop.ok("session:resume", json!({"session_id": session})).await;
    // Once by time, once with the connection.
    for leaves in [false, true] {
        phone.ok("chat:typing", json!({"session_id": session, "is_typing": true})).await;
        assert_eq!(laptop.event_named("chat:typing").await["data"]["is_typing"], true);
        if leaves {
            phone = node.ws("alice").await;
        }
        assert_eq!(laptop.event_named("chat:typing").await["data"]["is_typing"], false);
    }
    drop(phone);
}
