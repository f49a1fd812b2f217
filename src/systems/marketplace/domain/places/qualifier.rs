//! Qualifiers that tell places of one name apart, and denials.

use std::ops::Range;

use super::{INDEX, Named, Spot};
use crate::systems::marketplace::domain::token::{Kind, Token, Words, tokens};

const DENIALS: Words = Words(
    "not, except, outside, excluding, avoid, never, without, besides, nowhere, far, away, but",
);

/// "not in Kreuzberg", "except Mitte", "but not near the station".
pub(super) fn is_denied(tokens: &[Token], at: usize) -> bool {
    let before = tokens[..at].iter().rev();
    let mut before = before.skip_while(|token| {
        token.any(&["in", "near", "at", "the", "around", "to", "from", "central", "of"])
    });
    before.next().is_some_and(|token| DENIALS.has(&token.text))
}

/// "in Mitte or Kreuzberg".
pub(super) fn listed(tokens: &[Token], other: &Named, name: &Named) -> bool {
    let (from, to) = (name.range.end, other.range.start);
    let between = tokens.get(from..to).unwrap_or_default();
    between.iter().any(|token| token.any(&["or", "and", "/"]))
        && between.iter().all(|token| token.any(&["or", "and", "/", "in", "near", ",", "also"]))
}

/// Whether another place is meant as well: named as clearly, and not nested with this one.
pub(super) fn apart(other: &Named, name: &Named, spot: &Spot) -> bool {
    let mut there = other.spots.iter().map(|n| &INDEX.spots[*n]);
    let nested = there.any(|there| there.city == spot.city);
    !nested && other.weight >= 3 && name.weight >= 3
}

/// The qualifier after a town's name: "(Oder)", ", New Hampshire", ", TX".
pub(super) fn qualifier(
    tokens: &[Token],
    at: usize,
    is_known: fn(&Token) -> bool,
) -> Option<Range<usize>> {
    let sign = tokens.get(at)?;
    let name = |n: usize| {
        tokens.get(n).is_some_and(|token| {
            token.kind == Kind::Word && token.capital && !token.taken && !is_known(token)
        })
    };
    let word = |n: usize| {
        tokens
            .get(n)
            .is_some_and(|token| token.kind == Kind::Word && !token.taken && !is_known(token))
    };
    if sign.is("(") && word(at + 1) {
        let close = (at + 1..tokens.len()).take(4).find(|n| tokens[*n].is(")"))?;
        return Some(at..close + 1);
    }
    if sign.is("/") && sign.glued && name(at + 1) {
        return Some(at..at + 2);
    }
    // ", New Hampshire"
    let state = sign.is(",").then(|| {
        (1..=2).rev().find(|count| {
            let words: Vec<&str> = tokens
                .get(at + 1..at + 1 + count)
                .unwrap_or_default()
                .iter()
                .filter(|token| token.capital && !token.taken)
                .map(|token| token.text.as_str())
                .collect();
            words.len() == *count && state_of(&words.join(" ")).is_some()
        })
    });
    if let Some(count) = state.flatten() {
        return Some(at..at + 1 + count);
    }
    // "Frankfurt an der Oder"
    if sign.any(&["an", "am", "bei", "ob", "upon", "sur", "sul"]) {
        let of =
            usize::from(tokens.get(at + 1).is_some_and(|token| token.any(&["der", "dem", "the"])));
        if name(at + 1 + of) {
            return Some(at..at + 2 + of);
        }
    }
    if !sign.is(",") || !name(at + 1) {
        // "Portland OR", "Vienna VA"
        let shouted = at > 0 && tokens[at - 1].raw.chars().all(char::is_uppercase);
        let code = !shouted
            && tokens[at].raw.len() == 2
            && tokens[at].raw.chars().all(char::is_uppercase)
            && state_of(&tokens[at].text).is_some();
        return code.then_some(at..at + 1);
    }
    let mut end = at + 2;
    while end < at + 4 && name(end) && tokens[end].joined {
        end += 1;
    }
    // "Berlin, Anna is there": the name after the comma is not a place.
    let closed = tokens.get(end).is_none_or(|next| {
        next.kind == Kind::Sign || next.kind == Kind::Number || AFTER_PLACES.has(&next.text)
    });
    closed.then_some(at..end)
}

/// Words that may follow a place when the sentence goes on.
const AFTER_PLACES: Words = Words(
    "on, at, for, in, up, max, tomorrow, today, tonight, next, this, around, between, before, after,
     from, please, and, under, with, about, by, day, morning, evening, afternoon, asap, now, monday,
     tuesday, wednesday, thursday, friday, saturday, sunday",
);

/// The bounds (south, north, west, east) of a state of the United States, given its name or code.
fn state_of(said: &str) -> Option<[f64; 4]> {
    let mut states = include_str!("../states.tsv").lines().filter(|line| !line.starts_with('#'));
    states.find_map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, code, bounds @ ..] = &fields[..] else { return None };
        let bounds: Vec<f64> = bounds.iter().filter_map(|bound| bound.parse().ok()).collect();
        (*name == said || *code == said).then_some(())?;
        bounds.try_into().ok()
    })
}

fn inside([south, north, west, east]: [f64; 4], (latitude, longitude): (f64, f64)) -> bool {
    (south..=north).contains(&latitude) && (west..=east).contains(&longitude)
}

/// Whether the found town is the one that the qualifier `more` means.
pub(super) fn is_that(
    said: &[Token],
    name: &Range<usize>,
    more: &Range<usize>,
    spot: &Spot,
) -> bool {
    let words = |tokens: &[Token]| {
        let words = tokens.iter().filter(|token| token.kind == Kind::Word);
        words.map(|token| token.text.as_str()).collect::<Vec<_>>().join(" ")
    };
    let (whole, more) = (words(&said[name.start..more.end]), words(&said[more.clone()]));
    // "Halle (Saale)", "Berlin (Mitte)"
    let called = words(&tokens(spot.name)) == whole;
    let spots = INDEX.by_name.get(&more);
    let same = spots.is_some_and(|spots| spots.iter().any(|n| INDEX.spots[*n].city == spot.city));
    let fits = match state_of(&more) {
        Some(bounds) if inside(bounds, spot.at) => true,
        Some(_) => spot.code == "GE" && more == "georgia",
        None => INDEX.countries.get(more.as_str()) == Some(&spot.code),
    };
    called || same || fits
}
