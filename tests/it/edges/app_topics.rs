//! Application topics: what configuration grants, and those that are durable.

use proxie::kernel::entity::Role;
use proxie::systems::app_topics::settings::{Grant as TopicGrant, Grants};
use serde_json::{Value, json};

use super::{TestNode, grant, id};

fn said(topic: &str, n: i64) -> Value {
    json!({"topic": topic, "event": "app:said", "data": {"n": n}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_to_a_durable_topic_stays() {
    let node = TestNode::with(|config| {
        config.systems.set(Grants(vec![
            TopicGrant { durable: true, ..grant("app:log") },
            TopicGrant { durable: true, publish: vec![Role::Operator], ..grant("app:news") },
            grant("app:room"),
        ]));
        config.topics.history_bytes = 20_000;
    })
    .await;
    let (mut alice, mut bob) = (node.ws("alice").await, node.ws("bob").await);
    let start = bob.ok("topic:subscribe", json!({"topic": "app:log"})).await;
    assert_eq!((&start["recovered"], &start["position"]["offset"]), (&json!(true), &json!(0)));
    let once = id();
    let first = alice.ask_as(&once, "topic:publish", said("app:log", 1)).await;
    assert_eq!(first["data"], json!({"offset": 1}), "{first}");
    // Again under the same id, and through the node's other edge of the same user: nothing happens twice.
    let mut phone = node.ws("alice").await;
    assert_eq!(phone.ask_as(&once, "topic:publish", said("app:log", 1)).await, first);
    let other = phone.ask_as(&once, "topic:publish", said("app:log", 2)).await;
    assert_eq!(other["error"]["code"], "id_reused");
    for n in 2..=3 {
        assert_eq!(phone.ok("topic:publish", said("app:log", n)).await, json!({"offset": n}));
    }
    let heard = bob.durable("app:log", 3).await;
    for (n, event) in (1..).zip(&heard) {
        let expected = json!({
            "event": "app:said", "topic": "app:log", "offset": n, "from": "alice", "data": {"n": n},
        });
        assert_eq!(*event, expected);
    }
    let room = bob.ok("topic:subscribe", json!({"topic": "app:room"})).await;
    // Who may not, may not.
    assert_eq!(bob.refused("topic:publish", said("app:news", 1)).await, "forbidden");
    let mut pat = node.ws_as("pat", Role::Provider).await;
    for event in ["topic:publish", "topic:subscribe"] {
        assert_eq!(pat.refused(event, said("app:log", 1)).await, "forbidden");
    }

    // After a death: the same epoch, the same history, and the next offset. Another topic has to begin anew.
    let node = node.restart().await;
    let mut bob = node.ws("bob").await;
    let position = json!({"epoch": start["position"]["epoch"], "offset": 1});
    let resume = json!({"topic": "app:log", "position": position});
    assert_eq!(bob.ok("topic:subscribe", resume).await["recovered"], true);
    assert_eq!(bob.durable("app:log", 2).await, heard[1..]);
    let lossy = json!({"topic": "app:room", "position": room["position"]});
    let anew = bob.ok("topic:subscribe", lossy).await;
    assert_eq!(anew["recovered"], false);
    assert_ne!(anew["position"]["epoch"], room["position"]["epoch"]);
    assert_eq!(bob.ok("topic:publish", said("app:log", 4)).await, json!({"offset": 4}));
    assert_eq!(bob.durable("app:log", 1).await[0]["from"], "bob");

    // A history of more bytes than a page has.
    let mut carol = node.ws("carol").await;
    for n in 5..=12 {
        let data = json!({"topic": "app:log", "event": "app:big", "data": "x".repeat(60_000)});
        assert_eq!(bob.ok("topic:publish", data).await, json!({"offset": n}));
    }
    let position = json!({"epoch": start["position"]["epoch"], "offset": 4});
    let resume = json!({"topic": "app:log", "position": position});
    assert_eq!(carol.ok("topic:subscribe", resume).await["recovered"], true);
    let large = carol.durable("app:log", 8).await;
    assert!((5..).zip(&large).all(|(n, event)| event["offset"] == n));

    // Kept are as many bytes as may be.
    for n in 13..=64 {
        let data = json!({"topic": "app:log", "event": "app:big", "data": "x".repeat(1_000)});
        assert_eq!(bob.ok("topic:publish", data).await, json!({"offset": n}));
    }
    let mut resumed = async |offset: i64| {
        let position = json!({"epoch": start["position"]["epoch"], "offset": offset});
        let resume = json!({"topic": "app:log", "position": position});
        carol.ok("topic:subscribe", resume).await["recovered"] == true
    };
    assert!(!resumed(3).await && !resumed(40).await);
    assert!(resumed(46).await, "the last 19 of 1,002 bytes");
}

/// A slow reader's replay goes as fast as it reads; what is no longer kept by then is said to be lost, not left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_that_ends_while_it_is_replayed_is_said_to_be_lost() {
    let node = TestNode::with(|config| {
        config.systems.set(Grants(vec![TopicGrant { durable: true, ..grant("app:log") }]));
    })
    .await;
    let mut bob = node.ws("bob").await;
    let start = bob.ok("topic:subscribe", json!({"topic": "app:log"})).await;
    bob.ok("topic:unsubscribe", json!({"topic": "app:log"})).await;
    for _ in 0..60 {
        let said = json!({"topic": "app:log", "event": "app:said", "data": "x".repeat(60_000)});
        bob.ok("topic:publish", said).await;
    }
    let bearer = format!("Bearer {}", node.token("clara", Role::Consumer, 3_600));
    let mut slow =
        node.try_ws_over(node.narrow().await, &[("authorization", &bearer)]).await.unwrap();
    slow.ok("auth", json!({})).await;
    let resume = json!({"topic": "app:log", "position": start["position"]});
    assert_eq!(slow.ok("topic:subscribe", resume.clone()).await["recovered"], true);
    let mut store = node.store().await;
    sqlx::query("delete from publications").execute(&mut store).await.unwrap();
    let (code, reason) = slow.closed().await;
    assert_eq!((code, &reason["code"]), (3008, &json!("history_lost")));
    let mut again = node.ws("clara").await;
    let told = again.ok("topic:subscribe", resume).await;
    assert_eq!((&told["recovered"], &told["position"]["offset"]), (&json!(false), &json!(60)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn application_topics_are_what_configuration_grants() {
    let node = TestNode::with(|config| {
        config.systems.set(Grants(vec![
            grant("app:room"),
            TopicGrant { publish: vec![Role::Operator], ..grant("app:news") },
            TopicGrant { latest_only: true, ..grant("app:price") },
            TopicGrant { max_per_s: 3, ..grant("app:slow") },
        ]));
        config.websocket.send_buffer_bytes = 262_144;
        config.websocket.max_connections_per_user = 2;
        config.websocket.max_subscriptions = 3;
    })
    .await;
    let (mut alice, mut bob) = (node.ws("alice").await, node.ws("bob").await);
    for ws in [&mut alice, &mut bob] {
        ws.ok("topic:subscribe", json!({"topic": "app:room"})).await;
        ws.ok("topic:subscribe", json!({"topic": "app:news"})).await;
        assert_eq!(ws.refused("topic:subscribe", json!({"topic": "app:other"})).await, "rejected");
    }
    let publish = |topic: &str, event: &str| json!({"topic": topic, "event": event, "data": {"n": 1}, "from": "eve"});
    alice.ok("topic:publish", publish("app:room", "app:hi")).await;
    for ws in [&mut alice, &mut bob] {
        let event = ws.event().await;
        let wanted =
            json!({"event": "app:hi", "topic": "app:room", "from": "alice", "data": {"n": 1}});
        assert_eq!(event, wanted);
    }
    for (topic, event, code) in [
        ("app:news", "app:hi", "forbidden"),
        ("app:other", "app:hi", "forbidden"),
        ("user:alice", "app:hi", "forbidden"),
        ("app:room", "booking:confirmed", "bad_request"),
    ] {
        assert_eq!(alice.refused("topic:publish", publish(topic, event)).await, code, "{topic}");
    }
    // As many a second as the topic may have.
    for _ in 0..3 {
        alice.ok("topic:publish", publish("app:slow", "app:hi")).await;
    }
    let refused = alice.refused("topic:publish", publish("app:slow", "app:hi")).await;
    assert_eq!(refused, "rate_limited");
    let other = json!({"topic": "app:room", "event": "app:hi", "data": {"user_id": "bob"}});
    assert_eq!(alice.refused("topic:publish", other).await, "forbidden");
    alice.ok("topic:unsubscribe", json!({"topic": "app:news"})).await;
    assert_eq!(alice.refused("topic:subscribe", json!({"topic": "app:other"})).await, "forbidden");

    // Two connections a user.
    let _second = node.ws("alice").await;
    let token = format!("Bearer {}", node.token("alice", Role::Consumer, 60));
    assert_eq!(node.try_ws(&[("authorization", &token)]).await.err(), Some(429));

    // Bob does not read any more, and is not waited for.
    alice.ok("topic:unsubscribe", json!({"topic": "app:room"})).await;
    let big = "x".repeat(60_000);
    // Only he listens to the news. The close frame waits for him for two seconds.
    for n in 0.. {
        if !node.node.core.topics.has_subscribers("app:news") {
            break;
        }
        assert!(n < 300, "the node keeps everything for somebody who does not read");
        let data = json!({"topic": "app:room", "event": "app:big", "data": big});
        alice.ok("topic:publish", data).await;
    }
    let (code, reason) = bob.closed().await;
    assert_eq!((code, &reason["code"]), (3008, &json!("slow_consumer")));

    // Where only the latest matters, whoever is slow gets that, and is not cut off.
    let mut carol = node.ws("carol").await;
    carol.ok("topic:subscribe", json!({"topic": "app:price"})).await;
    for n in 0..300 {
        let data = json!({"topic": "app:price", "event": "app:set", "data": {"n": n, "pad": big}});
        alice.ok("topic:publish", data).await;
    }
    let mut heard = vec![-1];
    while heard.last() != Some(&299) {
        heard.push(carol.event().await["data"]["n"].as_i64().unwrap());
    }
    assert!(heard.is_sorted() && heard.len() < 300, "{heard:?}");
}
