//! One call of a tool, for the person whose agent asked for it.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::{Versions, later, outside};
use crate::ai::servers::LONGEST_CALL;
use crate::cluster::CommandMeta;
use crate::contract::runner::{
    LateServices, RunCx, RunError, RunLimits, Runner, RunnerParts, SystemRunner,
};
use crate::contract::{Call, Problem, Services};
use crate::kernel::agent::ToolPlace;
use crate::kernel::conversation::RunFollower;
use crate::kernel::error::ErrorCode;
use crate::kernel::outward::Guarantee;
use crate::kernel::work::Work;
use crate::systems::agents::definitions::tool_named;
use crate::systems::agents::domain::run::{Acted, AgentRun, Command, Reply, UseOf, UseWork};

/// What a model is shown of one result. What is longer is cut, and says so.
const MAX_RESULT: usize = 16 << 10;
/// The longest that one attempt may take.
const LONGEST: Duration = Duration::from_secs(30);

/// The runner of `Act` and `RepeatableAct`.
pub struct Actor<W> {
    services: LateServices,
    versions: Versions,
    work: PhantomData<fn() -> W>,
}

impl<W: Work<Input = UseOf, Outcome = Acted>> SystemRunner for Actor<W> {
    fn new(parts: &RunnerParts) -> Self {
        let services = parts.services.clone();
        Self { services, versions: Versions::new(), work: PhantomData }
    }
}

impl<W: Work<Input = UseOf, Outcome = Acted>> Runner for Actor<W> {
    type Work = W;
    const LIMITS: RunLimits = RunLimits {
        // More than any call may take.
        timeout: LONGEST_CALL.saturating_add(Duration::from_secs(60)),
        max_outcome_bytes: 1 << 20,
        concurrent: 512,
        // An entity remembers a command's id for a day.
        give_up_after: Duration::from_secs(12 * 3_600),
        ..RunLimits::DEFAULT
    };

    async fn run(&self, cx: RunCx, UseOf { use_id }: UseOf) -> Result<Acted, RunError> {
        let services = self.services.get()?;
        let run = services.entities.of::<AgentRun>(&*cx.key);
        let asked = run.ask(Command::Use { use_id }, CommandMeta::runtime()).await;
        let work = match asked.map_err(later)? {
            Ok(Reply::Use(work)) => *work,
            _ => return Ok(Acted::Over),
        };
        let is_delivered = work.task.as_ref().is_some_and(|task| task.use_id == use_id);
        if work.guarantee == Guarantee::AtMostOnce && cx.unfinished > 0 && !is_delivered {
            return Ok(Acted::Unknown);
        }
        let Some(call) = work.call.reveal() else {
            let content = "The arguments were erased.".to_owned();
            return Ok(Acted::Returned { content, is_error: true });
        };
        let definition = self.versions.get(&services, &work.version).await?;
        if let Some(tool) = definition.tool(&call.name)
            && tool.place != ToolPlace::Here
        {
            let tool = (&*definition, tool);
            return outside::call(&services, &cx, use_id, &work, tool, call).await;
        }
        let Some(operation) = tool_named(&services, &call.name) else {
            let content = "This tool does not exist any more.".to_owned();
            return Ok(Acted::Returned { content, is_error: true });
        };
        let given = call.arguments.clone();
        let called = operation.run(calling(&services, &work, &cx.key, use_id), given);
        let Ok(outcome) = tokio::time::timeout(LONGEST, called).await else {
            return match work.guarantee {
                Guarantee::AtMostOnce => Ok(Acted::Unknown),
                _ => Err(RunError::Retry(format!("no answer within {LONGEST:?}"))),
            };
        };
        match outcome {
            Ok(answer) => Ok(Acted::Returned { content: shown(answer.get()), is_error: false }),
            Err(problem) => failed(problem, work.guarantee),
        }
    }
}

/// The call as its person would make it, in the agent's scopes, under an id that is the same for each attempt.
fn calling(services: &Arc<Services>, work: &UseWork, run: &str, use_id: u32) -> Call {
    Call {
        services: services.clone(),
        user_id: work.owner.as_str().into(),
        role: work.role,
        scopes: work.scopes.clone(),
        plan: None,
        id: format!("{run}-{use_id}"),
        connection: None,
        host: None,
        counted: true,
        given: serde_json::Value::Null,
        progress: None,
        upload: None,
        download: None,
        session: work.follower.as_ref().and_then(RunFollower::session).map(Arc::from),
    }
}

fn shown(result: &str) -> String {
    if result.len() <= MAX_RESULT {
        return result.to_owned();
    }
    let cut = result.floor_char_boundary(MAX_RESULT);
    format!("{} … (cut: it has {} bytes)", &result[..cut], result.len())
}

fn failed(problem: Problem, guarantee: Guarantee) -> Result<Acted, RunError> {
    use ErrorCode::{DeadlineExceeded, Internal, Overloaded, RateLimited, Unavailable};
    let Problem { code, detail, reason, .. } = problem;
    match (code, guarantee) {
        // Refused before it was begun.
        (Overloaded | RateLimited, _) => Err(RunError::Retry(detail)),
        (Unavailable | DeadlineExceeded | Internal, Guarantee::AtMostOnce) => Ok(Acted::Unknown),
        (Unavailable | DeadlineExceeded, _) => Err(RunError::Retry(detail)),
        _ => {
            let reason = reason.unwrap_or_else(|| code.as_str().to_owned());
            let content = shown(&format!("{reason}: {detail}"));
            Ok(Acted::Returned { content, is_error: true })
        }
    }
}
