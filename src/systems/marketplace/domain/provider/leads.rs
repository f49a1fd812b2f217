//! Leads that wait for the answer of the front desk's agent or of the owner. Without one in time the policy answers, as
//! it does at once for those who have not switched that on.

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::*;
use crate::kernel::chat::PromptMessage;
use crate::kernel::clock::saturating_add;
use crate::kernel::conversation::{Engage, Engagement, RunCancellation};
use crate::kernel::entity::{Principal, to_value};
use crate::kernel::private::Private;
use crate::kernel::text::cleaned;
use crate::systems::marketplace::domain::matching::Score;
use crate::systems::marketplace::domain::offer::DeclineReason;
use crate::systems::marketplace::domain::places::Place;
use crate::systems::marketplace::domain::profile::LeadAnswerer;
use crate::systems::marketplace::domain::provider::steps::{declined, offered};
use crate::systems::marketplace::domain::schedule::When;

/// The agent that answers leads. It has the tools for that and no others, since consumers' words are before it.
const AGENT: &str = "lead_desk";
/// Leads that wait at the same time. The policy answers one more at once.
pub const MAX_OPEN_LEADS: usize = 64;
/// For an agent: longer than it may work.
const DESK_WAITS_S: i64 = 90;
const OWNER_WAITS_S: i64 = 30 * 60;
const MAX_MESSAGE: usize = 500;

/// A lead that waits for an answer. What the consumer said is not kept here: the request has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenLead {
    pub lead: Lead,
    /// The run of the agent that answers it.
    pub run_id: Option<String>,
    /// When the policy answers instead.
    pub until: Timestamp,
}

/// A lead as its provider sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Lead")]
pub struct LeadView {
    pub provider_id: String,
    pub request_id: String,
    pub service: Service,
    pub place: Place,
    pub earliest: Timestamp,
    pub latest: Timestamp,
    /// Whether the time is `earliest` and no other.
    pub exact: bool,
    pub budget: Option<Money>,
    /// How well you fit.
    pub score: Score,
    /// When the policy of your profile answers instead.
    pub until: Timestamp,
}

/// What the policy of the profile would offer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Suggestion")]
pub struct OfferSuggestion {
    /// Whether it would make an offer.
    pub offers: bool,
    pub price: Option<Money>,
    pub starts_at: Option<Timestamp>,
    pub ends_at: Option<Timestamp>,
    /// Why it would not.
    pub reason: Option<DeclineReason>,
}

/// The terms of an offer that somebody makes themself; what is not named is as the policy suggests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OwnTerms {
    pub price: Option<Money>,
    pub starts_at: Option<Timestamp>,
    pub message: Option<String>,
}

impl OpenLead {
    fn view(&self, provider_id: &str) -> LeadView {
        let Lead { request_id, service, place, when, budget, score, .. } = self.lead.clone();
        let When { earliest, latest, exact } = when;
        let (provider_id, until) = (provider_id.to_owned(), self.until);
        LeadView {
            provider_id,
            request_id,
            service,
            place,
            earliest,
            latest,
            exact,
            budget,
            score,
            until,
        }
    }
}

impl State {
    fn lead(&self, request_id: &str) -> Option<&OpenLead> {
        self.leads.iter().find(|open| open.lead.request_id == request_id)
    }
}

fn timer(request_id: &str) -> String {
    format!("lead:{request_id}")
}

/// Keeps the lead for whoever answers it. `None`: the policy does, at once.
pub fn keep_open(
    state: &State,
    profile: &Profile,
    lead: &Lead,
    cx: &DecideCx<'_>,
) -> Option<Decision<Provider>> {
    let waits = match profile.answers_leads {
        LeadAnswerer::Policy => return None,
        LeadAnswerer::Agent => DESK_WAITS_S,
        LeadAnswerer::Owner => OWNER_WAITS_S,
    };
    if state.leads.len() >= MAX_OPEN_LEADS || state.lead(&lead.request_id).is_some() {
        return None;
    }
    let lead = Lead { details: String::new(), ..lead.clone() };
    let until = saturating_add(cx.now, SignedDuration::from_secs(waits));
    let until = until.min(lead.when.latest).max(cx.now);
    let by_agent = profile.answers_leads == LeadAnswerer::Agent;
    let run_id = by_agent.then(|| cx.ids.mint("run"));
    let request_id = lead.request_id.clone();
    let open = OpenLead { lead, run_id, until };
    let overdue = Command::LeadOverdue { request_id: request_id.clone() };
    let engage = open.run_id.as_ref().map(|run_id| engage(state, &open, run_id, cx));
    let received = Event::LeadReceived { request_id: request_id.clone(), at: cx.now };
    let decision = Decision::reply(Reply::Done)
        .event(received)
        .event(Event::LeadOpened { open: open.into(), at: cx.now })
        .effect(Effect::schedule::<Provider>(timer(&request_id), until, &overdue));
    Some(decision.effects(engage))
}

fn engage(state: &State, open: &OpenLead, run_id: &str, cx: &DecideCx<'_>) -> Effect {
    let lead = to_value(&open.view(cx.key));
    let words = PromptMessage::user(format!("A lead waits for an answer: {lead}"));
    let engagement = Engagement {
        agent: AGENT.into(),
        run_id: run_id.into(),
        words: Private::new(&state.owner_id, words),
        // The provider acts for nobody by itself; its agent works for its owner.
        owner: Some(Principal::of(state.owner_id.as_str())),
    };
    Effect::run::<Engage>(run_id, &engagement)
}

/// Answers what the owner, or their agent, asks about leads and decides on them.
pub fn by_owner(
    state: &State,
    profile: &Profile,
    command: Command,
    cx: &DecideCx<'_>,
) -> Decided<Provider> {
    if !cx.caller.may_act_for(&state.owner_id, "provider") {
        return Err(Rejection::NotYours);
    }
    let find = |request_id: &str| state.lead(request_id).ok_or(Rejection::NoSuchLead);
    match command {
        Command::SubmitOffer { request_id, terms } => {
            submit(state, profile, find(&request_id)?, terms, cx)
        }
        Command::DeclineLead { request_id } => {
            let lead = find(&request_id)?.lead.clone();
            let decline = Decline { reason: DeclineReason::NotAvailable, lowest_price: None };
            Ok(close(declined(Decision::reply(Reply::Done), lead, decline, cx), &request_id))
        }
        Command::SuggestOffer { request_id } => {
            let open = find(&request_id)?;
            let suggested = policy::consider(profile, &state.busy(), &open.lead, cx.now);
            let (terms, reason) = match suggested {
                Ok(terms) => (Some(terms), None),
                Err(decline) => (None, Some(decline.reason)),
            };
            let suggestion = OfferSuggestion {
                offers: terms.is_some(),
                price: terms.as_ref().map(|terms| terms.price.clone()),
                starts_at: terms.as_ref().map(|terms| terms.slot.starts_at),
                ends_at: terms.as_ref().map(|terms| terms.slot.ends_at),
                reason,
            };
            Ok(Decision::reply(Reply::Suggestion(suggestion)))
        }
        Command::Leads { request_id } => {
            let wanted = |open: &&OpenLead| {
                request_id.as_ref().is_none_or(|wanted| *wanted == open.lead.request_id)
            };
            let leads = state.leads.iter().filter(wanted).map(|open| open.view(cx.key));
            Ok(Decision::reply(Reply::Leads(leads.collect())))
        }
        _ => Err(Rejection::InternalOnly),
    }
}

/// Makes an offer within the limits of the profile, whatever an agent was talked into.
fn submit(
    state: &State,
    profile: &Profile,
    open: &OpenLead,
    own: OwnTerms,
    cx: &DecideCx<'_>,
) -> Decided<Provider> {
    let lead = open.lead.clone();
    let offering = profile.offering(lead.service).ok_or(Rejection::NotWithinProfile)?;
    let suggested = policy::consider(profile, &state.busy(), &lead, cx.now).ok();
    let mut check = Check::default();
    if let Some(price) = &own.price {
        check.money(price, "/price");
    }
    check.text(own.message.as_deref().unwrap_or_default(), MAX_MESSAGE, "/message");
    let starts_at = own.starts_at.or(suggested.as_ref().map(|terms| terms.slot.starts_at));
    let price = own.price.or(suggested.as_ref().map(|terms| terms.price.clone()));
    check.that(starts_at.is_some(), "/starts_at", "is required: the policy suggests no time");
    check.that(price.is_some(), "/price", "is required: the policy suggests no price");
    check.finish(|errors| Rejection::Invalid { errors })?;
    let (Some(starts_at), Some(price)) = (starts_at, price) else {
        return Err(Rejection::NotWithinProfile);
    };
    let slot = Span::new(starts_at, offering.duration_minutes.into());
    let expires_at = policy::expires_at(cx.now, &slot);
    let at = (lead.place.latitude, lead.place.longitude);
    let promise = Promise { service: lead.service, at, price: &price, slot, expires_at };
    let When { earliest, latest, .. } = lead.when;
    let is_asked = (earliest..=latest).contains(&starts_at) && starts_at > cx.now;
    if !is_asked || !promise.stands(profile) || !profile.calendar(&state.busy()).is_free(&slot) {
        return Err(Rejection::NotWithinProfile);
    }
    let said = own.message.map(|message| cleaned(&message));
    let said = said.filter(|message| !message.trim().is_empty());
    let message = said.unwrap_or_else(|| policy::message(profile, offering, &price));
    let request_id = lead.request_id.clone();
    let terms = Terms { price, slot, expires_at, message };
    let decision = Decision::reply(Reply::Done);
    let (decision, offer_id) = offered(decision, state, profile, lead, terms, cx);
    let decision = Decision { reply: Some(Reply::Offered { offer_id }), ..decision };
    Ok(close(decision, &request_id))
}

fn close(decision: Decision<Provider>, request_id: &str) -> Decision<Provider> {
    decision.effect(Effect::cancel(timer(request_id)))
}

/// The policy answers a lead that nobody else has answered.
pub fn overdue(
    state: &State,
    profile: &Profile,
    request_id: &str,
    cx: &DecideCx<'_>,
) -> Decision<Provider> {
    let decision = Decision::reply(Reply::Done);
    let Some(open) = state.lead(request_id) else { return decision };
    let stop = open.run_id.as_deref().map(|run_id| Effect::send(run_id, &RunCancellation));
    let decision = by_policy(decision, state, profile, open.lead.clone(), cx);
    close(decision.effects(stop), request_id)
}

/// The agent has nothing more to say, or is not there.
pub fn desk_ended(
    state: &State,
    profile: &Profile,
    run_id: &str,
    cx: &DecideCx<'_>,
) -> Decision<Provider> {
    let open = state.leads.iter().find(|open| open.run_id.as_deref() == Some(run_id));
    let request_id = open.map(|open| open.lead.request_id.clone());
    match request_id {
        Some(request_id) => overdue(state, profile, &request_id, cx),
        None => Decision::reply(Reply::Done),
    }
}

/// The answer of the profile's policy.
pub fn by_policy(
    decision: Decision<Provider>,
    state: &State,
    profile: &Profile,
    lead: Lead,
    cx: &DecideCx<'_>,
) -> Decision<Provider> {
    match policy::consider(profile, &state.busy(), &lead, cx.now) {
        Ok(terms) => offered(decision, state, profile, lead, terms, cx).0,
        Err(decline) => declined(decision, lead, decline, cx),
    }
}
