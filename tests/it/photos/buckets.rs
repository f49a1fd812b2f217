//! Photos in a bucket, of a server that speaks S3's protocol as far as it is used, and fails as told.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use parking_lot::Mutex;
use proxie::persistence::objects::ObjectOptions;
use tokio::net::TcpListener;

use super::{content, jpeg, png, send, upload};
use crate::edges::TestNode;
use crate::support::eventually;

#[derive(Default)]
struct Bucket {
    objects: Mutex<HashMap<String, Bytes>>,
    /// What it answers next instead.
    faults: Mutex<VecDeque<u16>>,
}

async fn object(
    State(bucket): State<Arc<Bucket>>,
    method: Method,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let signed = headers["authorization"].to_str().unwrap();
    assert!(signed.starts_with("AWS4-HMAC-SHA256 Credential=AKIATEST/"), "{signed}");
    assert!(signed.contains("/eu-central-1/s3/aws4_request"), "{signed}");
    assert!(headers.contains_key("x-amz-content-sha256"));
    if let Some(status) = bucket.faults.lock().pop_front() {
        return StatusCode::from_u16(status).unwrap().into_response();
    }
    let head = [("etag", "\"1\""), ("last-modified", "Mon, 05 Jan 2026 10:00:00 GMT")];
    let mut objects = bucket.objects.lock();
    match method {
        Method::PUT => {
            objects.insert(name, body);
            head.into_response()
        }
        Method::GET => match objects.get(&name) {
            Some(found) => (head, found.clone()).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        },
        Method::DELETE => {
            objects.remove(&name);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn photos_are_in_a_bucket_that_fails_now_and_then() {
    let bucket = Arc::<Bucket>::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().route("/snaps/{*name}", any(object)).with_state(bucket.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let node = TestNode::with(|config| {
        config.objects = ObjectOptions {
            url: "s3://snaps".into(),
            region: "eu-central-1".into(),
            endpoint,
            key: "AKIATEST".into(),
            secret: "hush".into(),
        };
    })
    .await;
    let alice = node.user("alice");
    // It is asked again, and each of these is stored once.
    bucket.faults.lock().extend([503, 500]);
    let photo = upload(&alice, &png(640, 480, 200_000)).await;
    assert_eq!(bucket.objects.lock().len(), 1);
    let (name, stored) =
        bucket.objects.lock().iter().next().map(|(a, b)| (a.clone(), b.clone())).unwrap();
    assert!(name.starts_with("photos/") && !name.contains(&photo), "{name}");
    assert!(!stored.windows(4).any(|part| part == b"\x89PNG"), "it is sealed");
    bucket.faults.lock().extend([503]);
    assert!(content(&alice, &photo).await.body == png(640, 480, 200_000));
    // One that takes nothing: the photo is refused, and nothing of it is listed.
    bucket.faults.lock().extend([403]);
    let refused = send(&alice, "POST", "/v1/photos", &[], jpeg()).await;
    assert_eq!((refused.status, &refused.json()["code"]), (503, &"unavailable".into()));
    assert_eq!(alice.get("/v1/photos").await.json()["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(bucket.objects.lock().len(), 1);
    bucket.faults.lock().extend([403]);
    assert_eq!(content(&alice, &photo).await.status, 503);
    // Deleting is tried until it is done.
    bucket.faults.lock().extend([403]);
    assert_eq!(alice.send("DELETE", &format!("/v1/photos/{photo}"), &[], b"").await.status, 204);
    eventually("it is tried", async || bucket.faults.lock().is_empty()).await;
    let pool = &node.node.core.pool;
    eventually("it is gone", async || {
        // Not in a minute, but now.
        sqlx::query("update photo_leftovers set due = now()").execute(pool).await.unwrap();
        bucket.objects.lock().is_empty()
    })
    .await;
    node.node.stop().await;
}
