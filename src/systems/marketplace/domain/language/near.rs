//! Messages near to an act: near enough to be read back for confirmation, or not.
//!
//! A message is near to an act if each of its words belongs to the act, chooses one thing, or was read as a time, a
//! sum, a place or a service; the session compares those with the offer or booking in question. Any other word is an
//! [`aside`]: it may be the point of the sentence, so the agent asks about it.

use super::acts::{Utterance, name_at, without_politeness};
use super::numbers::{one_edit, small_number};
use super::token::{Kind, Table, Token, WordRole, Words, words_of};
use super::{Which, quote};

const ORDINALS: [&str; 8] =
    ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"];

/// The words of a sentence that accepts an offer.
static ACCEPTING: Table = Table::new(|| {
    words_of(
        "accept, take, taking, book, choose, pick, confirm, reserve, go, going, with, for, from, of,
         by, on, at, in, the, a, an, that, this, these, your, it, one, offer, option, number, near, i, ll,
         will, d, m, re, s, like, love, want, to, let, us, we, make, decide, decided, hm, hmm, um,
         uh, oh, ah, mm, sounds, looks, rated, tell, them, deal, works, agreed, yes, yeah, yep, yup,
         euro, euros, only",
    )
});

/// The words of a sentence that cancels a request or a booking.
static CANCELLING: Table = Table::new(|| {
    words_of(
        "cancel, cancelling, canceling, abort, call, off, stop, searching, looking, search, the, my,
         our, a, an, this, that, it, booking, appointment, reservation, request, enquiry, inquiry,
         i, we, d, ll, m, ve, s, like, want, need, have, has, to, let, us, will, longer, no, not,
         don, dont, t, any, anymore, more, needed, changed, mind, forget, about, never, nevermind,
         for, with, of, at, on, in, near, from, by, yes, hm, hmm, oh, sorry, do, it, can, could, would, you, cant, cannot, won, come, make, be, able",
    )
});

/// Phrases that only hand something over and say nothing else.
const GIVING: Words = Words("give me, get me, book me, for me, thank you, go ahead, all right");

/// The offers that the words choose.
pub(super) fn chosen(words: &[&str], offers: &[Vec<String>]) -> Vec<Which> {
    let mut found = Vec::new();
    for at in 0..words.len() {
        let which = match &words[at..] {
            ["cheapest" | "cheaper", ..] => Some(Which::Cheapest),
            ["best" | "top", ..] => Some(Which::Best),
            ["last", ..] => u8::try_from(offers.len()).ok().filter(|n| *n > 0).map(Which::Nth),
            ["number" | "option" | "offer" | "no" | "nr", n, ..] => count(n).map(Which::Nth),
            [n, "st" | "nd" | "rd" | "th", ..] => count(n).map(Which::Nth),
            [word, ..] => {
                (1_u8..).zip(ORDINALS).find(|(_, name)| name == word).map(|(n, _)| Which::Nth(n))
            }
            [] => None,
        };
        found.extend(which.filter(|which| !found.contains(which)));
    }
    let named = name_at(words, offers).map(|(n, _)| Which::Nth(n));
    found.extend(named.filter(|named| !found.contains(named)));
    found
}

fn count(word: &str) -> Option<u8> {
    let token = super::token::tokens(word);
    let n = token.first().and_then(small_number)?;
    u8::try_from(n).ok().filter(|n| (1..=99).contains(n))
}

/// The offer chosen by a message that contains nothing else: "2", "no. 1", "first", "the last one".
pub(super) fn selection(tokens: &[Token], offers: &[Vec<String>]) -> Option<Which> {
    let signs = tokens.iter().filter(|token| token.kind == Kind::Sign);
    if offers.is_empty() || !signs.clone().all(|sign| sign.any(&[".", "!", "#"])) {
        return None;
    }
    let said = Utterance::of(tokens);
    let words = without_politeness(&said.words);
    let words = words.strip_prefix(&["the"]).unwrap_or(&words);
    let words = match words {
        [before @ .., "one" | "offer" | "option"] if !before.is_empty() => {
            if matches!(before, ["number" | "no" | "nr"]) { words } else { before }
        }
        _ => words,
    };
    match words {
        [n] if n.starts_with(|c: char| c.is_ascii_digit()) => count(n).map(Which::Nth),
        [_] | [_, _] => match chosen(words, offers)[..] {
            [which @ Which::Nth(_)] => Some(which).filter(|_| all_choose(words)),
            _ => None,
        },
        _ => None,
    }
}

fn all_choose(words: &[&str]) -> bool {
    match words {
        [word] => *word == "last" || ORDINALS.contains(word),
        ["number" | "option" | "offer" | "no" | "nr", n] => count(n).is_some(),
        [n, "st" | "nd" | "rd" | "th"] => count(n).is_some(),
        _ => false,
    }
}

/// The act that a message is near to.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Act {
    Accept,
    Cancel,
}

/// The words that do not belong to the act, as they were written.
pub(super) fn aside(tokens: &[Token], act: Act, offers: &[Vec<String>]) -> Option<String> {
    let at: Vec<usize> = (0..tokens.len()).filter(|n| tokens[*n].kind != Kind::Sign).collect();
    let words: Vec<&str> = at.iter().map(|n| tokens[*n].text.as_str()).collect();
    if act == Act::Accept && chosen(&words, offers).len() > 1 {
        return Some(quote(tokens, 0, tokens.len()));
    }
    let named = name_at(&words, offers).filter(|_| act == Act::Accept);
    let named = named.map_or(0..0, |(_, range)| range);
    let own = |word: &str| match act {
        Act::Accept => ACCEPTING.contains(word),
        Act::Cancel => {
            let typo = |known: &&str| known.len() >= 6 && one_edit(word, known);
            CANCELLING.contains(word) || word.len() >= 5 && CANCELLING.iter().any(typo)
        }
    };
    let mut first = None;
    let mut last = 0;
    let mut n = 0;
    while n < words.len() {
        let given = GIVING.begin(&words[n..]);
        let token = &tokens[at[n]];
        let chooses = act == Act::Accept && chooses(&words, n);
        let polite = super::acts::POLITE.contains(words[n]);
        let read = token.taken && token.role != WordRole::None;
        if given == 0 && !read && !chooses && !polite && !named.contains(&n) && !own(words[n]) {
            first.get_or_insert(n);
            last = n;
        }
        n += given.max(1);
    }
    let first = first?;
    // Quote "for two people", not "two people".
    let led = first > 0 && Words("for, with, by, to, in, at, on, not, from").has(words[first - 1]);
    let from = first - usize::from(led);
    Some(quote(tokens, at[from], at[last] + 1))
}

/// Whether the word is part of choosing one offer.
fn chooses(words: &[&str], at: usize) -> bool {
    let before = at.checked_sub(1).map_or("", |n| words[n]);
    let next = words.get(at + 1).copied().unwrap_or_default();
    matches!(words[at], "cheapest" | "best" | "top" | "last" | "st" | "nd" | "rd" | "th")
        || ORDINALS.contains(&words[at])
        || count(words[at]).is_some()
            && (matches!(before, "number" | "option" | "offer" | "no" | "nr")
                || matches!(next, "st" | "nd" | "rd" | "th"))
        || matches!(words[at], "no" | "nr") && count(next).is_some()
}
