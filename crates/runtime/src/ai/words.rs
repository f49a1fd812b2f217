//! Vectors of words, made in this process: what shares words and parts of words is near. They know nothing of what words
//! mean, so "the pipe leaks" is not near to "call a plumber"; a model of a provider is better where there is one.

use std::collections::{HashMap, HashSet};

use crate::kernel::ids::stable_hash;

pub const DIMENSIONS: usize = 512;
/// Whatever is changed about the vectors changes this.
pub const IDENTITY: &str = "words 1";

fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase)
}

/// How much a word says: short ones are the frequent ones, in most languages.
fn weight(word: &str) -> f32 {
    ((word.chars().count() as f32 - 1.0) / 6.0).clamp(0.05, 1.0)
}

/// The vector of a text, of length 1.
pub fn vector(text: &str) -> Vec<f32> {
    let mut vector = vec![0.0; DIMENSIONS];
    let mut add = |feature: &str, amount: f32| {
        let hash = stable_hash(&[feature.as_bytes()]);
        let sign = if hash >> 40 & 1 == 1 { amount } else { -amount };
        vector[hash as usize % DIMENSIONS] += sign;
    };
    for word in words(text) {
        let weight = weight(&word);
        add(&word, weight);
        let letters: Vec<char> = ['<'].into_iter().chain(word.chars()).chain(['>']).collect();
        let parts = letters.windows(3);
        let each = 1.5 * weight / parts.len().max(1) as f32;
        parts.for_each(|part| add(&part.iter().collect::<String>(), each));
    }
    if vector.iter().all(|part| *part == 0.0) {
        vector[stable_hash(&[text.as_bytes()]) as usize % DIMENSIONS] = 1.0;
    }
    let length = vector.iter().map(|part| part * part).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|part| *part /= length);
    vector
}

/// How well each text fits the question by its words: BM25, with the texts as the collection.
pub fn scores(question: &str, texts: &[&str]) -> Vec<f32> {
    let asked: HashSet<String> = words(question).collect();
    let counted = texts.iter().map(|text| {
        let (mut counts, mut all) = (HashMap::new(), 0.0);
        for word in words(text) {
            all += 1.0;
            if asked.contains(&word) {
                *counts.entry(word).or_insert(0.0) += 1.0;
            }
        }
        (counts, all)
    });
    let counted: Vec<(HashMap<String, f32>, f32)> = counted.collect();
    let n = texts.len() as f32;
    let usual = (counted.iter().map(|(_, all)| all).sum::<f32>() / n.max(1.0)).max(1.0);
    let rarity: HashMap<&str, f32> = asked
        .iter()
        .map(|word| {
            let with =
                counted.iter().filter(|(counts, _)| counts.contains_key(word)).count() as f32;
            (word.as_str(), (1.0 + (n - with + 0.5) / (with + 0.5)).ln())
        })
        .collect();
    let score = |(counts, all): &(HashMap<String, f32>, f32)| {
        // In one order, since sums of fractions depend on it.
        let mut words: Vec<_> = counts.iter().collect();
        words.sort_unstable_by(|a, b| a.0.cmp(b.0));
        let part = |(word, count): (&String, &f32)| {
            rarity[word.as_str()] * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * all / usual))
        };
        words.into_iter().map(part).sum()
    };
    counted.iter().map(score).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(one: &str, other: &str) -> f32 {
        vector(one).iter().zip(vector(other)).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn what_shares_words_is_near_and_what_shares_meaning_only_is_not() {
        let asked = "Which hairdresser did I like?";
        let told = "I liked the hairdresser at Alexanderplatz";
        assert!(near(asked, told) > 0.4, "{}", near(asked, told));
        assert!(near(asked, told) > 3.0 * near(asked, "The invoice for the boiler is due in May"));
        assert!(near("the pipe leaks", "call a plumber") < 0.2, "it is no model of language");
        assert!((near(asked, asked) - 1.0).abs() < 1e-5);
        for odd in ["", "…", "!?", "日本語"] {
            assert!((near(odd, odd) - 1.0).abs() < 1e-5, "{odd}");
        }
    }

    #[test]
    fn the_vectors_of_a_release_are_those_of_the_next() {
        let vector = vector("a haircut");
        let sum: f32 = vector.iter().enumerate().map(|(n, part)| n as f32 * part).sum();
        assert!((sum - SUM).abs() < 0.01, "{sum}: raise the number in IDENTITY");
    }
    const SUM: f32 = 430.27;

    #[test]
    fn rare_words_say_more_than_frequent_ones() {
        let texts = ["the tea is hot", "the allergy to nuts", "the the the the", "the door"];
        let scores = scores("the nuts", &texts);
        let best = scores.iter().copied().fold(f32::MIN, f32::max);
        assert_eq!(scores.iter().position(|score| *score == best), Some(1), "{scores:?}");
    }
}
