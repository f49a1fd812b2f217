//! The edges from outside: a real node in this process, spoken to over TCP only.

mod http;
mod ws;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use proxie::app::node::Node;
use proxie::config::Config;
use proxie::kernel::clock::Timestamp;
use proxie::kernel::entity::Role;
use serde_json::{Value, json};
use sqlx::ConnectOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::support;

/// What everything here is given before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct TestNode {
    pub node: Node,
}

impl TestNode {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        let database = support::database().await;
        config.persistence.database_url = database.to_url_lossy().to_string();
        config.persistence.allow_fsync_off = true;
        config.persistence.max_connections = 10;
        config.gateway.listen = "127.0.0.1:0".into();
        config.gateway.drain_ms = 0;
        change(&mut config);
        Self { node: Node::start(&config).await.unwrap() }
    }

    pub fn token(&self, user: &str, role: Role, ttl_s: i64) -> String {
        self.node.gateway().auth.mint(user, role, Timestamp::now(), ttl_s)
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
        let mut ws = self.ws_silent(user).await;
        ws.ok("auth", json!({})).await;
        ws
    }

    /// Authenticated by the header; nothing is said yet.
    pub async fn ws_silent(&self, user: &str) -> Ws {
        let token = self.token(user, Role::Consumer, 3_600);
        self.try_ws(&[("authorization", &format!("Bearer {token}"))]).await.unwrap()
    }

    /// With these headers; else the status of the refusal.
    pub async fn try_ws(&self, headers: &[(&'static str, &str)]) -> Result<Ws, u16> {
        let mut request = format!("ws://{}/v1/ws", self.node.address).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(self.node.address).await.unwrap();
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
    pub address: std::net::SocketAddr,
    pub token: Option<String>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub text: String,
}

impl Answer {
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
