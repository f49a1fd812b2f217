//! Operations as tools: their schemas in the words that all agents and models know.

use serde_json::{Value, json};

use super::operation::{Declared, Sort, Tool, ToolEffect};
use crate::kernel::chat::ToolSpec;
use crate::kernel::outward::Guarantee;

impl Tool {
    /// Whether it binds, ends something or reaches outside, so that an agent asks its person first.
    pub fn asks_first(&self) -> bool {
        matches!(self.effect, ToolEffect::Destructive | ToolEffect::Outside)
    }
}

impl Declared {
    /// The input without the user, who is the token's. Other doors have the field for their paths.
    pub fn tool_input(&self) -> Value {
        let mut input = self.input_schema();
        make_portable(&mut input, Nulls::Dropped);
        if let Some(Value::Object(fields)) = input.get_mut("properties") {
            fields.remove("user_id");
        }
        input
    }

    pub fn tool_answer(&self) -> Value {
        let mut answer = self.answer_schema();
        make_portable(&mut answer, Nulls::Kept);
        answer
    }

    /// What holds when it is called again under the same id.
    pub fn guarantee(&self) -> Guarantee {
        let is_outside = self.meta.tool.is_some_and(|tool| tool.effect == ToolEffect::Outside);
        let is_keyed = self.meta.tool.is_some_and(|tool| tool.is_keyed);
        match self.meta.sort {
            _ if is_keyed => Guarantee::Keyed,
            Sort::Query if !is_outside => Guarantee::Transactional,
            // The entity's commit remembers the id with its first outcome.
            Sort::Command if !is_outside => Guarantee::Transactional,
            _ => Guarantee::AtMostOnce,
        }
    }

    /// The operation as a function that a model may ask for. `None`: it is no tool.
    pub fn tool_spec(&self) -> Option<ToolSpec> {
        let tool = self.meta.tool?;
        let description = tool.description.unwrap_or(self.meta.summary).to_owned();
        let mut parameters = self.tool_input();
        parameters.sort_all_objects();
        Some(ToolSpec { name: tool.name.to_owned(), description, parameters })
    }
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
