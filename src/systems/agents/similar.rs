//! A person's answers of models by the meaning of what they asked: in the store, sealed, for a while.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::ai::{Purse, SimilarAnswers, SimilarFound, SimilarQuestion};
use crate::contract::Call;
use crate::contract::call::Services;
use crate::kernel::private::EncryptionContext;
use crate::persistence::views::Views;
use crate::systems::agents::memories::{Memories, MemoryError};
use crate::systems::agents::purse::PersonsPurse;
use crate::systems::agents::settings::Models;
use crate::systems::agents::views::{self, SimilarPlace};

/// The kind and the field that answers are bound to, besides their owner and their scope.
const KIND: &str = "similar_answer";
const FIELD: &str = "answer";
const EACH: Duration = Duration::from_secs(30);

/// Those of one caller.
pub struct PersonsSimilarAnswers<'a> {
    call: &'a Call,
    views: &'a Views,
    models: &'a Models,
}

impl<'a> PersonsSimilarAnswers<'a> {
    /// `None`: the configuration has none, or the store is away.
    pub fn of(call: &'a Call) -> Option<Self> {
        let models = call.settings::<Models>();
        let views = call.views().ok().filter(|_| models.semantic_cache.enabled)?;
        Some(Self { call, views, models })
    }

    fn memories(&self) -> Memories<'a> {
        Memories { views: self.views, router: &self.models.router, exact_below: 0 }
    }

    /// The scope as the store has it, under the person's key: also of what makes the vectors.
    async fn scope(&self, question: &SimilarQuestion) -> Result<[u8; 32], MemoryError> {
        let embedder = &self.models.router.embedder().identity;
        let name = [b"similar ", &question.scope[..], embedder.as_bytes()].concat();
        Ok(self.memories().vault()?.blind(&self.call.user_id, &name).await?)
    }

    async fn look(&self, question: &SimilarQuestion) -> Result<SimilarFound, MemoryError> {
        let (owner, memories) = (&self.call.user_id, self.memories());
        let embedder = self.models.router.embedder();
        let purse: Arc<dyn Purse> = Arc::new(PersonsPurse::of(self.call, "embed"));
        let vector = memories.embed(owner, embedder, &[&question.words], &purse).await?.remove(0);
        let scope = self.scope(question).await?;
        let place = SimilarPlace { owner, scope: &scope, vector: &vector };
        let nearest = views::similar(self.views, &place).await?;
        let near = nearest.filter(|(_, cosine)| *cosine >= self.models.semantic_cache.threshold);
        let answer = match near {
            Some((sealed, _)) => memories.vault()?.open(&sealed, &context(&scope), FIELD).await?,
            None => None,
        };
        Ok(SimilarFound { answer, vector: Some(vector) })
    }

    async fn put(
        &self,
        question: &SimilarQuestion,
        vector: &[f32],
        answer: &[u8],
    ) -> Result<(), MemoryError> {
        let (owner, options) = (&self.call.user_id, &self.models.semantic_cache);
        let scope = self.scope(question).await?;
        let (sealed, key) = self.memories().seal_as(owner, &context(&scope), FIELD, answer).await?;
        let place = SimilarPlace { owner, scope: &scope, vector };
        let max = options.max_per_person;
        views::keep_similar(self.views, &place, key, &sealed, options.ttl_s, max).await?;
        Ok(())
    }
}

fn context(scope: &[u8; 32]) -> EncryptionContext {
    let name: String = scope.iter().map(|byte| format!("{byte:02x}")).collect();
    EncryptionContext::new(KIND, &name)
}

impl SimilarAnswers for PersonsSimilarAnswers<'_> {
    fn find<'a>(&'a self, question: &'a SimilarQuestion) -> BoxFuture<'a, SimilarFound> {
        async {
            self.look(question).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "a similar question is not looked for; the model is asked");
                SimilarFound::default()
            })
        }
        .boxed()
    }

    fn keep<'a>(
        &'a self,
        question: &'a SimilarQuestion,
        vector: &'a [f32],
        answer: Vec<u8>,
    ) -> BoxFuture<'a, ()> {
        async move {
            if let Err(error) = self.put(question, vector, &answer).await {
                tracing::warn!(%error, "an answer is not kept for similar questions");
            }
        }
        .boxed()
    }
}

/// Deletes what has expired, and what is too much, also where nothing is kept any more. Any node does.
pub fn keep_few(services: Arc<Services>) -> BoxFuture<'static, ()> {
    async move {
        let models: &Models =
            services.settings.get().expect("`app` sets the section of every system");
        let max = models.semantic_cache.max;
        loop {
            let has_more = match services.views() {
                Ok(views) => views::sweep_similar(views, max).await.unwrap_or(false),
                Err(_) => false,
            };
            if !has_more {
                tokio::time::sleep(EACH).await;
            }
        }
    }
    .boxed()
}
