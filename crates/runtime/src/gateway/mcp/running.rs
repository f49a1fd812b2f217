//! An operation as one request runs it: with the host that can be asked, and what the client hears meanwhile.

use std::sync::Arc;

use rmcp::RoleServer;
use rmcp::model::{ErrorData, InputRequiredResult, InputResponses};
use rmcp::service::RequestContext;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::asking::{AnswerMode, LogTarget, Purpose, RequestHost, RequestSetup, level};
use super::interjecting::UNREAD;
use super::server::{McpServer, is_newest, sender};
use super::sessions::Skills;
use crate::contract::Declared;
use crate::contract::problem::{Outcome, Problem};

/// What a request asks of an operation.
pub struct Asks<'a> {
    pub method: &'static str,
    pub name: &'a str,
    pub input: Value,
    pub responses: Option<InputResponses>,
    pub state: Option<String>,
}

/// What has come of it.
pub enum RequestEnd {
    Answered(Box<RawValue>),
    Refused(Problem),
    /// The client has to be asked first.
    Asks(InputRequiredResult),
}

impl McpServer {
    pub async fn run(
        &self,
        operation: &'static Declared,
        asks: Asks<'_>,
        context: &RequestContext<RoleServer>,
    ) -> Result<RequestEnd, ErrorData> {
        let sender = sender(context)?;
        let mut call = self.call(context)?;
        let is_newest = is_newest(context);
        let purpose = Purpose { method: asks.method, name: asks.name, input: &asks.input };
        let asked = RequestSetup {
            user: call.user_id.clone(),
            skills: match is_newest {
                true => context.client_capabilities().as_ref().map(Skills::of),
                false => sender.session.as_ref().map(|session| session.skills),
            }
            .unwrap_or_default(),
            answering: if is_newest { AnswerMode::NextRequest } else { AnswerMode::Meanwhile },
            log: match (&sender.session, is_newest) {
                (_, true) => {
                    let wanted = context.meta.get("io.modelcontextprotocol/logLevel");
                    let wanted = wanted.and_then(Value::as_str).and_then(level).flatten();
                    wanted.map_or(LogTarget::Nowhere, LogTarget::Stream)
                }
                (Some(session), false) => {
                    LogTarget::Session(session.line(&self.gateway.topics, &call.user_id))
                }
                (None, false) => LogTarget::Nowhere,
            },
            out: sender.out.clone(),
            responses: asks.responses,
            state: asks.state,
        };
        let (host, id) = RequestHost::of(&self.gateway, &self.answers, purpose, asked)?;
        if let Some(id) = id {
            call.id = id;
        }
        let command_id = call.id.clone();
        let host = Arc::new(host);
        call.host = Some(host.clone());
        let running = match context.meta.get("progressToken") {
            None => {
                let running = operation.run(call, asks.input);
                unless_cancelled(context, running).await?
            }
            Some(token) => {
                let (progress, said) = mpsc::channel(UNREAD);
                call.progress = Some(progress);
                let running = operation.run(call, asks.input);
                let running = telling(running, said, token, &sender.out);
                unless_cancelled(context, running).await?
            }
        };
        Ok(match running {
            Ok(answer) => RequestEnd::Answered(answer),
            Err(problem) => match host.question(&self.gateway, &command_id)? {
                Some(question) => RequestEnd::Asks(question),
                None => RequestEnd::Refused(problem),
            },
        })
    }
}

/// The outcome of an operation. A client that has gone away ends it, as it does over HTTP.
async fn unless_cancelled<T>(
    context: &RequestContext<RoleServer>,
    run: impl Future<Output = T>,
) -> Result<T, ErrorData> {
    tokio::select! {
        outcome = run => Ok(outcome),
        () = context.ct.cancelled() => Err(ErrorData::internal_error("the request was cancelled", None)),
    }
}

/// Runs an operation and tells the client what it says meanwhile.
async fn telling(
    running: impl Future<Output = Outcome<Box<RawValue>>>,
    mut said: mpsc::Receiver<Value>,
    token: &Value,
    out: &mpsc::Sender<Value>,
) -> Outcome<Box<RawValue>> {
    let mut running = std::pin::pin!(running);
    let mut count = 0;
    loop {
        let piece = tokio::select! {
            biased;
            Some(piece) = said.recv() => piece,
            outcome = &mut running => {
                while let Ok(piece) = said.try_recv() {
                    let _ = out.send(progress(token, &piece, &mut count)).await;
                }
                return outcome;
            }
        };
        let _ = out.send(progress(token, &piece, &mut count)).await;
    }
}

/// A piece of what an operation says as progress: how far it is, or how many pieces there were, and its text.
fn progress(token: &Value, piece: &Value, count: &mut u64) -> Value {
    *count += 1;
    let mut params = json!({"progressToken": token, "progress": *count});
    for name in ["progress", "total"] {
        if piece[name].is_number() {
            params[name] = piece[name].clone();
        }
    }
    if let Some(text) = piece["text"].as_str() {
        params["message"] = text.into();
    }
    json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
}
