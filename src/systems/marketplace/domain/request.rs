//! A consumer's request, from its creation to the booking or the end of the search.
//!
//! ```text
//! Matching ──first offer──▶ Open ──AcceptOffer──▶ Accepting ──BookingConfirmed──▶ Booked
//!    │                       │ ▲                      │
//!    └──nobody──▶ Unmatched ◀┘ └─────HoldRefused──────┘        Cancelled, Expired: from Matching and Open
//! ```
//! A request is accepted at most once: while one acceptance is under way every other one is a conflict. An acceptance
//! ends with the provider's answer. After [`ACCEPTANCE_TIMEOUT_S`] without one it is repeated, and in the end given up
//! and undone.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::kernel::entity::{
    Caller, DecideCx, Decided, Decision, Effect, Entity, RunOutcome, SendFailure,
};
use crate::kernel::view::ViewRow;
use crate::systems::marketplace::domain::matching::{Criteria, MatchProviders, Matches, Scored};
use crate::systems::marketplace::domain::messages::{
    AcceptOffer, AcceptPick, AskFor, Asked, BOOKING, BookingCancellation, BookingCancelled,
    BookingConfirmed, ConsiderLead, DropOffer, HoldRefused, HoldSlot, PROVIDER, Party, Pick,
    Progress, REQUEST, ReceiveDecline, ReceiveOffer, ReleaseSlot, RequestCancellation,
    RequestProgress, SESSION, WithdrawOffer,
};
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::offer::{
    Decline, DeclineReason, Lead, Offer, OfferStatus, OfferSummary, OfferView,
};
use crate::systems::marketplace::domain::rejection::Check;
use crate::systems::marketplace::domain::user::User;

mod draft;
mod rejection;
mod state;
mod steps;
#[cfg(test)]
mod tests;
mod view;

pub use rejection::Rejection;
pub use state::{Acceptance, Answer, AskedProvider, State, Status};
pub use steps::may_be_asked;
pub use view::{OfferChanged, OfferMade, OfferRow, RequestView};

use draft::Draft;
use steps::{
    abandon, accept, await_acceptance, booking_cancelled, cancel, confirm, create, create_for_task,
    decline_offer, end_offer, expire, match_failed, overdue, picked, receive_decline,
    receive_offer, refuse_acceptance, retry_match, take_matches,
};

/// Number of the best candidates that are asked. It also bounds the leads and offers in the state.
pub const MAX_LEADS: usize = 8;
/// Photos of a request.
pub const MAX_PHOTOS: usize = 5;
pub const LIFETIME_H: i64 = 24;
pub const MAX_DAYS_AHEAD: i64 = 180;
pub const ACCEPTANCE_TIMEOUT_S: i64 = 60;
const ACCEPTANCE_TRIES: u8 = 3;
const MATCH_TRIES: u8 = 2;
const MATCH_RETRY_S: i64 = 5;

#[derive(Debug)]
pub struct Request;

/// What a request is asked. Names of variants and fields stay: nodes of another release read them too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    Create(Asked),
    CreateWithPhotos {
        asked: Asked,
        photos: Vec<String>,
    },
    /// Internal: a task.
    AskFor(AskFor),
    AcceptOffer(AcceptOffer),
    DeclineOffer {
        offer_id: String,
    },
    Cancel(RequestCancellation),
    /// Query.
    Get,
    /// Query of the node itself: the providers that were asked.
    WhoWasAsked,
    /// Query that waits until the acceptance of this offer is decided.
    AwaitAcceptance {
        offer_id: String,
    },
    /// Internal: the session's agent accepts for its user.
    AcceptPick(AcceptPick),
    /// Internal: the outcome of the matching run.
    TakeMatches {
        candidates: Vec<Scored>,
    },
    MatchFailed {
        error: String,
    },
    RetryMatch,
    /// Internal: a provider's agent.
    ReceiveOffer(ReceiveOffer),
    ReceiveDecline(ReceiveDecline),
    WithdrawOffer(WithdrawOffer),
    HoldRefused(HoldRefused),
    /// Internal: the booking.
    BookingConfirmed(BookingConfirmed),
    BookingCancelled(BookingCancelled),
    /// Internal: timers, and messages that could not be delivered.
    ExpireOffer {
        offer_id: String,
    },
    AcceptanceOverdue {
        booking_id: String,
    },
    AbandonAcceptance {
        booking_id: String,
        reason: String,
    },
    Expire,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    Created {
        asked: Asked,
        at: Timestamp,
    },
    /// What its consumer shows to the providers.
    PhotosShown {
        photos: Vec<String>,
        at: Timestamp,
    },
    /// A task asked for it, and hears how it goes.
    FollowedByTask {
        task_id: String,
        at: Timestamp,
    },
    MatchingFailed {
        error: String,
        at: Timestamp,
    },
    ProvidersMatched {
        provider_ids: Vec<String>,
        at: Timestamp,
    },
    OfferReceived {
        offer: Offer,
        at: Timestamp,
    },
    LeadDeclined {
        provider_id: String,
        decline: Decline,
        at: Timestamp,
    },
    OfferExpired {
        offer_id: String,
        at: Timestamp,
    },
    OfferDeclined {
        offer_id: String,
        at: Timestamp,
    },
    /// The provider's time was given to somebody else before this offer was accepted (`reason` is `slot_taken`, or
    /// absent in events of older releases), or the provider no longer makes the offer (`offer_withdrawn`).
    OfferWithdrawn {
        offer_id: String,
        #[serde(default)]
        reason: Option<String>,
        at: Timestamp,
    },
    AcceptanceStarted {
        offer_id: String,
        booking_id: String,
        at: Timestamp,
    },
    AcceptanceRetried {
        booking_id: String,
        at: Timestamp,
    },
    AcceptanceRefused {
        offer_id: String,
        booking_id: String,
        reason: String,
        at: Timestamp,
    },
    Booked {
        offer_id: String,
        booking_id: String,
        at: Timestamp,
    },
    Cancelled {
        reason: Option<String>,
        at: Timestamp,
    },
    /// The booking was cancelled after the request was booked.
    BookingCancelled {
        booking_id: String,
        by: Party,
        at: Timestamp,
    },
    Expired {
        at: Timestamp,
    },
    /// `no_providers`, `all_declined`, `slot_taken` or `matching_unavailable`.
    Unmatched {
        reason: String,
        at: Timestamp,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Request(Box<RequestView>),
    /// The provider has been asked to hold the time; `AwaitAcceptance` returns the outcome.
    Accepting {
        booking_id: String,
    },
    Accepted {
        booking_id: String,
    },
    Asked {
        provider_ids: Vec<String>,
    },
}

impl Entity for Request {
    const KIND: &'static str = REQUEST;
    const GOLDEN: &'static str = include_str!("golden/request.jsonl");

    crate::own_types!();

    fn decide(state: &State, command: Command, cx: &DecideCx<'_>) -> Decided<Self> {
        let Some(asked) = &state.asked else {
            return match command {
                Command::Create(asked) => create(state, asked, Vec::new(), cx),
                Command::CreateWithPhotos { asked, photos } => create(state, asked, photos, cx),
                Command::AskFor(ask) => create_for_task(state, ask, cx),
                _ => Err(Rejection::NotFound),
            };
        };
        may(state, asked, &command, cx)?;
        let draft = Draft::new(state, cx);
        match command {
            Command::Create(_) | Command::CreateWithPhotos { .. } | Command::AskFor(_) => {
                Err(Rejection::AlreadyExists)
            }
            Command::AcceptOffer(AcceptOffer { offer_id }) => accept(draft, &offer_id),
            Command::AcceptPick(AcceptPick { pick }) => {
                let offer_id = picked(state, pick).ok_or(Rejection::NoOffers)?;
                accept(draft, &offer_id)
            }
            Command::DeclineOffer { offer_id } => decline_offer(draft, &offer_id),
            Command::Cancel(RequestCancellation { reason }) => cancel(draft, reason),
            Command::Get => Ok(draft.reply_request()),
            Command::WhoWasAsked => {
                let provider_ids = state.leads.iter().map(|lead| lead.provider_id.clone());
                Ok(Decision::reply(Reply::Asked { provider_ids: provider_ids.collect() }))
            }
            Command::AwaitAcceptance { offer_id } => await_acceptance(state, &offer_id),
            Command::TakeMatches { candidates } => Ok(take_matches(draft, candidates)),
            Command::MatchFailed { error } => Ok(match_failed(draft, error)),
            Command::RetryMatch => Ok(retry_match(draft)),
            Command::ReceiveOffer(ReceiveOffer { offer }) => receive_offer(draft, offer),
            Command::ReceiveDecline(ReceiveDecline { provider_id, decline }) => {
                receive_decline(draft, provider_id, decline)
            }
            Command::WithdrawOffer(WithdrawOffer { offer_id, reason }) => {
                Ok(end_offer(draft, offer_id, |offer_id, at| Event::OfferWithdrawn {
                    offer_id,
                    reason,
                    at,
                }))
            }
            Command::ExpireOffer { offer_id } => {
                Ok(end_offer(draft, offer_id, |offer_id, at| Event::OfferExpired { offer_id, at }))
            }
            Command::HoldRefused(HoldRefused { booking_id, reason, .. }) => {
                Ok(refuse_acceptance(draft, &booking_id, reason))
            }
            Command::BookingConfirmed(BookingConfirmed { booking_id, offer_id }) => {
                Ok(confirm(draft, booking_id, offer_id))
            }
            Command::BookingCancelled(BookingCancelled { booking_id, by }) => {
                Ok(booking_cancelled(draft, booking_id, by))
            }
            Command::AcceptanceOverdue { booking_id } => Ok(overdue(draft, booking_id)),
            Command::AbandonAcceptance { booking_id, reason } => {
                Ok(abandon(draft, &booking_id, reason))
            }
            Command::Expire => Ok(expire(draft)),
        }
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Created { asked, at } => {
                state.asked = Some(asked.clone());
                state.created_at = Some(*at);
            }
            Event::PhotosShown { photos, .. } => state.photos.clone_from(photos),
            Event::FollowedByTask { task_id, .. } => state.task_id = Some(task_id.clone()),
            Event::MatchingFailed { .. } => {
                state.match_failures = state.match_failures.saturating_add(1);
            }
            Event::ProvidersMatched { provider_ids, .. } => {
                let pending = |id: &String| AskedProvider {
                    provider_id: id.clone(),
                    answer: Answer::Pending,
                };
                state.leads = provider_ids.iter().map(pending).collect();
            }
            Event::OfferReceived { offer, .. } => {
                set_answer(state, &offer.provider.id, Answer::Offered);
                state.offers.push(offer.clone());
                if state.status == Status::Matching {
                    state.status = Status::Open;
                }
            }
            Event::LeadDeclined { provider_id, decline, .. } => {
                set_answer(state, provider_id, Answer::Declined(decline.clone()));
            }
            Event::OfferExpired { offer_id, .. } => state.set_offer(offer_id, OfferStatus::Expired),
            Event::OfferDeclined { offer_id, .. } => {
                state.set_offer(offer_id, OfferStatus::Declined);
            }
            Event::OfferWithdrawn { offer_id, reason, .. } => {
                state.refuse_offer(offer_id, reason.as_ref());
            }
            Event::AcceptanceStarted { offer_id, booking_id, .. } => {
                state.status = Status::Accepting;
                state.acceptance = Some(Acceptance {
                    offer_id: offer_id.clone(),
                    booking_id: booking_id.clone(),
                    tries: 1,
                });
            }
            Event::AcceptanceRetried { .. } => {
                if let Some(acceptance) = &mut state.acceptance {
                    acceptance.tries = acceptance.tries.saturating_add(1);
                }
            }
            Event::AcceptanceRefused { offer_id, reason, .. } => {
                state.status = Status::Open;
                state.acceptance = None;
                state.refuse_offer(offer_id, Some(reason));
            }
            Event::Booked { offer_id, .. } => {
                state.set_offer(offer_id, OfferStatus::Accepted);
                state.close(Status::Booked, OfferStatus::Withdrawn, None);
            }
            Event::Cancelled { reason, .. } => {
                state.close(Status::Cancelled, OfferStatus::Withdrawn, reason.clone());
            }
            Event::BookingCancelled { .. } => {
                state.close(
                    Status::Cancelled,
                    OfferStatus::Withdrawn,
                    Some("booking_cancelled".into()),
                );
            }
            Event::Expired { .. } => state.close(Status::Expired, OfferStatus::Expired, None),
            Event::Unmatched { reason, .. } => {
                state.close(Status::Unmatched, OfferStatus::Expired, Some(reason.clone()));
            }
        }
        state.updated_at = Some(event.at());
    }

    fn is_query(command: &Command) -> bool {
        matches!(command, Command::Get | Command::WhoWasAsked | Command::AwaitAcceptance { .. })
    }

    fn project(key: &str, state: &State, events: &[Event]) -> Vec<ViewRow> {
        view::rows(key, state, events)
    }

    fn run_finished(outcome: RunOutcome) -> Option<Command> {
        Some(match outcome.of::<MatchProviders>() {
            Ok(Matches { candidates }) => Command::TakeMatches { candidates },
            Err(error) => Command::MatchFailed { error },
        })
    }

    /// Handles an undeliverable command: a lead counts as declined, and a hold is given up.
    fn send_failed(failure: SendFailure) -> Option<Command> {
        if failure.of::<ConsiderLead>().is_some() {
            let decline = Decline { reason: DeclineReason::Unreachable, lowest_price: None };
            let provider_id = failure.key;
            return Some(Command::ReceiveDecline(ReceiveDecline { provider_id, decline }));
        }
        let HoldSlot { booking_id, .. } = failure.of()?;
        Some(Command::AbandonAcceptance { booking_id, reason: failure.reason })
    }
}

impl Event {
    fn at(&self) -> Timestamp {
        match self {
            Self::Created { at, .. }
            | Self::PhotosShown { at, .. }
            | Self::FollowedByTask { at, .. }
            | Self::MatchingFailed { at, .. }
            | Self::ProvidersMatched { at, .. }
            | Self::OfferReceived { at, .. }
            | Self::LeadDeclined { at, .. }
            | Self::OfferExpired { at, .. }
            | Self::OfferDeclined { at, .. }
            | Self::OfferWithdrawn { at, .. }
            | Self::AcceptanceStarted { at, .. }
            | Self::AcceptanceRetried { at, .. }
            | Self::AcceptanceRefused { at, .. }
            | Self::Booked { at, .. }
            | Self::Cancelled { at, .. }
            | Self::BookingCancelled { at, .. }
            | Self::Expired { at }
            | Self::Unmatched { at, .. } => *at,
        }
    }
}

/// Whether this caller may send this command: the consumer theirs, and each other entity its own part.
fn may(
    state: &State,
    asked: &Asked,
    command: &Command,
    cx: &DecideCx<'_>,
) -> Result<(), Rejection> {
    let caller = cx.caller;
    let consumers = |scope| is_consumers(asked, caller, scope);
    let provider = |offer_id: &str| match state.offer(offer_id) {
        Some(offer) => caller.is_the(PROVIDER, &offer.provider.id),
        None => caller.is_a(PROVIDER),
    };
    let may = match command {
        Command::Create(_)
        | Command::CreateWithPhotos { .. }
        | Command::AskFor(_)
        | Command::Cancel(_)
        | Command::Get => consumers("request"),
        Command::WhoWasAsked => *caller == Caller::Runtime,
        Command::AcceptOffer(_)
        | Command::DeclineOffer { .. }
        | Command::AwaitAcceptance { .. } => consumers("offer"),
        // People name the offer.
        Command::AcceptPick(_) => caller.user_id().is_none() && consumers("offer"),
        Command::ReceiveOffer(ReceiveOffer { offer }) => {
            caller.is_the(PROVIDER, &offer.provider.id)
        }
        Command::ReceiveDecline(ReceiveDecline { provider_id, .. }) => {
            caller.is_the(PROVIDER, provider_id)
        }
        Command::WithdrawOffer(WithdrawOffer { offer_id, .. })
        | Command::HoldRefused(HoldRefused { offer_id, .. }) => provider(offer_id),
        Command::BookingConfirmed(BookingConfirmed { booking_id, .. })
        | Command::BookingCancelled(BookingCancelled { booking_id, .. }) => {
            caller.is_the(BOOKING, booking_id)
        }
        Command::TakeMatches { .. }
        | Command::MatchFailed { .. }
        | Command::RetryMatch
        | Command::ExpireOffer { .. }
        | Command::AcceptanceOverdue { .. }
        | Command::AbandonAcceptance { .. }
        | Command::Expire => caller.is_itself(),
    };
    if may {
        return Ok(());
    }
    let is_theirs = caller.user_id() == Some(&*asked.consumer_id);
    Err(if is_theirs { Rejection::InternalOnly } else { Rejection::NotFound })
}

/// The consumer, or what acts for them. In the release before their session did not say that it does.
fn is_consumers(asked: &Asked, caller: &Caller, scope: &str) -> bool {
    let session = asked.session_id.as_deref();
    caller.may_act_for(&asked.consumer_id, scope)
        || session.is_some_and(|key| *caller == Caller::entity(SESSION, key))
}

fn set_answer(state: &mut State, provider_id: &str, answer: Answer) {
    for lead in state.leads.iter_mut().filter(|lead| lead.provider_id == provider_id) {
        lead.answer = answer.clone();
    }
}
