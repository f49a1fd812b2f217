//! One call of a tool that is outside: to its server, and back as data.

use serde_json::{Value, json};

use super::over;
use super::said::WITHHELD;
use crate::ai::servers::{OutsideFailure, OutsideFailureKind};
use crate::contract::Services;
use crate::contract::runner::RunCx;
use crate::kernel::agent::{AgentDefinition, AgentTool};
use crate::kernel::chat::ToolCall;
use crate::kernel::outward::Guarantee;
use crate::systems::agents::domain::run::{Acted, Command, UseWork};
use crate::systems::agents::outside::SCOPE;
use crate::systems::agents::settings::Models;

pub const AWAY: &str =
    "This tool cannot be used in this conversation: its server was away when it began.";

/// Calls a tool of an outside server, until the run does not want it any more.
pub async fn call(
    services: &Services,
    cx: &RunCx,
    use_id: u32,
    work: &UseWork,
    (agent, tool): (&AgentDefinition, &AgentTool),
    call: &ToolCall,
) -> Acted {
    let Some(models) = services.settings.get::<Models>() else {
        return refused("This node has no outside servers.");
    };
    if !work.scopes.have(SCOPE) {
        return refused("The person's token does not let their agent reach outside.");
    }
    let key = format!("{}-{use_id}", cx.key);
    let name = &tool.spec.name;
    let called = tokio::select! {
        biased;
        () = over(&services.entities, &cx.key, Command::UseOver { use_id }) => None,
        called = models.outside.call(&agent.name, name, &call.arguments, &key) => Some(called),
    };
    // What was begun and is dropped may have happened.
    let Some(called) = called else { return Acted::Unknown };
    match called {
        Ok(mut result) => {
            // Some servers answer with what they were sent.
            for secret in models.withheld(services).iter().filter(|it| it.reveal().len() > 3) {
                result.content = result.content.replace(secret.reveal(), WITHHELD);
            }
            let (content, is_error) = (marked(name, &result.content), result.is_error);
            Acted::Returned { content, is_error }
        }
        Err(failure) if !failure.may_have_happened() => refused(&why(&failure)),
        Err(_) if work.guarantee == Guarantee::AtMostOnce => Acted::Unknown,
        Err(failure) => {
            let OutsideFailure { detail, .. } = failure;
            refused(&format!("Whether it has happened is unknown: {detail}."))
        }
    }
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
