//! One call of a tool that is outside: to its server, and back as data.

use serde_json::{Value, json};

mod peers;

use super::over;
use super::said::{SHORTEST_SECRET, WITHHELD};
use crate::ai::servers::{OutsideFailure, OutsideFailureKind};
use crate::contract::Services;
use crate::contract::runner::{RunCx, RunError};
use crate::kernel::agent::{AgentDefinition, AgentTool, ToolPlace};
use crate::kernel::chat::ToolCall;
use crate::kernel::outward::Guarantee;
use crate::systems::agents::domain::run::{Acted, Command, UseWork};
use crate::systems::agents::outside::SCOPE;
use crate::systems::agents::settings::Models;

pub const AWAY: &str =
    "This tool cannot be used in this conversation: its server was away when it began.";

/// Calls a tool outside, until the run does not want it any more.
pub async fn call(
    services: &Services,
    cx: &RunCx,
    use_id: u32,
    work: &UseWork,
    (agent, tool): (&AgentDefinition, &AgentTool),
    call: &ToolCall,
) -> Result<Acted, RunError> {
    if !work.scopes.have(SCOPE) {
        return Ok(refused("The person's token does not let their agent reach outside."));
    }
    let call = OutsideCall { services, key: &cx.key, use_id, work, role: &agent.name, call };
    let called = async {
        match tool.place {
            ToolPlace::Peer => peers::ask(&call).await,
            ToolPlace::Server | ToolPlace::Here => Ok(call.server().await),
        }
    };
    tokio::select! {
        biased;
        // What was begun and is dropped may have happened.
        () = over(&services.entities, &cx.key, Command::UseOver { use_id }) => Ok(Acted::Unknown),
        called = called => called,
    }
}

/// A call as it is to be made.
struct OutsideCall<'a> {
    services: &'a Services,
    /// The run.
    key: &'a str,
    use_id: u32,
    work: &'a UseWork,
    role: &'a str,
    call: &'a ToolCall,
}

impl OutsideCall<'_> {
    /// The same for a repetition.
    fn id(&self) -> String {
        format!("{}-{}", self.key, self.use_id)
    }

    async fn server(&self) -> Acted {
        let Some(models) = self.services.settings.get::<Models>() else {
            return refused("This node has no outside servers.");
        };
        let ToolCall { name, arguments, .. } = self.call;
        match models.outside.call(self.role, name, arguments, &self.id()).await {
            Ok(result) => self.returned(result.content, result.is_error),
            Err(failure) if !failure.may_have_happened() => refused(&why(&failure)),
            Err(failure) => self.unknown(&failure.detail),
        }
    }

    /// What came of a call that may have been made.
    fn unknown(&self, detail: &str) -> Acted {
        match self.work.guarantee {
            Guarantee::AtMostOnce => Acted::Unknown,
            _ => refused(&format!("Whether it has happened is unknown: {detail}.")),
        }
    }

    fn returned(&self, mut content: String, is_error: bool) -> Acted {
        // Some answer with what they were sent.
        let models = self.services.settings.get::<Models>();
        let secrets = models.map(|models| models.withheld(self.services)).unwrap_or_default();
        for secret in secrets.iter().filter(|secret| secret.reveal().len() >= SHORTEST_SECRET) {
            content = content.replace(secret.reveal(), WITHHELD);
        }
        Acted::Returned { content: marked(&self.call.name, &content), is_error }
    }
}

/// Whether a call to an agent of others says anything, or only looks how its task stands.
pub fn says_something(call: &ToolCall) -> bool {
    ["message", "data"].iter().any(|field| !call.arguments[*field].is_null())
}

fn refused(why: &str) -> Acted {
    Acted::Returned { content: why.to_owned(), is_error: true }
}

fn why(failure: &OutsideFailure) -> String {
    let OutsideFailure { kind, detail } = failure;
    match kind {
        OutsideFailureKind::NotAllowed => format!("This tool cannot be used any more: {detail}."),
        OutsideFailureKind::WrongArguments => {
            format!("The tool has changed since this conversation began: {detail}.")
        }
        OutsideFailureKind::NotSent => format!("The tool is away, and nothing was done: {detail}."),
        OutsideFailureKind::Refused | OutsideFailureKind::Unknown => {
            format!("Nothing was done: {detail}.")
        }
    }
}

/// A result as a model sees it: a value inside of JSON, which it cannot leave.
fn marked(tool: &str, content: &str) -> String {
    let data = match serde_json::from_str(content) {
        Ok(data @ (Value::Object(_) | Value::Array(_))) => data,
        _ => Value::String(content.to_owned()),
    };
    // By hand, since `from_outside` has to be first.
    format!("{{\"from_outside\":{},\"data\":{data}}}", json!(tool))
}
