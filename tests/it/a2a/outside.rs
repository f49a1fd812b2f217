//! Our agents call agents of others.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use proxie::ai::peers::options::{Options, OutsideAgentOptions};
use proxie::ai::peers::{
    OutsideAgents, OutsideAnswer, OutsideMessage, PeerFailure, PeerFailureKind as Kind,
};
use proxie::kernel::task::{TaskPart, TaskState};
use serde_json::json;
use tokio::time::Instant;

use crate::clients::pip;
use crate::process::Folder;

fn agents(url: &str, idempotent: bool) -> OutsideAgents {
    let agent = OutsideAgentOptions {
        url: url.into(),
        token: "swordfish".into(),
        roles: vec!["booker".into()],
        idempotent,
        ..OutsideAgentOptions::default()
    };
    let agents = [("theirs".to_owned(), agent)].into();
    OutsideAgents::new(&Options { push_to_loopback: false, agents }).unwrap()
}

fn message(id: &str, text: &str) -> OutsideMessage {
    let parts = vec![TaskPart::Text(text.into())];
    OutsideMessage { id: id.into(), parts, task_id: None, context_id: None, is_looked_up: false }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(15)
}

struct Python(Child);

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server of the Python SDK.
async fn python(folder: &Folder) -> (Python, String) {
    let packages = pip(&folder.0, &["a2a-sdk[http-server]==1.3.0", "uvicorn==0.40.0"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suites/a2a-server.py");
    let mut python = Command::new("python3");
    python.arg(script).env("PYTHONPATH", packages).stdout(Stdio::piped());
    let mut child = Python(python.spawn().unwrap());
    let mut said = BufReader::new(child.0.stdout.take().unwrap());
    let url = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        // What else it says must not block it.
        std::thread::spawn(move || said.lines().for_each(drop));
        line.trim().to_owned()
    });
    (child, url.await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_the_python_sdk_is_talked_to() {
    let folder = Folder::new("a2a-server");
    let (_server, url) = python(&folder).await;
    let ours = agents(&url, false);
    assert_eq!(ours.for_role("booker").collect::<Vec<_>>(), ["theirs"]);
    let said = ours.send("booker", "theirs", &message("m1", "say hello"), soon()).await.unwrap();
    assert_eq!(said, OutsideAnswer::Message { parts: vec![TaskPart::Text("hello".into())] });
    let asked = ours.send("booker", "theirs", &message("m2", "ask me"), soon()).await.unwrap();
    let OutsideAnswer::Task { id, context_id, state, said, .. } = asked else {
        panic!("{asked:?}")
    };
    assert_eq!(
        (state, &said[..]),
        (TaskState::InputRequired, &[TaskPart::Text("which?".into())][..])
    );
    let more = OutsideMessage {
        task_id: Some(id.clone()),
        context_id: Some(context_id),
        ..message("m3", "that one")
    };
    let done = ours.send("booker", "theirs", &more, soon()).await.unwrap();
    let OutsideAnswer::Task { id: same, state, artifacts, .. } = &done else { panic!("{done:?}") };
    assert_eq!((same, *state), (&id, TaskState::Completed));
    let result = vec![TaskPart::Data(json!({"heard": "that one"}))];
    assert_eq!(artifacts[..], [("result".to_owned(), result)]);
    let seen = ours.task("booker", "theirs", &id, soon()).await.unwrap();
    assert!(matches!(seen, OutsideAnswer::Task { state: TaskState::Completed, .. }), "{seen:?}");
    let late = ours.cancel("booker", "theirs", &id, soon()).await.unwrap_err();
    assert_eq!((late.kind, late.may_have_happened), (Kind::Refused, false), "{late:?}");
    let open = ours.send("booker", "theirs", &message("m4", "ask me"), soon()).await.unwrap();
    let OutsideAnswer::Task { id, .. } = open else { panic!("{open:?}") };
    let ended = ours.cancel("booker", "theirs", &id, soon()).await.unwrap();
    assert!(matches!(ended, OutsideAnswer::Task { state: TaskState::Canceled, .. }), "{ended:?}");
    // It takes its time: whether it has done anything nobody knows.
    let soon = Instant::now() + Duration::from_millis(1_500);
    let failure = ours.send("booker", "theirs", &message("m5", "sleep"), soon).await.unwrap_err();
    assert_eq!((failure.kind, failure.may_have_happened), (Kind::TooLate, true));
    let other = ours.send("clerk", "theirs", &message("m6", "say hello"), soon).await.unwrap_err();
    assert_eq!((other.kind, other.may_have_happened), (Kind::NotAllowed, false));
}

/// An agent that answers so, and how often it was asked. Its card is in order.
async fn faulty(
    answer: impl Fn() -> Response + Clone + Send + Sync + 'static,
    elsewhere: Option<&'static str>,
) -> (String, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let card = json!({
        "name": "theirs", "description": "", "version": "1", "capabilities": {}, "skills": [],
        "defaultInputModes": [], "defaultOutputModes": [],
        "supportedInterfaces": [{
            "url": format!("{}/rpc", elsewhere.unwrap_or(&url)),
            "protocolBinding": "JSONRPC", "protocolVersion": "1.0",
        }],
    });
    let count = asked.clone();
    let router = Router::new()
        .route("/.well-known/agent-card.json", get(async move || card.to_string()))
        .route(
            "/rpc",
            post(async move |headers: axum::http::HeaderMap| {
                assert_eq!(headers["authorization"], "Bearer swordfish");
                assert_eq!(headers["a2a-version"], "1.0");
                count.fetch_add(1, Ordering::SeqCst);
                answer()
            }),
        );
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, asked)
}

fn body(of: impl Into<Body>) -> Response {
    Response::new(of.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_says_whether_it_may_have_happened_and_nothing_is_done_twice() {
    let error =
        |code: i32| json!({"jsonrpc": "2.0", "id": 1, "error": {"code": code, "message": "x"}});
    let broken = || {
        let pieces = [Ok(r#"{"jsonrpc": "#.to_owned()), Err(std::io::Error::other("gone"))];
        body(Body::from_stream(futures_util::stream::iter(pieces)))
    };
    let task = |state: &str| {
        let task = json!({"id": "t", "contextId": "c", "status": {"state": state}});
        json!({"jsonrpc": "2.0", "id": 1, "result": {"task": task}}).to_string()
    };
    type Does = Arc<dyn Fn() -> Response + Send + Sync>;
    let away = [(header::LOCATION, "http://169.254.169.254/")];
    let cases: Vec<(&str, Does, Kind, bool, usize, usize)> = vec![
        // what it does; the failure; whether it may have happened; calls, and calls of one that recognises repetitions
        (
            "busy",
            Arc::new(|| StatusCode::SERVICE_UNAVAILABLE.into_response()),
            Kind::Unreachable,
            false,
            3,
            3,
        ),
        (
            "broken",
            Arc::new(|| StatusCode::BAD_GATEWAY.into_response()),
            Kind::Unreachable,
            true,
            1,
            3,
        ),
        ("unknown", Arc::new(|| StatusCode::NOT_FOUND.into_response()), Kind::Refused, false, 1, 1),
        (
            "redirect",
            Arc::new(move || (StatusCode::FOUND, away.clone()).into_response()),
            Kind::Refused,
            false,
            1,
            1,
        ),
        ("cut", Arc::new(broken), Kind::Unreachable, true, 1, 3),
        ("garbled", Arc::new(|| body("{")), Kind::Unreadable, true, 1, 1),
        ("huge", Arc::new(|| body("x".repeat(2 << 20))), Kind::Unreadable, true, 1, 1),
        ("refused", Arc::new(move || body(error(-32_602).to_string())), Kind::Refused, false, 1, 1),
        (
            "internal",
            Arc::new(move || body(error(-32_603).to_string())),
            Kind::Unreachable,
            true,
            1,
            3,
        ),
        (
            "stateless",
            Arc::new(move || body(task("TASK_STATE_UNSPECIFIED"))),
            Kind::Unreadable,
            true,
            1,
            1,
        ),
        (
            "new state",
            Arc::new(move || body(task("TASK_STATE_PONDERING"))),
            Kind::Unreadable,
            true,
            1,
            1,
        ),
        (
            "authorise",
            Arc::new(move || body(task("TASK_STATE_AUTH_REQUIRED"))),
            Kind::NeedsAuthorization,
            true,
            1,
            1,
        ),
    ];
    for (name, answer, kind, may_have_happened, once, repeatable) in cases {
        for (idempotent, calls) in [(false, once), (true, repeatable)] {
            let answer = answer.clone();
            let (url, asked) = faulty(move || answer(), None).await;
            let ours = agents(&url, idempotent);
            let sent = ours.send("booker", "theirs", &message("m", "x"), soon()).await;
            let PeerFailure { kind: found, may_have_happened: may, detail } = sent.unwrap_err();
            assert_eq!((found, may), (kind, may_have_happened), "{name}: {detail}");
            assert_eq!(asked.load(Ordering::SeqCst), calls, "{name}, idempotent: {idempotent}");
            assert!(!detail.contains(&url) && !detail.contains("swordfish"), "{detail}");
        }
    }
    let never: fn() -> Response = || unreachable!("its token goes nowhere else");
    let (url, asked) = faulty(never, Some("http://127.0.0.1:9")).await;
    let sent = agents(&url, true).send("booker", "theirs", &message("m", "x"), soon()).await;
    assert_eq!(sent.unwrap_err().kind, Kind::Refused);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    let nobody = agents("http://127.0.0.1:9", false);
    let failure = nobody.send("booker", "theirs", &message("m", "x"), soon()).await.unwrap_err();
    assert_eq!((failure.kind, failure.may_have_happened), (Kind::Unreachable, false));
}
