//! What a sentence asks for: a service, when, where, and for how much at most.
//!
//! A pure function of the words, the time and the user's zone: no model, no network, and the same answer each time,
//! so that an entity may call it. Words that are read as one thing (a place, a sum) are not read as another.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::domain::marketplace::money::Money;
use crate::domain::marketplace::places::{self, Place, currency_of};
use crate::domain::marketplace::schedule;
use crate::domain::marketplace::service::Service;

mod lexicon;
mod money;
mod numbers;
#[cfg(test)]
mod tests;
mod time;
pub(super) mod token;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct When {
    pub earliest: Timestamp,
    pub latest: Timestamp,
    pub exact: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    #[default]
    Request,
    Greeting,
    Thanks,
    Help,
    Cancel,
    Status,
    Accept(Which),
}

/// Which of the offers is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Which {
    Cheapest,
    Best,
    /// In the order of their arrival, from 1.
    Nth(u8),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Understanding {
    pub service: Option<Service>,
    pub when: Option<When>,
    pub place: Option<Place>,
    pub budget: Option<Money>,
    pub details: String,
    pub intent: Intent,
}

/// The most of a message that becomes `details`, which is bounded over all answers too.
const DETAILS_CHARS: usize = 2_000;

/// Times are those of the place, where one is named, else of the user's zone `tz`.
pub fn understand(text: &str, now: Timestamp, tz: &TimeZone) -> Understanding {
    read(text, now, tz, &Understanding::default())
}

/// What is known after the next message, whose words win.
///
/// It is read in the light of what was known: "at 5" is on the day, at the place and in the zone that were named before,
/// "Friday instead" at the same hour. A place in another zone keeps the hour that was said, not the moment, and an
/// amount without a currency is in that place's.
pub fn answer(
    mut draft: Understanding,
    text: &str,
    now: Timestamp,
    tz: &TimeZone,
) -> Understanding {
    let mut new = read(text, now, tz, &draft);
    if let (Some(place), Some(when), None) = (&new.place, draft.when, new.when) {
        let moved = when.moved(&zone(draft.place.as_ref(), tz), &zone(Some(place), tz));
        // Today at 5 pm may be past there.
        draft.when = moved.filter(|when| when.latest > now);
    }
    if let (None, Some(place), Some(budget), None) =
        (&draft.place, &new.place, &draft.budget, &new.budget)
    {
        let said = |local| money::read(&mut token::tokens(&draft.details), local);
        let home = tz.iana_name().and_then(places::country_of).and_then(currency_of);
        if said(home).as_ref() == Some(budget) {
            new.budget = said(currency_of(&place.country));
        }
    }
    merge(draft, new)
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

fn read(text: &str, now: Timestamp, tz: &TimeZone, known: &Understanding) -> Understanding {
    let mut tokens = token::tokens(text);
    let home = tz.iana_name().unwrap_or("UTC");
    let place = places::find_in(&tokens, home).map(|(place, range)| {
        for token in &mut tokens[range] {
            token.taken = true;
        }
        place
    });
    let service = lexicon::service(&tokens);
    let there = place.as_ref().or(known.place.as_ref());
    let country = there.map(|place| place.country.as_str()).or(places::country_of(home));
    let budget = money::read(&mut tokens, country.and_then(currency_of));
    let before = known.when.map(|when| {
        let tz = zone(known.place.as_ref(), tz);
        time::Before {
            first: tz.to_datetime(when.earliest),
            last: tz.to_datetime(when.latest),
            exact: when.exact,
        }
    });
    let answers = known.service.is_some() || known.place.is_some();
    let when = time::read(&mut tokens, now, &zone(there, tz), before, answers);
    let known = service.is_some() || when.is_some() || place.is_some() || budget.is_some();
    let intent = lexicon::intent(&tokens, service.is_some(), known);
    // What is past cannot be asked for: the question is when, again.
    let when = when.filter(|when| when.latest > now);
    let details = text.trim().chars().take(DETAILS_CHARS).collect();
    Understanding { service, when, place, budget, details, intent }
}

fn merge(mut draft: Understanding, new: Understanding) -> Understanding {
    if !new.details.is_empty() && new.details != draft.details {
        let both = format!("{}\n{}", draft.details, new.details);
        draft.details = both.trim().chars().take(DETAILS_CHARS).collect();
    }
    draft.service = new.service.or(draft.service);
    draft.when = new.when.or(draft.when);
    draft.place = new.place.or(draft.place);
    draft.budget = new.budget.or(draft.budget);
    draft.intent = new.intent;
    draft
}

/// What a request needs and is not known yet. A budget is optional.
pub fn missing(u: &Understanding) -> Vec<&'static str> {
    let needed = [
        ("service", u.service.is_none()),
        ("when", u.when.is_none()),
        ("place", u.place.is_none()),
    ];
    needed.into_iter().filter(|(_, missing)| *missing).map(|(name, _)| name).collect()
}

pub fn question(u: &Understanding) -> String {
    let what = u.service.map_or("it", Service::title);
    match (u.service, u.when, &u.place) {
        (None, None, None) => "What do you need, where and when?".into(),
        (None, ..) => "What do you need: a haircut, cleaning, plumbing or photography?".into(),
        (_, None, None) => format!("Where do you need the {what}, and when?"),
        (_, None, Some(place)) => format!("When do you need the {what} near {}?", place.name),
        (_, _, None) => format!("Where do you need the {what}? A city or a neighbourhood will do."),
        _ => format!("Shall I look for the {what}?"),
    }
}
