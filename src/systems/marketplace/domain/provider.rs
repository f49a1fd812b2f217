//! A provider and its agent: profile, calendar, and the answers to leads around the clock.
//!
//! The calendar has one owner, this entity, which decides one command at a time. That makes a double booking
//! impossible: an offer promises nothing; [`Command::HoldSlot`] decides, on the profile as it is at that time. When the
//! profile changes, offers that it no longer allows are withdrawn.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::kernel::conversation::{AGENT_RUN, DeskTold, Engage};
use crate::kernel::entity::{Caller, DecideCx, Decided, Decision, Effect, Entity, RunOutcome};
use crate::kernel::error::ErrorCode;
use crate::kernel::view::ViewRow;
use crate::systems::marketplace::domain::messages::{
    Agreed, BOOKING, BookingCancellation, ConsiderLead, DropOffer, HoldRefused, HoldSlot, PROVIDER,
    REQUEST, ReceiveDecline, ReceiveOffer, RecordReview, ReleaseSlot, WithdrawOffer,
};
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::offer::{Decline, Lead, Offer, OfferStatus};
use crate::systems::marketplace::domain::policy::{self, Promise, Terms};
use crate::systems::marketplace::domain::profile::{
    Profile, ProfilePatch, ProviderCard, ProviderView, Reputation,
};
use crate::systems::marketplace::domain::rejection::{Check, FieldError, summary};
use crate::systems::marketplace::domain::schedule::{Span, later};
use crate::systems::marketplace::domain::service::Service;

mod leads;
mod steps;
#[cfg(test)]
mod tests;

pub use leads::{LeadView, MAX_OPEN_LEADS, OfferSuggestion, OpenLead, OwnTerms};
use steps::{consider_lead, enroll, hold_slot, release_slot, update};

/// Most open offers that are remembered. Beyond this, the one that expires first is forgotten; its slot can still be
/// held.
pub const MAX_OPEN_OFFERS: usize = 200;
/// Most bookings ahead; the calendar accepts no more.
pub const MAX_HOLDS: usize = 1_000;
/// Grace for an acceptance that was on its way when its offer expired.
pub const ACCEPTANCE_GRACE_MINUTES: i64 = 4;
/// Number of leads after which the `providers` row is updated with the response rate.
const PROJECT_EVERY_LEADS: u32 = 16;

#[derive(Debug)]
pub struct Provider;

/// The commands of a provider. Names of variants and fields stay: nodes of another release read them too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Enrolment by the owner. `standing` is only for profiles that the node itself seeds.
    Enroll {
        owner_id: String,
        profile: Profile,
        standing: Option<Reputation>,
    },
    /// An update by the owner. The version must be `expected_version`, which the editor saw, or one of `or_versions`.
    Update {
        patch: ProfilePatch,
        expected_version: Option<u64>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        or_versions: Vec<u64>,
    },
    /// Query. Profiles are public.
    Get,
    /// Query: the leads that wait, or this one.
    Leads {
        request_id: Option<String>,
    },
    /// Query: what the policy would offer.
    SuggestOffer {
        request_id: String,
    },
    SubmitOffer {
        request_id: String,
        terms: OwnTerms,
    },
    DeclineLead {
        request_id: String,
    },
    /// Internal: a timer, and the agent that was to answer a lead.
    LeadOverdue {
        request_id: String,
    },
    RunTold(DeskTold),
    DeskEngaged {
        run_id: String,
        outcome: Result<(), String>,
    },
    /// Internal: requests and bookings.
    ConsiderLead(ConsiderLead),
    HoldSlot(HoldSlot),
    ReleaseSlot(ReleaseSlot),
    WithdrawOffer(DropOffer),
    RecordReview(RecordReview),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    Enrolled {
        owner_id: String,
        profile: Profile,
        standing: Reputation,
        at: Timestamp,
    },
    Updated {
        profile: Profile,
        at: Timestamp,
    },
    LeadReceived {
        request_id: String,
        at: Timestamp,
    },
    /// The lead waits for somebody's answer.
    LeadOpened {
        open: Box<OpenLead>,
        at: Timestamp,
    },
    OfferMade {
        offer: OpenOffer,
        at: Timestamp,
    },
    LeadDeclined {
        request_id: String,
        decline: Decline,
        at: Timestamp,
    },
    OfferWithdrawn {
        offer_id: String,
        at: Timestamp,
    },
    SlotHeld {
        booking_id: String,
        offer_id: String,
        slot: Span,
        at: Timestamp,
    },
    SlotReleased {
        booking_id: String,
        slot: Span,
        at: Timestamp,
    },
    ReviewRecorded {
        booking_id: String,
        stars: u8,
        at: Timestamp,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenOffer {
    pub id: String,
    pub request_id: String,
    pub price: Money,
    pub slot: Span,
    pub expires_at: Timestamp,
    /// The job; `None` in commands of older releases.
    #[serde(default)]
    pub job: Option<Job>,
}

/// The service of an offer, and its location.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub service: Service,
    pub latitude: f64,
    pub longitude: f64,
}

impl OpenOffer {
    /// Whether the offer still stands. An offer without a known job does not.
    fn stands(&self, profile: &Profile) -> bool {
        self.job.is_some_and(|Job { service, latitude, longitude }| {
            let (price, slot, expires_at) = (&self.price, self.slot, self.expires_at);
            Promise { service, at: (latitude, longitude), price, slot, expires_at }.stands(profile)
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub booking_id: String,
    pub slot: Span,
}

/// The provider's state, bounded by [`MAX_OPEN_OFFERS`] and by [`MAX_HOLDS`] bookings that have not ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub owner_id: String,
    pub profile: Option<Profile>,
    /// Counts enrolment and updates: the `ETag`.
    pub version: u64,
    pub standing: Reputation,
    pub offers: Vec<OpenOffer>,
    pub leads: Vec<OpenLead>,
    pub holds: Vec<Held>,
    pub updated_at: Option<Timestamp>,
}

impl State {
    pub fn busy(&self) -> Vec<Span> {
        self.holds.iter().map(|held| held.slot).collect()
    }

    fn held(&self, booking_id: &str) -> Option<&Held> {
        self.holds.iter().find(|held| held.booking_id == booking_id)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Provider(Box<ProviderView>),
    Leads(Vec<LeadView>),
    Suggestion(OfferSuggestion),
    Offered { offer_id: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("there is no such provider")]
    NotFound,
    #[error("this provider belongs to somebody else")]
    NotYours,
    #[error("only the system may do this")]
    InternalOnly,
    #[error("no such lead waits for an answer")]
    NoSuchLead,
    #[error(
        "the profile does not allow this offer: its services, prices, area, hours and bookings, and the time that is asked for"
    )]
    NotWithinProfile,
    #[error("this provider is already enrolled")]
    AlreadyEnrolled,
    #[error("the profile has changed: it is at version {current}")]
    VersionMismatch { current: u64 },
    /// Reported by the database: its calendar contradicts this entity.
    #[error("the provider's time has been taken")]
    SlotTaken,
    #[error("{}", summary(errors))]
    Invalid { errors: Vec<FieldError> },
}

impl crate::kernel::entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound | Self::NoSuchLead => ErrorCode::NotFound,
            Self::NotWithinProfile => ErrorCode::Rejected,
            Self::NotYours | Self::InternalOnly => ErrorCode::Forbidden,
            Self::AlreadyEnrolled | Self::VersionMismatch { .. } | Self::SlotTaken => {
                ErrorCode::Conflict
            }
            Self::Invalid { .. } => ErrorCode::Rejected,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::NotYours => "not_yours",
            Self::NoSuchLead => "no_such_lead",
            Self::NotWithinProfile => "not_within_profile",
            Self::InternalOnly => "internal_only",
            Self::AlreadyEnrolled => "already_enrolled",
            Self::VersionMismatch { .. } => "version_mismatch",
            Self::SlotTaken => "slot_taken",
            Self::Invalid { .. } => "invalid",
        }
    }
}

impl Entity for Provider {
    const KIND: &'static str = PROVIDER;
    const GOLDEN: &'static str = include_str!("golden/provider.jsonl");

    crate::own_types!();

    fn decide(state: &State, command: Command, cx: &DecideCx<'_>) -> Decided<Self> {
        if !may(state, &command, cx.caller) {
            return Err(Rejection::InternalOnly);
        }
        let Some(profile) = &state.profile else {
            return match command {
                Command::Enroll { owner_id, profile, standing } => {
                    enroll(state, owner_id, profile, standing, cx)
                }
                _ => Err(Rejection::NotFound),
            };
        };
        match command {
            // Seeding again changes nothing.
            Command::Enroll { .. } if cx.caller.is_itself() => Ok(shown(cx.key, state)),
            Command::Enroll { .. } => Err(Rejection::AlreadyEnrolled),
            Command::Update { patch, expected_version, or_versions } => {
                let seen = expected_version.map(|version| (version, or_versions));
                update(state, profile, patch, seen, cx)
            }
            Command::Get => Ok(shown(cx.key, state)),
            Command::ConsiderLead(ConsiderLead { lead }) => {
                Ok(consider_lead(state, profile, lead, cx))
            }
            command @ (Command::Leads { .. }
            | Command::SuggestOffer { .. }
            | Command::SubmitOffer { .. }
            | Command::DeclineLead { .. }) => leads::by_owner(state, profile, command, cx),
            Command::LeadOverdue { request_id } => {
                Ok(leads::overdue(state, profile, &request_id, cx))
            }
            Command::RunTold(DeskTold(told)) => {
                Ok(leads::desk_ended(state, profile, &told.run_id, cx))
            }
            Command::DeskEngaged { outcome: Ok(()), .. } => Ok(Decision::reply(Reply::Done)),
            Command::DeskEngaged { run_id, outcome: Err(_) } => {
                Ok(leads::desk_ended(state, profile, &run_id, cx))
            }
            Command::HoldSlot(hold) => Ok(hold_slot(state, profile, hold, cx)),
            Command::ReleaseSlot(ReleaseSlot { booking_id }) => {
                Ok(release_slot(state, booking_id, cx))
            }
            Command::WithdrawOffer(DropOffer { offer_id }) => {
                let known = state.offers.iter().any(|offer| offer.id == offer_id);
                let event = known.then_some(Event::OfferWithdrawn { offer_id, at: cx.now });
                Ok(Decision { events: event.into_iter().collect(), ..Decision::reply(Reply::Done) })
            }
            Command::RecordReview(RecordReview { booking_id, stars }) => {
                let stars = stars.clamp(1, 5);
                let event = Event::ReviewRecorded { booking_id, stars, at: cx.now };
                Ok(Decision::reply(Reply::Done).event(event))
            }
        }
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Enrolled { owner_id, profile, standing, at } => {
                state.owner_id = owner_id.clone();
                state.profile = Some(profile.clone());
                state.standing = *standing;
                state.version += 1;
                state.updated_at = Some(*at);
            }
            Event::Updated { profile, at } => {
                state.profile = Some(profile.clone());
                state.version += 1;
                state.updated_at = Some(*at);
            }
            Event::LeadReceived { .. } => {
                let standing = &mut state.standing;
                standing.leads_received = standing.leads_received.saturating_add(1);
            }
            Event::LeadOpened { open, .. } => state.leads.push(OpenLead::clone(open)),
            Event::OfferMade { offer, at } => {
                answered(state, &offer.request_id);
                state.offers.retain(|known| known.expires_at > *at);
                if state.offers.len() >= MAX_OPEN_OFFERS {
                    forget_the_first_to_expire(&mut state.offers);
                }
                state.offers.push(offer.clone());
            }
            Event::LeadDeclined { request_id, .. } => answered(state, request_id),
            Event::OfferWithdrawn { offer_id, .. } => {
                state.offers.retain(|offer| offer.id != *offer_id);
            }
            Event::SlotHeld { booking_id, slot, at, .. } => {
                // Drop every offer that this booking makes impossible, including the accepted one.
                let taken = slot.with_travel();
                state.offers.retain(|offer| !offer.slot.overlaps(&taken));
                state.holds.retain(|held| held.slot.ends_at > *at);
                state.holds.push(Held { booking_id: booking_id.clone(), slot: *slot });
            }
            Event::SlotReleased { booking_id, .. } => {
                state.holds.retain(|held| held.booking_id != *booking_id);
            }
            Event::ReviewRecorded { stars, at, .. } => {
                state.standing = state.standing.with_review(*stars);
                state.updated_at = Some(*at);
            }
        }
    }

    fn is_query(command: &Command) -> bool {
        use Command::{Get, Leads, SuggestOffer};
        matches!(command, Get | Leads { .. } | SuggestOffer { .. })
    }

    fn project(key: &str, state: &State, events: &[Event]) -> Vec<ViewRow> {
        let calendar = |booking_id: &String, slot: &Span, deleted: bool| {
            let row = json!({
                "provider_id": key,
                "booking_id": booking_id,
                "starts_at": slot.starts_at,
                "ends_at": slot.ends_at,
                "deleted": deleted,
            });
            ViewRow::new("calendar", row)
        };
        let mut rows = Vec::new();
        let mut changed = false;
        for event in events {
            match event {
                Event::SlotHeld { booking_id, slot, .. } => {
                    rows.push(calendar(booking_id, slot, false));
                }
                Event::SlotReleased { booking_id, slot, .. } => {
                    rows.push(calendar(booking_id, slot, true));
                }
                Event::Enrolled { .. } | Event::Updated { .. } | Event::ReviewRecorded { .. } => {
                    changed = true;
                }
                Event::LeadReceived { .. } => {
                    changed |= state.standing.leads_received.is_multiple_of(PROJECT_EVERY_LEADS);
                }
                Event::LeadOpened { .. }
                | Event::OfferMade { .. }
                | Event::LeadDeclined { .. }
                | Event::OfferWithdrawn { .. } => {}
            }
        }
        if let Some(provider) = view(key, state).filter(|_| changed) {
            rows.push(ViewRow::of(&provider));
        }
        rows
    }

    fn run_finished(outcome: RunOutcome) -> Option<Command> {
        let run_id = outcome.tag.clone();
        let outcome = outcome.of::<Engage>();
        Some(Command::DeskEngaged { run_id, outcome })
    }

    /// The exclusion constraint against two bookings of one provider at the same time.
    fn constraint_violated(constraint: &str) -> Option<Rejection> {
        (constraint == "calendar_provider_id_during_excl").then_some(Rejection::SlotTaken)
    }
}

/// Whether this entity may send this command. Owners are checked by the commands that are theirs.
fn may(state: &State, command: &Command, caller: &Caller) -> bool {
    match command {
        Command::Enroll { .. }
        | Command::Update { .. }
        | Command::Get
        | Command::Leads { .. }
        | Command::SuggestOffer { .. }
        | Command::SubmitOffer { .. }
        | Command::DeclineLead { .. } => true,
        Command::LeadOverdue { .. } | Command::DeskEngaged { .. } => caller.is_itself(),
        Command::RunTold(DeskTold(told)) => caller.is_the(AGENT_RUN, &told.run_id),
        Command::ConsiderLead(ConsiderLead { lead }) => caller.is_the(REQUEST, &lead.request_id),
        Command::HoldSlot(hold) => caller.is_the(REQUEST, &hold.request_id),
        Command::WithdrawOffer(DropOffer { offer_id }) => {
            match state.offers.iter().find(|offer| offer.id == *offer_id) {
                Some(offer) => caller.is_the(REQUEST, &offer.request_id),
                None => caller.is_a(REQUEST),
            }
        }
        // The state does not keep which request holds the time; only that request knows the booking's id, which it made.
        Command::ReleaseSlot(ReleaseSlot { booking_id }) => {
            caller.is_the(BOOKING, booking_id) || caller.is_a(REQUEST)
        }
        Command::RecordReview(RecordReview { booking_id, .. }) => {
            caller.is_the(BOOKING, booking_id)
        }
    }
}

fn answered(state: &mut State, request_id: &str) {
    state.leads.retain(|open| open.lead.request_id != request_id);
    state.standing.leads_answered = state.standing.leads_answered.saturating_add(1);
}

fn forget_the_first_to_expire(offers: &mut Vec<OpenOffer>) {
    let first = offers.iter().enumerate().min_by_key(|(_, offer)| offer.expires_at);
    if let Some((n, _)) = first {
        offers.remove(n);
    }
}

/// The provider's view; `None`: it is not enrolled.
fn view(key: &str, state: &State) -> Option<ProviderView> {
    let State { owner_id, profile, standing, version, updated_at, .. } = state;
    let profile = profile.as_ref()?;
    Some(ProviderView::new(key, owner_id, profile, standing, *version, (*updated_at)?))
}

fn shown(key: &str, state: &State) -> Decision<Provider> {
    let provider = view(key, state).expect("enrolment sets a profile and its time");
    Decision::reply(Reply::Provider(provider.into()))
}

/// Replies with the provider as it is after `event`.
fn changed(state: &State, event: Event, cx: &DecideCx<'_>) -> Decision<Provider> {
    let mut next = state.clone();
    Provider::evolve(&mut next, &event);
    shown(cx.key, &next).event(event)
}
