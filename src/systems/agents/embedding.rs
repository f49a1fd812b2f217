//! Vectors that are made beside what is asked: of memories that have none, and of all of them when the embedder is another
//! one. One node is at it at a time; what it has not done when it is killed, another one does.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::ai::{Bill, Failure, FailureKind, Purse};
use crate::contract::call::Services;
use crate::kernel::chat::Cost;
use crate::kernel::private::Trouble;
use crate::systems::agents::memories::{Memories, MemoryError, Remembered};
use crate::systems::agents::settings::{MemorySettings, Models};
use crate::systems::agents::views::{self, EmbedderRow};

/// Memories of one step.
const BATCH: usize = 64;
/// For how long one node is at it, which it renews with each step. A step is bounded by a question's deadline.
const LEASE_S: i32 = 90;
const IDLE: Duration = Duration::from_secs(5);
const BETWEEN: Duration = Duration::from_millis(10);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

pub fn keep_vectors(services: Arc<Services>) -> BoxFuture<'static, ()> {
    async move {
        let worker = ulid::Ulid::generate().to_string();
        let mut chosen = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let wait = match step(&services, &worker, &mut chosen).await {
                Ok(has_more) => {
                    pause = FIRST_PAUSE;
                    if has_more { BETWEEN } else { IDLE }
                }
                Err(error) => {
                    let error = words(&error);
                    tracing::warn!(
                        error,
                        "vectors of memories are not made yet; it is tried again"
                    );
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    pause
                }
            };
            tokio::time::sleep(wait).await;
        }
    }
    .boxed()
}

fn words(error: &MemoryError) -> String {
    match error {
        MemoryError::Model(failed) => failed.failure.message.clone(),
        error => error.to_string(),
    }
}

/// What is under way.
struct Chosen {
    row: EmbedderRow,
    /// Memories whose vectors were made since there was something to do.
    made: u64,
}

/// Whether there was something to do.
async fn step(
    services: &Services,
    worker: &str,
    chosen: &mut Option<Chosen>,
) -> Result<bool, MemoryError> {
    let Ok(views) = services.views() else { return Ok(false) };
    let router = &settings::<Models>(services).router;
    let memories =
        Memories { views, router, exact_below: settings::<MemorySettings>(services).exact_below };
    let embedder = router.embedder();
    let at = match chosen {
        Some(chosen) => chosen,
        None => {
            let row = views::choose(views, &embedder.identity, embedder.dimensions).await?;
            chosen.insert(Chosen { row, made: 0 })
        }
    };
    if !views::claim(views, &at.row, worker, LEASE_S).await? {
        return Ok(false);
    }
    let stale = views::stale(views, &at.row, BATCH).await?;
    let gauge = metrics::gauge!("proxie_memories_without_vector");
    if stale.is_empty() {
        gauge.set(0.0);
        if at.made > 0 {
            tracing::info!(
                memories = at.made,
                embedder = at.row.name,
                "all memories have their vectors"
            );
            views::clear(views, &at.row).await?;
            at.made = 0;
        }
        return Ok(false);
    }
    let left = views::count_stale(views, &at.row).await?;
    gauge.set(left as f64);
    if at.made == 0 {
        tracing::info!(
            memories = left,
            embedder = at.row.name,
            "vectors of memories are being made"
        );
    }
    let mut by_owner: Vec<(Arc<str>, Vec<Remembered>)> = Vec::new();
    for row in stale {
        let id = row.id.clone();
        match memories.open(row).await {
            Ok(Some(memory)) => {
                match by_owner.iter_mut().find(|(owner, _)| **owner == *memory.row.owner_id) {
                    Some((_, theirs)) => theirs.push(memory),
                    None => by_owner.push((memory.row.owner_id.as_str().into(), vec![memory])),
                }
            }
            // Its owner was erased, and it goes with them.
            Ok(None) => views::refuse(views, &at.row, &id).await?,
            Err(MemoryError::Vault(trouble @ Trouble::Broken(_))) => {
                tracing::error!(%trouble, "a memory cannot be read, and gets no vector");
                views::refuse(views, &at.row, &id).await?;
            }
            Err(error) => return Err(error),
        }
    }
    for (owner, theirs) in by_owner {
        at.made += make(&memories, &at.row, &owner, &theirs).await?;
    }
    Ok(true)
}

/// How many were made. What the model does not take by itself gets none.
async fn make(
    memories: &Memories<'_>,
    row: &EmbedderRow,
    owner: &Arc<str>,
    theirs: &[Remembered],
) -> Result<u64, MemoryError> {
    let embedder = memories.router.embedder();
    let purse: Arc<dyn Purse> = Arc::new(House);
    let texts: Vec<&str> = theirs.iter().map(|one| one.text.as_str()).collect();
    let made = match memories.embed(owner, embedder, &texts, &purse).await {
        Ok(vectors) => {
            let rows: Vec<_> = theirs.iter().map(|one| one.row.id.as_str()).zip(vectors).collect();
            views::put_vectors(memories.views, row, &rows).await?;
            return Ok(theirs.len() as u64);
        }
        Err(MemoryError::Model(failed)) if is_refusal(failed.failure.kind) => failed,
        Err(error) => return Err(error),
    };
    let [one] = theirs else {
        let mut made = 0;
        for one in theirs {
            made += Box::pin(make(memories, row, owner, std::slice::from_ref(one))).await?;
        }
        return Ok(made);
    };
    tracing::warn!(memory = one.row.id, reason = made.failure.message, "a memory gets no vector");
    views::refuse(memories.views, row, &one.row.id).await?;
    Ok(0)
}

fn is_refusal(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Invalid | FailureKind::TooLong | FailureKind::Policy)
}

fn settings<T: Send + Sync + 'static>(services: &Services) -> &T {
    services.settings.get().expect("`app` sets the section of every system")
}

/// Who chooses another model pays for it, and no person does.
pub struct House;

impl Purse for House {
    fn reserve(&self, _: u32, _: &str, _: Cost) -> BoxFuture<'_, Result<(), Failure>> {
        async { Ok(()) }.boxed()
    }

    fn settle(&self, _: u32, bill: Bill) -> BoxFuture<'_, ()> {
        metrics::counter!("proxie_embedding_tokens_total", "model" => bill.model.to_string())
            .increment(bill.usage.input);
        async {}.boxed()
    }
}
