//! What the specifications of several entities start from.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use crate::kernel::entity::Effect;
use crate::systems::marketplace::domain::matching::{Score, ScoreParts, Scored};
use crate::systems::marketplace::domain::messages::{Agreed, Asked, HoldSlot};
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::offer::{Lead, Offer, OfferStatus};
use crate::systems::marketplace::domain::places::Place;
use crate::systems::marketplace::domain::pricing::{Offering, Per};
use crate::systems::marketplace::domain::profile::{Base, LeadAnswerer, Profile, ProviderCard};
use crate::systems::marketplace::domain::schedule::When;
use crate::systems::marketplace::domain::schedule::{Hours, Weekday};
use crate::systems::marketplace::domain::service::Service;

pub const NOW: &str = "2026-01-12T08:00:00Z";
/// A Tuesday, 17:00 in Berlin.
pub const START: &str = "2026-01-13T16:00:00Z";
pub const END: &str = "2026-01-13T16:45:00Z";

pub fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub fn eur(amount_minor: i64) -> Money {
    Money { amount_minor, currency: "EUR".into() }
}

pub fn alexanderplatz() -> Place {
    Place {
        name: "Alexanderplatz".into(),
        city: "Berlin".into(),
        country: "DE".into(),
        latitude: 52.522,
        longitude: 13.413,
        time_zone: "Europe/Berlin".into(),
    }
}

pub fn five_pm() -> When {
    When { earliest: at(START), latest: at(START), exact: true }
}

/// A haircut of 45 minutes for 50.00 EUR, down to 40.00; every day from 9 to 20 in Berlin Mitte.
pub fn profile() -> Profile {
    let hours = vec![Hours { from_minute: 540, to_minute: 1200 }];
    Profile {
        name: "Mirela's Chair".into(),
        bio: "Cuts for every kind of hair.".into(),
        languages: vec!["de".into(), "en".into()],
        services: vec![Offering {
            service: Service::Haircut,
            price: eur(5_000),
            per: Per::Service,
            duration_minutes: 45,
        }],
        base: Base {
            city: "Berlin".into(),
            country: "DE".into(),
            latitude: 52.523,
            longitude: 13.402,
            time_zone: "Europe/Berlin".into(),
        },
        radius_km: 10.0,
        weekly: Weekday::ALL.into_iter().map(|day| (day, hours.clone())).collect(),
        days_off: BTreeSet::new(),
        minimum_notice_minutes: 120,
        max_discount_percent: 20,
        answers_leads: LeadAnswerer::Policy,
    }
}

pub fn score() -> Score {
    Score::of(ScoreParts {
        skill: 1.0,
        location: 0.75,
        availability: 1.0,
        price: 1.0,
        rating: 0.8,
        response: 0.9,
    })
}

pub fn scored(provider_id: &str) -> Scored {
    Scored {
        provider_id: provider_id.into(),
        name: "Mirela's Chair".into(),
        distance_km: 0.8,
        score: score(),
    }
}

pub fn asked() -> Asked {
    Asked {
        consumer_id: "alice".into(),
        session_id: Some("ses_1".into()),
        service: Service::Haircut,
        details: "a haircut".into(),
        place: alexanderplatz(),
        when: five_pm(),
        budget: Some(eur(6_000)),
        time_zone: "Europe/Berlin".into(),
    }
}

pub fn lead() -> Lead {
    Lead {
        request_id: "req_1".into(),
        service: Service::Haircut,
        details: "a haircut".into(),
        place: alexanderplatz(),
        when: five_pm(),
        budget: Some(eur(6_000)),
        score: score(),
    }
}

pub fn card(provider_id: &str) -> ProviderCard {
    ProviderCard {
        id: provider_id.into(),
        name: "Mirela's Chair".into(),
        city: "Berlin".into(),
        rating: 4.7,
        reviews: 12,
    }
}

pub fn offer(id: &str, provider_id: &str, price_minor: i64) -> Offer {
    Offer {
        id: id.into(),
        provider: card(provider_id),
        price: eur(price_minor),
        starts_at: at(START),
        ends_at: at(END),
        message: "Gladly.".into(),
        score: score(),
        status: OfferStatus::Open,
        created_at: at(NOW),
        expires_at: at("2026-01-12T08:30:00Z"),
    }
}

pub fn hold(booking_id: &str) -> HoldSlot {
    HoldSlot {
        booking_id: booking_id.into(),
        offer_id: "off_1".into(),
        request_id: "req_1".into(),
        consumer_id: "alice".into(),
        service: Service::Haircut,
        details: "a haircut".into(),
        place: alexanderplatz(),
        price: eur(5_000),
        starts_at: at(START),
        ends_at: at(END),
        expires_at: at("2026-01-12T08:30:00Z"),
    }
}

pub fn agreed() -> Agreed {
    Agreed {
        request_id: "req_1".into(),
        offer_id: "off_1".into(),
        consumer_id: "alice".into(),
        provider: card("prv_1"),
        provider_owner_id: "mirela".into(),
        service: Service::Haircut,
        details: "a haircut".into(),
        place: alexanderplatz(),
        price: eur(5_000),
        starts_at: at(START),
        ends_at: at(END),
    }
}

/// What is sent to entities of this kind: key and command.
pub fn sent(effects: &[Effect], to: &str) -> Vec<(String, Value)> {
    let sends = effects.iter().filter_map(|effect| match effect {
        Effect::Send { kind, key, command } if *kind == to => Some((key.clone(), command.clone())),
        _ => None,
    });
    sends.collect()
}

/// The events that users are notified of: `user event`.
pub fn notified(effects: &[Effect]) -> Vec<String> {
    let notes = effects.iter().filter_map(|effect| match effect {
        Effect::Notify { key, publication, .. } => Some(format!("{key} {}", publication.event)),
        _ => None,
    });
    notes.collect()
}

/// The durable publications on the entity's own topic.
pub fn published(effects: &[Effect]) -> Vec<(&str, &Value)> {
    let publications = effects.iter().filter_map(|effect| match effect.bare() {
        Effect::Publish { publication, durable: true } => {
            Some((publication.event.as_str(), &publication.data))
        }
        _ => None,
    });
    publications.collect()
}

pub fn timers(effects: &[Effect]) -> Vec<(&str, String)> {
    let timers = effects.iter().filter_map(|effect| match effect {
        Effect::Schedule { name, at, .. } => Some((name.as_str(), at.to_string())),
        _ => None,
    });
    timers.collect()
}

pub fn cancelled(effects: &[Effect]) -> Vec<&str> {
    let timers = effects.iter().filter_map(|effect| match effect {
        Effect::Cancel { name } => Some(name.as_str()),
        _ => None,
    });
    timers.collect()
}
