//! The agent's host at the other end of one request: what it can be asked, and how its answers come.
//!
//! In the newest revision a question ends the request. The client asks again with the answers, and gives back the state,
//! which is sealed. In the revision before, the question travels on the request's own stream, and the answer comes
//! with another request, to any node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use rmcp::model::{ClientCapabilities, ErrorData, InputRequests, InputRequiredResult};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::answers::{Answers, Question};
use super::sessions::{SessionLine, Skills};
use crate::contract::call::derived_id;
use crate::contract::host::{AgentHost, HostAnswer, HostQuestion, LogLevel, cannot_ask};
use crate::contract::problem::{Outcome, Problem};
use crate::gateway::Gateway;
use crate::kernel::entity::to_value;
use crate::kernel::error::ErrorCode;

/// What the state of a request is sealed for.
const PURPOSE: &str = "mcp";
/// How long a person may take in the newest revision, where nothing waits meanwhile.
const STATE_S: i64 = 24 * 3_600;
/// How long a person may take in the revision before, where the call waits.
const PATIENCE: Duration = Duration::from_secs(600);
/// Most questions at once.
const MAX_QUESTIONS: usize = 16;
/// The most that a client carries for us.
const MAX_STATE_BYTES: usize = 64 * 1_024;

/// What a request is for; its answers count for nothing else.
pub struct Purpose<'a> {
    pub method: &'static str,
    pub name: &'a str,
    pub input: &'a Value,
}

/// What the client carries from one request to the next.
#[derive(Serialize, Deserialize)]
struct CarriedState {
    purpose: String,
    /// The command id, so that what was done before the question is not done again.
    id: String,
    answers: BTreeMap<String, Value>,
}

/// How the host answers.
pub enum AnswerMode {
    /// With the next request.
    NextRequest,
    /// While this one goes on, through this stream.
    Meanwhile,
}

pub struct RequestHost {
    user: Arc<str>,
    skills: Skills,
    answering: AnswerMode,
    answers: Arc<Answers>,
    out: mpsc::Sender<Value>,
    log: LogTarget,
    purpose: String,
    /// What the client has answered so far.
    known: BTreeMap<String, Value>,
    asking: Mutex<Asking>,
}

/// Where lines of the call's log go.
pub enum LogTarget {
    Nowhere,
    /// On the request's own stream, from this level on.
    Stream(LogLevel),
    /// To the session's stream, which knows the level.
    Session(SessionLine),
}

#[derive(Default)]
struct Asking {
    /// The answers that were of use.
    used: BTreeMap<String, Value>,
    pending: BTreeMap<String, Value>,
    /// What the client would have to be capable of.
    missing: Vec<HostQuestion>,
}

/// What is known of a request besides its purpose.
pub struct RequestSetup {
    pub user: Arc<str>,
    pub skills: Skills,
    pub answering: AnswerMode,
    pub log: LogTarget,
    pub out: mpsc::Sender<Value>,
    pub responses: Option<BTreeMap<String, Value>>,
    pub state: Option<String>,
}

impl RequestHost {
    /// The host, and the command id of the request that this one goes on with.
    pub fn of(
        gateway: &Gateway,
        answers: &Arc<Answers>,
        purpose: Purpose<'_>,
        asked: RequestSetup,
    ) -> Result<(Self, Option<String>), ErrorData> {
        let mut input = purpose.input.clone();
        input.sort_all_objects();
        let parts = [&*asked.user, purpose.method, purpose.name, &input.to_string()];
        let purpose = derived_id("mcp", &parts);
        let carried = match asked.state {
            None => None,
            Some(sealed) => Some(opened(gateway, &purpose, &sealed).ok_or_else(|| {
                ErrorData::invalid_params("the requestState is none of this request", None)
            })?),
        };
        let (id, mut known) = match carried {
            Some(carried) => (Some(carried.id), carried.answers),
            None => (None, BTreeMap::new()),
        };
        for (name, answer) in asked.responses.unwrap_or_default() {
            known.entry(name).or_insert(answer);
        }
        let host = Self {
            user: asked.user,
            skills: asked.skills,
            answering: asked.answering,
            answers: answers.clone(),
            out: asked.out,
            log: asked.log,
            purpose,
            known,
            asking: Mutex::default(),
        };
        Ok((host, id))
    }

    /// What the client is asked instead of an answer, if the operation has ended with a question.
    pub fn question(
        &self,
        gateway: &Gateway,
        command_id: &str,
    ) -> Result<Option<InputRequiredResult>, ErrorData> {
        let asking = std::mem::take(&mut *self.asking.lock());
        if !asking.missing.is_empty() && matches!(self.answering, AnswerMode::NextRequest) {
            let required = required(&asking.missing);
            return Err(ErrorData::missing_required_client_capability(required));
        }
        if asking.pending.is_empty() {
            return Ok(None);
        }
        let requests: Result<InputRequests, _> = asking
            .pending
            .into_iter()
            .map(|(name, request)| Ok((name, serde_json::from_value(request)?)))
            .collect();
        let requests = requests.map_err(|error: serde_json::Error| {
            tracing::error!(%error, "a question is none that the protocol has");
            ErrorData::internal_error("a question cannot be asked", None)
        })?;
        let state = CarriedState {
            purpose: self.purpose.clone(),
            id: command_id.to_owned(),
            answers: asking.used,
        };
        let state = gateway.auth.seal(PURPOSE, to_value(&state), gateway.now(), STATE_S);
        if state.len() > MAX_STATE_BYTES {
            return Err(ErrorData::invalid_request("the answers are too long to go on with", None));
        }
        Ok(Some(InputRequiredResult::new(Some(requests), Some(state))))
    }

    fn answers_known(
        &self,
        questions: Vec<(&'static str, HostQuestion)>,
    ) -> Outcome<Vec<HostAnswer>> {
        let mut asking = self.asking.lock();
        let mut answers = Vec::new();
        for (name, question) in questions {
            let known = self.known.get(name);
            match known.and_then(|raw| Some((raw, read_answer(&question, raw)?))) {
                Some((raw, answer)) => {
                    asking.used.insert(name.into(), raw.clone());
                    answers.push(answer);
                }
                // Also where the answer cannot be read: the client may do better.
                None => drop(asking.pending.insert(name.into(), request(&question))),
            }
        }
        if asking.pending.is_empty() {
            return Ok(answers);
        }
        Err(Problem::rejected("asks_first", "the call goes on with the answers"))
    }

    async fn wait(&self, question: HostQuestion, waiting: Question) -> Outcome<HostAnswer> {
        let mut message = request(&question);
        message["jsonrpc"] = "2.0".into();
        message["id"] = waiting.id.as_str().into();
        let gone = || Problem::new(ErrorCode::Unavailable, "the client is gone");
        self.out.send(message).await.map_err(|_| gone())?;
        let mut waiting = waiting;
        let answer = tokio::time::timeout(PATIENCE, &mut waiting.answer).await;
        let answer =
            answer.map_err(|_| Problem::rejected("not_answered", "nobody has answered"))?;
        let answer = answer.map_err(|_| gone())?;
        if let Some(error) = answer.get("error") {
            let words: String =
                error["message"].as_str().unwrap_or_default().chars().take(200).collect();
            return Err(Problem {
                detail: format!("the client does not ask: {words}"),
                ..cannot_ask()
            });
        }
        read_answer(&question, &answer["result"])
            .ok_or_else(|| Problem::rejected("not_answered", "the answer is none to the question"))
    }

    async fn ask_meanwhile(
        &self,
        questions: Vec<(&'static str, HostQuestion)>,
    ) -> Outcome<Vec<HostAnswer>> {
        let wait = |(_, question)| {
            let waiting = self.answers.question(&self.user);
            async move {
                let too_many = || Problem::new(ErrorCode::Overloaded, "too many questions wait");
                self.wait(question, waiting.ok_or_else(too_many)?).await
            }
        };
        join_all(questions.into_iter().map(wait)).await.into_iter().collect()
    }
}

impl AgentHost for RequestHost {
    fn can_answer(&self, question: &HostQuestion) -> bool {
        self.skills.have(question)
    }

    fn ask(
        &self,
        questions: Vec<(&'static str, HostQuestion)>,
    ) -> BoxFuture<'_, Outcome<Vec<HostAnswer>>> {
        async move {
            if questions.len() > MAX_QUESTIONS {
                tracing::error!(questions = questions.len(), "an operation asks too much at once");
                return Err(crate::kernel::error::AskError::Internal.into());
            }
            let missing: Vec<_> =
                questions.iter().filter(|(_, one)| !self.skills.have(one)).collect();
            if !missing.is_empty() {
                let missing = missing.into_iter().map(|(_, question)| question.clone());
                self.asking.lock().missing.extend(missing);
                return Err(cannot_ask());
            }
            match self.answering {
                AnswerMode::NextRequest => self.answers_known(questions),
                AnswerMode::Meanwhile => self.ask_meanwhile(questions).await,
            }
        }
        .boxed()
    }

    fn log(&self, level: LogLevel, text: &str) {
        let line = || log_line(level, text);
        match &self.log {
            LogTarget::Nowhere => {}
            LogTarget::Stream(from) if level < *from => {}
            // A client that does not read its stream loses lines rather than stopping the call.
            LogTarget::Stream(_) => drop(self.out.try_send(line())),
            LogTarget::Session(session) => session.log(level, line()),
        }
    }
}

fn opened(gateway: &Gateway, purpose: &str, sealed: &str) -> Option<CarriedState> {
    if sealed.len() > MAX_STATE_BYTES {
        return None;
    }
    let value = gateway.auth.open(PURPOSE, sealed, gateway.now())?;
    let state: CarriedState = serde_json::from_value(value).ok()?;
    (state.purpose == purpose).then_some(state)
}

/// The capabilities that these questions need.
fn required(questions: &[HostQuestion]) -> ClientCapabilities {
    let mut named = Map::new();
    for question in questions {
        let name = match question {
            HostQuestion::Person { .. } => "elicitation",
            HostQuestion::Model { .. } => "sampling",
            HostQuestion::Folders => "roots",
        };
        named.insert(name.into(), json!({}));
    }
    serde_json::from_value(named.into()).unwrap_or_default()
}

/// A notification of one line.
pub fn log_line(level: LogLevel, text: &str) -> Value {
    let level = level_name(level);
    let params = json!({"level": level, "logger": "proxie", "data": text});
    json!({"jsonrpc": "2.0", "method": "notifications/message", "params": params})
}

pub fn level_name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warning => "warning",
        LogLevel::Error => "error",
    }
}

/// The level from which on lines are wanted. Ours are fewer than the protocol's.
pub fn level(name: &str) -> Option<Option<LogLevel>> {
    Some(match name {
        "debug" => Some(LogLevel::Debug),
        "info" => Some(LogLevel::Info),
        "notice" | "warning" => Some(LogLevel::Warning),
        "error" => Some(LogLevel::Error),
        "critical" | "alert" | "emergency" => None,
        _ => return None,
    })
}

/// The question in the protocol's words.
fn request(question: &HostQuestion) -> Value {
    match question {
        HostQuestion::Person { message, form } => {
            let mut form = form.clone();
            if let Value::Object(form) = &mut form {
                // The protocol knows no other words here.
                form.retain(|word, _| ["type", "properties", "required"].contains(&word.as_str()));
            }
            let params = json!({"message": message, "requestedSchema": form});
            json!({"method": "elicitation/create", "params": params})
        }
        HostQuestion::Model { text, max_tokens } => {
            let content = json!({"type": "text", "text": text});
            let messages = json!([{"role": "user", "content": content}]);
            let params = json!({"messages": messages, "maxTokens": max_tokens});
            json!({"method": "sampling/createMessage", "params": params})
        }
        HostQuestion::Folders => json!({"method": "roots/list"}),
    }
}

/// The answer to a question, if it is one.
fn read_answer(question: &HostQuestion, raw: &Value) -> Option<HostAnswer> {
    Some(match question {
        HostQuestion::Person { form, .. } => match raw["action"].as_str()? {
            "accept" => {
                let filled = raw.get("content").filter(|filled| is_filled(form, filled))?;
                HostAnswer::Person(Some(filled.clone()))
            }
            "decline" | "cancel" => HostAnswer::Person(None),
            _ => return None,
        },
        HostQuestion::Model { .. } => {
            let content = &raw["content"];
            let parts = content.as_array().map_or(std::slice::from_ref(content), Vec::as_slice);
            let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
            HostAnswer::Model((!texts.is_empty()).then(|| texts.concat())?)
        }
        HostQuestion::Folders => {
            let roots = raw["roots"].as_array()?.iter();
            let folders = roots.map(|root| root["uri"].as_str().map(str::to_owned));
            HostAnswer::Folders(folders.collect::<Option<_>>()?)
        }
    })
}

/// Whether a form was filled in as its schema says: it has what is required, and each field is of its kind.
fn is_filled(form: &Value, filled: &Value) -> bool {
    let Value::Object(filled) = filled else { return false };
    let mut required = form["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let fits = |value: &Value, schema: &Value| {
        let listed = schema["enum"].as_array();
        listed.is_none_or(|listed| listed.contains(value))
            && match schema["type"].as_str() {
                Some("string") => value.is_string(),
                Some("boolean") => value.is_boolean(),
                Some("integer") => value.as_f64().is_some_and(|number| number.fract() == 0.0),
                Some("number") => value.is_number(),
                Some("array") => value.is_array(),
                _ => true,
            }
    };
    required.all(|name| filled.contains_key(name))
        && filled.iter().all(|(name, value)| fits(value, &form["properties"][name]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_only_if_it_is_one_to_the_question() {
        let form = json!({
            "type": "object", "required": ["name"],
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"},
                           "size": {"type": "string", "enum": ["s", "l"]}},
        });
        let person = HostQuestion::Person { message: "Who?".into(), form };
        let accept = |content: Value| json!({"action": "accept", "content": content});
        for (raw, good) in [
            (accept(json!({"name": "Alice", "age": 30, "size": "s"})), true),
            (json!({"action": "decline"}), true),
            (accept(json!({})), false),
            (accept(json!({"name": 1})), false),
            (accept(json!({"name": "A", "age": 1.5})), false),
            (accept(json!({"name": "A", "size": "xl"})), false),
            (json!({"action": "perhaps"}), false),
            (json!({"content": {"name": "A"}}), false),
            (json!(12345), false),
        ] {
            assert_eq!(read_answer(&person, &raw).is_some(), good, "{raw}");
        }
        let model = HostQuestion::Model { text: "Hi".into(), max_tokens: 9 };
        let said = json!({"role": "assistant", "content": {"type": "text", "text": "Hello"}});
        assert_eq!(read_answer(&model, &said), Some(HostAnswer::Model("Hello".into())));
        assert_eq!(read_answer(&model, &json!({"content": []})), None);
        let roots = json!({"roots": [{"uri": "file:///a"}]});
        let folders = Some(HostAnswer::Folders(vec!["file:///a".into()]));
        assert_eq!(read_answer(&HostQuestion::Folders, &roots), folders);
        assert_eq!(read_answer(&HostQuestion::Folders, &json!({"roots": [{}]})), None);
    }
}
