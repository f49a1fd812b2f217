//! Models that cannot call tools: they write each call as JSON, under a schema that allows nothing else.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::failure::{Failure, FailureKind};
use super::wire::ModelAnswer;
use crate::kernel::chat::{AnswerEnd, Prompt, PromptMessage, ToolCall};

const SAY: &str = "say";

/// The same question in words that such a model understands. `Err`: what it asks for cannot be asked for so.
pub fn without_tools(prompt: &Prompt) -> Result<Prompt, Failure> {
    if prompt.schema.is_some() {
        let why = "a model that writes its calls takes tools or a schema, and not both";
        return Err(Failure::new(FailureKind::Invalid, why));
    }
    let mut definitions = Map::new();
    let text = json!({"type": "string"});
    let mut ways = vec![way(SAY, "text", text)];
    let mut listed = String::new();
    for tool in &prompt.tools {
        let mut parameters = tool.parameters.clone();
        // References are to the root of the schema that they come into.
        if let Some(Value::Object(own)) =
            parameters.as_object_mut().and_then(|fields| fields.remove("$defs"))
        {
            definitions.extend(own);
        }
        ways.push(way(&tool.name, "arguments", parameters));
        listed.push_str(&format!("\n- {}: {}", tool.name, tool.description));
    }
    let mut schema = json!({"anyOf": ways});
    if !definitions.is_empty() {
        schema["$defs"] = Value::Object(definitions);
    }
    let rule = "Answer with one JSON object and nothing else: {\"tool\": \"say\", \"text\": \"…\"} to speak, or {\"tool\": NAME, \
        \"arguments\": {…}} to use a tool. The tools:";
    let system = prompt.system.as_deref().unwrap_or_default();
    Ok(Prompt {
        system: Some(format!("{system}\n\n{rule}{listed}")),
        messages: prompt.messages.iter().map(written).collect(),
        tools: Vec::new(),
        schema: Some(schema),
        ..prompt.clone()
    })
}

fn way(tool: &str, field: &str, of: Value) -> Value {
    json!({
        "type": "object",
        "properties": {"tool": {"const": tool}, field: of},
        "required": ["tool", field],
        "additionalProperties": false,
    })
}

fn written(message: &PromptMessage) -> PromptMessage {
    match message {
        PromptMessage::User { .. } => message.clone(),
        PromptMessage::Assistant { text, calls } => {
            let said = match calls.first() {
                Some(call) => json!({"tool": call.name, "arguments": call.arguments}),
                None => json!({"tool": SAY, "text": text}),
            };
            PromptMessage::Assistant { text: said.to_string(), calls: Vec::new() }
        }
        PromptMessage::Tool { name, content, .. } => {
            PromptMessage::user(format!("The result of {name}, which is data: {content}"))
        }
    }
}

#[derive(Deserialize)]
struct Written {
    tool: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    arguments: Value,
}

/// What such a model has said or asked for. What cannot be read is no answer.
pub fn read(answer: ModelAnswer) -> Result<ModelAnswer, Failure> {
    if answer.stop == AnswerEnd::MaxTokens {
        return Err(Failure::new(FailureKind::Uncertain, "the call is longer than max_tokens"));
    }
    let unreadable = |_| Failure::new(FailureKind::Uncertain, "the written call cannot be read");
    let Written { tool, text, arguments } =
        serde_json::from_str(&answer.text).map_err(unreadable)?;
    if tool == SAY {
        return Ok(ModelAnswer { text, calls: Vec::new(), stop: AnswerEnd::Finished });
    }
    let id = format!("call_{}", ulid::Ulid::generate());
    let call = ToolCall { id, name: tool, arguments, signatures: Vec::new() };
    Ok(ModelAnswer { text: String::new(), calls: vec![call], stop: AnswerEnd::ToolCalls })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::chat::ToolSpec;

    fn answer(text: &str) -> ModelAnswer {
        ModelAnswer { text: text.into(), calls: Vec::new(), stop: AnswerEnd::Finished }
    }

    #[test]
    fn a_question_with_tools_becomes_one_with_a_schema() {
        let parameters = json!({
            "type": "object",
            "properties": {"budget": {"$ref": "#/$defs/Money"}},
            "$defs": {"Money": {"type": "integer"}},
        });
        let tool = ToolSpec { name: "ask".into(), description: "Ask".into(), parameters };
        let call = ToolCall {
            id: "1".into(),
            name: "ask".into(),
            arguments: json!({"budget": 1}),
            signatures: Vec::new(),
        };
        let asked = Prompt {
            system: Some("Help.".into()),
            messages: vec![
                PromptMessage::user("a haircut"),
                PromptMessage::Assistant { text: String::new(), calls: vec![call] },
                PromptMessage::Tool {
                    call_id: "1".into(),
                    name: "ask".into(),
                    content: "no".into(),
                },
            ],
            tools: vec![tool],
            max_tokens: 10,
            temperature: None,
            schema: None,
        };
        let written = without_tools(&asked).unwrap();
        assert!(written.tools.is_empty() && written.system.unwrap().ends_with("\n- ask: Ask"));
        let schema = written.schema.unwrap();
        assert_eq!(schema["$defs"]["Money"]["type"], "integer");
        let arguments = &schema["anyOf"][1]["properties"]["arguments"];
        assert_eq!(arguments["properties"]["budget"]["$ref"], "#/$defs/Money");
        assert_eq!(arguments.get("$defs"), None);
        let said = json!({"tool": "ask", "arguments": {"budget": 1}}).to_string();
        let expected = PromptMessage::Assistant { text: said, calls: Vec::new() };
        assert_eq!(written.messages[1], expected);
        let both = Prompt { schema: Some(json!({})), ..asked };
        assert_eq!(without_tools(&both).unwrap_err().kind, FailureKind::Invalid);
    }

    #[test]
    fn what_is_written_is_read_as_words_or_as_a_call_or_not_at_all() {
        let said = read(answer(r#"{"tool": "say", "text": "hello"}"#)).unwrap();
        assert!(said.text == "hello" && said.calls.is_empty());
        let asked = read(answer(r#"{"tool": "ask", "arguments": {"budget": 1}}"#)).unwrap();
        assert_eq!(
            (asked.calls[0].name.as_str(), &asked.calls[0].arguments),
            ("ask", &json!({"budget": 1}))
        );
        assert_eq!(read(answer("Sure!")).unwrap_err().kind, FailureKind::Uncertain);
        let cut = ModelAnswer { stop: AnswerEnd::MaxTokens, ..answer(r#"{"tool": "say"}"#) };
        assert_eq!(read(cut).unwrap_err().kind, FailureKind::Uncertain);
    }
}
