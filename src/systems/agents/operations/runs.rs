//! Runs of agents: started, listened to, allowed, stopped.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::contract::call::known_id;
use crate::contract::list::{Page, Paging};
use crate::contract::operation::Nothing;
use crate::contract::{Call, Meta, Operation, Outcome, Problem};
use crate::kernel::agent::AgentTool;
use crate::kernel::chat::{Part, PromptMessage};
use crate::kernel::entity::Entity;
use crate::kernel::error::{AskError, ErrorCode};
use crate::kernel::text;
use crate::systems::agents::definitions::{Agents, DefinedAgent};
use crate::systems::agents::domain::run::{AgentRun, Command, Reply, RunDetail, RunOrder, RunView};
use crate::systems::photos::api as photos;

/// The agents that can be started.
pub struct ListAgents;

#[derive(Debug, Serialize, JsonSchema)]
pub struct AgentList {
    pub items: Vec<AgentView>,
}

/// An agent, as its present version; one with outside tools gets another version with these.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AgentView {
    pub name: String,
    pub summary: String,
    pub version: String,
    pub tools: Vec<AgentToolView>,
    pub hands_over_to: Vec<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct AgentToolView {
    pub name: String,
    pub description: String,
    /// Whether you are asked before each call.
    pub asks_first: bool,
}

impl Operation for ListAgents {
    const META: Meta =
        Meta::query("agent.list", "The agents that work for you").scope("run").get("/v1/agents");
    type Input = Nothing;
    type Answer = AgentList;

    async fn run(call: &Call, _: Nothing) -> Outcome<AgentList> {
        let items = agents(call).all(&call.services).map_err(misconfigured)?;
        let items = items.iter().map(|(name, agent)| AgentView {
            name: name.clone(),
            summary: agent.summary.clone(),
            version: agent.version.clone(),
            tools: agent.definition.tools.iter().map(shown_tool).chain(outside(agent)).collect(),
            hands_over_to: agent.definition.hands_over_to.clone(),
        });
        Ok(AgentList { items: items.collect() })
    }
}

fn shown_tool(tool: &AgentTool) -> AgentToolView {
    AgentToolView {
        name: tool.spec.name.clone(),
        description: tool.spec.description.clone(),
        asks_first: tool.asks_first,
    }
}

/// Outside tools say what they do when a run begins, and their server is asked.
fn outside(agent: &DefinedAgent) -> impl Iterator<Item = AgentToolView> {
    agent.outside.iter().map(|wish| AgentToolView {
        name: wish.name.clone(),
        description: "A tool of an outside server".into(),
        asks_first: wish.asks_first,
    })
}

fn agents(call: &Call) -> &Agents {
    call.settings()
}

fn misconfigured(why: &str) -> Problem {
    tracing::error!(why, "the agents of this node are not what the configuration says");
    Problem::new(ErrorCode::Internal, "the agents are not configured well")
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct NewRun {
    /// Which agent. Default: `assistant`.
    agent: Option<String>,
    /// What it is to do, in your words.
    #[schemars(length(min = 1, max = 32_768))]
    text: String,
    /// Photos of yours that it is to see, by their ids.
    #[schemars(length(max = 5))]
    photos: Option<Vec<String>>,
}

/// A run of an agent for the caller.
pub struct Start;

impl Operation for Start {
    const META: Meta = Meta::command("run.start", "Start an agent that works for you")
        .post("/v1/runs")
        .creates("/v1/runs/");
    type Input = NewRun;
    type Answer = RunView;

    async fn run(call: &Call, input: NewRun) -> Outcome<RunView> {
        let words = words(call, &input.text, input.photos).await?;
        let name = input.agent.as_deref().unwrap_or("assistant");
        let all = agents(call).all(&call.services).map_err(misconfigured)?;
        let agent = all.get(name);
        let agent = agent.ok_or_else(|| Problem::field("/agent", "there is no such agent"))?;
        let agent = agents(call).store(&call.services, agent).await?;
        let start = RunOrder {
            agent: name.to_owned(),
            version: agent.version.clone(),
            terms: agent.definition.terms,
            scopes: agent.definition.scopes.clone(),
            words,
        };
        let id = call.new_id("run");
        shown(call.ask::<AgentRun>(&id, Command::Start(Box::new(start)), call.meta()).await?)
    }
}

/// Photos of one message.
const MAX_PHOTOS: usize = 5;

async fn words(call: &Call, text: &str, photos: Option<Vec<String>>) -> Outcome<PromptMessage> {
    let text = text::cleaned(text);
    if text.trim().is_empty() {
        return Err(Problem::field("/text", "must not be empty"));
    }
    let photos = photos.unwrap_or_default();
    if photos.len() > MAX_PHOTOS {
        return Err(Problem::field("/photos", format!("must be {MAX_PHOTOS} at most")));
    }
    photos::check(&call.services, &call.user_id, &photos, "/photos").await?;
    let mut parts = vec![Part::Text { text }];
    parts.extend(photos.into_iter().map(|id| Part::Photo { id }));
    Ok(PromptMessage::User { parts })
}

fn shown(reply: Reply) -> Outcome<RunView> {
    match reply {
        Reply::Run(view) => Ok(view),
        _ => Err(AskError::Internal.into()),
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct RunId {
    run_id: String,
}

/// A run with its conversation.
pub struct Get;

impl Operation for Get {
    const META: Meta = Meta::query("run.get", "A run: what was said, and what waits for your word")
        .get("/v1/runs/{run_id}");
    type Input = RunId;
    type Answer = RunDetail;

    async fn run(call: &Call, RunId { run_id }: RunId) -> Outcome<RunDetail> {
        let id = known_id(&run_id, AgentRun::KIND)?;
        match call.ask::<AgentRun>(id, Command::Show, call.undeduplicated()).await? {
            Reply::Shown(detail) => Ok(*detail),
            _ => Err(AskError::Internal.into()),
        }
    }
}

/// The caller's runs.
pub struct List;

impl Operation for List {
    const META: Meta = Meta::query("run.list", "Your runs, newest first").get("/v1/runs");
    type Input = Paging;
    type Answer = Page<RunView>;

    async fn run(call: &Call, paging: Paging) -> Outcome<Page<RunView>> {
        call.own_rows::<Self, _>(paging).await
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct NewWords {
    run_id: String,
    #[schemars(length(min = 1, max = 32_768))]
    text: String,
    /// Photos of yours that it is to see, by their ids.
    #[schemars(length(max = 5))]
    photos: Option<Vec<String>>,
}

/// What the caller says to an agent, at work or after it has answered.
pub struct Say;

impl Operation for Say {
    const META: Meta = Meta::command("run.say", "Say something to an agent, also while it works")
        .post("/v1/runs/{run_id}/messages");
    type Input = NewWords;
    type Answer = RunView;

    async fn run(call: &Call, input: NewWords) -> Outcome<RunView> {
        let text = words(call, &input.text, input.photos).await?;
        let id = known_id(&input.run_id, AgentRun::KIND)?;
        shown(call.ask::<AgentRun>(id, Command::Say { text }, call.meta()).await?)
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ApprovalDecision {
    run_id: String,
    use_id: u32,
    /// The hash that was shown with the arguments: what is allowed is this call, and no other.
    arguments_hash: String,
    allow: bool,
}

/// The caller's word on a call that waits for it.
pub struct Decide;

impl Operation for Decide {
    const META: Meta =
        Meta::command("run.decide", "Allow what an agent wants to do for you, or do not")
            .post("/v1/runs/{run_id}/decisions/{use_id}");
    type Input = ApprovalDecision;
    type Answer = RunView;

    async fn run(call: &Call, input: ApprovalDecision) -> Outcome<RunView> {
        let ApprovalDecision { run_id, use_id, arguments_hash: arguments, allow } = input;
        let id = known_id(&run_id, AgentRun::KIND)?;
        let decide = Command::Decide { use_id, arguments, allow };
        shown(call.ask::<AgentRun>(id, decide, call.meta()).await?)
    }
}

/// The end of a run, by its owner.
pub struct Cancel;

impl Operation for Cancel {
    const META: Meta =
        Meta::command("run.cancel", "Stop an agent").post("/v1/runs/{run_id}/cancel");
    type Input = RunId;
    type Answer = RunView;

    async fn run(call: &Call, RunId { run_id }: RunId) -> Outcome<RunView> {
        let id = known_id(&run_id, AgentRun::KIND)?;
        shown(call.ask::<AgentRun>(id, Command::Cancel, call.meta()).await?)
    }
}
