use serde_json::json;

use super::*;
use crate::kernel::entity::spec::{Given, given};
use crate::kernel::ids::IdSource;
use crate::systems::marketplace::domain::fixtures::{
    NOW, asked, at, cancelled, card, eur, five_pm, notified, offer, scored, sent, timers,
};

mod acceptance;

fn created() -> Event {
    Event::Created { asked: asked(), at: at(NOW) }
}

fn matched(providers: &[&str]) -> Event {
    let provider_ids = providers.iter().map(|id| (*id).into()).collect();
    Event::ProvidersMatched { provider_ids, at: at(NOW) }
}

fn offered(id: &str, provider: &str, price: i64) -> Event {
    Event::OfferReceived { offer: offer(id, provider, price), at: at(NOW) }
}

fn accepting(offer_id: &str) -> Event {
    Event::AcceptanceStarted { offer_id: offer_id.into(), booking_id: "bkg_1".into(), at: at(NOW) }
}

fn refused(offer_id: &str) -> Event {
    Event::AcceptanceRefused {
        offer_id: offer_id.into(),
        booking_id: "bkg_1".into(),
        reason: "slot_taken".into(),
        at: at(NOW),
    }
}

fn booked(offer_id: &str) -> Event {
    Event::Booked { offer_id: offer_id.into(), booking_id: "bkg_1".into(), at: at(NOW) }
}

fn request(events: impl IntoIterator<Item = Event>) -> Given<Request> {
    given::<Request>(events).at(at(NOW)).key("req_1")
}

/// Two providers have offered: `off_1` for 50.00 and `off_2` for 45.00.
fn open() -> Vec<Event> {
    vec![
        created(),
        matched(&["prv_1", "prv_2"]),
        offered("off_1", "prv_1", 5_000),
        offered("off_2", "prv_2", 4_500),
    ]
}

fn open_and(more: Event) -> Vec<Event> {
    let mut events = open();
    events.push(more);
    events
}

fn accept(offer_id: &str) -> Command {
    Command::AcceptOffer(AcceptOffer { offer_id: offer_id.into() })
}

fn declined(provider: &str, reason: DeclineReason, lowest: Option<i64>) -> Command {
    let decline = Decline { reason, lowest_price: lowest.map(eur) };
    Command::ReceiveDecline(ReceiveDecline { provider_id: provider.into(), decline })
}

fn hold_refused() -> Command {
    Command::HoldRefused(HoldRefused {
        offer_id: "off_1".into(),
        booking_id: "bkg_1".into(),
        reason: "slot_taken".into(),
    })
}

fn booking_confirmed() -> Command {
    Command::BookingConfirmed(BookingConfirmed {
        booking_id: "bkg_1".into(),
        offer_id: "off_1".into(),
    })
}

fn status_of(given: &Given<Request>, offer_id: &str) -> OfferStatus {
    given.state.offer(offer_id).unwrap().status
}

#[test]
fn a_request_has_a_few_photos_and_the_node_alone_learns_who_sees_them() {
    let with = |n: usize| Command::CreateWithPhotos {
        asked: asked(),
        photos: (0..n).map(|n| format!("pho_{n}")).collect(),
    };
    let made = request([]).by_user("alice").when(with(MAX_PHOTOS)).decision();
    let Some(Reply::Request(shown)) = made.reply else { panic!("{:?}", made.reply) };
    assert_eq!(shown.photos.len(), MAX_PHOTOS);
    request([]).by_user("alice").when(with(MAX_PHOTOS + 1)).then_rejected("invalid");
    let who = || Command::WhoWasAsked;
    request(open()).by_user("alice").when(who()).then_rejected("internal_only");
    request(open()).by_user("bob").when(who()).then_rejected("not_found");
    let told = request(open()).when(who()).decision();
    let provider_ids = vec!["prv_1".into(), "prv_2".into()];
    assert_eq!(told.reply, Some(Reply::Asked { provider_ids }));
}

mod creation {
    use super::*;

    #[test]
    fn a_request_is_matched_and_expires_after_a_day() {
        let decision =
            request([]).by_user("alice").when(Command::Create(asked())).then([created()]);
        let effects = &decision.effects;
        assert!(matches!(&effects[0], Effect::Run { runner: "match_providers", input, .. }
            if input["service"] == "haircut" && input["budget"]["amount_minor"] == 6_000));
        assert_eq!(timers(effects), [("expiry", "2026-01-13T08:00:00Z".into())]);
        assert_eq!(notified(effects), ["alice request:updated"]);
        let Some(Reply::Request(shown)) = decision.reply else { panic!() };
        assert_eq!((shown.id.as_str(), shown.status), ("req_1", Status::Matching));
    }

    #[test]
    fn it_expires_at_the_latest_wanted_time_where_that_is_sooner() {
        let mut soon = asked();
        soon.when.earliest = at("2026-01-12T07:00:00Z");
        soon.when.latest = at("2026-01-12T10:00:00Z");
        let decision = request([]).when(Command::Create(soon)).decision();
        assert_eq!(timers(&decision.effects), [("expiry", "2026-01-12T10:00:00Z".into())]);
        // A window that has begun begins now.
        let Event::Created { asked, .. } = &decision.events[0] else { panic!() };
        assert_eq!(asked.when.earliest, at(NOW));
    }

    #[track_caller]
    fn invalid(change: impl FnOnce(&mut Asked), pointer: &str) {
        let mut bad = asked();
        change(&mut bad);
        match request([]).by_user("alice").when(Command::Create(bad)).result {
            Err(Rejection::Invalid { errors }) => {
                assert!(errors.iter().any(|e| e.pointer == pointer), "{errors:?}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        invalid(|a| a.when.latest = at("2026-01-12T07:59:00Z"), "/when/latest");
        invalid(|a| a.when.earliest = at("2026-01-13T16:01:00Z"), "/when/latest");
        invalid(|a| a.when.latest = at("2026-08-01T00:00:00Z"), "/when/latest");
        invalid(|a| a.place.latitude = 90.1, "/place/latitude");
        invalid(|a| a.place.longitude = f64::NAN, "/place/longitude");
        invalid(|a| a.place.time_zone = "Europe/Nowhere".into(), "/place/time_zone");
        invalid(|a| a.time_zone = "CEST!".into(), "/time_zone");
        invalid(|a| a.budget = Some(eur(0)), "/budget/amount_minor");
        invalid(
            |a| a.budget = Some(Money { currency: "euro".into(), ..eur(1) }),
            "/budget/currency",
        );
        invalid(|a| a.details = "x".repeat(2_001), "/details");
        for trick in ["\0", "\u{1b}", "\u{202E}"] {
            invalid(|a| a.details = trick.into(), "/details");
            invalid(|a| a.place.name.push_str(trick), "/place/name");
        }
        invalid(|a| a.place.city.push('\n'), "/place/city");
    }

    #[test]
    fn what_the_agent_heard_is_made_a_text() {
        let mut heard = asked();
        heard.details = "a haircut\r\nwith\ta wash\u{202E}".into();
        let decision = request([]).when(Command::Create(heard)).decision();
        let Event::Created { asked, .. } = &decision.events[0] else { panic!() };
        assert_eq!(asked.details, "a haircut\nwith a wash ");
    }

    #[test]
    fn nobody_asks_in_anothers_name_or_twice() {
        request([]).by_user("bob").when(Command::Create(asked())).then_rejected("not_yours");
        let mut again = request([created()]).by_user("alice");
        again.when(Command::Create(asked())).then_rejected("already_exists");
        request([created()])
            .by_user("bob")
            .when(Command::Create(asked()))
            .then_rejected("not_found");
    }
}

mod matching_runs {
    use super::*;

    #[test]
    fn the_best_eight_are_asked() {
        let candidates = (1..=10).map(|n| scored(&format!("prv_{n}"))).collect();
        let decision = request([created()]).when(Command::TakeMatches { candidates }).decision();
        let leads = sent(&decision.effects, "provider");
        assert_eq!(leads.len(), MAX_LEADS);
        assert_eq!(leads[0].0, "prv_1");
        assert_eq!(leads[0].1["ConsiderLead"]["lead"]["request_id"], "req_1");
        let told = sent(&decision.effects, "session");
        assert_eq!(told[0].0, "ses_1");
        assert_eq!(told[0].1["RequestProgress"]["progress"]["Matched"]["providers"], 8);
    }

    #[test]
    fn a_second_outcome_asks_nobody() {
        let again = Command::TakeMatches { candidates: vec![scored("prv_3")] };
        let decision = request([created(), matched(&["prv_1"])]).when(again).then([]);
        assert_eq!(decision.effects, []);
    }

    #[test]
    fn without_candidates_the_request_is_unmatched() {
        let decision = request([created()])
            .when(Command::TakeMatches { candidates: vec![] })
            .then([Event::Unmatched { reason: "no_providers".into(), at: at(NOW) }]);
        assert_eq!(notified(&decision.effects), ["alice request:updated"]);
        assert_eq!(sent(&decision.effects, "session").len(), 1);
        assert_eq!(cancelled(&decision.effects), ["expiry"]);
    }

    #[test]
    fn a_failed_run_is_repeated_once() {
        let failed = || Command::MatchFailed { error: "gone".into() };
        let mut it = request([created()]);
        let decision = it.when(failed()).decision();
        assert_eq!(timers(&decision.effects), [("match_retry", "2026-01-12T08:00:05Z".into())]);
        let decision = it.when(Command::RetryMatch).then([]);
        assert!(matches!(decision.effects[..], [Effect::Run { .. }]));
        it.when(failed()).decision();
        assert_eq!(it.state.status, Status::Unmatched);
        assert_eq!(it.state.reason.as_deref(), Some("matching_unavailable"));
    }

    #[test]
    fn outcomes_come_back_as_commands() {
        let outcome =
            |result| RunOutcome { runner: "match_providers".into(), tag: "match".into(), result };
        let candidates = vec![scored("prv_1")];
        let good = json!({"candidates": candidates});
        assert_eq!(
            Request::run_finished(outcome(Ok(good))),
            Some(Command::TakeMatches { candidates })
        );
        for bad in [Ok(json!({})), Err("x".into())] {
            let command = Request::run_finished(outcome(bad));
            assert!(matches!(command, Some(Command::MatchFailed { .. })));
        }
    }
}

mod offers {
    use super::*;

    #[test]
    fn the_first_offer_opens_the_request() {
        let mut it = request([created(), matched(&["prv_1", "prv_2"])]);
        let command = Command::ReceiveOffer(ReceiveOffer { offer: offer("off_1", "prv_1", 5_000) });
        let decision = it.when(command).then([offered("off_1", "prv_1", 5_000)]);
        assert_eq!(it.state.status, Status::Open);
        assert_eq!(notified(&decision.effects), ["alice request:updated", "alice offer:new"]);
        assert_eq!(timers(&decision.effects), [("offer:off_1", "2026-01-12T08:30:00Z".into())]);
        let told = sent(&decision.effects, "session");
        let first = &told[0].1["RequestProgress"]["progress"]["FirstOffer"]["offer"];
        assert_eq!((told.len(), &first["offer_id"]), (1, &json!("off_1")));
    }

    #[test]
    fn an_offer_is_shown_with_its_provider_and_the_parts_of_its_score() {
        let mut it = request([created(), matched(&["prv_1"])]);
        let command = Command::ReceiveOffer(ReceiveOffer { offer: offer("off_1", "prv_1", 5_000) });
        let decision = it.when(command).decision();
        let new = decision.effects.iter().find_map(|effect| match effect {
            Effect::Notify { publication, .. } if publication.event == "offer:new" => {
                Some(&publication.data)
            }
            _ => None,
        });
        let expected = json!({
            "request_id": "req_1",
            "offer": {
                "id": "off_1", "request_id": "req_1", "provider": card("prv_1"), "price": eur(5_000),
                "starts_at": "2026-01-13T16:00:00Z", "ends_at": "2026-01-13T16:45:00Z", "message": "Gladly.",
                "score": crate::systems::marketplace::domain::fixtures::score(), "status": "open",
                "created_at": NOW, "expires_at": "2026-01-12T08:30:00Z", "booking_id": null,
            },
        });
        assert_eq!(new, Some(&expected));
        assert_eq!(expected["offer"]["score"]["parts"]["location"], 0.75);
    }

    #[test]
    fn when_all_have_answered_the_session_hears_of_the_cheapest() {
        let mut events = open();
        events.pop();
        let command = Command::ReceiveOffer(ReceiveOffer { offer: offer("off_2", "prv_2", 4_500) });
        let decision = request(events).when(command).decision();
        let told = &sent(&decision.effects, "session")[0].1["RequestProgress"]["progress"];
        assert_eq!(told["AllAnswered"]["offers"], 2);
        assert_eq!(told["AllAnswered"]["cheapest"]["offer_id"], "off_2");
        assert_eq!(notified(&decision.effects), ["alice offer:new"]);
    }

    #[test]
    fn only_who_was_asked_may_offer_and_only_once() {
        let stranger = Command::ReceiveOffer(ReceiveOffer { offer: offer("off_3", "prv_3", 1) });
        request(open()).when(stranger).then_rejected("not_asked");
        let again = Command::ReceiveOffer(ReceiveOffer { offer: offer("off_3", "prv_1", 1) });
        request(open()).when(again).then([]);
        request(open())
            .when(declined("prv_9", DeclineReason::NoSkill, None))
            .then_rejected("not_asked");
    }

    #[test]
    fn an_offer_that_comes_too_late_is_withdrawn() {
        let cancelled = Event::Cancelled { reason: None, at: at(NOW) };
        let mut it = request([created(), matched(&["prv_1"]), cancelled]);
        let late = Command::ReceiveOffer(ReceiveOffer { offer: offer("off_1", "prv_1", 5_000) });
        let decision = it.when(late).then([]);
        let to_provider = sent(&decision.effects, "provider");
        assert_eq!(
            to_provider,
            [("prv_1".into(), json!({"WithdrawOffer": {"offer_id": "off_1"}}))]
        );
    }

    #[test]
    fn when_all_decline_the_reasons_are_told() {
        let mut it = request([created(), matched(&["prv_1", "prv_2", "prv_3"])]);
        it.when(declined("prv_1", DeclineReason::OverBudget, Some(7_000))).decision();
        it.when(declined("prv_2", DeclineReason::OverBudget, Some(6_500))).decision();
        let decision = it.when(declined("prv_3", DeclineReason::NotAvailable, None)).decision();
        assert_eq!(it.state.status, Status::Unmatched);
        let told =
            &sent(&decision.effects, "session")[0].1["RequestProgress"]["progress"]["Unmatched"];
        assert_eq!(told["reason"], "all_declined");
        assert_eq!(told["reasons"], json!({"over_budget": 2, "not_available": 1}));
        assert_eq!(told["lowest_price"], json!(eur(6_500)));
    }

    #[test]
    fn a_provider_that_cannot_be_reached_has_declined() {
        let lead = crate::systems::marketplace::domain::fixtures::lead();
        let command = Effect::send("prv_1", &ConsiderLead { lead });
        let Effect::Send { kind, key, command } = command else { unreachable!() };
        let failure = SendFailure { kind: kind.into(), key, command, reason: "dead_letter".into() };
        let expected = declined("prv_1", DeclineReason::Unreachable, None);
        assert_eq!(Request::send_failed(failure), Some(expected));
    }

    #[test]
    fn offers_expire_and_the_request_with_the_last_of_them() {
        let mut it = request(open());
        let expire = |id: &str| Command::ExpireOffer { offer_id: id.into() };
        let decision = it.when(expire("off_1")).decision();
        assert_eq!(notified(&decision.effects), ["alice offer:updated"]);
        assert_eq!(
            (status_of(&it, "off_1"), it.state.status),
            (OfferStatus::Expired, Status::Open)
        );
        it.when(expire("off_2")).decision();
        assert_eq!(it.state.status, Status::Expired);
        it.when(expire("off_2")).then([]);
    }

    #[test]
    fn a_provider_withdraws_an_offer_whose_time_is_gone() {
        let mut it = request(open()).by_user("alice");
        it.caller = crate::kernel::entity::Caller::Runtime;
        let withdraw = |reason: Option<&str>| {
            Command::WithdrawOffer(WithdrawOffer {
                offer_id: "off_1".into(),
                reason: reason.map(Into::into),
            })
        };
        it.when(withdraw(None)).decision();
        assert_eq!(status_of(&it, "off_1"), OfferStatus::Unavailable);
        it.by_user("alice").when(accept("off_1")).then_rejected("slot_taken");
        let mut it = request(open());
        let decision = it.when(withdraw(Some("offer_withdrawn"))).decision();
        assert_eq!(notified(&decision.effects), ["alice offer:updated"]);
        it.by_user("alice").when(accept("off_1")).then_rejected("offer_withdrawn");
    }

    #[test]
    fn when_all_offers_are_withdrawn_nobody_has_time() {
        let mut it = request([created(), matched(&["prv_1"]), offered("off_1", "prv_1", 5_000)]);
        let reason = Some("offer_withdrawn".into());
        let decision = it
            .when(Command::WithdrawOffer(WithdrawOffer { offer_id: "off_1".into(), reason }))
            .decision();
        let told =
            &sent(&decision.effects, "session")[0].1["RequestProgress"]["progress"]["Unmatched"];
        assert_eq!(told["reason"], "all_declined");
        assert_eq!(told["reasons"], json!({"not_available": 1}));
    }

    #[test]
    fn the_consumer_declines_an_offer() {
        let mut it = request(open()).by_user("alice");
        let decline = || Command::DeclineOffer { offer_id: "off_1".into() };
        let decision = it
            .when(decline())
            .then([Event::OfferDeclined { offer_id: "off_1".into(), at: at(NOW) }]);
        assert_eq!(notified(&decision.effects), ["alice offer:updated"]);
        assert_eq!(sent(&decision.effects, "provider").len(), 1);
        it.when(decline()).then([]);
        it.when(accept("off_1")).then_rejected("offer_declined");
        it.when(Command::DeclineOffer { offer_id: "off_9".into() })
            .then_rejected("offer_not_found");
        it.by_user("bob").when(decline()).then_rejected("not_found");
    }

    #[test]
    fn an_offer_under_acceptance_cannot_be_declined() {
        let mut it = request(open_and(accepting("off_1"))).by_user("alice");
        let decline = |id: &str| Command::DeclineOffer { offer_id: id.into() };
        it.when(decline("off_1")).then_rejected("already_accepting");
        let mut booked = request([open(), vec![accepting("off_1"), booked("off_1")]].concat());
        booked.when(decline("off_1")).then_rejected("request_closed");
        let unavailable =
            open_and(Event::OfferWithdrawn { offer_id: "off_1".into(), reason: None, at: at(NOW) });
        request(unavailable).when(decline("off_1")).then_rejected("slot_taken");
        let expired = open_and(Event::OfferExpired { offer_id: "off_1".into(), at: at(NOW) });
        request(expired).when(decline("off_1")).then_rejected("offer_expired");
    }
}

mod ends {
    use super::*;

    #[test]
    fn the_consumer_cancels() {
        let mut it = request(open()).by_user("alice");
        let cancel =
            || Command::Cancel(RequestCancellation { reason: Some("changed my mind".into()) });
        let decision = it.when(cancel()).decision();
        assert_eq!(it.state.status, Status::Cancelled);
        assert_eq!(sent(&decision.effects, "provider").len(), 2);
        assert_eq!(
            notified(&decision.effects),
            ["alice request:updated", "alice offer:updated", "alice offer:updated"]
        );
        it.when(cancel()).then([]);
        request(open()).by_user("bob").when(cancel()).then_rejected("not_found");
        let long = Command::Cancel(RequestCancellation { reason: Some("x".repeat(501)) });
        request(open()).by_user("alice").when(long).then_rejected("invalid");
    }

    #[test]
    fn it_expires() {
        let mut it = request(open());
        it.when(Command::Expire).then([Event::Expired { at: at(NOW) }]);
        it.when(Command::Expire).then([]);
        it.by_user("alice")
            .when(Command::Cancel(RequestCancellation { reason: None }))
            .then_rejected("request_closed");
    }

    #[test]
    fn the_consumer_looks_at_it_and_nobody_else() {
        let mut it = request(open()).by_user("alice");
        let Some(Reply::Request(shown)) = it.when(Command::Get).decision().reply else { panic!() };
        assert_eq!(shown.offers_count, 2);
        assert_eq!(shown.status, Status::Open);
        it.by_user("bob").when(Command::Get).then_rejected("not_found");
        request([]).by_user("alice").when(Command::Get).then_rejected("not_found");
    }

    #[test]
    fn other_entities_send_their_own_part_only() {
        use crate::kernel::entity::{Caller, Principal};
        let from = |caller: Caller, command: Command| {
            let mut it = request(open());
            it.caller = caller;
            it.when(command).result.is_ok()
        };
        let offer_1 =
            || Command::WithdrawOffer(WithdrawOffer { offer_id: "off_1".into(), reason: None });
        assert!(from(Caller::entity("provider", "prv_1"), offer_1()));
        assert!(!from(Caller::entity("provider", "prv_2"), offer_1()), "it is not theirs");
        assert!(!from(Caller::entity("booking", "prv_1"), offer_1()));
        let declined = || declined("prv_3", DeclineReason::NoSkill, None);
        assert!(!from(Caller::entity("provider", "prv_1"), declined()), "not for somebody else");
        let cancel = || Command::Cancel(RequestCancellation { reason: None });
        let session = |user: &str| Caller::Entity {
            kind: "session".into(),
            key: "ses_1".into(),
            for_user: Some(Principal::of(user)),
        };
        assert!(from(session("alice"), cancel()));
        assert!(!from(session("bob"), cancel()), "whoever speaks in it");
        // Of the release before.
        assert!(from(Caller::entity("session", "ses_1"), cancel()));
        assert!(!from(Caller::entity("session", "ses_2"), cancel()));
        assert!(!from(Caller::entity("session", "ses_1"), Command::Expire));
    }

    #[test]
    fn users_cannot_send_what_only_the_system_may() {
        let internal = [
            Command::AcceptPick(AcceptPick { pick: Pick::Best }),
            Command::TakeMatches { candidates: vec![] },
            Command::MatchFailed { error: String::new() },
            Command::RetryMatch,
            Command::ReceiveOffer(ReceiveOffer { offer: offer("off_1", "prv_1", 1) }),
            declined("prv_1", DeclineReason::NoSkill, None),
            Command::WithdrawOffer(WithdrawOffer { offer_id: "off_1".into(), reason: None }),
            hold_refused(),
            booking_confirmed(),
            Command::ExpireOffer { offer_id: "off_1".into() },
            Command::AcceptanceOverdue { booking_id: "bkg_1".into() },
            Command::AbandonAcceptance { booking_id: "bkg_1".into(), reason: String::new() },
            Command::Expire,
        ];
        for command in internal {
            request(open()).by_user("alice").when(command).then_rejected("internal_only");
        }
    }
}

#[test]
fn rows_follow_the_events() {
    let it = request(open_and(accepting("off_1")));
    let rows = Request::project("req_1", &it.state, &[accepting("off_1")]);
    let views: Vec<_> = rows.iter().map(|row| row.view).collect();
    assert_eq!(views, ["requests", "offers"]);
    assert_eq!(rows[0].row["status"], "accepting");
    assert_eq!(rows[0].row["earliest"], json!(five_pm().earliest));
    let offer = &rows[1].row;
    assert_eq!(offer["booking_id"], "bkg_1");
    assert_eq!((&offer["consumer_id"], &offer["provider_id"]), (&json!("alice"), &json!("prv_1")));
    // The end of a request touches all of its offers.
    assert_eq!(Request::project("req_1", &it.state, &[Event::Expired { at: at(NOW) }]).len(), 3);
    assert_eq!(Request::project("req_1", &it.state, &[]), []);
}
