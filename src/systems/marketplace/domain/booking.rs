//! An agreed appointment between a consumer and a provider, from its confirmation to its review.
//!
//! ```text
//! Pending ──▶ Confirmed ──starts_at──▶ InProgress ──ends_at──▶ Completed ──▶ Reviewed
//!                 │                        └───────────┬───────────┘
//!                 └──▶ Cancelled                       └──▶ NoShow
//! ```
//! Confirmation is immediate today, so Pending lasts no longer than the commit; it is the place for a payment or a
//! manual approval. The provider holds the time before this entity exists, and releases it when this entity says so.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kernel::entity::{Announcement, Caller, DecideCx, Decided, Decision, Effect, Entity};
use crate::kernel::view::ViewRow;
use crate::systems::marketplace::domain::messages::{
    Agreed, BOOKING, BookingCancellation, BookingCancelled, BookingConfirmed, CancelForConsumer,
    PROVIDER, Party, REQUEST, RecordReview, ReleaseSlot, SESSION,
};
use crate::systems::marketplace::domain::rejection::Check;
use crate::systems::marketplace::domain::schedule::later;
use crate::systems::marketplace::domain::user::User;

mod rejection;
#[cfg(test)]
mod tests;
mod view;

pub use rejection::Rejection;
pub use view::{AppointmentAgreed, BookingChange, BookingChanged, BookingRow, BookingView};

/// How long after the end a provider may report a no-show. A later report would only serve to prevent a review.
const NO_SHOW_MINUTES: i64 = 24 * 60;
/// Reminders, in hours before the start.
const REMIND_HOURS: [u8; 2] = [24, 1];

#[derive(Debug)]
pub struct Booking;

/// The commands of a booking. Names of variants and fields stay: nodes of another release read them too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Internal: the provider holds the time.
    Confirm(Box<Agreed>),
    Cancel(BookingCancellation),
    CancelForConsumer(CancelForConsumer),
    /// The consumer's review, once the booking is completed.
    Review {
        rating: u8,
        comment: Option<String>,
    },
    /// A no-show, reported by the provider's owner, from the start until a day after the end.
    MarkNoShow,
    /// Query by the parties.
    Get,
    /// Internal: timers.
    Remind {
        hours_before: u8,
    },
    Start,
    Complete,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    BookingRequested { agreed: Box<Agreed>, at: Timestamp },
    BookingConfirmed { at: Timestamp },
    BookingStarted { at: Timestamp },
    BookingCompleted { at: Timestamp },
    BookingReviewed { rating: u8, comment: Option<String>, at: Timestamp },
    BookingCancelled { by: Party, reason: Option<String>, at: Timestamp },
    ConsumerMissed { at: Timestamp },
}

/// The status of a booking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "BookingStatus")]
pub enum Status {
    #[default]
    Pending,
    Confirmed,
    InProgress,
    Completed,
    Reviewed,
    Cancelled,
    NoShow,
}

/// The consumer's review.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "BookingReview")]
pub struct Review {
    pub rating: u8,
    pub comment: Option<String>,
}

/// The cancellation: who cancelled, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cancellation {
    pub by: Party,
    pub reason: Option<String>,
}

/// The booking's state, bounded by its fields: one agreement and one end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub agreed: Option<Agreed>,
    pub status: Status,
    pub review: Option<Review>,
    pub cancellation: Option<Cancellation>,
    pub created_at: Option<Timestamp>,
    pub updated_at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Booking(Box<BookingView>),
}

impl Entity for Booking {
    const KIND: &'static str = BOOKING;
    const GOLDEN: &'static str = include_str!("golden/booking.jsonl");
    const HAS_TOPIC: bool = true;

    crate::own_types!();

    fn decide(state: &State, command: Command, cx: &DecideCx<'_>) -> Decided<Self> {
        let Some(agreed) = &state.agreed else {
            return match command {
                Command::Confirm(agreed) if cx.caller.is_the(PROVIDER, &agreed.provider.id) => {
                    Ok(confirm(state, agreed, cx))
                }
                // Given up before the provider could confirm: there is nothing to undo here.
                Command::Cancel(_) if cx.caller.is_a(REQUEST) || cx.caller.is_a(PROVIDER) => {
                    Ok(Decision::reply(Reply::Done))
                }
                _ => Err(Rejection::NotFound),
            };
        };
        let party = party(agreed, &command, cx.caller).ok_or(Rejection::NotFound)?;
        let only = |may: bool| if may { Ok(()) } else { Err(Rejection::InternalOnly) };
        let internal_only = || only(cx.caller.is_itself());
        let step = Step { state, agreed, cx };
        match command {
            Command::Get => Ok(step.unchanged()),
            Command::Cancel(BookingCancellation { reason }) => step.cancel(party, reason),
            Command::CancelForConsumer(CancelForConsumer { reason }) => {
                only(party != Party::Provider && cx.caller.user_id().is_none())?;
                step.cancel(Party::Consumer, reason)
            }
            Command::Review { rating, comment } => step.review(party, rating, comment),
            Command::MarkNoShow => step.no_show(party),
            Command::Confirm(_) => {
                only(cx.caller.is_the(PROVIDER, &agreed.provider.id))?;
                Ok(step.confirm_again())
            }
            Command::Remind { hours_before } => internal_only().map(|()| step.remind(hours_before)),
            Command::Start => internal_only().map(|()| step.start()),
            Command::Complete => internal_only().map(|()| step.complete()),
        }
    }

    fn evolve(state: &mut State, event: &Event) {
        let at = match event {
            Event::BookingRequested { agreed, at } => {
                state.agreed = Some(Agreed::clone(agreed));
                state.created_at = Some(*at);
                at
            }
            Event::BookingConfirmed { at } => {
                state.status = Status::Confirmed;
                at
            }
            Event::BookingStarted { at } => {
                state.status = Status::InProgress;
                at
            }
            Event::BookingCompleted { at } => {
                state.status = Status::Completed;
                at
            }
            Event::BookingReviewed { rating, comment, at } => {
                state.status = Status::Reviewed;
                state.review = Some(Review { rating: *rating, comment: comment.clone() });
                at
            }
            Event::BookingCancelled { by, reason, at } => {
                state.status = Status::Cancelled;
                state.cancellation = Some(Cancellation { by: *by, reason: reason.clone() });
                at
            }
            Event::ConsumerMissed { at } => {
                state.status = Status::NoShow;
                at
            }
        };
        state.updated_at = Some(*at);
    }

    fn is_query(command: &Command) -> bool {
        matches!(command, Command::Get)
    }

    fn project(key: &str, state: &State, events: &[Event]) -> Vec<ViewRow> {
        let (Some(agreed), Some(detail), false) =
            (&state.agreed, BookingView::of(key, state), events.is_empty())
        else {
            return Vec::new();
        };
        vec![ViewRow::of(&BookingRow::of(agreed, detail))]
    }
}

/// The party that the caller belongs to. `None`: the caller is not a party.
fn party(agreed: &Agreed, command: &Command, caller: &Caller) -> Option<Party> {
    match caller.acts_for("booking") {
        Some(id) if id == agreed.consumer_id => Some(Party::Consumer),
        Some(id) if id == agreed.provider_owner_id => Some(Party::Provider),
        Some(_) => None,
        None => {
            let made_it = caller.is_the(REQUEST, &agreed.request_id)
                || caller.is_the(PROVIDER, &agreed.provider.id);
            // Sessions of older releases do not say for whom they cancel.
            let cancels = matches!(command, Command::CancelForConsumer(_))
                && caller.is_system()
                && caller.is_a(SESSION);
            (made_it || cancels).then_some(Party::System)
        }
    }
}

fn shown(key: &str, state: &State) -> Decision<Booking> {
    let booking = BookingView::of(key, state).expect("what was agreed on has its times");
    Decision::reply(Reply::Booking(booking.into()))
}

fn confirm(state: &State, agreed: Box<Agreed>, cx: &DecideCx<'_>) -> Decision<Booking> {
    let at = cx.now;
    let hours = |n: u8| later(agreed.starts_at, -60 * i64::from(n));
    let timers = REMIND_HOURS
        .into_iter()
        .filter(|n| hours(*n) > at)
        .map(|n| (format!("remind_{n}h"), hours(n), Command::Remind { hours_before: n }))
        .chain([
            ("start".into(), agreed.starts_at, Command::Start),
            ("complete".into(), agreed.ends_at, Command::Complete),
        ])
        .map(|(name, at, command)| Effect::schedule::<Booking>(name, at, &command))
        .collect::<Vec<_>>();
    let answer = answer_request(&agreed, cx.key);
    let events = vec![
        Event::BookingRequested { agreed: agreed.clone(), at },
        Event::BookingConfirmed { at },
    ];
    let step = Step { state, agreed: &agreed, cx };
    let announcements = step.announce(&events, |booking| AppointmentAgreed { booking });
    Decision { events, ..Decision::reply(Reply::Done) }
        .effect(answer)
        .effects(announcements)
        .effects(timers)
}

fn answer_request(agreed: &Agreed, key: &str) -> Effect {
    let confirmed = BookingConfirmed { booking_id: key.into(), offer_id: agreed.offer_id.clone() };
    Effect::send(agreed.request_id.clone(), &confirmed)
}

/// One command on an existing booking.
struct Step<'a> {
    state: &'a State,
    agreed: &'a Agreed,
    cx: &'a DecideCx<'a>,
}

impl Step<'_> {
    /// Announces the booking, as it is after `events`, to both parties and on the booking's own topic.
    fn announce<A: Announcement>(
        &self,
        events: &[Event],
        of: impl FnOnce(BookingView) -> A,
    ) -> Vec<Effect> {
        let mut next = self.state.clone();
        for event in events {
            Booking::evolve(&mut next, event);
        }
        let Some(booking) = BookingView::of(self.cx.key, &next) else { return Vec::new() };
        let announcement = of(booking);
        let owner = &self.agreed.provider_owner_id;
        let consumer = &self.agreed.consumer_id;
        let mut effects = vec![Effect::announce_to(User::KIND, consumer, &announcement)];
        if owner != consumer {
            effects.push(Effect::announce_to(User::KIND, owner, &announcement));
        }
        // A durable publication belongs to an event.
        if !events.is_empty() {
            effects.push(Effect::announce(&announcement));
        }
        effects
    }

    fn updated(&self, kind: BookingChange, event: Event) -> Decision<Booking> {
        let mut next = self.state.clone();
        Booking::evolve(&mut next, &event);
        let events = vec![event];
        let changed = |booking| BookingChanged { kind, hours_before: None, booking };
        let effects = self.announce(&events, changed);
        Decision { events, effects, ..shown(self.cx.key, &next) }
    }

    fn unchanged(&self) -> Decision<Booking> {
        shown(self.cx.key, self.state)
    }

    /// Handles a second confirmation, after the provider was asked twice. A booking cancelled in the meantime stays
    /// cancelled, and its time is released.
    fn confirm_again(&self) -> Decision<Booking> {
        let effect = match self.state.status {
            Status::Cancelled => self.release(),
            _ => answer_request(self.agreed, self.cx.key),
        };
        Decision::reply(Reply::Done).effect(effect)
    }

    /// Tells the request that its booking was cancelled; the request tells its session.
    fn tell_request(&self, by: Party) -> Effect {
        let cancelled = BookingCancelled { booking_id: self.cx.key.into(), by };
        Effect::send(self.agreed.request_id.clone(), &cancelled)
    }

    fn release(&self) -> Effect {
        let booking_id = self.cx.key.into();
        Effect::send(self.agreed.provider.id.clone(), &ReleaseSlot { booking_id })
    }

    fn cancel(&self, by: Party, reason: Option<String>) -> Decided<Booking> {
        match self.state.status {
            Status::Pending | Status::Confirmed => {}
            Status::Cancelled => return Ok(self.unchanged()),
            Status::NoShow => return Err(Rejection::NoShow),
            Status::InProgress | Status::Completed | Status::Reviewed => {
                return Err(Rejection::AlreadyStarted);
            }
        }
        if self.cx.now >= self.agreed.starts_at {
            return Err(Rejection::AlreadyStarted);
        }
        let mut check = Check::default();
        check.text(reason.as_deref().unwrap_or_default(), 500, "/reason");
        check.finish(|errors| Rejection::Invalid { errors })?;
        let timers = REMIND_HOURS.map(|n| format!("remind_{n}h"));
        let timers = timers.into_iter().chain(["start".into(), "complete".into()]);
        Ok(self
            .updated(
                BookingChange::Cancelled,
                Event::BookingCancelled { by, reason, at: self.cx.now },
            )
            .effect(self.release())
            .effect(self.tell_request(by))
            .effects(timers.map(Effect::cancel)))
    }

    fn review(&self, by: Party, rating: u8, comment: Option<String>) -> Decided<Booking> {
        if by != Party::Consumer {
            return Err(Rejection::ConsumerOnly);
        }
        // Older releases allowed users to book themselves.
        if self.agreed.consumer_id == self.agreed.provider_owner_id {
            return Err(Rejection::OwnBooking);
        }
        match self.state.status {
            Status::Completed => {}
            Status::Reviewed => return Err(Rejection::AlreadyReviewed),
            Status::Cancelled => return Err(Rejection::Cancelled),
            Status::NoShow => return Err(Rejection::NoShow),
            Status::Pending | Status::Confirmed | Status::InProgress => {
                return Err(Rejection::NotCompleted);
            }
        }
        let mut check = Check::default();
        check.that((1..=5).contains(&rating), "/rating", "must be 1 to 5");
        check.text(comment.as_deref().unwrap_or_default(), 2_000, "/comment");
        check.finish(|errors| Rejection::Invalid { errors })?;
        let booking_id = self.cx.key.into();
        let record = RecordReview { booking_id, stars: rating };
        let record = Effect::send(self.agreed.provider.id.clone(), &record);
        let event = Event::BookingReviewed { rating, comment, at: self.cx.now };
        Ok(self.updated(BookingChange::Reviewed, event).effect(record))
    }

    fn no_show(&self, by: Party) -> Decided<Booking> {
        if by == Party::Consumer {
            return Err(Rejection::ProviderOnly);
        }
        match self.state.status {
            Status::Confirmed | Status::InProgress | Status::Completed
                if self.cx.now >= self.agreed.starts_at =>
            {
                if self.cx.now > later(self.agreed.ends_at, NO_SHOW_MINUTES) {
                    return Err(Rejection::TooLate);
                }
            }
            Status::Pending | Status::Confirmed | Status::InProgress | Status::Completed => {
                return Err(Rejection::NotStarted);
            }
            Status::NoShow => return Ok(self.unchanged()),
            Status::Reviewed => return Err(Rejection::AlreadyReviewed),
            Status::Cancelled => return Err(Rejection::Cancelled),
        }
        Ok(self
            .updated(BookingChange::NoShow, Event::ConsumerMissed { at: self.cx.now })
            .effect(Effect::cancel("start"))
            .effect(Effect::cancel("complete")))
    }

    fn remind(&self, hours_before: u8) -> Decision<Booking> {
        if self.state.status != Status::Confirmed || self.cx.now >= self.agreed.starts_at {
            return Decision::reply(Reply::Done);
        }
        let (kind, hours_before) = (BookingChange::Reminder, Some(hours_before));
        let near = |booking| BookingChanged { kind, hours_before, booking };
        Decision::reply(Reply::Done).effects(self.announce(&[], near))
    }

    fn start(&self) -> Decision<Booking> {
        match self.state.status {
            Status::Confirmed => {
                self.updated(BookingChange::Started, Event::BookingStarted { at: self.cx.now })
            }
            _ => Decision::reply(Reply::Done),
        }
    }

    /// Completes the booking, even if its start was missed because a node was down.
    fn complete(&self) -> Decision<Booking> {
        match self.state.status {
            Status::Confirmed | Status::InProgress => {
                // "completed" is the invitation to review.
                self.updated(BookingChange::Completed, Event::BookingCompleted { at: self.cx.now })
            }
            _ => Decision::reply(Reply::Done),
        }
    }
}
