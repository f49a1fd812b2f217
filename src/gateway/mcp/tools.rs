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

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts of this keyword, at any depth.
    fn all<'a>(keyword: &str, value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get(keyword).and_then(Value::as_str));
                fields.values().for_each(|value| all(keyword, value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| all(keyword, value, found)),
            _ => {}
        }
    }

    #[test]
    fn schemas_of_tools_are_objects_that_stand_alone() {
        let tools = Tools::of(crate::systems::ALL);
        assert!(tools.all().count() >= 20);
        for OfferedTool { shown, .. } in tools.all().filter(|tool| !tool.is_content) {
            let output = shown.output_schema.clone().unwrap();
            for schema in [&*shown.input_schema, &*output] {
                assert_eq!(schema["type"], "object", "{}: {schema:?}", shown.name);
                let whole = Value::Object(schema.clone());
                let mut found = Vec::new();
                all("$ref", &whole, &mut found);
                for at in found.drain(..) {
                    let at = at.strip_prefix('#').expect(at);
                    assert!(whole.pointer(at).is_some(), "{}: {at}", shown.name);
                }
                all("format", &whole, &mut found);
                let of_one_type = |schema: &Value| !schema.to_string().contains("\"type\":[");
                assert!(of_one_type(&whole), "{}: {whole}", shown.name);
                // Those that JSON Schema names.
                let known = ["date", "date-time", "uri", "email", "uuid"];
                assert!(found.iter().all(|format| known.contains(format)), "{found:?}");
            }
            assert!(shown.input_schema.get("properties").is_none_or(|of| of["user_id"].is_null()));
        }
    }

    #[test]
    fn hints_follow_from_the_effect() {
        let tools = Tools::of(crate::systems::ALL);
        let hints = |name: &str| {
            let hints = tools.get(name).unwrap().shown.annotations.clone().unwrap();
            [
                hints.read_only_hint,
                hints.destructive_hint,
                hints.idempotent_hint,
                hints.open_world_hint,
            ]
            .map(Option::unwrap)
        };
        assert_eq!(hints("get_offers"), [true, false, true, false]);
        assert_eq!(hints("create_service_request"), [false, false, false, false]);
        assert_eq!(hints("accept_offer"), [false, true, false, false]);
        assert_eq!(hints("update_availability"), [false, false, true, false]);
        assert_eq!(hints("ask_model"), [false, false, false, true]);
    }
}
