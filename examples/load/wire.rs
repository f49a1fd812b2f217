//! How servers are spoken to.

use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, bail, ensure};
use futures_util::{FutureExt, SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// 100 bytes or so of what applications say.
pub const PAYLOAD: &str = "a sentence that is about as long as what people and programs say to each other, all in all 100 B";

#[derive(Clone)]
pub enum Wire {
    Proxie {
        token: String,
    },
    /// Socket.IO, over WebSocket from the start; the token where it is Proxie.
    SocketIo {
        token: Option<String>,
    },
    /// `{"sub":topic}`, `{"pub":topic,"data":…}`; anything else is echoed.
    Plain,
    Nats,
    Mqtt,
}

impl Wire {
    /// It answers what it is sent.
    pub fn echoes(&self) -> bool {
        !matches!(self, Self::Nats | Self::Mqtt)
    }

    /// Behind it are the entities of a node.
    pub fn is_proxie(&self) -> bool {
        matches!(self, Self::Proxie { .. } | Self::SocketIo { token: Some(_) })
    }

    /// Connections that are made at the same time. Mosquitto looks at its WebSockets every 100 ms.
    pub fn at_once(&self) -> usize {
        if let Self::Mqtt = self { 256 } else { super::AT_ONCE }
    }

    fn path(&self) -> &'static str {
        match self {
            Self::Proxie { .. } => "/v1/ws",
            Self::SocketIo { .. } => "/socket.io/?EIO=4&transport=websocket",
            _ => "/",
        }
    }
}

/// Where clients connect to.
#[derive(Clone)]
pub struct Target {
    pub address: String,
    pub wire: Wire,
}

impl Target {
    pub async fn connect(&self) -> anyhow::Result<Client> {
        let mut client = self.open().await?;
        match client.wire.clone() {
            Wire::Proxie { .. } => drop(client.ask("auth", json!({})).await?),
            Wire::SocketIo { token } => {
                client.until("0{").await?;
                client.send(format!("40{}", json!({"token": token}))).await?;
                client.until("40{").await?;
            }
            Wire::Nats => {
                client.send("CONNECT {\"verbose\":false}\r\nPING\r\n".into()).await?;
                while !client.next().await?.contains("PONG") {}
            }
            Wire::Mqtt => {
                static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
                let name = format!("load-{}", NEXT.fetch_add(1, Ordering::Relaxed));
                // MQTT 3.1.1, a clean session, no keep-alive.
                let mut body = b"\x00\x04MQTT\x04\x02\x00\x00".to_vec();
                body.extend(mqtt_text(&name));
                client.send_bytes(mqtt(0x10, &body)).await?;
                client.socket.next().await.context("no CONNACK")??;
            }
            Wire::Plain => {}
        }
        Ok(client)
    }

    pub async fn open(&self) -> anyhow::Result<Client> {
        self.open_at(self.wire.path()).await
    }

    pub async fn open_at(&self, path: &str) -> anyhow::Result<Client> {
        let mut request = format!("ws://{}{path}", self.address).into_client_request()?;
        if let Wire::Proxie { token } = &self.wire {
            request.headers_mut().insert("authorization", format!("Bearer {token}").parse()?);
        }
        if let Wire::Mqtt = self.wire {
            request.headers_mut().insert("sec-websocket-protocol", "mqtt".parse()?);
        }
        // From many addresses: the kernel looks long for a free port where thousands are taken.
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let from = [127, 0, 1, NEXT.fetch_add(1, Ordering::Relaxed)];
        let stream = TcpSocket::new_v4()?;
        stream.bind((from, 0).into())?;
        let stream = stream.connect(self.address.parse()?).await?;
        stream.set_nodelay(true)?;
        let config = WebSocketConfig::default().read_buffer_size(8_192).write_buffer_size(0);
        let (socket, _) =
            tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await?;
        Ok(Client { socket, wire: self.wire.clone(), next: 0 })
    }
}

pub struct Client {
    socket: WebSocketStream<TcpStream>,
    wire: Wire,
    next: u64,
}

impl Client {
    pub async fn send(&mut self, text: String) -> anyhow::Result<()> {
        let message =
            if let Wire::Nats = self.wire { Message::binary(text) } else { Message::text(text) };
        Ok(self.socket.send(message).await?)
    }

    async fn send_bytes(&mut self, bytes: Vec<u8>) -> anyhow::Result<()> {
        self.send_message(Message::binary(bytes)).await
    }

    pub async fn send_message(&mut self, message: Message) -> anyhow::Result<()> {
        Ok(self.socket.send(message).await?)
    }

    /// The next message, heartbeats apart. `None`: closed.
    pub async fn message(&mut self) -> Option<Message> {
        loop {
            match self.socket.next().await?.ok()? {
                Message::Text(text)
                    if text == "2" && matches!(self.wire, Wire::SocketIo { .. }) =>
                {
                    self.socket.send(Message::text("3")).await.ok()?;
                }
                message => return Some(message),
            }
        }
    }

    /// One that is there already.
    pub fn waiting(&mut self) -> Option<Message> {
        self.message().now_or_never().flatten()
    }

    pub async fn next(&mut self) -> anyhow::Result<String> {
        loop {
            match self.message().await.context("closed")? {
                Message::Text(text) => return Ok(text.as_str().to_owned()),
                Message::Close(frame) => bail!("closed: {frame:?}"),
                Message::Binary(bytes) => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
                _ => {}
            }
        }
    }

    /// What follows this beginning; other messages are skipped.
    async fn until(&mut self, start: &str) -> anyhow::Result<String> {
        loop {
            let text = self.next().await?;
            if let Some(rest) = text.strip_prefix(start) {
                return Ok(rest.to_owned());
            }
            ensure!(!text.starts_with("44"), "refused: {text}");
        }
    }

    pub fn id(&mut self) -> String {
        self.next += 1;
        format!("{:026}", self.next)
    }

    pub async fn ask(&mut self, event: &str, data: Value) -> anyhow::Result<Value> {
        if let Wire::SocketIo { token } = &self.wire {
            let is_proxie = token.is_some();
            self.next += 1;
            let n = self.next;
            self.send(format!("42{n}{}", json!([event, data]))).await?;
            let answer = self.until(&format!("43{n}[")).await?;
            let answer = answer.strip_suffix(']').unwrap_or_default();
            let answer: Value = serde_json::from_str(answer).unwrap_or_default();
            ensure!(!is_proxie || answer["ok"] == true, "{event}: {answer}");
            return Ok(answer["data"].clone());
        }
        let id = self.id();
        self.send(json!({"id": id, "event": event, "data": data}).to_string()).await?;
        loop {
            let frame: Value = serde_json::from_str(&self.next().await?)?;
            if frame["id"] == id.as_str() {
                ensure!(frame["ok"] == true, "{event}: {frame}");
                return Ok(frame["data"].clone());
            }
        }
    }

    /// Something small that is answered; with Proxie by the entity of this session.
    pub async fn echo(&mut self, session: &str) -> anyhow::Result<()> {
        let data = format!("{{\"session_id\":\"{session}\",\"is_typing\":true}}");
        let text = match &self.wire {
            Wire::SocketIo { .. } => {
                self.next += 1;
                format!("42{}[\"chat:typing\",{data}]", self.next)
            }
            _ => format!("{{\"id\":\"{}\",\"event\":\"chat:typing\",\"data\":{data}}}", self.id()),
        };
        self.send(text).await?;
        let answer = self.next().await?;
        ensure!(!answer.contains("\"ok\":false"), "{answer}");
        Ok(())
    }

    pub async fn subscribe(&mut self, topic: &str) -> anyhow::Result<()> {
        match self.wire {
            Wire::Proxie { .. } | Wire::SocketIo { .. } => {
                self.ask("topic:subscribe", json!({"topic": topic})).await.map(drop)
            }
            Wire::Plain => {
                self.send(json!({"sub": topic}).to_string()).await?;
                // It comes back after the subscription was read.
                self.send("{}".into()).await?;
                self.next().await.map(drop)
            }
            Wire::Nats => {
                self.send(format!("SUB {topic} 1\r\nPING\r\n")).await?;
                while !self.next().await?.contains("PONG") {}
                Ok(())
            }
            Wire::Mqtt => {
                let mut body = vec![0, 1];
                body.extend(mqtt_text(topic));
                body.push(0);
                self.send_bytes(mqtt(0x82, &body)).await?;
                self.socket.next().await.context("no SUBACK")??;
                Ok(())
            }
        }
    }

    pub async fn publish(&mut self, topic: &str, at_us: u64) -> anyhow::Result<()> {
        self.publish_text(topic, at_us, PAYLOAD).await
    }

    pub async fn publish_text(
        &mut self,
        topic: &str,
        at_us: u64,
        text: &str,
    ) -> anyhow::Result<()> {
        let data = format!("{{\"t\":\"{at_us:016}\",\"text\":\"{text}\"}}");
        let publish = format!("{{\"topic\":\"{topic}\",\"event\":\"app:x\",\"data\":{data}}}");
        let text = match self.wire {
            Wire::Proxie { .. } => {
                format!(
                    "{{\"id\":\"{}\",\"event\":\"topic:publish\",\"data\":{publish}}}",
                    self.id()
                )
            }
            Wire::SocketIo { .. } => format!("42[\"topic:publish\",{publish}]"),
            Wire::Plain => format!("{{\"pub\":\"{topic}\",\"data\":{data}}}"),
            Wire::Nats => format!("PUB {topic} {}\r\n{data}\r\n", data.len()),
            Wire::Mqtt => {
                let mut body = mqtt_text(topic);
                body.extend(data.as_bytes());
                return self.send_bytes(mqtt(0x30, &body)).await;
            }
        };
        self.send(text).await
    }
}

/// A packet of MQTT 3.1.1: its type, its length in groups of seven bits, and the rest.
fn mqtt(kind: u8, body: &[u8]) -> Vec<u8> {
    let (mut packet, mut left) = (vec![kind], body.len());
    loop {
        let more = if left > 127 { 128 } else { 0 };
        packet.push((left % 128) as u8 | more);
        left /= 128;
        if left == 0 {
            break;
        }
    }
    packet.extend(body);
    packet
}

fn mqtt_text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

/// Deliveries in a message, and when the last of them was published.
pub fn deliveries(message: &Message) -> (u64, Option<u64>) {
    let bytes = match message {
        Message::Text(text) => text.as_bytes(),
        Message::Binary(bytes) => bytes,
        _ => return (0, None),
    };
    let mark = b"\"t\":\"";
    let (mut count, mut last) = (0, None);
    for at in memchr_all(bytes, mark) {
        count += 1;
        last = bytes.get(at + mark.len()..at + mark.len() + 16);
    }
    (count, last.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()))
}

fn memchr_all<'a>(bytes: &'a [u8], mark: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    bytes.windows(mark.len()).enumerate().filter_map(move |(at, w)| (w == mark).then_some(at))
}
