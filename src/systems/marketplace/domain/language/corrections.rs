//! Corrections within a message.

use super::token::{Kind, Token};
use super::{acts, leftover, numbers, time};
use crate::systems::marketplace::domain::places;

/// The token at which the last correction starts: "no wait", "sorry, I meant", "actually".
pub(super) fn corrected_at(tokens: &[Token]) -> Option<usize> {
    let words: Vec<usize> = (0..tokens.len()).filter(|n| tokens[*n].kind == Kind::Word).collect();
    let said = |n: usize, phrase: &str| {
        phrase
            .split(' ')
            .enumerate()
            .all(|(k, word)| words.get(n + k).is_some_and(|at| tokens[*at].is(word)))
    };
    let cue = |n: &usize| {
        let at = words[*n];
        // "tomorrow at 5, no, at 6"
        let no = tokens[at].is("no")
            && at > 0
            && tokens[at - 1].is(",")
            && tokens.get(at + 1).is_some_and(|next| next.is(","));
        no || takes_back(tokens, at) || acts::CORRECTIONS.iter().any(|phrase| said(*n, phrase))
    };
    (0..words.len()).rev().find(cue).map(|n| words[n])
}

/// "on Monday, no Tuesday", "at 5pm, no 6pm", "in Berlin, no Hamburg": whether a "no" stands between two things of the
/// same kind.
pub(super) fn takes_back(tokens: &[Token], at: usize) -> bool {
    const LINKS: &[&str] = &[
        "in", "on", "at", "near", "under", "up", "to", "max", "rather", "the", "around", "€", "$",
        "£",
    ];
    let day = |token: &Token| {
        time::weekday(token).is_some()
            || time::month(token).is_some()
            || token.any(&["today", "tomorrow", "tonight"])
    };
    let hour = |token: &Token| {
        numbers::small_number(token).is_some()
            || token.any(&["noon", "midnight", "half", "quarter"])
    };
    if !tokens[at].is("no") {
        return false;
    }
    let comma = at > 0 && tokens[at - 1].any(&[",", ".", "-", "–", "—", ";"]);
    let next = (at + 1..tokens.len()).take(4).find(|n| !tokens[*n].any(LINKS));
    let Some(next) = next else { return false };
    let before = &tokens[..at];
    if day(&tokens[next]) {
        return before.iter().any(day);
    }
    if !comma {
        return false;
    }
    if hour(&tokens[next]) || tokens[next].kind == Kind::Number {
        return before.iter().any(|token| hour(token) || token.kind == Kind::Number);
    }
    let named = |tokens: &[Token]| {
        let found = places::find_in(tokens, "UTC", None, leftover::is_known);
        found.place.is_some() || !found.unread.is_empty()
    };
    named(&tokens[at + 1..tokens.len().min(next + 4)]) && named(before)
}
