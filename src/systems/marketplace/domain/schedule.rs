//! A provider's free times: weekly hours in the provider's own time zone, days off, bookings, travel, notice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use jiff::civil::{Date, Time, Weekday as CivilWeekday};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp, ToSpan};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The grid of offered starts.
pub const GRID_MINUTES: i64 = 15;
/// Travel time between two bookings.
pub const TRAVEL_MINUTES: i64 = 15;
/// Days of a long window that are searched for a free start.
const SEARCH_DAYS: usize = 32;

/// The time zone database compiled into the binary, so that every node of a cluster computes the same local times.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

pub fn zone(name: &str) -> Option<TimeZone> {
    // Only real names: POSIX strings and the empty string mean something else to some parsers.
    if name.is_empty() || name.len() > 64 { None } else { ZONES.get(name).ok() }
}

pub fn minutes(n: i64) -> SignedDuration {
    SignedDuration::from_mins(n)
}

/// The window of time that a consumer asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct When {
    pub earliest: Timestamp,
    pub latest: Timestamp,
    pub exact: bool,
}

/// A half-open span of time: `[starts_at, ends_at)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Span {
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
}

impl Span {
    pub fn new(starts_at: Timestamp, length_minutes: i64) -> Self {
        Self { starts_at, ends_at: later(starts_at, length_minutes) }
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.starts_at < other.ends_at && other.starts_at < self.ends_at
    }

    /// The span, extended by the travel time that must be free before and after it.
    pub fn with_travel(&self) -> Self {
        Self {
            starts_at: later(self.starts_at, -TRAVEL_MINUTES),
            ends_at: later(self.ends_at, TRAVEL_MINUTES),
        }
    }
}

/// The time this many minutes later. It saturates at the ends of time, so arithmetic on untrusted values cannot panic.
pub fn later(at: Timestamp, by_minutes: i64) -> Timestamp {
    let edge = if by_minutes < 0 { Timestamp::MIN } else { Timestamp::MAX };
    at.checked_add(minutes(by_minutes)).unwrap_or(edge)
}

/// A day of the week.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Weekday {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

impl Weekday {
    pub const ALL: [Self; 7] = [
        Self::Monday,
        Self::Tuesday,
        Self::Wednesday,
        Self::Thursday,
        Self::Friday,
        Self::Saturday,
        Self::Sunday,
    ];

    fn of(date: Date) -> Self {
        match date.weekday() {
            CivilWeekday::Monday => Self::Monday,
            CivilWeekday::Tuesday => Self::Tuesday,
            CivilWeekday::Wednesday => Self::Wednesday,
            CivilWeekday::Thursday => Self::Thursday,
            CivilWeekday::Friday => Self::Friday,
            CivilWeekday::Saturday => Self::Saturday,
            CivilWeekday::Sunday => Self::Sunday,
        }
    }
}

/// Open hours of a day, in minutes after local midnight; `to_minute` 1440 is the end of the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hours {
    /// Minutes after local midnight.
    pub from_minute: u16,
    pub to_minute: u16,
}

/// Open hours by weekday; a missing day is closed.
pub type Weekly = BTreeMap<Weekday, Vec<Hours>>;

/// Everything that decides when a provider can start. Borrowed from a profile and a calendar.
#[derive(Debug)]
pub struct Calendar<'a> {
    pub time_zone: &'a str,
    pub weekly: &'a Weekly,
    pub days_off: &'a BTreeSet<Date>,
    pub minimum_notice_minutes: u32,
    pub busy: &'a [Span],
}

impl Calendar<'_> {
    /// The earliest start in `[when.earliest, when.latest]` from which `duration_minutes` fit into open hours and
    /// keep the travel time to every booking. An exact wish may start off the grid.
    pub fn first_free(&self, when: &When, duration_minutes: i64, now: Timestamp) -> Option<Span> {
        let tz = zone(self.time_zone)?;
        let not_before = later(now, i64::from(self.minimum_notice_minutes)).max(when.earliest);
        if not_before > when.latest {
            return None;
        }
        let opens = self.opens(&tz, not_before, SEARCH_DAYS);
        if when.exact && not_before == when.earliest {
            let wish = Span::new(when.earliest, duration_minutes);
            if self.is_free(&wish) && opens.iter().any(|open| contains(open, &wish)) {
                return Some(wish);
            }
        }
        for open in opens {
            let mut start = on_grid(not_before.max(open.starts_at))?;
            loop {
                let span = Span::new(start, duration_minutes);
                if start > when.latest || span.ends_at > open.ends_at {
                    break;
                }
                match self.busy.iter().find(|busy| busy.with_travel().overlaps(&span)) {
                    None => return Some(span),
                    Some(busy) => start = on_grid(later(busy.ends_at, TRAVEL_MINUTES))?,
                }
            }
            if open.starts_at > when.latest {
                return None;
            }
        }
        None
    }

    /// Whether no booking is in the way, including travel. Open hours are not checked.
    pub fn is_free(&self, span: &Span) -> bool {
        !self.busy.iter().any(|busy| busy.with_travel().overlaps(span))
    }

    /// Whether the span is within open hours from start to end. Bookings are not checked.
    pub fn is_open(&self, span: &Span) -> bool {
        let Some(tz) = zone(self.time_zone) else { return false };
        // The longest job takes half a day, so it ends on the next day at the latest.
        self.opens(&tz, span.starts_at, 2).iter().any(|open| contains(open, span))
    }

    /// Whether the provider works at any time on the local day of `at`.
    pub fn works_on_day_of(&self, at: Timestamp) -> bool {
        let Some(tz) = zone(self.time_zone) else { return false };
        let date = at.to_zoned(tz).date();
        !self.days_off.contains(&date)
            && self.weekly.get(&Weekday::of(date)).is_some_and(|hours| !hours.is_empty())
    }

    /// The open spans of `days` days, starting with the local day of `from`, in order. Spans that meet at midnight are
    /// joined.
    fn opens(&self, tz: &TimeZone, from: Timestamp, days: usize) -> Vec<Span> {
        let first = from.to_zoned(tz.clone()).date();
        let dates = std::iter::successors(Some(first), |date| date.tomorrow().ok());
        let mut opens: Vec<Span> = Vec::new();
        for date in dates.take(days).filter(|date| !self.days_off.contains(date)) {
            for hours in self.weekly.get(&Weekday::of(date)).into_iter().flatten() {
                let starts_at = local(tz, date, hours.from_minute);
                let ends_at = local(tz, date, hours.to_minute);
                let (Some(starts_at), Some(ends_at)) = (starts_at, ends_at) else { continue };
                match opens.last_mut() {
                    Some(before) if before.ends_at == starts_at => before.ends_at = ends_at,
                    _ => opens.push(Span { starts_at, ends_at }),
                }
            }
        }
        opens
    }
}

fn contains(open: &Span, span: &Span) -> bool {
    open.starts_at <= span.starts_at && span.ends_at <= open.ends_at
}

/// The timestamp of a wall-clock minute of a day. In a gap (spring) it is the time after the gap, in a fold (autumn)
/// the first of the two, which jiff calls "compatible".
fn local(tz: &TimeZone, date: Date, minute: u16) -> Option<Timestamp> {
    let days = i64::from(minute / 1440);
    let minute = minute % 1440;
    let time = Time::new((minute / 60) as i8, (minute % 60) as i8, 0, 0).ok()?;
    let at = date.checked_add(days.days()).ok()?.to_datetime(time);
    Some(tz.to_ambiguous_zoned(at).compatible().ok()?.timestamp())
}

/// Rounds up to the grid. All current UTC offsets are multiples of 15 minutes, so this is a local grid as well.
fn on_grid(at: Timestamp) -> Option<Timestamp> {
    let step = GRID_MINUTES * 60;
    let rounded_up = at.as_second() + i64::from(at.subsec_nanosecond() > 0);
    Timestamp::from_second((rounded_up + step - 1).div_euclid(step) * step).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    struct Fixture {
        weekly: Weekly,
        days_off: BTreeSet<Date>,
        busy: Vec<Span>,
        notice: u32,
    }

    impl Fixture {
        fn nine_to_six() -> Self {
            let hours = vec![Hours { from_minute: 540, to_minute: 1080 }];
            let weekly = Weekday::ALL.into_iter().map(|day| (day, hours.clone())).collect();
            Self { weekly, days_off: BTreeSet::new(), busy: vec![], notice: 0 }
        }

        /// The start for an hour of work, as UTC text, asked a day and more ahead.
        fn first(&self, earliest: &str, latest: &str, exact: bool) -> Option<String> {
            self.first_at("2025-01-01T00:00:00Z", earliest, latest, exact)
        }

        fn first_at(&self, now: &str, earliest: &str, latest: &str, exact: bool) -> Option<String> {
            let when = When { earliest: at(earliest), latest: at(latest), exact };
            let first = self.calendar().first_free(&when, 60, at(now));
            first.map(|span| span.starts_at.to_string())
        }

        fn calendar(&self) -> Calendar<'_> {
            Calendar {
                time_zone: "Europe/Berlin",
                weekly: &self.weekly,
                days_off: &self.days_off,
                minimum_notice_minutes: self.notice,
                busy: &self.busy,
            }
        }
    }

    fn some(text: &str) -> Option<String> {
        Some(text.into())
    }

    #[test]
    fn opens_at_local_time_in_summer_and_winter() {
        let f = Fixture::nine_to_six();
        assert_eq!(
            f.first("2026-01-12T00:00:00Z", "2026-01-12T23:00:00Z", false),
            some("2026-01-12T08:00:00Z")
        );
        assert_eq!(
            f.first("2026-07-13T00:00:00Z", "2026-07-13T23:00:00Z", false),
            some("2026-07-13T07:00:00Z")
        );
        // The days on which the clocks change.
        assert_eq!(
            f.first("2026-03-29T00:00:00Z", "2026-03-29T21:00:00Z", false),
            some("2026-03-29T07:00:00Z")
        );
        assert_eq!(
            f.first("2026-10-25T00:00:00Z", "2026-10-25T21:00:00Z", false),
            some("2026-10-25T08:00:00Z")
        );
    }

    #[test]
    fn hours_inside_the_spring_gap_start_after_it() {
        let mut f = Fixture::nine_to_six();
        f.weekly = [(Weekday::Sunday, vec![Hours { from_minute: 150, to_minute: 300 }])].into();
        assert_eq!(
            f.first("2026-03-28T23:00:00Z", "2026-03-29T21:00:00Z", false),
            some("2026-03-29T01:30:00Z")
        );
    }

    #[test]
    fn the_work_must_end_before_closing() {
        let f = Fixture::nine_to_six();
        assert_eq!(
            f.first("2026-01-12T16:00:00Z", "2026-01-12T16:00:00Z", true),
            some("2026-01-12T16:00:00Z")
        );
        assert_eq!(f.first("2026-01-12T16:15:00Z", "2026-01-12T17:00:00Z", false), None);
    }

    #[test]
    fn who_never_closes_works_over_midnight() {
        let mut f = Fixture::nine_to_six();
        let hours = vec![Hours { from_minute: 0, to_minute: 1440 }];
        f.weekly = Weekday::ALL.into_iter().map(|day| (day, hours.clone())).collect();
        // 23:45 in Berlin.
        let late = "2026-01-12T22:45:00Z";
        assert_eq!(f.first(late, late, true), some(late));
        assert_eq!(f.first(late, late, false), some(late));
        f.days_off.insert("2026-01-13".parse().unwrap());
        assert_eq!(f.first(late, late, true), None);
    }

    #[test]
    fn a_span_is_open_from_its_start_to_its_end() {
        let mut f = Fixture::nine_to_six();
        let open = |f: &Fixture, starts_at: &str, minutes: i64| {
            f.calendar().is_open(&Span::new(at(starts_at), minutes))
        };
        assert!(open(&f, "2026-01-12T08:00:00Z", 540));
        assert!(!open(&f, "2026-01-12T07:59:00Z", 30));
        assert!(!open(&f, "2026-01-12T16:31:00Z", 30));
        f.busy.push(Span::new(at("2026-01-12T08:00:00Z"), 60));
        assert!(open(&f, "2026-01-12T08:00:00Z", 60));
        f.days_off.insert("2026-01-12".parse().unwrap());
        assert!(!open(&f, "2026-01-12T08:00:00Z", 60));
        let hours = vec![Hours { from_minute: 0, to_minute: 1440 }];
        f.weekly = Weekday::ALL.into_iter().map(|day| (day, hours.clone())).collect();
        // 18:00 in Berlin until 6:00.
        assert!(open(&f, "2026-01-13T17:00:00Z", 720));
        assert!(!open(&f, "2026-01-11T17:00:00Z", 720));
    }

    #[test]
    fn starts_are_on_the_grid_unless_the_wish_is_exact() {
        let f = Fixture::nine_to_six();
        assert_eq!(
            f.first("2026-01-12T10:05:00Z", "2026-01-12T12:00:00Z", false),
            some("2026-01-12T10:15:00Z")
        );
        assert_eq!(
            f.first("2026-01-12T10:05:00Z", "2026-01-12T12:00:00Z", true),
            some("2026-01-12T10:05:00Z")
        );
    }

    #[test]
    fn days_off_notice_and_bookings_move_the_start() {
        let mut f = Fixture::nine_to_six();
        f.days_off.insert("2026-01-12".parse().unwrap());
        assert_eq!(
            f.first("2026-01-12T00:00:00Z", "2026-01-13T23:00:00Z", false),
            some("2026-01-13T08:00:00Z")
        );

        f.busy.push(Span::new(at("2026-01-13T09:00:00Z"), 60));
        // 08:00–09:00 would leave no time to travel; 10:15 does.
        assert_eq!(
            f.first("2026-01-13T00:00:00Z", "2026-01-13T23:00:00Z", false),
            some("2026-01-13T10:15:00Z")
        );
        assert_eq!(f.first("2026-01-13T09:30:00Z", "2026-01-13T09:30:00Z", true), None);

        f.notice = 120;
        let late = f.first_at(
            "2026-01-13T11:50:00Z",
            "2026-01-13T00:00:00Z",
            "2026-01-13T23:00:00Z",
            false,
        );
        assert_eq!(late, some("2026-01-13T14:00:00Z"));
        let too_late = f.first_at(
            "2026-01-13T11:50:00Z",
            "2026-01-13T12:00:00Z",
            "2026-01-13T13:00:00Z",
            true,
        );
        assert_eq!(too_late, None);
    }

    #[test]
    fn a_window_without_end_is_searched_for_a_month() {
        let f = Fixture { weekly: Weekly::new(), ..Fixture::nine_to_six() };
        assert_eq!(f.first("2026-01-12T00:00:00Z", "9999-01-01T00:00:00Z", false), None);
    }

    #[test]
    fn zones_are_the_ones_compiled_in() {
        assert!(zone("Europe/Berlin").is_some());
        assert!(zone("Europe/Nowhere").is_none());
        assert!(zone("").is_none());
    }
}
