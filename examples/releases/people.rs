//! What people do meanwhile, and what became of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use proxie::kernel::clock::{Clock, Timestamp};
use rand::Rng;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::PATIENCE;
use super::nodes::Cluster;

pub const FILM: &str = "tt0133093";

#[derive(Default)]
pub struct Tally {
    pub calls: AtomicU64,
    pub repeated: AtomicU64,
    pub failed: Mutex<Vec<String>>,
}

pub struct Load {
    pub rotation: watch::Receiver<Vec<SocketAddr>>,
    pub tally: Tally,
}

impl Load {
    fn node(&self) -> Option<SocketAddr> {
        let ready = self.rotation.borrow();
        (!ready.is_empty()).then(|| ready[rand::rng().random_range(0..ready.len())])
    }

    fn failed(&self, what: String) -> anyhow::Error {
        self.tally.failed.lock().expect("never poisoned").push(what.clone());
        anyhow::Error::msg(what)
    }
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<TcpStream>>;

/// One user, their connection, and what they did.
pub struct Person {
    name: String,
    token: String,
    load: Arc<Load>,
    socket: Option<Socket>,
    /// Messages by session, each once.
    said: HashMap<String, Vec<String>>,
}

impl Person {
    pub fn new(
        cluster: &Cluster,
        binary: &Path,
        load: &Arc<Load>,
        name: &str,
        role: &str,
    ) -> anyhow::Result<Self> {
        let output =
            cluster.command(binary).args(["token", "--user", name, "--role", role]).output()?;
        let token = String::from_utf8(output.stdout)?.lines().last().unwrap_or_default().to_owned();
        ensure!(!token.is_empty(), "no token: {}", String::from_utf8_lossy(&output.stderr));
        let load = load.clone();
        Ok(Self { name: name.into(), token, load, socket: None, said: HashMap::new() })
    }

    /// Until it is to stop: one day after the other, whatever the one before came to.
    pub async fn live(mut self, n: usize, stopped: watch::Receiver<bool>) -> Self {
        let tv = json!({
            "name": "tv", "device_type": "android_tv", "push_token": "a-push-token",
            "capabilities": {"supported_platforms": ["netflix"], "remote_control": true},
        });
        let mut device_id = None;
        let mut sequence = 0;
        while !*stopped.borrow() {
            let day: anyhow::Result<()> = async {
                if device_id.is_none() {
                    let registered = self.http("POST", "/v1/devices/register", Some(&tv)).await?;
                    device_id = registered["id"].as_str().map(str::to_owned);
                }
                let device = device_id.clone().context("a device has an id")?;
                self.book(n).await?;
                self.chat().await?;
                self.watch(&device, &mut sequence).await
            }
            .await;
            if let Err(error) = day
                && self.load.tally.failed.lock().expect("never poisoned").is_empty()
            {
                // No answer said no: what came of a good one did not come.
                self.load.failed(format!("{error:#}"));
            }
        }
        self
    }

    /// A request, its offers, the booking of one of them, and its end.
    async fn book(&mut self, n: usize) -> anyhow::Result<()> {
        let day = Clock::System.now().as_second() / 86_400 + rand::rng().random_range(2..27);
        let at = Timestamp::from_second(day * 86_400 + (6 + n as i64) * 3_600)?.to_string();
        let wanted =
            json!({"service": "haircut", "place": "Alexanderplatz, Berlin", "starts_at": at});
        let request = self.http("POST", "/v1/requests", Some(&wanted)).await?;
        let path = format!("/v1/requests/{}/offers", text(&request, "id")?);
        let began = Instant::now();
        let offer = loop {
            let offers = self.http("GET", &path, None).await?;
            if let Some(offer) = offers["items"].get(0) {
                break text(offer, "id")?;
            }
            if began.elapsed() > PATIENCE {
                return Err(self.load.failed("a request got no offer".into()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let accepted = self.ask("offer:accept", json!({ "offer_id": offer })).await?;
        let booking = text(&accepted, "booking_id")?;
        let path = format!("/v1/bookings/{booking}");
        let booked = self.http("GET", &path, None).await?;
        ensure!(booked["status"] == "confirmed", "a booking is {booked}");
        let listed = self.http("GET", "/v1/bookings?limit=5", None).await?;
        let items = listed["items"].as_array().context("a list")?;
        if !items.iter().any(|item| item["id"] == booking.as_str()) {
            return Err(self.load.failed(format!("a booking is not in the list: {listed}")));
        }
        self.http("POST", &format!("{path}/cancel"), Some(&json!({}))).await?;
        self.http("GET", "/v1/requests?limit=5", None).await.map(drop)
    }

    /// Some sentences in a new session.
    async fn chat(&mut self) -> anyhow::Result<()> {
        let opened = self.ask("session:open", json!({ "session_id": null })).await?;
        let session = text(&opened, "session_id")?;
        for _ in 0..3 {
            let content = format!("hello {}", ulid::Ulid::generate());
            self.ask("chat:message", json!({ "session_id": session, "content": content })).await?;
            self.said.entry(session.clone()).or_default().push(content);
        }
        let said = json!({ "topic": "app:log", "event": "app:said", "data": { "by": self.name } });
        self.ask("topic:publish", said).await.map(drop)
    }

    /// Something on a device, which the others learn of.
    async fn watch(&mut self, device: &str, sequence: &mut u64) -> anyhow::Result<()> {
        *sequence += 1;
        let now = Clock::System.now().to_string();
        let operation = json!({
            "sequence": *sequence, "timestamp": now, "operation_type": "PlaybackUpdate",
            "payload": { "content_id": FILM, "position_ms": *sequence * 1_000, "duration_ms": 8_160_000 },
        });
        self.ask("sync:update", json!({ "device_id": device, "operations": [operation] })).await?;
        let initiate = json!({ "content_id": FILM, "device_id": device });
        let session = self.ask("playback:initiate", initiate).await?;
        let session = text(&session, "session_id")?;
        for status in ["playing", "ended"] {
            let report = json!({ "session_id": session, "status": status });
            self.ask("playback:report", report).await?;
        }
        self.http("GET", "/v1/playback/session?limit=5", None).await.map(drop)
    }

    /// Messages that are not in their session, or not once.
    pub async fn lost(&self) -> anyhow::Result<usize> {
        let mut lost = 0;
        for (session, said) in &self.said {
            let path = format!("/v1/sessions/{session}/messages?limit=100");
            let listed = self.http("GET", &path, None).await?;
            let items = listed["items"].as_array().context("a list")?;
            let times =
                |what: &String| items.iter().filter(|m| m["content"] == what.as_str()).count();
            lost += said.iter().filter(|what| times(what) != 1).count();
        }
        Ok(lost)
    }

    pub async fn http(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let id = ulid::Ulid::generate().to_string();
        let began = Instant::now();
        self.load.tally.calls.fetch_add(1, Ordering::Relaxed);
        while began.elapsed() < PATIENCE {
            if let Some(node) = self.load.node() {
                match request(node, method, path, &self.token, &id, body).await {
                    Ok((200..300, answer)) => return Ok(answer),
                    Ok((status, answer)) => {
                        let path = path.split(['?', '_']).next().unwrap_or_default();
                        let answer = &answer["detail"];
                        return Err(self
                            .load
                            .failed(format!("{method} {path}: {status} {answer}")));
                    }
                    // Its connection ended.
                    Err(_) => self.load.tally.repeated.fetch_add(1, Ordering::Relaxed),
                };
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(self.load.failed(format!("{method} {path}: no node answers")))
    }

    async fn ask(&mut self, event: &str, data: Value) -> anyhow::Result<Value> {
        let id = ulid::Ulid::generate().to_string();
        let frame = json!({ "id": id, "event": event, "data": data }).to_string();
        let began = Instant::now();
        self.load.tally.calls.fetch_add(1, Ordering::Relaxed);
        while began.elapsed() < PATIENCE {
            match tokio::time::timeout(PATIENCE, self.attempt(&id, &frame)).await {
                Ok(Ok(reply)) if reply["ok"] == true => return Ok(reply["data"].clone()),
                Ok(Ok(reply)) => {
                    return Err(self.load.failed(format!("{event}: {}", reply["error"])));
                }
                Ok(Err(_)) => {}
                Err(_) => return Err(self.load.failed(format!("{event}: no answer"))),
            }
            self.socket = None;
            self.load.tally.repeated.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(self.load.failed(format!("{event}: no node answers")))
    }

    /// Over the connection, or a new one. An error: it has ended.
    async fn attempt(&mut self, id: &str, frame: &str) -> anyhow::Result<Value> {
        let socket = match &mut self.socket {
            Some(socket) => socket,
            None => {
                let node = self.load.node().context("no node is ready")?;
                let mut request = format!("ws://{node}/v1/ws").into_client_request()?;
                let headers = request.headers_mut();
                headers.insert("authorization", format!("Bearer {}", self.token).parse()?);
                headers.insert("sec-websocket-protocol", "proxie.v1".parse()?);
                let (mut socket, _) = tokio_tungstenite::connect_async(request).await?;
                let auth = json!({ "id": "auth", "event": "auth", "data": {} }).to_string();
                socket.send(Message::text(auth)).await?;
                let welcome = reply(&mut socket, "auth").await?;
                ensure!(welcome["ok"] == true, "not welcome: {welcome}");
                self.socket.insert(socket)
            }
        };
        socket.send(Message::text(frame.to_owned())).await?;
        reply(socket, id).await
    }
}

async fn reply(socket: &mut Socket, id: &str) -> anyhow::Result<Value> {
    while let Some(message) = socket.next().await {
        match message? {
            Message::Text(text) => {
                let frame: Value = serde_json::from_str(text.as_str())?;
                if frame["id"] == id {
                    return Ok(frame);
                }
            }
            Message::Close(_) => break,
            _ => {}
        }
    }
    bail!("the connection has ended")
}

/// One request over a connection of its own. An error: it has ended.
pub async fn request(
    node: SocketAddr,
    method: &str,
    path: &str,
    token: &str,
    id: &str,
    body: Option<&Value>,
) -> anyhow::Result<(u16, Value)> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut stream = TcpStream::connect(node).await?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {node}\r\nauthorization: Bearer {token}\r\nidempotency-key: {id}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).context("a status")?.parse()?;
    Ok((status, serde_json::from_str(body).unwrap_or_default()))
}

fn text(value: &Value, field: &str) -> anyhow::Result<String> {
    Ok(value[field].as_str().with_context(|| format!("{field} is missing in {value}"))?.to_owned())
}

/// A provider who always has time.
pub fn hairdresser() -> Value {
    let all_day = json!([{ "from_minute": 0, "to_minute": 1_440 }]);
    let days = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
    let weekly: serde_json::Map<String, Value> =
        days.into_iter().map(|day| (day.into(), all_day.clone())).collect();
    json!({
        "name": "Salon Alex", "radius_km": 20.0, "weekly": weekly, "minimum_notice_minutes": 0,
        "services": [{
            "service": "haircut", "price": { "amount_minor": 4_500, "currency": "EUR" },
            "per": "service", "duration_minutes": 45,
        }],
        "base": {
            "city": "Berlin", "country": "DE", "latitude": 52.5219, "longitude": 13.4132,
            "time_zone": "Europe/Berlin",
        },
    })
}
