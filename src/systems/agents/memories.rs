//! Memories between the store, where they are sealed, and who may read them.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::ai::{Embedder, ModelFailure, ModelRouter, Purse, words};
use crate::kernel::private::{EncryptionContext, SEALED, Trouble};
use crate::persistence::vault::Vault;
use crate::persistence::views::{ViewError, Views};
use crate::systems::agents::views::{self, EmbedderRow, MemoryRow, Nearest};

/// The kind and the field that the words are bound to, besides the owner and the memory's id.
const KIND: &str = "memory";
const FIELD: &str = "words";
/// Where words are compared too, so many more are looked at.
const COMPARED: usize = 50;
/// Dampens the first places where two orders are put together.
const RANK: f32 = 10.0;

/// A memory that can be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Remembered {
    pub row: MemoryRow,
    pub text: String,
}

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("{0}")]
    View(#[from] ViewError),
    #[error("{0}")]
    Vault(#[from] Trouble),
    #[error("no vector could be made")]
    Model(Box<ModelFailure>),
}

/// The memories of a node.
#[derive(Clone, Copy)]
pub struct Memories<'a> {
    pub views: &'a Views,
    pub router: &'a ModelRouter,
    /// An owner with fewer has each of them compared.
    pub exact_below: i64,
}

/// What is looked for.
pub struct RecallQuestion<'a> {
    pub owner: &'a str,
    pub agent: Option<&'a str>,
    pub text: &'a str,
    pub limit: usize,
}

/// What was found, the best first, and how well it fits.
pub struct Found {
    pub memories: Vec<(Remembered, f32)>,
    /// There are more that cannot be found yet, since their vectors are still to be made.
    pub is_partial: bool,
}

impl<'a> Memories<'a> {
    pub fn vault(&self) -> Result<&'a Vault, MemoryError> {
        Ok(self.views.vault()?)
    }

    /// The sealed words, and the number of the key that they are sealed under.
    pub async fn seal(
        &self,
        owner: &Arc<str>,
        id: &str,
        text: &str,
    ) -> Result<(String, i64), MemoryError> {
        let place = EncryptionContext::new(KIND, id);
        self.seal_as(owner, &place, FIELD, text.as_bytes()).await
    }

    /// The same of anything that stands in a row.
    pub async fn seal_as(
        &self,
        owner: &Arc<str>,
        place: &EncryptionContext,
        field: &str,
        plain: &[u8],
    ) -> Result<(String, i64), MemoryError> {
        let sealed = self.vault()?.seal(owner, place, field, plain).await?;
        let key = sealed.strip_prefix(SEALED).and_then(|rest| rest.split(':').next()?.parse().ok());
        let key = key.ok_or_else(|| Trouble::Broken("a sealed text names no key".into()))?;
        Ok((sealed, key))
    }

    /// `None`: the owner was erased.
    pub async fn open(&self, row: MemoryRow) -> Result<Option<Remembered>, MemoryError> {
        let place = EncryptionContext::new(KIND, &row.id);
        let opened = self.vault()?.open(&row.words, &place, FIELD).await?;
        let text = opened.map(String::from_utf8).transpose();
        let text = text.map_err(|_| Trouble::Broken("a memory is not UTF-8".into()))?;
        Ok(text.map(|text| Remembered { row, text }))
    }

    /// What tells one memory's words from another's without showing them.
    pub async fn digest(&self, owner: &Arc<str>, parts: &[&str]) -> Result<Vec<u8>, MemoryError> {
        let mut bytes = b"memory".to_vec();
        for part in parts {
            bytes.extend((part.len() as u64).to_be_bytes());
            bytes.extend(part.as_bytes());
        }
        Ok(self.vault()?.blind(owner, &bytes).await?.to_vec())
    }

    /// Vectors as they are stored: turned, so that without the owner's key they say nothing.
    pub async fn embed(
        &self,
        owner: &Arc<str>,
        embedder: &Embedder,
        texts: &[&str],
        purse: &Arc<dyn Purse>,
    ) -> Result<Vec<Vec<f32>>, MemoryError> {
        let made = self.router.embed(embedder, texts, purse).await;
        let mut vectors = made.map_err(|failed| MemoryError::Model(failed.into()))?;
        let seed = self.vault()?.blind(owner, b"turn").await?;
        let turn = Turn::new(&seed, embedder.dimensions);
        vectors.iter_mut().for_each(|vector| turn.apply(vector));
        Ok(vectors)
    }

    /// The memories that fit best. Where the embedder was changed and the vectors are still being made anew, those of the
    /// one before are looked at too, as long as the configuration knows it; what they lead to gets its new vector at once.
    pub async fn recall(
        &self,
        question: &RecallQuestion<'_>,
        purse: impl Fn() -> Arc<dyn Purse>,
    ) -> Result<Found, MemoryError> {
        let owner: Arc<str> = question.owner.into();
        let holding = views::holding(self.views, question.owner).await?;
        let mut found = Found { memories: Vec::new(), is_partial: false };
        if holding.embedders.is_empty() {
            return Ok(found);
        }
        let current = self.router.embedder();
        let limit = match current.is_lexical() {
            true => question.limit.max(COMPARED),
            false => question.limit,
        };
        let asked = self.embed(&owner, current, &[question.text], &purse()).await?.remove(0);
        let is_exact = holding.memories < self.exact_below;
        let mut near = Vec::new();
        for row in &holding.embedders {
            if row.name == current.identity {
                near.extend(self.near(question, row, &asked, limit, is_exact).await?);
                continue;
            }
            found.is_partial |= row.n == 0;
            let Some(before) = self.router.embedder_of(&row.name) else {
                found.is_partial = true;
                continue;
            };
            let asked_before =
                self.embed(&owner, before, &[question.text], &purse()).await?.remove(0);
            let old = self.near(question, row, &asked_before, limit, is_exact).await?;
            let texts: Vec<&str> = old.iter().map(|(one, _)| one.text.as_str()).collect();
            let vectors = self.embed(&owner, current, &texts, &purse()).await?;
            let nearness = |vector: &[f32]| vector.iter().zip(&asked).map(|(a, b)| a * b).sum();
            let scores: Vec<f32> = vectors.iter().map(|vector| nearness(vector)).collect();
            let rows =
                old.iter().zip(vectors).map(|((one, _), vector)| (one.row.id.as_str(), vector));
            let rows: Vec<_> = rows.collect();
            if let Some(row) = self.known(current).await? {
                views::put_vectors(self.views, &row, &rows).await?;
            }
            near.extend(old.into_iter().zip(scores).map(|((one, _), score)| (one, score)));
        }
        near.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.row.id.cmp(&b.0.row.id)));
        if current.is_lexical() {
            near = by_words_too(question.text, near);
        }
        near.truncate(question.limit);
        found.memories = near;
        Ok(found)
    }

    async fn known(&self, embedder: &Embedder) -> Result<Option<EmbedderRow>, MemoryError> {
        Ok(views::embedder(self.views, &embedder.identity).await?)
    }

    async fn near(
        &self,
        question: &RecallQuestion<'_>,
        embedder: &EmbedderRow,
        vector: &[f32],
        limit: usize,
        is_exact: bool,
    ) -> Result<Vec<(Remembered, f32)>, MemoryError> {
        let RecallQuestion { owner, agent, .. } = *question;
        let nearest = Nearest { owner, agent, embedder, vector, limit };
        let rows = views::nearest(self.views, &nearest, is_exact).await?;
        let mut opened = Vec::with_capacity(rows.len());
        for (row, score) in rows {
            match self.open(row).await {
                Ok(Some(memory)) => opened.push((memory, score)),
                Ok(None) => {}
                // Changed or moved by somebody: it is not shown, and says so.
                Err(MemoryError::Vault(trouble @ Trouble::Broken(_))) => {
                    tracing::error!(%trouble, "a memory cannot be read");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(opened)
    }
}

/// Puts the order by vectors and the order by words together.
fn by_words_too(question: &str, near: Vec<(Remembered, f32)>) -> Vec<(Remembered, f32)> {
    let texts: Vec<&str> = near.iter().map(|(one, _)| one.text.as_str()).collect();
    let scores = words::scores(question, &texts);
    let mut by_words: Vec<usize> = (0..near.len()).collect();
    by_words.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    let mut fused = vec![0.0; near.len()];
    for (place, one) in by_words.into_iter().enumerate() {
        fused[one] = 1.0 / (RANK + one as f32) + 1.0 / (RANK + place as f32);
    }
    let mut both: Vec<_> = near.into_iter().zip(fused).collect();
    both.sort_by(|a, b| b.1.total_cmp(&a.1));
    both.into_iter().map(|(one, _)| one).collect()
}

/// A rotation that follows from an owner's key: what is near stays as near, and nothing else can be told from a vector
/// without the key. Each step takes the parts in a secret order and turns them in pairs, by a secret angle each.
struct Turn(Vec<TurnStep>);

struct TurnStep {
    order: Vec<u32>,
    /// Cosine and sine.
    angles: Vec<(f32, f32)>,
}

/// Enough that each part is of all others, up to 4,000 of them.
const STEPS: usize = 12;

impl Turn {
    fn new(seed: &[u8; 32], dimensions: usize) -> Self {
        let mut random = Stream { seed: *seed, block: 0, left: Vec::new() };
        let step = |_| {
            let mut order: Vec<u32> = (0..dimensions as u32).collect();
            for last in (1..dimensions).rev() {
                let other = (u64::from(random.next()) * (last as u64 + 1)) >> 32;
                order.swap(last, other as usize);
            }
            let angles = (0..dimensions / 2).map(|_| {
                // By the tangent of half the angle, which every machine computes alike.
                let half = random.next() as f32 / 2_147_483_648.0 - 1.0;
                let square = half * half;
                ((1.0 - square) / (1.0 + square), 2.0 * half / (1.0 + square))
            });
            TurnStep { angles: angles.collect(), order }
        };
        Self((0..STEPS).map(step).collect())
    }

    fn apply(&self, vector: &mut [f32]) {
        for TurnStep { order, angles } in &self.0 {
            let mut turned: Vec<f32> = order.iter().map(|part| vector[*part as usize]).collect();
            for (pair, (cosine, sine)) in turned.chunks_exact_mut(2).zip(angles) {
                let (a, b) = (pair[0], pair[1]);
                pair[0] = a * cosine - b * sine;
                pair[1] = a * sine + b * cosine;
            }
            vector.copy_from_slice(&turned);
        }
    }
}

/// Numbers that follow from a seed, the same in every release.
struct Stream {
    seed: [u8; 32],
    block: u64,
    left: Vec<u32>,
}

impl Stream {
    fn next(&mut self) -> u32 {
        if self.left.is_empty() {
            let mut hash = Sha256::new();
            hash.update(self.seed);
            hash.update(self.block.to_be_bytes());
            self.block += 1;
            let words = hash.finalize();
            self.left = words
                .chunks_exact(4)
                .map(|w| u32::from_be_bytes([w[0], w[1], w[2], w[3]]))
                .collect();
        }
        self.left.pop().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn a_turn_keeps_what_is_near_and_shows_nothing_else() {
        let (mut one, mut other) =
            (words::vector("a haircut in Berlin"), words::vector("a haircut"));
        let (plain, near) = (one.clone(), product(&one, &other));
        let turn = Turn::new(&[7; 32], one.len());
        turn.apply(&mut one);
        turn.apply(&mut other);
        assert!((product(&one, &other) - near).abs() < 1e-4, "{near}");
        assert!((product(&one, &one) - 1.0).abs() < 1e-4);
        // Nothing of the vector is left: neither its direction nor the sizes of its parts.
        assert!(product(&one, &plain).abs() < 0.25, "{}", product(&one, &plain));
        let largest = |vector: &[f32]| vector.iter().fold(0.0_f32, |max, part| max.max(part.abs()));
        assert!(largest(&one) < 0.6 * largest(&plain), "{} {}", largest(&one), largest(&plain));
        // Of another owner it is another.
        let mut theirs = plain.clone();
        Turn::new(&[8; 32], plain.len()).apply(&mut theirs);
        assert!(product(&one, &theirs).abs() < 0.25, "{}", product(&one, &theirs));
    }

    #[test]
    fn a_turn_is_the_same_in_every_release_and_of_any_dimensions() {
        for dimensions in [1, 2, 3, 7, 384] {
            let mut vector = vec![0.0; dimensions];
            vector[0] = 1.0;
            Turn::new(&[7; 32], dimensions).apply(&mut vector);
            assert!((product(&vector, &vector) - 1.0).abs() < 1e-4, "{dimensions}");
        }
        let mut vector = [1.0, 2.0, 3.0, 4.0];
        Turn::new(&[7; 32], 4).apply(&mut vector);
        let expected = [-5.2134, -0.0682, 1.2189, -1.1532];
        assert!(vector.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-3), "{vector:?}");
    }
}
