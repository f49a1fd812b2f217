//! Embeddings: vectors of texts, of a provider's model or of the words alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::failure::{Failure, FailureKind};
use super::options::{EmbedderOptions, Options, WireFormat};
use super::router::{Model, ModelFailure, ModelRouter, Purse, Spent, Trial, Unsettled};
use super::wire::{self, AnswerProgress};
use super::words;
use crate::kernel::chat::{Usage, estimated_tokens};

/// The name of the embedder that needs no provider.
pub const WORDS: &str = "words";
/// What pgvector can index.
const MAX_DIMENSIONS: usize = 4_000;
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// What makes vectors of texts.
pub struct Embedder {
    /// What tells its vectors from all others.
    pub identity: String,
    pub dimensions: usize,
    /// Texts in one call.
    batch: usize,
    /// `None`: the words of this process.
    model: Option<Arc<Model>>,
    /// Whether the provider is told how many dimensions to make.
    is_shortened: bool,
}

impl Embedder {
    pub(super) fn words() -> Self {
        Self {
            identity: words::IDENTITY.into(),
            dimensions: words::DIMENSIONS,
            batch: usize::MAX,
            model: None,
            is_shortened: false,
        }
    }

    pub(super) fn of(name: &str, options: &EmbedderOptions, model: Model) -> Result<Self, String> {
        let EmbedderOptions { dimensions, batch, is_shortened, .. } = *options;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(format!("dimensions: must be 1 to {MAX_DIMENSIONS}"));
        }
        let id = if options.id.is_empty() { name } else { &options.id };
        let identity = format!("{name} {id} {dimensions}");
        Ok(Self {
            identity,
            dimensions,
            batch: batch.max(1),
            model: Some(model.into()),
            is_shortened,
        })
    }

    /// Whether it sees the words only, so that comparing words finds more than it does.
    pub fn is_lexical(&self) -> bool {
        self.model.is_none()
    }

    /// What is wrong with the embedders of these options, by themselves.
    pub(super) fn check(options: &Options) -> Result<(), String> {
        for (name, one) in &options.embedders {
            let provider = options.providers.get(&one.provider);
            if provider.is_some_and(|provider| provider.wire == WireFormat::Anthropic) {
                return Err(format!("ai.embedders.{name}.provider: it makes no vectors"));
            }
        }
        if options.embedders.contains_key(WORDS) {
            return Err(format!("ai.embedders.{WORDS}: the name is taken"));
        }
        if options.embedder != WORDS && !options.embedders.contains_key(&options.embedder) {
            return Err(format!("ai.embedder: there is no [ai.embedders.{}]", options.embedder));
        }
        Ok(())
    }
}

impl ModelRouter {
    /// The embedder of what is written now.
    pub fn embedder(&self) -> &Arc<Embedder> {
        &self.embedders[&self.embedder]
    }

    /// The embedder that has made vectors of this identity. `None`: the configuration knows it no longer.
    pub fn embedder_of(&self, identity: &str) -> Option<&Arc<Embedder>> {
        self.embedders.values().find(|one| one.identity == identity)
    }

    /// A vector of length 1 for each text, in their order.
    pub async fn embed(
        &self,
        embedder: &Embedder,
        texts: &[&str],
        purse: &Arc<dyn Purse>,
    ) -> Result<Vec<Vec<f32>>, ModelFailure> {
        let Some(model) = &embedder.model else {
            return Ok(texts.iter().map(|text| words::vector(text)).collect());
        };
        let deadline = Instant::now() + self.deadline();
        let mut spent = Spent::default();
        let mut vectors = Vec::with_capacity(texts.len());
        for batch in texts.chunks(embedder.batch) {
            let made = self.embed_batch(embedder, model, batch, purse, deadline, &mut spent).await;
            vectors
                .extend(made.map_err(|failure| spent.failed(failure, Some(model.name.clone())))?);
        }
        Ok(vectors)
    }

    /// Asks again as for an answer: only where nothing can have been charged, within the deadline.
    async fn embed_batch(
        &self,
        embedder: &Embedder,
        model: &Model,
        texts: &[&str],
        purse: &Arc<dyn Purse>,
        deadline: Instant,
        spent: &mut Spent,
    ) -> Result<Vec<Vec<f32>>, Failure> {
        let (mut wait, mut calls) = (FIRST_WAIT, 0);
        loop {
            if model.breaker.lock().admit(self.now_ms()).is_err() {
                return Err(Failure::new(FailureKind::Busy, "the embedder is paused"));
            }
            let trial = Trial::of(model);
            calls += 1;
            let failure =
                match self.embed_once(embedder, trial, texts, purse, deadline, spent).await {
                    Ok(vectors) => return Ok(vectors),
                    Err(failure) => failure,
                };
            let may_mend = matches!(
                failure.kind,
                FailureKind::Busy | FailureKind::Broken | FailureKind::Unreachable
            );
            let pause = failure.retry_after.map_or(wait, |after| after.max(wait));
            if !may_mend || calls >= self.max_calls || Instant::now() + pause >= deadline {
                return Err(failure);
            }
            sleep(pause).await;
            wait *= 2;
        }
    }

    async fn embed_once(
        &self,
        embedder: &Embedder,
        mut trial: Trial<'_>,
        texts: &[&str],
        purse: &Arc<dyn Purse>,
        deadline: Instant,
        spent: &mut Spent,
    ) -> Result<Vec<Vec<f32>>, Failure> {
        let model = trial.model;
        let _place = model.provider.place(deadline).await?;
        let input = texts.iter().map(|text| estimated_tokens(text.len()).max(1)).sum();
        let most = model.price.of(&Usage { input, ..Usage::default() });
        let call = spent.calls;
        purse.reserve(call, &model.name, most).await?;
        spent.calls += 1;
        let mut bill = Unsettled {
            purse: purse.clone(),
            call,
            model,
            input,
            progress: AnswerProgress::default(),
            is_settled: false,
        };
        let limit = deadline.min(Instant::now() + self.clocks.first_content);
        let dimensions = embedder.is_shortened.then_some(embedder.dimensions);
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let count = texts.len();
        let asked =
            wire::embed(&self.client, &model.target, texts, dimensions, limit, &mut bill.progress);
        let made = asked.await.and_then(|made| checked(made, count, embedder.dimensions));
        let failure = made.as_ref().err().map(|failure| failure.kind);
        let (usage, cost) = bill.settle(failure).await;
        spent.usage += usage;
        spent.cost = spent.cost.saturating_add(cost);
        trial.end(made.as_ref().err(), self.now_ms());
        let outcome = failure.map_or("ok", FailureKind::as_str);
        metrics::counter!("proxie_model_calls_total", "model" => model.name.to_string(), "outcome" => outcome)
            .increment(1);
        made
    }
}

/// As many as texts, of the configured dimensions, and made 1 long.
fn checked(
    mut made: Vec<Vec<f32>>,
    count: usize,
    dimensions: usize,
) -> Result<Vec<Vec<f32>>, Failure> {
    if made.len() != count {
        return Err(Failure::new(FailureKind::Uncertain, "there are not as many vectors as texts"));
    }
    for vector in &mut made {
        if vector.len() != dimensions {
            let why = format!("a vector has {} dimensions, and not {dimensions}", vector.len());
            return Err(Failure::new(FailureKind::NoSuchModel, why));
        }
        let length = vector.iter().map(|part| part * part).sum::<f32>().sqrt();
        if !length.is_finite() || length <= 0.0 {
            return Err(Failure::new(FailureKind::Uncertain, "a vector has no direction"));
        }
        vector.iter_mut().for_each(|part| *part /= length);
    }
    Ok(made)
}
