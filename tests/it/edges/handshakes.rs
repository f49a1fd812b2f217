//! How a WebSocket begins (RFC 6455, 4.2), and which pages may begin one.

use proxie::config::Config;

use super::{Answer, Http, TestNode, logged};
use crate::process::Folder;
use crate::support::eventually;

const GOOD: [(&str, &str); 4] = [
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// The answer to a handshake in which one header is another one, or none.
pub async fn shake(node: &TestNode, path: &str, name: &str, value: Option<&str>) -> Answer {
    let mut headers: Vec<_> = GOOD.into_iter().filter(|(known, _)| *known != name).collect();
    headers.extend(value.map(|value| (name, value)));
    node.anonymous().shake(path, &headers).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_is_whole_or_refused() {
    let node = TestNode::start().await;
    for path in ["/v1/ws", "/sync/ws"] {
        let good = shake(&node, path, "x-nothing", None).await;
        assert_eq!(good.status, 101, "{path}");
        assert_eq!(good.headers["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(!good.headers.contains_key("sec-websocket-protocol"), "none was offered");
        for (name, value, status) in [
            ("connection", Some("keep-alive"), 426),
            ("upgrade", None, 426),
            ("upgrade", Some("h2c"), 426),
            ("sec-websocket-version", None, 426),
            ("sec-websocket-version", Some("8"), 426),
            ("sec-websocket-key", None, 400),
            ("sec-websocket-key", Some("c2hvcnQ="), 400),
            ("sec-websocket-key", Some("not base64 of 16 bytes!!"), 400),
        ] {
            let answer = shake(&node, path, name, value).await;
            answer.problem(status, "bad_request");
            if status == 426 {
                assert_eq!(answer.headers["sec-websocket-version"], "13", "{path}: {name}");
                assert_eq!(answer.headers["upgrade"], "websocket");
            }
        }
    }
}

/// The status of a handshake with these headers besides its own.
async fn status(client: &Http, headers: &[(&str, &str)]) -> u16 {
    client.shake("/v1/ws", &[&GOOD, headers].concat()).await.status
}

fn allow(origins: &[&str]) -> impl FnOnce(&mut Config) {
    let origins = origins.iter().map(|&origin| origin.into()).collect();
    |config| config.gateway.allowed_origins = origins
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origins_are_what_browsers_call_them() {
    let node = TestNode::with(allow(&["https://App.Example:443/", "https://*.example.org"])).await;
    let client = node.anonymous();
    for (origin, good) in [
        ("https://app.example", 101),
        ("http://app.example", 403),
        ("https://a.example.org", 101),
        ("https://a.b.example.org", 101),
        ("https://example.org", 403),
        ("https://example.org.evil.example", 403),
        ("null", 403),
    ] {
        assert_eq!(status(&client, &[("origin", origin)]).await, good, "{origin}");
    }
    // A page of the host that was asked, however either is written.
    for (host, origin, good) in [
        ("Node.Example:80", "http://node.example", 101),
        ("node.example", "https://node.example", 101),
        ("node.example:443", "https://node.example", 101),
        ("node.example:8080", "http://node.example", 403),
    ] {
        assert_eq!(status(&client, &[("host", host), ("origin", origin)]).await, good, "{host}");
    }
    let refused = [&GOOD[..], &[("origin", "https://evil.example")]].concat();
    let refused = client.shake("/v1/ws", &refused).await.problem(403, "forbidden");
    assert!(refused["detail"].as_str().unwrap().contains("https://evil.example"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxys_word_for_its_host_counts_where_it_is_trusted() {
    let origin = ("origin", "https://app.example");
    let words = [
        ("x-forwarded-host", "App.Example"),
        ("forwarded", "for=192.0.2.1;host=app.example;proto=https"),
    ];
    for (trusted, good) in [(&["127.0.0.1"][..], 101), (&["10.0.0.0/8"], 403), (&[], 403)] {
        let node = TestNode::with(|config| {
            config.gateway.trusted_proxies = trusted.iter().map(|&proxy| proxy.into()).collect();
        })
        .await;
        for word in words {
            let client = node.anonymous();
            assert_eq!(status(&client, &[origin, word]).await, good, "{trusted:?}: {word:?}");
        }
        let other = [origin, ("x-forwarded-host", "other.example")];
        assert_eq!(status(&node.anonymous(), &other).await, 403, "{trusted:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_other_origins_resume_and_carry_a_balancers_cookie() {
    for credentials in [false, true] {
        let node = TestNode::with(|config| {
            config.gateway.allowed_origins = vec!["https://*.example.org".into()];
            config.gateway.allow_credentials = credentials;
        })
        .await;
        let client = node.anonymous();
        let asked = [
            ("origin", "https://app.example.org"),
            ("access-control-request-method", "GET"),
            ("access-control-request-headers", "authorization,last-event-id"),
        ];
        let answer = client.send("OPTIONS", "/v1/events", &asked, b"").await;
        assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example.org");
        assert!(answer.headers["access-control-allow-headers"].contains("last-event-id"));
        let allowed = answer.headers.get("access-control-allow-credentials");
        assert_eq!(allowed.is_some_and(|allowed| allowed == "true"), credentials);
        let polls = "/socket.io/?EIO=4&transport=polling";
        let answer = client.send("GET", polls, &asked[..1], b"").await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example.org");
        let allowed = answer.headers.get("access-control-allow-credentials");
        assert_eq!(allowed.is_some_and(|allowed| allowed == "true"), credentials);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_origin_is_named_in_the_log_once() {
    let folder = Folder::new("origins");
    let node = logged(&folder, "info").await;
    let client = Http { address: node.address, token: None };
    for origin in ["https://shop.example", "https://shop.example", "https://last.example"] {
        assert_eq!(status(&client, &[("origin", origin)]).await, 403);
    }
    eventually("the last is named", || async { node.log().contains("https://last.example") }).await;
    let named = node.log().matches("https://shop.example").count();
    assert_eq!(named, 1, "{}", node.log());
    assert!(node.log().contains("gateway.allowed_origins"));
}
