//! Answers that are shown as they are: pictures, sound and texts, where an object of fields is not what is wanted.

use std::sync::OnceLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The answer of an operation that agents get piece by piece: as the content of a tool's result, as what a resource
/// contains, or as the messages of a prompt. Other doors answer it as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ContentParts {
    pub parts: Vec<ContentPart>,
}

/// One piece of content. `data` is in base64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ContentPart {
    Text {
        text: String,
    },
    Image {
        media_type: String,
        data: String,
    },
    Audio {
        media_type: String,
        data: String,
    },
    /// A text with an address of its own.
    Resource {
        uri: String,
        media_type: String,
        text: String,
    },
    /// An address that can be read.
    Link {
        uri: String,
        name: String,
        media_type: Option<String>,
    },
}

impl From<Vec<ContentPart>> for ContentParts {
    fn from(parts: Vec<ContentPart>) -> Self {
        Self { parts }
    }
}

impl ContentPart {
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }
}

/// The schema of [`ContentParts`], by which a door knows the operations that answer it.
pub fn schema() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(|| super::operation::by_itself(|all| all.subschema_for::<ContentParts>()))
}
