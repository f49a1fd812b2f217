//! What the agent says about a task. The data beside the words has the same for programs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::systems::marketplace::domain::messages::Asked;
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::offer::{DeclineReason, OfferSummary};

/// The closed forms of a message's data part.
pub fn forms() -> Value {
    json!({"forms": {
        "ask": {"service": "haircut", "place": "Alexanderplatz, Berlin", "starts_at": "2026-01-13T16:00:00Z",
                "budget": {"amount_minor": 6000, "currency": "EUR"}},
        "accept": {"offer_id": "off_…"},
    }})
}

pub fn unread() -> String {
    "Say in one sentence what is needed, where, when and for how much, or send a data part with `ask`. \
     An offer is accepted by a data part with `accept` and by nothing else."
        .into()
}

pub fn asking(asked: &Asked, directed: bool) -> String {
    let (service, place) = (asked.service.title(), &asked.place.name);
    match directed {
        true => format!("I see whether {service} near {place} is possible then."),
        false => format!("I look for {service} near {place}."),
    }
}

pub fn matched(providers: u32) -> String {
    match providers {
        1 => "One provider is asked.".into(),
        n => format!("{n} providers are asked."),
    }
}

fn described(offer: &OfferSummary) -> String {
    format!("{} at {} for {}", offer.provider_name, offer.starts_at, offer.price)
}

pub fn offer(offer: &OfferSummary) -> String {
    format!("An offer: {}. It binds nobody until it is accepted.", described(offer))
}

pub fn all_answered(offers: u32, cheapest: &OfferSummary) -> String {
    format!("All have answered: {offers} offers. The cheapest is {}.", described(cheapest))
}

pub fn counter(price: &Money, directed: bool) -> String {
    match directed {
        true => format!("Not at that price. The lowest is {price}: ask again with such a budget."),
        false => format!(
            "Nobody does it at that price. The lowest is {price}: ask again with such a budget."
        ),
    }
}

pub fn declined(reason: &str, reasons: &BTreeMap<DeclineReason, u32>) -> String {
    let only = reasons.keys().next().filter(|_| reasons.len() == 1);
    match (only, reason) {
        (Some(DeclineReason::NoSkill), _) => "This is not a service that is offered here.".into(),
        (Some(DeclineReason::OutOfArea), _) => "The place is too far away.".into(),
        (Some(DeclineReason::OtherCurrency), _) => "Prices are in another currency.".into(),
        (Some(DeclineReason::NotAvailable), _) | (_, "slot_taken") => {
            "There is no free time then.".into()
        }
        (_, "matching_unavailable") => "The search is not possible at the moment.".into(),
        _ => "Nobody can do it.".into(),
    }
}

pub fn accepting() -> String {
    "The offer is accepted, and the provider asked to confirm it.".into()
}

pub fn refused(reason: &str) -> String {
    format!("The offer could not be accepted ({reason}).")
}

pub fn not_asked(reason: &str) -> String {
    format!("This could not be asked ({reason}).")
}

pub fn booked(offer: &OfferSummary) -> String {
    format!("Booked: {}.", described(offer))
}

pub fn canceled() -> String {
    "Canceled.".into()
}

pub fn expired() -> String {
    "The time for an answer is over.".into()
}
