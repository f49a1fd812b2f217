//! The operations as tools: what systems declare, in the words of MCP.

use std::collections::BTreeMap;
use std::sync::Arc;

use rmcp::model::{ContentBlock, JsonObject, Resource, Tool, ToolAnnotations};
use serde_json::Value;

use super::resources::contents;
use crate::contract::content::{self, ContentPart};
use crate::contract::operation::ToolEffect;
use crate::contract::{Declared, System};

/// The tools of all systems by name, so that their order is always the same.
pub struct Tools(BTreeMap<&'static str, OfferedTool>);

pub struct OfferedTool {
    pub operation: &'static Declared,
    pub shown: Tool,
    /// Whether its answer is content of several kinds rather than an object.
    pub is_content: bool,
}

impl Tools {
    pub fn of(systems: &'static [&'static System]) -> Self {
        let mut tools = BTreeMap::new();
        for operation in systems.iter().flat_map(|system| system.operations) {
            let Some(tool) = operation.meta.tool else { continue };
            let mut shown = shown(operation, tool.name, tool.effect, tool.description);
            let is_content = operation.answer_schema() == *content::schema();
            if is_content {
                shown.output_schema = None;
            }
            let taken = tools.insert(tool.name, OfferedTool { operation, shown, is_content });
            assert!(taken.is_none(), "the name of a tool is unique: {}", tool.name);
        }
        Self(tools)
    }

    pub fn get(&self, name: &str) -> Option<&OfferedTool> {
        self.0.get(name)
    }

    pub fn all(&self) -> impl Iterator<Item = &OfferedTool> {
        self.0.values()
    }
}

/// A piece of content in the words of MCP.
pub fn block(part: ContentPart) -> ContentBlock {
    match part {
        ContentPart::Text { text } => ContentBlock::text(text),
        ContentPart::Image { media_type, data } => ContentBlock::image(data, media_type),
        ContentPart::Audio { media_type, data } => ContentBlock::audio(data, media_type),
        ContentPart::Resource { .. } => ContentBlock::resource(contents(part, "")),
        ContentPart::Link { uri, name, media_type } => {
            let mut link = Resource::new(uri, name);
            link.mime_type = media_type;
            ContentBlock::resource_link(link)
        }
    }
}

fn shown(
    operation: &Declared,
    name: &'static str,
    effect: ToolEffect,
    description: Option<&'static str>,
) -> Tool {
    let words = description.unwrap_or(operation.meta.summary);
    let mut tool = Tool::new(name, words, object(operation.tool_input()));
    tool.output_schema = Some(object(operation.tool_answer()));
    tool.annotations = Some(
        ToolAnnotations::new()
            .read_only(effect == ToolEffect::ReadOnly)
            .destructive(effect == ToolEffect::Destructive)
            .idempotent(matches!(effect, ToolEffect::ReadOnly | ToolEffect::Idempotent))
            .open_world(effect == ToolEffect::Outside),
    );
    tool
}

fn object(schema: Value) -> Arc<JsonObject> {
    let Value::Object(schema) = schema else { panic!("inputs and answers of tools are objects") };
    Arc::new(schema)
}
