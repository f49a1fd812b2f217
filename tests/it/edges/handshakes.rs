//! How a WebSocket begins (RFC 6455, 4.2), and which pages may begin one.

use super::{Answer, TestNode};

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
