//! The door for agents over HTTP, in both revisions of the protocol.

mod asking;
mod content;
mod manifests;
mod nodes;
pub mod outside;
mod resources;
mod rights;
mod stdio;
mod streams;
mod tools;

#[path = "../../../examples/conformance/system.rs"]
mod system;

use proxie::kernel::entity::Role;
use serde_json::{Value, json};

use crate::edges::{Answer, Http, TestNode};

/// A revision of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revision {
    /// Each request says everything itself.
    Newest,
    /// A client begins with `initialize`.
    Before,
}

impl Revision {
    pub const BOTH: [Self; 2] = [Self::Newest, Self::Before];

    pub fn name(self) -> &'static str {
        match self {
            Self::Newest => "2026-07-28",
            Self::Before => "2025-11-25",
        }
    }
}

/// An agent that speaks one revision.
#[derive(Clone)]
pub struct Agent {
    pub http: Http,
    pub revision: Revision,
}

impl Agent {
    pub fn new(http: Http, revision: Revision) -> Self {
        Self { http, revision }
    }

    pub async fn send(&self, method: &str, mut params: Value, headers: &[(&str, &str)]) -> Answer {
        if self.revision == Revision::Newest {
            params["_meta"]["io.modelcontextprotocol/protocolVersion"] =
                self.revision.name().into();
            params["_meta"]["io.modelcontextprotocol/clientInfo"] =
                json!({"name": "test", "version": "1"});
            let capabilities = &mut params["_meta"]["io.modelcontextprotocol/clientCapabilities"];
            if capabilities.is_null() {
                *capabilities = json!({});
            }
        }
        let name =
            params["name"].as_str().or(params["uri"].as_str()).unwrap_or_default().to_owned();
        let mut all = vec![
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
        ];
        if method != "initialize" {
            all.push(("mcp-protocol-version", self.revision.name()));
        }
        if self.revision == Revision::Newest {
            all.push(("mcp-method", method));
            if !name.is_empty() {
                all.push(("mcp-name", &name));
            }
        }
        all.extend(headers);
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        self.http.send("POST", "/mcp", &all, body.to_string().as_bytes()).await
    }

    /// The result of a request that succeeds.
    pub async fn ask(&self, method: &str, params: Value) -> Value {
        let answer = self.send(method, params, &[]).await;
        assert_eq!(answer.status, 200, "{method}: {}", answer.text);
        let mut answer = answer.json();
        assert!(answer["result"].is_object(), "{method}: {answer}");
        answer["result"].take()
    }

    /// The error of a request that is refused.
    pub async fn refused(&self, method: &str, params: Value) -> Value {
        let mut answer = self.send(method, params, &[]).await.json();
        assert!(answer["error"].is_object(), "{method}: {answer}");
        answer["error"].take()
    }

    pub async fn call(&self, tool: &str, arguments: Value) -> Value {
        self.ask("tools/call", json!({"name": tool, "arguments": arguments})).await
    }

    /// The answer of a tool.
    pub async fn done(&self, tool: &str, arguments: Value) -> Value {
        let result = self.call(tool, arguments).await;
        assert_eq!(result["isError"], false, "{tool}: {result}");
        let text: Value =
            serde_json::from_str(result["content"][0]["text"].as_str().unwrap()).unwrap();
        assert_eq!(text, result["structuredContent"], "both say the same");
        text
    }

    /// The problem that a tool answers.
    pub async fn problem(&self, tool: &str, arguments: Value) -> Value {
        let result = self.call(tool, arguments).await;
        assert_eq!(result["isError"], true, "{tool}: {result}");
        let text: Value =
            serde_json::from_str(result["content"][0]["text"].as_str().unwrap()).unwrap();
        assert_eq!(text, result["_meta"]["proxie/problem"], "both say the same");
        text
    }

    pub async fn tools(&self) -> Vec<String> {
        let result = self.ask("tools/list", json!({})).await;
        let tools = result["tools"].as_array().unwrap();
        tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    }
}

impl TestNode {
    fn agent(&self, user: &str, revision: Revision) -> Agent {
        Agent::new(self.user(user), revision)
    }

    /// An agent whose token has these scopes only.
    fn limited(&self, user: &str, scopes: &str) -> Agent {
        let auth = &self.node.gateway().auth;
        let now = proxie::kernel::clock::Clock::System.now();
        let token = auth.mint_for(user, Role::Consumer, None, Some(scopes), now, 3_600);
        Agent::new(Http { address: self.node.address, token: Some(token) }, Revision::Newest)
    }
}

const WISH: &str =
    "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros";
