//! Memories: what a person's agents keep for later, and find again by what it is about.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ai::{FailureKind, Purse};
use crate::contract::call::{derived_id, known_id};
use crate::contract::list::{Limit, ListOf, Page, Paging};
use crate::contract::operation::ToolEffect;
use crate::contract::{Call, Meta, Operation, Outcome, Problem};
use crate::kernel::clock::Timestamp;
use crate::kernel::error::ErrorCode;
use crate::kernel::ids::is_valid_id;
use crate::persistence::views::RowPage;
use crate::systems::agents::memories::{Memories, MemoryError, RecallQuestion, Remembered};
use crate::systems::agents::purse::PersonsPurse;
use crate::systems::agents::settings::{MemorySettings, Models};
use crate::systems::agents::views::{self, AddedMemory, MemoryRow, NewMemory};

/// What a person's agents remember.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Memory")]
pub struct MemoryView {
    pub id: String,
    /// The agent that has it. `None`: every agent of its person does.
    pub agent: Option<String>,
    pub text: String,
    pub created_at: Timestamp,
    /// False while its vector is still to be made: it is kept, and cannot be recalled yet.
    pub is_findable: bool,
}

impl From<Remembered> for MemoryView {
    fn from(memory: Remembered) -> Self {
        let Remembered { row, text } = memory;
        let agent = Some(row.agent).filter(|agent| !agent.is_empty());
        let is_findable = row.embedder != 0;
        Self { id: row.id, agent, text, created_at: row.created_at, is_findable }
    }
}

impl From<MemoryError> for Problem {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::View(error) => Self::from(error),
            MemoryError::Vault(trouble) => {
                tracing::warn!(%trouble, "the vault does not serve a memory");
                Self::unavailable()
            }
            MemoryError::Model(failed) => super::models::problem(*failed),
        }
    }
}

fn memories(call: &Call) -> Outcome<Memories<'_>> {
    let exact_below = call.settings::<MemorySettings>().exact_below;
    Ok(Memories { views: call.views()?, router: &call.settings::<Models>().router, exact_below })
}

fn purse(call: &Call) -> Arc<dyn Purse> {
    Arc::new(PersonsPurse::of(call, "embed"))
}

fn agent(given: Option<&str>) -> Outcome<Option<&str>> {
    match given {
        Some(agent) if !is_valid_id(agent) => {
            Err(Problem::field("/agent", "must be a name of letters, digits, - and _"))
        }
        agent => Ok(agent),
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct NewText {
    /// What to remember
    #[schemars(length(min = 1, max = 65_536))]
    text: String,
    /// Whose it is, of the caller's agents. Default: every agent's.
    #[schemars(length(max = 128))]
    agent: Option<String>,
}

/// Keeps a text of the caller's.
pub struct Write;

impl Operation for Write {
    const META: Meta = Meta::command("memory.write", "Remember something")
        .post("/v1/memories")
        .tool("remember", ToolEffect::Additive)
        .tool_description("Remember something about this person for later conversations");
    type Input = NewText;
    type Answer = MemoryView;

    async fn run(call: &Call, input: NewText) -> Outcome<MemoryView> {
        let settings = call.settings::<MemorySettings>();
        let (text, owner) = (input.text.as_str(), &call.user_id);
        if text.trim().is_empty() || text.len() > settings.max_bytes {
            let most = settings.max_bytes;
            return Err(Problem::field(
                "/text",
                format!("must be 1 to {most} bytes, and not blank"),
            ));
        }
        let agent = agent(input.agent.as_deref())?.unwrap_or_default();
        let memories = memories(call)?;
        let id = derived_id("mem", &[owner, &call.id]);
        let digest = memories.digest(owner, &[agent, text]).await?;
        if let Some(row) = views::get(memories.views, owner, &id).await? {
            return again(&memories, row, &digest).await;
        }
        let embedder = memories.router.embedder();
        let vector = match memories.embed(owner, embedder, &[text], &purse(call)).await {
            Ok(mut made) => Some(made.remove(0)),
            // It is kept all the same, and can be found when there is a vector of it.
            Err(MemoryError::Model(failed)) if is_of_others(failed.failure.kind) => None,
            Err(error) => return Err(error.into()),
        };
        let (words, key) = memories.seal(owner, &id, text).await?;
        let row = MemoryRow {
            id,
            owner_id: owner.to_string(),
            agent: agent.into(),
            words,
            digest,
            embedder: 0,
            created_at: call.now(),
        };
        let vector = vector.as_deref().map(|vector| (embedder.identity.as_str(), vector));
        let (bytes, limit) = (text.len(), settings.max);
        let new = NewMemory { row: &row, key, bytes, vector, limit };
        match views::add(memories.views, &new).await? {
            AddedMemory::Yes | AddedMemory::Exists => {}
            AddedMemory::Full => {
                let why = format!("{limit} memories are kept: forget some first");
                return Err(Problem::rejected("too_many_memories", why));
            }
            AddedMemory::KeyGone => return Err(Problem::unavailable()),
        }
        match views::get(memories.views, owner, &row.id).await? {
            Some(found) => again(&memories, found, &row.digest).await,
            None => Err(Problem::not_found("memory")),
        }
    }
}

/// Whether the model failed, and not the text or the budget.
fn is_of_others(kind: FailureKind) -> bool {
    !matches!(
        kind,
        FailureKind::Budget | FailureKind::Invalid | FailureKind::TooLong | FailureKind::Policy
    )
}

/// What is there under the id of this command, if it is what the command says.
async fn again(memories: &Memories<'_>, row: MemoryRow, digest: &[u8]) -> Outcome<MemoryView> {
    if row.digest != digest {
        let why = "this id was used for another memory";
        return Err(Problem::new(ErrorCode::IdReused, why));
    }
    let memory = memories.open(row).await?;
    memory.map(MemoryView::from).ok_or_else(Problem::unavailable)
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct RecallInput {
    /// What it is about
    #[schemars(length(min = 1, max = 65_536))]
    about: String,
    /// Only what this agent has, or every agent. Default: what any of them has.
    #[schemars(length(max = 128))]
    agent: Option<String>,
    /// Default: 10.
    limit: Option<Limit>,
}

/// A memory, and how well it fits.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Recalled {
    pub memory: MemoryView,
    /// The cosine of the vectors, 1 at most.
    pub score: f32,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct RecallAnswer {
    /// The best first
    pub items: Vec<Recalled>,
    /// True while some memories cannot be found, since vectors of them are still to be made.
    pub is_partial: bool,
    /// What has made the vectors. With `words` only what shares words is near.
    pub embedder: String,
}

/// Finds memories of the caller's.
pub struct Recall;

impl Operation for Recall {
    const META: Meta = Meta::query("memory.recall", "Find what was remembered about something")
        .post("/v1/memories/recall")
        .tool("recall", ToolEffect::ReadOnly);
    type Input = RecallInput;
    type Answer = RecallAnswer;

    async fn run(call: &Call, input: RecallInput) -> Outcome<RecallAnswer> {
        let most = call.settings::<MemorySettings>().max_bytes;
        if input.about.trim().is_empty() || input.about.len() > most {
            return Err(Problem::field(
                "/about",
                format!("must be 1 to {most} bytes, and not blank"),
            ));
        }
        let memories = memories(call)?;
        let question = RecallQuestion {
            owner: &call.user_id,
            agent: agent(input.agent.as_deref())?,
            text: &input.about,
            limit: input.limit.map_or(10, |limit| limit.0),
        };
        let found = memories.recall(&question, || purse(call)).await?;
        let items = found.memories.into_iter();
        let items =
            items.map(|(memory, score)| Recalled { memory: memory.into(), score }).collect();
        let embedder = memories.router.embedder().identity.clone();
        Ok(RecallAnswer { items, is_partial: found.is_partial, embedder })
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListMemories {
    /// Only what this agent has, or every agent. Default: what any of them has.
    #[schemars(length(max = 128))]
    agent: Option<String>,
    #[serde(flatten)]
    paging: Paging,
}

/// What the caller's agents remember.
pub struct List;

impl Operation for List {
    const META: Meta = Meta::query("memory.list", "What your agents remember, newest first")
        .get("/v1/memories")
        .tool("list_memories", ToolEffect::ReadOnly);
    type Input = ListMemories;
    type Answer = Page<MemoryView>;

    async fn run(call: &Call, input: ListMemories) -> Outcome<Page<MemoryView>> {
        let agent = agent(input.agent.as_deref())?;
        let memories = memories(call)?;
        let list = ListOf::new(&[Self::META.name, &call.user_id, agent.unwrap_or_default()]);
        let limit = input.paging.limit.unwrap_or_default().0;
        let from = list.down(input.paging.cursor)?;
        let page = views::page(memories.views, &call.user_id, agent, &from, limit).await?;
        let RowPage { items: rows, omitted, next } = page;
        let mut items = Vec::with_capacity(rows.len());
        for row in rows {
            items.extend(memories.open(row).await?.map(MemoryView::from));
        }
        Ok(list.page(RowPage { items, omitted, next }))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ForgetMemory {
    memory_id: String,
}

/// Whether there was something to forget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Forgotten {
    /// False: it was gone already, or never yours.
    pub was_there: bool,
}

/// Deletes a memory of the caller's, with its vector.
pub struct Forget;

impl Operation for Forget {
    const META: Meta = Meta::command("memory.forget", "Forget something for good")
        .delete("/v1/memories/{memory_id}")
        .tool("forget", ToolEffect::Destructive);
    type Input = ForgetMemory;
    type Answer = Forgotten;

    async fn run(call: &Call, input: ForgetMemory) -> Outcome<Forgotten> {
        let id = known_id(&input.memory_id, "memory")?;
        let was_there = views::forget(call.views()?, &call.user_id, id).await?;
        Ok(Forgotten { was_there })
    }
}
