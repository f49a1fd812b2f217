//! Field errors, shared by the marketplace's rejections: the wrong field, and why.

pub use crate::kernel::error::FieldError;
use crate::kernel::text::{must_not_contain, wrong_in_name, wrong_in_text};
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::places::Place;

/// Collects every wrong field, so that a client gets all of them at once.
#[derive(Debug, Default)]
pub struct Check {
    pub errors: Vec<FieldError>,
}

impl Check {
    pub fn that(&mut self, holds: bool, pointer: &str, message: impl Into<String>) {
        if !holds {
            self.errors.push(FieldError { pointer: pointer.into(), message: message.into() });
        }
    }

    pub fn length(&mut self, text: &str, min: usize, max: usize, pointer: &str) {
        let n = text.chars().count();
        self.that(
            (min..=max).contains(&n),
            pointer,
            format!("must have {min} to {max} characters"),
        );
        self.that(!text.contains('\0'), pointer, "must not contain NUL");
    }

    /// Checks a name: one line that other people see. Surrounding spaces do not count towards the minimum.
    pub fn name(&mut self, name: &str, min: usize, max: usize, pointer: &str) {
        let (n, all) = (name.trim().chars().count(), name.chars().count());
        self.that(n >= min && all <= max, pointer, format!("must have {min} to {max} characters"));
        if let Some(c) = wrong_in_name(name) {
            self.that(false, pointer, must_not_contain(c));
        }
    }

    /// Checks a text of several lines that other people read.
    pub fn text(&mut self, text: &str, max: usize, pointer: &str) {
        self.that(
            text.chars().count() <= max,
            pointer,
            format!("must have at most {max} characters"),
        );
        if let Some(c) = wrong_in_text(text) {
            self.that(false, pointer, must_not_contain(c));
        }
    }

    pub fn money(&mut self, money: &Money, pointer: &str) {
        self.that(
            (1..=1_000_000_000).contains(&money.amount_minor),
            &format!("{pointer}/amount_minor"),
            "must be above 0 and at most 1000000000",
        );
        self.that(
            is_currency(&money.currency),
            &format!("{pointer}/currency"),
            "must be an ISO 4217 code such as EUR",
        );
    }

    pub fn coordinates(&mut self, latitude: f64, longitude: f64, pointer: &str) {
        // NaN is in no range, so it is refused too.
        self.that(
            (-90.0..=90.0).contains(&latitude),
            &format!("{pointer}/latitude"),
            "must be between -90 and 90",
        );
        self.that(
            (-180.0..=180.0).contains(&longitude),
            &format!("{pointer}/longitude"),
            "must be between -180 and 180",
        );
    }

    pub fn place(&mut self, place: &Place, pointer: &str) {
        self.coordinates(place.latitude, place.longitude, pointer);
        self.name(&place.name, 1, 120, &format!("{pointer}/name"));
        self.name(&place.city, 0, 120, &format!("{pointer}/city"));
        self.name(&place.country, 0, 60, &format!("{pointer}/country"));
        self.zone(&place.time_zone, &format!("{pointer}/time_zone"));
    }

    pub fn zone(&mut self, name: &str, pointer: &str) {
        self.that(
            super::schedule::zone(name).is_some(),
            pointer,
            "must be an IANA time zone such as Europe/Berlin",
        );
    }

    pub fn finish<R>(self, reject: impl FnOnce(Vec<FieldError>) -> R) -> Result<(), R> {
        if self.errors.is_empty() { Ok(()) } else { Err(reject(self.errors)) }
    }
}

pub fn is_currency(code: &str) -> bool {
    code.len() == 3 && code.bytes().all(|b| b.is_ascii_uppercase())
}

/// "/when: must not be in the past; /budget: …": the `Display` of an `Invalid` rejection.
pub fn summary(errors: &[FieldError]) -> String {
    errors.iter().map(|e| format!("{}: {}", e.pointer, e.message)).collect::<Vec<_>>().join("; ")
}
