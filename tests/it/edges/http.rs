//! `/v1` and what is around it.

use std::time::Duration;

use proxie::kernel::entity::Role;
use serde_json::{Value, json};

use super::{TestNode, hairdresser, id, text};

fn in_days(days: i64, minutes: i64) -> String {
    let at = jiff::Timestamp::now() + Duration::from_secs((days * 86_400 + minutes * 60) as u64);
    jiff::Timestamp::from_second(at.as_second()).unwrap().to_string()
}

fn haircut(starts_at: &str) -> Value {
    json!({"service": "haircut", "place": "Alexanderplatz, Berlin", "starts_at": starts_at})
}

/// The pointers of a problem's errors.
fn pointers(problem: &Value) -> Vec<String> {
    let errors = problem["errors"].as_array().unwrap_or_else(|| panic!("no errors: {problem}"));
    assert!(errors.iter().all(|e| e["message"].as_str().is_some_and(|m| !m.is_empty())));
    errors.iter().map(|e| text(&e["pointer"])).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_good_token_nothing_is_shown() {
    let node = TestNode::start().await;
    let mut client = node.anonymous();
    let good = node.token("alice", Role::Consumer, 3_600);
    let expired =
        node.node.gateway().auth.mint("alice", Role::Consumer, jiff::Timestamp::from_second(1_000_000_000).unwrap(), 60);
    let swapped = format!("{}A", &good[..good.len() - 6]);
    for token in [None, Some("nonsense".to_owned()), Some(expired), Some(swapped)] {
        client.token = token;
        for path in [
            "/v1/requests", "/v1/requests/req_1", "/v1/requests/req_1/offers", "/v1/bookings",
            "/v1/bookings/bkg_1", "/v1/providers", "/v1/sessions/ses_1/messages", "/v1/nothing",
        ] {
            let answer = client.get(path).await;
            answer.problem(401, "unauthenticated");
            assert!(answer.headers["www-authenticate"].starts_with("Bearer"));
        }
        client.post("/v1/requests", &json!({})).await.problem(401, "unauthenticated");
    }
    client.token = Some(good);
    assert_eq!(client.get("/v1/requests").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_and_what_is_malformed_is_a_problem() {
    let node = TestNode::with(|config| config.gateway.max_body_bytes = 2_048).await;
    let alice = node.user("alice");
    node.anonymous().get("/nothing").await.problem(404, "not_found");
    alice.get("/v1/nothing").await.problem(404, "not_found");
    let answer = alice.send("DELETE", "/v1/requests", &[], b"").await;
    answer.problem(405, "bad_request");
    assert!(answer.headers["allow"].contains("POST"), "{:?}", answer.headers);
    alice.get("/v1/requests/req_%00").await.problem(404, "not_found");
    alice.get("/v1/requests/%ff").await.problem(404, "not_found");

    let json_type = [("content-type", "application/json")];
    let post = |body: &'static [u8]| {
        let alice = alice.clone();
        async move { alice.send("POST", "/v1/requests", &json_type, body).await }
    };
    for bad in [&b"{"[..], b"nonsense", b"{\"text\": \"a\" \"b\"}", b"\xff"] {
        post(bad).await.problem(400, "bad_request");
    }
    post(br#"{"text": "a haircut\u0000"}"#).await.problem(400, "bad_request");
    post(b"[]").await.problem(400, "bad_request");
    let text = [("content-type", "text/plain")];
    alice.send("POST", "/v1/requests", &text, b"{}").await.problem(415, "bad_request");

    let body = json!({"text": "x".repeat(2_100)});
    alice.post("/v1/requests", &body).await.problem(413, "too_large");
    let key = [("idempotency-key", "not a key"), json_type[0]];
    alice.send("POST", "/v1/requests", &key, b"{}").await.problem(400, "bad_request");

    let given = [("x-request-id", "my-id.7")];
    assert_eq!(alice.send("GET", "/v1/bookings", &given, b"").await.headers["x-request-id"], "my-id.7");
    let given = [("x-request-id", "<script>")];
    assert_ne!(alice.send("GET", "/healthz", &given, b"").await.headers["x-request-id"], "<script>");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wrong_field_is_named() {
    let node = TestNode::start().await;
    let alice = node.user("alice");
    let refuse = |body: Value| {
        let alice = alice.clone();
        async move {
            let answer = alice.post("/v1/requests", &body).await;
            assert!(matches!(answer.status, 400 | 422), "{}", answer.text);
            answer.problem(answer.status, if answer.status == 400 { "bad_request" } else { "rejected" })
        }
    };
    assert_eq!(
        pointers(&refuse(json!({"service": "flying", "starts_at": "soon", "budget": 7})).await),
        ["/budget", "/service", "/starts_at"]
    );
    let missing = pointers(&refuse(json!({})).await);
    for pointer in ["/service", "/place", "/earliest", "/latest"] {
        assert!(missing.iter().any(|p| p == pointer), "{pointer} in {missing:?}");
    }
    let past = haircut("2001-01-01T10:00:00Z");
    assert_eq!(pointers(&refuse(past).await), ["/starts_at"]);
    assert_eq!(pointers(&refuse(json!({"text": "   "})).await), ["/text"]);
    let zone = json!({"text": "a haircut tomorrow at 5 pm in Berlin", "time_zone": "Mars/Base"});
    assert_eq!(pointers(&refuse(zone).await), ["/time_zone"]);
    alice.post("/v1/requests", &json!({"text": "a haircut", "user_id": "bob"})).await.problem(403, "forbidden");
    node.user("x").post("/v1/providers", &hairdresser()).await.problem(403, "forbidden");
}
