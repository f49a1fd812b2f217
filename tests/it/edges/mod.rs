//! The edges from outside: a real node in this process, spoken to over TCP only.

mod app_topics;
mod bookings;
mod conformance;
mod endings;
mod events;
mod forwarded;
mod handshakes;
mod http;
pub mod limits;
mod lists;
mod operations;
pub mod outage;
mod playback;
mod socketio;
mod sync;
mod ws;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use proxie::app::node::Node;
use proxie::config::Config;
use proxie::contract::System;
use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use proxie::kernel::secret::Secret;
use proxie::systems::app_topics::settings::Grant as TopicGrant;
use serde_json::{Value, json};
use sqlx::{ConnectOptions, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::process::{Folder, Served};
use crate::{schema, support};

/// What everything here is given before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct TestNode {
    pub node: Node,
    pub config: Config,
    clock: Clock,
}

impl TestNode {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::with_clock(Clock::System, change).await
    }

    pub async fn with_clock(clock: Clock, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        let database = support::database().await;
        config.persistence.database_url = database.to_url_lossy().to_string().into();
        config.persistence.allow_fsync_off = true;
        config.persistence.max_connections = 10;
        config.vault.key = Secret::new("5e".repeat(32));
        config.gateway.listen = "127.0.0.1:0".into();
        config.gateway.drain_ms = 0;
        if let Clock::Manual(_) = clock {
            config.node.clock_limit_ms = i64::MAX;
        }
        change(&mut config);
        Self::of(config, clock).await
    }

    pub async fn with_systems(systems: &'static [&'static System]) -> Self {
        Self::with_systems_and(systems, |_| {}).await
    }

    pub async fn with_systems_and(
        systems: &'static [&'static System],
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = Self::config().await;
        change(&mut config);
        Self::with_systems_of(systems, config).await
    }

    /// The configuration of a node on a database of its own.
    pub async fn config() -> Config {
        let mut config = Config::default();
        let database = support::database().await;
        config.persistence.database_url = database.to_url_lossy().to_string().into();
        config.persistence.allow_fsync_off = true;
        config.vault.key = Secret::new("5e".repeat(32));
        config.gateway.listen = "127.0.0.1:0".into();
        config
    }

    pub async fn with_systems_of(systems: &'static [&'static System], config: Config) -> Self {
        let clock = Clock::System;
        let node = Node::start_systems(&config, clock.clone(), systems).await.unwrap();
        Self { node, config, clock }
    }

    pub async fn of(config: Config, clock: Clock) -> Self {
        Self { node: Node::start_with(&config, clock.clone()).await.unwrap(), config, clock }
    }

    /// Another process would do the same: everything that is not in the store is gone.
    pub async fn restart(self) -> Self {
        self.node.stop().await;
        Self::of(self.config, self.clock).await
    }

    /// A connection with little room on its way to the client.
    pub async fn narrow(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        socket.connect(self.node.address).await.unwrap()
    }

    /// A connection of its own to the node's database.
    pub async fn store(&self) -> PgConnection {
        let database: sqlx::postgres::PgConnectOptions =
            self.config.persistence.database_url.reveal().parse().unwrap();
        support::observer(database).connect().await.unwrap()
    }

    pub fn token(&self, user: &str, role: Role, ttl_s: i64) -> String {
        self.node.gateway().auth.mint(user, role, self.clock.now(), ttl_s)
    }

    /// Speaks HTTP as a consumer.
    pub fn user(&self, user: &str) -> Http {
        self.user_as(user, Role::Consumer)
    }

    pub fn user_as(&self, user: &str, role: Role) -> Http {
        Http { address: self.node.address, token: Some(self.token(user, role, 3_600)) }
    }

    pub fn anonymous(&self) -> Http {
        Http { address: self.node.address, token: None }
    }

    /// A hairdresser at Alexanderplatz who always has time. Its id.
    pub async fn hairdresser(&self) -> String {
        let answer =
            self.user_as("pat", Role::Provider).post("/v1/providers", &hairdresser()).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        text(&answer.json()["id"])
    }

    pub async fn ws(&self, user: &str) -> Ws {
        self.ws_as(user, Role::Consumer).await
    }

    pub async fn ws_as(&self, user: &str, role: Role) -> Ws {
        let mut ws = self.ws_silent_as(user, role).await;
        ws.ok("auth", json!({})).await;
        ws
    }

    /// Authenticated by the header; nothing is said yet.
    pub async fn ws_silent(&self, user: &str) -> Ws {
        self.ws_silent_as(user, Role::Consumer).await
    }

    async fn ws_silent_as(&self, user: &str, role: Role) -> Ws {
        let token = self.token(user, role, 3_600);
        self.try_ws(&[("authorization", &format!("Bearer {token}"))]).await.unwrap()
    }

    /// With these headers; else the status of the refusal.
    pub async fn try_ws(&self, headers: &[(&'static str, &str)]) -> Result<Ws, u16> {
        self.try_ws_over(TcpStream::connect(self.node.address).await.unwrap(), headers).await
    }

    pub async fn try_ws_over(
        &self,
        stream: TcpStream,
        headers: &[(&'static str, &str)],
    ) -> Result<Ws, u16> {
        connect_over(self.node.address, stream, "/v1/ws", headers).await
    }

    pub async fn try_ws_at(&self, path: &str, headers: &[(&'static str, &str)]) -> Result<Ws, u16> {
        let stream = TcpStream::connect(self.node.address).await.unwrap();
        connect_over(self.node.address, stream, path, headers).await
    }
}

/// A socket to a node, for a token.
pub async fn connect(address: SocketAddr, token: &str) -> Ws {
    let stream = TcpStream::connect(address).await.unwrap();
    let headers = [("authorization", format!("Bearer {token}"))];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut ws = connect_over(address, stream, "/v1/ws", &headers).await.unwrap();
    let started = std::time::Instant::now();
    // A node whose lease is not proven at the moment, as it may be on a busy machine, says so; clients ask again.
    loop {
        let reply = ws.ask_as(&id(), "auth", json!({})).await;
        if reply["ok"] == true {
            return ws;
        }
        assert!(reply["error"]["retryable"] == true && started.elapsed() < PATIENCE, "{reply}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// With these headers; else the status of the refusal.
pub async fn try_connect(address: SocketAddr, headers: &[(&'static str, &str)]) -> Result<Ws, u16> {
    connect_over(address, TcpStream::connect(address).await.unwrap(), "/v1/ws", headers).await
}

async fn connect_over(
    address: SocketAddr,
    stream: TcpStream,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Result<Ws, u16> {
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, response)) => Ok(Ws {
            socket,
            subprotocol: response
                .headers()
                .get("sec-websocket-protocol")
                .map(|name| name.to_str().unwrap().to_owned()),
            waiting: VecDeque::new(),
        }),
        Err(tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("the handshake failed: {error}"),
    }
}

/// Consumers may do everything with it.
pub fn grant(topic: &str) -> TopicGrant {
    TopicGrant {
        topic: topic.into(),
        publish: vec![Role::Consumer],
        subscribe: vec![Role::Consumer],
        durable: false,
        latest_only: false,
        max_per_s: 0,
    }
}

pub fn hairdresser() -> Value {
    let all_day = json!([{"from_minute": 0, "to_minute": 1_440}]);
    let weekly: serde_json::Map<String, Value> =
        ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
            .into_iter()
            .map(|day| (day.into(), all_day.clone()))
            .collect();
    json!({
        "name": "Salon Alex",
        "services": [{
            "service": "haircut",
            "price": {"amount_minor": 4_500, "currency": "EUR"},
            "per": "service",
            "duration_minutes": 45,
        }],
        "base": {
            "city": "Berlin", "country": "DE",
            "latitude": 52.5219, "longitude": 13.4132, "time_zone": "Europe/Berlin",
        },
        "radius_km": 20.0,
        "weekly": weekly,
        "minimum_notice_minutes": 0,
    })
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string")).to_owned()
}

pub fn id() -> String {
    ulid::Ulid::generate().to_string()
}

/// An HTTP client without any comfort, so that nothing is hidden.
#[derive(Clone)]
pub struct Http {
    pub address: SocketAddr,
    pub token: Option<String>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub text: String,
}

impl Answer {
    fn read(answer: &[u8], path: &str) -> Self {
        let answer = std::str::from_utf8(answer).unwrap();
        let (head, text) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: HashMap<_, _> = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        assert!(headers.contains_key("x-request-id"), "{path}: {head}");
        Self { status, headers, text: text.to_owned() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// A problem as promised: its code.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let body = self.json();
        assert_eq!((&body["status"], &body["code"]), (&json!(status), &json!(code)), "{body}");
        for field in ["type", "title", "detail"] {
            assert!(body[field].as_str().is_some_and(|s| !s.is_empty()), "{field} of {body}");
        }
        assert!(!self.headers["x-request-id"].is_empty());
        body
    }
}

impl Http {
    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(
            "POST",
            path,
            &[("content-type", "application/json")],
            body.to_string().as_bytes(),
        )
        .await
    }

    pub async fn send_json(&self, method: &str, path: &str, body: &Value) -> Answer {
        let headers = [("content-type", "application/json")];
        self.send(method, path, &headers, body.to_string().as_bytes()).await
    }

    /// The status. `None`: the node has gone.
    pub async fn try_post(&self, path: &str, body: &Value) -> Option<u16> {
        let (http, path, body) = (self.clone(), path.to_owned(), body.clone());
        // What the other helpers take for granted is not, of a node that is killed.
        tokio::spawn(async move { http.post(&path, &body).await.status }).await.ok()
    }

    pub async fn post_as(&self, key: &str, path: &str, body: &Value) -> Answer {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        self.send("POST", path, &headers, body.to_string().as_bytes()).await
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut given = format!("content-length: {}\r\n", body.len());
        for (name, value) in headers {
            given += &format!("{name}: {value}\r\n");
        }
        self.exchange(method, path, &given, body).await
    }

    /// A POST whose body is not as long as it says, or does not say.
    pub async fn send_unmeasured(&self, path: &str, header: &str, body: &str) -> Answer {
        let given = format!("content-type: application/json\r\n{header}\r\n");
        self.exchange("POST", path, &given, body.as_bytes()).await
    }

    /// Begins a WebSocket with these headers only, and looks at the head of the answer.
    pub async fn shake(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let address = self.address.to_string();
        let host = headers.iter().find_map(|(name, value)| (*name == "host").then_some(*value));
        let others = headers.iter().filter(|(name, _)| *name != "host");
        let given: String = others.map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let host = host.unwrap_or(&address);
        let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{given}\r\n");
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                answer.push(stream.read_u8().await.unwrap());
            }
            let mut answer = Answer::read(&answer, path);
            let length = answer.headers.get("content-length").map(|n| n.parse().unwrap());
            let mut body = vec![0; length.unwrap_or_default()];
            stream.read_exact(&mut body).await.unwrap();
            answer.text = String::from_utf8(body).unwrap();
            answer
        };
        tokio::time::timeout(PATIENCE, exchange).await.expect("an answer")
    }

    async fn exchange(&self, method: &str, path: &str, given: &str, body: &[u8]) -> Answer {
        let token = self.token.as_ref();
        let token = token.map(|t| format!("authorization: Bearer {t}\r\n")).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{token}{given}\r\n",
            self.address,
        );
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let answer = tokio::time::timeout(PATIENCE, exchange).await.expect("an answer");
        let answer = Answer::read(&answer, path);
        schema::documents_answer(method, path, answer.status, &answer.text);
        answer
    }

    /// Waits until the first offer to this request is there.
    pub async fn offer(&self, request_id: &str) -> Value {
        let path = format!("/v1/requests/{request_id}/offers");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.get(&path).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            if let Some(offer) = answer.json()["items"].get(0) {
                return offer.clone();
            }
            assert!(tokio::time::Instant::now() < deadline, "never an offer to {request_id}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
}

pub struct Ws {
    socket: WebSocketStream<TcpStream>,
    pub subprotocol: Option<String>,
    /// Events that came while a reply was awaited.
    waiting: VecDeque<Value>,
}

/// What comes from a node.
#[derive(Debug)]
pub enum Came {
    Frame(Value),
    /// The code, and the reason's JSON.
    Closed(u16, Value),
}

impl Ws {
    pub async fn raw(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    /// Sends, and does not mind when the node has had enough.
    pub async fn try_raw(&mut self, message: Message) -> bool {
        self.socket.send(message).await.is_ok()
    }

    pub async fn say(&mut self, id: &str, event: &str, data: Value) {
        let frame = json!({"id": id, "event": event, "data": data}).to_string();
        self.raw(Message::text(frame)).await;
    }

    pub async fn next(&mut self) -> Came {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.socket.next());
            match next.await.expect("a frame").expect("a close frame before the end") {
                Ok(Message::Text(text)) => {
                    let frame = serde_json::from_str(&text).unwrap();
                    schema::documents_event(&frame);
                    return Came::Frame(frame);
                }
                Ok(Message::Close(Some(close))) => {
                    let reason = serde_json::from_str(&close.reason).unwrap_or(Value::Null);
                    return Came::Closed(close.code.into(), reason);
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    async fn frame(&mut self) -> Value {
        match self.next().await {
            Came::Frame(frame) => frame,
            Came::Closed(code, reason) => panic!("closed with {code} {reason}"),
        }
    }

    /// The reply to this id. Events that come before it are kept.
    pub async fn reply(&mut self, id: &str) -> Value {
        loop {
            let frame = self.frame().await;
            if frame["id"] == id {
                return frame;
            }
            self.waiting.push_back(frame);
        }
    }

    /// The same where several replies are on their way, in whatever order.
    pub async fn reply_of(&mut self, id: &str) -> Value {
        match self.waiting.iter().position(|frame| frame["id"] == id) {
            Some(at) => self.waiting.remove(at).unwrap(),
            None => self.reply(id).await,
        }
    }

    pub async fn ask_as(&mut self, id: &str, event: &str, data: Value) -> Value {
        self.say(id, event, data).await;
        let reply = self.reply(id).await;
        schema::documents_reply(event, &reply);
        reply
    }

    /// The reply, or the code with which the connection was closed instead.
    pub async fn try_ask(&mut self, event: &str, data: Value) -> Result<Value, u16> {
        let id = id();
        let frame = json!({"id": id, "event": event, "data": data}).to_string();
        // Whether it was taken shows in what comes.
        let _ = self.try_raw(Message::text(frame)).await;
        loop {
            match self.next().await {
                Came::Frame(frame) if frame["id"] == id.as_str() => return Ok(frame),
                Came::Frame(_) => {}
                Came::Closed(code, _) => return Err(code),
            }
        }
    }

    pub async fn ok(&mut self, event: &str, data: Value) -> Value {
        let reply = self.ask_as(&id(), event, data).await;
        assert_eq!(reply["ok"], true, "{event}: {reply}");
        reply["data"].clone()
    }

    /// The code of the refusal.
    pub async fn refused(&mut self, event: &str, data: Value) -> String {
        let reply = self.ask_as(&id(), event, data).await;
        assert_eq!(reply["ok"], false, "{event}: {reply}");
        assert!(reply["error"]["message"].is_string() && reply["error"]["retryable"].is_boolean());
        text(&reply["error"]["code"])
    }

    /// The next frame that is not a reply, in the order of arrival.
    pub async fn event(&mut self) -> Value {
        match self.waiting.pop_front() {
            Some(event) => event,
            None => self.frame().await,
        }
    }

    /// Skips to an event with this name.
    pub async fn event_named(&mut self, name: &str) -> Value {
        loop {
            let event = self.event().await;
            if event["event"] == name {
                return event;
            }
        }
    }

    /// The next of this name whose data is like that; others are skipped.
    pub async fn event_where(&mut self, name: &str, like: impl Fn(&Value) -> bool) -> Value {
        loop {
            let data = self.event_named(name).await["data"].take();
            if like(&data) {
                return data;
            }
        }
    }

    /// Until the user's devices are shown to have these statuses.
    pub async fn presence(&mut self, user: &str, statuses: &[&str]) -> Value {
        loop {
            let event = self.event_named("presence:changed").await;
            let devices = event["data"]["devices"].as_array().unwrap();
            let mut shown: Vec<_> = devices.iter().map(|d| d["status"].as_str().unwrap()).collect();
            shown.sort_unstable();
            if event["data"]["user_id"] == user && shown == statuses {
                return event;
            }
        }
    }

    /// `n` durable events of this topic; others are skipped.
    pub async fn durable(&mut self, topic: &str, n: usize) -> Vec<Value> {
        let mut events = Vec::new();
        while events.len() < n {
            let event = self.event().await;
            if event["topic"] == topic && event["offset"].is_i64() {
                events.push(event);
            }
        }
        events
    }

    /// Forgets the events so far.
    pub fn forget(&mut self) {
        self.waiting.clear();
    }

    /// Events of this topic have come while replies were awaited.
    pub fn has_heard(&self, topic: &str) -> bool {
        self.waiting.iter().any(|event| event["topic"] == topic)
    }

    /// Whatever else comes, the connection ends like this.
    pub async fn closed(&mut self) -> (u16, Value) {
        loop {
            if let Came::Closed(code, reason) = self.next().await {
                return (code, reason);
            }
        }
    }
}

impl Ws {
    /// Past the protocol, onto the wire.
    pub async fn bytes(&mut self, bytes: &[u8]) {
        self.socket.get_mut().write_all(bytes).await.unwrap();
    }
}

/// A node as a process, with a log that can be read.
async fn logged(folder: &Folder, level: &str) -> Served {
    let database = support::database().await.to_url_lossy().to_string();
    let environment = [
        ("DATABASE_URL", database.as_str()),
        ("PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF", "true"),
        ("PROXIE__PERSISTENCE__MAX_CONNECTIONS", "10"),
        ("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0"),
        ("PROXIE__LOG__LEVEL", level),
        ("PROXIE__LOG__FORMAT", "json"),
    ];
    Served::start(folder, &environment)
}
