//! Conversations with language models, as values: what is asked, what is answered, and what that cost.

use std::fmt::{self, Display};
use std::ops::AddAssign;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One question to a model: all that it is to know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// What the model is told about its part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65_536))]
    pub system: Option<String>,
    #[schemars(length(min = 1, max = 1_000))]
    pub messages: Vec<PromptMessage>,
    /// What the model may call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub tools: Vec<ToolSpec>,
    /// How long the answer may be. Default: 1,024.
    #[serde(default = "max_tokens")]
    #[schemars(range(min = 1, max = 65_536))]
    pub max_tokens: u32,
    /// Default: the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2))]
    pub temperature: Option<f64>,
    /// A JSON Schema that the answer's text is to match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
}

fn max_tokens() -> u32 {
    1_024
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "role", rename_all = "snake_case", deny_unknown_fields)]
pub enum PromptMessage {
    User {
        #[schemars(length(min = 1, max = 64))]
        parts: Vec<Part>,
    },
    Assistant {
        #[serde(default, skip_serializing_if = "String::is_empty")]
        text: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        calls: Vec<ToolCall>,
    },
    /// The outcome of a call, which is data and no instruction.
    Tool { call_id: String, name: String, content: String },
}

impl PromptMessage {
    pub fn user(text: impl Into<String>) -> Self {
        Self::User { parts: vec![Part::Text { text: text.into() }] }
    }

    /// What a person said or showed with it.
    pub fn parts(&self) -> &[Part] {
        match self {
            Self::User { parts } => parts,
            _ => &[],
        }
    }

    pub fn parts_mut(&mut self) -> &mut [Part] {
        match self {
            Self::User { parts } => parts,
            _ => &mut [],
        }
    }
}

/// A piece of what a person says or shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Part {
    Text {
        text: String,
    },
    /// A picture, in base64.
    Image {
        media_type: String,
        data: Arc<str>,
    },
    /// A stored photo, whose bytes are put in its place before a model is asked.
    Photo {
        id: String,
    },
}

impl Part {
    pub fn is_picture(&self) -> bool {
        matches!(self, Self::Image { .. } | Self::Photo { .. })
    }

    pub fn photo_id(&self) -> Option<&str> {
        match self {
            Self::Photo { id } => Some(id),
            _ => None,
        }
    }
}

/// A function that a model may ask for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolSpec {
    pub name: String,
    pub description: String,
    /// The JSON Schema of its arguments.
    pub parameters: Value,
}

/// A function that a model asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// What the model wrote. It is checked against the tool's schema before anything is done.
    pub arguments: Value,
    /// What the provider wants to see again with the call's outcome.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<String>,
}

/// Why a model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Stop")]
pub enum AnswerEnd {
    /// The answer is whole.
    Finished,
    /// It asks for tools.
    ToolCalls,
    /// `max_tokens` were used up.
    MaxTokens,
}

/// Tokens, each counted once: what came from the provider's cache is no `input`, and reasoning is `output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    pub input: u64,
    pub cached_input: u64,
    pub cache_writes: u64,
    pub output: u64,
    /// Of `output`.
    pub reasoning: u64,
    /// Whether this is our estimate, as for what had been received when a stream broke off.
    pub is_estimate: bool,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.input += other.input;
        self.cached_input += other.cached_input;
        self.cache_writes += other.cache_writes;
        self.output += other.output;
        self.reasoning += other.reasoning;
        self.is_estimate |= other.is_estimate;
    }
}

/// Money for model calls, in billionths of a US dollar.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Cost(pub u64);

impl Cost {
    pub const DOLLAR: u64 = 1_000_000_000;

    /// Reads `0.30`: dollars, with nine decimals at most.
    pub fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || fraction.len() > 9 || !are_digits(whole) || !are_digits(fraction) {
            return None;
        }
        let fraction: u64 = format!("{fraction:0<9}").parse().ok()?;
        let dollars = whole.parse::<u64>().ok()?.checked_mul(Self::DOLLAR)?;
        dollars.checked_add(fraction).map(Self)
    }

    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}.{:09}", self.0 / Self::DOLLAR, self.0 % Self::DOLLAR)
    }
}

/// What a model's tokens cost, in billionths of a US dollar for a million of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    pub input: Cost,
    pub cached_input: Cost,
    pub cache_writes: Cost,
    pub output: Cost,
}

impl Price {
    pub fn of(&self, usage: &Usage) -> Cost {
        let part = |tokens: u64, price: Cost| u128::from(tokens) * u128::from(price.0);
        let all = part(usage.input, self.input)
            + part(usage.cached_input, self.cached_input)
            + part(usage.cache_writes, self.cache_writes)
            + part(usage.output, self.output);
        Cost(u64::try_from(all.div_ceil(1_000_000)).unwrap_or(u64::MAX))
    }

    /// The most that such a call can cost: its prompt uncached, its answer as long as it may be. A picture counts as so many
    /// tokens.
    pub fn most(&self, prompt: &Prompt, of_a_picture: u64) -> Cost {
        let input = prompt.tokens(of_a_picture);
        let dearest = self.input.max(self.cached_input).max(self.cache_writes);
        let price = Self { input: dearest, ..*self };
        price.of(&Usage { input, output: u64::from(prompt.max_tokens), ..Usage::default() })
    }
}

/// How many tokens a text has, for reserves and limits only: one for three bytes is more than prose has, in any of the
/// tokenizers. What was used is counted by the provider.
pub fn estimated_tokens(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(3)
}

/// What a picture is taken for where it is not known who reads it.
const TOKENS_OF_A_PICTURE: u64 = 1_700;

impl Prompt {
    /// What the model reads, rather too much than too little.
    pub fn estimated_tokens(&self) -> u64 {
        self.tokens(TOKENS_OF_A_PICTURE)
    }

    /// The same for a model that counts so many tokens for a picture.
    pub fn tokens(&self, of_a_picture: u64) -> u64 {
        let overhead = 8;
        let system = self.system.as_ref().map_or(0, |text| estimated_tokens(text.len()));
        let tools = self.tools.iter().map(|tool| {
            let bytes = tool.name.len() + tool.description.len();
            estimated_tokens(bytes + tool.parameters.to_string().len())
        });
        let messages = self.messages.iter().map(|message| message.tokens(of_a_picture));
        let schema = self.schema.as_ref().map_or(0, |one| estimated_tokens(one.to_string().len()));
        let all = messages.chain(tools).map(|tokens| tokens + overhead).sum::<u64>();
        system + schema + all + overhead
    }

    pub fn has_images(&self) -> bool {
        self.messages.iter().any(|message| message.parts().iter().any(Part::is_picture))
    }
}

impl PromptMessage {
    pub fn estimated_tokens(&self) -> u64 {
        self.tokens(TOKENS_OF_A_PICTURE)
    }

    fn tokens(&self, of_a_picture: u64) -> u64 {
        match self {
            Self::User { parts } => parts
                .iter()
                .map(|part| match part {
                    Part::Text { text } => estimated_tokens(text.len()),
                    Part::Image { .. } | Part::Photo { .. } => of_a_picture,
                })
                .sum(),
            Self::Assistant { text, calls } => {
                let called = calls.iter().map(|call| {
                    estimated_tokens(call.name.len() + call.arguments.to_string().len())
                });
                estimated_tokens(text.len()) + called.sum::<u64>()
            }
            Self::Tool { content, name, .. } => estimated_tokens(content.len() + name.len()),
        }
    }
}

/// What a model answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Completion {
    pub text: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<ToolCall>,
    pub stop: AnswerEnd,
    /// The model that thought, by its name in the configuration.
    pub model: String,
    /// Of all calls that were made for it.
    pub usage: Usage,
    pub cost: Cost,
    /// Calls of providers that were made for it; 0: it is from a cache.
    pub calls_made: u32,
    /// That it was given before, for an equal question of the same person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<Kept>,
}

/// How an earlier answer was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Cached")]
pub enum Kept {
    /// The question was the same, to the letter.
    Exact,
    /// What was said last means the same, and all before it was the same.
    Semantic,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dollars(text: &str) -> Cost {
        Cost::parse(text).unwrap()
    }

    #[test]
    fn money_is_read_to_the_last_decimal_or_not_at_all() {
        assert_eq!(dollars("0.000125"), Cost(125_000));
        assert_eq!(dollars("15"), Cost(15_000_000_000));
        for wrong in ["", ".5", "-1", "1e3", "0.1234567891", "1,5", "$1", "99999999999999"] {
            assert_eq!(Cost::parse(wrong), None, "{wrong}");
        }
        assert_eq!(dollars("1.05").to_string(), "$1.050000000");
    }

    #[test]
    fn a_call_costs_what_its_tokens_do_each_counted_once() {
        let price = Price {
            input: dollars("3"),
            cached_input: dollars("0.30"),
            cache_writes: dollars("3.75"),
            output: dollars("15"),
        };
        let usage = Usage { input: 1_000, cached_input: 10_000, output: 100, ..Usage::default() };
        assert_eq!(price.of(&usage), dollars("0.0075"));
        let one = Usage { output: 1, ..Usage::default() };
        assert_eq!(Price { output: Cost(1), ..price }.of(&one), Cost(1), "rounded up");
    }

    #[test]
    fn what_may_be_spent_is_never_less_than_what_is() {
        let prompt = Prompt {
            messages: vec![PromptMessage::user("x".repeat(3_000))],
            max_tokens: 50,
            ..Prompt::default()
        };
        assert!(prompt.estimated_tokens() >= 1_000);
        let price = Price { input: dollars("1"), output: dollars("2"), ..Price::default() };
        let used = Usage { input: 1_000, output: 50, ..Usage::default() };
        assert!(price.most(&prompt, 0) >= price.of(&used));
    }

    #[test]
    fn a_conversation_is_read_as_it_is_written() {
        let messages = json!([
            {"role": "user", "parts": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "calls": [{"id": "1", "name": "look", "arguments": {"at": 1}}]},
            {"role": "tool", "call_id": "1", "name": "look", "content": "42"},
        ]);
        let read: Vec<PromptMessage> = serde_json::from_value(messages.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), messages);
    }
}
