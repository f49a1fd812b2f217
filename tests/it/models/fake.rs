//! A provider of models for tests. It speaks the wires of OpenAI, Anthropic and Gemini, does what its script says, and
//! keeps a journal of what it was asked and what it would charge.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::post;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use proxie::ai::Options;
use proxie::ai::options::{ModelOptions, ProviderOptions, WireFormat};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What the provider does with one call.
#[derive(Clone, Debug)]
pub enum Does {
    /// Says these pieces, that far apart, and counts its tokens.
    Says(Vec<&'static str>, Duration),
    /// Asks for a tool.
    Calls(&'static str, Value),
    /// Asks for several tools at once, over OpenAI's wire.
    CallsAll(Vec<(&'static str, Value)>),
    /// What follows from the question.
    Decides(fn(&Value) -> Does),
    /// Answers with a status, a body and `Retry-After`.
    Refuses(u16, &'static str, Option<&'static str>),
    /// Says a piece and closes, with no sign of an end.
    BreaksOff(&'static str),
    /// Says a piece and drops the connection.
    Drops(&'static str),
    /// Takes the question and never answers.
    Silent,
    /// Answers at once, with keep-alives only.
    KeepsAlive,
    /// Says a piece and then nothing more.
    Stalls(&'static str),
    /// Answers with what is no JSON.
    Garbles,
    /// Its content policy.
    Filters,
    /// Says a piece and has used up its tokens.
    Cuts(&'static str),
}

impl Does {
    pub fn say(text: &'static str) -> Self {
        Self::Says(vec![text], Duration::ZERO)
    }
}

/// A call that has reached the provider.
#[derive(Clone, Debug)]
pub struct Asked {
    pub model: String,
    pub body: Value,
    pub key: Option<String>,
}

/// What the fake counts for each answer that it finishes.
pub const INPUT: u64 = 1_000;
pub const CACHED: u64 = 400;
pub const OUTPUT: u64 = 50;

/// One model, `gpt`, at a provider with OpenAI's wire. It costs $10 for a million tokens of output.
pub fn one_model(url: String, concurrency: usize, per_second: u32) -> Options {
    let mut options = Options::default();
    let provider = ProviderOptions {
        wire: WireFormat::OpenAi,
        url,
        key: "sk-secret".into(),
        concurrency,
        per_second,
    };
    options.providers.insert("fake".into(), provider);
    let model = ModelOptions {
        provider: "fake".into(),
        id: String::new(),
        input: "0".into(),
        cached_input: String::new(),
        cache_writes: String::new(),
        output: "10".into(),
        context: 100_000,
        vision: false,
        image_tokens: None,
        tools: true,
    };
    options.models.insert("gpt".into(), model);
    options
}

#[derive(Default)]
struct Inner {
    script: Mutex<VecDeque<Does>>,
    otherwise: Mutex<Option<Does>>,
    journal: Mutex<Vec<Asked>>,
    /// Responses whose stream was dropped before its end.
    hung_up: Mutex<u32>,
    /// Texts whose vectors were asked for.
    embedded: Mutex<Vec<String>>,
    embeds: Mutex<Embeds>,
}

/// What it does when it is asked for vectors.
#[derive(Clone, Copy, Debug, Default)]
pub struct Embeds {
    pub after: Duration,
    /// Answers with this status instead.
    pub refuses: Option<u16>,
    /// One dimension too few.
    pub is_short: bool,
}

#[derive(Clone)]
pub struct Fake {
    inner: Arc<Inner>,
    port: u16,
}

impl Fake {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let inner = Arc::<Inner>::default();
        let app = Router::new()
            .route("/v1/chat/completions", post(open_ai))
            .route("/v1/embeddings", post(embeddings))
            .route("/v1/messages", post(anthropic))
            .route("/v1beta/models/{call}", post(gemini))
            .with_state(inner.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { inner, port }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}/", self.port)
    }

    /// What it does with the next calls, one after the other.
    pub fn script(&self, does: impl IntoIterator<Item = Does>) {
        self.inner.script.lock().extend(does);
    }

    /// What it does with calls that the script does not name.
    pub fn otherwise(&self, does: Does) {
        *self.inner.otherwise.lock() = Some(does);
    }

    pub fn journal(&self) -> Vec<Asked> {
        self.inner.journal.lock().clone()
    }

    pub fn asked(&self) -> Vec<String> {
        self.journal().into_iter().map(|asked| asked.model).collect()
    }

    pub fn embeds(&self, embeds: Embeds) {
        *self.inner.embeds.lock() = embeds;
    }

    pub fn embedded(&self) -> Vec<String> {
        self.inner.embedded.lock().clone()
    }

    pub fn hung_up(&self) -> u32 {
        *self.inner.hung_up.lock()
    }
}

impl Inner {
    async fn next(&self, model: &str, body: Value, key: Option<String>) -> Does {
        let asked = Asked { model: model.into(), body, key };
        self.journal.lock().push(asked.clone());
        let scripted = self.script.lock().pop_front();
        let does = scripted.or_else(|| self.otherwise.lock().clone());
        let does = match does.unwrap_or(Does::say("yes")) {
            Does::Decides(decide) => decide(&asked.body),
            does => does,
        };
        if matches!(does, Does::Silent) {
            std::future::pending::<()>().await;
        }
        does
    }
}

/// The frames of one wire.
struct Frames {
    text: fn(&str) -> String,
    tool: fn(usize, &str, &Value) -> String,
    end: fn(&str) -> String,
    stop: &'static str,
    cut: &'static str,
    tool_stop: &'static str,
    filtered: &'static str,
}

fn key(headers: &HeaderMap) -> Option<String> {
    let named = ["authorization", "x-api-key", "x-goog-api-key"];
    named.iter().find_map(|name| Some(headers.get(*name)?.to_str().ok()?.to_owned()))
}

async fn open_ai(
    State(inner): State<Arc<Inner>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["stream_options"]["include_usage"], true, "usage is asked for");
    let model = body["model"].as_str().unwrap_or_default().to_owned();
    let does = inner.next(&model, body, key(&headers)).await;
    const FRAMES: Frames = Frames {
        text: |text| data(&json!({"choices": [{"index": 0, "delta": {"content": text}}]})),
        tool: |n, name, arguments| {
            let function = json!({"name": name, "arguments": arguments.to_string()});
            let id = format!("call_{}", n + 1);
            let call = json!({"index": n, "id": id, "type": "function", "function": function});
            data(&json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}))
        },
        end: |reason| {
            let finish = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]});
            let usage = json!({
                "prompt_tokens": INPUT,
                "completion_tokens": OUTPUT,
                "total_tokens": INPUT + OUTPUT,
                "prompt_tokens_details": {"cached_tokens": CACHED},
            });
            let counted = json!({"choices": [], "usage": usage});
            data(&finish) + &data(&counted) + "data: [DONE]\n\n"
        },
        stop: "stop",
        cut: "length",
        tool_stop: "tool_calls",
        filtered: "content_filter",
    };
    answer(inner, does, FRAMES)
}

/// Vectors by the letters of the texts, of as many dimensions as the model's name ends on.
async fn embeddings(State(inner): State<Arc<Inner>>, body: Bytes) -> Response<Body> {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let model = body["model"].as_str().unwrap();
    let dimensions: usize = model.rsplit('-').next().unwrap().parse().unwrap();
    let texts: Vec<String> = serde_json::from_value(body["input"].clone()).unwrap();
    inner.embedded.lock().extend(texts.iter().cloned());
    let Embeds { after, refuses, is_short } = *inner.embeds.lock();
    tokio::time::sleep(after).await;
    let response = Response::builder().header("content-type", "application/json");
    if let Some(status) = refuses {
        return response.status(status).body(Body::from("{}")).unwrap();
    }
    let vector = |text: &str| {
        let mut vector = vec![0.01; dimensions];
        for word in text.to_lowercase().split(|c: char| !c.is_alphanumeric()) {
            let sum =
                word.bytes().fold(7usize, |sum, byte| sum.wrapping_mul(31) + usize::from(byte));
            vector[sum % dimensions] += word.len() as f32;
        }
        vector.truncate(dimensions - usize::from(is_short));
        vector
    };
    let made = texts.iter().enumerate();
    // In another order than asked, as the wire allows.
    let made =
        made.map(|(n, text)| json!({"object": "embedding", "index": n, "embedding": vector(text)}));
    let mut made: Vec<Value> = made.collect();
    made.reverse();
    let tokens = 10 * texts.len();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    let answer = json!({"object": "list", "data": made, "model": model, "usage": usage});
    response.body(Body::from(answer.to_string())).unwrap()
}

async fn anthropic(
    State(inner): State<Arc<Inner>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let model = body["model"].as_str().unwrap_or_default().to_owned();
    let does = inner.next(&model, body, key(&headers)).await;
    const START: &str = "event: message_start\n";
    const FRAMES: Frames = Frames {
        text: |text| {
            let usage = json!({
                "input_tokens": INPUT - CACHED, "cache_read_input_tokens": CACHED, "output_tokens": 1,
            });
            let message = json!({"type": "message_start", "message": {"id": "m", "usage": usage}});
            let block = json!({
                "type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""},
            });
            let delta = json!({
                "type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text},
            });
            START.to_owned()
                + &data(&message)
                + "event: content_block_start\n"
                + &data(&block)
                + "event: content_block_delta\n"
                + &data(&delta)
        },
        tool: |_, name, arguments| {
            let usage = json!({
                "input_tokens": INPUT - CACHED, "cache_read_input_tokens": CACHED, "output_tokens": 1,
            });
            let message = json!({"type": "message_start", "message": {"id": "m", "usage": usage}});
            let content = json!({"type": "tool_use", "id": "call_1", "name": name, "input": {}});
            let block =
                json!({"type": "content_block_start", "index": 0, "content_block": content});
            let delta = json!({"type": "input_json_delta", "partial_json": arguments.to_string()});
            let delta = json!({"type": "content_block_delta", "index": 0, "delta": delta});
            START.to_owned()
                + &data(&message)
                + "event: content_block_start\n"
                + &data(&block)
                + "event: content_block_delta\n"
                + &data(&delta)
                + "event: content_block_stop\n"
                + &data(&json!({"type": "content_block_stop", "index": 0}))
        },
        end: |reason| {
            let delta = json!({
                "type": "message_delta",
                "delta": {"stop_reason": reason},
                "usage": {"output_tokens": OUTPUT},
            });
            "event: message_delta\n".to_owned()
                + &data(&delta)
                + "event: message_stop\n"
                + &data(&json!({"type": "message_stop"}))
        },
        stop: "end_turn",
        cut: "max_tokens",
        tool_stop: "tool_use",
        filtered: "refusal",
    };
    answer(inner, does, FRAMES)
}

async fn gemini(
    State(inner): State<Arc<Inner>>,
    Path(call): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let (model, method) = call.split_once(':').unwrap();
    assert_eq!(method, "streamGenerateContent");
    let does = inner.next(model, serde_json::from_slice(&body).unwrap(), key(&headers)).await;
    const FRAMES: Frames = Frames {
        text: |text| data(&json!({"candidates": [{"content": {"parts": [{"text": text}]}}]})),
        tool: |_, name, arguments| {
            let part = json!({"functionCall": {"name": name, "args": arguments}});
            data(&json!({"candidates": [{"content": {"parts": [part]}}]}))
        },
        end: |reason| {
            let usage = json!({
                "promptTokenCount": INPUT,
                "cachedContentTokenCount": CACHED,
                "candidatesTokenCount": OUTPUT - 10,
                "thoughtsTokenCount": 10,
                "totalTokenCount": INPUT + OUTPUT,
            });
            let candidate = json!({"content": {"parts": [{"text": ""}]}, "finishReason": reason});
            data(&json!({"candidates": [candidate], "usageMetadata": usage}))
        },
        stop: "STOP",
        cut: "MAX_TOKENS",
        tool_stop: "STOP",
        filtered: "SAFETY",
    };
    answer(inner, does, FRAMES)
}

fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn answer(inner: Arc<Inner>, does: Does, frames: Frames) -> Response<Body> {
    let pause = Duration::from_secs(3_600);
    let (text, end) = (frames.text, frames.end);
    // Each piece after its pause. `None` drops the connection.
    let pieces: Vec<(Duration, Option<String>)> = match does {
        Does::Refuses(status, body, retry_after) => {
            let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
            if let Some(after) = retry_after {
                response = response.header("retry-after", after);
            }
            return response.body(Body::from(body)).unwrap();
        }
        Does::Silent => unreachable!("the handler never answers"),
        Does::Says(said, apart) => {
            let mut pieces: Vec<_> = said.iter().map(|one| (apart, Some(text(one)))).collect();
            pieces.push((Duration::ZERO, Some(end(frames.stop))));
            pieces
        }
        Does::Calls(name, arguments) => vec![
            (Duration::ZERO, Some((frames.tool)(0, name, &arguments))),
            (Duration::ZERO, Some(end(frames.tool_stop))),
        ],
        Does::CallsAll(calls) => {
            let calls = calls.iter().enumerate();
            let calls = calls.map(|(n, (name, arguments))| (frames.tool)(n, name, arguments));
            let pieces = calls.chain([end(frames.tool_stop)]);
            pieces.map(|piece| (Duration::ZERO, Some(piece))).collect()
        }
        Does::Decides(_) => unreachable!("it was decided"),
        Does::BreaksOff(said) => vec![(Duration::ZERO, Some(text(said)))],
        Does::Drops(said) => vec![(Duration::ZERO, Some(text(said))), (Duration::ZERO, None)],
        Does::KeepsAlive => {
            let alive = (Duration::from_millis(20), Some(": keep-alive\n\n".to_owned()));
            vec![alive; 10_000]
        }
        Does::Stalls(said) => {
            vec![(Duration::ZERO, Some(text(said))), (pause, Some(String::new()))]
        }
        Does::Garbles => vec![(Duration::ZERO, Some("data: {\"choices\": [{malformed\n\n".into()))],
        Does::Cuts(said) => {
            vec![(Duration::ZERO, Some(text(said))), (Duration::ZERO, Some(end(frames.cut)))]
        }
        Does::Filters => vec![(Duration::ZERO, Some(end(frames.filtered)))],
    };
    streamed(inner, pieces)
}

/// Counts responses that nobody reads to their end.
struct Open {
    inner: Arc<Inner>,
    is_open: bool,
}

impl Open {
    fn set(&mut self, is_open: bool) {
        self.is_open = is_open;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.is_open {
            *self.inner.hung_up.lock() += 1;
        }
    }
}

fn streamed(inner: Arc<Inner>, pieces: Vec<(Duration, Option<String>)>) -> Response<Body> {
    let mut open = Open { inner, is_open: true };
    let last = pieces.len();
    let frames = stream::iter(pieces.into_iter().enumerate()).then(async |(n, (pause, piece))| {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        (n, piece)
    });
    let body = frames.map(move |(n, piece)| {
        open.set(n + 1 < last);
        piece.map(Bytes::from).ok_or_else(|| std::io::Error::other("dropped"))
    });
    let response = Response::builder().header("content-type", "text/event-stream");
    response.body(Body::from_stream(body)).unwrap()
}
