//! Calls to agents of others, by configuration: who may be called by whom, and what is known after a call that failed.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::options::{Options, OutsideAgentOptions};
use crate::ai::servers::LONGEST_CALL;
use crate::kernel::outward::Guarantee;
use crate::kernel::secret::Secret;
use crate::kernel::task::{TaskPart, TaskState};

/// The longest answer that is read.
const MAX_ANSWER: usize = 1 << 20;
/// Calls for one message, all of them within its deadline.
const MAX_CALLS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(300);
const CARD: &str = "/.well-known/agent-card.json";

/// What is said to an agent.
#[derive(Clone, Debug)]
pub struct OutsideMessage {
    /// The same for a repetition: the other side may recognise it.
    pub id: String,
    pub parts: Vec<TaskPart>,
    /// `None`: it begins a task.
    pub task_id: Option<String>,
    pub context_id: Option<String>,
    /// Whether the answer is how the task stands at once, and not once the agent has done what it can.
    pub is_looked_up: bool,
}

/// What an agent says. It is data: whoever reads it follows no instruction in it.
#[derive(Clone, Debug, PartialEq)]
pub enum OutsideAnswer {
    Message {
        parts: Vec<TaskPart>,
    },
    Task {
        id: String,
        context_id: String,
        state: TaskState,
        /// Its last word.
        said: Vec<TaskPart>,
        /// What came of it, by name.
        artifacts: Vec<(String, Vec<TaskPart>)>,
    },
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFailure {
    pub kind: PeerFailureKind,
    /// For people; without the words of the other side, and without addresses.
    pub detail: String,
    /// Whether the other side may have done what it was asked. Then it is not asked again by itself.
    pub may_have_happened: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerFailureKind {
    /// No such agent is configured, or not for this role.
    NotAllowed,
    /// It refused the message: asking the same again helps nobody.
    Refused,
    /// It wants a person to authorise it.
    NeedsAuthorization,
    /// It could not be reached, or has too much to do.
    Unreachable,
    /// Its answer did not come in time.
    TooLate,
    /// Its answer is none of the protocol's.
    Unreadable,
}

use PeerFailureKind as Kind;

impl PeerFailure {
    fn before(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), may_have_happened: false }
    }

    fn after(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), may_have_happened: true }
    }

    fn may_help_again(&self, idempotent: bool) -> bool {
        matches!(self.kind, Kind::Unreachable) && (idempotent || !self.may_have_happened)
    }
}

struct OutsideAgent {
    url: Url,
    token: Option<Secret<String>>,
    summary: String,
    roles: Vec<String>,
    idempotent: bool,
    timeout: Duration,
}

/// What the configuration says of an agent to those of ours that may call it.
pub struct PeerTerms<'a> {
    pub summary: &'a str,
    pub guarantee: Guarantee,
    pub timeout: Duration,
}

/// The agents of others that ours may call.
pub struct OutsideAgents {
    client: Client,
    agents: BTreeMap<String, OutsideAgent>,
}

impl OutsideAgents {
    /// `Err`: what is wrong with the options.
    pub fn new(options: &Options) -> Result<Self, String> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(Duration::from_secs(5))
            .build()
            .map_err(|error| format!("no client for agents: {error}"))?;
        let agents = options.agents.iter().map(|(name, one)| {
            let OutsideAgentOptions { url, token, summary, roles, idempotent, timeout_ms } =
                one.clone();
            let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            if name.is_empty() || name.len() > 40 || !name.bytes().all(is_word) {
                let words = "its name must have 1 to 40 letters, digits, - and _";
                return Err(format!("a2a.agents.{name}: {words}"));
            }
            let timeout = Duration::from_millis(timeout_ms);
            if timeout.is_zero() || timeout > LONGEST_CALL {
                let most = LONGEST_CALL.as_millis();
                return Err(format!("a2a.agents.{name}.timeout_ms: must be 1 to {most}"));
            }
            let url: Url =
                url.parse().map_err(|error| format!("a2a.agents.{name}.url: {error}"))?;
            if !matches!(url.scheme(), "https" | "http") || url.cannot_be_a_base() {
                return Err(format!("a2a.agents.{name}.url: must begin with https://"));
            }
            let token = (!token.reveal().is_empty()).then_some(token);
            Ok((name.clone(), OutsideAgent { url, token, summary, roles, idempotent, timeout }))
        });
        Ok(Self { client, agents: agents.collect::<Result<_, _>>()? })
    }

    /// The agents that this role may call.
    pub fn for_role<'a>(&'a self, role: &'a str) -> impl Iterator<Item = &'a str> {
        let all = self.agents.iter();
        let allowed = all.filter(move |(_, agent)| agent.roles.iter().any(|one| one == role));
        allowed.map(|(name, _)| name.as_str())
    }

    /// What this role is to know of an agent. `None`: it may not call it.
    pub fn terms(&self, role: &str, name: &str) -> Option<PeerTerms<'_>> {
        let agent = self.allowed(role, name).ok()?;
        let guarantee = if agent.idempotent { Guarantee::Keyed } else { Guarantee::AtMostOnce };
        Some(PeerTerms { summary: &agent.summary, guarantee, timeout: agent.timeout })
    }

    pub fn tokens(&self) -> impl Iterator<Item = &Secret<String>> {
        self.agents.values().filter_map(|agent| agent.token.as_ref())
    }

    /// Says something to an agent, and waits for its answer until the deadline.
    pub async fn send(
        &self,
        role: &str,
        agent: &str,
        message: &OutsideMessage,
        deadline: Instant,
    ) -> Result<OutsideAnswer, PeerFailure> {
        let agent = self.allowed(role, agent)?;
        let parts = message.parts.iter().map(|part| match part {
            TaskPart::Text(text) => a2a::Part::text(text).with_media_type("text/plain"),
            TaskPart::Data(data) => {
                a2a::Part::data(data.clone()).with_media_type("application/json")
            }
        });
        let sent = a2a::Message {
            message_id: message.id.clone(),
            context_id: message.context_id.clone(),
            task_id: message.task_id.clone(),
            role: a2a::Role::User,
            parts: parts.collect(),
            metadata: None,
            extensions: None,
            reference_task_ids: None,
        };
        let params = match message.is_looked_up {
            true => json!({"message": sent, "configuration": {"returnImmediately": true}}),
            false => json!({"message": sent}),
        };
        let answer: a2a::SendMessageResponse =
            self.ask(agent, a2a::methods::SEND_MESSAGE, params, agent.idempotent, deadline).await?;
        match answer {
            a2a::SendMessageResponse::Task(task) => of_task(task),
            a2a::SendMessageResponse::Message(message) => {
                Ok(OutsideAnswer::Message { parts: parts_of(message.parts)? })
            }
        }
    }

    /// A task as it is by now.
    pub async fn task(
        &self,
        role: &str,
        agent: &str,
        task_id: &str,
        deadline: Instant,
    ) -> Result<OutsideAnswer, PeerFailure> {
        let agent = self.allowed(role, agent)?;
        let params = json!({"id": task_id});
        let asked = self.ask(agent, a2a::methods::GET_TASK, params, true, deadline).await;
        // Nothing happens by looking.
        let asked = asked.map_err(|failure| PeerFailure { may_have_happened: false, ..failure });
        of_task(asked?)
    }

    /// Ends a task, as far as the agent can end it.
    pub async fn cancel(
        &self,
        role: &str,
        agent: &str,
        task_id: &str,
        deadline: Instant,
    ) -> Result<OutsideAnswer, PeerFailure> {
        let agent = self.allowed(role, agent)?;
        let params = json!({"id": task_id});
        of_task(self.ask(agent, a2a::methods::CANCEL_TASK, params, true, deadline).await?)
    }

    fn allowed(&self, role: &str, name: &str) -> Result<&OutsideAgent, PeerFailure> {
        let agent = self.agents.get(name).filter(|agent| agent.roles.iter().any(|one| one == role));
        let none = || format!("the role {role} may call no agent of this name");
        agent.ok_or_else(|| PeerFailure::before(Kind::NotAllowed, none()))
    }

    /// One question, asked again only where that cannot do the same twice.
    async fn ask<T: DeserializeOwned>(
        &self,
        agent: &OutsideAgent,
        method: &str,
        params: Value,
        idempotent: bool,
        deadline: Instant,
    ) -> Result<T, PeerFailure> {
        let mut calls = 1;
        let mut happened = false;
        loop {
            let asked = self.ask_once(agent, method, &params, deadline).await;
            let Err(mut failure) = asked else { return asked };
            happened |= failure.may_have_happened;
            failure.may_have_happened = happened;
            let late = Instant::now() + PAUSE >= deadline;
            if calls >= MAX_CALLS || late || !failure.may_help_again(idempotent) {
                return Err(failure);
            }
            sleep(PAUSE * calls).await;
            calls += 1;
        }
    }

    async fn ask_once<T: DeserializeOwned>(
        &self,
        agent: &OutsideAgent,
        method: &str,
        params: &Value,
        deadline: Instant,
    ) -> Result<T, PeerFailure> {
        let late = |_| PeerFailure::before(Kind::TooLate, "the agent's card did not come in time");
        let address = timeout_at(deadline, self.interface(agent)).await.map_err(late)??;
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let request = self
            .client
            .post(address)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json")
            .header(a2a::SVC_PARAM_VERSION, a2a::VERSION)
            .body(body.to_string());
        let request = authorised(request, agent)?;
        let answered = async {
            let answer = request.send().await.map_err(|error| {
                // Without a connection nothing was said.
                let said = !(error.is_connect() || error.is_builder());
                let detail = error.without_url().to_string();
                PeerFailure { kind: Kind::Unreachable, detail, may_have_happened: said }
            })?;
            read(answer).await
        };
        let late = |_| PeerFailure::after(Kind::TooLate, "the answer did not come in time");
        let answer: a2a::JsonRpcResponse = timeout_at(deadline, answered).await.map_err(late)??;
        if let Some(error) = answer.error {
            let reason = a2a::error_reason(error.code);
            let detail = format!("the agent refused it ({} {reason})", error.code);
            return Err(match error.code {
                a2a::error_code::INTERNAL_ERROR => PeerFailure::after(Kind::Unreachable, detail),
                _ => PeerFailure::before(Kind::Refused, detail),
            });
        }
        serde_json::from_value(answer.result.unwrap_or_default()).map_err(unreadable)
    }

    /// Where the agent takes JSON-RPC, by its card. A token goes nowhere else than to the configured place.
    async fn interface(&self, agent: &OutsideAgent) -> Result<Url, PeerFailure> {
        let mut at = agent.url.clone();
        at.set_path(&format!("{}{CARD}", agent.url.path().trim_end_matches('/')));
        let asked = self.client.get(at).header(ACCEPT, "application/json").send().await;
        let unreachable = |error: reqwest::Error| {
            PeerFailure::before(Kind::Unreachable, error.without_url().to_string())
        };
        let card: Result<a2a::AgentCard, _> = read(asked.map_err(unreachable)?).await;
        let card = card.map_err(|failure| PeerFailure { may_have_happened: false, ..failure })?;
        let spoken = card.supported_interfaces.iter().find(|one| {
            one.protocol_binding == a2a::TRANSPORT_PROTOCOL_JSONRPC
                && one.protocol_version == a2a::VERSION
        });
        let none =
            || PeerFailure::before(Kind::Unreadable, "it does not speak A2A 1.0 over JSON-RPC");
        let address: Url = spoken.ok_or_else(none)?.url.parse().map_err(|_| none())?;
        if address.origin() != agent.url.origin() {
            let detail = "its card names another place than the configured one";
            return Err(PeerFailure::before(Kind::Refused, detail));
        }
        Ok(address)
    }
}

fn authorised(
    request: reqwest::RequestBuilder,
    agent: &OutsideAgent,
) -> Result<reqwest::RequestBuilder, PeerFailure> {
    let Some(token) = &agent.token else { return Ok(request) };
    let value = HeaderValue::from_str(&format!("Bearer {}", token.reveal()));
    let wrong = |_| PeerFailure::before(Kind::NotAllowed, "its token is no header");
    let mut value = value.map_err(wrong)?;
    value.set_sensitive(true);
    Ok(request.header(AUTHORIZATION, value))
}

async fn read<T: DeserializeOwned>(mut answer: Response) -> Result<T, PeerFailure> {
    let status = answer.status();
    let said = format!("the agent answered {status}");
    match status {
        StatusCode::OK => {}
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            return Err(PeerFailure::before(Kind::Unreachable, said));
        }
        status if status.is_server_error() => {
            return Err(PeerFailure::after(Kind::Unreachable, said));
        }
        _ => return Err(PeerFailure::before(Kind::Refused, said)),
    }
    let mut bytes = Vec::new();
    loop {
        let chunk = answer.chunk().await.map_err(|error| {
            PeerFailure::after(Kind::Unreachable, error.without_url().to_string())
        })?;
        let Some(chunk) = chunk else { break };
        if bytes.len() + chunk.len() > MAX_ANSWER {
            let detail = format!("the answer has more than {MAX_ANSWER} bytes");
            return Err(PeerFailure::after(Kind::Unreadable, detail));
        }
        bytes.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&bytes).map_err(unreadable)
}

fn unreadable(error: serde_json::Error) -> PeerFailure {
    // Only where it went wrong: its words may quote the other side.
    let at = format!("line {}, column {}", error.line(), error.column());
    PeerFailure::after(Kind::Unreadable, format!("the answer cannot be read ({at})"))
}

fn of_task(task: a2a::Task) -> Result<OutsideAnswer, PeerFailure> {
    let state = match task.status.state {
        a2a::TaskState::Submitted => TaskState::Submitted,
        a2a::TaskState::Working => TaskState::Working,
        a2a::TaskState::InputRequired => TaskState::InputRequired,
        a2a::TaskState::Completed => TaskState::Completed,
        a2a::TaskState::Failed => TaskState::Failed,
        a2a::TaskState::Canceled => TaskState::Canceled,
        a2a::TaskState::Rejected => TaskState::Rejected,
        a2a::TaskState::AuthRequired => {
            let detail = "the agent wants to be authorised by a person";
            return Err(PeerFailure::after(Kind::NeedsAuthorization, detail));
        }
        a2a::TaskState::Unspecified => {
            return Err(PeerFailure::after(Kind::Unreadable, "a task without a state"));
        }
    };
    let artifacts = task
        .artifacts
        .unwrap_or_default()
        .into_iter()
        .map(|one| Ok((one.name.unwrap_or(one.artifact_id), parts_of(one.parts)?)));
    Ok(OutsideAnswer::Task {
        id: task.id,
        context_id: task.context_id,
        state,
        said: parts_of(task.status.message.map(|said| said.parts).unwrap_or_default())?,
        artifacts: artifacts.collect::<Result<_, _>>()?,
    })
}

/// Text and data. Files are named by their address, which nobody here opens.
fn parts_of(parts: Vec<a2a::Part>) -> Result<Vec<TaskPart>, PeerFailure> {
    let parts = parts.into_iter().map(|part| match part.content {
        a2a::PartContent::Text(text) => Ok(TaskPart::Text(text)),
        a2a::PartContent::Data(data) => Ok(TaskPart::Data(data)),
        a2a::PartContent::Url(url) => Ok(TaskPart::Data(json!({"url": url}))),
        a2a::PartContent::Raw(_) => {
            Err(PeerFailure::after(Kind::Unreadable, "the answer holds a file"))
        }
    });
    parts.collect()
}
