//! Requests whose answer is a stream, and the stream of a session.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::Revision;
use crate::edges::PATIENCE;

pub struct Stream {
    lines: tokio::io::Lines<BufReader<TcpStream>>,
    pub head: Vec<String>,
    pub last_id: Option<String>,
}

impl Stream {
    async fn open(address: SocketAddr, request: String) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        let mut head = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap().filter(|line| !line.is_empty()) {
            head.push(line.to_ascii_lowercase());
        }
        Self { lines, head, last_id: None }
    }

    /// The stream of a session.
    pub async fn of_session(
        address: SocketAddr,
        token: &str,
        session: &str,
        last_id: Option<&str>,
    ) -> Self {
        let last_id = last_id.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        // HTTP/1.0: the body ends with the connection, and is not in chunks.
        let request = format!(
            "GET /mcp HTTP/1.0\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\n\
             accept: text/event-stream\r\nmcp-session-id: {session}\r\n{last_id}\r\n"
        );
        Self::open(address, request).await
    }

    /// A request, with these headers more.
    pub async fn request(
        address: SocketAddr,
        token: &str,
        revision: Revision,
        (method, mut params): (&str, Value),
        more: &[(&str, &str)],
    ) -> Self {
        let mut headers = format!("mcp-protocol-version: {}\r\n", revision.name());
        if revision == Revision::Newest {
            let meta = &mut params["_meta"];
            meta["io.modelcontextprotocol/protocolVersion"] = revision.name().into();
            if meta["io.modelcontextprotocol/clientCapabilities"].is_null() {
                meta["io.modelcontextprotocol/clientCapabilities"] = json!({});
            }
            headers += &format!("mcp-method: {method}\r\n");
            if let Some(name) = params["name"].as_str().or(params["uri"].as_str()) {
                headers += &format!("mcp-name: {name}\r\n");
            }
        }
        more.iter().for_each(|(name, value)| headers += &format!("{name}: {value}\r\n"));
        let body = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        let body = body.to_string();
        let request = format!(
            "POST /mcp HTTP/1.0\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\naccept: application/json, text/event-stream\r\n\
             {headers}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        Self::open(address, request).await
    }

    /// The next message; `None`: it has ended. An event without data has an id only.
    pub async fn next(&mut self) -> Option<Value> {
        let reading = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if let Some(id) = line.strip_prefix("id: ") {
                    self.last_id = Some(id.to_owned());
                }
                let data = line.strip_prefix("data:").map(str::trim).unwrap_or(&line);
                if data.starts_with('{') {
                    return Some(serde_json::from_str(data).unwrap());
                }
            }
            None
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("a message")
    }
}
