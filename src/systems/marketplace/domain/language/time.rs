//! The time in a sentence: days and times of day, in the zone of the place.

use jiff::civil::{Date, DateTime, Time, Weekday, time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};

use super::When;
use super::numbers::small_number;
use super::token::{Kind, Token};

mod days;
mod hours;
mod spans;

/// A range of days, inclusive.
#[derive(Clone, Copy, Debug)]
struct Days {
    first: Date,
    last: Date,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Hours {
    At(Time),
    Around(Time),
    Between(Time, Time),
    After(Time),
    Before(Time),
    /// The end of the day.
    Midnight,
}

const DAY_STARTS: Time = time(8, 0, 0, 0);
const DAY_ENDS: Time = time(20, 0, 0, 0);

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

const ORDINALS: [&str; 12] = [
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth",
];

const WEEKDAYS: [(&str, Weekday); 7] = [
    ("monday", Weekday::Monday),
    ("tuesday", Weekday::Tuesday),
    ("wednesday", Weekday::Wednesday),
    ("thursday", Weekday::Thursday),
    ("friday", Weekday::Friday),
    ("saturday", Weekday::Saturday),
    ("sunday", Weekday::Sunday),
];

/// The time given in an earlier message.
#[derive(Clone, Copy)]
pub(super) struct Before {
    pub first: DateTime,
    pub last: DateTime,
    pub exact: bool,
}

/// The context in which times are read.
pub(super) struct Setting<'a> {
    pub now: Timestamp,
    pub tz: &'a TimeZone,
    /// Whether the month comes first in 3/12.
    pub months_first: bool,
    pub before: Option<Before>,
    /// An hour that was given before without a readable day.
    pub hour: Option<Time>,
    /// Whether an unreadable day was given before. An hour alone then has no day.
    pub day_unread: bool,
    /// Whether the message answers a question, in which "5" is an hour.
    pub answers: bool,
    /// The start of the last correction. Values after it replace those before it.
    pub cut: Option<usize>,
}

#[derive(Default)]
pub(super) struct Read {
    pub when: Option<When>,
    pub hour: Option<Time>,
    /// Whether the message itself gives a day or a moment.
    pub day: bool,
    /// Whether it gives an hour or a part of the day.
    pub hours: bool,
    /// Phrases that do not amount to one time or one range.
    pub unread: Vec<String>,
}

/// Reads the time, and marks its tokens as taken.
pub(super) fn read(tokens: &mut [Token], setting: &Setting<'_>) -> Read {
    let local = setting.now.to_zoned(setting.tz.clone()).datetime();
    let mut reader = Reader {
        tokens,
        today: local.date(),
        american: setting.months_first,
        said: Vec::new(),
        at: 0,
        days: None,
        week: None,
        hours: None,
        hours_at: 0,
        is_pm: false,
        part: None,
        part_at: 0,
        moment: None,
        within: None,
        before: setting.before,
        answers: setting.answers,
        cut: setting.cut,
        unread: Vec::new(),
    };
    reader.read_all();
    reader.parts();
    reader.spans();
    reader.result(setting, local.time())
}

/// One or several days, and the tokens that name them.
#[derive(Clone, Copy, Debug)]
struct SaidDays {
    from: usize,
    to: usize,
    days: Days,
    /// A calendar date.
    date: bool,
}

struct Reader<'a> {
    tokens: &'a mut [Token],
    today: Date,
    american: bool,
    said: Vec<SaidDays>,
    /// The token that is being read.
    at: usize,
    /// The days that [`Reader::said`] amounts to.
    days: Option<Days>,
    /// A week without a day: "next week" as a number of weeks from now.
    week: Option<i64>,
    hours: Option<Hours>,
    hours_at: usize,
    /// Whether the hour was given with "pm".
    is_pm: bool,
    part: Option<(Time, Time)>,
    part_at: usize,
    /// A duration from now, and whether it is exact.
    moment: Option<(SignedDuration, bool)>,
    /// The length of the window after the moment.
    within: Option<SignedDuration>,
    before: Option<Before>,
    answers: bool,
    cut: Option<usize>,
    unread: Vec<String>,
}

pub(super) fn weekday(token: &Token) -> Option<Weekday> {
    let text = token.text.as_str();
    let singular = text.strip_suffix('s').filter(|rest| rest.ends_with("day")).unwrap_or(text);
    let short = matches!(
        text,
        "mon" | "tue" | "tues" | "wed" | "thu" | "thur" | "thurs" | "fri" | "sat" | "sun"
    );
    let typo =
        |name: &str| text.len() >= 6 && text.ends_with('y') && super::numbers::one_edit(text, name);
    WEEKDAYS
        .iter()
        .find(|(name, _)| *name == singular || (short && name.starts_with(text)) || typo(name))
        .map(|(_, day)| *day)
}

pub(super) fn month(token: &Token) -> Option<i8> {
    let text = token.text.as_str();
    let found =
        MONTHS.iter().position(|name| *name == text || (text.len() == 3 && name.starts_with(text)));
    let found = found.or((text == "sept").then_some(8))?;
    i8::try_from(found + 1).ok()
}

pub(super) fn part_of_day(token: &Token) -> Option<(Time, Time)> {
    Some(match token.text.as_str() {
        "morning" | "mornings" => (time(8, 0, 0, 0), time(12, 0, 0, 0)),
        "lunchtime" | "lunch" => (time(12, 0, 0, 0), time(14, 0, 0, 0)),
        "afternoon" | "afternoons" => (time(12, 0, 0, 0), time(17, 0, 0, 0)),
        "evening" | "evenings" => (time(17, 0, 0, 0), time(21, 0, 0, 0)),
        "night" => (time(18, 0, 0, 0), time(22, 0, 0, 0)),
        _ => return None,
    })
}

impl Reader<'_> {
    fn word(&self, at: usize) -> &str {
        match self.tokens.get(at) {
            Some(token) if !token.taken => &token.text,
            _ => "",
        }
    }

    fn words(&self, at: usize, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(n, word)| self.word(at + n) == *word)
    }

    fn before(&self, at: usize, back: usize) -> &str {
        at.checked_sub(back).map_or("", |at| self.word(at))
    }

    fn small(&self, at: usize) -> Option<u32> {
        self.tokens.get(at).filter(|token| !token.taken).and_then(small_number)
    }

    fn take(&mut self, at: usize, count: usize) {
        let end = (at + count).min(self.tokens.len());
        for token in &mut self.tokens[at.min(end)..end] {
            token.taken = true;
        }
    }

    /// Reads in passes, one kind of phrase each, the more specific first.
    fn read_all(&mut self) {
        for pass in [Self::date_at, Self::day_at, Self::hours_at, Self::bare_hour_at] {
            let mut at = 0;
            while at < self.tokens.len() {
                self.at = at;
                let known = self.said.len();
                let hours = self.hours;
                let count = if self.tokens[at].taken { 0 } else { pass(self, at) };
                self.take(at, count);
                if self.hours != hours {
                    self.hours_at = at;
                }
                for said in &mut self.said[known..] {
                    said.to = at + count;
                }
                at += count.max(1);
            }
        }
    }

    fn on(&mut self, day: Date) {
        self.between(day, day);
    }

    fn between(&mut self, first: Date, last: Date) {
        let days = Days { first, last };
        self.said.push(SaidDays { from: self.at, to: self.at + 1, days, date: false });
    }

    /// Adds a calendar date, including as one end of a range or with the first day before it.
    fn dated(&mut self, date: Date) {
        let at = self.at;
        let mut days = Days { first: date, last: date };
        let mut from = at;
        let the = usize::from(self.before(at, 1) == "the");
        let link = self.before(at, 1 + the).to_owned();
        let week = self.before(at, 2 + the) == "week";
        if week && matches!(link.as_str(), "of" | "from" | "commencing" | "beginning" | "starting")
        {
            let monday = i64::from(date.weekday().to_monday_zero_offset());
            days.first = date.saturating_sub(monday.days());
            days.last = days.first.saturating_add(6.days());
            days.first = days.first.max(self.today.min(days.last));
            from = at - 2 - the;
        } else if matches!(link.as_str(), "to" | "-" | "–" | "and" | "until" | "till" | "til") {
            // "between 5 and 7 December"
            let ordinal = matches!(self.before(at, 2 + the), "st" | "nd" | "rd" | "th" | ".");
            let start = at.checked_sub(2 + the + usize::from(ordinal));
            let first = start
                .and_then(|n| self.tokens.get(n))
                .filter(|token| !token.taken)
                .and_then(Token::number)
                .and_then(|day| i8::try_from(day).ok())
                .and_then(|day| Date::new(date.year(), date.month(), day).ok());
            let lead = start.map_or("", |n| self.before(n, 1));
            let spans = link != "and" || lead == "between";
            if let (Some(first), Some(start), true) = (first, start, spans)
                && first < date
            {
                let led = usize::from(matches!(lead, "between" | "from"));
                (days.first, from) = (first.max(self.today.min(date)), start - led);
            }
        }
        for token in &mut self.tokens[from..at] {
            token.taken = true;
        }
        self.said.push(SaidDays { from, to: at + 1, days, date: true });
    }

    fn plus_days(&self, days: i64) -> Date {
        self.today.saturating_add(days.clamp(-4_000, 4_000).days())
    }

    fn monday(&self, weeks: i64) -> Date {
        self.plus_days(weeks * 7 - i64::from(self.today.weekday().to_monday_zero_offset()))
    }

    /// The next date with this day and month that is not past.
    fn coming(&self, month: i8, day: i8, year: Option<i16>) -> Option<Date> {
        if let Some(year) = year {
            return Date::new(year, month, day).ok();
        }
        (0..=8)
            .filter_map(|n| Date::new(self.today.year().checked_add(n)?, month, day).ok())
            .find(|date| *date >= self.today)
    }

    fn year(&self, at: usize) -> Option<i16> {
        let token = self.tokens.get(at)?;
        let year = token.number().filter(|_| token.text.len() == 4)?;
        i16::try_from(year).ok().filter(|year| (1900..=2200).contains(year))
    }

    /// A calendar date.
    fn date_at(&mut self, at: usize) -> usize {
        let number = |n: usize| self.tokens.get(n).and_then(Token::number);
        let short = |n: usize| {
            number(n).and_then(|n| i8::try_from(n).ok()).filter(|n| (1..=31).contains(n))
        };
        // 2026-11-21
        if let (Some(year), "-", Some(month), "-", Some(day)) =
            (self.year(at), self.word(at + 1), short(at + 2), self.word(at + 3), short(at + 4))
        {
            let Ok(date) = Date::new(year, month, day) else { return 0 };
            self.dated(date);
            // 2026-11-21T17:00
            return if self.word(at + 5) == "t" { 6 } else { 5 };
        }
        // 21.11., 21.11.2026, 21/11
        let sign = self.word(at + 1).to_owned();
        if let (Some(first), "." | "/", Some(second)) = (short(at), sign.as_str(), short(at + 2))
            && self.tokens[at + 1].glued
            && self.tokens[at + 2].glued
        {
            let closed = self.word(at + 3) == sign && self.tokens[at + 3].glued;
            let year = if closed { self.year(at + 4) } else { None };
            let clock = sign == "." && matches!(self.before(at, 1), "at" | "@" | "around");
            let ends = closed && (self.tokens.get(at + 4).is_none_or(|next| !next.glued));
            let months_first = sign == "/" && self.american;
            let orders = if months_first {
                [(second, first), (first, second)]
            } else {
                [(first, second), (second, first)]
            };
            let orders = if sign == "." { &orders[..1] } else { &orders[..] };
            let date = orders.iter().find_map(|(day, month)| self.coming(*month, *day, year));
            if let Some(date) = date.filter(|_| {
                !clock
                    && (sign == "/"
                        || ends
                        || year.is_some()
                        || matches!(self.before(at, 1), "on" | "am"))
            }) {
                self.dated(date);
                return if year.is_some() {
                    5
                } else if closed && sign == "." {
                    4
                } else {
                    3
                };
            }
        }
        self.named_month_at(at)
    }

    /// "21 November", "21st of November 2026", "Nov 21st", "on the 21st".
    fn named_month_at(&mut self, at: usize) -> usize {
        let ordinal = |n: usize| {
            self.tokens
                .get(n)
                .is_some_and(|token| token.glued && token.any(&["st", "nd", "rd", "th"]))
        };
        let month_before = |n: usize| {
            (1..=2).any(|back| {
                n.checked_sub(back)
                    .and_then(|n| self.tokens.get(n))
                    .is_some_and(|t| month(t).is_some())
            })
        };
        let day = |n: usize| {
            let token = self.tokens.get(n).filter(|token| !token.taken)?;
            let named = ORDINALS.iter().position(|name| token.is(name)).map(|n| n + 1);
            let named = named.filter(|_| self.word(n + 1) == "of" || month_before(n));
            let number = token.number().and_then(|n| i8::try_from(n).ok());
            number.or(named.and_then(|n| i8::try_from(n).ok())).filter(|n| (1..=31).contains(n))
        };
        if let Some(of_month) = day(at) {
            let mut next = at + 1;
            let ordinal = ordinal(next);
            next += usize::from(ordinal || self.word(next) == ".");
            next += usize::from(self.word(next) == "of");
            if let Some(month) = self.tokens.get(next).filter(|token| !token.taken).and_then(month)
            {
                next += 1;
                let skipped = usize::from(self.word(next) == "," || self.word(next) == ".");
                let year = self.year(next + skipped);
                let Some(date) = self.coming(month, of_month, year) else { return 0 };
                self.dated(date);
                return next - at + if year.is_some() { skipped + 1 } else { 0 };
            }
            if ordinal
                && (self.before(at, 1) == "the"
                    || at.checked_sub(1).is_some_and(|n| weekday(&self.tokens[n]).is_some()))
                && !matches!(
                    self.word(at + 2),
                    "floor" | "time" | "street" | "one" | "offer" | "option"
                )
            {
                let found = (0..62).map(|n| self.plus_days(n)).find(|date| date.day() == of_month);
                if let Some(date) = found {
                    self.dated(date);
                    return 2;
                }
            }
            return 0;
        }
        let Some(month) = month(&self.tokens[at]) else { return 0 };
        let mut next = at + 1;
        next += usize::from(self.word(next) == ".");
        next += usize::from(self.word(next) == "the");
        let Some(of_month) = day(next) else { return 0 };
        next += 1 + usize::from(ordinal(next + 1));
        let skipped = usize::from(self.word(next) == ",");
        let year = self.year(next + skipped);
        let Some(date) = self.coming(month, of_month, year) else { return 0 };
        self.dated(date);
        next - at + if year.is_some() { skipped + 1 } else { 0 }
    }
}
