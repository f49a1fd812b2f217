//! The meaningful leftovers of a sentence after all readers are done.
//!
//! Every word was either read, or is known to say nothing about a time, a sum or a place ([`FILLER`]), or is examined
//! here: anything that looks like a day, an hour, money or an exclusion becomes a question.

use super::time::{self, Read};
use super::token::{Kind, Table, Token, Words, words_of};
use super::{About, Unread, WordRole, quote};

static FILLER: Table = Table::new(|| {
    let lines = include_str!("filler.txt").lines().filter(|line| !line.starts_with('#'));
    lines.flat_map(str::split_whitespace).collect()
});

/// Words for days and parts of the year that are not read, including words of other languages.
static DAYS: Table = Table::new(|| {
    words_of(
        "yesterday, christmas, xmas, easter, eve, silvester, halloween, thanksgiving, hanukkah,
         diwali, eid, ramadan, pentecost, whitsun, ascension, holiday, holidays, valentine,
         valentines, fortnight, fortnights, weekday, weekdays, workday, workdays, weeknight,
         weeknights, midweek, spring, summer, autumn, winter, payday, ostern, weihnachten,
         heiligabend, neujahr, pfingsten, montag, dienstag, mittwoch, donnerstag, freitag,
         samstag, sonnabend, sonntag, heute, morgen, ubermorgen, gestern, wochenende, woche,
         lundi, mardi, mercredi, jeudi, vendredi, samedi, dimanche, demain, aujourd, hier,
         semaine, lunes, martes, miercoles, jueves, viernes, sabado, domingo, manana, hoy, ayer,
         semana, navidad, lunedi, martedi, mercoledi, giovedi, venerdi, sabato, domenica, domani,
         oggi, dopodomani, settimana, maandag, dinsdag, woensdag, donderdag, vrijdag, zaterdag,
         zondag, vandaag, segunda, terca, quarta, quinta, sexta, amanha, hoje, poniedzialek,
         wtorek, sroda, czwartek, piatek, sobota, niedziela, jutro, dzisiaj, bugun, yarin,
         mandag, tirsdag, onsdag, torsdag, fredag, lordag, sondag",
    )
});

/// Words for hours that are not read.
static HOURS: Table = Table::new(|| {
    words_of(
        "quarter, past, breakfast, brunch, teatime, dusk, dawn, sunset, sunrise, arvo, forenoon, daytime,
         midmorning, uhr, vormittag, vormittags, nachmittag, nachmittags, abend, abends, mittag,
         mittags, fruh, nacht, matin, soir, midi, minuit, tarde, noche, mediodia, sera, mattina,
         pomeriggio, avond, ochtend, middag, early, earlier, late, later, earliest, latest",
    )
});

static ZONES: Table = Table::new(|| {
    words_of(
        "utc, gmt, cet, cest, est, edt, cst, cdt, mst, mdt, pst, pdt, bst, ist, jst, aest, eet,
         msk, zulu, sgt, hkt",
    )
});

/// Words that exclude a time, a place or a thing.
const EXCLUSIONS: Words = Words("except, excluding, besides, excepting, avoid, avoiding");

static MONEY: Table = Table::new(|| {
    words_of(
        "€, $, £, ¥, ₹, ₺, euro, euros, eur, dollar, dollars, usd, bucks, pound, pounds, quid,
         gbp, chf, francs, franken, yen, rupees, zloty, cents, grand",
    )
});

/// Things that a number may count, other than money and times of day.
static COUNTED: Table = Table::new(|| {
    words_of(
        "room, rooms, bedroom, bedrooms, bathroom, bathrooms, bath, baths, sqm, sq, m2, square,
         qm, person, persons, people, kid, kids, child, children, guest, guests, friend, friends,
         employee, employees, hour, hours, h, hr, hrs, minute, minutes, min, mins, year, years,
         yr, yrs, yo, floor, floors, story, storey, storeys, stories, window, windows, adult,
         adults, boy, boys, girl, girls, man, men, woman, women, pair, pairs, picture, pictures,
         photo, photos, image, images, headshot, headshots, portrait, portraits, toilet, toilets,
         sink, sinks, tap, taps, pipe, pipes, radiator, radiators, meter, meters, metre, metres,
         m, km, month, months, week, weeks, day, days, dog, dogs, cat, cats, cleaner, cleaners,
         haircut, haircuts, son, sons, daughter, daughters, flat, flats, apartment, apartments,
         house, couple, couples, unit, units, of, small, big, large, different, colleagues, team,
         x, carpets, carpet, stairs, offices, office, plumber, plumbers, photographer,
         photographers, minute's, percent, %, star, stars, or, shower, showers, drains, drain,
         leaks, inch, cm",
    )
});

const STREETS: Words = Words(
    "street, st, road, rd, avenue, ave, lane, ln, square, strasse, str, platz, allee, weg, gasse,
     way, drive, boulevard, blvd, place, court, terrace, row, rue, via, calle, damm, ufer, ring,
     markt, gardens, hill, gate",
);

/// Whether a capitalised word is not a name but a day, a month, a service or a common word.
pub(super) fn is_known(token: &Token) -> bool {
    let text = token.text.as_str();
    FILLER.contains(text)
        || time::weekday(token).is_some()
        || time::month(token).is_some()
        || time::part_of_day(token).is_some()
        || DAYS.contains(text)
        || HOURS.contains(text)
        || ZONES.contains(text)
        || MONEY.contains(text)
        || EXCLUSIONS.has(text)
        || super::lexicon::names_service(text)
        || super::lexicon::OTHER_TRADES.contains(text)
}

pub(super) struct Leftover<'a> {
    pub tokens: &'a [Token],
    pub time: &'a Read,
    /// Whether the message contains a sum.
    pub sum: bool,
    /// Whether a day is known from before.
    pub day_known: bool,
    /// Whether the message answers a question.
    pub answers: bool,
}

impl Leftover<'_> {
    fn text(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| token.text.as_str())
    }

    fn before(&self, at: usize, back: usize) -> &str {
        at.checked_sub(back).map_or("", |at| self.text(at))
    }

    fn role(&self, at: usize) -> WordRole {
        self.tokens.get(at).map_or(WordRole::None, |token| token.role)
    }

    fn left(&self, at: usize) -> bool {
        self.tokens.get(at).is_some_and(|token| !token.taken)
    }

    /// Whether the word before, skipping "the", "in" and the like, is one of these.
    fn led_by(&self, at: usize, words: &[&str]) -> bool {
        let link = |at: &usize| {
            ["the", "on", "in", "at", "this", "last", "next", "my", "our", "a"]
                .contains(&self.text(*at))
        };
        let first = (0..at).rev().take(4).find(|n| !link(n));
        first.is_some_and(|n| words.contains(&self.text(n)))
    }

    pub fn unread(&self) -> Vec<Unread> {
        let mut found: Vec<(About, usize, usize)> = Vec::new();
        for at in 0..self.tokens.len() {
            if self.left(at)
                && let Some((about, from, to)) = self.look(at)
            {
                match found.last_mut() {
                    Some((same, _, end)) if *same == about && from <= *end => *end = to.max(*end),
                    _ => found.push((about, from, to)),
                }
            }
        }
        if let Some(at) = self.unknown_beside_an_hour() {
            found.push((About::When, at, at + 1));
        }
        let mut unread: Vec<Unread> = Vec::new();
        for (about, from, to) in found {
            let words = quote(self.tokens, from, to);
            if unread.len() < 4 && !unread.iter().any(|other| other.words == words) {
                unread.push(Unread { about, words });
            }
        }
        unread
    }

    /// The leftover at `at`, if it is meaningful: its topic, and the tokens to quote.
    fn look(&self, at: usize) -> Option<(About, usize, usize)> {
        let token = &self.tokens[at];
        let text = token.text.as_str();
        let when = |from: usize, to: usize| Some((About::When, from, to));
        if token.kind == Kind::Number {
            return self.number(at);
        }
        if MONEY.contains(text) {
            let from = (0..at).rev().take_while(|n| self.left(*n)).take(4).last().unwrap_or(at);
            return Some((About::Budget, from, at + 1));
        }
        if token.kind == Kind::Sign {
            let between = ["-", "–", "—", "/", "+"].contains(&text)
                && self.role(at + 1) == WordRole::When
                && at > 0
                && self.role(at - 1) == WordRole::When;
            return if between { when(at - 1, at + 2) } else { None };
        }
        let since =
            self.led_by(at, &["since", "ago", "was", "were"]) && (self.time.day || self.answers);
        if time::month(token).is_some()
            && (text.len() > 3 || token.capital)
            && !matches!(text, "may" | "march")
        {
            return when(self.phrase_from(at), self.phrase_to(at));
        }
        if time::weekday(token).is_some() && text.len() > 4 && !since {
            return when(self.phrase_from(at), self.phrase_to(at));
        }
        if DAYS.contains(text) && !(text == "yesterday" && self.time.day) && !since {
            let named = self.led_by(at, &["for", "before"])
                || matches!(text, "spring" | "holiday" | "holidays");
            let harmless = named && self.time.day && self.time.hours
                || text == "spring" && self.text(at + 1) == "cleaning";
            return if harmless { None } else { when(self.phrase_from(at), self.phrase_to(at)) };
        }
        if (ZONES.contains(text) && (token.capital || matches!(text, "utc" | "gmt" | "cest")))
            && self.time.hours
        {
            let said = (0..at).rev().take(4).take_while(|n| self.role(*n) == WordRole::When);
            return when(said.last().unwrap_or(at), at + 1);
        }
        if text == "time" && at > 1 && self.time.hours && self.tokens[at - 1].capital {
            return when(at - 1, at + 1);
        }
        self.of_money(at)
            .or_else(|| self.of_a_place(at))
            .or_else(|| self.limits(at))
            .or_else(|| self.beside_a_time(at))
    }

    /// "for a tenner", "free of charge".
    fn of_money(&self, at: usize) -> Option<(About, usize, usize)> {
        let next = (self.text(at + 1), self.text(at + 2));
        match self.text(at) {
            "fiver" | "tenner" | "fivers" | "tenners" | "gratis" => {
                Some((About::Budget, at.saturating_sub(1), at + 1))
            }
            "free" if next == ("of", "charge") => Some((About::Budget, at, at + 3)),
            "for" if matches!(next.0, "free" | "nothing") => Some((About::Budget, at, at + 2)),
            _ => None,
        }
    }

    /// "Neukölln Moon Base", "10 km from Berlin"; also "noonish", which is an hour.
    fn of_a_place(&self, at: usize) -> Option<(About, usize, usize)> {
        let token = &self.tokens[at];
        if token.text.len() > 4 && token.text.ends_with("ish") && self.before(at, 1) == "at" {
            return Some((About::When, at - 1, at + 1));
        }
        let name = |n: usize| {
            self.tokens.get(n).is_some_and(|token| {
                token.kind == Kind::Word && token.capital && !token.taken && !is_known(token)
            })
        };
        let shouted = token.raw.chars().skip(1).any(char::is_uppercase);
        if at > 0 && self.role(at - 1) == WordRole::Place && token.joined && !shouted && name(at) {
            let from = (0..at).rev().take_while(|n| self.role(*n) == WordRole::Place).last();
            let to = (at..at + 4).take_while(|n| name(*n)).last().map_or(at + 1, |n| n + 1);
            return Some((About::Place, from.unwrap_or(at), to));
        }
        let far = Words("km, kilometers, kilometres, mile, miles, kms").has(&token.text)
            && matches!(self.text(at + 1), "from" | "of" | "away" | "around" | "outside");
        let to = (at + 2..at + 5).find(|n| self.role(*n) == WordRole::Place);
        to.filter(|_| far).map(|to| (About::Place, at.saturating_sub(1), to + 1))
    }

    fn phrase_from(&self, at: usize) -> usize {
        let part = |n: &usize| {
            let token = &self.tokens[*n];
            let said = FILLER.contains(token.text.as_str())
                && !token.any(&["next", "of", "day", "new", "s"]);
            !token.taken && !said && !token.any(&[",", "!", "?", ";", ":"])
        };
        (at.saturating_sub(3)..at).rev().take_while(part).last().unwrap_or(at)
    }

    fn phrase_to(&self, at: usize) -> usize {
        let part = |n: &usize| {
            let token = &self.tokens[*n];
            !token.taken && !FILLER.contains(token.text.as_str()) && token.kind != Kind::Sign
        };
        (at + 1..self.tokens.len()).take(3).take_while(part).last().map_or(at + 1, |n| n + 1)
    }

    /// A number that is not part of a time or a sum, and counts nothing known.
    fn number(&self, at: usize) -> Option<(About, usize, usize)> {
        let next = self.text(at + 1);
        let next = if next == "-" || next == "x" { self.text(at + 2) } else { next };
        let ordinal = matches!(next, "st" | "nd" | "rd" | "th");
        let counted = COUNTED.contains(next);
        let floor = ordinal && COUNTED_FLOORS.has(self.text(at + 2));
        let numbered = NUMBERED.has(self.before(at, 1));
        let street = (at + 1..at + 4).any(|n| STREETS.has(self.text(n)))
            && self.tokens.get(at + 1).is_some_and(|token| token.capital);
        let of_street = at > 0
            && self.tokens[at - 1].kind == Kind::Word
            && STREETS.iter().any(|street| street.len() > 2 && self.text(at - 1).ends_with(street));
        let age = self.before(at, 1) == "(" && self.text(at + 1) == ")";
        let listed = matches!(self.before(at, 1), "and" | "," | "or")
            && at > 1
            && self.tokens[at - 2].kind == Kind::Number
            && self.left(at - 2)
            && self.number(at - 2).is_none();
        if counted || floor || numbered || street || of_street || age || listed {
            return None;
        }
        // "SW1A 1AA", "W3"
        let code = self.tokens[at].glued
            && at > 0
            && self.tokens[at - 1].capital
            && self.tokens[at - 1].kind == Kind::Word
            && self.tokens[at - 1].text.len() <= 2;
        let code = code
            || (self.tokens.get(at + 1).is_some_and(|token| {
                token.glued && token.capital && token.kind == Kind::Word && token.text.len() <= 2
            }) && self.tokens[at].text.len() == 1);
        if code {
            return None;
        }
        let from = (0..at).rev().take(2).take_while(|n| {
            self.left(*n)
                && (self.tokens[n + 1].glued
                    || ["or", "and", "to", "-", "on"].contains(&self.text(*n)))
        });
        let from = from.last().unwrap_or(at);
        let linked = ["or", "and", "to", "-"].contains(&self.text(from));
        let from = if from < at && from > 0 && linked { from - 1 } else { from };
        let to = (at + 1..self.tokens.len())
            .take(3)
            .take_while(|n| {
                self.left(*n)
                    && self.tokens[*n].glued
                    && !self.tokens[*n].any(&[",", "!", "?", ")"])
            })
            .last()
            .map_or(at + 1, |n| n + 1);
        let other = self.led_by(at, &["or", "and", "rather", "to"]);
        let about = if self.time.hours && self.time.day && !self.sum && !other {
            About::Budget
        } else {
            About::When
        };
        Some((about, from, to))
    }

    /// "except", "before", "after" or "or" with a time, if no reader has read them.
    fn limits(&self, at: usize) -> Option<(About, usize, usize)> {
        let text = self.text(at);
        let end = |n: usize| n.min(self.tokens.len());
        let soon = |role: WordRole, within: usize| {
            (at + 1..end(at + 1 + within)).find(|n| self.role(*n) == role)
        };
        if EXCLUSIONS.has(text)
            || matches!(text, "other" | "apart") && matches!(self.text(at + 1), "than" | "from")
        {
            let about = if soon(WordRole::Place, 3).is_some() { About::Place } else { About::When };
            return Some((about, at, end(at + 4)));
        }
        if matches!(text, "not" | "no" | "never" | "but")
            || (text == "t" && self.before(at, 2) == "don")
        {
            let direct = |n: usize| {
                let linked =
                    ["in", "on", "at", "the", "before", "after", "until", "this", "next", "too"];
                (at + 1..n).all(|n| linked.contains(&self.text(n)))
            };
            let time = (at + 1..end(at + 5)).find(|n| {
                let token = &self.tokens[*n];
                self.role(*n) == WordRole::When
                    || time::part_of_day(token).is_some()
                    || time::weekday(token).is_some() && token.text.len() > 4
                    || HOURS.contains(token.text.as_str())
            });
            // "not before 6" has been read.
            let read = |n: &usize| {
                self.role(*n) == WordRole::When
                    && ["before", "after", "earlier", "later", "until", "till", "not"]
                        .contains(&self.text(*n))
            };
            if let Some(n) = time.filter(|n| direct(*n) && !read(n)) {
                let reader = text == "but"
                    && self.text(at + 1) != "not"
                    && self.before(at, 1) != "day"
                    && !matches!(self.before(at, 1), "anything" | "time" | "anytime" | "any");
                return if reader { None } else { Some((About::When, at, n + 1)) };
            }
            return None;
        }
        if matches!(text, "before" | "after" | "until" | "till" | "til" | "by") {
            let hour = soon(WordRole::When, 5);
            let named = self.left(at + 1) && self.tokens[end(at + 2) - 1].kind == Kind::Word;
            let by = text == "by"
                && !HOURS.contains(self.text(at + 1))
                && self.role(at + 1) != WordRole::When;
            let free = !self.time.hours || self.leads_to_an_hour(at, hour);
            let link = ["in", "on", "at", "near", "and"].contains(&self.text(at + 2));
            return (named && !by && free).then_some((
                About::When,
                at,
                end(at + 3 - usize::from(link)),
            ));
        }
        if matches!(text, "or" | "and" | "to" | "from" | "between") {
            let after = (at + 1..end(at + 3)).find(|n| {
                self.role(*n) == WordRole::When || time::part_of_day(&self.tokens[*n]).is_some()
            });
            let before = (at.saturating_sub(2)..at).rev().find(|n| self.role(*n) == WordRole::When);
            let joined = match text {
                "or" => after.is_some() && before.is_some(),
                "and" | "to" => after.is_some_and(|n| self.left(n)) && before.is_some(),
                _ => false,
            };
            if joined {
                return Some((About::When, before.unwrap_or(at), after.map_or(at + 1, |n| n + 1)));
            }
            return None;
        }
        let vague = matches!(
            text,
            "end" | "beginning" | "start" | "middle" | "mid" | "half" | "rest" | "last"
        );
        if vague {
            let of = (at + 1..end(at + 4)).find(|n| {
                self.role(*n) == WordRole::When
                    || ["week", "month", "year"].contains(&self.text(*n))
            });
            let linked = |n: usize| {
                (at + 1..n)
                    .all(|n| ["of", "the", "next", "this", "in", "-"].contains(&self.text(n)))
            };
            return of.filter(|n| linked(*n)).map(|n| (About::When, at, n + 1));
        }
        if matches!(text, "week" | "weeks" | "month" | "months" | "year") {
            let counted =
                self.tokens.get(at.wrapping_sub(1)).is_some_and(|token| token.kind == Kind::Number)
                    || matches!(
                        self.before(at, 1),
                        "per" | "every" | "each" | "last" | "old" | "two" | "three"
                    );
            let old = matches!(self.text(at + 1), "old" | "ago");
            let day = self.time.day && self.time.hours;
            return (!counted && !old && !day).then(|| (About::When, self.phrase_from(at), at + 1));
        }
        None
    }

    /// Whether the first hour after `at` belongs to it, as in "before my flight at 6".
    fn leads_to_an_hour(&self, at: usize, time: Option<usize>) -> bool {
        let Some(n) = time else { return false };
        let of_day = |token: &Token| {
            time::weekday(token).is_some()
                || time::month(token).is_some()
                || token.any(&["today", "tomorrow", "tonight", "tmrw", "tmr"])
        };
        let stops = (at + 1..n).any(|n| self.tokens[n].any(&[",", ".", ";"]));
        !stops && !of_day(&self.tokens[n])
    }

    /// An unknown word right beside a day: "next Fri arvo".
    fn beside_a_time(&self, at: usize) -> Option<(About, usize, usize)> {
        let token = &self.tokens[at];
        let text = token.text.as_str();
        let time = HOURS.contains(text) || (DAYS.contains(text));
        let beside = at > 0 && self.role(at - 1) == WordRole::When;
        if self.time.hours && !(token.glued && beside && token.text != "s") {
            return None;
        }
        let possible = self.led_by(at, &["as"])
            || self.text(at + 1) == "as"
            || matches!(text, "latest" | "earliest");
        if time && !possible && (self.time.day || self.answers) {
            return Some((About::When, at, at + 1));
        }
        let unknown = !is_known(token) && token.role == WordRole::None && text.len() > 1;
        (unknown && beside).then_some((About::When, at, at + 1))
    }

    /// An unknown word that may be the day of an hour. Without such a word, an hour alone means the next such hour.
    fn unknown_beside_an_hour(&self) -> Option<usize> {
        if self.time.day || !self.time.hours || self.time.when.is_none() {
            return None;
        }
        (0..self.tokens.len()).find(|at| {
            let token = &self.tokens[*at];
            let name = token.capital && self.day_known;
            token.kind == Kind::Word
                && !token.taken
                && token.role == WordRole::None
                && !name
                && !is_known(token)
                && !matches!(self.before(*at, 1), "'" | "’")
        })
    }
}

const COUNTED_FLOORS: Words = Words("floor, storey, story, time, birthday, level, anniversary");

/// Things that carry a number: "flat 5".
const NUMBERED: Words = Words(
    "flat, apartment, apt, no, number, nr, house, room, unit, suite, floor, level, building,
     block, aged, age, top, size, gate, line, bus, postcode, zip",
);
