//! The agent's sentences. One place, so that they can be translated.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{AskedOf, Current, OfferSummary, Progress};
use crate::domain::marketplace::money::Money;
use crate::domain::marketplace::offer::DeclineReason;
use crate::domain::marketplace::request::{Asked, Status};
use crate::domain::marketplace::schedule::zone;

pub(super) fn greeting() -> String {
    "Hello! Tell me what you need, where and when, and I will find somebody for you.".into()
}

pub(super) fn welcome() -> String {
    "You are welcome!".into()
}

pub(super) fn help() -> String {
    "I find haircuts, cleaning, plumbing and photography. Try: \"I need a haircut tomorrow at 5 pm near \
     Alexanderplatz in Berlin, up to 60 euros\". You can also ask for the status, accept the cheapest offer, or cancel."
        .into()
}

pub(super) fn forgotten() -> String {
    "All right, I have forgotten that. What do you need?".into()
}

pub(super) fn cancelling() -> String {
    "All right, I am cancelling your request.".into()
}

pub(super) fn nothing_to_cancel() -> String {
    "There is no open request to cancel.".into()
}

pub(super) fn accepting() -> String {
    "I am accepting that offer and will confirm it in a moment.".into()
}

pub(super) fn nothing_to_accept() -> String {
    "There is no open offer to accept.".into()
}

pub(super) fn searching(asked: &Asked) -> String {
    let budget = asked.budget.as_ref().map_or(String::new(), |money| format!(", up to {money}"));
    let time = local_time(asked.when.earliest, &asked.place.time_zone);
    let from = if asked.when.exact { "" } else { "from " };
    let (service, place) = (asked.service.title(), &asked.place.name);
    format!("I am looking for a {service} near {place}, {from}{time}{budget}.")
}

pub(super) fn status(current: Option<&Current>, has_draft: bool) -> String {
    let Some(current) = current else {
        let and =
            if has_draft { " I still need to know a little more about what you want." } else { "" };
        return format!("You have no request yet.{and}");
    };
    let service = current.service.title();
    match current.status {
        Status::Matching => format!("I am still waiting for offers for your {service}."),
        Status::Open => match current.offers {
            1 => format!("You have one offer for your {service}."),
            n => format!("You have {n} offers for your {service}."),
        },
        Status::Accepting => format!("Your {service} is being confirmed."),
        Status::Booked => format!("Your {service} is booked."),
        Status::Cancelled => format!("Your {service} request was cancelled."),
        Status::Expired => format!("Your {service} request has expired."),
        Status::Unmatched => format!("I found nobody for your {service}."),
    }
}

pub(super) fn progress(progress: &Progress) -> String {
    match progress {
        Progress::Matched { providers: 1 } => "I found one provider and asked for an offer.".into(),
        Progress::Matched { providers } => {
            format!("I found {providers} providers and asked them for offers.")
        }
        Progress::FirstOffer { offer } => format!("The first offer is here: {}.", terms(offer)),
        Progress::AllAnswered { offers: 1, cheapest } => {
            format!("Everybody has answered. The offer you can accept: {}.", terms(cheapest))
        }
        Progress::AllAnswered { offers, cheapest } => {
            let cheapest = terms(cheapest);
            format!("Everybody has answered: {offers} offers. The cheapest: {cheapest}.")
        }
        Progress::Unmatched { reason, reasons, lowest_price } => {
            unmatched(reason, reasons, lowest_price.as_ref())
        }
        Progress::OfferRefused { offers: 0 } => {
            "I am sorry, that time has just been taken, and there is no other offer.".into()
        }
        Progress::OfferRefused { offers } => {
            format!("I am sorry, that time has just been taken. Other open offers: {offers}.")
        }
        Progress::Booked { offer, .. } => format!("It is booked: {}.", terms(offer)),
        Progress::Cancelled => "Your request is cancelled.".into(),
        Progress::Expired => "Your request has expired. Tell me if you still need it.".into(),
    }
}

fn unmatched(
    reason: &str,
    reasons: &BTreeMap<DeclineReason, u32>,
    lowest_price: Option<&Money>,
) -> String {
    match reason {
        "no_providers" => return "I am sorry, I know nobody who does that there.".into(),
        "matching_unavailable" => {
            return "I am sorry, I cannot search right now. Please try again in a moment.".into();
        }
        "slot_taken" => return "I am sorry, the time you asked for has been taken.".into(),
        _ => {}
    }
    let reasons: Vec<String> = reasons
        .iter()
        .map(|(reason, n)| {
            let why = match reason {
                DeclineReason::NoSkill => "not doing this any more",
                DeclineReason::OutOfArea => "too far away",
                DeclineReason::NotAvailable => "not free then",
                DeclineReason::OverBudget => "above your budget",
                DeclineReason::OtherCurrency => "charging in another currency",
                DeclineReason::Unreachable => "not reachable",
            };
            format!("{n} {why}")
        })
        .collect();
    let lowest =
        lowest_price.map_or(String::new(), |price| format!(" The lowest price is {price}."));
    let reasons = reasons.join(", ");
    format!("I am sorry, nobody can do it: {reasons}.{lowest} Would another time or budget do?")
}

pub(super) fn refused(asked: AskedOf, reason: &str) -> String {
    match (asked, reason) {
        (AskedOf::Create, "invalid") => {
            "I cannot search for that: is the time in the future, within half a year?".into()
        }
        (AskedOf::Create, _) => "I am sorry, that did not work. Please try again.".into(),
        (AskedOf::Cancel, "already_booked") => {
            "It is booked already; you can cancel the booking instead.".into()
        }
        (AskedOf::Cancel, _) => "It could not be cancelled any more.".into(),
        (AskedOf::Accept, "no_offers" | "offer_expired" | "slot_taken" | "request_closed") => {
            "That offer is not open any more.".into()
        }
        (AskedOf::Accept, "already_accepting" | "already_booked") => {
            "You have accepted an offer already.".into()
        }
        (AskedOf::Accept, _) => "I am sorry, the offer could not be accepted.".into(),
    }
}

fn terms(offer: &OfferSummary) -> String {
    let time = local_time(offer.starts_at, &offer.time_zone);
    format!("{}, {time}, {}", offer.provider_name, offer.price)
}

fn local_time(at: Timestamp, time_zone: &str) -> String {
    let tz = zone(time_zone).unwrap_or(jiff::tz::TimeZone::UTC);
    at.to_zoned(tz).strftime("%a %-d %b at %H:%M").to_string()
}
