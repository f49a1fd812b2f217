//! Models: which there are, and one question to one of them.

use std::sync::Arc;

use futures_util::future::join;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::ai::{Complexity, FailureKind, Keep, ModelAsk, ModelFailure, Purse};
use crate::contract::operation::{Nothing, ToolEffect};
use crate::contract::{Call, Meta, Operation, Outcome, Problem};
use crate::kernel::chat::{Completion, Cost, Prompt};
use crate::kernel::entity::to_value;
use crate::kernel::error::ErrorCode;
use crate::systems::agents::answers::PersonsAnswers;
use crate::systems::agents::purse::PersonsPurse;
use crate::systems::agents::settings::Models;
use crate::systems::agents::similar::PersonsSimilarAnswers;
use crate::systems::photos::api::{self as photos, Missing};

#[derive(Debug, Deserialize, JsonSchema)]
pub struct AskModel {
    prompt: Prompt,
    /// A route or a model of the configuration. Default: its `ai.route`.
    #[schemars(length(max = 128))]
    route: Option<String>,
    /// Default: by the route's rules.
    complexity: Option<Complexity>,
    /// No call that could cost more, in billionths of a US dollar.
    max_cost: Option<Cost>,
    /// Whether to ask again after a call that may be charged although its answer did not come. Default: no.
    may_pay_twice: Option<bool>,
    /// Whether an earlier answer to the same question will do, and this one for later. Default: where the temperature is 0.
    reuse: Option<bool>,
}

/// One question to a model, paid from the caller's budget.
pub struct Complete;

impl Operation for Complete {
    const META: Meta = Meta::command("ai.complete", "Ask a language model")
        .post("/v1/ai/complete")
        .streamed()
        .heard_again()
        .tool("ask_model", ToolEffect::Outside);
    type Input = AskModel;
    type Answer = Completion;

    async fn run(call: &Call, mut input: AskModel) -> Outcome<Completion> {
        let models = call.settings::<Models>();
        if input.prompt.messages.is_empty() {
            return Err(Problem::field("/prompt/messages", "must have at least one message"));
        }
        let services = &call.services;
        photos::check_pictures(services, &mut input.prompt)?;
        let missing = Missing::Refuse;
        let _room = photos::show(services, &call.user_id, &mut input.prompt, missing).await?;
        let purse: Arc<dyn Purse> = Arc::new(PersonsPurse::of(call, "ask"));
        let shared = PersonsAnswers(&call.services.sealed_cache);
        let similar = PersonsSimilarAnswers::of(call);
        let keep = (input.reuse != Some(false)).then(|| Keep {
            person: &call.user_id,
            any_temperature: input.reuse == Some(true),
            shared: Some(&shared),
            similar: similar.as_ref().map(|similar| similar as _),
        });
        let ask = ModelAsk {
            prompt: &input.prompt,
            route: input.route.as_deref(),
            complexity: input.complexity,
            deadline: None,
            may_pay_twice: input.may_pay_twice.unwrap_or(false),
            max_cost: input.max_cost,
            keep,
        };
        let Some(progress) = &call.progress else {
            return models.router.complete(&ask, &purse, None).await.map_err(problem);
        };
        let (sink, mut said) = mpsc::channel(8);
        let asked = async move { models.router.complete(&ask, &purse, Some(&sink)).await };
        // Where the listener has gone, `said` goes, and with it the call.
        let told = async move {
            while let Some(delta) = said.recv().await {
                if progress.send(to_value(&delta)).await.is_err() {
                    break;
                }
            }
        };
        join(asked, told).await.0.map_err(problem)
    }
}

/// What a failure is for whoever asked.
pub fn problem(failed: ModelFailure) -> Problem {
    let ModelFailure { failure, cost, calls_made, .. } = failed;
    let code = match failure.kind {
        FailureKind::Busy
        | FailureKind::Unreachable
        | FailureKind::Broken
        | FailureKind::Uncertain
        | FailureKind::Unauthorized
        | FailureKind::NoSuchModel
        | FailureKind::Unavailable => ErrorCode::Unavailable,
        FailureKind::TooLong | FailureKind::Policy | FailureKind::Invalid | FailureKind::Budget => {
            ErrorCode::Rejected
        }
    };
    let detail = match calls_made {
        0 => failure.message,
        _ => format!("no model has answered: {}; {cost} were spent on it", failure.message),
    };
    let mut problem = Problem::new(code, detail).reason(failure.kind.reason());
    if let Some(after) = failure.retry_after {
        problem = problem.retry_after_ms(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
    }
    problem
}

/// The models and routes that can be named.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelList {
    pub models: Vec<String>,
    pub routes: Vec<String>,
    /// What is asked where nothing is named. `None`: no model is configured, and the local parser is all there is.
    pub route: Option<String>,
}

/// The models of this cluster.
pub struct List;

impl Operation for List {
    const META: Meta = Meta::query("ai.models", "The language models that can be asked")
        .get("/v1/ai/models")
        .tool("list_models", ToolEffect::ReadOnly);
    type Input = Nothing;
    type Answer = ModelList;

    async fn run(call: &Call, _: Nothing) -> Outcome<ModelList> {
        let router = &call.settings::<Models>().router;
        let route = router.has_models().then(|| router.default_route().to_owned());
        Ok(ModelList { models: router.models(), routes: router.routes(), route })
    }
}
