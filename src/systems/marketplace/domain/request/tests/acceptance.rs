use super::*;

#[test]
fn the_provider_is_asked_to_hold_the_time() {
    let mut it = request(open()).by_user("alice");
    let decision = it.when(accept("off_1")).decision();
    let booking_id = IdSource::new(at(NOW), 1).mint("bkg");
    let started = Event::AcceptanceStarted {
        offer_id: "off_1".into(),
        booking_id: booking_id.clone(),
        at: at(NOW),
    };
    assert_eq!(decision.events, [started]);
    assert_eq!(decision.reply, Some(Reply::Accepting { booking_id: booking_id.clone() }));
    let (key, hold) = &sent(&decision.effects, "provider")[0];
    assert_eq!(key, "prv_1");
    assert_eq!(hold["HoldSlot"]["booking_id"], json!(booking_id));
    assert_eq!(hold["HoldSlot"]["price"], json!(eur(5_000)));
    assert_eq!(timers(&decision.effects), [("acceptance", "2026-01-12T08:01:00Z".into())]);
}

#[test]
fn accepting_again_is_the_same_acceptance_and_another_is_a_conflict() {
    let mut it = request(open_and(accepting("off_1"))).by_user("alice");
    let decision = it.when(accept("off_1")).then([]);
    assert_eq!(decision.reply, Some(Reply::Accepting { booking_id: "bkg_1".into() }));
    assert_eq!(decision.effects, []);
    it.when(accept("off_2")).then_rejected("already_accepting");
    it.when(Command::Cancel(RequestCancellation { reason: None }))
        .then_rejected("already_accepting");
    Request::evolve(&mut it.state, &booked("off_1"));
    let decision = it.when(accept("off_1")).then([]);
    assert_eq!(decision.reply, Some(Reply::Accepted { booking_id: "bkg_1".into() }));
    it.when(accept("off_2")).then_rejected("already_booked");
    it.when(Command::Cancel(RequestCancellation { reason: None })).then_rejected("already_booked");
}

#[test]
fn only_the_consumer_accepts_and_only_what_stands() {
    request(open()).by_user("bob").when(accept("off_1")).then_rejected("not_found");
    request(open()).by_user("alice").when(accept("off_9")).then_rejected("offer_not_found");
    let mut late = request(open()).by_user("alice").at(at("2026-01-12T08:30:00Z"));
    late.when(accept("off_1")).then_rejected("offer_expired");
    let cancelled = open_and(Event::Cancelled { reason: None, at: at(NOW) });
    request(cancelled).by_user("alice").when(accept("off_1")).then_rejected("request_closed");
}

#[test]
fn the_agent_accepts_what_the_user_means() {
    let picked = |pick| {
        let decision = request(open()).when(Command::AcceptPick(AcceptPick { pick })).decision();
        let Event::AcceptanceStarted { offer_id, .. } = &decision.events[0] else { panic!() };
        offer_id.clone()
    };
    assert_eq!(picked(Pick::Cheapest), "off_2");
    assert_eq!(picked(Pick::Best), "off_1");
    assert_eq!(picked(Pick::Nth(2)), "off_2");
    for pick in [Pick::Nth(0), Pick::Nth(3)] {
        request(open()).when(Command::AcceptPick(AcceptPick { pick })).then_rejected("no_offers");
    }
    request([created()])
        .when(Command::AcceptPick(AcceptPick { pick: Pick::Best }))
        .then_rejected("no_offers");
}

#[test]
fn a_confirmed_booking_closes_the_request_and_withdraws_the_others() {
    let mut it = request(open_and(accepting("off_1")));
    let decision = it.when(booking_confirmed()).then([booked("off_1")]);
    assert_eq!(it.state.status, Status::Booked);
    assert_eq!(status_of(&it, "off_1"), OfferStatus::Accepted);
    assert_eq!(status_of(&it, "off_2"), OfferStatus::Withdrawn);
    let withdrawn = sent(&decision.effects, "provider");
    assert_eq!(withdrawn, [("prv_2".into(), json!({"WithdrawOffer": {"offer_id": "off_2"}}))]);
    let notes = notified(&decision.effects);
    assert_eq!(notes, ["alice request:updated", "alice offer:updated", "alice offer:updated"]);
    let told = &sent(&decision.effects, "session")[0].1["RequestProgress"]["progress"];
    assert_eq!(told["Booked"]["booking_id"], "bkg_1");
    assert_eq!(
        cancelled(&decision.effects),
        ["acceptance", "expiry", "offer:off_1", "offer:off_2"]
    );
    // Told twice, it has happened once.
    assert_eq!(it.when(booking_confirmed()).then([]).effects, []);
}

#[test]
fn a_refused_hold_leaves_the_other_offers() {
    let mut it = request(open_and(accepting("off_1")));
    let decision = it.when(hold_refused()).then([refused("off_1")]);
    assert_eq!(it.state.status, Status::Open);
    assert_eq!(status_of(&it, "off_1"), OfferStatus::Unavailable);
    assert_eq!(notified(&decision.effects), ["alice request:updated", "alice offer:updated"]);
    let told = &sent(&decision.effects, "session")[0].1["RequestProgress"]["progress"];
    assert_eq!(told["OfferRefused"], json!({"offers": 1, "reason": "slot_taken"}));
    it = it.by_user("alice");
    it.when(accept("off_1")).then_rejected("slot_taken");
    it.when(accept("off_2")).decision();
}

#[test]
fn why_an_offer_was_refused_is_said() {
    for (reason, word) in [
        ("slot_taken", "slot_taken"),
        ("calendar_full", "slot_taken"),
        ("offer_expired", "offer_expired"),
        ("own_provider", "own_provider"),
        ("offer_withdrawn", "offer_withdrawn"),
        ("no_answer", "offer_withdrawn"),
    ] {
        let refusal = Event::AcceptanceRefused {
            offer_id: "off_1".into(),
            booking_id: "bkg_1".into(),
            reason: reason.into(),
            at: at(NOW),
        };
        let events = [open(), vec![accepting("off_1"), refusal]].concat();
        let mut it = request(events).by_user("alice");
        it.when(accept("off_1")).then_rejected(word);
        it.when(Command::AwaitAcceptance { offer_id: "off_1".into() }).then_rejected(word);
    }
}

#[test]
fn a_refused_hold_of_the_only_offer_ends_the_search() {
    let mut it = request([
        created(),
        matched(&["prv_1"]),
        offered("off_1", "prv_1", 5_000),
        accepting("off_1"),
    ]);
    it.when(hold_refused()).decision();
    assert_eq!(it.state.status, Status::Unmatched);
    assert_eq!(it.state.reason.as_deref(), Some("slot_taken"));
    let wait = Command::AwaitAcceptance { offer_id: "off_1".into() };
    it.by_user("alice").when(wait).then_rejected("slot_taken");
}

#[test]
fn the_end_of_an_acceptance_can_be_awaited() {
    let wait = |id: &str| Command::AwaitAcceptance { offer_id: id.into() };
    let mut it = request(open_and(accepting("off_1"))).by_user("alice");
    assert_eq!(it.when(wait("off_1")).decision().reply, None);
    it.when(wait("off_2")).then_rejected("not_accepting");
    Request::evolve(&mut it.state, &booked("off_1"));
    let reply = it.when(wait("off_1")).decision().reply;
    assert_eq!(reply, Some(Reply::Accepted { booking_id: "bkg_1".into() }));
    it.when(wait("off_2")).then_rejected("already_booked");
    it.when(wait("off_9")).then_rejected("offer_not_found");
    let refused = [open(), vec![accepting("off_1"), refused("off_1")]].concat();
    request(refused).by_user("alice").when(wait("off_1")).then_rejected("slot_taken");
    assert!(Request::is_query(&wait("off_1")));
}

#[test]
fn an_acceptance_without_answer_is_asked_again_then_given_up_and_undone() {
    let overdue = || Command::AcceptanceOverdue { booking_id: "bkg_1".into() };
    let mut it = request(open_and(accepting("off_1")));
    for _ in 0..2 {
        let decision = it.when(overdue()).decision();
        assert!(sent(&decision.effects, "provider")[0].1.get("HoldSlot").is_some());
        assert_eq!(timers(&decision.effects).len(), 1);
    }
    let decision = it.when(overdue()).decision();
    let release = json!({"ReleaseSlot": {"booking_id": "bkg_1"}});
    assert_eq!(sent(&decision.effects, "provider"), [("prv_1".into(), release)]);
    assert_eq!(
        (it.state.status, status_of(&it, "off_1")),
        (Status::Open, OfferStatus::Unavailable)
    );
    // The answer comes after all: the booking must not stand.
    let decision = it.when(booking_confirmed()).then([]);
    assert!(sent(&decision.effects, "booking")[0].1.get("Cancel").is_some());
    it.when(overdue()).then([]);
}

/// The provider's calendar in the database had the last word.
#[test]
fn a_hold_that_is_refused_with_a_reason_is_given_up_for_it() {
    let mut it = request(open()).by_user("alice");
    let decision = it.when(accept("off_1")).decision();
    let (key, command) = sent(&decision.effects, "provider").remove(0);
    let failure =
        SendFailure { kind: "provider".into(), key, command, reason: "slot_taken".into() };
    it.caller = crate::kernel::entity::Caller::Runtime;
    it.when(Request::send_failed(failure).unwrap()).decision();
    it.by_user("alice").when(accept("off_1")).then_rejected("slot_taken");
}

#[test]
fn a_hold_that_cannot_be_delivered_is_given_up() {
    let mut it = request(open()).by_user("alice");
    let decision = it.when(accept("off_1")).decision();
    let (key, command) = sent(&decision.effects, "provider").remove(0);
    let failure =
        SendFailure { kind: "provider".into(), key, command, reason: "dead_letter".into() };
    let command = Request::send_failed(failure).unwrap();
    it.caller = crate::kernel::entity::Caller::Runtime;
    let decision = it.when(command).decision();
    assert!(matches!(decision.events[..], [Event::AcceptanceRefused { .. }]));
    assert!(sent(&decision.effects, "provider")[0].1.get("ReleaseSlot").is_some());
}

#[test]
fn the_accepted_offer_does_not_expire_meanwhile() {
    let mut it = request(open_and(accepting("off_1")));
    it.when(Command::ExpireOffer { offer_id: "off_1".into() }).then([]);
    let decision = it.when(Command::Expire).then([]);
    assert_eq!(timers(&decision.effects), [("expiry", "2026-01-12T08:01:00Z".into())]);
}
