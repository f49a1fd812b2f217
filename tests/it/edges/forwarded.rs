//! What those in front of a node say about its callers: where a request comes from, and which trace it is part of.

use serde_json::Value;

use super::{Http, TestNode, logged};
use crate::process::Folder;
use crate::support::eventually;

async fn node(trusted_proxies: &[&str]) -> TestNode {
    TestNode::with(|config| {
        config.gateway.requests_per_minute = 3;
        config.gateway.trusted_proxies = trusted_proxies.iter().map(|&p| p.into()).collect();
    })
    .await
}

/// What a request without a token is answered, with these lines of `X-Forwarded-For`.
async fn status(client: &Http, lines: &[&str]) -> u16 {
    let headers: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
    client.send("GET", "/v1/bookings", &headers, b"").await.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_chooses_the_address_he_is_counted_by() {
    // We are no proxy that this node knows.
    for trusted in [&[][..], &["10.0.0.0/8"]] {
        let node = node(trusted).await;
        let client = node.anonymous();
        for n in 0..3 {
            assert_eq!(status(&client, &[&format!("203.0.113.{n}")]).await, 401);
        }
        assert_eq!(status(&client, &["203.0.113.99"]).await, 429);
        assert_eq!(status(&client, &[]).await, 429);
        // A socket without a token is counted by the same address, a user is not.
        let forwarded = [("x-forwarded-for", "203.0.113.98")];
        assert_eq!(node.try_ws(&forwarded).await.err(), Some(429));
        let refused = super::handshakes::shake(&node, "/v1/ws", "x-nothing", None).await;
        refused.problem(429, "rate_limited");
        assert_eq!(refused.headers["ratelimit-policy"], "\"default\";q=3;w=60");
        assert!(refused.headers["ratelimit"].starts_with("\"default\";r=0;t="));
        assert!(refused.headers.contains_key("retry-after"));
        assert_eq!(node.user("alice").get("/v1/bookings").await.status, 200);
    }

    // Now we are one, behind another one.
    let node = node(&["127.0.0.1", "10.0.0.0/8"]).await;
    let client = node.anonymous();
    for n in 0..3 {
        assert_eq!(status(&client, &[&format!("203.0.113.{n}")]).await, 401);
    }
    // Proxies add to what their client has said, which may be anything. Only what they have added counts.
    let mut said = (0..).map(|n| format!("198.51.100.{n}"));
    for (claim, added) in [
        ("{}, ", "192.0.2.1"),
        ("{}, ", "192.0.2.2, 10.1.1.1"),
        ("{}, unknown, ", "192.0.2.3"),
        ("{}, , ", "192.0.2.4, 10.1.1.1"),
        ("{}, \u{e9}, ", "192.0.2.5"),
    ] {
        let mut line = || claim.replace("{}", &said.next().unwrap()) + added;
        for _ in 0..3 {
            assert_eq!(status(&client, &[&line()]).await, 401, "{claim}{added}");
        }
        assert_eq!(status(&client, &[&line()]).await, 429, "{claim}{added}");
        // The same in lines of their own.
        let claims = [said.next().unwrap(), "\u{e9}".into(), added.into()];
        let claims = claims.each_ref().map(|line| line.as_str());
        assert_eq!(status(&client, &claims).await, 429, "{claims:?}");
    }
    // A proxy that names nobody is counted itself.
    for lines in [&[][..], &["unknown"], &["192.0.2.9, unknown"]] {
        assert_eq!(status(&client, lines).await, 401, "{lines:?}");
    }
    assert_eq!(status(&client, &["192.0.2.10, unknown"]).await, 429);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_trace_is_in_the_log() {
    let folder = Folder::new("trace");
    let node = logged(&folder, "info,proxie=debug").await;
    let client = Http { address: node.address, token: None };
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    for (id, version) in [("good", "00"), ("bad", "ff")] {
        let parent = format!("{version}-{trace}-00f067aa0ba902b7-01");
        let headers = [("traceparent", parent.as_str()), ("x-request-id", id)];
        client.send("GET", "/v1/bookings", &headers, b"").await.problem(401, "unauthenticated");
    }
    // The trace that the log has for a request.
    let logged = |id: &str| {
        let log = node.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find_map(|line| {
            (line["span"]["id"] == id).then(|| super::text(&line["span"]["trace"]))
        })
    };
    eventually("both are in the log", || async { logged("bad").is_some() }).await;
    assert_eq!((logged("good").as_deref(), logged("bad").as_deref()), (Some(trace), Some("")));
}
