//! The operations as tools: what systems declare, in the words of MCP.

use std::collections::BTreeMap;
use std::sync::Arc;

use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use serde_json::{Value, json};

use crate::contract::operation::ToolEffect;
use crate::contract::{Declared, System};

/// The tools of all systems by name, so that their order is always the same.
pub struct Tools(BTreeMap<&'static str, OfferedTool>);

pub struct OfferedTool {
    pub operation: &'static Declared,
    pub shown: Tool,
}

impl Tools {
    pub fn of(systems: &'static [&'static System]) -> Self {
        let mut tools = BTreeMap::new();
        for operation in systems.iter().flat_map(|system| system.operations) {
            let Some(tool) = operation.meta.tool else { continue };
            let shown = shown(operation, tool.name, tool.effect, tool.description);
            let taken = tools.insert(tool.name, OfferedTool { operation, shown });
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

fn shown(
    operation: &Declared,
    name: &'static str,
    effect: ToolEffect,
    description: Option<&'static str>,
) -> Tool {
    let mut input = object(operation.input_schema(), Nulls::Dropped);
    // The user is the token's. Other doors have the field for their paths.
    if let Some(Value::Object(fields)) = input.get_mut("properties") {
        fields.remove("user_id");
    }
    let words = description.unwrap_or(operation.meta.summary);
    let mut tool = Tool::new(name, words, Arc::new(input));
    tool.output_schema = Some(Arc::new(object(operation.answer_schema(), Nulls::Kept)));
    tool.annotations = Some(
        ToolAnnotations::new()
            .read_only(effect == ToolEffect::ReadOnly)
            .destructive(effect == ToolEffect::Destructive)
            .idempotent(matches!(effect, ToolEffect::ReadOnly | ToolEffect::Idempotent))
            .open_world(effect == ToolEffect::Outside),
    );
    tool
}

fn object(mut schema: Value, nulls: Nulls) -> JsonObject {
    make_portable(&mut schema, nulls);
    let Value::Object(schema) = schema else { panic!("inputs and answers of tools are objects") };
    schema
}

/// What becomes of a type that may be null.
#[derive(Clone, Copy)]
enum Nulls {
    /// It is left out of an input: a field that may be null may also be absent, and some models know no other way.
    Dropped,
    /// It stays in an answer.
    Kept,
}

/// Writes a schema in the words that all clients know: no formats of OpenAPI's numbers, such as `uint64`, and one type
/// a schema.
fn make_portable(schema: &mut Value, nulls: Nulls) {
    let fields = match schema {
        Value::Object(fields) => fields,
        Value::Array(items) => {
            items.iter_mut().for_each(|item| make_portable(item, nulls));
            return;
        }
        _ => return,
    };
    let is_size = |format: &Value| {
        let format = format.as_str().unwrap_or_default();
        ["int", "uint", "float", "double"].iter().any(|size| {
            let rest = format.strip_prefix(size);
            rest.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
        })
    };
    if fields.get("format").is_some_and(is_size) {
        fields.remove("format");
    }
    if let Some(Value::Array(kinds)) = fields.get("type")
        && let [kind, null] = kinds.as_slice()
        && null == "null"
    {
        let kind = kind.clone();
        match nulls {
            Nulls::Dropped => drop(fields.insert("type".into(), kind)),
            Nulls::Kept => {
                fields.remove("type");
                fields.insert("anyOf".into(), json!([{"type": kind}, {"type": "null"}]));
            }
        }
    }
    fields.values_mut().for_each(|field| make_portable(field, nulls));
}
