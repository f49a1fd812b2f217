//! Days relative to today, and the window that all phrases amount to.

use jiff::SignedDuration;
use jiff::civil::Weekday;

use super::{DAY_ENDS, DAY_STARTS, Days, Hours, Read, Reader, SaidDays, Setting, When, weekday};

impl Reader<'_> {
    pub(super) fn day_at(&mut self, at: usize) -> usize {
        if self.words(at, &["day", "after", "tomorrow"]) {
            self.on(self.plus_days(2));
            return 3;
        }
        if self.word(at) == "day" && matches!(self.word(at + 1), "before" | "after") {
            return self.beside_at(at);
        }
        let weeks_on = |this: &Self, at: usize| {
            // "a week from", "two weeks from"
            let weeks = if this.word(at) == "a" { Some(1) } else { this.small(at) };
            let weeks = match this.word(at + 1) {
                "week" | "weeks" => weeks,
                "fortnight" => weeks.map(|n| n * 2),
                _ => None,
            };
            let linked = matches!(this.word(at + 2), "from" | "after" | "on");
            let weeks = weeks.filter(|weeks| *weeks < 60).map(i64::from);
            weeks.map(|weeks| (weeks, at + 2 + usize::from(linked)))
        };
        if let Some((weeks, next)) = weeks_on(self, at) {
            let from = match self.word(next) {
                "today" | "now" => Some(self.today),
                "tomorrow" => Some(self.plus_days(1)),
                _ => self
                    .tokens
                    .get(next)
                    .filter(|token| !token.taken)
                    .and_then(weekday)
                    .map(|day| self.coming_weekday(day)),
            };
            if let Some(from) = from {
                let from = from.duration_since(self.today).as_hours() / 24;
                self.on(self.plus_days(from + weeks * 7));
                return next + 1 - at;
            }
        }
        match self.word(at) {
            "today" => self.on(self.today),
            "tonight" | "tonite" => {
                self.on(self.today);
                self.part = Some((jiff::civil::time(18, 0, 0, 0), jiff::civil::time(22, 0, 0, 0)));
                self.part_at = at;
            }
            "tomorrow" | "tomorow" | "tommorow" | "tommorrow" | "tomorrrow" | "tmrw" | "tmr" => {
                let week = usize::from(self.word(at + 1) == "week");
                self.on(self.plus_days(1 + 7 * week as i64));
                return 1 + week;
            }
            "asap" | "immediately" | "urgently" => {
                self.moment = Some((SignedDuration::ZERO, false))
            }
            "now" if self.before(at, 1) != "until" => {
                self.moment = Some((SignedDuration::ZERO, false))
            }
            "soon" if self.before(at, 1) == "as" && self.word(at + 1) == "as" => {
                self.moment = Some((SignedDuration::ZERO, false));
            }
            "weekend" | "weekends" => self.weekend(at),
            "week" => return self.week_at(at),
            "in" => return self.in_at(at),
            "within" => {
                let count = self.in_at(at);
                if let Some((within, exact)) = &mut self.moment {
                    (self.within, *within, *exact) = (Some(*within), SignedDuration::ZERO, false);
                }
                return count;
            }
            _ => return self.weekday_at(at),
        }
        1
    }

    fn weekend(&mut self, at: usize) {
        let next = i64::from(self.before(at, 1) == "next");
        let sunday = self.monday(next).saturating_add(jiff::Span::new().days(6));
        let saturday = sunday.saturating_sub(jiff::Span::new().days(1));
        self.between(saturday.max(self.today), sunday);
    }

    fn week_at(&mut self, at: usize) -> usize {
        let after_next = self.words(at + 1, &["after", "next"]);
        let weeks = match self.before(at, 1) {
            _ if after_next => 2,
            "next" | "following" | "coming" => 1,
            "this" => 0,
            _ => return 0,
        };
        self.week = self.week.or(Some(weeks));
        if after_next { 3 } else { 1 }
    }

    /// "in 3 days", "in an hour", "in half an hour", "in two weeks".
    fn in_at(&mut self, at: usize) -> usize {
        let mut next = at + 1;
        next += usize::from(matches!(self.word(next), "about" | "around" | "approximately"));
        let (many, unit) = match self.word(next) {
            "a" | "an" | "one" if self.words(next + 1, &["couple", "of"]) => (2, next + 3),
            "a" if self.word(next + 1) == "few" => (3, next + 2),
            "half"
                if matches!(self.word(next + 1), "an" | "a") && self.word(next + 2) == "hour" =>
            {
                self.moment = Some((SignedDuration::from_mins(30), true));
                return next + 3 - at;
            }
            "a" | "an" => (1, next + 1),
            _ => match self.small(next) {
                Some(many) if many <= 10_000 => (i64::from(many), next + 1),
                _ => return 0,
            },
        };
        match self.word(unit) {
            "minute" | "minutes" | "min" | "mins" => {
                self.moment = Some((SignedDuration::from_mins(many), true));
            }
            "hour" | "hours" | "h" | "hrs" | "hr" => {
                self.moment = Some((SignedDuration::from_hours(many), true));
            }
            "day" | "days" => self.on(self.plus_days(many)),
            "week" | "weeks" => self.on(self.plus_days(many * 7)),
            "fortnight" | "fortnights" => self.on(self.plus_days(many * 14)),
            "month" | "months" => {
                let day = self.today.saturating_add(jiff::Span::new().months(many.min(1_000)));
                self.on(day);
            }
            _ => return 0,
        }
        unit + 1 - at
    }

    /// The next such weekday, including today.
    fn coming_weekday(&self, day: Weekday) -> jiff::civil::Date {
        self.plus_days(i64::from(self.today.weekday().until(day)))
    }

    /// "the day before 30 November", and "the day after" relative to a day that was named.
    fn beside_at(&mut self, at: usize) -> usize {
        let shift = if self.word(at + 1) == "before" { -1 } else { 1 };
        let next = (at + 2..at + 5).find(|n| {
            self.tokens.get(*n).is_some_and(|token| token.taken || weekday(token).is_some())
        });
        let beside = |said: &SaidDays| Some(said.from) == next || Some(said.from + 1) == next;
        if let Some(n) = self.said.iter().position(beside) {
            let day = self.said.remove(n).days.first;
            self.on(day.saturating_add(jiff::Span::new().days(shift)));
            return 2;
        }
        if let Some((n, day)) = next.and_then(|n| Some((n, weekday(&self.tokens[n])?))) {
            let day = self.coming_weekday(day);
            self.on(day.saturating_add(jiff::Span::new().days(shift)));
            return n + 1 - at;
        }
        // Relative to the day that was named last.
        match self.said.pop() {
            Some(said) if said.days.first == said.days.last => {
                self.on(said.days.first.saturating_add(jiff::Span::new().days(shift)));
                2
            }
            _ => 0,
        }
    }

    /// Whether only a comma, a full stop, "the" or "on" is in between.
    fn adjacent(&self, from: usize, to: usize) -> bool {
        from <= to
            && to - from <= 2
            && self.tokens[from..to].iter().all(|token| token.any(&[",", ".", "the", "on"]))
    }

    fn weekday_at(&mut self, at: usize) -> usize {
        let Some(day) = weekday(&self.tokens[at]) else { return 0 };
        let before = self.before(at, 1).to_owned();
        // Holidays, and days that are past.
        const OTHERS: [&str; 12] = [
            "good", "black", "ash", "easter", "whit", "palm", "shrove", "maundy", "cyber", "rose",
            "last", "past",
        ];
        if OTHERS.contains(&before.as_str()) {
            return 0;
        }
        // Short names are words too: "sun", "sat", "wed".
        let short = self.word(at).len() <= 3;
        if short && !self.tokens[at].capital && !matches!(before.as_str(), "on" | "next" | "this") {
            return 0;
        }
        // "Saturday 28 November", "Friday 20th": one day, if it is that day of the week.
        let dated = self.said.iter().find(|said| {
            said.date && (self.adjacent(at + 1, said.from) || self.adjacent(said.to, at))
        });
        if let Some(said) = dated.copied() {
            if said.days.first == said.days.last && said.days.first.weekday() != day {
                let (from, to) = (said.from.min(at), said.to.max(at + 1));
                self.unread.push(super::super::quote(self.tokens, from, to));
            }
            return 1;
        }
        let week_after =
            self.words(at + 1, &["next", "week"]) || self.words(at + 1, &["of", "next", "week"]);
        let week_before = self.words(at.saturating_sub(2), &["next", "week"])
            || self.words(at.saturating_sub(3), &["next", "week", "on"]) && before == "on"
            || self.words(at.saturating_sub(3), &["next", "week", ","]);
        let week = self
            .week
            .filter(|_| at < 1 || !week_after)
            .or((week_after || week_before).then_some(1));
        let offset = i64::from(day.to_monday_zero_offset());
        let later = usize::from(self.word(at + 1) == "week")
            + 2 * usize::from(self.words(at + 1, &["after", "next"]));
        let date = match week {
            _ if later > 0 => self.coming_weekday(day).saturating_add(jiff::Span::new().days(7)),
            Some(weeks) => self.monday(weeks).saturating_add(jiff::Span::new().days(offset)),
            None if before == "next" => {
                self.monday(1).saturating_add(jiff::Span::new().days(offset))
            }
            None => self.coming_weekday(day),
        };
        self.on(date);
        if week_after { 2 + usize::from(self.word(at + 1) == "of") + 1 } else { 1 + later }
    }

    pub(super) fn result(self, setting: &Setting<'_>, clock: jiff::civil::Time) -> Read {
        let day = self.days.is_some() || self.week.is_some() || self.moment.is_some();
        let hours = self.hours.is_some() || self.part.is_some();
        let said = match self.hours {
            Some(Hours::At(time)) => Some(time),
            _ => setting.hour.filter(|_| !hours),
        };
        let unread = self.unread.clone();
        let when = if unread.is_empty() { self.settle(setting, clock) } else { None };
        Read { when, hour: said, day, hours, unread }
    }

    fn settle(self, setting: &Setting<'_>, clock: jiff::civil::Time) -> Option<When> {
        let Setting { now, tz, .. } = *setting;
        let at = |date: jiff::civil::Date, time: jiff::civil::Time| {
            let zoned = date.to_datetime(time).to_zoned(tz.clone()).ok()?;
            Some(zoned.timestamp())
        };
        let shifted = |time: jiff::civil::Time, minutes: i64| {
            time.saturating_add(SignedDuration::from_mins(minutes))
        };
        if let Some((after, exact)) =
            self.moment.filter(|_| self.days.is_none() || self.hours.is_none())
        {
            let earliest = now.checked_add(after).ok()?;
            let soon = self.within.unwrap_or(SignedDuration::from_hours(3));
            let span = if exact { SignedDuration::ZERO } else { soon };
            return Some(When { earliest, latest: earliest.checked_add(span).ok()?, exact });
        }
        let week = self.week.map(|weeks| {
            let first = self.monday(weeks);
            let last = first.saturating_add(jiff::Span::new().days(6));
            Days { first: first.max(self.today), last: last.max(self.today) }
        });
        let said_days = self.days.or(week);
        let said_hours = self.hours.or(self.part.map(|(from, to)| Hours::Between(from, to)));
        // An hour alone uses the day that was given before, and a day alone uses the hour.
        let before = self.before.filter(|before| before.last.date() >= self.today);
        let days = said_days.or_else(|| {
            let before = before.filter(|_| said_hours.is_some())?;
            Some(Days { first: before.first.date().max(self.today), last: before.last.date() })
        });
        let hours = said_hours.or_else(|| {
            said_days?;
            let before = before.filter(|before| before.exact).map(|before| before.first.time());
            before.or(setting.hour).map(Hours::At)
        });
        if days.is_none() && setting.day_unread {
            return None;
        }
        let (from, to) = match hours {
            None if days.is_none() => return None,
            None => (DAY_STARTS, DAY_ENDS),
            Some(Hours::At(time)) => (time, time),
            Some(Hours::Around(time)) => (shifted(time, -60), shifted(time, 60)),
            Some(Hours::Between(from, to)) => (from, to),
            Some(Hours::After(time)) => (time, shifted(time, 180).max(DAY_ENDS)),
            Some(Hours::Before(time)) => (DAY_STARTS.min(time), time),
            Some(Hours::Midnight) => (jiff::civil::Time::midnight(), jiff::civil::Time::midnight()),
        };
        let Days { mut first, mut last } = days.unwrap_or_else(|| {
            let late =
                if matches!(hours, Some(Hours::At(_))) { from <= clock } else { to <= clock };
            let day = self.plus_days(i64::from(late && hours != Some(Hours::Midnight)));
            Days { first: day, last: day }
        });
        if hours == Some(Hours::Midnight) {
            first = first.saturating_add(jiff::Span::new().days(1));
            last = last.saturating_add(jiff::Span::new().days(1));
        }
        let exact = matches!(hours, Some(Hours::At(_) | Hours::Midnight)) && first == last;
        let (mut earliest, mut latest) = (at(first, from)?, at(last, to)?);
        if !exact && earliest < now {
            // The rest of today.
            earliest = earliest.max(now.min(latest));
            if latest <= now && first == self.today && hours.is_none() {
                earliest = now;
                latest = at(first, jiff::civil::time(23, 59, 0, 0))?;
            }
        }
        Some(When { earliest, latest: latest.max(earliest), exact })
    }
}
