//! The understanding of a sentence: a service, a time, a place, and a maximum price.
//!
//! A pure function of the words, the time and the user's zone: no model, no network, and the same answer each time, so
//! that an entity may call it. Words that are read as one thing (a place, a sum) are not read as another. Meaningful
//! words that are not understood are [`Unread`]: the agent asks about them, and never guesses a value instead.

use jiff::Timestamp;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::places::{self, Place, currency_of};
use crate::systems::marketplace::domain::schedule::{self, When};
use crate::systems::marketplace::domain::service::Service;
use crate::systems::marketplace::domain::token::{self, Token, WordRole};

mod acts;
mod corrections;
mod leftover;
mod lexicon;
mod money;
mod near;
mod numbers;
#[cfg(test)]
mod tests;
mod time;
mod wishes;

use corrections::{corrected_at, takes_back};

/// The purpose of a message. Drafts in the journal contain `Request`; the other names may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    #[default]
    Request,
    Greeting,
    Thanks,
    Help,
    Status,
    Yes,
    No,
    /// "ok", "sure": an acknowledgement and nothing more.
    Nod,
    /// "never mind": drops a draft that was not submitted yet.
    Drop,
    /// An act in its closed form. This one and `Cancel` bind.
    Accept(Which, Option<Service>),
    Cancel(Thing, Option<Service>),
    /// Speaks of offers without accepting one. `hesitates`: the user does not want anything to happen yet.
    AcceptTalk {
        which: Option<Which>,
        hesitates: bool,
    },
    CancelTalk {
        thing: Thing,
        service: Option<Service>,
        hesitates: bool,
    },
    /// "don't book me a haircut".
    Refusal,
    /// A provider who offers a service instead of asking for one.
    Offering,
}

/// The offer that is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Which {
    Cheapest,
    Best,
    /// The n-th offer in the order in which they were shown, from 1.
    Nth(u8),
    /// The only offer.
    It,
}

/// The thing to be cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Thing {
    Any,
    Request,
    /// A request that is still searching, never a booked one.
    Search,
    Booking,
}

/// The topic of a piece of a message that was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum About {
    When,
    Place,
    Budget,
    /// A service that nobody here offers.
    OtherService,
    /// A second service.
    SecondService,
    /// More than one appointment.
    Several,
    /// A wish that no request can hold, or a sign that nothing is asked for. A "yes" skips it.
    Aside,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    pub about: About,
    pub words: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Understanding {
    pub service: Option<Service>,
    pub when: Option<When>,
    pub place: Option<Place>,
    pub budget: Option<Money>,
    pub details: String,
    pub intent: Intent,
    /// An hour that was given without a readable day.
    #[serde(default)]
    pub hour: Option<Time>,
    /// The pieces that were not understood and have to be asked about.
    #[serde(default)]
    pub unread: Vec<Unread>,
    /// Whether the last message says nothing besides the parts that were read.
    #[serde(skip)]
    pub bare: bool,
    /// If the last message is near to an act: its words that belong to no act or are not understood.
    #[serde(skip)]
    pub aside: Option<String>,
}

impl Understanding {
    pub fn is_unread(&self, about: About) -> bool {
        self.unread.iter().any(|unread| unread.about == about)
    }

    /// Whether it contains any part of a request.
    pub fn says_something(&self) -> bool {
        self.service.is_some()
            || self.when.is_some()
            || self.hour.is_some()
            || self.place.is_some()
            || self.budget.is_some()
            || !self.unread.is_empty()
    }
}

/// The speaker's context: their time zone, currency and locale, and the offers that they were shown.
#[derive(Clone, Copy, Debug)]
pub struct Home<'a> {
    pub tz: &'a TimeZone,
    /// The currency of amounts without one; `None`: the currency of the place.
    pub currency: Option<&'a str>,
    /// A BCP 47 tag, which decides whether the day or the month comes first in 3/12. A language alone leaves that to
    /// the place.
    pub locale: &'a str,
    /// The providers' names of the shown offers, in that order.
    pub offers: &'a [String],
}

impl<'a> Home<'a> {
    pub fn of(tz: &'a TimeZone) -> Self {
        Self { tz, currency: None, locale: "en", offers: &[] }
    }

    /// The possible currencies of an amount without one, at a place.
    fn currencies(&self, place: Option<&Place>) -> Vec<&'static str> {
        let own = self.currency.and_then(places::known_currency);
        let there = place.map(|place| place.country.as_str());
        let there = there.or(self.tz.iana_name().and_then(places::country_of));
        own.into_iter().chain(there.and_then(currency_of)).collect()
    }

    fn months_first(&self, there: &TimeZone) -> bool {
        let mut parts = self.locale.split(['-', '_']);
        let language = parts.next().unwrap_or_default();
        match parts.next_back() {
            Some(region) if region.len() == 2 => {
                matches!(region.to_ascii_uppercase().as_str(), "US" | "PH" | "FM" | "PW")
            }
            _ if language.is_empty() || language == "en" => {
                there.iana_name().is_some_and(|name| name.starts_with("America/"))
            }
            _ => false,
        }
    }
}

/// The most characters of a message that become `details`, and the bound of `details` over all answers.
const DETAILS_CHARS: usize = 2_000;

/// Understands a message on its own. Times are in the zone of the place, if one is named, else in the user's zone.
pub fn understand(text: &str, now: Timestamp, home: &Home<'_>) -> Understanding {
    read(text, now, home, &Understanding::default())
}

/// The draft after the next message. In a conflict, the new words win.
///
/// The message is read in the context of the draft: "at 5" means the day, place and zone that were named before, and
/// "Friday instead" keeps the hour. If a new place is in another zone, the local hour stays the same, not the moment,
/// and an amount without a currency becomes one in that place's currency.
pub fn answer(
    mut draft: Understanding,
    text: &str,
    now: Timestamp,
    home: &Home<'_>,
) -> Understanding {
    let mut new = read(text, now, home, &draft);
    let tz = home.tz;
    if let (Some(place), Some(when), None) = (&new.place, draft.when, new.when) {
        let moved = when.moved(&zone(draft.place.as_ref(), tz), &zone(Some(place), tz));
        // Today at 5 pm may already be past there.
        draft.when = moved.filter(|when| when.latest > now);
    }
    if let (None, Some(place), Some(budget), None) =
        (&draft.place, &new.place, &draft.budget, &new.budget)
    {
        let said = |place: Option<&Place>| {
            money::read(&mut token::tokens(&draft.details), &home.currencies(place), None, false).0
        };
        if said(None).as_ref() == Some(budget) {
            new.budget = said(Some(place));
        }
    }
    merge(draft, new)
}

/// The understanding of a message alone, read in the context of an earlier request.
pub fn in_the_light_of(
    asked: &Understanding,
    text: &str,
    now: Timestamp,
    home: &Home<'_>,
) -> Understanding {
    read(text, now, home, asked)
}

fn zone(place: Option<&Place>, home: &TimeZone) -> TimeZone {
    let there = place.and_then(|place| schedule::zone(&place.time_zone));
    there.unwrap_or_else(|| home.clone())
}

impl When {
    /// The same days and hours in another zone.
    fn moved(self, from: &TimeZone, to: &TimeZone) -> Option<Self> {
        let same = |at: Timestamp| {
            let civil = from.to_datetime(at);
            to.to_timestamp(civil).ok()
        };
        Some(Self { earliest: same(self.earliest)?, latest: same(self.latest)?, ..self })
    }
}

fn read(text: &str, now: Timestamp, home: &Home<'_>, known: &Understanding) -> Understanding {
    let mut tokens = token::tokens(text);
    let cut = corrected_at(&tokens);
    // This "no" corrects something; it does not exclude anything.
    if let Some(at) = cut.filter(|at| takes_back(&tokens, *at)) {
        tokens[at].taken = true;
    }
    let zone_name = home.tz.iana_name().unwrap_or("UTC");
    let mut found = places::find_in(&tokens, zone_name, cut, leftover::is_known);
    let mut unread: Vec<Unread> = Vec::new();
    for range in &found.unread {
        let words = quote(&tokens, range.start, range.end);
        unread.push(Unread { about: About::Place, words });
    }
    let place = found.place.take().filter(|_| found.unread.is_empty());
    for token in found.named.iter().chain(&found.unread).flat_map(|range| range.clone()) {
        tokens[token].taken = true;
    }
    mark(&mut tokens, WordRole::Place);
    let services = lexicon::services(&tokens);
    let there = place.as_ref().or(known.place.as_ref());
    const AROUND: token::Words = token::Words(
        "max, maximum, about, around, ok, okay, most, the, limit, is, in, all, total, say, please",
    );
    let asked = known.is_unread(About::Budget)
        && known.when.is_some()
        && tokens.iter().all(|token| token.kind != token::Kind::Word || AROUND.has(&token.text));
    let (budget, sums) = money::read(&mut tokens, &home.currencies(there), cut, asked);
    unread.extend(sums.into_iter().map(|words| Unread { about: About::Budget, words }));
    mark(&mut tokens, WordRole::Money);
    let answers = known.service.is_some() || known.place.is_some();
    let there_tz = zone(there, home.tz);
    let before = known.when.map(|when| {
        let tz = zone(known.place.as_ref(), home.tz);
        time::Before {
            first: tz.to_datetime(when.earliest),
            last: tz.to_datetime(when.latest),
            exact: when.exact,
        }
    });
    let setting = time::Setting {
        now,
        tz: &there_tz,
        months_first: home.months_first(&there_tz),
        before,
        hour: known.hour,
        day_unread: known.is_unread(About::When),
        answers,
        cut,
    };
    let time = time::read(&mut tokens, &setting);
    mark(&mut tokens, WordRole::When);
    for at in &services.named {
        tokens[*at].taken = true;
    }
    mark(&mut tokens, WordRole::Service);
    unread.extend(
        time.unread.iter().map(|words| Unread { about: About::When, words: words.clone() }),
    );
    let leftover = leftover::Leftover {
        tokens: &tokens,
        time: &time,
        sum: budget.is_some() || !unread.is_empty(),
        day_known: known.when.is_some(),
        answers,
    };
    unread.extend(leftover.unread());
    let said = services.first.or(known.service);
    unread.extend(wishes::unread(&tokens, said));
    let several = wishes::more_than_one(&tokens, said);
    unread.extend(several.map(|words| Unread { about: About::Several, words }));
    let other = services.other.map(|words| (About::OtherService, words));
    let second = services.second.map(|(_, words)| (About::SecondService, words));
    unread.extend(other.or(second).map(|(about, words)| Unread { about, words }));
    // Text beyond the limit may change the meaning of everything.
    unread.extend(text.char_indices().nth(token::MAX_CHARS).map(|(at, _)| Unread {
        about: About::Aside,
        words: text[at..].trim().chars().take(80).collect(),
    }));
    let mut heard = Vec::<Unread>::new();
    for new in unread {
        if !heard.iter().any(|old| old.about == new.about && old.words.contains(&new.words)) {
            heard.push(new);
        }
    }
    let unread = heard;
    let unclear = |about| unread.iter().any(|unread: &Unread| unread.about == about);
    let service =
        services.first.filter(|_| !unclear(About::OtherService) && !unclear(About::SecondService));
    let known = time.when.is_some() || place.is_some() || budget.is_some() || !unread.is_empty();
    let offers: Vec<Vec<String>> = home.offers.iter().map(|name| acts::name_words(name)).collect();
    let intent = acts::intent(&tokens, services.first, known, &offers);
    let act = match intent {
        Intent::AcceptTalk { hesitates: false, .. } => Some(near::Act::Accept),
        Intent::CancelTalk { hesitates: false, .. } => Some(near::Act::Cancel),
        _ => None,
    };
    let act = act.filter(|_| near::selection(&tokens, &offers).is_none());
    let first_unread = || unread.first().map(|unread| unread.words.clone());
    let aside = act.and_then(|act| near::aside(&tokens, act, &offers).or_else(first_unread));
    // A time in the past cannot be requested, so the agent asks for the time again.
    let when = time.when.filter(|when| when.latest > now && !unclear(About::When));
    let hour = if when.is_none() { time.hour } else { None };
    let budget = budget.filter(|_| !unclear(About::Budget));
    let place = place.filter(|_| !unclear(About::Place));
    const LINKS: token::Words = token::Words(
        "actually, make, it, that, to, at, on, in, for, please, ok, okay, then, instead, rather, sorry, i, mean, meant,
         no, wait, not, the, a, an, of, course, change, move, and, near, around, by, up, max, my, budget, so, well,
         thanks, let, s, oh, yes, yeah, better, correction, hang, second, thought, d, ll, prefer, time, be, want, need",
    );
    let said = |token: &Token| match token.kind {
        token::Kind::Sign => token.any(&[".", ",", "!", "'", "’"]),
        _ => LINKS.has(&token.text),
    };
    let bare = tokens.iter().all(|token| token.taken || said(token));
    let details = text.trim().chars().take(DETAILS_CHARS).collect();
    Understanding { service, when, place, budget, details, intent, hour, unread, bare, aside }
}

fn mark(tokens: &mut [Token], role: WordRole) {
    for token in tokens.iter_mut().filter(|token| token.taken && token.role == WordRole::None) {
        token.role = role;
    }
}

/// The tokens as they were written, shortened to fit into a sentence.
fn quote(tokens: &[Token], from: usize, to: usize) -> String {
    let mut words = String::new();
    for token in &tokens[from.min(tokens.len())..to.min(tokens.len())] {
        if !token.glued && !words.is_empty() {
            words.push(' ');
        }
        words.push_str(&token.raw);
    }
    words.chars().take(80).collect()
}

/// Whether a message is longer than the part that is read.
pub fn is_too_long(text: &str) -> bool {
    text.chars().nth(token::MAX_CHARS).is_some()
}

/// Whether a message only asks about the state of things, and not for a new search.
pub fn only_asks(text: &str) -> bool {
    acts::only_asks(&token::tokens(text))
}

/// Whether a message begins with a "yes".
pub fn says_yes(text: &str) -> bool {
    acts::says_yes(&token::tokens(text))
}

/// Whether a message corrects something that was said before.
pub fn corrects(text: &str) -> bool {
    corrected_at(&token::tokens(text)).is_some()
}

/// Whether a message asks for one more thing.
pub fn adds(text: &str) -> bool {
    let tokens = token::tokens(text);
    tokens
        .iter()
        .any(|token| token.any(&["also", "another", "too", "additionally", "besides", "second"]))
}

fn merge(mut draft: Understanding, new: Understanding) -> Understanding {
    if !new.details.is_empty() && new.details != draft.details {
        let both = format!("{}\n{}", draft.details, new.details);
        draft.details = both.trim().chars().take(DETAILS_CHARS).collect();
    }
    // A "yes" answers only the question that was asked; these questions come last, one at a time.
    let asked = missing(&draft).first().copied();
    let agreed = |name: &str| new.intent == Intent::Yes && asked == Some(name);
    let answered = |about: About| match about {
        About::When => new.when.is_some(),
        About::Place => new.place.is_some(),
        About::Budget => new.budget.is_some() || waives(&new.details),
        About::OtherService | About::SecondService => new.service.is_some(),
        About::Several => agreed("number"),
        About::Aside => agreed("confirmation"),
    };
    draft.unread.retain(|unread| !answered(unread.about));
    // A value that is unclear now no longer counts as known.
    for unread in &new.unread {
        match unread.about {
            About::When => draft.when = None,
            About::Place => draft.place = None,
            About::Budget => draft.budget = None,
            About::OtherService | About::SecondService => draft.service = None,
            About::Several | About::Aside => {}
        }
        draft.unread.retain(|other| other.about != unread.about);
    }
    draft.unread.extend(new.unread);
    draft.hour = if new.when.is_some() { None } else { new.hour.or(draft.hour) };
    draft.service = new.service.or(draft.service);
    draft.when = new.when.or(draft.when);
    draft.place = new.place.or(draft.place);
    draft.budget = new.budget.or(draft.budget);
    draft.intent = new.intent;
    (draft.bare, draft.aside) = (false, None);
    draft
}

/// Whether an answer says that any price will do.
fn waives(text: &str) -> bool {
    let tokens = token::tokens(text);
    let said = acts::Utterance::of(&tokens);
    said.has(token::Words(
        "no limit, no budget, any price, whatever, no maximum, doesn t matter, does not matter, no max, not important, skip, none, no, unlimited",
    ))
}

/// The fields that a request needs and that are unknown or not understood. A budget is optional.
pub fn missing(u: &Understanding) -> Vec<&'static str> {
    let needed = [
        ("service", u.service.is_none()),
        ("when", u.when.is_none() || u.is_unread(About::When)),
        ("place", u.place.is_none() || u.is_unread(About::Place)),
        ("budget", u.is_unread(About::Budget)),
        ("number", u.is_unread(About::Several)),
        ("confirmation", u.is_unread(About::Aside)),
    ];
    needed.into_iter().filter(|(_, missing)| *missing).map(|(name, _)| name).collect()
}

pub fn question(u: &Understanding) -> String {
    let quoted = |about: &dyn Fn(About) -> bool| {
        let words = u.unread.iter().filter(|unread| about(unread.about));
        words
            .map(|unread| format!("\u{201c}{}\u{201d}", unread.words))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let other = quoted(&|about| about == About::OtherService);
    if !other.is_empty() {
        return format!(
            "I do not do that ({other}). I find haircuts, cleaning, plumbing and photography: which of these do you need?"
        );
    }
    if u.is_unread(About::SecondService) {
        return "I can look for one service at a time. Which one first? Then tell me the other one.".into();
    }
    let is_past = |unread: &&Unread| {
        unread.about == About::When
            && token::tokens(&unread.words).iter().any(|token| token.any(&["yesterday", "ago"]))
    };
    let past: String = u
        .unread
        .iter()
        .filter(is_past)
        .map(|unread| format!("\u{201c}{}\u{201d} is past. ", unread.words))
        .collect();
    let unread = quoted(&|about| {
        !matches!(about, About::Several | About::Aside) && (about != About::When || past.is_empty())
    });
    let sorry = match unread.is_empty() {
        true => past,
        false => format!("{past}I did not understand {unread}. "),
    };
    let what = u.service.map_or("it", Service::title);
    let asked = missing(u);
    let no = |name: &str| asked.contains(&name);
    let question = match (no("service"), no("when"), no("place"), &u.place) {
        (true, true, true, _) => "What do you need, where and when?".into(),
        (true, ..) => "What do you need: a haircut, cleaning, plumbing or photography?".into(),
        (_, true, true, _) => format!("Where do you need the {what}, and when?"),
        (_, true, _, Some(place)) => format!("When do you need the {what} near {}?", place.name),
        (_, true, ..) => format!("When do you need the {what}?"),
        (_, _, true, _) => {
            format!("Where do you need the {what}? A city or a neighbourhood will do.")
        }
        _ if no("budget") => {
            format!(
                "How much may the {what} cost in all, at most? Say \u{201c}no limit\u{201d} if any price will do."
            )
        }
        _ if no("number") => {
            let said = quoted(&|about| about == About::Several);
            format!(
                "I can look for one appointment for one person at a time (you said {said}). Shall I look for one {what}? Say yes."
            )
        }
        _ if no("confirmation") => {
            let said = quoted(&|about| about == About::Aside);
            format!(
                "You said {said}, which I cannot take into account. Shall I look for the {what} all the same? Say yes, or no."
            )
        }
        _ => format!("Shall I look for the {what}?"),
    };
    format!("{sorry}{question}")
}
