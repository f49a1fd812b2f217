//! Stub.
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::domain::marketplace::money::Money;
use crate::domain::marketplace::places::Place;
use crate::domain::marketplace::service::Service;

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
    Help,
    Cancel,
    Status,
    Accept,
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

pub fn understand(text: &str, now: Timestamp, _tz: &TimeZone) -> Understanding {
    let lower = text.to_lowercase();
    let mut u = Understanding { details: text.into(), ..Default::default() };
    u.intent = match lower.as_str() {
        "hello" => Intent::Greeting,
        "help" => Intent::Help,
        "cancel" => Intent::Cancel,
        "status" => Intent::Status,
        "take the cheapest" => Intent::Accept,
        _ => Intent::Request,
    };
    if lower.contains("haircut") {
        u.service = Some(Service::Haircut);
    }
    if lower.contains("alexanderplatz") {
        u.place = Some(Place {
            name: "Alexanderplatz".into(),
            city: "Berlin".into(),
            country: "Germany".into(),
            latitude: 52.522,
            longitude: 13.413,
            time_zone: "Europe/Berlin".into(),
        });
    }
    if lower.contains("tomorrow") {
        let at = now + jiff::SignedDuration::from_hours(24);
        u.when = Some(When { earliest: at, latest: at, exact: true });
    }
    u
}

pub fn merge(mut draft: Understanding, new: Understanding) -> Understanding {
    draft.service = new.service.or(draft.service);
    draft.when = new.when.or(draft.when);
    draft.place = new.place.or(draft.place);
    draft.budget = new.budget.or(draft.budget);
    draft
}

pub fn missing(u: &Understanding) -> Vec<&'static str> {
    let mut missing = vec![];
    if u.service.is_none() {
        missing.push("service");
    }
    if u.when.is_none() {
        missing.push("when");
    }
    if u.place.is_none() {
        missing.push("place");
    }
    missing
}

pub fn question(u: &Understanding) -> String {
    format!("Please tell me: {}?", missing(u).join(", "))
}
