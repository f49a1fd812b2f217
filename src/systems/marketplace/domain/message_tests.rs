//! What stands in rows of the outbox and of timers: its text stays as it was first written, because other releases
//! write it and read it.

use std::collections::BTreeMap;

use serde_json::{Value, from_value, json};

use super::fixtures::{agreed, asked, eur, hold, lead, offer};
use super::messages::{
    self, AcceptOffer, AcceptPick, AskFor, BookingCancellation, BookingCancelled, BookingConfirmed,
    CancelForConsumer, ConsiderLead, DropOffer, HoldRefused, Party, Pick, Progress, ReceiveDecline,
    ReceiveOffer, RecordReview, ReleaseSlot, RequestCancellation, RequestProgress, RequestTold,
    WithdrawOffer,
};
use super::offer::{Decline, DeclineReason, OfferSummary, OfferView};
use super::service::Service;
use super::{booking, provider, request, session, task};
use crate::kernel::entity::Entity;
use crate::kernel::entity::spec::{is_golden, sent, stored};
use booking::Booking;
use provider::Provider;
use request::Request;
use session::Session;
use task::Task;

fn to_providers() -> Vec<String> {
    vec![
        sent::<Provider>(&ConsiderLead { lead: lead() }),
        sent::<Provider>(&hold("bkg_1")),
        sent::<Provider>(&ReleaseSlot { booking_id: "bkg_1".into() }),
        sent::<Provider>(&DropOffer { offer_id: "off_1".into() }),
        sent::<Provider>(&RecordReview { booking_id: "bkg_1".into(), stars: 5 }),
        stored::<Provider>(&provider::Command::LeadOverdue { request_id: "req_1".into() }),
    ]
}

fn to_requests() -> Vec<String> {
    use request::Command::{AcceptanceOverdue, Expire, ExpireOffer, RetryMatch};
    let (offer_id, booking_id) = (|| "off_1".to_owned(), || "bkg_1".to_owned());
    let decline = Decline { reason: DeclineReason::OverBudget, lowest_price: Some(eur(4_000)) };
    let cancelled = |by| sent::<Request>(&BookingCancelled { booking_id: booking_id(), by });
    let reason = || "slot_taken".to_owned();
    vec![
        sent::<Request>(&asked()),
        sent::<Request>(&AskFor {
            asked: asked(),
            provider_id: Some("prv_1".into()),
            task_id: "task_1".into(),
        }),
        sent::<Request>(&AcceptOffer { offer_id: offer_id() }),
        sent::<Request>(&RequestCancellation { reason: None }),
        sent::<Request>(&RequestCancellation { reason: Some("changed".into()) }),
        sent::<Request>(&AcceptPick { pick: Pick::Best }),
        sent::<Request>(&AcceptPick { pick: Pick::Cheapest }),
        sent::<Request>(&AcceptPick { pick: Pick::Nth(2) }),
        sent::<Request>(&ReceiveOffer { offer: offer("off_1", "prv_1", 5_000) }),
        sent::<Request>(&ReceiveDecline { provider_id: "prv_1".into(), decline }),
        sent::<Request>(&WithdrawOffer { offer_id: offer_id(), reason: Some(reason()) }),
        sent::<Request>(&HoldRefused {
            offer_id: offer_id(),
            booking_id: booking_id(),
            reason: reason(),
        }),
        sent::<Request>(&BookingConfirmed { booking_id: booking_id(), offer_id: offer_id() }),
        cancelled(Party::Consumer),
        cancelled(Party::Provider),
        cancelled(Party::System),
        stored::<Request>(&RetryMatch),
        stored::<Request>(&ExpireOffer { offer_id: offer_id() }),
        stored::<Request>(&AcceptanceOverdue { booking_id: booking_id() }),
        stored::<Request>(&Expire),
    ]
}

fn to_bookings() -> Vec<String> {
    use booking::Command::{Complete, Remind, Start};
    vec![
        sent::<Booking>(&agreed()),
        sent::<Booking>(&BookingCancellation { reason: Some("ill".into()) }),
        sent::<Booking>(&CancelForConsumer { reason: None }),
        stored::<Booking>(&Remind { hours_before: 24 }),
        stored::<Booking>(&Start),
        stored::<Booking>(&Complete),
    ]
}

fn to_sessions() -> Vec<String> {
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
    let told = progress.map(|progress| RequestProgress {
        request_id: "req_1".into(),
        progress,
        service: None,
    });
    let service = Some(Service::Haircut);
    let (request_id, progress) = ("req_1".into(), Progress::Expired);
    let of_an_agent = RequestProgress { request_id, progress, service };
    told.iter().chain([&of_an_agent]).map(sent::<Session>).collect()
}

fn to_tasks() -> Vec<String> {
    let offer = OfferView::new("req_1", &offer("off_1", "prv_1", 5_000), None);
    let progress = Progress::Matched { providers: 1 };
    let told =
        RequestTold { request_id: "req_1".into(), progress, offers: vec![offer], pending: 1 };
    vec![sent::<Task>(&told)]
}

#[test]
fn what_stands_in_rows_is_written_as_it_always_was() {
    let now = [to_providers(), to_requests(), to_bookings(), to_sessions(), to_tasks()].concat();
    is_golden(&now, include_str!("golden/commands.txt"), messages::ALL);
}

#[test]
fn what_older_releases_wrote_is_read() {
    let read = |command: Value| from_value::<request::Command>(command).unwrap();
    let offer_id = "off_1".to_owned();
    assert_eq!(
        read(json!({"WithdrawOffer": {"offer_id": "off_1"}})),
        request::Command::WithdrawOffer(WithdrawOffer { offer_id, reason: None })
    );
    let refused = json!({"RequestProgress": {
        "request_id": "req_1",
        "progress": {"OfferRefused": {"offers": 1}},
    }});
    let progress = Progress::OfferRefused { offers: 1, reason: String::new() };
    assert_eq!(
        from_value::<session::Command>(refused).unwrap(),
        session::Command::RequestProgress(RequestProgress {
            request_id: "req_1".into(),
            progress,
            service: None
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
