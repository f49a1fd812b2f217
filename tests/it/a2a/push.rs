//! Notifications: where they may go, what they carry, and what becomes of one that nobody takes.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use proxie::ai::peers::options::Options;
use proxie::systems::agents::settings::OutsideSection;
use serde_json::{Value, json};
use sqlx::Row;

use super::{Stranger, message, of_provider, state_of, wish};
use crate::edges::TestNode;
use crate::support::eventually;

/// What is sent to an address, and what it answers next.
#[derive(Default)]
struct Hook {
    heard: Mutex<Vec<(String, HeaderMap, Value)>>,
    answers: Mutex<VecDeque<Response>>,
}

impl Hook {
    async fn start() -> (Arc<Self>, String) {
        let hook = Arc::new(Self::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let take =
            async |State(hook): State<Arc<Self>>, uri: Uri, headers: HeaderMap, body: String| {
                let body = serde_json::from_str(&body).unwrap_or_default();
                hook.heard.lock().push((uri.path().to_owned(), headers, body));
                let next = hook.answers.lock().pop_front();
                next.unwrap_or_else(|| StatusCode::NO_CONTENT.into_response())
            };
        let router = Router::new().fallback(take).with_state(hook.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (hook, format!("http://{address}"))
    }

    fn states(&self) -> Vec<String> {
        self.heard.lock().iter().map(|(_, _, body)| state_of(&body["task"]).to_owned()).collect()
    }
}

async fn with_hooks() -> (TestNode, Stranger) {
    let options = Options { push_to_loopback: true, ..Options::default() };
    let node = TestNode::with(|config| config.systems.set(OutsideSection(options))).await;
    let salon = node.stranger("anna", &of_provider(&node.hairdresser().await));
    (node, salon)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_posted_with_what_its_owner_wants_to_see() {
    let (node, salon) = with_hooks().await;
    let (hook, url) = Hook::start().await;
    hook.answers.lock().push_back(StatusCode::SERVICE_UNAVAILABLE.into_response());
    let config = json!({
        "url": format!("{url}/hook"), "token": "hunter2",
        "authentication": {"scheme": "Bearer", "credentials": "swordfish"},
    });
    let task = salon
        .ask(
            "SendMessage",
            json!({"message": message(wish(2, 60)),
            "configuration": {"returnImmediately": true, "taskPushNotificationConfig": config}}),
        )
        .await["task"]
        .take();
    eventually("the offer is posted", async || {
        hook.states().iter().any(|state| state == "INPUT_REQUIRED")
    })
    .await;
    let (path, headers, body) = hook.heard.lock()[0].clone();
    assert_eq!((&*path, &body["task"]["id"]), ("/hook", &task["id"]));
    assert_eq!(headers["authorization"], "Bearer swordfish");
    assert_eq!(headers["x-a2a-notification-token"], "hunter2");
    assert_eq!(headers["content-type"], "application/a2a+json");
    // What was refused for the moment comes again.
    eventually("the first one is taken, too", async || {
        hook.states().iter().filter(|state| *state == "WORKING").count() >= 2
    })
    .await;
    salon.ask("CancelTask", json!({"id": task["id"]})).await;
    eventually("the end is posted", async || hook.states().contains(&"CANCELED".to_owned())).await;
    // Nothing of it is in the store in the plain.
    let mut store = node.store().await;
    for (table, column) in [("journal", "event"), ("outbox", "command"), ("tasks", "body")] {
        let sql = format!("select to_jsonb(t)::text from {table} t");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&mut store).await.unwrap();
        for row in rows {
            let text: String = row.get(0);
            assert!(!text.contains("hunter2") && !text.contains("swordfish"), "{column}: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_are_made_read_and_deleted() {
    let (_node, salon) = with_hooks().await;
    let (hook, url) = Hook::start().await;
    let task = salon.send(message(wish(2, 60))).await;
    let create = |id: &str| json!({"taskId": task["id"], "id": id, "url": format!("{url}/{id}"), "token": "t"});
    let made = salon.ask("CreateTaskPushNotificationConfig", create("one")).await;
    assert_eq!((&made["id"], &made["token"]), (&json!("one"), &json!("t")), "{made}");
    let of_one = json!({"taskId": task["id"], "id": "one"});
    assert_eq!(salon.ask("GetTaskPushNotificationConfig", of_one.clone()).await, made);
    let path = format!("/tasks/{}/pushNotificationConfigs", task["id"].as_str().unwrap());
    let two = salon.rest("POST", &path, &json!({"id": "two", "url": format!("{url}/two")})).await;
    assert_eq!((two.status, &two.json()["taskId"]), (200, &task["id"]), "{}", two.text);
    let listed = salon.rest("GET", &path, &json!({})).await.json();
    assert_eq!(listed["configs"].as_array().unwrap().len(), 2, "{listed}");
    let again = json!({"taskId": task["id"]});
    assert_eq!(salon.ask("ListTaskPushNotificationConfigs", again.clone()).await, listed);
    for id in ["three", "four"] {
        salon.ask("CreateTaskPushNotificationConfig", create(id)).await;
    }
    let fifth = salon.refused("CreateTaskPushNotificationConfig", create("five")).await;
    assert_eq!(fifth["code"], -32_602, "{fifth}");
    for _ in 0..2 {
        let deleted = salon.rest("DELETE", &format!("{path}/two"), &json!({})).await;
        assert_eq!(deleted.status, 200, "{}", deleted.text);
        salon.ask("DeleteTaskPushNotificationConfig", of_one.clone()).await;
    }
    let gone = salon.refused("GetTaskPushNotificationConfig", of_one).await;
    assert_eq!(gone["code"], -32_001);
    salon.ask("CancelTask", json!({"id": task["id"]})).await;
    let heard = || {
        let mut paths: Vec<_> = hook.heard.lock().iter().map(|(path, _, _)| path.clone()).collect();
        paths.sort();
        paths
    };
    eventually("both that are left hear of it", async || heard() == ["/four", "/three"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_redirect_is_followed() {
    let (_node, salon) = with_hooks().await;
    let (hook, url) = Hook::start().await;
    let away = [(header::LOCATION, format!("{url}/latest/meta-data"))];
    let redirect = (StatusCode::TEMPORARY_REDIRECT, away).into_response();
    hook.answers.lock().push_back(redirect);
    let task = salon.send(message(wish(2, 60))).await;
    let config = json!({"taskId": task["id"], "url": format!("{url}/first")});
    salon.ask("CreateTaskPushNotificationConfig", config).await;
    salon.send(super::to_task(&task, wish(3, 60))).await;
    eventually("a later change is posted", async || hook.heard.lock().len() >= 2).await;
    assert!(hook.heard.lock().iter().all(|(path, _, _)| path == "/first"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_address_of_a_private_network_is_taken() {
    let node = TestNode::start().await;
    let salon = node.stranger("anna", &of_provider(&node.hairdresser().await));
    let task = salon.send(message(wish(2, 60))).await;
    for url in [
        "http://example.org/hook",
        "https://127.0.0.1/hook",
        "https://localhost/hook",
        "https://[::1]/hook",
        "https://169.254.169.254/latest/meta-data",
        "https://10.1.2.3/",
        "https://user:password@example.org/",
        "file:///etc/passwd",
        "nonsense",
    ] {
        let config = json!({"taskId": task["id"], "url": url});
        let error = salon.refused("CreateTaskPushNotificationConfig", config.clone()).await;
        assert_eq!(error["code"], -32_602, "{url}: {error}");
        let sent = json!({"message": message(wish(2, 60)),
            "configuration": {"taskPushNotificationConfig": {"url": url}}});
        assert_eq!(salon.refused("SendMessage", sent).await["code"], -32_602, "{url}");
    }
    let all = salon.ask("ListTasks", json!({})).await;
    assert_eq!(all["totalSize"], 1, "what was refused has begun nothing: {all}");
}
