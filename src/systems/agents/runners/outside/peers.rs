//! One message to an agent of others, and what has become of its task.
//!
//! A task's id is kept by the run before the task is waited for: whoever goes on after a node has died looks the task up, and
//! does not send the message again.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::{OutsideCall, refused, says_something};
use crate::ai::peers::{Outside, OutsideAgents, OutsideAnswer, OutsideMessage, PeerFailure};
use crate::cluster::CommandMeta;
use crate::contract::runner::RunError;
use crate::kernel::task::{TaskPart, TaskState};
use crate::systems::agents::domain::run::{Acted, AgentRun, Command, PeerTask};
use crate::systems::agents::outside::peer_of;
use crate::systems::agents::runners::later;

/// What is read of an answer.
const MAX_ANSWER: usize = 16 << 10;
/// Looks at a task that is being worked on begin so far apart, and end so far apart.
const FIRST_LOOK: Duration = Duration::from_millis(250);
const LAST_LOOK: Duration = Duration::from_secs(5);
/// One call over the network.
const ONE_CALL: Duration = Duration::from_secs(30);

struct Asking<'a> {
    call: &'a OutsideCall<'a>,
    agents: &'a OutsideAgents,
    peer: &'a str,
    deadline: Instant,
}

pub async fn ask(call: &OutsideCall<'_>) -> Result<Acted, RunError> {
    let named = peer_of(&call.call.name).zip(call.services.settings.get::<Outside>());
    let terms = named.and_then(|(peer, outside)| {
        Some((peer, &outside.agents, outside.agents.terms(call.role, peer)?.timeout))
    });
    let Some((peer, agents, timeout)) = terms else {
        return Ok(refused("This agent may not be asked any more."));
    };
    let asking = Asking { call, agents, peer, deadline: Instant::now() + timeout };
    let known = call.work.task.as_ref();
    match known.filter(|task| task.use_id == call.use_id || !says_something(call.call)) {
        Some(task) => Ok(asking.looked_up(&task.id, None).await),
        None if says_something(call.call) => asking.sent(known).await,
        None => Ok(refused("Nothing has been said in this conversation.")),
    }
}

impl Asking<'_> {
    fn soon(&self) -> Instant {
        (Instant::now() + ONE_CALL).min(self.deadline)
    }

    async fn look(&self, task_id: &str) -> Result<OutsideAnswer, PeerFailure> {
        self.agents.task(self.call.role, self.peer, task_id, self.soon()).await
    }

    async fn sent(&self, known: Option<&PeerTask>) -> Result<Acted, RunError> {
        let call = self.call;
        let mut message = OutsideMessage {
            id: call.id(),
            parts: parts(&call.call.arguments),
            task_id: None,
            context_id: known.map(|task| task.context_id.clone()),
            is_looked_up: true,
        };
        if let Some(task) = known {
            // What is over takes no more messages: its conversation goes on with another task.
            match self.look(&task.id).await {
                Ok(OutsideAnswer::Task { state, .. }) if state.is_over() => {}
                Ok(_) => message.task_id = Some(task.id.clone()),
                Err(failure) => return Ok(not_said(&failure)),
            }
        }
        let answer = self.agents.send(call.role, self.peer, &message, self.soon()).await;
        match answer {
            Ok(OutsideAnswer::Message { parts }) => {
                let said = json!({"said": shown(&parts)});
                Ok(call.returned(bounded(&said), false))
            }
            Ok(OutsideAnswer::Task { id, context_id, state, said, artifacts }) => {
                let (task_id, use_id) = (id.clone(), call.use_id);
                let task = PeerTask { id: task_id.clone(), context_id: context_id.clone(), use_id };
                let run = call.services.entities.of::<AgentRun>(call.key);
                let delivered = Command::Delivered { use_id, task };
                let noted = run.ask(delivered, CommandMeta::runtime()).await.map_err(later)?;
                noted.map_err(|rejection| RunError::Final(rejection.to_string()))?;
                let answer = OutsideAnswer::Task { id, context_id, state, said, artifacts };
                Ok(self.looked_up(&task_id, Some(answer)).await)
            }
            Err(failure) if failure.may_have_happened => Ok(call.unknown(&failure.detail)),
            Err(failure) => Ok(not_said(&failure)),
        }
    }

    /// The task once its agent does nothing more by itself, or as it is when the time is over.
    async fn looked_up(&self, task_id: &str, first: Option<OutsideAnswer>) -> Acted {
        let mut pause = FIRST_LOOK;
        let mut seen = first.map(Ok);
        loop {
            let answer = match seen.take() {
                Some(answer) => answer,
                None => self.look(task_id).await,
            };
            let is_last = Instant::now() + pause >= self.deadline;
            match answer {
                Ok(OutsideAnswer::Task { state, said, artifacts, .. })
                    if state.is_at_rest() || is_last =>
                {
                    let content = bounded(&task(state, &said, &artifacts));
                    return self.call.returned(content, false);
                }
                Err(failure) if is_last => {
                    let words = "It has your message, but how its task stands cannot be seen now";
                    return refused(&format!("{words}: {}.", failure.detail));
                }
                _ => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    }
}

fn not_said(failure: &PeerFailure) -> Acted {
    refused(&format!("Nothing was said to it: {}.", failure.detail))
}

fn parts(arguments: &Value) -> Vec<TaskPart> {
    let text = arguments["message"].as_str().map(|text| TaskPart::Text(text.to_owned()));
    let data = Some(&arguments["data"]).filter(|data| !data.is_null());
    text.into_iter().chain(data.map(|data| TaskPart::Data(data.clone()))).collect()
}

fn task(state: TaskState, said: &[TaskPart], artifacts: &[(String, Vec<TaskPart>)]) -> Value {
    let artifacts: Map<_, _> =
        artifacts.iter().map(|(name, parts)| (name.clone(), shown(parts))).collect();
    json!({"state": state, "said": shown(said), "artifacts": artifacts})
}

fn shown(parts: &[TaskPart]) -> Value {
    let shown = parts.iter().map(|part| match part {
        TaskPart::Text(text) => Value::String(text.clone()),
        TaskPart::Data(data) => data.clone(),
    });
    shown.collect()
}

fn bounded(answer: &Value) -> String {
    let mut text = answer.to_string();
    if text.len() > MAX_ANSWER {
        let bytes = text.len();
        text.truncate(text.floor_char_boundary(MAX_ANSWER));
        text.push_str(&format!(" … (cut: it has {bytes} bytes)"));
    }
    text
}
