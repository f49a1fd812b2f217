//! What the configuration says of models: `[ai]`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::kernel::chat::{Cost, Price};
use crate::kernel::secret::Secret;

/// The section `[ai]`. Without a provider there is no model but the local parser.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The route of calls that name none.
    pub route: String,
    /// All attempts of one call together.
    pub deadline_ms: u64,
    /// Until a provider answers at all.
    pub header_ms: u64,
    /// From the question to the first word; keep-alives are none.
    pub first_content_ms: u64,
    /// From one word to the next.
    pub between_ms: u64,
    /// HTTP calls for one question, whatever they were made for.
    pub max_calls: u32,
    /// What a person may spend a day, in US dollars, where an operator has not said otherwise. Empty: as much as they like.
    pub daily_limit: String,
    pub cache: AnswerOptions,
    pub semantic_cache: SemanticOptions,
    pub providers: BTreeMap<String, ProviderOptions>,
    pub models: BTreeMap<String, ModelOptions>,
    pub routes: BTreeMap<String, RouteOptions>,
    /// Outside servers whose tools agents may use.
    pub servers: BTreeMap<String, ServerOptions>,
    /// What makes vectors of memories: `words`, or one of `embedders`.
    pub embedder: String,
    pub embedders: BTreeMap<String, EmbedderOptions>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            route: "default".into(),
            deadline_ms: 60_000,
            header_ms: 15_000,
            first_content_ms: 20_000,
            between_ms: 10_000,
            max_calls: 4,
            daily_limit: "1".into(),
            cache: AnswerOptions::default(),
            semantic_cache: SemanticOptions::default(),
            providers: BTreeMap::new(),
            models: BTreeMap::new(),
            routes: BTreeMap::new(),
            servers: BTreeMap::new(),
            embedder: "words".into(),
            embedders: BTreeMap::new(),
        }
    }
}

impl Options {
    /// All that nobody outside of this node may see: of a header that has several words it is the last one.
    pub fn secrets(&self) -> Vec<Secret<String>> {
        let keys = self.providers.values().map(|provider| &provider.key);
        let servers = self.servers.values();
        let servers = servers.flat_map(|one| one.headers.values().chain(one.environment.values()));
        let last = |secret: &Secret<String>| {
            Secret::new(secret.reveal().rsplit(' ').next().unwrap_or_default().to_owned())
        };
        keys.chain(servers).filter(|secret| !secret.reveal().is_empty()).map(last).collect()
    }

    pub fn daily_limit(&self) -> Result<Option<Cost>, String> {
        match self.daily_limit.as_str() {
            "" => Ok(None),
            text => {
                let wrong = || format!("{text:?} is no amount; \"1.50\" would be one");
                Cost::parse(text).map(Some).ok_or_else(wrong)
            }
        }
    }
}

/// The section `[ai.cache]`: answers that are given again to the person who asks the same.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnswerOptions {
    /// For how long. 0: not at all.
    pub ttl_s: u64,
    /// Of all that this process keeps. 0: nothing is kept.
    pub max_bytes: u64,
    /// A longer answer is not kept.
    pub max_answer_bytes: usize,
}

impl Default for AnswerOptions {
    fn default() -> Self {
        Self { ttl_s: 3_600, max_bytes: 64 << 20, max_answer_bytes: 64 << 10 }
    }
}

/// The section `[ai.semantic_cache]`: answers that are given again to the person who asks what means the same.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SemanticOptions {
    pub enabled: bool,
    /// The cosine of two questions' vectors from which they mean the same.
    pub threshold: f32,
    pub ttl_s: u32,
    /// Answers of a person.
    pub max_per_person: i64,
    /// Answers of all.
    pub max: i64,
}

impl Default for SemanticOptions {
    fn default() -> Self {
        Self { enabled: false, threshold: 0.95, ttl_s: 3_600, max_per_person: 200, max: 100_000 }
    }
}

impl SemanticOptions {
    pub fn check(&self) -> Result<(), String> {
        if !(self.threshold > 0.0 && self.threshold <= 1.0) {
            return Err("threshold: must be more than 0, and 1 at most".into());
        }
        if self.max_per_person < 1 || self.max < 1 || self.ttl_s == 0 {
            return Err("ttl_s, max_per_person and max: must be at least 1".into());
        }
        Ok(())
    }
}

/// The protocol that a provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireFormat {
    Gemini,
    Anthropic,
    /// And all that is compatible: vLLM, llama.cpp, LM Studio.
    OpenAi,
    OpenRouter,
    Ollama,
}

impl WireFormat {
    /// Where its provider is, unless the configuration names another place.
    pub fn url(self) -> &'static str {
        match self {
            Self::Gemini => "https://generativelanguage.googleapis.com/v1beta/",
            Self::Anthropic => "https://api.anthropic.com/v1/",
            Self::OpenAi => "https://api.openai.com/v1/",
            Self::OpenRouter => "https://openrouter.ai/api/v1/",
            Self::Ollama => "http://localhost:11434/",
        }
    }

    /// The most that a picture counts as where its models are not said to count otherwise, by what the providers publish. It
    /// is for reserves; what was used is counted by the provider.
    pub fn image_tokens(self) -> u64 {
        match self {
            // 16 tiles of 768 pixels, 258 tokens each.
            Self::Gemini => 4_128,
            // Of models that see 2,576 pixels; a third of it for others.
            Self::Anthropic => 4_784,
            // 1,536 patches, which the smallest models count 2.46 times. Of 4o it is 8 tiles: 1,445.
            Self::OpenAi | Self::OpenRouter | Self::Ollama => 3_779,
        }
    }
}

/// Somebody who serves models.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderOptions {
    pub wire: WireFormat,
    #[serde(default)]
    pub url: String,
    /// Empty: it takes none.
    #[serde(default)]
    pub key: Secret<String>,
    /// Calls at the same time, of one node.
    #[serde(default = "concurrency")]
    pub concurrency: usize,
    /// Calls a second, of one node.
    #[serde(default = "per_second")]
    pub per_second: u32,
}

fn concurrency() -> usize {
    64
}

fn per_second() -> u32 {
    50
}

/// A model, and what it costs: US dollars for a million tokens, as `"0.30"`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelOptions {
    pub provider: String,
    /// What its provider calls it, where that is another name.
    #[serde(default)]
    pub id: String,
    pub input: String,
    /// Default: as `input`.
    #[serde(default)]
    pub cached_input: String,
    /// Default: as `input`.
    #[serde(default)]
    pub cache_writes: String,
    pub output: String,
    /// Tokens that it can read and write in one call.
    #[serde(default = "context")]
    pub context: u64,
    #[serde(default)]
    pub vision: bool,
    /// The most tokens that a picture counts as. Default: by the provider's wire.
    #[serde(default)]
    pub image_tokens: Option<u64>,
    /// Whether it can call tools. If not, it writes what it wants to call, under a JSON Schema.
    #[serde(default = "calls_tools")]
    pub tools: bool,
}

fn calls_tools() -> bool {
    true
}

fn context() -> u64 {
    128_000
}

impl ModelOptions {
    pub fn price(&self) -> Result<Price, String> {
        let read = |field: &str, text: &str| {
            let wrong = || format!("{field}: {text:?} is no price; \"0.30\" would be one");
            Cost::parse(text).ok_or_else(wrong)
        };
        let input = read("input", &self.input)?;
        let or_input = |field, text: &str| match text {
            "" => Ok(input),
            text => read(field, text),
        };
        Ok(Price {
            input,
            cached_input: or_input("cached_input", &self.cached_input)?,
            cache_writes: or_input("cache_writes", &self.cache_writes)?,
            output: read("output", &self.output)?,
        })
    }
}

/// A model that makes vectors of texts, and what it costs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbedderOptions {
    pub provider: String,
    /// What its provider calls it, where that is another name.
    #[serde(default)]
    pub id: String,
    pub dimensions: usize,
    /// US dollars for a million tokens.
    pub input: String,
    /// Texts in one call.
    #[serde(default = "batch")]
    pub batch: usize,
    /// Whether the provider is asked for so many dimensions, since it would make more.
    #[serde(default)]
    pub is_shortened: bool,
}

fn batch() -> usize {
    32
}

/// Which models are asked, in which order.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouteOptions {
    /// For questions that are simple: the cheap ones first.
    pub simple: Vec<String>,
    /// For the others.
    pub complex: Vec<String>,
    /// No call that could cost more, in US dollars.
    pub max_cost: String,
    /// A prompt of so many tokens is complex. Default: 2,000.
    pub complex_from_tokens: Option<u64>,
    /// Also with so many tools. Default: 4.
    pub complex_from_tools: Option<usize>,
}

/// An outside server of tools, which speaks MCP: at a URL, or a program of this machine.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerOptions {
    pub url: String,
    /// Sent with each request, such as `authorization`.
    pub headers: BTreeMap<String, Secret<String>>,
    /// A program and its arguments, which is spoken to over its standard input and output.
    pub command: Vec<String>,
    /// What that program sees of the environment, besides where programs are.
    pub environment: BTreeMap<String, Secret<String>>,
    /// The tools that a role of agents may use. Who is not named here may use none.
    pub roles: BTreeMap<String, Vec<String>>,
    /// Tools whose call may be repeated where nobody knows what has become of it. What the server says of that is not
    /// believed.
    pub repeatable: Vec<String>,
    /// Calls at the same time, of one node.
    pub concurrency: usize,
    /// A call with all that it takes.
    pub timeout_ms: u64,
    /// Of tools that take another time.
    pub timeouts_ms: BTreeMap<String, u64>,
    /// The most of a result that an agent reads.
    pub max_result_bytes: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            url: String::new(),
            headers: BTreeMap::new(),
            command: Vec::new(),
            environment: BTreeMap::new(),
            roles: BTreeMap::new(),
            repeatable: Vec::new(),
            concurrency: 8,
            timeout_ms: 30_000,
            timeouts_ms: BTreeMap::new(),
            max_result_bytes: 16_384,
        }
    }
}

impl ServerOptions {
    /// The longest that a call of any of its tools may take.
    pub fn longest(&self) -> Duration {
        let all = self.timeouts_ms.values().chain([&self.timeout_ms]);
        Duration::from_millis(all.copied().max().unwrap_or(self.timeout_ms))
    }

    pub fn timeout(&self, tool: &str) -> Duration {
        Duration::from_millis(*self.timeouts_ms.get(tool).unwrap_or(&self.timeout_ms))
    }
}
