//! The edges over real sockets, on a real node without its command line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use futures_util::{SinkExt, StreamExt};
use proxie::actors::{AnyRunner, RunCx, RunError, Runner};
use proxie::app::core::Core;
use proxie::cluster::CommandMeta;
use proxie::gateway::auth::Auth;
use proxie::gateway::door::Door;
use proxie::gateway::{Details, Gateway, Options, Parts, Readiness, router};
use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use proxie::persistence::keys::SigningKey;
use proxie::persistence::limits::{LocalLimiter, Nodes, Policy};
use proxie::persistence::publications::Histories;
use proxie::persistence::views::Views;
use proxie::systems::marketplace::domain::matching::{self, Criteria, MatchProviders, Matches};
use proxie::systems::marketplace::domain::user::{self, User};
use proxie::systems::marketplace::views::{Window, candidates};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tower::ServiceExt;

use crate::support::{Setup, database, eventually, pool, try_prepare};

struct Node {
    core: Core,
    gateway: Arc<Gateway>,
    auth: Arc<Auth>,
    router: Router,
    address: SocketAddr,
}

struct Matching(Views);

impl Runner for Matching {
    type Work = MatchProviders;

    async fn run(&self, _: RunCx, criteria: Criteria) -> Result<Matches, RunError> {
        let (latitude, longitude) = (criteria.place.latitude, criteria.place.longitude);
        let window = Window {
            service: json!(criteria.service).as_str().unwrap_or_default().into(),
            south: latitude - 1.0,
            north: latitude + 1.0,
            west: longitude - 2.0,
            east: longitude + 2.0,
            earliest: criteria.when.earliest,
            latest: criteria.when.latest,
        };
        let found = candidates(&self.0, &window).await;
        let candidates = found.map_err(|e| RunError::Retry(e.to_string()))?;
        Ok(Matches { candidates: matching::rank(&criteria, candidates, Clock::System.now()) })
    }
}

async fn node(database: PgConnectOptions, options: Options) -> Node {
    let reads = pool(database.clone()).await;
    let views = Views::new(reads.clone());
    let mut setup = Setup::default();
    setup.runners.push(AnyRunner::new(Matching(views.clone())));
    let mut prepared = try_prepare(database, setup).await.unwrap();
    for kind in proxie::systems::marketplace::SYSTEM.entities {
        (kind.register)(&mut prepared.registry).await.unwrap();
    }
    let core = prepared.run().await.unwrap();
    let auth = Arc::new(Auth::new(&SigningKey { kid: "k1".into(), secret: [7; 32].into() }));
    let lanes = core.lanes.clone();
    let readiness =
        Arc::new(Readiness::new(core.lease.clone(), move || lanes.all_up(), Details::default));
    readiness.start();
    // Its sender may go: the epoch stays what it was.
    let (_, epoch) = watch::channel(Arc::from(core.identity.epoch.as_str()));
    let gateway = Gateway::start(Parts {
        entities: core.entities.clone(),
        topics: core.topics.clone(),
        presence: core.presence.clone(),
        histories: Histories::start(reads, core.runtime.vault.clone()),
        views: views.opened_by(core.runtime.vault.clone()),
        objects: proxie::persistence::objects::Objects::nowhere("there are none here"),
        sealed_cache: proxie::persistence::shared::SealedCache::new(core.runtime.vault.clone()),
        auth: auth.clone(),
        limiter: Arc::new(LocalLimiter::new(1_000, Duration::from_secs(60))),
        nodes: Box::new(|| Nodes { store: "store".into(), this: 1, living: vec![1] }),
        epoch,
        readiness,
        metrics: metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle(),
        clock: Clock::System,
        options,
        settings: proxie::config::Config::default().systems.prepare().unwrap(),
        connection_lease_s: 90,
        systems: proxie::systems::ALL,
    })
    .await
    .unwrap();
    let router = router(gateway.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let door = Door::new("n", proxie::telemetry::metrics(), Clock::System);
    door.open(router.clone());
    let Options { accept, trusted_proxies, .. } = gateway.options.clone();
    tokio::spawn(proxie::gateway::accept::serve(listener, door, accept, trusted_proxies));
    Node { core, gateway, auth, router, address }
}

impl Node {
    fn token(&self, user: &str, role: Role) -> String {
        self.auth.mint(user, role, Clock::System.now(), 3_600)
    }

    async fn send(&self, request: Request<Body>) -> (StatusCode, HeaderMap, Value) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 10_000_000).await.unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        assert!(parts.headers.contains_key("x-request-id"));
        (parts.status, parts.headers, body)
    }

    async fn http(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: Value,
    ) -> (StatusCode, HeaderMap, Value) {
        self.send(
            Request::builder()
                .method(method)
                .uri(path)
                .header("authorization", format!("Bearer {token}"))
                .header("content-type", "application/json")
                .body(if body.is_null() { Body::empty() } else { body.to_string().into() })
                .unwrap(),
        )
        .await
    }

    async fn get(&self, path: &str, token: &str) -> Value {
        let (status, _, body) = self.http("GET", path, token, Value::Null).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    async fn connect(&self) -> Client {
        Client::open(self.address, |_| {}).await.unwrap()
    }

    async fn signed_in(&self, user: &str) -> Client {
        let mut client = self.connect().await;
        let reply = client.ask("auth", json!({"token": self.token(user, Role::Consumer)})).await;
        assert_eq!(reply["ok"], true, "{reply}");
        client
    }
}

struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    next_id: u32,
    /// Came while a reply was awaited.
    events: Vec<Value>,
}

impl Client {
    async fn open(address: SocketAddr, change: impl FnOnce(&mut HeaderMap)) -> Result<Self, Error> {
        let mut request = format!("ws://{address}/v1/ws").into_client_request().unwrap();
        change(request.headers_mut());
        let (socket, _) = connect_async(request).await?;
        Ok(Self { socket, next_id: 0, events: Vec::new() })
    }

    async fn raw(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    async fn frame(&mut self) -> Result<Value, (u16, String)> {
        loop {
            let message = tokio::time::timeout(Duration::from_secs(20), self.socket.next()).await;
            match message.expect("a frame in time") {
                Some(Ok(Message::Text(text))) => {
                    return Ok(serde_json::from_str(text.as_str()).unwrap());
                }
                Some(Ok(Message::Close(Some(close)))) => {
                    return Err((close.code.into(), close.reason.to_string()));
                }
                Some(Ok(Message::Close(None)) | Err(_)) | None => return Err((0, String::new())),
                Some(Ok(_)) => {}
            }
        }
    }

    async fn closed(&mut self) -> u16 {
        loop {
            if let Err((code, reason)) = self.frame().await {
                assert!(
                    code == 0
                        || serde_json::from_str::<Value>(&reason).unwrap()["code"].is_string()
                );
                return code;
            }
        }
    }

    async fn ask_as(&mut self, id: &str, event: &str, data: Value) -> Value {
        self.raw(&json!({"id": id, "event": event, "data": data}).to_string()).await;
        loop {
            let frame = self.frame().await.unwrap();
            if frame["id"] == id {
                return frame;
            }
            self.events.push(frame);
        }
    }

    async fn ask(&mut self, event: &str, data: Value) -> Value {
        self.next_id += 1;
        let id = format!("{}-{}", event.replace(':', "-"), self.next_id);
        self.ask_as(&id, event, data).await
    }

    /// The next event of this name, skipping others.
    async fn event(&mut self, name: &str) -> Value {
        if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
            return self.events.remove(at);
        }
        loop {
            let frame = self.frame().await.unwrap();
            if frame["event"] == name {
                return frame;
            }
            self.events.push(frame);
        }
    }
}

fn profile() -> Value {
    let all_day = json!([{"from_minute": 0, "to_minute": 1440}]);
    json!({
        "name": "Salon Berta", "services": [{
            "service": "haircut", "price": {"amount_minor": 4500, "currency": "EUR"}, "per": "service",
            "duration_minutes": 45,
        }],
        "base": {"city": "Berlin", "country": "Germany", "latitude": 52.52, "longitude": 13.41, "time_zone": "Europe/Berlin"},
        "minimum_notice_minutes": 0,
        "weekly": {
            "monday": all_day, "tuesday": all_day, "wednesday": all_day, "thursday": all_day, "friday": all_day,
            "saturday": all_day, "sunday": all_day,
        },
    })
}

async fn enrolled(node: &Node) -> String {
    let token = node.token("berta", Role::Provider);
    let (status, headers, body) = node.http("POST", "/v1/providers", &token, profile()).await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(headers["etag"], "\"1\"");
    body["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_sentence_to_a_booking() {
    let database = database().await;
    let node = node(database, Options::default()).await;
    enrolled(&node).await;
    let mut client = node.signed_in("alice").await;
    let opened = client
        .ask(
            "session:open",
            json!({"session_id": null, "time_zone": "Europe/Berlin", "locale": "en"}),
        )
        .await;
    let session = opened["data"]["session_id"].as_str().unwrap().to_owned();
    let position = opened["data"]["position"].clone();
    let said = json!({"session_id": session, "content": "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin", "media": []});
    let first = client.ask_as("msg-1", "chat:message", said.clone()).await;
    assert_eq!(first["ok"], true, "{first}");
    assert_eq!(
        client.ask_as("msg-1", "chat:message", said.clone()).await,
        first,
        "a retry gets the first reply"
    );
    let other = json!({"session_id": session, "content": "something else"});
    assert_eq!(client.ask_as("msg-1", "chat:message", other).await["error"]["code"], "id_reused");
    client.event("chat:response").await;
    let offer = client.event("offer:new").await;
    let offer_id = offer["data"]["offer"]["id"].as_str().unwrap().to_owned();
    let stranger = node.token("mallory", Role::Consumer);
    assert_eq!(
        node.http("POST", &format!("/v1/offers/{offer_id}/accept"), &stranger, Value::Null).await.0,
        404
    );
    let accepted = client.ask_as("acc-1", "offer:accept", json!({"offer_id": offer_id})).await;
    assert_eq!(accepted["ok"], true, "{accepted}");
    let booking = accepted["data"]["booking_id"].as_str().unwrap().to_owned();
    client.event("booking:confirmed").await;
    // The other edge, the same id: the same command.
    let token = node.token("alice", Role::Consumer);
    let request = Request::post(format!("/v1/offers/{offer_id}/accept"))
        .header("authorization", format!("Bearer {token}"))
        .header("idempotency-key", "acc-1")
        .body(Body::empty())
        .unwrap();
    let (status, _, body) = node.send(request).await;
    assert_eq!((status, body["booking_id"].as_str()), (StatusCode::OK, Some(&*booking)));
    let bookings = node.get("/v1/bookings", &token).await;
    assert_eq!(bookings["items"][0]["id"], json!(booking));
    assert!(bookings["items"][0]["starts_at"].as_str().unwrap().ends_with('Z'));
    let requests = node.get("/v1/requests?limit=1", &token).await;
    let request_id = requests["items"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(requests["items"][0]["status"], "booked");
    assert_eq!(
        node.get(&format!("/v1/requests/{request_id}/offers"), &token).await["items"][0]["id"],
        json!(offer_id)
    );
    assert_eq!(
        node.http("GET", &format!("/v1/requests/{request_id}"), &stranger, Value::Null).await.0,
        404
    );
    let messages = node.get(&format!("/v1/sessions/{session}/messages?limit=1"), &token).await;
    assert_eq!(messages["items"][0]["role"], "user");
    let next = format!(
        "/v1/sessions/{session}/messages?cursor={}",
        messages["next_cursor"].as_str().unwrap()
    );
    assert_eq!(node.get(&next, &token).await["items"][0]["role"], "agent");
    // A second device reads it all from the start, in order, and then what is live.
    let mut second = node.signed_in("alice").await;
    let resumed =
        second.ask("session:resume", json!({"session_id": session, "position": position})).await;
    assert_eq!(resumed["data"]["recovered"], true, "{resumed}");
    let head = resumed["data"]["position"]["offset"].as_i64().unwrap();
    for expected in 1..=head {
        let event = if second.events.is_empty() {
            second.frame().await.unwrap()
        } else {
            second.events.remove(0)
        };
        assert_eq!(event["offset"], json!(expected), "{event}");
    }
    second.ask("chat:message", json!({"session_id": session, "content": "help"})).await;
    assert_eq!(client.event("chat:message").await["data"]["content"], json!(said["content"]));
    let mut third = node.connect().await;
    let positions = json!({"user:alice": {"epoch": "another", "offset": 1}});
    let reply = third.ask("auth", json!({"token": token, "positions": positions})).await;
    assert_eq!(reply["data"]["topics"]["user:alice"]["recovered"], false);
    for (topic, code) in [
        ("user:bob", "forbidden"),
        ("session:ses_x", "not_found"),
        ("app:x", "forbidden"),
        ("nope", "bad_request"),
    ] {
        let reply = third.ask("topic:subscribe", json!({"topic": topic})).await;
        assert_eq!(reply["error"]["code"], json!(code), "{reply}");
    }
    let joined = third.ask("topic:subscribe", json!({"topic": format!("booking:{booking}"), "position": {"epoch": position["epoch"], "offset": 0}})).await;
    assert_eq!(joined["data"]["recovered"], true, "{joined}");
    assert_eq!(third.event("booking:confirmed").await["offset"], 1);
    node.core.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_replay_is_complete_and_in_order() {
    let node = node(database().await, Options::default()).await;
    let publish = |n: i64| {
        let user = node.core.entities.of::<User>("alice");
        async move {
            let data = json!({"n": n, "padding": "x".repeat(2_000)});
            user.ask(user::Command::Publish { event: "test".into(), data }, CommandMeta::runtime())
                .await
                .unwrap()
                .unwrap();
        }
    };
    for n in 1..=300 {
        publish(n).await;
    }
    let mut client = node.connect().await;
    let positions = json!({"user:alice": {"epoch": node.core.identity.epoch, "offset": 10}});
    let token = node.token("alice", Role::Consumer);
    let reply = client.ask("auth", json!({"token": token, "positions": positions})).await;
    assert_eq!(reply["data"]["topics"]["user:alice"]["recovered"], true, "{reply}");
    let live = async {
        for n in 301..=400 {
            publish(n).await;
        }
    };
    let read = async {
        for expected in 11..=400 {
            let frame = client.frame().await.unwrap();
            assert_eq!(
                (frame["offset"].as_i64(), frame["data"]["n"].as_i64()),
                (Some(expected), Some(expected))
            );
        }
    };
    tokio::join!(live, read);
    node.core.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_close_as_documented() {
    let mut options = Options::default();
    options.websocket.auth_timeout_ms = 300;
    options.websocket.ping_ms = 100;
    options.drain = Duration::from_millis(100);
    let node = node(database().await, options).await;
    assert_eq!(node.connect().await.closed().await, 3002, "no authentication");
    for (text, code) in [("{", 3500), ("[]", 3500), (r#"{"event":"ping"}"#, 3500)] {
        let mut client = node.connect().await;
        client.raw(text).await;
        assert_eq!(client.closed().await, code, "{text}");
    }
    let mut client = node.connect().await;
    client.socket.send(Message::binary(vec![1])).await.unwrap();
    assert_eq!(client.closed().await, 3500);
    let mut client = node.signed_in("alice").await;
    client
        .raw(&json!({"id": "1", "event": "ping", "data": {"x": "y".repeat(70_000)}}).to_string())
        .await;
    assert_eq!(client.closed().await, 3504);
    let mut client = node.connect().await;
    assert_eq!(
        client.ask("auth", json!({"token": "nope"})).await["error"]["code"],
        "unauthenticated"
    );
    assert_eq!(client.closed().await, 3501);
    let mut client = node.connect().await;
    assert_eq!(client.ask("ping", json!({})).await["error"]["code"], "unauthenticated");
    let mut client = node.signed_in("alice").await;
    for _ in 0..700 {
        client.raw(r#"{"id":"1","event":"ping"}"#).await;
    }
    assert_eq!(client.closed().await, 3009);
    let mut client = node.connect().await;
    let short = node.auth.mint("alice", Role::Consumer, Clock::System.now(), 2);
    client.ask("auth", json!({"token": short})).await;
    client.event("token:expiring").await;
    assert_eq!(client.closed().await, 3502);
    let mut client = node.signed_in("alice").await;
    let other = node.token("bob", Role::Consumer);
    assert_eq!(
        client.ask("auth:refresh", json!({"token": other})).await["error"]["code"],
        "forbidden"
    );
    assert_eq!(client.ask("nonsense", json!({})).await["error"]["code"], "bad_request");
    assert!(client.ask("ping", json!({})).await["data"]["now"].is_string());
    node.auth.set_revocations(vec![("user:alice".into(), Clock::System.now().as_second())]);
    assert_eq!(client.closed().await, 3501);
    // Upgrades.
    let refused = |change: fn(&mut HeaderMap)| async move {
        match Client::open(node.address, change).await {
            Err(Error::Http(response)) => response.status().as_u16(),
            Ok(_) => 101,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(
        refused(|headers| drop(headers.insert("authorization", "Bearer x".parse().unwrap()))).await,
        401
    );
    assert_eq!(
        refused(|headers| drop(headers.insert("origin", "http://evil.example".parse().unwrap())))
            .await,
        403
    );
    assert_eq!(
        refused(|headers| drop(headers.insert("sec-websocket-protocol", "other".parse().unwrap())))
            .await,
        400
    );
    let token = node.token("carol", Role::Consumer);
    let mut client = Client::open(node.address, |headers| {
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        headers.insert("sec-websocket-protocol", "proxie.v1".parse().unwrap());
    })
    .await
    .unwrap();
    assert_eq!(
        client.ask("auth", json!({})).await["data"]["topics"]["user:carol"]["recovered"],
        true
    );
    node.gateway.readiness.drain();
    assert_eq!(client.closed().await, 3000);
    eventually("all sockets are gone", async || node.gateway.connections() == 0).await;
    assert_eq!(node.http("GET", "/readyz", "", Value::Null).await.0, 503);
    node.core.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_errors_are_problems() {
    let options = Options { requests: Policy { quota: 40, window_s: 60 }, ..Options::default() };
    let node = node(database().await, options).await;
    let token = node.token("alice", Role::Consumer);
    let check =
        async |method: &str, path: &str, token: &str, body: Value, status: u16, code: &str| {
            let (got, headers, problem) = node.http(method, path, token, body).await;
            assert_eq!(
                (got.as_u16(), problem["code"].as_str()),
                (status, Some(code)),
                "{method} {path}: {problem}"
            );
            assert_eq!(headers["content-type"], "application/problem+json");
            assert_eq!(problem["request_id"], json!(headers["x-request-id"].to_str().unwrap()));
            (headers, problem)
        };
    let (headers, _) =
        check("GET", "/v1/requests", "bad", Value::Null, 401, "unauthenticated").await;
    assert!(headers.contains_key("www-authenticate"));
    check("GET", "/nothing", &token, Value::Null, 404, "not_found").await;
    check("GET", "/v1/nothing", &token, Value::Null, 404, "not_found").await;
    let (headers, _) =
        check("DELETE", "/v1/requests", &token, Value::Null, 405, "bad_request").await;
    assert!(headers.contains_key("allow"));
    check("GET", "/v1/requests/req_x", &token, Value::Null, 404, "not_found").await;
    check("GET", "/v1/requests?limit=1000", &token, Value::Null, 400, "bad_request").await;
    check("POST", "/v1/requests", &token, json!({"text": "x".repeat(300_000)}), 413, "too_large")
        .await;
    check("POST", "/v1/requests", &token, json!({"text": "a\0b"}), 400, "bad_request").await;
    check("POST", "/v1/requests", &token, json!({"text": "hm"}), 422, "rejected").await;
    let (_, problem) =
        check("POST", "/v1/requests", &token, json!({"service": "x"}), 400, "bad_request").await;
    assert_eq!(problem["errors"][0]["pointer"], "/service");
    let past = json!({
        "service": "haircut", "place": {"latitude": 95.0, "longitude": 13.4}, "starts_at": "2020-01-01T10:00:00Z",
    });
    let (_, problem) = check("POST", "/v1/requests", &token, past, 422, "rejected").await;
    let pointers: Vec<&str> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["pointer"].as_str().unwrap())
        .collect();
    assert_eq!(pointers, ["/starts_at", "/place/latitude"]);
    check("POST", "/v1/providers", &token, profile(), 403, "forbidden").await;
    let provider = enrolled(&node).await;
    let path = format!("/v1/providers/{provider}");
    let owner = node.token("berta", Role::Provider);
    check("PATCH", &path, &owner, json!({"bio": "x"}), 428, "bad_request").await;
    let patch = |version: &str| {
        Request::patch(&path)
            .header("authorization", format!("Bearer {owner}"))
            .header("content-type", "application/json")
            .header("if-match", version)
            .body(Body::from(r#"{"bio":"New"}"#))
            .unwrap()
    };
    let (status, headers, _) = node.send(patch("\"1\"")).await;
    assert_eq!((status.as_u16(), headers["etag"].to_str().unwrap()), (200, "\"2\""));
    assert_eq!(node.send(patch("\"1\"")).await.0, 412);
    assert!(node.get(&path, &token).await.get("owner_id").is_none());
    assert_eq!(
        node.get("/v1/providers?service=haircut&city=berlin", &token).await["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    // A sentence is understood once: its retry is the same command.
    let sentence = || {
        Request::post("/v1/requests")
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .header("idempotency-key", "k-1")
            .body(Body::from(
                r#"{"text":"haircut tomorrow near Alexanderplatz","time_zone":"Europe/Berlin"}"#,
            ))
            .unwrap()
    };
    let (status, _, first) = node.send(sentence()).await;
    assert_eq!(status, 201, "{first}");
    assert_eq!(node.send(sentence()).await.2, first);
    let reused = Request::post("/v1/requests")
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .header("idempotency-key", "k-1")
        .body(Body::from(r#"{"text":"a haircut tomorrow near Alexanderplatz"}"#))
        .unwrap();
    assert_eq!(node.send(reused).await.2["code"], "id_reused");
    let text = Request::post("/v1/requests")
        .header("authorization", format!("Bearer {token}"))
        .body("x".into())
        .unwrap();
    assert_eq!(node.send(text).await.0, 415);
    for path in ["/healthz", "/readyz", "/openapi.json", "/asyncapi.json", "/.well-known/jwks.json"]
    {
        assert!(node.get(path, "").await.is_object());
    }
    let mut limited = false;
    for _ in 0..45 {
        let (status, headers, _) = node.http("GET", "/v1/bookings", &token, Value::Null).await;
        assert!(headers.contains_key("ratelimit") && headers.contains_key("ratelimit-policy"));
        limited |= status == 429 && headers.contains_key("retry-after");
    }
    assert!(limited);
    node.core.stop().await;
}
