//! A service outside, which tools call: one of its doors recognises a repetition by its key, the other does not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use parking_lot::Mutex;
use tokio::net::TcpListener;

#[derive(Clone, Default)]
pub struct Outside {
    /// What has been done under each key.
    pub keyed: Arc<Mutex<BTreeMap<String, String>>>,
    pub repeated: Arc<Mutex<u32>>,
    pub faxes: Arc<Mutex<Vec<String>>>,
    pub url: String,
}

impl Outside {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let outside = Self { url, ..Self::default() };
        let app = Router::new()
            .route("/keyed", post(keyed))
            .route("/fax", post(fax))
            .with_state(outside.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        outside
    }
}

async fn keyed(State(outside): State<Outside>, headers: HeaderMap, text: String) -> StatusCode {
    let Some(key) = headers.get("idempotency-key").and_then(|key| key.to_str().ok()) else {
        return StatusCode::BAD_REQUEST;
    };
    let before = outside.keyed.lock().insert(key.into(), text.clone());
    if let Some(before) = before {
        assert_eq!(before, text, "a key is for one effect");
        *outside.repeated.lock() += 1;
    }
    // What is done before the answer may be done without anybody hearing of it.
    tokio::time::sleep(Duration::from_millis(20)).await;
    StatusCode::OK
}

async fn fax(State(outside): State<Outside>, text: String) -> StatusCode {
    outside.faxes.lock().push(text);
    tokio::time::sleep(Duration::from_millis(20)).await;
    StatusCode::OK
}
