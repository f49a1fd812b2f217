//! The agent's sentences, in one place so that they can be translated.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use super::{AskedOf, Current, OfferSummary, Progress};
use crate::systems::marketplace::domain::messages::{Asked, Party};
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::offer::DeclineReason;
use crate::systems::marketplace::domain::request::Status;
use crate::systems::marketplace::domain::schedule::zone;
use crate::systems::marketplace::domain::service::Service;

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

pub(super) fn cancelling_booking() -> String {
    "All right, I am cancelling your booking.".into()
}

pub(super) fn nothing_to_cancel() -> String {
    "There is no such open request or booking here to cancel.".into()
}

pub(super) fn being_confirmed() -> String {
    "It is being confirmed right now. Once it is booked you can cancel the booking.".into()
}

pub(super) fn nothing_cancelled(live: &[&Current]) -> String {
    match live.first() {
        None => "I have cancelled nothing.".into(),
        Some(request) => format!(
            "I have cancelled nothing. To cancel, say for example \u{201c}cancel the {}\u{201d}.",
            request.service.title()
        ),
    }
}

pub(super) fn nothing_done() -> String {
    "All right, I do nothing: I have asked for nothing, accepted nothing and cancelled nothing."
        .into()
}

pub(super) fn as_it_was() -> String {
    "All right, nothing was changed: everything stays as it is.".into()
}

pub(super) fn which_to_cancel(live: &[&Current]) -> String {
    let all: Vec<String> = live.iter().map(|request| described(request)).collect();
    let example = live.first().map_or("haircut", |request| request.service.title());
    format!(
        "Which one do you mean: {}? Say for example \u{201c}cancel the {example}\u{201d}.",
        all.join(", or ")
    )
}

pub(super) fn draft_or_request(draft: Option<Service>) -> String {
    let draft = draft.map_or("what we are speaking of", Service::title);
    format!(
        "Do you mean {draft}, which I have not asked for yet? Then say \u{201c}never mind\u{201d}. To cancel your request \
         or booking, say for example \u{201c}cancel my request\u{201d}."
    )
}

pub(super) fn shall_i_cancel(request: &Current) -> String {
    format!("Shall I cancel {}? Say yes.", described(request))
}

pub(super) fn shall_i_decline(offer: &OfferSummary) -> String {
    format!("Shall I decline this offer: {}? Say yes.", terms(offer))
}

/// The read-back of a call that has no words of its own.
pub(super) fn shall_i_call(tool: &str, arguments: &Value) -> String {
    format!("Shall I do this: {} with {arguments}? Say yes.", tool.replace('_', " "))
}

pub(super) fn shall_i_again(tool: &str, arguments: &Value) -> String {
    let tool = tool.replace('_', " ");
    format!(
        "I began this and do not know whether it was done: {tool} with {arguments}. Shall I do it again? Say yes."
    )
}

pub(super) fn agent_stopped(status: &str) -> String {
    format!("I cannot say how that went. {status}")
}

pub(super) fn shall_i_cancel_booking(request: &Current) -> String {
    format!("Shall I cancel the booking: {}? Say yes.", described(request))
}

/// The description of a request or booking that distinguishes it from the others.
fn described(request: &Current) -> String {
    let service = request.service.title();
    if request.status == Status::Booked {
        let terms =
            request.shown.first().map_or(String::new(), |offer| format!(" ({})", terms(offer)));
        return format!("your booked {service}{terms}");
    }
    let asked = request.asked.as_ref();
    let time = asked
        .and_then(|asked| Some(local_time(asked.when?.earliest, &asked.place.as_ref()?.time_zone)));
    let time = time.map_or(String::new(), |time| format!(" ({time})"));
    format!("your {service} request{time}")
}

pub(super) fn say_yes() -> String {
    "To be sure: please say \u{201c}yes\u{201d}, or \u{201c}no\u{201d}.".into()
}

pub(super) fn shall_i_accept(request: &Current, offer: &OfferSummary) -> String {
    let so_far = if request.complete { "" } else { "Others may still answer. " };
    format!("{so_far}Shall I accept this offer: {}? Say yes.", terms(offer))
}

/// The offers, numbered in the order in which they are shown.
fn listed(offers: &[OfferSummary]) -> String {
    let numbered = offers.iter().enumerate();
    let all: Vec<String> =
        numbered.map(|(n, offer)| format!("{}. {}", n + 1, terms(offer))).collect();
    all.join("; ")
}

pub(super) fn which_offer(shown: &[OfferSummary]) -> String {
    match shown {
        [] => "I have no offer to show you yet.".into(),
        [offer] => format!(
            "I have shown you one offer so far: {}. Say \u{201c}take it\u{201d} to accept it.",
            terms(offer)
        ),
        _ => format!(
            "Which one? {}. Say for example \u{201c}the first one\u{201d} or \u{201c}the cheapest\u{201d}.",
            listed(shown)
        ),
    }
}

pub(super) fn cheapest(offer: &OfferSummary) -> String {
    format!("The cheapest is: {}.", terms(offer))
}

/// Ratings are part of the score and not shown here.
pub(super) fn best(offer: &OfferSummary) -> String {
    format!(
        "I do not see single ratings here. The best by rating, price and distance together is: {}.",
        terms(offer)
    )
}

pub(super) fn or_drop_it(question: &str) -> String {
    format!("{question} If you do not want it any more, say \u{201c}never mind\u{201d}.")
}

pub(super) fn which_request(open: &[&Current]) -> String {
    let all: Vec<&str> = open.iter().map(|request| request.service.title()).collect();
    format!(
        "There are offers for more than one request: {}. Say for example \u{201c}the cheapest {}\u{201d}.",
        all.join(", "),
        all.first().copied().unwrap_or("haircut")
    )
}

pub(super) fn nothing_accepted(open: &[&Current]) -> String {
    let shown: Vec<String> = open
        .iter()
        .filter(|request| !request.shown.is_empty())
        .map(|request| format!("{}: {}", request.service.title(), listed(&request.shown)))
        .collect();
    format!(
        "I have accepted nothing. What I know of the offers: {}. To accept one, say for example \u{201c}the first one\u{201d}.",
        shown.join(". ")
    )
}

/// The answer if there is nothing to accept; `nothing` names the missing thing.
pub(super) fn not_accepted(not_understood: &str, nothing: &str) -> String {
    format!("I did not understand \u{201c}{not_understood}\u{201d}. {nothing}")
}

/// The answer about an offer that differs from the user's words.
pub(super) fn other_offer(what: &str, request: &Current, offer: &OfferSummary) -> String {
    let place = request.asked.as_ref().and_then(|asked| asked.place.as_ref());
    let place = place.map_or(String::new(), |place| format!(", near {}", place.name));
    let at = request.shown.iter().position(|shown| shown.offer_id == offer.offer_id);
    let number = at.map_or(1, |at| at + 1);
    format!(
        "I have accepted nothing: {what} is not what you said. The offer is: {}{place}. To take it as it is, say \u{201c}number {number}\u{201d}.",
        terms(offer)
    )
}

pub(super) fn not_that_to_cancel(not_understood: &str, live: &[&Current]) -> String {
    format!(
        "I have cancelled nothing: I did not understand \u{201c}{not_understood}\u{201d}. {}",
        what_there_is(live)
    )
}

/// The answer about a request or booking that differs from the user's words.
pub(super) fn other_to_cancel(what: &str, live: &[&Current]) -> String {
    format!("I have cancelled nothing: {what} is not what you said. {}", what_there_is(live))
}

fn what_there_is(live: &[&Current]) -> String {
    let all: Vec<String> = live.iter().map(|request| described(request)).collect();
    let example = live.first().map_or("haircut", |request| request.service.title());
    format!(
        "There is: {}. To cancel it, say for example \u{201c}cancel the {example}\u{201d}.",
        all.join(", and ")
    )
}

pub(super) fn cannot_change(current: &Current) -> String {
    let service = current.service.title();
    format!(
        "Your {service} is booked, and I cannot change that here. You can say \u{201c}cancel my {service} booking\u{201d} \
         and ask anew. If you need something else, tell me what."
    )
}

pub(super) fn say_change_again(question: &str) -> String {
    format!("Your request stays as it is for now. {question} Please say the whole change again.")
}

pub(super) fn shall_i_change(asked: &Asked) -> String {
    format!("Shall I look for this instead: {}? Say yes.", wanted(asked))
}

pub(super) fn not_understood(more: &str) -> String {
    format!("I did not understand that. {more}")
}

pub(super) fn too_long() -> String {
    "That is too long for me: I read at most 2,000 characters at once. I have read none of it and done nothing. Please \
     say it in fewer words."
        .into()
}

pub(super) fn what_do_you_need() -> String {
    "I did not understand that. What do you need, where and when?".into()
}

pub(super) fn enrol() -> String {
    "Providers are welcome, and enrol through the API: POST /v1/providers, with a token of the role provider. Here I \
     look for providers; I have asked for nothing."
        .into()
}

pub(super) fn accepting() -> String {
    "I am accepting that offer and will confirm it in a moment.".into()
}

pub(super) fn nothing_to_accept() -> String {
    "There is no open offer to accept.".into()
}

pub(super) fn searching(asked: &Asked) -> String {
    format!("I am looking for a {}.", wanted(asked))
}

fn wanted(asked: &Asked) -> String {
    let budget = asked.budget.as_ref().map_or(String::new(), |money| format!(", up to {money}"));
    let zone = &asked.place.time_zone;
    let (from, to) = (local_time(asked.when.earliest, zone), local_time(asked.when.latest, zone));
    let time = if asked.when.exact { from } else { format!("between {from} and {to}") };
    let (service, place) = (asked.service.title(), &asked.place.name);
    format!("{service} near {place}, {time}{budget}")
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
        Status::Booked => {
            let terms =
                current.shown.first().map_or(String::new(), |offer| format!(": {}", terms(offer)));
            let place = current.asked.as_ref().and_then(|asked| asked.place.as_ref());
            let place = place.map_or(String::new(), |place| format!(", near {}", place.name));
            format!("Your {service} is booked{terms}{place}.")
        }
        Status::Cancelled => format!("Your {service} request was cancelled."),
        Status::Expired => format!("Your {service} request has expired."),
        Status::Unmatched => format!("I found nobody for your {service}."),
    }
}

/// The progress of a request; `service` names it if there are several.
pub(super) fn progress(progress: &Progress, service: Option<Service>) -> String {
    let about = service.map_or(String::new(), |service| format!("About the {}: ", service.title()));
    about + &what_happened(progress)
}

fn what_happened(progress: &Progress) -> String {
    match progress {
        Progress::Matched { providers: 1 } => "I found one provider and asked for an offer.".into(),
        Progress::Matched { providers } => {
            format!("I found {providers} providers and asked them for offers.")
        }
        Progress::FirstOffer { offer } => format!("The first offer is here: {}.", terms(offer)),
        Progress::AllAnswered { offers: 1, cheapest, .. } => {
            format!("Everybody has answered. The offer you can accept: {}.", terms(cheapest))
        }
        Progress::AllAnswered { offers, cheapest, open } => {
            let all = if open.is_empty() { String::new() } else { format!(" {}.", listed(open)) };
            let cheapest = terms(cheapest);
            format!("Everybody has answered: {offers} offers.{all} The cheapest: {cheapest}.")
        }
        Progress::Unmatched { reason, reasons, lowest_price } => {
            unmatched(reason, reasons, lowest_price.as_ref())
        }
        Progress::OfferRefused { offers, reason } => {
            let others = match offers {
                0 => "There is no other offer.".into(),
                _ => format!("Other open offers: {offers}."),
            };
            format!("I am sorry, {}. {others}", lost(reason))
        }
        Progress::Booked { offer, .. } => format!("It is booked: {}.", terms(offer)),
        Progress::Cancelled => "Your request is cancelled.".into(),
        Progress::BookingCancelled { by, offer } => {
            let terms =
                offer.as_ref().map_or(String::new(), |offer| format!(" ({})", terms(offer)));
            match by {
                Party::Provider => format!(
                    "I am sorry, the provider has cancelled your booking{terms}. Tell me if you want me to look again."
                ),
                _ => format!("Your booking is cancelled{terms}."),
            }
        }
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
    let reasons = match reasons.is_empty() {
        true => String::new(),
        false => format!(": {}", reasons.join(", ")),
    };
    format!("I am sorry, nobody can do it{reasons}.{lowest} Would another time or budget do?")
}

/// The reason why an accepted offer is not available.
fn lost(reason: &str) -> &'static str {
    match reason {
        "slot_taken" => "that time has just been taken",
        "offer_expired" => "that offer has expired",
        "own_provider" => "that provider is yours, and nobody books themselves",
        "offer_withdrawn" => "the provider does not stand by that offer any more",
        _ => "that offer cannot be had any more",
    }
}

pub(super) fn refused(asked: AskedOf, reason: &str) -> String {
    match (asked, reason) {
        (AskedOf::Create, "invalid") => {
            "I cannot search for that: is the time in the future, within half a year?".into()
        }
        (AskedOf::Create, _) => "I am sorry, that did not work. Please try again.".into(),
        (AskedOf::Cancel, "already_booked") => {
            "It is booked already. To cancel the booking, say \u{201c}cancel my booking\u{201d}."
                .into()
        }
        (AskedOf::CancelBooking, "already_started") => {
            "The appointment has started: it cannot be cancelled any more.".into()
        }
        (AskedOf::CancelBooking, _) => "The booking could not be cancelled.".into(),
        (AskedOf::Cancel, _) => "It could not be cancelled any more.".into(),
        (AskedOf::Accept, "no_offers" | "request_closed") => {
            "That offer is not open any more.".into()
        }
        (AskedOf::Accept, "already_accepting" | "already_booked") => {
            "You have accepted an offer already.".into()
        }
        (AskedOf::Accept, _) => format!("I am sorry, {}.", lost(reason)),
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
