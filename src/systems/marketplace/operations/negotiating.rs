//! The marketplace's agents, as agents of others see them: one that looks for offers, and one of each provider.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::asking::{asked_by_fields, request_pointer};
use super::requests::CreateRequest;
use crate::contract::agent::{Agent, AgentAbility, AgentProfile, IncomingMessage};
use crate::contract::call::{Services, derived_id, known_id};
use crate::contract::{Call, Outcome, Problem, input};
use crate::kernel::error::ErrorCode;
use crate::kernel::ids::is_valid_id;
use crate::kernel::task::{TASK, TaskPart, TaskPush, TaskRow};
use crate::systems::marketplace::domain::profile::ProviderView;
use crate::systems::marketplace::domain::service::Service;
use crate::systems::marketplace::domain::session::MAX_CONTENT_BYTES;
use crate::systems::marketplace::domain::task::{Command, Task, TaskAct};

/// The agents of this system: without a key the one that asks all providers, with a key that provider's.
pub struct Marketplace;

const FORMS: &str = "A data part asks ({\"ask\": {\"service\", \"place\", \"starts_at\" or \"earliest\" and \"latest\", \
    \"budget\"}}) or accepts an offer ({\"accept\": {\"offer_id\"}}); only the latter binds. A text asks in one sentence.";

impl Agent for Marketplace {
    const SCOPE: &'static str = "request";

    async fn describe(services: &Services, key: Option<&str>) -> Outcome<AgentProfile> {
        match key {
            None => Ok(concierge()),
            Some(id) => Ok(of_provider(&provider(services, id).await?)),
        }
    }

    async fn take(call: &Call, key: Option<&str>, message: IncomingMessage) -> Outcome<String> {
        if let Some(id) = key {
            provider(&call.services, id).await?;
        }
        let IncomingMessage { agent, task_id, context_id, id: message_id, parts, push } = message;
        let act = act(call, &parts)?;
        if matches!(act, TaskAct::Accept { .. }) {
            call.may("offer")?;
        }
        let of = [&*call.user_id, &*agent, &*message_id];
        // The same message is the same command, whatever door or node it comes to.
        let command_id = derived_id("msg", &of);
        let begins = task_id.is_none();
        let (task_id, context_id) = match task_id {
            None => {
                let valid = context_id.as_deref().is_none_or(is_valid_id);
                if !valid {
                    let detail = "must have 1 to 64 letters, digits, _ or -";
                    return Err(Problem::field("/message/contextId", detail));
                }
                let context_id = context_id.unwrap_or_else(|| derived_id("ctx", &of));
                (derived_id(TASK, &of), context_id)
            }
            Some(id) => {
                let row = call.own::<TaskRow>(&id, "task").await?;
                if row.agent != agent {
                    return Err(Problem::not_found("task"));
                }
                if context_id.is_some_and(|given| given != row.context_id) {
                    let detail = "is not the one of the task";
                    return Err(Problem::field("/message/contextId", detail));
                }
                (id, row.context_id)
            }
        };
        let take = Command::Take {
            agent,
            provider_id: key.map(str::to_owned),
            context_id,
            begins,
            message_id,
            parts,
            act,
            push,
        };
        let taken = call.ask::<Task>(&task_id, take, call.undeduplicated().id(command_id)).await;
        taken.map_err(|problem| problem.repoint(|at| format!("/message/parts{at}")))?;
        Ok(task_id)
    }

    async fn cancel(call: &Call, task_id: &str) -> Outcome<()> {
        ask(call, task_id, Command::Cancel).await
    }

    async fn changed(call: &Call, task_id: &str, after: u64, patience: Duration) -> Outcome<()> {
        let wait = call.within(patience);
        match call.ask::<Task>(task_id, Command::AwaitChange { after }, wait).await {
            Err(problem) if problem.code == ErrorCode::DeadlineExceeded => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn put_push(call: &Call, task_id: &str, push: TaskPush) -> Outcome<()> {
        ask(call, task_id, Command::PutPush { push }).await
    }

    async fn drop_push(call: &Call, task_id: &str, id: &str) -> Outcome<()> {
        ask(call, task_id, Command::DropPush { id: id.into() }).await
    }
}

async fn ask(call: &Call, task_id: &str, command: Command) -> Outcome<()> {
    call.ask::<Task>(task_id, command, call.meta()).await.map(drop)
}

async fn provider(services: &Services, id: &str) -> Outcome<ProviderView> {
    let row = services.views()?.get::<ProviderView>(known_id(id, "agent")?).await?;
    row.ok_or_else(|| Problem::not_found("agent"))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AcceptForm {
    offer_id: String,
}

/// What the parts of a message ask for. Data counts before words.
fn act(call: &Call, parts: &[TaskPart]) -> Outcome<TaskAct> {
    let mut texts = Vec::new();
    let mut data = Vec::new();
    for (n, part) in parts.iter().enumerate() {
        match part {
            TaskPart::Text(text) => texts.push(text.as_str()),
            TaskPart::Data(value) => data.push((n, value)),
        }
    }
    let size: usize = texts.iter().map(|text| text.len()).sum();
    if size > MAX_CONTENT_BYTES {
        let detail = format!("may have {MAX_CONTENT_BYTES} bytes of text");
        return Err(Problem::field("/message/parts", detail));
    }
    match data[..] {
        [] => Ok(TaskAct::Say(texts.join("\n"))),
        [(n, Value::Object(form))] => of_form(call, form, &format!("/message/parts/{n}/data")),
        [(n, _)] => Err(Problem::field(&format!("/message/parts/{n}/data"), "must be an object")),
        _ => Err(Problem::field("/message/parts", "may have one data part")),
    }
}

/// The closed forms: an object with one of them, and nothing beside it.
fn of_form(call: &Call, form: &Map<String, Value>, at: &str) -> Outcome<TaskAct> {
    let only = form.iter().next().filter(|_| form.len() == 1);
    match only.map(|(name, given)| (name.as_str(), given)) {
        Some(("accept", given)) => {
            let accept = AcceptForm::deserialize(given)
                .map_err(|error| Problem::field(&format!("{at}/accept"), error.to_string()))?;
            Ok(TaskAct::Accept { offer_id: accept.offer_id })
        }
        Some(("ask", given)) => {
            let below = |pointer: &str| format!("{at}/ask{pointer}");
            let body: CreateRequest = input::read(given).map_err(|p| p.repoint(below))?;
            if let Some(text) = body.text {
                return Ok(TaskAct::Say(text));
            }
            let asked = asked_by_fields(call, &body);
            let asked = asked.map_err(|p| p.repoint(|at| below(&request_pointer(at, &body))));
            Ok(TaskAct::Ask(asked?.into()))
        }
        _ => Err(Problem::field(at, "must have exactly one of ask and accept")),
    }
}

fn concierge() -> AgentProfile {
    let all = [Service::Haircut, Service::Cleaning, Service::Plumbing, Service::Photography];
    let names: Vec<_> = all.map(Service::title).to_vec();
    AgentProfile {
        name: "Proxie marketplace".into(),
        description: format!(
            "Finds who does a local service ({}), where and when a person wants it, and books it. {FORMS}",
            names.join(", ")
        ),
        version: env!("CARGO_PKG_VERSION").into(),
        skills: vec![
            AgentAbility {
                id: "find_offers".into(),
                name: "Find offers".into(),
                description: "Asks the providers that fit for offers. Nothing is bound".into(),
                tags: all.map(|service| service.title().to_owned()).to_vec(),
                examples: vec![
                    "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros"
                        .into(),
                ],
            },
            accept(),
        ],
    }
}

fn of_provider(provider: &ProviderView) -> AgentProfile {
    let services = provider.profile.services.iter();
    let skills = services.map(|offering| {
        let name = offering.service.title();
        AgentAbility {
            id: format!("offer_{name}"),
            name: format!("Offer a {name}"),
            description: format!(
                "Answers with an offer, a lower price than which it does not go, or a reason why not. \
                 List price {}, {} minutes, up to {} km from {}. Nothing is bound",
                offering.list_price(),
                offering.duration_minutes,
                provider.radius_km,
                provider.city,
            ),
            tags: vec![name.into(), provider.city.clone()],
            examples: vec![format!("A {name} tomorrow at 5 pm in {}", provider.city)],
        }
    });
    AgentProfile {
        name: provider.name.clone(),
        description: format!("The agent of {} in {}. {FORMS}", provider.name, provider.city),
        version: provider.version.to_string(),
        skills: skills.chain([accept()]).collect(),
    }
}

fn accept() -> AgentAbility {
    AgentAbility {
        id: "accept_offer".into(),
        name: "Accept an offer".into(),
        description:
            "Binding: it books the appointment. Takes the scope `offer` and the data part \
                      {\"accept\": {\"offer_id\": …}}; no text accepts anything"
                .into(),
        tags: vec!["booking".into()],
        examples: Vec::new(),
    }
}
