//! Answers that are kept for a while: who asks the same again gets the same answer, without a call of a provider.

use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use moka::future::Cache;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::failure::{Failure, FailureKind};
use super::options::AnswerOptions;
use super::router::{AnswerDelta, ModelFailure};
use super::similar::SimilarAnswers;
use crate::kernel::chat::{AnswerEnd, Completion, Cost, Kept, Part, Prompt, PromptMessage, Usage};
use crate::kernel::entity::to_value;

/// What an entry takes besides its words.
const OVERHEAD: usize = 256;

/// Who gets an answer again, and which ones are kept. Only that person does: what they ask is theirs, and what is
/// answered may say what they have asked.
#[derive(Clone, Copy)]
pub struct Keep<'a> {
    pub person: &'a str,
    /// Also an answer that would be another one each time. Without it only those of temperature 0 are kept.
    pub any_temperature: bool,
    /// Where other nodes find it. `None`: it stays in this process.
    pub shared: Option<&'a dyn SharedAnswers>,
    /// Where answers to questions that mean the same are. `None`: only the same question is answered again.
    pub similar: Option<&'a dyn SimilarAnswers>,
}

/// Answers that all nodes see, each sealed for its person.
pub trait SharedAnswers: Send + Sync {
    /// Grows when somebody was erased. What was kept before is then not given any more.
    fn erasures(&self) -> u64;
    /// The answer to the question with this hash. `None` also where it cannot be fetched.
    fn get<'a>(&'a self, person: &'a str, hash: &'a [u8; 32]) -> BoxFuture<'a, Option<Vec<u8>>>;
    fn put<'a>(
        &'a self,
        person: &'a str,
        hash: &'a [u8; 32],
        answer: Vec<u8>,
        keep: Duration,
    ) -> BoxFuture<'a, ()>;
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct AnswerKey {
    hash: [u8; 32],
    erasures: u64,
}

/// There was an answer or a failure, for the one who asked and for nobody else.
struct NotKept;

pub(super) struct Answers {
    kept: Cache<AnswerKey, Arc<Completion>>,
    keep: Duration,
    max_bytes: usize,
    /// As of the last question.
    erasures: AtomicU64,
}

impl Answers {
    /// `None`: nothing is kept.
    pub fn new(options: &AnswerOptions) -> Option<Self> {
        if options.ttl_s == 0 || options.max_bytes == 0 {
            return None;
        }
        let keep = Duration::from_secs(options.ttl_s);
        let weight = |_: &AnswerKey, answer: &Arc<Completion>| {
            u32::try_from(answer.text.len() + OVERHEAD).unwrap_or(u32::MAX)
        };
        let kept = Cache::builder()
            .max_capacity(options.max_bytes)
            .weigher(weight)
            .time_to_live(keep)
            .build();
        let max_bytes = options.max_answer_bytes;
        Some(Self { kept, keep, max_bytes, erasures: AtomicU64::new(0) })
    }

    /// What tells the question from all others: the person, the models that may answer, and every word and parameter.
    /// `None`: its answer is not kept.
    pub fn key<'a>(
        &self,
        keep: &Keep<'_>,
        prompt: &Prompt,
        models: impl Iterator<Item = &'a str>,
    ) -> Option<AnswerKey> {
        if is_of_its_moment(keep, prompt) {
            return None;
        }
        let mut hash = Sha256::new();
        let mut part = |part: &str| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        part("proxie answer 1");
        part(keep.person);
        part(&to_value(&with_hashed_pictures(prompt)).to_string());
        models.for_each(part);
        let erasures = keep.shared.map_or(0, SharedAnswers::erasures);
        if self.erasures.swap(erasures, Ordering::AcqRel) != erasures {
            self.kept.invalidate_all();
        }
        Some(AnswerKey { hash: hash.finalize().into(), erasures })
    }

    /// The kept answer, or what `ask` comes to. Of equal questions at the same time one is asked, and the others wait for
    /// it; what it comes to is theirs only if it is kept, and else each asks for itself.
    pub async fn get_or(
        &self,
        key: AnswerKey,
        keep: &Keep<'_>,
        deadline: Instant,
        sink: Option<&mpsc::Sender<AnswerDelta>>,
        ask: impl Future<Output = Result<Completion, ModelFailure>>,
    ) -> Result<Completion, ModelFailure> {
        let hash = key.hash;
        let leads = AtomicBool::new(false);
        let mut asked = None;
        let mut ask = pin!(ask);
        let found = {
            let lead = async {
                if let Some(found) = self.shared(keep, &hash).await {
                    return Ok(Arc::new(found));
                }
                leads.store(true, Ordering::Release);
                let answer = ask.as_mut().await;
                let kept = match &answer {
                    // What was found by its meaning is not the answer to these words.
                    Ok(answer) if answer.cached.is_none() && self.keeps(answer) => {
                        Ok(as_kept(answer, Kept::Exact))
                    }
                    _ => Err(NotKept),
                };
                asked = Some(answer);
                let kept = kept?;
                self.share(keep, &hash, &kept).await;
                Ok(Arc::new(kept))
            };
            let mut found = pin!(self.kept.try_get_with::<_, NotKept>(key, lead));
            match timeout_at(deadline, &mut found).await {
                Ok(found) => Some(found),
                // The question itself has the same deadline, and a bill after it.
                Err(_) if leads.load(Ordering::Acquire) => Some(found.await),
                Err(_) => None,
            }
        };
        let outcome = |outcome: &'static str| {
            metrics::counter!("proxie_model_answers_total", "from" => outcome).increment(1);
        };
        match (asked, found) {
            (Some(answer), _) => {
                outcome(if answer.as_ref().is_ok_and(|one| one.cached.is_some()) {
                    "similar"
                } else {
                    "model"
                });
                answer
            }
            (None, Some(Ok(kept))) => {
                outcome("cache");
                hear(sink, &kept, deadline).await;
                Ok(Completion::clone(&kept))
            }
            (None, Some(Err(_))) => {
                outcome("model");
                ask.await
            }
            (None, None) => {
                let why = "the same question is under way, and there is no answer in time";
                let failure = Failure::new(FailureKind::Busy, why);
                let (usage, cost) = (Usage::default(), Cost(0));
                Err(ModelFailure { failure, model: None, usage, cost, calls_made: 0 })
            }
        }
    }

    /// Whether an answer is whole, by itself, and of a size to be kept.
    fn keeps(&self, answer: &Completion) -> bool {
        answer.stop == AnswerEnd::Finished
            && answer.calls.is_empty()
            && !answer.text.is_empty()
            && answer.text.len() <= self.max_bytes
    }

    async fn shared(&self, keep: &Keep<'_>, hash: &[u8; 32]) -> Option<Completion> {
        let found = keep.shared?.get(keep.person, hash).await?;
        // What another release has written otherwise is asked again.
        serde_json::from_slice(&found).ok().filter(|found: &Completion| self.keeps(found))
    }

    async fn share(&self, keep: &Keep<'_>, hash: &[u8; 32], answer: &Completion) {
        let Some(shared) = keep.shared else { return };
        let answer = to_value(answer).to_string().into_bytes();
        shared.put(keep.person, hash, answer, self.keep).await;
    }
}

/// The question with the hash of each picture in its place, which is as good and far shorter.
fn with_hashed_pictures(prompt: &Prompt) -> Cow<'_, Prompt> {
    if !prompt.has_images() {
        return Cow::Borrowed(prompt);
    }
    let mut hashed = prompt.clone();
    for part in hashed.messages.iter_mut().flat_map(PromptMessage::parts_mut) {
        if let Part::Image { data, .. } = part {
            let hash = Sha256::digest(data.as_bytes());
            *data = hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
        }
    }
    Cow::Owned(hashed)
}

/// Whether an answer would be another one the next time: for its temperature, or since tools have said something.
pub(super) fn is_of_its_moment(keep: &Keep<'_>, prompt: &Prompt) -> bool {
    let is_steady = keep.any_temperature || prompt.temperature == Some(0.0);
    let has_tools_in_it = prompt.messages.iter().any(|message| match message {
        PromptMessage::User { .. } => false,
        PromptMessage::Assistant { calls, .. } => !calls.is_empty(),
        PromptMessage::Tool { .. } => true,
    });
    !is_steady || has_tools_in_it
}

/// Says a kept answer to whoever listens. Who has gone hears nothing of it, as with words that come one by one.
pub(super) async fn hear(
    sink: Option<&mpsc::Sender<AnswerDelta>>,
    answer: &Completion,
    deadline: Instant,
) {
    if let Some(sink) = sink {
        let said = sink.send(AnswerDelta::Text(answer.text.clone()));
        let _ = timeout_at(deadline, said).await;
    }
}

/// The answer as it is given again: it has cost nothing, and says where it is from.
pub(super) fn as_kept(answer: &Completion, how: Kept) -> Completion {
    Completion {
        usage: Usage::default(),
        cost: Cost(0),
        calls_made: 0,
        cached: Some(how),
        ..answer.clone()
    }
}
