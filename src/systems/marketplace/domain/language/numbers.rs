//! Numbers in words, and words with a typo.

use super::token::{Kind, Token};

const ONES: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 8] =
    ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

fn below_hundred(word: &str) -> Option<u32> {
    let ones = ONES.iter().position(|name| *name == word);
    let tens = TENS.iter().position(|name| *name == word).map(|n| n * 10 + 20);
    ones.or(tens).and_then(|n| u32::try_from(n).ok())
}

/// The value of a token that is a number, in digits or as a word.
pub(super) fn small_number(token: &Token) -> Option<u32> {
    match token.kind {
        Kind::Number => token.number(),
        Kind::Word => below_hundred(&token.text),
        Kind::Sign => None,
    }
}

/// A number in words ("two hundred and fifty"), and the number of its tokens.
pub(super) fn in_words(tokens: &[Token]) -> Option<(u32, usize)> {
    let (mut total, mut part, mut used, mut at) = (0_u32, 0_u32, 0, 0);
    while let Some(token) = tokens.get(at).filter(|token| !token.taken) {
        let word = token.text.as_str();
        let next = tokens.get(at + 1).map_or("", |token| token.text.as_str());
        if let Some(n) = below_hundred(word) {
            if part % 100 != 0 && !((20..100).contains(&(part % 100)) && part % 10 == 0 && n < 10) {
                break;
            }
            part += n;
        } else if word == "hundred" && part < 100 {
            part = part.max(1) * 100;
        } else if word == "thousand" && total == 0 && part < 1_000 {
            total = part.max(1) * 1_000;
            part = 0;
        } else {
            let opens = word == "a" && used == 0 && matches!(next, "hundred" | "thousand");
            let joins = (word == "and" || word == "-") && used > 0 && below_hundred(next).is_some();
            if !opens && !(joins && (word == "-" || (part % 100 == 0 && part + total > 0))) {
                break;
            }
            at += 1;
            continue;
        }
        at += 1;
        used = at;
    }
    (used > 0).then_some((total + part, used))
}

/// Whether one insertion, deletion, substitution or swap turns one word into the other.
pub(super) fn one_edit(a: &str, b: &str) -> bool {
    // Non-ASCII letters count as several bytes, which is fine: such a word is not a typo of an English one.
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > 1 {
        return false;
    }
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[same..], &b[same..]);
    match (a, b) {
        ([], []) => true,
        ([first, second, a @ ..], [third, fourth, b @ ..])
            if (first, second) == (fourth, third) && a == b =>
        {
            true
        }
        _ if a.len() == b.len() => a[1..] == b[1..],
        _ if a.len() > b.len() => a[1..] == *b,
        _ => *a == b[1..],
    }
}
