use serde_json::json;

use super::*;
use crate::kernel::entity::spec::{Given, given};
use crate::kernel::entity::to_value;
use crate::systems::marketplace::domain::fixtures::{
    END, NOW, START, agreed, at, cancelled, notified, published, sent, timers,
};

const HALF: &str = "2026-01-13T16:20:00Z";

fn requested() -> Event {
    Event::BookingRequested { agreed: agreed().into(), at: at(NOW) }
}

fn confirmed() -> Event {
    Event::BookingConfirmed { at: at(NOW) }
}

fn started() -> Event {
    Event::BookingStarted { at: at(START) }
}

fn completed() -> Event {
    Event::BookingCompleted { at: at(END) }
}

fn cancelled_by_alice() -> Event {
    Event::BookingCancelled { by: Party::Consumer, reason: None, at: at(NOW) }
}

fn missed() -> Event {
    Event::ConsumerMissed { at: at(HALF) }
}

fn reviewed() -> Event {
    Event::BookingReviewed { rating: 5, comment: None, at: at(END) }
}

/// A confirmed booking to which more has happened.
fn booking<const N: usize>(more: [Event; N]) -> Given<Booking> {
    let events = [requested(), confirmed()].into_iter().chain(more);
    given::<Booking>(events).at(at(NOW)).key("bkg_1")
}

fn cancel() -> Command {
    Command::Cancel(BookingCancellation { reason: Some("ill".into()) })
}

fn review(rating: u8) -> Command {
    Command::Review { rating, comment: Some("lovely".into()) }
}

#[test]
fn a_confirmation_books_tells_both_and_sets_the_timers() {
    let mut new = given::<Booking>([]).at(at(NOW)).key("bkg_1");
    let decision = new.when(Command::Confirm(agreed().into())).then([requested(), confirmed()]);
    let effects = &decision.effects;
    let answer = json!({"BookingConfirmed": {"booking_id": "bkg_1", "offer_id": "off_1"}});
    assert_eq!(sent(effects, "request"), [("req_1".into(), answer)]);
    assert_eq!(notified(effects), ["alice booking:confirmed", "mirela booking:confirmed"]);
    let (event, data) = published(effects)[0];
    assert_eq!((event, &data["booking"]["status"]), ("booking:confirmed", &json!("confirmed")));
    assert_eq!(
        timers(effects),
        [
            ("remind_24h", "2026-01-12T16:00:00Z".into()),
            ("remind_1h", "2026-01-13T15:00:00Z".into()),
            ("start", START.into()),
            ("complete", END.into()),
        ]
    );
}

#[test]
fn reminders_that_would_be_late_are_left_out() {
    let mut new = given::<Booking>([]).at(at("2026-01-13T15:30:00Z"));
    let decision = new.when(Command::Confirm(agreed().into())).decision();
    assert_eq!(timers(&decision.effects).len(), 2);
}

#[test]
fn a_second_confirmation_only_answers_again() {
    let decision = booking([]).when(Command::Confirm(agreed().into())).then([]);
    assert_eq!(sent(&decision.effects, "request").len(), 1);
    assert_eq!(decision.effects.len(), 1);
    // Of a cancelled booking the time must not stay held.
    let decision = booking([cancelled_by_alice()]).when(Command::Confirm(agreed().into())).then([]);
    let release = json!({"ReleaseSlot": {"booking_id": "bkg_1"}});
    assert_eq!(sent(&decision.effects, "provider"), [("prv_1".into(), release)]);
}

#[test]
fn it_starts_and_completes_by_its_timers() {
    let mut it = booking([]).at(at(START));
    let decision = it.when(Command::Start).then([started()]);
    assert_eq!(notified(&decision.effects), ["alice booking:updated", "mirela booking:updated"]);
    it.when(Command::Start).then([]);
    it.now = at(END);
    let decision = it.when(Command::Complete).then([completed()]);
    assert_eq!(published(&decision.effects)[0].1["kind"], "completed");
    it.when(Command::Complete).then([]);
    // A node that was away at the start fires both; one alone does as well.
    booking([]).at(at(END)).when(Command::Complete).then([completed()]);
}

#[test]
fn both_are_reminded_before_the_start() {
    let remind = || Command::Remind { hours_before: 1 };
    let decision = booking([]).when(remind()).then([]);
    assert_eq!(notified(&decision.effects), ["alice booking:updated", "mirela booking:updated"]);
    let Effect::Notify { publication, .. } = &decision.effects[0] else { panic!() };
    assert_eq!(publication.data["kind"], "reminder");
    assert_eq!(publication.data["hours_before"], 1);
    assert_eq!(booking([cancelled_by_alice()]).when(remind()).then([]).effects, []);
    assert_eq!(booking([]).at(at(START)).when(remind()).then([]).effects, []);
}

#[test]
fn either_party_cancels_before_the_start() {
    for (user, by) in [("alice", Party::Consumer), ("mirela", Party::Provider)] {
        let mut it = booking([]).by_user(user);
        let event = Event::BookingCancelled { by, reason: Some("ill".into()), at: at(NOW) };
        let decision = it.when(cancel()).then([event]);
        let release = json!({"ReleaseSlot": {"booking_id": "bkg_1"}});
        assert_eq!(sent(&decision.effects, "provider"), [("prv_1".into(), release)]);
        assert_eq!(notified(&decision.effects).len(), 2);
        assert_eq!(cancelled(&decision.effects), ["remind_24h", "remind_1h", "start", "complete"]);
        it.when(cancel()).then([]);
    }
    let long = Command::Cancel(BookingCancellation { reason: Some("x".repeat(501)) });
    booking([]).by_user("alice").when(long).then_rejected("invalid");
    let tricky = Command::Cancel(BookingCancellation { reason: Some("ill\u{202E}".into()) });
    booking([]).by_user("alice").when(tricky).then_rejected("invalid");
}

#[test]
fn what_has_started_or_ended_cannot_be_cancelled() {
    booking([]).by_user("alice").at(at(START)).when(cancel()).then_rejected("already_started");
    booking([started()]).by_user("alice").when(cancel()).then_rejected("already_started");
    booking([completed()]).by_user("mirela").when(cancel()).then_rejected("already_started");
    booking([missed()]).by_user("alice").when(cancel()).then_rejected("no_show");
}

#[test]
fn an_acceptance_that_was_given_up_cancels_the_booking() {
    let mut it = booking([]);
    it.when(cancel()).decision();
    assert_eq!(it.state.cancellation.as_ref().unwrap().by, Party::System);
    // Or there is none yet.
    given::<Booking>([]).when(cancel()).then([]);
}

#[test]
fn the_consumer_reviews_what_is_completed() {
    let mut it = booking([completed()]).by_user("alice");
    let decision = it.when(review(5)).decision();
    let record = json!({"RecordReview": {"booking_id": "bkg_1", "stars": 5}});
    assert_eq!(sent(&decision.effects, "provider"), [("prv_1".into(), record)]);
    assert_eq!(it.state.status, Status::Reviewed);
    it.when(review(1)).then_rejected("already_reviewed");
}

#[test]
fn reviews_have_rules() {
    let by = |user, it: Given<Booking>| it.by_user(user);
    by("mirela", booking([completed()])).when(review(5)).then_rejected("consumer_only");
    booking([completed()]).when(review(5)).then_rejected("consumer_only");
    by("alice", booking([started()])).when(review(5)).then_rejected("not_completed");
    by("alice", booking([cancelled_by_alice()])).when(review(5)).then_rejected("booking_cancelled");
    by("alice", booking([missed()])).when(review(5)).then_rejected("no_show");
    for rating in [0, 6] {
        by("alice", booking([completed()])).when(review(rating)).then_rejected("invalid");
    }
    let long = Command::Review { rating: 5, comment: Some("x".repeat(2_001)) };
    by("alice", booking([completed()])).when(long).then_rejected("invalid");
}

#[test]
fn the_provider_says_when_nobody_came() {
    let no_show = || Command::MarkNoShow;
    let mut it = booking([started()]).by_user("mirela").at(at(HALF));
    it.when(no_show()).then([missed()]);
    it.when(no_show()).then([]);
    booking([started()]).by_user("alice").when(no_show()).then_rejected("provider_only");
    booking([]).by_user("mirela").when(no_show()).then_rejected("not_started");
    let completed_on = |at: Timestamp| booking([completed()]).by_user("mirela").at(at);
    completed_on(at("2026-01-14T16:45:00Z")).when(no_show()).decision();
    completed_on(at("2026-01-14T16:45:01Z")).when(no_show()).then_rejected("too_late");
    booking([cancelled_by_alice()])
        .by_user("mirela")
        .when(no_show())
        .then_rejected("booking_cancelled");
    let mut reviewed = booking([completed(), reviewed()]).by_user("mirela").at(at(END));
    reviewed.when(no_show()).then_rejected("already_reviewed");
}

#[test]
fn only_the_parties_see_it() {
    for user in ["alice", "mirela"] {
        let Some(Reply::Booking(shown)) =
            booking([]).by_user(user).when(Command::Get).decision().reply
        else {
            panic!()
        };
        assert_eq!(shown.id, "bkg_1");
        assert_eq!(shown.provider.name, "Mirela's Chair");
    }
    for command in
        [Command::Get, cancel(), review(5), Command::MarkNoShow, Command::Confirm(agreed().into())]
    {
        booking([]).by_user("bob").when(command.clone()).then_rejected("not_found");
        given::<Booking>([]).by_user("bob").when(command).then_rejected("not_found");
    }
}

#[test]
fn other_entities_send_their_own_part_only() {
    use crate::kernel::entity::{Caller, Principal};
    let from = |caller: Caller, command: Command| {
        let mut it = booking([]);
        it.caller = caller;
        it.when(command).result.is_ok()
    };
    let cancel = || Command::Cancel(BookingCancellation { reason: None });
    let for_consumer = || Command::CancelForConsumer(CancelForConsumer { reason: None });
    assert!(from(Caller::entity("request", "req_1"), cancel()));
    assert!(!from(Caller::entity("request", "req_2"), cancel()), "it made another one");
    assert!(!from(Caller::entity("session", "ses_1"), cancel()));
    assert!(from(Caller::entity("session", "ses_1"), for_consumer()), "of the release before");
    let session = |user: &str| Caller::Entity {
        kind: "session".into(),
        key: "ses_1".into(),
        for_user: Some(Principal::of(user)),
    };
    assert!(from(session("alice"), for_consumer()));
    assert!(!from(session("bob"), for_consumer()));
    assert!(!from(session("mirela"), for_consumer()), "the provider is not the consumer");
    assert!(!from(Caller::entity("provider", "prv_1"), Command::Complete));
    assert!(!from(Caller::entity("provider", "prv_2"), Command::Confirm(agreed().into())));
}

#[test]
fn users_cannot_send_what_only_the_system_may() {
    let internal = [
        Command::Confirm(agreed().into()),
        Command::Remind { hours_before: 1 },
        Command::Start,
        Command::Complete,
    ];
    for command in internal {
        booking([]).by_user("alice").when(command).then_rejected("internal_only");
    }
}

/// As older releases allowed.
#[test]
fn whoever_booked_themselves_is_told_once_and_reviews_nothing() {
    let own = Agreed { provider_owner_id: "alice".into(), ..agreed() };
    let mut it = given::<Booking>([]).at(at(NOW));
    let decision = it.when(Command::Confirm(own.into())).decision();
    assert_eq!(notified(&decision.effects), ["alice booking:confirmed"]);
    it.when(Command::Complete).decision();
    it.by_user("alice").when(review(5)).then_rejected("own_booking");
}

#[test]
fn the_row_holds_what_is_shown() {
    let it = booking([]);
    let rows = Booking::project("bkg_1", &it.state, &[confirmed()]);
    assert_eq!(rows[0].view, "bookings");
    assert_eq!(rows[0].row["provider_owner_id"], "mirela");
    assert_eq!(rows[0].row["detail"], to_value(&BookingView::of("bkg_1", &it.state)));
    assert_eq!(Booking::project("bkg_1", &it.state, &[]), []);
}

#[test]
fn what_is_not_there_is_shown_as_null() {
    let it = booking([]);
    let shown = to_value(&BookingView::of("bkg_1", &it.state));
    let nulls = shown.as_object().unwrap().iter().filter(|(_, value)| value.is_null());
    assert_eq!(
        nulls.map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["cancellation", "review"]
    );
    assert_eq!(
        serde_json::from_value::<BookingView>(shown).ok(),
        BookingView::of("bkg_1", &it.state)
    );
}
