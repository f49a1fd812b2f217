//! Outside servers as this node's agents use them: real ones, and one that fails as it is told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures_util::stream;
use parking_lot::Mutex;
use proxie::ai::OutsideTools;
use proxie::ai::options::ServerOptions;
use proxie::ai::servers::OutsideFailureKind;
use proxie::kernel::entity::Role;
use serde_json::{Value, json};

use super::system;
use crate::edges::{PATIENCE, TestNode};

const ROLE: &str = "scout";

fn servers(name: &str, options: ServerOptions) -> OutsideTools {
    OutsideTools::new(&BTreeMap::from([(name.to_owned(), options)])).unwrap()
}

fn allowed(tools: &[&str]) -> BTreeMap<String, Vec<String>> {
    BTreeMap::from([(ROLE.into(), tools.iter().map(|tool| (*tool).into()).collect())])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_server_is_used_over_http_and_over_a_pipe() {
    let node = TestNode::with_systems(system::all()).await;
    let token = node.token("anna", Role::Consumer, 3_600);
    let url = format!("http://{}/mcp", node.node.address);
    let roles = allowed(&[
        "list_devices",
        "test_simple_text",
        "test_image_content",
        "test_elicitation",
        "test_error_handling",
    ]);
    let by_url = ServerOptions {
        url: url.clone(),
        headers: BTreeMap::from([("authorization".into(), format!("Bearer {token}").into())]),
        roles: roles.clone(),
        max_result_bytes: 100,
        ..ServerOptions::default()
    };
    let at = format!("http://{}", node.node.address);
    let command = [env!("CARGO_BIN_EXE_proxie"), "mcp", "--at", &at];
    let by_pipe = ServerOptions {
        command: command.map(str::to_owned).into(),
        environment: BTreeMap::from([("PROXIE_TOKEN".into(), token.as_str().into())]),
        roles,
        max_result_bytes: 100,
        ..ServerOptions::default()
    };
    for options in [by_url, by_pipe] {
        let tools = servers("home", options);
        let list = tools.list(ROLE, PATIENCE).await;
        assert!(list.away.is_empty(), "{list:?}");
        let names: Vec<_> = list.tools.iter().map(|tool| tool.name.as_str()).collect();
        assert!(names.contains(&"home__list_devices") && names.len() == 5, "{names:?}");
        assert!(tools.list("stranger", PATIENCE).await.tools.is_empty());
        let call = async |tool: &str, arguments: Value| {
            tools.call(ROLE, &format!("home__{tool}"), &arguments, "key").await
        };
        let text = call("test_simple_text", json!({})).await.unwrap();
        assert_eq!(text.content, "This is a simple text response for testing.");
        let devices = call("list_devices", json!({})).await.unwrap();
        assert!(devices.content.starts_with(r#"{"items":"#), "{devices:?}");
        let picture = call("test_image_content", json!({})).await.unwrap();
        assert_eq!(picture.content, "[a picture, image/png]");
        let wrong = call("test_error_handling", json!({})).await.unwrap();
        assert!(wrong.is_error && wrong.content.contains("(cut: it has"), "{wrong:?}");
        let kind = async |tool: &str, arguments: Value| {
            call(tool, arguments).await.map_err(|failure| failure.kind)
        };
        use OutsideFailureKind::{NotAllowed, WrongArguments};
        assert_eq!(kind("test_elicitation", json!({})).await, Err(WrongArguments));
        assert_eq!(kind("test_elicitation", json!({"message": 1})).await, Err(WrongArguments));
        assert_eq!(kind("test_audio_content", json!({})).await, Err(NotAllowed), "not its role's");
        // Nobody answers what an outside server asks.
        let asked = call("test_elicitation", json!({"message": "Who?"})).await;
        assert!(asked.as_ref().is_err_and(|it| !it.may_have_happened()) || asked.unwrap().is_error);
    }
    node.node.stop().await;
}

/// What the server does with the next call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Fault {
    #[default]
    None,
    /// It does not know the session any more.
    LostSession,
    /// It does what is asked, and the connection ends.
    Cut,
    /// It does what is asked, and breaks.
    Broken,
    Huge,
    /// An answer that is none.
    Nonsense,
    Slow,
    /// It is too busy to look at it.
    Busy,
}

#[derive(Default)]
pub struct Server {
    /// The faults of the next calls, the last first.
    faults: Mutex<Vec<Fault>>,
    sessions: AtomicUsize,
    /// Calls that were done.
    pub done: AtomicUsize,
    /// What calls were of, those too that were not done.
    pub calls: Mutex<Vec<Value>>,
    /// Calls that were called off.
    pub cancelled: AtomicUsize,
    /// The tools that it has instead of its own.
    pub tools: Mutex<Option<Value>>,
    /// What it answers instead of "done".
    pub says: Mutex<Option<Value>>,
}

impl Server {
    pub fn fails(&self, faults: &[Fault]) {
        *self.faults.lock() = faults.iter().rev().copied().collect();
        self.done.store(0, Ordering::SeqCst);
    }

    pub async fn start() -> (Arc<Self>, SocketAddr) {
        let server = Arc::new(Self::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/mcp", any(answer)).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (server, address)
    }
}

/// The revision before, with sessions.
async fn answer(State(server): State<Arc<Server>>, headers: HeaderMap, body: Bytes) -> Response {
    let Ok(message) = serde_json::from_slice::<Value>(&body) else {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    };
    let Some(id) = message.get("id") else {
        let is_off = message["method"] == "notifications/cancelled";
        server.cancelled.fetch_add(usize::from(is_off), Ordering::SeqCst);
        return StatusCode::ACCEPTED.into_response();
    };
    let session = format!("s{}", server.sessions.load(Ordering::SeqCst));
    let result = match message["method"].as_str().unwrap() {
        "initialize" => {
            let session = server.sessions.fetch_add(1, Ordering::SeqCst) + 1;
            let result = json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}},
                                "serverInfo": {"name": "faulty", "version": "1"}});
            let answer = json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string();
            let json = (header::CONTENT_TYPE, "application/json".to_owned());
            let session =
                (header::HeaderName::from_static("mcp-session-id"), format!("s{session}"));
            return ([json, session], answer).into_response();
        }
        _ if headers.get("mcp-session-id").is_none_or(|it| *it != *session) => {
            return StatusCode::NOT_FOUND.into_response();
        }
        "tools/list" if server.tools.lock().is_some() => json!({"tools": *server.tools.lock()}),
        "tools/list" => json!({"tools": [
            {"name": "book", "description": "x".repeat(9_000), "inputSchema": {"type": "object"}},
            {"name": "look", "inputSchema": {"type": "object"}},
            {"name": "slow", "inputSchema": {"type": "object"}},
            {"name": "bad schema", "inputSchema": {"type": "object"}},
            {"name": "listed_wrong", "inputSchema": {"type": "string"}},
            {"name": "long", "inputSchema": {"type": "object", "x": "x".repeat(20_000)}},
        ]}),
        "tools/call" => {
            server.calls.lock().push(message["params"].clone());
            let fault = server.faults.lock().pop().unwrap_or_default();
            match fault {
                Fault::LostSession => {
                    server.sessions.fetch_add(1, Ordering::SeqCst);
                    return StatusCode::NOT_FOUND.into_response();
                }
                Fault::Busy => return StatusCode::TOO_MANY_REQUESTS.into_response(),
                _ => {}
            }
            server.done.fetch_add(1, Ordering::SeqCst);
            match fault {
                Fault::Cut => {
                    let cut = std::io::Error::other("cut");
                    let body = Body::from_stream(stream::iter([Ok("{".to_owned()), Err(cut)]));
                    return ([(header::CONTENT_TYPE, "application/json")], body).into_response();
                }
                Fault::Broken => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                Fault::Slow => std::future::pending().await,
                Fault::Huge => {
                    json!({"content": [{"type": "text", "text": "x".repeat(3 << 20)}]})
                }
                Fault::Nonsense => json!({"content": 7}),
                _ => {
                    let text = server.says.lock().clone().unwrap_or_else(|| json!("done"));
                    json!({"content": [{"type": "text", "text": text}]})
                }
            }
        }
        _ => {
            let error = json!({"code": -32_601, "message": "unknown"});
            let answer = json!({"jsonrpc": "2.0", "id": id, "error": error}).to_string();
            return ([(header::CONTENT_TYPE, "application/json")], answer).into_response();
        }
    };
    let answer = json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string();
    ([(header::CONTENT_TYPE, "application/json")], answer).into_response()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_done_once_whatever_becomes_of_it() {
    use OutsideFailureKind::{NotSent, Refused, Unknown};
    let (server, address) = Server::start().await;
    let options = ServerOptions {
        url: format!("http://{address}/mcp"),
        roles: allowed(&["book", "look", "slow", "long", "listed_wrong", "bad schema"]),
        repeatable: vec!["look".into()],
        timeouts_ms: BTreeMap::from([("slow".into(), 300)]),
        ..ServerOptions::default()
    };
    let tools = servers("faulty", options.clone());
    let list = tools.list(ROLE, PATIENCE).await;
    let names: Vec<_> = list.tools.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(
        names,
        ["faulty__book", "faulty__look", "faulty__slow"],
        "what cannot be used is not shown"
    );
    assert!(list.tools[0].description.len() < 1_200, "it is cut");
    let call = async |tool: &str| {
        let outcome = tools.call(ROLE, &format!("faulty__{tool}"), &json!({}), "key").await;
        (outcome.map(|it| it.content).map_err(|it| it.kind), server.done.load(Ordering::SeqCst))
    };
    let done = || Ok("done".to_owned());
    for (faults, tool, outcome, times) in [
        (&[][..], "book", done(), 1),
        // The session is opened anew, once.
        (&[Fault::LostSession], "book", done(), 1),
        (&[Fault::Cut], "book", Err(Unknown), 1),
        (&[Fault::Broken], "book", Err(Unknown), 1),
        (&[Fault::Cut], "look", done(), 2),
        (&[Fault::Cut, Fault::Cut], "look", Err(Unknown), 2),
        (&[Fault::Huge], "book", Err(Unknown), 1),
        (&[Fault::Nonsense], "book", Err(Unknown), 1),
        (&[Fault::Busy], "book", Err(Refused), 0),
        (&[], "book", done(), 1),
    ] {
        server.fails(faults);
        assert_eq!(call(tool).await, (outcome, times), "{tool} with {faults:?}");
    }
    let opened = server.sessions.load(Ordering::SeqCst);
    server.fails(&[Fault::LostSession, Fault::LostSession]);
    let (outcome, times) = call("book").await;
    assert_eq!((outcome, times), (Err(Refused), 0), "it was never done");
    assert!(server.sessions.load(Ordering::SeqCst) - opened <= 5, "and not asked for ever");
    // The one wait that has to be over: the call's own limit.
    server.fails(&[Fault::Slow]);
    let outcome = call("slow").await;
    assert_eq!(outcome, (Err(Unknown), 1));
    server.fails(&[]);
    assert_eq!(call("book").await, (done(), 1), "the link goes on");
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", nobody.local_addr().unwrap());
    drop(nobody);
    let away = servers("away", ServerOptions { url, ..options });
    let failed = away.call(ROLE, "away__book", &json!({}), "key").await.unwrap_err();
    assert_eq!(failed.kind, NotSent);
    assert_eq!(away.list(ROLE, PATIENCE).await.away.len(), 1);
}

#[test]
fn a_server_that_cannot_be_meant_is_refused() {
    let refused = |name: &str, options: ServerOptions| {
        OutsideTools::new(&BTreeMap::from([(name.to_owned(), options)])).is_err()
    };
    let url = |url: &str| ServerOptions { url: url.into(), ..ServerOptions::default() };
    let good = url("https://tools.example.org/mcp");
    assert!(!refused("maps", good.clone()));
    assert!(refused("a__b", good.clone()) && refused("", good.clone()));
    assert!(refused("maps", url("")) && refused("maps", url("file:///etc/passwd")));
    let both = ServerOptions { command: vec!["x".into()], ..good.clone() };
    assert!(refused("maps", both));
    let header = BTreeMap::from([("a b".into(), "x".into())]);
    assert!(refused("maps", ServerOptions { headers: header, ..good.clone() }));
    assert!(refused("maps", ServerOptions { concurrency: 0, ..good.clone() }));
    assert!(refused("maps", ServerOptions { timeout_ms: 301_000, ..good.clone() }));
    let times = BTreeMap::from([("route".into(), 0)]);
    assert!(refused("maps", ServerOptions { timeouts_ms: times, ..good.clone() }));
    assert!(refused("maps", ServerOptions { max_result_bytes: 1 << 20, ..good }));
}
