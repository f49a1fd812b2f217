//! One call of one model, by `genai`: always as a stream, so that its clocks, its cancellation and its bill are the same
//! whether or not somebody listens to the words as they come.

use std::time::Duration;

use futures_util::{Stream, StreamExt};
use genai::adapter::AdapterKind;
use genai::chat::{
    Binary, ChatMessage, ChatOptions, ChatRequest, ChatResponseFormat, ChatStreamEvent,
    ContentPart, JsonSpec, MessageContent, StopReason, StreamEnd, Tool, ToolResponse,
};
use genai::embed::EmbedOptions;
use genai::resolver::{AuthData, Endpoint};
use genai::{Client, ModelIden, ServiceTarget};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::failure::{Failure, FailureKind};
use super::options::{ProviderOptions, WireFormat};
use super::router::AnswerDelta;
use super::written;
use crate::kernel::chat::{
    AnswerEnd, Part, Prompt, PromptMessage, ToolCall, ToolSpec, Usage, estimated_tokens,
};

/// A longer answer than any `max_tokens` allows is none.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// How long the rest of a response is read, so that its connection serves the next call.
const DRAIN: Duration = Duration::from_secs(1);

/// How long each part of an answer may take.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    pub header: Duration,
    pub first_content: Duration,
    pub between: Duration,
}

/// Where a model is, and how it is spoken to.
#[derive(Clone)]
pub struct Target {
    service: ServiceTarget,
    /// Whether the model can call tools, and does not have to write what it wants to call.
    calls_tools: bool,
}

impl Target {
    pub fn new(provider: &ProviderOptions, model: &str) -> Self {
        let adapter = match provider.wire {
            WireFormat::Gemini => AdapterKind::Gemini,
            WireFormat::Anthropic => AdapterKind::Anthropic,
            WireFormat::OpenAi => AdapterKind::OpenAI,
            WireFormat::OpenRouter => AdapterKind::OpenRouter,
            WireFormat::Ollama => AdapterKind::Ollama,
        };
        let mut url = match provider.url.as_str() {
            "" => provider.wire.url().to_owned(),
            url => url.to_owned(),
        };
        if !url.ends_with('/') {
            url.push('/');
        }
        // The header is sent in any case; a server that takes no key does not look at it.
        let key = match provider.key.reveal().as_str() {
            "" => "none",
            key => key,
        };
        let service = ServiceTarget {
            endpoint: Endpoint::from_owned(url),
            auth: AuthData::from_single(key),
            model: ModelIden::new(adapter, model),
        };
        Self { service, calls_tools: true }
    }

    pub fn calling_tools(self, calls_tools: bool) -> Self {
        Self { calls_tools, ..self }
    }
}

/// What a model answered to one call.
#[derive(Debug)]
pub struct ModelAnswer {
    pub text: String,
    pub calls: Vec<ToolCall>,
    pub stop: AnswerEnd,
}

/// How far a call has come. What it has used is charged, however it ends.
#[derive(Debug, Default)]
pub struct AnswerProgress {
    /// The question is on its way, so its tokens are charged.
    pub is_sent: bool,
    text: String,
    other_bytes: usize,
    usage: Option<Usage>,
    /// Words have gone to the listener, who cannot unhear them.
    pub is_heard: bool,
}

impl AnswerProgress {
    /// What will be charged: the provider's own count, or else our estimate of what was sent and received.
    pub fn usage(&self, input: u64) -> Usage {
        let received = self.text.len() + self.other_bytes;
        self.usage.unwrap_or_else(|| match self.is_sent {
            true => Usage {
                input,
                output: estimated_tokens(received),
                is_estimate: true,
                ..Usage::default()
            },
            false => Usage::default(),
        })
    }
}

pub async fn call(
    client: &Client,
    target: &Target,
    prompt: &Prompt,
    clocks: Clocks,
    deadline: Instant,
    sink: Option<&mpsc::Sender<AnswerDelta>>,
    progress: &mut AnswerProgress,
) -> Result<ModelAnswer, Failure> {
    if prompt.messages.iter().flat_map(PromptMessage::parts).any(|one| one.photo_id().is_some()) {
        return Err(Failure::new(FailureKind::Invalid, "a photo was not put into the question"));
    }
    let is_written = !target.calls_tools && !prompt.tools.is_empty();
    let written = is_written.then(|| written::without_tools(prompt)).transpose()?;
    // A call that is written is no word for the listener.
    let (prompt, words_to) = match &written {
        Some(written) => (written, None),
        None => (prompt, sink),
    };
    let started = Instant::now();
    let options = options(prompt);
    // Nothing is sent before the stream is polled.
    let response = client.exec_chat_stream(target.service.clone(), request(prompt), Some(&options));
    let mut stream = response.await.map_err(|error| Failure::of(&error))?.stream;
    progress.is_sent = true;
    let mut limit = started + clocks.header;
    loop {
        let Ok(event) = timeout_at(limit.min(deadline), stream.next()).await else {
            return Err(Failure::new(FailureKind::Uncertain, "no answer in time"));
        };
        match event {
            // Whatever was said before it: an answer that does not end is none.
            None => return Err(Failure::new(FailureKind::Uncertain, "the stream broke off")),
            Some(Err(error)) => {
                let failure = Failure::of(&error);
                // A refusal is charged no more than a connection that was not made.
                progress.is_sent = !failure.kind.is_safe_to_repeat() || received(progress) > 0;
                return Err(failure);
            }
            Some(Ok(ChatStreamEvent::Start)) => limit = started + clocks.first_content,
            Some(Ok(ChatStreamEvent::Heartbeat)) => {}
            Some(Ok(ChatStreamEvent::Chunk(chunk))) if chunk.content.is_empty() => {}
            Some(Ok(ChatStreamEvent::Chunk(chunk))) => {
                progress.text.push_str(&chunk.content);
                if let Some(sink) = words_to {
                    progress.is_heard = true;
                    // A slow listener slows the provider. One that has gone ends the call.
                    let told =
                        timeout_at(deadline, sink.send(AnswerDelta::Text(chunk.content))).await;
                    if !matches!(told, Ok(Ok(()))) {
                        return Err(Failure::new(FailureKind::Uncertain, "nobody listens"));
                    }
                }
                limit = Instant::now() + clocks.between;
            }
            Some(Ok(
                ChatStreamEvent::ReasoningChunk(chunk)
                | ChatStreamEvent::ThoughtSignatureChunk(chunk),
            )) => {
                progress.other_bytes += chunk.content.len();
                limit = Instant::now() + clocks.between;
            }
            Some(Ok(ChatStreamEvent::ToolCallChunk(chunk))) => {
                progress.other_bytes += chunk.tool_call.fn_name.len();
                limit = Instant::now() + clocks.between;
            }
            Some(Ok(ChatStreamEvent::End(end))) => {
                progress.usage = end.captured_usage.as_ref().map(usage_of);
                drain(stream);
                let answer = answer(end, progress.text.clone())?;
                if written.is_none() {
                    return Ok(answer);
                }
                let answer = written::read(answer)?;
                if let Some(sink) = sink.filter(|_| !answer.text.is_empty()) {
                    progress.is_heard = true;
                    let _ = sink.send(AnswerDelta::Text(answer.text.clone())).await;
                }
                return Ok(answer);
            }
        }
        if received(progress) > MAX_ANSWER_BYTES {
            return Err(Failure::new(FailureKind::Uncertain, "the answer does not end"));
        }
    }
}

/// Vectors of texts, in their order.
pub async fn embed(
    client: &Client,
    target: &Target,
    texts: Vec<String>,
    dimensions: Option<usize>,
    limit: Instant,
    progress: &mut AnswerProgress,
) -> Result<Vec<Vec<f32>>, Failure> {
    let mut options = EmbedOptions::new().with_capture_usage(true);
    options.dimensions = dimensions;
    progress.is_sent = true;
    let asked = client.embed_batch(target.service.clone(), texts, Some(&options));
    let Ok(answer) = timeout_at(limit, asked).await else {
        return Err(Failure::new(FailureKind::Uncertain, "no answer in time"));
    };
    let answer = answer.map_err(|error| {
        let failure = Failure::of(&error);
        progress.is_sent = !failure.kind.is_safe_to_repeat();
        failure
    })?;
    progress.usage = answer.usage.prompt_tokens.is_some().then(|| usage_of(&answer.usage));
    let mut made = answer.embeddings;
    made.sort_by_key(|one| one.index);
    if made.iter().enumerate().any(|(n, one)| one.index != n) {
        return Err(Failure::new(FailureKind::Uncertain, "the answer cannot be read"));
    }
    Ok(made.into_iter().map(|one| one.vector).collect())
}

fn received(progress: &AnswerProgress) -> usize {
    progress.text.len() + progress.other_bytes
}

/// Reads what comes after the end, so that the connection can be used again.
fn drain(mut stream: impl Stream + Send + Unpin + 'static) {
    tokio::spawn(async move {
        let _ = tokio::time::timeout(DRAIN, async { while stream.next().await.is_some() {} }).await;
    });
}

fn answer(end: StreamEnd, text: String) -> Result<ModelAnswer, Failure> {
    let found = end.captured_content.map(MessageContent::into_tool_calls).unwrap_or_default();
    let calls: Vec<_> = found.into_iter().map(tool_call).collect();
    let stop = match end.captured_stop_reason {
        Some(StopReason::ContentFilter(_)) => {
            return Err(Failure::new(FailureKind::Policy, "the provider refused to answer"));
        }
        Some(StopReason::MaxTokens(_)) => AnswerEnd::MaxTokens,
        Some(StopReason::Other(_)) => {
            return Err(Failure::new(FailureKind::Uncertain, "the provider stopped by itself"));
        }
        _ if !calls.is_empty() => AnswerEnd::ToolCalls,
        None if text.is_empty() => {
            return Err(Failure::new(FailureKind::Uncertain, "the answer is empty"));
        }
        _ => AnswerEnd::Finished,
    };
    Ok(ModelAnswer { text, calls, stop })
}

/// `genai` counts as OpenAI does: what is cached is part of the prompt. Here each token is counted once.
fn usage_of(usage: &genai::chat::Usage) -> Usage {
    let count = |tokens: Option<i32>| u64::try_from(tokens.unwrap_or(0)).unwrap_or(0);
    let prompt = usage.prompt_tokens_details.as_ref();
    let cached_input = count(prompt.and_then(|details| details.cached_tokens));
    let cache_writes = count(prompt.and_then(|details| details.cache_creation_tokens));
    let completion = usage.completion_tokens_details.as_ref();
    Usage {
        input: count(usage.prompt_tokens).saturating_sub(cached_input + cache_writes),
        cached_input,
        cache_writes,
        output: count(usage.completion_tokens),
        reasoning: count(completion.and_then(|details| details.reasoning_tokens)),
        is_estimate: false,
    }
}

fn tool_call(call: genai::chat::ToolCall) -> ToolCall {
    ToolCall {
        id: call.call_id,
        name: call.fn_name,
        arguments: call.fn_arguments,
        signatures: call.thought_signatures.unwrap_or_default(),
    }
}

fn options(prompt: &Prompt) -> ChatOptions {
    let options = ChatOptions::default()
        .with_max_tokens(prompt.max_tokens)
        .with_capture_usage(true)
        .with_capture_tool_calls(true);
    let options = match prompt.temperature {
        Some(temperature) => options.with_temperature(temperature),
        None => options,
    };
    match &prompt.schema {
        Some(schema) => {
            let spec = JsonSpec::new("answer", schema.clone());
            options.with_response_format(ChatResponseFormat::JsonSpec(spec))
        }
        None => options,
    }
}

fn request(prompt: &Prompt) -> ChatRequest {
    let mut request = ChatRequest::new(prompt.messages.iter().map(message).collect());
    request.system.clone_from(&prompt.system);
    if !prompt.tools.is_empty() {
        request = request.with_tools(prompt.tools.iter().map(tool));
    }
    request
}

fn tool(spec: &ToolSpec) -> Tool {
    Tool::new(spec.name.as_str())
        .with_description(spec.description.as_str())
        .with_schema(spec.parameters.clone())
}

fn message(message: &PromptMessage) -> ChatMessage {
    match message {
        PromptMessage::User { parts } => {
            let parts: Vec<_> = parts.iter().filter_map(part).collect();
            ChatMessage::user(MessageContent::from_parts(parts))
        }
        PromptMessage::Assistant { text, calls } => {
            let mut content = MessageContent::default();
            if !text.is_empty() {
                content.push(ContentPart::from_text(text.as_str()));
            }
            for call in calls {
                content.push(ContentPart::ToolCall(genai::chat::ToolCall {
                    call_id: call.id.clone(),
                    fn_name: call.name.clone(),
                    fn_arguments: call.arguments.clone(),
                    thought_signatures: Some(call.signatures.clone()).filter(|s| !s.is_empty()),
                }));
            }
            ChatMessage::assistant(content)
        }
        PromptMessage::Tool { call_id, name, content } => {
            let response = ToolResponse::new(call_id.as_str(), content.as_str());
            ChatMessage::from(response.with_fn_name(name.as_str()))
        }
    }
}

fn part(part: &Part) -> Option<ContentPart> {
    Some(match part {
        Part::Text { text } => ContentPart::from_text(text.as_str()),
        Part::Image { media_type, data } => {
            ContentPart::Binary(Binary::from_base64(media_type.as_str(), data.clone(), None))
        }
        // No call has one.
        Part::Photo { .. } => return None,
    })
}
