//! The meaning of several days in one sentence: a range, a correction, an exclusion, or nothing readable.

use jiff::civil::Date;
use jiff::{Span, ToSpan};

use super::super::quote;
use super::{Days, Hours, Reader, SaidDays, part_of_day};

/// The role that the words before a day give it.
#[derive(Clone, Copy, PartialEq)]
enum As {
    That,
    Until(i64),
    From,
    Since,
    Not { instead: bool },
}

const LINKS: &[&str] =
    &["the", "on", "in", "at", "this", "next", "coming", "following", "of", "around"];

impl Reader<'_> {
    /// The word before, skipping link words, and its position.
    fn led_by(&self, from: usize) -> Option<(usize, &str)> {
        let mut at = from.checked_sub(1)?;
        for _ in 0..3 {
            if !LINKS.contains(&self.word(at)) {
                break;
            }
            at = at.checked_sub(1)?;
        }
        Some((at, self.word(at))).filter(|(_, word)| !word.is_empty())
    }

    fn said_as(&self, from: usize) -> (As, usize) {
        let Some((at, word)) = self.led_by(from) else { return (As::That, from) };
        let denied = matches!(self.before(at, 1), "not" | "no" | "never");
        let meant = match word {
            "before" | "until" | "till" | "til" if denied => As::From,
            "until" | "till" | "til" | "by" | "through" | "thru" => As::Until(0),
            "before" => As::Until(-1),
            "than" if matches!(self.before(at, 1), "later") => As::Until(0),
            "than" => As::Not { instead: false },
            "after" | "from" if self.before(at, 1) == "apart" => As::Not { instead: false },
            "after" | "from" | "starting" => As::From,
            "since" => As::Since,
            "except" | "but" | "excluding" | "besides" | "without" | "avoid" => {
                As::Not { instead: false }
            }
            "not" | "no" | "never" => As::Not { instead: true },
            _ => return (As::That, from),
        };
        (meant, at)
    }

    /// Joins two days with "to" between them into a range.
    fn ranges(&mut self) {
        let mut n = 0;
        while n + 1 < self.said.len() {
            let (a, b) = (self.said[n], self.said[n + 1]);
            let between: Vec<usize> = (a.to..b.from)
                .filter(|at| !LINKS.contains(&self.word(*at)) && !self.tokens[*at].taken)
                .collect();
            let lead = self.led_by(a.from).map(|(at, word)| (at, word.to_owned()));
            let lead_is = |name: &str| lead.as_ref().is_some_and(|(_, word)| word == name);
            let two = lead_is("between");
            let from = two || lead_is("from");
            let linked = match between[..] {
                [at] => match self.word(at) {
                    "to" | "-" | "–" | "—" | "until" | "till" | "til" | "through" | "thru" => {
                        true
                    }
                    "and" => two,
                    _ => false,
                },
                _ => false,
            };
            let last = if b.days.last < a.days.first && !b.date {
                b.days.last.saturating_add(7.days())
            } else {
                b.days.last
            };
            if linked && last > a.days.first {
                for at in between {
                    self.tokens[at].taken = true;
                }
                if let Some((at, _)) = lead.filter(|_| from) {
                    self.tokens[at].taken = true;
                }
                let days = Days { first: a.days.first, last };
                self.said[n] = SaidDays { from: a.from, to: b.to, days, date: a.date };
                self.said.remove(n + 1);
            } else {
                n += 1;
            }
        }
    }

    pub(super) fn spans(&mut self) {
        if let Some(part) = self.part.map(|_| self.part_at) {
            let name = self.tokens[part].text.clone();
            for token in self.tokens.iter_mut().filter(|token| token.text == name) {
                token.taken = true;
            }
        }
        self.said.sort_by_key(|said| said.from);
        if let Some(cut) = self.cut
            && self.said.iter().any(|said| said.from > cut)
        {
            self.said.retain(|said| said.from > cut);
        }
        self.ranges();
        let mut plain: Vec<SaidDays> = Vec::new();
        let mut until: Option<Date> = None;
        let mut open: Option<(usize, usize)> = None;
        let mut excluded: Vec<(SaidDays, usize, bool)> = Vec::new();
        for said in self.said.clone() {
            let (meant, at) = self.said_as(said.from);
            let marked = |this: &mut Self| this.tokens[at].taken = true;
            match meant {
                As::That => plain.push(said),
                As::Until(shift) => {
                    marked(self);
                    until = Some(said.days.last.saturating_add(Span::new().days(shift)));
                }
                As::From => open = Some((at, said.to)),
                As::Since => marked(self),
                As::Not { instead } => {
                    marked(self);
                    excluded.push((said, at, instead));
                }
            }
        }
        let mut days: Option<Days> = None;
        for said in &plain {
            let new = said.days;
            let inside = |a: Days, b: Days| b.first <= a.first && a.last <= b.last;
            days = Some(match days {
                Some(old) if inside(new, old) => new,
                Some(old) if inside(old, new) => old,
                Some(old) => {
                    let from = plain.first().map_or(said.from, |first| first.from);
                    self.unread.push(quote(self.tokens, from, said.to));
                    old
                }
                None => new,
            });
        }
        let wide = days.is_none_or(|days| days.first != days.last);
        for (said, at, instead) in excluded {
            let elsewhere =
                days.is_none_or(|days| said.days.last < days.first || days.last < said.days.first);
            if wide || !instead || !elsewhere {
                self.unread.push(quote(self.tokens, at, said.to));
            }
        }
        if let Some((from, to)) = open.filter(|_| days.is_none()) {
            self.unread.push(quote(self.tokens, from, to));
        }
        let until = until.filter(|_| days.is_none() && self.week.is_none());
        self.days = days.or(until.map(|last| Days { first: self.today.min(last), last }));
        self.fits();
    }

    /// Checks that everything fits one window: hours of one day, not of several days.
    fn fits(&mut self) {
        let hours = self.hours.is_some() || self.part.is_some();
        if !hours || (self.moment.is_some() && self.days.is_none()) {
            return;
        }
        let earlier = self.before.filter(|before| before.last.date() >= self.today);
        let several = match (self.days, self.week, earlier) {
            (Some(days), ..) => days.first != days.last,
            (None, Some(_), _) => true,
            (None, None, Some(before)) => before.first.date().max(self.today) != before.last.date(),
            (None, None, None) => false,
        };
        let at = if self.hours.is_some() { self.hours_at } else { self.part_at };
        if several {
            let end = (at..self.tokens.len()).take(6).take_while(|n| self.tokens[*n].taken).count();
            self.unread.push(quote(self.tokens, at, at + end.max(1)));
            return;
        }
        // "tomorrow morning at 5 pm"
        if let (Some(Hours::At(time)), Some((from, to))) = (self.hours, self.part)
            && ((to.hour() <= 12 && time.hour() > 12)
                || (from.hour() >= 12 && time.hour() < 11)
                || (from.hour() == 18 && (11..17).contains(&time.hour())))
            && time.hour() > 0
        {
            self.unread.push(quote(self.tokens, self.part_at, self.part_at + 1));
        }
    }

    pub(super) fn parts(&mut self) {
        if self.part.is_none() {
            let part = |at: &usize| {
                part_of_day(&self.tokens[*at]).filter(|_| {
                    let since = self.before(*at, 2) == "since";
                    let (meant, _) = self.said_as(*at);
                    self.before(*at, 1) != "good" && !since && meant == As::That
                })
            };
            let at =
                (0..self.tokens.len()).find(|at| !self.tokens[*at].taken && part(at).is_some());
            self.part = at.as_ref().and_then(part);
            self.part_at = at.unwrap_or(0);
        }
    }
}
