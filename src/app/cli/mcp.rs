//! `proxie mcp`: the door for agents over standard input and output, for hosts that start their servers themselves. Each
//! message goes to a node's `/mcp`; the node does the rest.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use parking_lot::Mutex;
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use super::Speaker;
use crate::config::Config;

/// The longest line that is read, with what a body may have at most around it.
const MAX_LINE: u64 = 4 << 20;
/// Requests that a node answers at the same time; more wait in the input.
const MAX_IN_FLIGHT: usize = 16;
const TIMEOUT: Duration = Duration::from_secs(120);

struct Bridge {
    web: reqwest::Client,
    url: String,
    config: Config,
    speaker: Speaker,
    /// Whether the token is ours to mint again.
    minted: bool,
    token: Mutex<String>,
    /// The revision that `initialize` has agreed on.
    revision: Mutex<Option<String>>,
}

pub async fn run(config: &Config, speaker: Speaker) -> anyhow::Result<()> {
    let given = std::env::var("PROXIE_TOKEN").ok();
    let minted = given.is_none();
    let token = match given {
        Some(token) => token,
        None => speaker.mint(config).await?,
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let web = reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(5))
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .context("no client for the node")?;
    let bridge = Arc::new(Bridge {
        web,
        url: format!("{}/mcp", speaker.address(config).trim_end_matches('/')),
        config: config.clone(),
        speaker,
        minted,
        token: Mutex::new(token),
        revision: Mutex::default(),
    });
    let (answers, written) = mpsc::channel::<Value>(64);
    let writer = tokio::spawn(write(written));
    read(bridge, answers).await?;
    writer.await.context("the output ended")?
}

async fn write(mut answers: mpsc::Receiver<Value>) -> anyhow::Result<()> {
    let mut output = tokio::io::stdout();
    while let Some(answer) = answers.recv().await {
        output.write_all(format!("{answer}\n").as_bytes()).await?;
        output.flush().await?;
    }
    Ok(())
}

/// Reads requests until the input ends, and waits for the answers that are still due.
async fn read(bridge: Arc<Bridge>, answers: mpsc::Sender<Value>) -> anyhow::Result<()> {
    let mut input = BufReader::new(tokio::io::stdin());
    let permits = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    let mut tasks = JoinSet::new();
    let mut in_flight = HashMap::<String, AbortHandle>::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut input).take(MAX_LINE).read_until(b'\n', &mut line).await? == 0 {
            break;
        }
        while tasks.try_join_next().is_some() {}
        in_flight.retain(|_, task| !task.is_finished());
        if line.len() as u64 == MAX_LINE && !line.ends_with(b"\n") {
            anyhow::bail!("a message has more than {MAX_LINE} bytes");
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let message: Value = match serde_json::from_slice(&line) {
            Ok(message) => message,
            Err(error) => {
                answers.send(failed(&Value::Null, -32_700, &error.to_string(), None)).await?;
                continue;
            }
        };
        match (message.get("id"), message["method"].as_str()) {
            (None, Some("notifications/cancelled")) => {
                if let Some(task) = in_flight.remove(&message["params"]["requestId"].to_string()) {
                    task.abort();
                }
            }
            (Some(id), Some(_)) => {
                let id = id.to_string();
                let permit = permits.clone().acquire_owned().await?;
                let (bridge, answers) = (bridge.clone(), answers.clone());
                let task = tasks.spawn(async move {
                    let answer = bridge.ask(&message).await;
                    let _ = answers.send(answer).await;
                    drop(permit);
                });
                in_flight.insert(id, task);
            }
            // Other notifications change nothing at a node, and it asks nothing that could be answered.
            _ => {}
        }
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

fn failed(id: &Value, code: i32, message: &str, data: Option<Value>) -> Value {
    let mut error = json!({"code": code, "message": message});
    if let Some(data) = data {
        error["data"] = data;
    }
    json!({"jsonrpc": "2.0", "id": id, "error": error})
}

impl Bridge {
    /// The node's answer to a request, or why there is none.
    async fn ask(&self, message: &Value) -> Value {
        let mut answered = self.post(message).await;
        if self.minted && matches!(&answered, Ok((StatusCode::UNAUTHORIZED, _))) {
            // The token has expired, or the key is another one now. Nothing was done yet.
            match self.speaker.mint(&self.config).await {
                Ok(token) => *self.token.lock() = token,
                Err(error) => tracing::warn!(%error, "no new token"),
            }
            answered = self.post(message).await;
        }
        let (status, body) = match answered {
            Ok(answered) => answered,
            Err(error) => {
                let why = format!("{} cannot be reached: {error:#}", self.url);
                return failed(&message["id"], -32_603, &why, None);
            }
        };
        match serde_json::from_slice::<Value>(&body) {
            Ok(answer) if answer["jsonrpc"] == "2.0" => {
                if message["method"] == "initialize"
                    && let Some(revision) = answer["result"]["protocolVersion"].as_str()
                {
                    *self.revision.lock() = Some(revision.to_owned());
                }
                answer
            }
            Ok(problem) => {
                let detail = problem["detail"].as_str().unwrap_or("the node refused the request");
                failed(&message["id"], -32_603, detail, Some(problem.clone()))
            }
            Err(_) => failed(&message["id"], -32_603, &format!("the node answered {status}"), None),
        }
    }

    async fn post(&self, message: &Value) -> anyhow::Result<(StatusCode, Vec<u8>)> {
        let mut request = self
            .web
            .post(&self.url)
            .bearer_auth(&*self.token.lock())
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json, text/event-stream");
        let params = &message["params"];
        // A revision that each request names also has these headers, which proxies route by.
        let named = params["_meta"]["io.modelcontextprotocol/protocolVersion"].as_str();
        if named.is_some() {
            request = request.header("mcp-method", message["method"].as_str().unwrap_or_default());
            if let Some(name) = params["name"].as_str().or(params["uri"].as_str()) {
                request = request.header("mcp-name", name);
            }
        }
        let revision = named.map(str::to_owned).or_else(|| self.revision.lock().clone());
        if let Some(revision) = revision {
            request = request.header("mcp-protocol-version", revision);
        }
        let response = request.body(message.to_string()).send().await?;
        let status = response.status();
        Ok((status, response.bytes().await?.to_vec()))
    }
}
