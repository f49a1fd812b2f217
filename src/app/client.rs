//! A client of a node, over its public edges.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// Time limit for an answer.
pub const STEP: Duration = Duration::from_secs(20);

type Socket =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

/// A connection to a node, as the command line and the demonstration use it.
pub struct Client {
    socket: Socket,
    pub events: std::collections::VecDeque<Value>,
}

impl Client {
    pub async fn connect(url: &str, token: &str) -> anyhow::Result<Self> {
        let mut request =
            format!("{}/v1/ws", url.replacen("http", "ws", 1)).into_client_request()?;
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse()?);
        request.headers_mut().insert("sec-websocket-protocol", "proxie.v1".parse()?);
        let (socket, _) =
            tokio_tungstenite::connect_async(request).await.context("the WebSocket was refused")?;
        Ok(Self { socket, events: Default::default() })
    }

    /// Sends a frame and waits for its reply; events that arrive before it are kept.
    pub async fn ask(&mut self, event: &str, data: Value) -> anyhow::Result<Value> {
        let id = ulid::Ulid::generate().to_string();
        let frame = json!({ "id": id, "event": event, "data": data }).to_string();
        self.socket.send(Message::text(frame)).await?;
        let deadline = Instant::now() + STEP;
        loop {
            let Some(frame) = self.read(deadline.saturating_duration_since(Instant::now())).await?
            else {
                bail!("no reply to {event} within {} s", STEP.as_secs())
            };
            if frame["id"] == id.as_str() {
                ensure!(frame["ok"] == true, "{event} was answered {}", frame["error"]);
                return Ok(frame["data"].clone());
            }
            self.events.push_back(frame);
        }
    }

    async fn read(&mut self, wait: Duration) -> anyhow::Result<Option<Value>> {
        loop {
            match tokio::time::timeout(wait, self.socket.next()).await {
                Err(_) => return Ok(None),
                Ok(Some(Ok(Message::Text(text)))) => {
                    return Ok(Some(serde_json::from_str(text.as_str())?));
                }
                Ok(Some(Ok(Message::Close(frame)))) => {
                    bail!("the node closed the connection: {frame:?}")
                }
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => return Err(error.into()),
                Ok(None) => bail!("the node closed the connection"),
            }
        }
    }

    pub async fn next_event(&mut self, wait: Duration) -> anyhow::Result<Option<Value>> {
        match self.events.pop_front() {
            Some(event) => Ok(Some(event)),
            None => self.read(wait).await,
        }
    }

    /// Whether no event arrives for this long.
    pub async fn is_quiet(&mut self, wait: Duration) -> anyhow::Result<bool> {
        if let Some(event) = self.next_event(wait).await? {
            self.events.push_front(event);
            return Ok(false);
        }
        Ok(true)
    }

    pub async fn wait_for(&mut self, name: &str) -> anyhow::Result<Value> {
        let deadline = Instant::now() + STEP;
        while Instant::now() < deadline {
            match self.next_event(STEP).await? {
                Some(event) if event["event"] == name => return Ok(event),
                Some(_) => {}
                None => break,
            }
        }
        bail!("no {name} within {} s", STEP.as_secs())
    }

    /// A plain GET, to show that the HTTP API agrees.
    pub async fn get(&self, url: &str, token: &str, path: &str) -> anyhow::Result<Value> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let host = url.trim_start_matches("http://");
        let mut stream = tokio::net::TcpStream::connect(host).await?;
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = String::new();
        tokio::time::timeout(STEP, stream.read_to_string(&mut answer)).await??;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        ensure!(
            head.starts_with("HTTP/1.1 200"),
            "GET {path}: {}",
            head.lines().next().unwrap_or_default()
        );
        Ok(serde_json::from_str(body)?)
    }
}
