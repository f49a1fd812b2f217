//! What an agent can be asked, the same in both bindings.

use std::time::Duration;

use a2a::error_code as code;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Asked;
use super::refusal::Refusal;
use super::stream::{Changes, Until, follow};
use crate::ai::peers::{Outside, wire};
use crate::contract::agent::IncomingMessage;
use crate::contract::call::derived_id;
use crate::contract::list::ListOf;
use crate::gateway::json as strict;
use crate::kernel::clock::Timestamp;
use crate::kernel::task::{TaskFilter, TaskPart, TaskPush, TaskRow, TaskState};
use crate::persistence::tasks::tasks;

/// How long a message's answer is waited for. Beyond it the task is answered as it is: still at work.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
const MAX_MESSAGE_ID: usize = 256;
const MAX_PARTS: usize = 16;
const MAX_DATA_BYTES: usize = 16 << 10;
const MAX_PAGE: i32 = 100;
const PAGE: i32 = 50;

/// An answer: one value, or changes as they come.
pub enum Answered {
    One(Value),
    Changes(Changes),
}

pub async fn perform(asked: Asked, method: &str, params: Value) -> Result<Answered, Refusal> {
    use a2a::methods as m;
    let one = match method {
        m::SEND_MESSAGE => json!(send(&asked, read(params)?).await?),
        m::SEND_STREAMING_MESSAGE => {
            let (id, _) = begin(&asked, &read(params)?).await?;
            let row = asked.row(&id).await?;
            return follow(asked, row, Until::Rest).await.map(Answered::Changes);
        }
        m::GET_TASK => {
            let a2a::GetTaskRequest { id, history_length, .. } = read(params)?;
            let history = history(history_length)?;
            json!(wire::task(&asked.row(&id).await?, history, true))
        }
        m::LIST_TASKS => json!(list(&asked, read(params)?).await?),
        m::CANCEL_TASK => {
            let a2a::CancelTaskRequest { id, .. } = read(params)?;
            asked.row(&id).await?;
            (asked.agent.cancel)(&asked.call, &id).await?;
            json!(wire::task(&asked.once(&id, TaskState::is_over).await?, None, true))
        }
        m::SUBSCRIBE_TO_TASK => {
            let a2a::SubscribeToTaskRequest { id, .. } = read(params)?;
            let row = asked.row(&id).await?;
            if row.state.is_over() {
                let message = "the task is over: nothing of it will change";
                return Err(Refusal::new(code::UNSUPPORTED_OPERATION, message));
            }
            return follow(asked, row, Until::Over).await.map(Answered::Changes);
        }
        m::CREATE_PUSH_CONFIG => {
            let config: a2a::TaskPushNotificationConfig = read(params)?;
            let row = asked.row(&config.task_id).await?;
            let push = push_of(&asked, config)?;
            (asked.agent.put_push)(&asked.call, &row.id, push.clone()).await?;
            json!(shown(&row.id, &push))
        }
        m::GET_PUSH_CONFIG => {
            let a2a::GetTaskPushNotificationConfigRequest { task_id, id, .. } = read(params)?;
            let row = asked.row(&task_id).await?;
            let config = pushes(&row).find(|push| push.id == id);
            json!(config.map(|push| shown(&row.id, push)).ok_or_else(Refusal::task_not_found)?)
        }
        m::LIST_PUSH_CONFIGS => {
            let a2a::ListTaskPushNotificationConfigsRequest { task_id, .. } = read(params)?;
            let row = asked.row(&task_id).await?;
            let configs: Vec<_> = pushes(&row).map(|push| shown(&row.id, push)).collect();
            json!({"configs": configs, "nextPageToken": ""})
        }
        m::DELETE_PUSH_CONFIG => {
            let a2a::DeleteTaskPushNotificationConfigRequest { task_id, id, .. } = read(params)?;
            let row = asked.row(&task_id).await?;
            (asked.agent.drop_push)(&asked.call, &row.id, &id).await?;
            json!({})
        }
        m::GET_EXTENDED_AGENT_CARD => {
            let message = "the card that everybody gets is the whole one";
            return Err(Refusal::new(code::UNSUPPORTED_OPERATION, message));
        }
        _ => return Err(Refusal::new(code::METHOD_NOT_FOUND, "there is no such method")),
    };
    Ok(Answered::One(one))
}

fn read<T: DeserializeOwned>(params: Value) -> Result<T, Refusal> {
    serde_path_to_error::deserialize(params).map_err(|error| {
        let at = error.path().to_string();
        Refusal::field(if at == "." { "params" } else { &at }, error.inner().to_string())
    })
}

/// How much of the history is shown. `None`: all that is kept.
fn history(length: Option<i32>) -> Result<Option<usize>, Refusal> {
    let length = length.map(usize::try_from).transpose();
    length.map_err(|_| Refusal::field("historyLength", "must not be negative"))
}

impl Asked {
    /// A task of the caller with this agent. Anybody else's does not exist.
    async fn row(&self, id: &str) -> Result<TaskRow, Refusal> {
        let row = self.call.own::<TaskRow>(id, "task").await?;
        if row.agent == self.address { Ok(row) } else { Err(Refusal::task_not_found()) }
    }

    /// The task once it is so, or as it is when that takes too long.
    async fn once(&self, id: &str, is_so: fn(TaskState) -> bool) -> Result<TaskRow, Refusal> {
        let deadline = Instant::now() + ANSWERED_WITHIN;
        let mut row = self.row(id).await?;
        while !is_so(row.state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            (self.agent.changed)(&self.call, id, row.version, left).await?;
            row = self.row(id).await?;
        }
        Ok(row)
    }
}

/// Gives the agent a message. The answer is the task's id, and how much of its history is wanted.
async fn begin(
    asked: &Asked,
    request: &a2a::SendMessageRequest,
) -> Result<(String, Option<usize>), Refusal> {
    let a2a::SendMessageRequest { message, configuration, .. } = request;
    let configuration = configuration.as_ref();
    let length = history(configuration.and_then(|one| one.history_length))?;
    let modes = configuration.and_then(|one| one.accepted_output_modes.as_deref()).unwrap_or(&[]);
    let wants = |mode: &String| {
        matches!(
            mode.as_str(),
            "text/plain" | "text/*" | "application/json" | "application/*" | "*/*"
        )
    };
    if !modes.is_empty() && !modes.iter().any(wants) {
        let message = "answers are text/plain and application/json";
        return Err(Refusal::new(code::CONTENT_TYPE_NOT_SUPPORTED, message));
    }
    let push = configuration.and_then(|one| one.task_push_notification_config.clone());
    let push = push.map(|config| push_of(asked, config)).transpose()?;
    let incoming = IncomingMessage { push, ..incoming(asked, message)? };
    let id = (asked.agent.take)(&asked.call, asked.key.as_deref(), incoming).await?;
    Ok((id, length))
}

fn incoming(asked: &Asked, message: &a2a::Message) -> Result<IncomingMessage, Refusal> {
    if message.role != a2a::Role::User {
        return Err(Refusal::field("message.role", "must be ROLE_USER"));
    }
    if !(1..=MAX_MESSAGE_ID).contains(&message.message_id.len()) {
        let why = format!("must have 1 to {MAX_MESSAGE_ID} bytes");
        return Err(Refusal::field("message.messageId", why));
    }
    if !(1..=MAX_PARTS).contains(&message.parts.len()) {
        return Err(Refusal::field("message.parts", format!("must be 1 to {MAX_PARTS}")));
    }
    let parts = message.parts.iter().enumerate().map(|(n, part)| taken(n, part));
    let given = |id: &Option<String>| id.clone().filter(|id| !id.is_empty());
    Ok(IncomingMessage {
        agent: asked.address.clone(),
        task_id: given(&message.task_id),
        context_id: given(&message.context_id),
        id: message.message_id.clone(),
        parts: parts.collect::<Result<_, _>>()?,
        push: None,
    })
}

fn taken(n: usize, part: &a2a::Part) -> Result<TaskPart, Refusal> {
    let refused = |what: &str| {
        let message =
            format!("message.parts[{n}] is {what}: text/plain and application/json are taken");
        Refusal::new(code::CONTENT_TYPE_NOT_SUPPORTED, message)
    };
    let kind = part.media_type.as_deref().unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    match &part.content {
        a2a::PartContent::Text(text) if matches!(kind, "" | "text/plain") => {
            Ok(TaskPart::Text(text.clone()))
        }
        a2a::PartContent::Data(data) if matches!(kind, "" | "application/json") => {
            let mut data = data.clone();
            whole(&mut data);
            if data.to_string().len() > MAX_DATA_BYTES {
                let why = format!("may have {MAX_DATA_BYTES} bytes");
                return Err(Refusal::field(&format!("message.parts[{n}].data"), why));
            }
            Ok(TaskPart::Data(data))
        }
        a2a::PartContent::Raw(_) => Err(refused("a file")),
        a2a::PartContent::Url(_) => Err(refused("an address of a file")),
        a2a::PartContent::Text(_) | a2a::PartContent::Data(_) => Err(refused(kind)),
    }
}

/// Clients whose numbers are all of one kind (protobuf's `Struct`) send 6000 as 6000.0.
fn whole(data: &mut Value) {
    match data {
        Value::Number(number) => {
            let is_whole = |n: &f64| n.fract() == 0.0 && n.abs() <= 9_007_199_254_740_992.0;
            let n = number.as_f64().filter(|n| number.is_f64() && is_whole(n));
            if let Some(n) = n {
                *data = (n as i64).into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole),
        Value::Object(fields) => fields.values_mut().for_each(whole),
        _ => {}
    }
}

async fn send(
    asked: &Asked,
    request: a2a::SendMessageRequest,
) -> Result<a2a::SendMessageResponse, Refusal> {
    let (id, length) = begin(asked, &request).await?;
    let waits = request.configuration.and_then(|one| one.return_immediately) != Some(true);
    let row =
        if waits { asked.once(&id, TaskState::is_at_rest).await? } else { asked.row(&id).await? };
    Ok(a2a::SendMessageResponse::Task(wire::task(&row, length, true)))
}

async fn list(
    asked: &Asked,
    request: a2a::ListTasksRequest,
) -> Result<a2a::ListTasksResponse, Refusal> {
    let length = history(request.history_length)?;
    let size = request.page_size.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&size) {
        return Err(Refusal::field("pageSize", format!("must be 1 to {MAX_PAGE}")));
    }
    let state = match request.status {
        None | Some(a2a::TaskState::Unspecified) => None,
        // No task is ever in it.
        Some(a2a::TaskState::AuthRequired) => return Ok(no_tasks()),
        Some(wanted) => ALL_STATES.into_iter().find(|one| wire::state(*one) == wanted),
    };
    let after = request.status_timestamp_after.map(|at| at.timestamp_micros());
    let after = after.map(Timestamp::from_microsecond).transpose();
    let context_id = request.context_id.filter(|id| !id.is_empty());
    let list = ListOf::new(&["a2a.tasks", &asked.claims.sub, &asked.address]);
    let cursor = list.down_from(request.page_token.as_deref().unwrap_or_default());
    let wrong = |_| Refusal::field("pageToken", "is not one that this list has returned");
    let cursor = cursor.map_err(wrong)?;
    let filter = TaskFilter {
        owner: &asked.claims.sub,
        agent: &asked.address,
        context_id: context_id.as_deref(),
        state,
        changed_since: after
            .map_err(|_| Refusal::field("statusTimestampAfter", "is out of range"))?,
    };
    let views = asked.call.views()?;
    let found = tasks(views, &filter, &cursor, size as usize).await;
    let (page, all) = found.map_err(crate::contract::Problem::from)?;
    let page = list.page(page);
    let artifacts = request.include_artifacts == Some(true);
    let tasks: Vec<_> = page.items.iter().map(|row| wire::task(row, length, artifacts)).collect();
    Ok(a2a::ListTasksResponse {
        page_size: i32::try_from(tasks.len()).unwrap_or(size),
        tasks,
        next_page_token: page.next_cursor.unwrap_or_default(),
        total_size: i32::try_from(all).unwrap_or(i32::MAX),
    })
}

const ALL_STATES: [TaskState; 7] = [
    TaskState::Submitted,
    TaskState::Working,
    TaskState::InputRequired,
    TaskState::Completed,
    TaskState::Failed,
    TaskState::Canceled,
    TaskState::Rejected,
];

fn no_tasks() -> a2a::ListTasksResponse {
    a2a::ListTasksResponse {
        tasks: Vec::new(),
        next_page_token: String::new(),
        page_size: 0,
        total_size: 0,
    }
}

// ---- Where a task's changes are sent ---------------------------------------------------------------------------------

fn pushes(row: &TaskRow) -> impl Iterator<Item = &TaskPush> {
    row.body.reveal().into_iter().flat_map(|body| &body.pushes)
}

fn shown(task_id: &str, push: &TaskPush) -> a2a::TaskPushNotificationConfig {
    let authentication = push
        .scheme
        .clone()
        .map(|scheme| a2a::AuthenticationInfo { scheme, credentials: push.credentials.clone() });
    a2a::TaskPushNotificationConfig {
        url: push.url.clone(),
        id: Some(push.id.clone()),
        task_id: task_id.into(),
        token: push.token.clone(),
        authentication,
        tenant: None,
    }
}

fn check_push(asked: &Asked, config: &a2a::TaskPushNotificationConfig) -> Result<(), Refusal> {
    let outside = asked.gateway.settings.get::<Outside>();
    let outside = outside.ok_or_else(|| {
        Refusal::new(code::PUSH_NOTIFICATION_NOT_SUPPORTED, "this node sends no notifications")
    })?;
    outside.push.check(&config.url).map_err(|why| Refusal::field("url", why))?;
    let is_header = |text: &str| text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    let secrets = [
        ("token", config.token.as_deref()),
        ("authentication.scheme", config.authentication.as_ref().map(|one| one.scheme.as_str())),
        (
            "authentication.credentials",
            config.authentication.as_ref().and_then(|one| one.credentials.as_deref()),
        ),
    ];
    for (field, secret) in secrets {
        if secret.is_some_and(|text| text.len() > 2_048 || !is_header(text)) {
            return Err(Refusal::field(field, "must have at most 2048 visible ASCII characters"));
        }
    }
    if config.id.as_deref().is_some_and(|id| id.len() > 64 || !is_header(id)) {
        return Err(Refusal::field("id", "must have at most 64 visible ASCII characters"));
    }
    Ok(())
}

/// The address that a client names. The same one again is the same, unless the client tells them apart.
fn push_of(asked: &Asked, config: a2a::TaskPushNotificationConfig) -> Result<TaskPush, Refusal> {
    check_push(asked, &config)?;
    let (scheme, credentials) = match config.authentication {
        Some(a2a::AuthenticationInfo { scheme, credentials }) => (Some(scheme), credentials),
        None => (None, None),
    };
    let given = config.id.filter(|id| !id.is_empty());
    Ok(TaskPush {
        id: given.unwrap_or_else(|| derived_id("push", &[&config.url])),
        url: config.url,
        token: config.token.filter(|token| !token.is_empty()),
        scheme: scheme.filter(|scheme| !scheme.is_empty()),
        credentials,
    })
}

/// A body as JSON, by the same rules as at every door.
pub fn body(bytes: &[u8]) -> Result<Value, Refusal> {
    let read = strict::read(bytes);
    read.map_err(|error| {
        Refusal::new(code::PARSE_ERROR, format!("the body cannot be read: {error}"))
    })
}

/// The version that a request speaks. Without one it is 0.3, which is not spoken here.
pub fn check_version(given: &str) -> Result<(), Refusal> {
    let mut numbers = given.trim().split('.');
    let version = (numbers.next(), numbers.next().unwrap_or("0"));
    if version == (Some("1"), "0") {
        return Ok(());
    }
    let spoken = a2a::VERSION;
    let message = format!("this agent speaks A2A {spoken}: send the header A2A-Version: {spoken}");
    Err(Refusal::new(code::VERSION_NOT_SUPPORTED, message))
}
