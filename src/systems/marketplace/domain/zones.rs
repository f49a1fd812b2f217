//! The check that a time zone fits a place.
//!
//! We know no borders of zones, only the places of the gazetteer. So a zone fits if a known place nearby is in it, or
//! in a zone that has the same time all year. If no known place is near, it fits if its noon is not too far from solar
//! noon.

use std::collections::BTreeSet;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::places::{self, distance_km};
use super::schedule::zone;
use crate::kernel::clock::saturating_add;

/// How much farther away than the nearest known place another place may be and still count.
const NEARBY_KM: f64 = 200.0;
/// If the nearest known place is farther away than this, the sun decides.
const SPARSE_KM: f64 = 200.0;
/// Largest difference between clocks and the sun, in hours: nearly three at the western end of China.
const SUN_H: f64 = 3.0;
/// Clocks that people use alongside those of their zone: Beijing's in Xinjiang.
const BESIDE: &[(&str, &str)] = &[("Asia/Urumqi", "Asia/Shanghai")];

/// Whether the zone fits. An unknown zone or coordinates out of range pass here, since other checks report them.
pub fn fits(name: &str, at: (f64, f64), now: Timestamp) -> bool {
    let Some(given) = zone(name) else { return true };
    let known: Vec<(f64, &str)> =
        places::spots().map(|(spot, zone)| (distance_km(at, spot), zone)).collect();
    let nearest = known.iter().map(|(km, _)| *km).fold(f64::INFINITY, f64::min);
    if nearest > SPARSE_KM {
        return follows_the_sun(&given, at, now);
    }
    let nearby = known.into_iter().filter(|(km, _)| *km <= nearest + NEARBY_KM);
    let nearby: BTreeSet<&str> = nearby.map(|(_, zone)| zone).collect();
    nearby.iter().any(|other| {
        *other == name
            || BESIDE.contains(&(other, name))
            || zone(other).is_some_and(|other| same_time(&given, &other, now))
    })
}

/// Whether both zones have the same offset from UTC in every week of the coming year.
fn same_time(one: &TimeZone, other: &TimeZone, now: Timestamp) -> bool {
    (0..53).all(|week| {
        let at = in_weeks(now, week);
        one.to_offset(at) == other.to_offset(at)
    })
}

fn in_weeks(now: Timestamp, weeks: i64) -> Timestamp {
    saturating_add(now, SignedDuration::from_hours(weeks * 7 * 24))
}

fn follows_the_sun(given: &TimeZone, (latitude, longitude): (f64, f64), now: Timestamp) -> bool {
    // Near the poles, people use the time of the place that supplies them.
    if !(-60.0..=80.0).contains(&latitude) {
        return true;
    }
    // Check half a year later too: the clocks may have changed.
    [0, 26].into_iter().any(|weeks| {
        let clock = given.to_offset(in_weeks(now, weeks)).seconds();
        let apart = (f64::from(clock) / 3_600.0 - longitude / 15.0).rem_euclid(24.0);
        apart.min(24.0 - apart) <= SUN_H
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, at: (f64, f64), expected: bool) {
        for now in ["2026-01-12T08:00:00Z", "2026-07-12T08:00:00Z"] {
            assert_eq!(fits(name, at, now.parse().unwrap()), expected, "{name} {at:?} {now}");
        }
    }

    #[test]
    fn a_zone_is_that_of_a_place_nearby_or_has_the_same_time() {
        let berlin = (52.52, 13.405);
        for (name, expected) in [
            ("Europe/Berlin", true),
            ("Europe/Paris", true),
            ("Europe/Warsaw", true),
            ("Europe/London", false),
            ("Europe/Moscow", false),
            ("America/New_York", false),
            ("UTC", false),
            ("Etc/GMT-1", false),
            ("Africa/Algiers", false),
        ] {
            check(name, berlin, expected);
        }
        check("Europe/London", (51.507, -0.128), true);
        check("Europe/Dublin", (51.507, -0.128), true);
        check("Europe/Paris", (51.507, -0.128), false);
        check("America/New_York", (34.05, -118.24), false);
        check("America/Phoenix", (32.69, -114.62), true);
        check("America/Los_Angeles", (32.69, -114.62), true);
        check("Asia/Urumqi", (43.83, 87.6), true);
        check("Asia/Shanghai", (43.83, 87.6), true);
        check("Asia/Tokyo", (43.83, 87.6), false);
    }

    #[test]
    fn both_sides_of_a_border_have_their_time() {
        let badajoz = (38.879, -6.97);
        check("Europe/Madrid", badajoz, true);
        check("Europe/Lisbon", badajoz, true);
        check("Europe/Berlin", badajoz, true);
        check("Europe/Athens", badajoz, false);
    }

    #[test]
    fn far_from_everything_the_sun_decides() {
        for (name, at) in [
            ("Atlantic/Azores", (37.74, -25.67)),
            ("Pacific/Chatham", (-43.95, -176.55)),
            ("Pacific/Kiritimati", (1.87, -157.43)),
            ("Pacific/Easter", (-27.15, -109.43)),
            ("Asia/Shanghai", (29.65, 91.1)),
            ("Antarctica/McMurdo", (-77.85, 166.67)),
            ("America/Punta_Arenas", (-62.2, -58.9)),
        ] {
            check(name, at, true);
        }
        check("Europe/Berlin", (37.74, -25.67), true);
        check("Asia/Tokyo", (37.74, -25.67), false);
        check("UTC", (-43.95, -176.55), false);
    }

    #[test]
    fn what_is_wrong_otherwise_is_said_otherwise() {
        check("Mars/Olympus", (52.52, 13.405), true);
    }

    #[test]
    fn every_known_place_has_its_zone() {
        let now = "2026-01-12T08:00:00Z".parse().unwrap();
        for (at, zone) in places::spots().step_by(37) {
            assert!(fits(zone, at, now), "{zone} {at:?}");
        }
    }
}
