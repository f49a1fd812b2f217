//! Wishes in a sentence that no request can hold, and signs that nothing is asked for.
//!
//! The agent asks about them before it searches: who is to come, what is to be accepted, and whether anything is wanted
//! at all.

use super::lexicon::names_service;
use super::token::{Kind, Token, WordRole, Words};
use super::{About, Unread, leftover, numbers, quote, time};
use crate::systems::marketplace::domain::service::Service;

const WHO: Words = Words(
    "man, woman, men, women, male, female, lady, guy, girl, boy, gentleman, him, her, anybody, anyone",
);

/// Groups of people, each with hair of their own.
const GROUPS: Words = Words(
    "family, twins, triplets, kids, children, boys, girls, sons, daughters, parents, couple, friends, team, colleagues",
);

/// Phrases in which nobody asks for anything now.
const NO_WISH: Words = Words(
    "nobody needs, nobody wants, noone needs, no one needs, no one wants, nobody here needs, if i had, if i were,
     if i was, if i could, if only, if we had, i wish, she said, he said, they said, she says, he says, they say,
     said that, somebody said, someone said, told me, told her, told him, she wrote, he wrote, they wrote,
     can t find, cannot find, can not find, cant find, couldn t find, could not find, imagine, pretend,
     hypothetically, i dreamed, i dreamt, just kidding, i am joking, i m joking, would have booked,
     would have needed, how much is, how much does, how much would, was cut, were cut, my haircut is, my haircut was, my appointment is, my booking is, didn t need, did not need",
);

pub(super) fn unread(tokens: &[Token], service: Option<Service>) -> Vec<Unread> {
    let Some(service) = service else { return Vec::new() };
    let at: Vec<usize> = (0..tokens.len()).filter(|n| tokens[*n].kind != Kind::Sign).collect();
    let words: Vec<&str> = at.iter().map(|n| tokens[*n].text.as_str()).collect();
    let mut found = Vec::new();
    let mut add = |about: About, from: usize, count: usize| {
        let last = at[(from + count).min(at.len()) - 1];
        found.push(Unread { about, words: quote(tokens, at[from], last + 1) });
    };
    for n in 0..words.len() {
        let rest = &words[n..];
        let no_wish = NO_WISH.begin(rest);
        let (about, count) = if no_wish > 0 {
            (About::Aside, no_wish)
        } else if let Some(count) = who(tokens, &at[n..], n > 0 && words[n - 1] == "not") {
            (About::Aside, count)
        } else if let Some(count) = accepts(rest) {
            (About::Aside, count)
        } else if let Some(count) = several(rest).filter(|_| service == Service::Haircut) {
            (About::Several, count)
        } else {
            continue;
        };
        // "but not by a man"
        let not = usize::from(n > 0 && matches!(words[n - 1], "not" | "no" | "never" | "only"));
        add(about, n - not, count + not);
    }
    found
}

/// "by a woman", "with Greta", "not from Anna", "except Greta".
fn who(tokens: &[Token], at: &[usize], denied: bool) -> Option<usize> {
    let token = |n: usize| at.get(n).map(|at| &tokens[*at]);
    let first = token(0)?;
    if first.any(&["female", "male"]) {
        return Some(1);
    }
    if !first.any(&["by", "with", "from", "except", "without"]) || first.is("from") && !denied {
        return None;
    }
    let article = usize::from(token(1)?.any(&["a", "an", "the", "any", "some"]));
    let named = token(1 + article)?;
    let name = named.kind == Kind::Word
        && named.capital
        && !named.taken
        && named.role == WordRole::None
        && !named.raw.chars().skip(1).any(char::is_uppercase)
        && !leftover::is_known(named);
    let person = WHO.has(&named.text) && !first.is("from");
    (name || person).then_some(2 + article)
}

/// "book the cheapest", "accept every offer": offers can only be chosen once they exist.
fn accepts(words: &[&str]) -> Option<usize> {
    let verb = matches!(words, ["accept" | "take" | "book" | "confirm" | "pick" | "choose", ..]);
    let rest = words.get(1..).filter(|_| verb)?;
    match rest {
        ["the", "cheapest" | "best" | "first", next, ..] if names_service(next) => Some(4),
        ["the", "cheapest" | "best" | "first", ..] => Some(3),
        ["every" | "any" | "all" | "each", "offer" | "offers", ..] => Some(3),
        ["automatically", ..] => Some(2),
        _ => None,
    }
}

/// "for us", "for the whole family", "for the twins".
fn several(words: &[&str]) -> Option<usize> {
    let rest = words.strip_prefix(&["for"])?;
    if let ["us" | "everyone" | "everybody", ..] = rest {
        return Some(2);
    }
    let all = rest.strip_prefix(&["all"]).unwrap_or(rest);
    let [whose, rest @ ..] = all else { return None };
    if !matches!(*whose, "the" | "my" | "our" | "all" | "of") {
        return None;
    }
    let whole = usize::from(matches!(rest, ["whole" | "entire" | "us" | "two", ..]));
    let skipped = words.len() - rest.len();
    rest.get(whole).filter(|word| GROUPS.has(word)).map(|_| skipped + whole + 1)
}

/// The phrase that asks for more than one person or appointment, which one request cannot hold.
pub(super) fn more_than_one(tokens: &[Token], service: Option<Service>) -> Option<String> {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let several = |at: usize| {
        let number = numbers::small_number(&tokens[at]);
        number.is_some_and(|n| n >= 2) || matches!(text(at), "both" | "several" | "couple")
    };
    for at in 0..tokens.len() {
        let left = !tokens[at].taken;

        if left
            && several(at)
            && (HANDS.has(text(at + 1)) || HANDS.has(text(at + 2)) && text(at + 1) == "of")
        {
            return Some(quote(tokens, at, at + 2));
        }

        if service == Some(Service::Haircut) && left {
            if several(at) && PEOPLE.has(text(at + 1)) {
                return Some(quote(tokens, at, at + 2));
            }

            let me = |word: &str| matches!(word, "me" | "myself" | "i");
            if (RELATIVES.has(text(at))
                && matches!(text(at + 1), "and" | "&" | "plus")
                && (me(text(at + 2)) || text(at + 2) == "my"))
                || (me(text(at))
                    && matches!(text(at + 1), "and" | "&" | "plus")
                    && matches!(text(at + 2), "my" | "a" | "our"))
            {
                return Some(quote(tokens, at, at + 3));
            }
        }
        let again = matches!(text(at), "every" | "each")
            && (tokens.get(at + 1).is_some_and(|next| {
                time::weekday(next).is_some()
                    || next.any(&[
                        "day", "week", "month", "other", "weekday", "morning", "evening", "two",
                        "second",
                    ])
            }));
        if again {
            return Some(quote(tokens, at, at + 2));
        }
        if matches!(
            text(at),
            "weekly" | "daily" | "monthly" | "fortnightly" | "biweekly" | "regularly" | "recurring"
        ) || (matches!(text(at), "once" | "twice")
            && matches!(text(at + 1), "a" | "per" | "every"))
        {
            return Some(quote(tokens, at, at + 1));
        }
        let plural = tokens[at].kind == Kind::Word
            && text(at).ends_with("days")
            && time::weekday(&tokens[at]).is_some();
        if plural {
            return Some(quote(tokens, at, at + 1));
        }
    }
    None
}

/// Things of which one request can hold only one.
const HANDS: Words =
    Words("cleaners, plumbers, photographers, haircuts, barbers, hairdressers, appointments, cuts");

/// People, each with hair of their own.
const PEOPLE: Words = Words(
    "people, persons, kids, children, boys, girls, adults, sons, daughters, men, women, friends",
);

/// People who may come along.
const RELATIVES: Words = Words(
    "husband, wife, son, daughter, partner, friend, kid, child, mother, father, mum, mom, dad,
     brother, sister, boyfriend, girlfriend, kids, children",
);
