//! Times of day.

use jiff::civil::Time;

use super::super::token::GO_ON;
use super::{Hours, Kind, Reader, part_of_day};

#[derive(Clone, Copy, PartialEq)]
enum Half {
    Am,
    Pm,
    /// "17:00", "05:00": a 24-hour time, taken literally.
    Clock,
    Unsaid,
}

/// A time whose half of the day is not decided yet.
#[derive(Clone, Copy)]
struct Said {
    hour: u32,
    minute: u32,
    half: Half,
    /// Whether it can only be a time.
    sure: bool,
    count: usize,
}

const PLAIN_AFTER: &[&str] = &[
    "",
    ".",
    "to",
    "my",
    "up",
    "under",
    "ish",
    "sharp",
    "works",
    "close",
    "latest",
    "—",
    "when",
    "not",
    "there",
    "a",
    "i",
    "possible",
    "ok",
    "okay",
    "fine",
    "good",
    "free",
    "available",
    "preferably",
    "maybe",
    "it",
    "that",
    "can",
    "could",
    "will",
    "work",
    "haircut",
    "barber",
    "cleaning",
    "cleaner",
    "plumber",
    "photographer",
];

impl Reader<'_> {
    fn half_at(&self, at: usize) -> (Half, usize) {
        match self.word(at) {
            "am" => (Half::Am, 1),
            "pm" => (Half::Pm, 1),
            "a" | "p" if self.word(at + 1) == "m" => (self.letter(at), 2),
            "a" | "p" if self.word(at + 1) == "." && self.word(at + 2) == "m" => {
                (self.letter(at), 3 + usize::from(self.word(at + 3) == "."))
            }
            "in" if self.word(at + 1) == "the" => match self.word(at + 2) {
                "morning" => (Half::Am, 3),
                "afternoon" | "evening" => (Half::Pm, 3),
                _ => (Half::Unsaid, 0),
            },
            _ => (Half::Unsaid, 0),
        }
    }

    fn letter(&self, at: usize) -> Half {
        if self.word(at) == "a" { Half::Am } else { Half::Pm }
    }

    fn said_at(&self, at: usize) -> Option<Said> {
        let token = self.tokens.get(at).filter(|token| !token.taken)?;
        let sure = |hour, minute, half, count| Some(Said { hour, minute, half, sure: true, count });
        match token.text.as_str() {
            "noon" | "midday" => return sure(12, 0, Half::Clock, 1),
            // "half six" is half past six
            "half" if self.small(at + 1).is_some_and(|hour| (1..=12).contains(&hour)) => {
                let (half, more) = self.half_at(at + 2);
                let hour = self.small(at + 1)?;
                return Some(Said { hour, minute: 30, half, sure: false, count: 2 + more });
            }
            "half" | "quarter" => {
                return self.spoken_at(at, if token.is("half") { 30 } else { 15 }, 1);
            }
            "a" if self.word(at + 1) == "quarter" => return self.spoken_at(at, 15, 2),
            _ => {}
        }
        // "1730", next to a day or after "at": not a year.
        if token.kind == Kind::Number && token.text.len() == 4 {
            let number = token.number()?;
            let led = matches!(self.before(at, 1), "at" | "@");
            let by_day = at > 0 && self.tokens[at - 1].taken;
            let whole = number / 100 < 24 && number % 100 < 60 && (led || by_day);
            let (hour, minute, half) = (number / 100, number % 100, Half::Clock);
            return whole.then_some(Said { hour, minute, half, sure: false, count: 1 });
        }
        let hour = self.small(at).filter(|hour| *hour < 100)?;
        if let Some(said) = self.spoken_at(at, hour, 1) {
            return Some(said);
        }
        if hour > 24 {
            return None;
        }
        let minute = |n: usize| {
            let token = self.tokens.get(n).filter(|t| t.text.len() == 2 && t.glued && !t.taken)?;
            token.number().filter(|minute| *minute < 60)
        };
        let (mut minutes, mut count, mut clock) = (0, 1, false);
        if let (":" | "." | "h", Some(said)) = (self.word(at + 1), minute(at + 2)) {
            let dotted = self.word(at + 1) == ".";
            let (half, _) = self.half_at(at + 3);
            let led = matches!(
                self.before(at, 1),
                "at" | "@" | "around" | "between" | "after" | "before" | "from"
            );
            let led = led || (at > 0 && self.tokens[at - 1].taken);
            let fraction = self.word(at + 3) == "."
                && self.tokens.get(at + 4).is_some_and(|t| t.glued && t.kind == Kind::Number);
            if !dotted || ((half != Half::Unsaid || led) && !fraction) {
                (minutes, count, clock) = (said, 3, true);
            }
            // 17:00:00
            if self.word(at + 3) == ":" && minute(at + 4).is_some() {
                count = 5;
            }
        }
        let mut sure = clock || self.word(at + count) == "ish";
        let mut exact_clock = clock && (token.text.starts_with('0') || hour > 12);
        if self.word(at + count) == "o" && self.word(at + count + 2) == "clock" {
            count += 3;
            sure = true;
        } else if self.words(at + count, &["o", "clock"]) {
            count += 2;
            sure = true;
        } else if self.word(at + count) == "oclock" {
            count += 1;
            sure = true;
        } else if self.word(at + count) == "uhr"
            || (self.word(at + count) == "h" && self.tokens[at + count].glued)
        {
            count += 1;
            sure = true;
            exact_clock = true;
        }
        let (half, more) = self.half_at(at + count);
        if half != Half::Unsaid {
            return (hour <= 12 || half == Half::Pm).then_some(Said {
                hour,
                minute: minutes,
                half: if hour > 12 { Half::Clock } else { half },
                sure: true,
                count: count + more,
            });
        }
        let half = if exact_clock { Half::Clock } else { Half::Unsaid };
        Some(Said { hour, minute: minutes, half, sure, count })
    }

    /// "half past five", "quarter to six", "ten past nine".
    fn spoken_at(&self, at: usize, minutes: u32, count: usize) -> Option<Said> {
        let mut next = at + count;
        next += usize::from(matches!(self.word(next), "minutes"));
        let to = match self.word(next) {
            "past" => false,
            "to" if matches!(minutes, 5 | 10 | 15 | 20 | 25)
                && !self.tokens[at].is("half")
                && (self.tokens[at].kind == Kind::Word) =>
            {
                true
            }
            _ => return None,
        };
        let hour = self.small(next + 1).filter(|hour| (1..=12).contains(hour) && minutes < 60)?;
        let (half, more) = self.half_at(next + 2);
        let (hour, minute) = match (to, hour) {
            (false, hour) => (hour, minutes),
            (true, 1) => (12, 60 - minutes),
            (true, hour) => (hour - 1, 60 - minutes),
        };
        Some(Said { hour, minute, half, sure: true, count: next + 2 + more - at })
    }

    fn settled(&self, said: Said, half: Half) -> Option<Time> {
        let early = self.part.is_some_and(|(_, to)| to.hour() <= 12);
        let late = self.part.is_some_and(|(from, _)| from.hour() >= 12);
        let hour = match half {
            Half::Am => said.hour % 12,
            Half::Pm => said.hour % 12 + 12,
            Half::Clock => said.hour % 24,
            Half::Unsaid if said.hour > 12 => said.hour % 24,
            Half::Unsaid if said.hour == 12 => 12,
            Half::Unsaid if early => said.hour,
            Half::Unsaid if late => said.hour + 12,
            Half::Unsaid if (1..=7).contains(&said.hour) => said.hour + 12,
            Half::Unsaid => said.hour,
        };
        let (hour, minute) = (i8::try_from(hour).ok()?, i8::try_from(said.minute).ok()?);
        Time::new(hour, minute, 0, 0).ok()
    }

    /// Whether the hour is already given, and not corrected at this point.
    fn hour_is_said(&self, at: usize) -> bool {
        let again = self.cut.is_some_and(|cut| self.hours_at < cut && cut < at);
        self.hours.is_some() && !again
    }

    /// Ranges, "around", "after", "before", and phrases that can only be a time.
    pub(super) fn hours_at(&mut self, at: usize) -> usize {
        self.parts();
        if self.hour_is_said(at) {
            return 0;
        }
        if self.word(at) == "midnight" {
            self.hours = Some(Hours::Midnight);
            return 1;
        }
        let lead = match self.word(at) {
            "at" | "around" | "about" | "roughly" | "approximately" | "circa" | "after"
            | "before" | "by" | "until" | "till" | "til" | "between" | "from" | "past"
            | "since" | "@" | "to" | "~" | "latest" | "for" => 1,
            "earlier" | "later" if self.word(at + 1) == "than" => 2,
            "it" if self.before(at, 1) == "make" => 1,
            _ => 0,
        };
        // "not before 6" is after 6, "no later than 6" before.
        let denied = matches!(self.before(at, 1), "not" | "no" | "never" | "earlier" | "later");
        let word = match self.word(at) {
            "before" if denied => "after",
            "after" if denied => "before",
            "earlier" if self.word(at + 1) == "than" => "after",
            "later" if self.word(at + 1) == "than" && denied => "before",
            "later" if self.word(at + 1) == "than" => "after",
            word => word,
        };
        let word = word.to_owned();
        let skip = usize::from(
            lead > 0
                && matches!(self.word(at + 1), "around" | "about" | "latest" | "like" | "exactly"),
        );
        let around = matches!(
            word.as_str(),
            "around" | "about" | "roughly" | "approximately" | "circa" | "~"
        ) || (skip == 1 && matches!(self.word(at + 1), "around" | "about"));
        let Some(first) = self.said_at(at + lead + skip) else { return 0 };
        let next = at + lead + skip + first.count;
        let ranged =
            matches!(self.word(next), "and" | "to" | "-" | "–" | "until" | "till" | "til" | "—");
        if ranged && (matches!(word.as_str(), "between" | "from") || self.word(next) != "and") {
            let second = self.said_at(next + 1);
            let telling = |second: &super::hours::Said| {
                let after_day = !self.said.is_empty()
                    && matches!(self.word(next), "-" | "–")
                    && self.plain(next + 1 + second.count);
                first.sure
                    || second.sure
                    || after_day
                    || (matches!(word.as_str(), "between" | "from")
                        && self.plain(next + 1 + second.count))
            };
            if let Some(second) = second.filter(telling)
                && let Some(to) = self.settled(second, second.half)
                && let Some(from) = self.start(first, second, to)
            {
                let count = next + 1 + second.count - at;
                let early = first.half == Half::Unsaid && from.hour() < 7;
                if from < to && !(word == "between" && early) {
                    self.hours = Some(Hours::Between(from, to));
                    return count;
                }
                // "between 5 and 3 pm"
                if word == "between" {
                    self.unread.push(super::super::quote(self.tokens, at, at + count));
                    return count;
                }
            }
        }
        let weak = lead == 0 || matches!(word.as_str(), "for" | "to" | "since" | "between");
        if weak && !first.sure {
            return 0;
        }
        if !first.sure
            && (!self.plain(next)
                || (first.hour == 0 && first.half != Half::Clock)
                || self.moneyish(at))
        {
            return 0;
        }
        let Some(time) = self.settled(first, self.half_of(first)) else { return 0 };
        self.is_pm = first.half == Half::Pm;
        let ish = self.word(next) == "ish" || self.words(next, &["-", "ish"]);
        let or_later = self.words(next, &["or", "later"]) || self.words(next, &["onwards"]);
        self.hours = Some(match word.as_str() {
            _ if around || ish => Hours::Around(time),
            "after" | "past" | "from" => Hours::After(time),
            _ if or_later => Hours::After(time),
            "before" | "by" | "until" | "till" | "til" => Hours::Before(time),
            _ => Hours::At(time),
        });
        next - at
    }

    /// The half of the day: in "at 9 pm, no wait, 10", the correction of an evening hour is an evening hour too.
    fn half_of(&self, said: Said) -> Half {
        let evening = self.is_pm && self.hours.is_some() && (1..12).contains(&said.hour);
        if said.half == Half::Unsaid && evening { Half::Pm } else { said.half }
    }

    /// The start of a range: "11 to 2 pm" starts in the morning, "3 to 5 pm" does not.
    fn start(&self, first: Said, second: Said, to: Time) -> Option<Time> {
        if first.half == Half::Unsaid && second.half != Half::Unsaid && first.hour <= 12 {
            let same = self.settled(first, second.half)?;
            return if same < to { Some(same) } else { self.settled(first, Half::Am) };
        }
        self.settled(first, first.half)
    }

    fn plain(&self, at: usize) -> bool {
        let Some(token) = self.tokens.get(at) else { return true };
        token.taken || token.any(GO_ON) || token.any(PLAIN_AFTER) || part_of_day(token).is_some()
    }

    fn moneyish(&self, at: usize) -> bool {
        (1..=3).any(|back| {
            matches!(self.before(at, back), "budget" | "price" | "pay" | "costs" | "cost" | "spend")
        })
    }

    /// A bare hour: next to a day or as the whole answer, it needs no word before it ("tomorrow 5", "5").
    pub(super) fn bare_hour_at(&mut self, at: usize) -> usize {
        if self.hour_is_said(at) {
            return 0;
        }
        let Some(said) = self.said_at(at).filter(|said| {
            (1..=24).contains(&said.hour) || said.count == 1 && said.half == Half::Clock
        }) else {
            return 0;
        };
        let after_day = !self.said.is_empty()
            && at > 0
            && self.tokens[at - 1].taken
            && self.tokens[at - 1].kind == Kind::Word
            && self
                .tokens
                .get(at + said.count)
                .is_none_or(|t| t.any(&[",", ".", "near", "in", "at", "please"]));
        let whole = self.answers && at == 0 && said.count == self.tokens.len();
        // "at 5, no wait, 6"
        let again = self.hours.is_some()
            && self
                .cut
                .is_some_and(|cut| (cut + 1..at).all(|n| n < cut + 3 && !self.tokens[n].taken))
            && self.plain(at + said.count);
        if !after_day && !whole && !again {
            return 0;
        }
        self.hours = self.settled(said, self.half_of(said)).map(Hours::At);
        said.count
    }
}
