//! The commands that stand in rows of the outbox and of timers, and travel between nodes: their text stays as it was
//! first written, because other releases write it and read it.

use std::collections::BTreeMap;

use serde_json::{Value, from_value, json};

use super::fixtures::{agreed, asked, eur, hold, lead, offer, profile, scored};
use super::messages::{self as m, Party, Pick, Progress};
use super::offer::{Decline, DeclineReason, OfferSummary};
use super::{booking, provider, request, session};
use crate::kernel::entity::Entity;
use booking::Booking;
use provider::Provider;
use request::Request;
use session::{AskedOf, Session};

/// The command as it is written, which reads as the same command.
fn written<E: Entity>(command: E::Command) -> String
where
    E::Command: PartialEq,
{
    let text = serde_json::to_string(&command).unwrap();
    assert_eq!(serde_json::from_str::<E::Command>(&text).unwrap(), command, "{text}");
    let value = serde_json::to_value(&command).unwrap();
    assert_eq!(from_value::<E::Command>(value).unwrap(), command, "{text}");
    format!("{} {text}", E::KIND)
}

fn to_providers() -> Vec<String> {
    use provider::Command::*;
    let enroll = Enroll { owner_id: "mirela".into(), profile: profile(), standing: None };
    let update = Update {
        patch: serde_json::from_value(json!({"bio": "New."})).unwrap(),
        expected_version: Some(3),
        or_versions: vec![4],
    };
    let commands = [
        enroll,
        update,
        Get,
        ConsiderLead(m::ConsiderLead { lead: lead() }),
        HoldSlot(hold("bkg_1")),
        ReleaseSlot(m::ReleaseSlot { booking_id: "bkg_1".into() }),
        WithdrawOffer(m::DropOffer { offer_id: "off_1".into() }),
        RecordReview(m::RecordReview { booking_id: "bkg_1".into(), stars: 5 }),
    ];
    commands.into_iter().map(written::<Provider>).collect()
}

fn to_requests() -> Vec<String> {
    use request::Command::*;
    let (offer_id, booking_id) = (|| "off_1".to_owned(), || "bkg_1".to_owned());
    let decline = Decline { reason: DeclineReason::OverBudget, lowest_price: Some(eur(4_000)) };
    let commands = [
        Create(asked()),
        AcceptOffer(m::AcceptOffer { offer_id: offer_id() }),
        DeclineOffer { offer_id: offer_id() },
        Cancel(m::RequestCancellation { reason: None }),
        Cancel(m::RequestCancellation { reason: Some("changed".into()) }),
        Get,
        AwaitAcceptance { offer_id: offer_id() },
        AcceptPick(m::AcceptPick { pick: Pick::Best }),
        AcceptPick(m::AcceptPick { pick: Pick::Cheapest }),
        AcceptPick(m::AcceptPick { pick: Pick::Nth(2) }),
        TakeMatches { candidates: vec![scored("prv_1")] },
        MatchFailed { error: "gone".into() },
        RetryMatch,
        ReceiveOffer(m::ReceiveOffer { offer: offer("off_1", "prv_1", 5_000) }),
        ReceiveDecline(m::ReceiveDecline { provider_id: "prv_1".into(), decline }),
        WithdrawOffer(m::WithdrawOffer { offer_id: offer_id(), reason: Some("slot_taken".into()) }),
        HoldRefused(m::HoldRefused {
            offer_id: offer_id(),
            booking_id: booking_id(),
            reason: "slot_taken".into(),
        }),
        BookingConfirmed(m::BookingConfirmed { booking_id: booking_id(), offer_id: offer_id() }),
        BookingCancelled(m::BookingCancelled { booking_id: booking_id(), by: Party::Consumer }),
        BookingCancelled(m::BookingCancelled { booking_id: booking_id(), by: Party::Provider }),
        BookingCancelled(m::BookingCancelled { booking_id: booking_id(), by: Party::System }),
        ExpireOffer { offer_id: offer_id() },
        AcceptanceOverdue { booking_id: booking_id() },
        AbandonAcceptance { booking_id: booking_id(), reason: "no_answer".into() },
        Expire,
    ];
    commands.into_iter().map(written::<Request>).collect()
}

fn to_bookings() -> Vec<String> {
    use booking::Command::*;
    let commands = [
        Confirm(agreed().into()),
        Cancel(m::BookingCancellation { reason: Some("ill".into()) }),
        CancelForConsumer(m::CancelForConsumer { reason: None }),
        Review { rating: 5, comment: None },
        MarkNoShow,
        Get,
        Remind { hours_before: 24 },
        Start,
        Complete,
    ];
    commands.into_iter().map(written::<Booking>).collect()
}

fn to_sessions() -> Vec<String> {
    use session::Command::*;
    let summary = || OfferSummary::of(&offer("off_1", "prv_1", 5_000), "Europe/Berlin");
    let progress = [
        Progress::Matched { providers: 3 },
        Progress::FirstOffer { offer: summary() },
        Progress::AllAnswered { offers: 1, cheapest: summary(), open: vec![summary()] },
        Progress::Unmatched {
            reason: "all_declined".into(),
            reasons: BTreeMap::from([(DeclineReason::OverBudget, 2)]),
            lowest_price: Some(eur(4_000)),
        },
        Progress::OfferRefused { offers: 1, reason: "slot_taken".into() },
        Progress::Booked { booking_id: "bkg_1".into(), offer: summary() },
        Progress::Cancelled,
        Progress::Expired,
        Progress::BookingCancelled { by: Party::Provider, offer: Some(summary()) },
    ];
    let progress = progress.into_iter().map(|progress| {
        RequestProgress(m::RequestProgress { request_id: "req_1".into(), progress })
    });
    let refused = AskedOf::CancelBooking;
    let others = [
        Open { time_zone: "Europe/Berlin".into(), locale: "de".into(), currency: None },
        SendMessage { content: "hello".into(), media: Vec::new() },
        Typing { is_typing: true },
        Close { end: true },
        Publish { event: "demo".into(), data: json!({"n": 1}) },
        RequestRefused { request_id: "req_1".into(), asked: refused, reason: "too_late".into() },
    ];
    others.into_iter().chain(progress).map(written::<Session>).collect()
}

#[test]
fn commands_are_written_as_they_always_were() {
    let all = [to_providers(), to_requests(), to_bookings(), to_sessions()].concat();
    let before: Vec<&str> = include_str!("golden/commands.txt").lines().collect();
    for (now, before) in all.iter().zip(&before) {
        assert_eq!(now, before);
    }
    assert_eq!(all.len(), before.len());
}

#[test]
fn what_older_releases_wrote_is_read() {
    let read = |command: Value| from_value::<request::Command>(command).unwrap();
    let offer_id = "off_1".to_owned();
    assert_eq!(
        read(json!({"WithdrawOffer": {"offer_id": "off_1"}})),
        request::Command::WithdrawOffer(m::WithdrawOffer { offer_id, reason: None })
    );
    let refused = json!({"RequestProgress": {
        "request_id": "req_1",
        "progress": {"OfferRefused": {"offers": 1}},
    }});
    let progress = Progress::OfferRefused { offers: 1, reason: String::new() };
    assert_eq!(
        from_value::<session::Command>(refused).unwrap(),
        session::Command::RequestProgress(m::RequestProgress {
            request_id: "req_1".into(),
            progress
        })
    );
}

#[test]
fn what_is_not_known_is_an_error_that_names_it() {
    fn error<E: Entity>(command: Value) -> String {
        from_value::<E::Command>(command).unwrap_err().to_string()
    }
    let unknown = json!({"Teleport": {"to": "Berlin"}});
    for error in [
        error::<Provider>(unknown.clone()),
        error::<Request>(unknown.clone()),
        error::<Booking>(unknown.clone()),
        error::<Session>(unknown),
    ] {
        assert!(error.starts_with("unknown variant `Teleport`"), "{error}");
    }
    let error = error::<Provider>(json!({"ReleaseSlot": {}}));
    assert_eq!(error, "missing field `booking_id`");
}
