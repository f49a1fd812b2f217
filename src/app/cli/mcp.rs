//! `proxie mcp`: the door for agents over standard input and output, for hosts that start their servers themselves. Each
//! message goes to a node's `/mcp`; the node does the rest.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use parking_lot::Mutex;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use sse_stream::SseStream;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use super::Speaker;
use crate::config::Config;

/// The longest line that is read, with what a body may have at most around it.
const MAX_LINE: u64 = 4 << 20;
/// Requests that a node answers at the same time, and those that wait for it.
const MAX_IN_FLIGHT: usize = 16;
const MAX_WAITING: usize = 256;
/// How long a node may say nothing. A stream says something more often, if only that it is there.
const SILENCE: Duration = Duration::from_secs(120);
/// Before a stream of the session that has ended is opened again.
const PAUSE: Duration = Duration::from_secs(1);
const SESSION_ID: &str = "mcp-session-id";

struct Bridge {
    web: reqwest::Client,
    url: String,
    config: Config,
    speaker: Speaker,
    /// Whether the token is ours to mint again.
    minted: bool,
    token: Mutex<String>,
    /// The revision that `initialize` has agreed on, and the session that it has opened.
    revision: Mutex<Option<String>>,
    session: Mutex<Option<String>>,
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
        .read_timeout(SILENCE)
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
        session: Mutex::default(),
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
    let mut listening: Option<AbortHandle> = None;
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
            (None, Some("notifications/initialized")) if bridge.session.lock().is_some() => {
                let (bridge, answers) = (bridge.clone(), answers.clone());
                let stream = tokio::spawn(async move { bridge.listen(&answers).await });
                if let Some(before) = listening.replace(stream.abort_handle()) {
                    before.abort();
                }
            }
            (Some(id), Some(_)) if tasks.len() >= MAX_WAITING => {
                answers.send(failed(id, -32_603, "too many requests at once", None)).await?;
            }
            (Some(id), Some(_)) => {
                let id = id.to_string();
                let (bridge, answers, permits) = (bridge.clone(), answers.clone(), permits.clone());
                let task = tasks.spawn(async move {
                    // It waits here and not in the input, where the answer may be that a request waits for.
                    let _permit = permits.acquire_owned().await;
                    bridge.ask(&message, &answers).await;
                });
                in_flight.insert(id, task);
            }
            // An answer to a question of the node.
            (Some(_), None) if tasks.len() < MAX_WAITING => {
                let bridge = bridge.clone();
                tasks.spawn(async move {
                    if let Err(error) = bridge.post(&message).await {
                        tracing::warn!(%error, "an answer did not reach the node");
                    }
                });
            }
            // Other notifications change nothing at a node.
            _ => {}
        }
    }
    while tasks.join_next().await.is_some() {}
    if let Some(listening) = listening {
        listening.abort();
    }
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
    /// Passes on what the node says to a request, and why it has no answer if there is none.
    async fn ask(&self, message: &Value, answers: &mpsc::Sender<Value>) {
        let mut answered = self.post(message).await;
        if self.minted
            && answered.as_ref().is_ok_and(|one| one.status() == StatusCode::UNAUTHORIZED)
        {
            // The token has expired, or the key is another one now. Nothing was done yet.
            match self.speaker.mint(&self.config).await {
                Ok(token) => *self.token.lock() = token,
                Err(error) => tracing::warn!(%error, "no new token"),
            }
            answered = self.post(message).await;
        }
        let id = &message["id"];
        let answer = match answered {
            Err(error) => {
                let why = format!("{} cannot be reached: {error:#}", self.url);
                failed(id, -32_603, &why, None)
            }
            Ok(response) if is_stream(response.headers()) => {
                match pass_on(response, answers, Some(id), &mut None).await {
                    true => return,
                    false => failed(id, -32_603, "the node's answer has ended too early", None),
                }
            }
            Ok(response) => self.whole(message, response).await,
        };
        let _ = answers.send(answer).await;
    }

    /// An answer that is no stream.
    async fn whole(&self, message: &Value, response: Response) -> Value {
        let id = &message["id"];
        let status = response.status();
        let session = response.headers().get(SESSION_ID).and_then(|it| it.to_str().ok());
        let session = session.map(str::to_owned);
        let body = match response.bytes().await {
            Ok(body) => body,
            Err(error) => return failed(id, -32_603, &format!("the answer ends: {error}"), None),
        };
        match serde_json::from_slice::<Value>(&body) {
            Ok(answer) if answer["jsonrpc"] == "2.0" => {
                if message["method"] == "initialize"
                    && let Some(revision) = answer["result"]["protocolVersion"].as_str()
                {
                    *self.revision.lock() = Some(revision.to_owned());
                    *self.session.lock() = session;
                }
                answer
            }
            Ok(problem) => {
                let detail = problem["detail"].as_str().unwrap_or("the node refused the request");
                failed(id, -32_603, detail, Some(problem.clone()))
            }
            Err(_) => failed(id, -32_603, &format!("the node answered {status}"), None),
        }
    }

    /// Passes on what the session's stream says, and opens it again where it has ended.
    async fn listen(&self, answers: &mpsc::Sender<Value>) {
        let mut last_id = None;
        loop {
            let Some(session) = self.session.lock().clone() else { return };
            let mut request = self
                .web
                .get(&self.url)
                .bearer_auth(&*self.token.lock())
                .header(ACCEPT, "text/event-stream")
                .header(SESSION_ID, session);
            if let Some(id) = &last_id {
                request = request.header("last-event-id", id);
            }
            match request.send().await {
                Ok(response) if is_stream(response.headers()) => {
                    pass_on(response, answers, None, &mut last_id).await;
                }
                Ok(response) if response.status() == StatusCode::METHOD_NOT_ALLOWED => return,
                Ok(response) => tracing::debug!(status = %response.status(), "no stream"),
                Err(error) => tracing::debug!(%error, "no stream"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn post(&self, message: &Value) -> anyhow::Result<Response> {
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
        } else if let Some(session) = self.session.lock().clone() {
            request = request.header(SESSION_ID, session);
        }
        let revision = named.map(str::to_owned).or_else(|| self.revision.lock().clone());
        if let Some(revision) = revision {
            request = request.header("mcp-protocol-version", revision);
        }
        Ok(request.body(message.to_string()).send().await?)
    }
}

fn is_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(|kind| kind.as_bytes());
    kind.is_some_and(|kind| kind.starts_with(b"text/event-stream"))
}

/// Passes on the messages of a stream until it ends. Whether the answer to `id` was among them.
async fn pass_on(
    response: Response,
    answers: &mpsc::Sender<Value>,
    id: Option<&Value>,
    last_id: &mut Option<String>,
) -> bool {
    let mut events = SseStream::from_bytes_stream(response.bytes_stream());
    let mut is_answered = false;
    while let Some(Ok(event)) = events.next().await {
        if event.id.is_some() {
            *last_id = event.id;
        }
        let Some(message) = event.data.as_deref().and_then(|data| serde_json::from_str(data).ok())
        else {
            continue;
        };
        let message: Value = message;
        is_answered |= message.get("method").is_none() && id == message.get("id");
        if answers.send(message).await.is_err() {
            break;
        }
    }
    is_answered
}
