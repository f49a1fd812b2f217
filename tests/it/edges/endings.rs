//! Connections that the node ends: a client that is too slow, one that is gone, one that may not any more.

use proxie::systems::app_topics::settings::Grants;
use std::time::Duration;

use futures_util::StreamExt;
use proxie::kernel::entity::Role;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use super::{Came, TestNode, Ws, grant, text};
use crate::process::{Folder, run};
use crate::support::{eventually, observer};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_cut_off_and_resumes() {
    let node = TestNode::with(|config| {
        config.websocket.send_buffer_bytes = 400_000;
        config.systems.set(Grants(vec![grant("app:noise")]));
    })
    .await;
    let (mut quick, mut bob) = (node.ws("alice").await, node.ws("bob").await);
    let opened = quick.ok("session:open", json!({})).await;
    let (session, start) = (text(&opened["session_id"]), opened["position"].clone());
    let topic = format!("session:{session}");

    // Another device of hers, with little room on its way.
    let bearer = format!("Bearer {}", node.token("alice", Role::Consumer, 3_600));
    let mut slow =
        node.try_ws_over(node.narrow().await, &[("authorization", &bearer)]).await.unwrap();
    for own in [&topic, "app:noise", "presence:alice"] {
        slow.ok("topic:subscribe", json!({"topic": own})).await;
    }

    // The topic that only this device listens to tells when the node has given up on it.
    let topics = &node.node.core.topics;
    let message = |n: usize| json!({"session_id": session, "content": format!("message {n}")});
    let mut said = 0;
    while topics.has_subscribers("presence:alice") {
        assert!(said < 60, "the node keeps everything for somebody who does not read");
        quick.ok("chat:message", message(said)).await;
        said += 1;
        for _ in 0..8 {
            let noise = json!({"topic": "app:noise", "event": "app:x", "data": "x".repeat(60_000)});
            bob.ok("topic:publish", noise).await;
        }
    }
    let mut heard = Vec::new();
    let (code, reason) = loop {
        match slow.next().await {
            Came::Frame(frame) if frame["topic"] == topic && frame["offset"].is_i64() => {
                heard.push(frame);
            }
            Came::Frame(_) => {}
            Came::Closed(code, reason) => break (code, reason),
        }
    };
    assert_eq!((code, &reason["code"]), (3008, &json!("slow_consumer")));
    assert!(reason["retry_after_ms"].is_u64(), "{reason}");

    // Others are served meanwhile, and what it misses is kept for it.
    quick.ok("chat:message", message(said)).await;
    let all = quick.durable(&topic, (said + 1) * 2).await;
    assert_eq!(heard, all[..heard.len()]);
    let mut again = node.ws("alice").await;
    let position = json!({"epoch": start["epoch"], "offset": heard.len()});
    let resume = json!({"session_id": session, "position": position});
    assert_eq!(again.ok("session:resume", resume).await["recovered"], true);
    assert_eq!(again.durable(&topic, all.len() - heard.len()).await, all[heard.len()..]);
}

/// The socket of an authenticated client whose WebSocket answers nothing by itself.
async fn mute(node: &TestNode) -> TcpStream {
    node.ws("alice").await.socket.into_inner()
}

/// Reads to the close frame: how many pings came before it, its code and its reason.
async fn close_of(stream: &mut TcpStream) -> (usize, u16, Value) {
    let mut pings = 0;
    let reading = async {
        loop {
            let (head, length) = (stream.read_u8().await.unwrap(), stream.read_u8().await.unwrap());
            assert!(length < 126, "only small frames are expected");
            let mut payload = vec![0; usize::from(length)];
            stream.read_exact(&mut payload).await.unwrap();
            match head {
                0x89 => pings += 1,
                0x88 => {
                    let reason = serde_json::from_slice(&payload[2..]).unwrap();
                    break (pings, u16::from_be_bytes([payload[0], payload[1]]), reason);
                }
                _ => {}
            }
        }
    };
    tokio::time::timeout(super::PATIENCE, reading).await.expect("a close frame")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_no_sign_of_life_is_given_up() {
    let node = TestNode::with(|config| {
        // More than one ping is sent while the first is waited for.
        config.websocket.ping_ms = 500;
        config.websocket.pong_timeout_ms = 2_000;
    })
    .await;
    let mut gone = mute(&node).await;
    let mut talking = mute(&node).await;
    let mut answering = node.ws("alice").await;
    // It answers pings, and says nothing. That comes by itself while it reads.
    let reads = tokio::spawn(async move {
        while let Some(Ok(Message::Ping(_))) = answering.socket.next().await {}
    });
    // It answers no ping, and is heard all the same: a masked ping of its own now and then.
    let talks = tokio::spawn(async move {
        while talking.write_all(&[0x89, 0x80, 0, 0, 0, 0]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let (pings, code, reason) = close_of(&mut gone).await;
    assert_eq!((code, &reason["code"]), (3002, &json!("heartbeat_timeout")));
    assert!(pings > 0 && reason["retry_after_ms"].is_u64(), "{pings} {reason}");
    drop(gone);
    eventually("its connection is over", || async { node.node.gateway().connections() == 2 }).await;
    // As long again, and the other two are still there.
    let mut gone = mute(&node).await;
    close_of(&mut gone).await;
    drop(gone);
    assert!(!reads.is_finished() && !talks.is_finished());
    eventually("they stay", || async { node.node.gateway().connections() == 2 }).await;
    talks.abort();
    reads.abort();
}

/// The socket of this token's bearer.
async fn by_token(node: &TestNode, token: &str) -> Result<Ws, u16> {
    node.try_ws(&[("authorization", &format!("Bearer {token}"))]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_is_refused_everywhere() {
    let node = TestNode::start().await;
    let folder = Folder::new("revoke");
    let database = node.config.persistence.database_url.reveal().clone();
    let revoke = |which: &str, what: &str| {
        let environment =
            [("DATABASE_URL", database.as_str()), ("PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF", "true")];
        let output = run(&folder, &["token", "revoke", which, what], &environment);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let [lost, kept] = [3_600, 3_600].map(|ttl_s| node.token("alice", Role::Consumer, ttl_s));
    let http = |node: &TestNode, token: &str| {
        let client = super::Http { token: Some(token.into()), ..node.anonymous() };
        async move { client.get("/v1/bookings").await }
    };
    let (mut by_lost, mut by_kept) =
        (by_token(&node, &lost).await.unwrap(), by_token(&node, &kept).await.unwrap());
    let mut by_frame = node.try_ws(&[]).await.unwrap();
    by_frame.ok("auth", json!({"token": lost})).await;
    let mut bob = node.ws("bob").await;

    // One token: what it opened is closed, the user's others go on.
    let claims = node.node.gateway().auth.verify(&lost, node.node.gateway().clock.now()).unwrap();
    revoke("--jti", &claims.jti);
    for ws in [&mut by_lost, &mut by_frame] {
        let (code, reason) = ws.closed().await;
        assert_eq!((code, &reason["code"]), (3501, &json!("revoked")));
    }
    http(&node, &lost).await.problem(401, "unauthenticated");
    assert_eq!(by_token(&node, &lost).await.err(), Some(401));
    let mut again = node.try_ws(&[]).await.unwrap();
    assert_eq!(again.refused("auth", json!({"token": lost})).await, "unauthenticated");
    assert_eq!(again.closed().await.0, 3501);
    assert_eq!(by_kept.refused("auth:refresh", json!({"token": lost})).await, "unauthenticated");
    assert_eq!(http(&node, &kept).await.status, 200);

    // A user: all tokens until now, and none of later.
    revoke("--user", "alice");
    let (code, reason) = by_kept.closed().await;
    assert_eq!((code, &reason["code"]), (3501, &json!("revoked")));
    http(&node, &kept).await.problem(401, "unauthenticated");
    bob.ok("ping", json!({})).await;
    let soon = node.node.gateway().clock.now() + Duration::from_secs(3);
    let later = node.node.gateway().auth.mint("alice", Role::Consumer, soon, 3_600);
    assert_eq!(http(&node, &later).await.status, 200);

    // Another life of the node knows it from its first answer on: it gives none before it has read the list.
    drop(bob);
    let TestNode { node, config, clock } = node;
    node.stop().await;
    let database = config.persistence.database_url.reveal().parse().unwrap();
    let mut reader = PgConnection::connect_with(&observer(database)).await.unwrap();
    let mut held = reader.begin().await.unwrap();
    let lock = sqlx::query("lock table revocations in access exclusive mode");
    lock.execute(&mut *held).await.unwrap();
    let starting = tokio::spawn(async move { TestNode::of(config, clock).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!starting.is_finished());
    held.rollback().await.unwrap();
    let node = starting.await.unwrap();
    http(&node, &kept).await.problem(401, "unauthenticated");
    assert_eq!(by_token(&node, &lost).await.err(), Some(401));
    assert_eq!(http(&node, &later).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_signing_key_logs_nobody_out() {
    let node = TestNode::start().await;
    let mut store = node.store().await;
    let client = |token: String| super::Http { token: Some(token), ..node.anonymous() };
    let old = client(node.token("alice", Role::Consumer, 3_600));
    let url = node.config.persistence.database_url.reveal().as_str();
    let environment = [("DATABASE_URL", url), ("PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF", "true")];
    let folder = Folder::new("rotate");
    let output = run(&folder, &["token", "rotate-key"], &environment);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let kids = async || {
        let keys = node.anonymous().get("/.well-known/jwks.json").await.json();
        let keys = keys["keys"].as_array().unwrap().clone();
        keys.iter().map(|key| text(&key["kid"])).collect::<Vec<_>>()
    };
    eventually("the node knows both", || async { kids().await.len() == 2 }).await;
    let first = kids().await[0].clone();
    // Some seconds later.
    let sql = "update signing_keys set created_at = created_at - interval '1 minute', retired_at = retired_at - interval '1 minute'";
    sqlx::query(sql).execute(&mut store).await.unwrap();
    eventually("the new one signs", || async { kids().await[0] != first }).await;
    let new = client(node.token("alice", Role::Consumer, 3_600));
    for alice in [&old, &new] {
        assert_eq!(alice.get("/v1/bookings").await.status, 200);
    }
}
