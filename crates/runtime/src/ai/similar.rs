//! Answers to questions that mean the same: only what was said last is compared by its meaning, and everything before it is
//! the same to the letter.

use std::time::Duration;

use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::answers::{Keep, as_kept, hear, is_of_its_moment};
use super::router::AnswerDelta;
use crate::kernel::chat::{AnswerEnd, Completion, Kept, Part, Prompt, PromptMessage};
use crate::kernel::entity::to_value;

/// Longer words are not compared.
const MAX_WORDS: usize = 8_192;
/// What looking for an answer may take, and keeping one, before a model is asked all the same.
const PATIENCE: Duration = Duration::from_secs(3);

/// A question as it is looked for.
pub struct SimilarQuestion {
    /// A hash of the person, of the models that may answer and of everything but what was said last. Also of the numbers
    /// in that, which no vector tells apart.
    pub scope: [u8; 32],
    pub words: String,
}

/// What was found, and the words' vector, under which an answer can be kept.
#[derive(Default)]
pub struct SimilarFound {
    pub answer: Option<Vec<u8>>,
    pub vector: Option<Vec<f32>>,
}

/// A person's answers by the meaning of what they have asked, each sealed.
pub trait SimilarAnswers: Send + Sync {
    /// Nothing also where nobody makes a vector, or the store is away.
    fn find<'a>(&'a self, question: &'a SimilarQuestion) -> BoxFuture<'a, SimilarFound>;
    fn keep<'a>(
        &'a self,
        question: &'a SimilarQuestion,
        vector: &'a [f32],
        answer: Vec<u8>,
    ) -> BoxFuture<'a, ()>;
}

/// `None`: its answer is not looked for, and not kept.
pub(super) fn question<'a>(
    keep: &Keep<'_>,
    prompt: &Prompt,
    models: impl Iterator<Item = &'a str>,
) -> Option<SimilarQuestion> {
    if is_of_its_moment(keep, prompt) || prompt.has_images() {
        return None;
    }
    let (PromptMessage::User { parts }, before) = prompt.messages.split_last()? else {
        return None;
    };
    let texts = parts.iter().filter_map(|part| match part {
        Part::Text { text } => Some(text.as_str()),
        _ => None,
    });
    let words = texts.collect::<Vec<_>>().join("\n");
    if words.trim().is_empty() || words.len() > MAX_WORDS {
        return None;
    }
    let mut hash = Sha256::new();
    let mut part = |part: &str| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    part("proxie similar 1");
    part(keep.person);
    part(&to_value(&Prompt { messages: before.to_vec(), ..prompt.clone() }).to_string());
    let numbers = words.split(|c: char| !c.is_numeric()).filter(|number| !number.is_empty());
    part(&numbers.collect::<Vec<_>>().join(" "));
    models.for_each(part);
    Some(SimilarQuestion { scope: hash.finalize().into(), words })
}

/// The kept answer to a question that means the same, as it is given again.
pub(super) async fn found(
    similar: &dyn SimilarAnswers,
    question: &SimilarQuestion,
    deadline: Instant,
    sink: Option<&mpsc::Sender<AnswerDelta>>,
) -> (Option<Completion>, Option<Vec<f32>>) {
    let limit = deadline.min(Instant::now() + PATIENCE);
    let Ok(found) = timeout_at(limit, similar.find(question)).await else { return (None, None) };
    // What another release has written otherwise is asked again.
    let answer = found.answer.and_then(|answer| serde_json::from_slice(&answer).ok());
    let answer = answer.filter(is_whole).map(|answer| as_kept(&answer, Kept::Semantic));
    if let Some(answer) = &answer {
        hear(sink, answer, deadline).await;
    }
    (answer, found.vector)
}

pub(super) async fn kept(
    similar: &dyn SimilarAnswers,
    question: &SimilarQuestion,
    vector: &[f32],
    answer: &Completion,
) {
    if !is_whole(answer) {
        return;
    }
    let bytes = to_value(answer).to_string().into_bytes();
    let limit = Instant::now() + PATIENCE;
    let _ = timeout_at(limit, similar.keep(question, vector, bytes)).await;
}

fn is_whole(answer: &Completion) -> bool {
    answer.stop == AnswerEnd::Finished && answer.calls.is_empty() && !answer.text.is_empty()
}
