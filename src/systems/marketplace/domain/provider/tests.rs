use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::kernel::entity::Role;
use crate::kernel::entity::spec::{Given, given};
use crate::systems::marketplace::domain::fixtures::{
    NOW, START, at, eur, five_pm, hold, lead, profile, sent,
};
use crate::systems::marketplace::domain::offer::DeclineReason;
use crate::systems::marketplace::domain::profile::Base;
use crate::systems::marketplace::domain::schedule::{self, GRID_MINUTES};

fn enrolled() -> Event {
    Event::Enrolled {
        owner_id: "mirela".into(),
        profile: profile(),
        standing: Reputation::default(),
        at: at(NOW),
    }
}

fn provider(events: impl IntoIterator<Item = Event>) -> Given<Provider> {
    given::<Provider>(events).at(at(NOW)).key("prv_1")
}

fn enroll() -> Command {
    Command::Enroll { owner_id: "mirela".into(), profile: profile(), standing: None }
}

fn held(booking_id: &str, starts_at: &str) -> Event {
    Event::SlotHeld {
        booking_id: booking_id.into(),
        offer_id: "off_9".into(),
        slot: Span::new(at(starts_at), 45),
        at: at(NOW),
    }
}

fn made(id: &str, request_id: &str, starts_at: &str) -> Event {
    let place = lead().place;
    let job =
        Job { service: Service::Haircut, latitude: place.latitude, longitude: place.longitude };
    let offer = OpenOffer {
        id: id.into(),
        request_id: request_id.into(),
        price: eur(5_000),
        slot: Span::new(at(starts_at), 45),
        expires_at: at("2026-01-12T08:30:00Z"),
        job: Some(job),
    };
    Event::OfferMade { offer, at: at(NOW) }
}

mod enrolment {
    use super::*;
    use crate::kernel::entity::to_value;

    #[test]
    fn a_user_enrols_himself() {
        let decision = provider([]).by_user("mirela").when(enroll()).then([enrolled()]);
        let Some(Reply::Provider(shown)) = decision.reply else { panic!() };
        let shown = to_value(&shown);
        assert_eq!(shown["name"], "Mirela's Chair");
        assert_eq!(shown["services"], json!(["haircut"]));
        assert_eq!(shown["profile"]["weekly"]["monday"][0]["from_minute"], 540);
        assert_eq!((&shown["version"], &shown["rating"]), (&json!(1), &json!(0.0)));
        assert_eq!(shown["response_rate"], 0.9);
        assert_eq!(shown["owner_id"], "mirela");
        let shown: ProviderView = serde_json::from_value(shown).unwrap();
        assert_eq!(to_value(&shown.for_user("alice")).get("owner_id"), None);
    }

    #[test]
    fn not_for_others_not_twice_and_without_a_rating_of_ones_own() {
        provider([]).by_user("bob").when(enroll()).then_rejected("not_yours");
        provider([enrolled()]).by_user("mirela").when(enroll()).then_rejected("already_enrolled");
        let rated = Command::Enroll {
            owner_id: "mirela".into(),
            profile: profile(),
            standing: Some(Reputation { rating: 5.0, reviews: 99, ..Reputation::default() }),
        };
        provider([]).by_user("mirela").when(rated.clone()).then_rejected("internal_only");
        let mut seeded = provider([]);
        seeded.when(rated.clone()).decision();
        assert_eq!(seeded.state.standing.reviews, 99);
        seeded.when(rated).then([]);
    }

    #[track_caller]
    fn invalid(change: impl FnOnce(&mut Profile), pointer: &str) {
        let mut bad = profile();
        change(&mut bad);
        let command = Command::Enroll { owner_id: "mirela".into(), profile: bad, standing: None };
        match provider([]).when(command).result {
            Err(Rejection::Invalid { errors }) => {
                assert!(errors.iter().any(|e| e.pointer == pointer), "{errors:?}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        invalid(|p| p.name = " ".into(), "/profile/name");
        for trick in ["\n", "\u{202E}", "\u{200B}", "\u{2028}", "\u{7}", "\u{FEFF}"] {
            invalid(|p| p.name = format!("Mirela{trick}"), "/profile/name");
            invalid(|p| p.base.city.push_str(trick), "/profile/base/city");
            invalid(|p| p.base.country.push_str(trick), "/profile/base/country");
        }
        invalid(|p| p.bio = "\u{202E}".into(), "/profile/bio");
        invalid(|p| p.bio = "a\tb".into(), "/profile/bio");
        invalid(|p| p.bio = "x".repeat(2_001), "/profile/bio");
        invalid(|p| p.languages = vec!["x".into()], "/profile/languages/0");
        invalid(|p| p.services.clear(), "/profile/services");
        invalid(|p| p.services.push(p.services[0].clone()), "/profile/services/1/service");
        invalid(|p| p.services[0].price = eur(-1), "/profile/services/0/price/amount_minor");
        invalid(|p| p.services[0].duration_minutes = 0, "/profile/services/0/duration_minutes");
        invalid(|p| p.base.latitude = f64::NAN, "/profile/base/latitude");
        invalid(|p| p.base.time_zone = "Mars/Olympus".into(), "/profile/base/time_zone");
        invalid(|p| p.base.time_zone = "America/New_York".into(), "/profile/base/time_zone");
        invalid(|p| p.base.longitude = -74.0, "/profile/base/time_zone");
        invalid(|p| p.radius_km = 0.0, "/profile/radius_km");
        invalid(|p| p.max_discount_percent = 81, "/profile/max_discount_percent");
        invalid(|p| p.minimum_notice_minutes = 20_161, "/profile/minimum_notice_minutes");
        let monday = |p: &mut Profile, from: u16, to: u16| {
            let hours = p.weekly.values_mut().next().unwrap();
            hours.push(crate::systems::marketplace::domain::schedule::Hours {
                from_minute: from,
                to_minute: to,
            });
        };
        invalid(|p| monday(p, 600, 700), "/profile/weekly/monday");
        invalid(|p| monday(p, 1_300, 1_441), "/profile/weekly/monday");
    }

    #[test]
    fn the_owner_updates_the_version_he_saw() {
        let mut it = provider([enrolled()]).by_user("mirela");
        let update = |radius_km, expected_version| Command::Update {
            patch: ProfilePatch { radius_km: Some(radius_km), ..ProfilePatch::default() },
            expected_version,
            or_versions: Vec::new(),
        };
        it.when(update(12.0, Some(2))).then_rejected("version_mismatch");
        let Some(Reply::Provider(shown)) = it.when(update(12.0, Some(1))).decision().reply else {
            panic!()
        };
        assert_eq!((shown.version, shown.radius_km), (2, 12.0));
        it.when(update(12.0, None)).then([]);
        it.when(update(f64::NAN, None)).then_rejected("invalid");
        it.by_user("bob").when(update(1.0, None)).then_rejected("not_yours");
        provider([]).by_user("mirela").when(update(1.0, None)).then_rejected("not_found");
    }

    #[test]
    fn a_base_that_was_taken_stays_until_it_changes() {
        let mut it = provider([enrolled()]).by_user("mirela");
        it.state.profile.as_mut().unwrap().base.time_zone = "America/New_York".into();
        let base = it.state.profile.as_ref().unwrap().base.clone();
        let update =
            |patch| Command::Update { patch, expected_version: None, or_versions: Vec::new() };
        let bio = ProfilePatch { bio: Some("Two\nlines.".into()), ..ProfilePatch::default() };
        it.when(update(bio)).decision();
        let moved = Base { latitude: base.latitude + 0.01, ..base };
        let base = ProfilePatch { base: Some(moved), ..ProfilePatch::default() };
        it.when(update(base)).then_rejected("invalid");
    }

    #[test]
    fn a_profile_is_public() {
        provider([enrolled()]).by_user("bob").when(Command::Get).decision();
        provider([]).by_user("bob").when(Command::Get).then_rejected("not_found");
    }

    #[test]
    fn users_cannot_send_what_only_the_system_may() {
        let internal = [
            Command::ConsiderLead(ConsiderLead { lead: lead() }),
            Command::HoldSlot(hold("bkg_1")),
            Command::ReleaseSlot(ReleaseSlot { booking_id: "bkg_1".into() }),
            Command::WithdrawOffer(DropOffer { offer_id: "off_1".into() }),
            Command::RecordReview(RecordReview { booking_id: "bkg_1".into(), stars: 5 }),
        ];
        for command in internal {
            provider([enrolled()]).by_user("mirela").when(command).then_rejected("internal_only");
        }
    }
}

mod leads {
    use super::*;

    fn consider(it: &mut Given<Provider>, change: impl FnOnce(&mut Lead)) -> Decision<Provider> {
        let mut lead = lead();
        change(&mut lead);
        it.when(Command::ConsiderLead(ConsiderLead { lead })).decision()
    }

    #[track_caller]
    fn declines(
        mut it: Given<Provider>,
        change: impl FnOnce(&mut Lead),
        reason: DeclineReason,
    ) -> Decline {
        let decision = consider(&mut it, change);
        let [Event::LeadReceived { .. }, Event::LeadDeclined { decline, .. }] =
            &decision.events[..]
        else {
            panic!("{:?}", decision.events)
        };
        assert_eq!(decline.reason, reason);
        let (key, answer) = sent(&decision.effects, "request").remove(0);
        assert_eq!(key, "req_1");
        assert_eq!(answer["ReceiveDecline"]["provider_id"], "prv_1");
        decline.clone()
    }

    #[test]
    fn the_agent_offers_the_wanted_time_at_the_list_price() {
        let mut it = provider([enrolled()]);
        let decision = consider(&mut it, |_| ());
        let (key, answer) = sent(&decision.effects, "request").remove(0);
        let offer = &answer["ReceiveOffer"]["offer"];
        assert_eq!(key, "req_1");
        assert_eq!(offer["price"], json!(eur(5_000)));
        assert_eq!(
            (&offer["starts_at"], &offer["ends_at"]),
            (&json!(START), &json!("2026-01-13T16:45:00Z"))
        );
        assert_eq!(offer["expires_at"], "2026-01-12T08:30:00Z");
        assert_eq!(offer["provider"]["id"], "prv_1");
        assert_eq!(it.state.offers.len(), 1);
        assert_eq!((it.state.standing.leads_received, it.state.standing.leads_answered), (1, 1));
    }

    #[test]
    fn it_goes_down_to_its_floor_and_says_what_it_could_do() {
        let decision = consider(&mut provider([enrolled()]), |lead| lead.budget = Some(eur(4_200)));
        let (_, answer) = sent(&decision.effects, "request").remove(0);
        assert_eq!(answer["ReceiveOffer"]["offer"]["price"], json!(eur(4_200)));
        let it = provider([enrolled()]);
        let decline =
            declines(it, |lead| lead.budget = Some(eur(3_999)), DeclineReason::OverBudget);
        assert_eq!(decline.lowest_price, Some(eur(4_000)));
    }

    #[test]
    fn it_declines_what_it_cannot_do() {
        let it = || provider([enrolled()]);
        declines(it(), |lead| lead.service = Service::Plumbing, DeclineReason::NoSkill);
        declines(it(), |lead| lead.place.latitude = 52.7, DeclineReason::OutOfArea);
        declines(
            it(),
            |lead| lead.budget.as_mut().unwrap().currency = "USD".into(),
            DeclineReason::OtherCurrency,
        );
        let night = |lead: &mut Lead| {
            lead.when.earliest = at("2026-01-13T22:00:00Z");
            lead.when.latest = at("2026-01-13T23:00:00Z");
        };
        declines(it(), night, DeclineReason::NotAvailable);
        let booked = provider([enrolled(), held("bkg_9", "2026-01-13T15:30:00Z")]);
        declines(booked, |_| (), DeclineReason::NotAvailable);
        let short_notice = it().at(at("2026-01-13T14:30:00Z"));
        declines(short_notice, |_| (), DeclineReason::NotAvailable);
    }

    #[test]
    fn an_offer_that_starts_soon_expires_with_its_start() {
        let mut hurried = profile();
        hurried.minimum_notice_minutes = 0;
        let enrolled = Event::Enrolled {
            owner_id: "mirela".into(),
            profile: hurried,
            standing: Reputation::default(),
            at: at(NOW),
        };
        let mut it = provider([enrolled]).at(at("2026-01-13T15:50:00Z"));
        let decision = consider(&mut it, |_| ());
        let (_, answer) = sent(&decision.effects, "request").remove(0);
        assert_eq!(answer["ReceiveOffer"]["offer"]["expires_at"], START);
    }

    #[test]
    fn open_offers_are_bounded_and_forgotten_when_they_expire() {
        let mut it = provider([enrolled()]);
        for n in 0..=MAX_OPEN_OFFERS {
            consider(&mut it, |lead| lead.request_id = format!("req_{n}"));
        }
        assert_eq!(it.state.offers.len(), MAX_OPEN_OFFERS);
        it.now = at("2026-01-12T08:31:00Z");
        consider(&mut it, |_| ());
        assert_eq!(it.state.offers.len(), 1);
    }

    #[test]
    fn a_withdrawn_offer_is_forgotten() {
        let mut it = provider([enrolled(), made("off_1", "req_1", START)]);
        let withdraw = || Command::WithdrawOffer(DropOffer { offer_id: "off_1".into() });
        it.when(withdraw()).then([Event::OfferWithdrawn { offer_id: "off_1".into(), at: at(NOW) }]);
        it.when(withdraw()).then([]);
    }
}

/// What happens to standing offers when the provider changes.
mod changes {
    use super::*;
    use crate::systems::marketplace::domain::schedule::{Hours, Weekday};

    /// Everything that an offer rests on, changed against it.
    fn against() -> Vec<(&'static str, ProfilePatch)> {
        let patch = ProfilePatch::default;
        let with = |change: &dyn Fn(&mut Profile)| {
            let mut changed = profile();
            change(&mut changed);
            changed
        };
        let services = |change: &dyn Fn(&mut Profile)| Some(with(change).services);
        vec![
            ("hours", ProfilePatch { weekly: Some([].into()), ..patch() }),
            (
                "shorter hours",
                ProfilePatch {
                    weekly: Some(
                        [(Weekday::Tuesday, vec![Hours { from_minute: 540, to_minute: 1_060 }])]
                            .into(),
                    ),
                    ..patch()
                },
            ),
            (
                "day off",
                ProfilePatch { days_off: Some(["2026-01-13".parse().unwrap()].into()), ..patch() },
            ),
            (
                "zone",
                ProfilePatch {
                    base: Some(with(&|p| p.base.time_zone = "Europe/Moscow".into()).base),
                    weekly: Some(
                        [(Weekday::Tuesday, vec![Hours { from_minute: 1_000, to_minute: 1_080 }])]
                            .into(),
                    ),
                    ..patch()
                },
            ),
            (
                "service",
                ProfilePatch {
                    services: services(&|p| p.services[0].service = Service::Plumbing),
                    ..patch()
                },
            ),
            (
                "duration",
                ProfilePatch {
                    services: services(&|p| p.services[0].duration_minutes = 60),
                    ..patch()
                },
            ),
            (
                "dearer",
                ProfilePatch {
                    services: services(&|p| p.services[0].price = eur(9_000)),
                    ..patch()
                },
            ),
            (
                "cheaper",
                ProfilePatch {
                    services: services(&|p| p.services[0].price = eur(4_000)),
                    ..patch()
                },
            ),
            (
                "currency",
                ProfilePatch {
                    services: services(&|p| p.services[0].price.currency = "USD".into()),
                    ..patch()
                },
            ),
            ("radius", ProfilePatch { radius_km: Some(0.5), ..patch() }),
            ("notice", ProfilePatch { minimum_notice_minutes: Some(14 * 1_440), ..patch() }),
        ]
    }

    fn update(it: &mut Given<Provider>, patch: ProfilePatch) -> Decision<Provider> {
        it.when(Command::Update { patch, expected_version: None, or_versions: Vec::new() })
            .decision()
    }

    #[test]
    fn an_offer_that_they_do_not_allow_is_withdrawn() {
        for (what, patch) in against() {
            let mut it = provider([enrolled(), made("off_1", "req_1", START)]);
            // The zone must fit the place, which is another rule.
            if what == "zone" {
                it.state.profile = Some(patch.apply(&profile()));
                assert!(!it.state.offers[0].stands(it.state.profile.as_ref().unwrap()), "{what}");
                continue;
            }
            let decision = update(&mut it, patch);
            let [Event::Updated { .. }, Event::OfferWithdrawn { offer_id, .. }] =
                &decision.events[..]
            else {
                panic!("{what}: {:?}", decision.events)
            };
            assert_eq!(offer_id, "off_1");
            let expected =
                json!({"WithdrawOffer": {"offer_id": "off_1", "reason": "offer_withdrawn"}});
            assert_eq!(sent(&decision.effects, "request"), [("req_1".into(), expected)], "{what}");
            assert_eq!(it.state.offers, [], "{what}");
        }
    }

    #[test]
    fn an_offer_that_they_allow_stands() {
        let mut it = provider([enrolled(), made("off_1", "req_1", START)]);
        let patch = ProfilePatch {
            name: Some("Mirela".into()),
            weekly: Some(
                [(Weekday::Tuesday, vec![Hours { from_minute: 1_020, to_minute: 1_065 }])].into(),
            ),
            days_off: Some(["2026-01-14".parse().unwrap()].into()),
            max_discount_percent: Some(0),
            ..ProfilePatch::default()
        };
        let decision = update(&mut it, patch);
        assert_eq!((decision.events.len(), it.state.offers.len()), (1, 1));
        assert_eq!(it.when(Command::HoldSlot(hold("bkg_1"))).decision().events.len(), 1);
        // What has expired is over anyway.
        let mut it = provider([enrolled(), made("off_1", "req_1", START)]);
        it.now = at("2026-01-12T08:30:00Z");
        let decision = update(&mut it, against().remove(0).1);
        assert_eq!(decision.events.len(), 1);
    }

    #[test]
    fn an_older_offer_of_which_too_little_is_known_is_withdrawn() {
        let mut it = provider([enrolled(), made("off_1", "req_1", START)]);
        it.state.offers[0].job = None;
        let decision =
            update(&mut it, ProfilePatch { radius_km: Some(11.0), ..Default::default() });
        assert_eq!(decision.events.len(), 2);
    }

    /// The acceptance may be on its way while the profile changes, and an offer may have been forgotten.
    #[test]
    fn time_is_held_on_the_profile_as_it_is() {
        for (what, patch) in against() {
            let mut it = provider([enrolled()]);
            it.state.profile = Some(patch.apply(&profile()));
            let decision = it.when(Command::HoldSlot(hold("bkg_1"))).then([]);
            let (_, answer) = sent(&decision.effects, "request").remove(0);
            assert_eq!(answer["HoldRefused"]["reason"], "offer_withdrawn", "{what}");
            assert_eq!(sent(&decision.effects, "booking"), [], "{what}");
        }
    }
}

mod holds {
    use super::*;

    fn answer(decision: &Decision<Provider>) -> serde_json::Value {
        sent(&decision.effects, "request").remove(0).1
    }

    #[test]
    fn free_time_is_held_and_the_booking_confirmed() {
        let mut it = provider([enrolled(), made("off_1", "req_1", START)]);
        let decision = it.when(Command::HoldSlot(hold("bkg_1"))).decision();
        let slot = Span::new(at(START), 45);
        let event = Event::SlotHeld {
            booking_id: "bkg_1".into(),
            offer_id: "off_1".into(),
            slot,
            at: at(NOW),
        };
        assert_eq!(decision.events, [event]);
        let (key, confirm) = sent(&decision.effects, "booking").remove(0);
        assert_eq!(key, "bkg_1");
        assert_eq!(confirm["Confirm"]["provider"]["id"], "prv_1");
        assert_eq!(confirm["Confirm"]["provider_owner_id"], "mirela");
        assert_eq!(it.state.offers, []);
        let rows = Provider::project("prv_1", &it.state, &decision.events);
        assert_eq!(rows[0].view, "calendar");
        assert_eq!(rows[0].row["deleted"], false);
    }

    #[test]
    fn the_same_booking_twice_is_held_once_and_confirmed_again() {
        let mut it = provider([enrolled()]);
        it.when(Command::HoldSlot(hold("bkg_1"))).decision();
        let decision = it.when(Command::HoldSlot(hold("bkg_1"))).then([]);
        assert_eq!(sent(&decision.effects, "booking").len(), 1);
        assert_eq!(it.state.holds.len(), 1);
    }

    #[test]
    fn taken_time_is_refused_travel_included() {
        for start in ["2026-01-13T16:00:00Z", "2026-01-13T15:05:00Z", "2026-01-13T16:59:00Z"] {
            let mut it = provider([enrolled(), held("bkg_9", start)]);
            let decision = it.when(Command::HoldSlot(hold("bkg_1"))).then([]);
            assert_eq!(answer(&decision)["HoldRefused"]["reason"], "slot_taken", "{start}");
            assert_eq!(sent(&decision.effects, "booking"), []);
        }
        for start in ["2026-01-13T15:00:00Z", "2026-01-13T17:00:00Z"] {
            let mut it = provider([enrolled(), held("bkg_9", start)]);
            assert_eq!(it.when(Command::HoldSlot(hold("bkg_1"))).decision().events.len(), 1);
        }
    }

    #[test]
    fn what_has_expired_or_was_never_offered_is_refused() {
        let mut late = provider([enrolled()]).at(at("2026-01-12T08:35:00Z"));
        let decision = late.when(Command::HoldSlot(hold("bkg_1"))).then([]);
        assert_eq!(answer(&decision)["HoldRefused"]["reason"], "offer_expired");
        let mut past = provider([enrolled()]).at(at(START));
        let decision = past.when(Command::HoldSlot(hold("bkg_1"))).then([]);
        assert_eq!(answer(&decision)["HoldRefused"]["reason"], "offer_expired");
        let cheap = HoldSlot { price: eur(3_999), ..hold("bkg_1") };
        let decision = provider([enrolled()]).when(Command::HoldSlot(cheap)).then([]);
        assert_eq!(answer(&decision)["HoldRefused"]["reason"], "offer_withdrawn");
    }

    #[test]
    fn nobody_books_themselves() {
        let own = HoldSlot { consumer_id: "mirela".into(), ..hold("bkg_1") };
        let decision = provider([enrolled()]).when(Command::HoldSlot(own)).then([]);
        assert_eq!(answer(&decision)["HoldRefused"]["reason"], "own_provider");
    }

    #[test]
    fn the_databases_no_is_the_providers() {
        use crate::kernel::entity::Rejection as _;
        let no = Provider::constraint_violated("calendar_provider_id_during_excl").unwrap();
        assert_eq!((no.code(), no.reason()), (ErrorCode::Conflict, "slot_taken"));
        assert_eq!(Provider::constraint_violated("providers_pkey"), None);
    }

    #[test]
    fn other_offers_for_that_time_are_withdrawn() {
        let mut it = provider([
            enrolled(),
            made("off_1", "req_1", START),
            made("off_2", "req_2", "2026-01-13T16:30:00Z"),
            made("off_3", "req_3", "2026-01-13T17:00:00Z"),
        ]);
        let decision = it.when(Command::HoldSlot(hold("bkg_1"))).decision();
        let expected = json!({"WithdrawOffer": {"offer_id": "off_2", "reason": "slot_taken"}});
        assert_eq!(sent(&decision.effects, "request"), [("req_2".into(), expected)]);
        assert_eq!(it.state.offers.len(), 1);
    }

    #[test]
    fn released_time_is_free_again() {
        let mut it = provider([enrolled()]);
        it.when(Command::HoldSlot(hold("bkg_1"))).decision();
        it.caller = Caller::entity("booking", "bkg_1");
        let release = || Command::ReleaseSlot(ReleaseSlot { booking_id: "bkg_1".into() });
        let decision = it.when(release()).decision();
        assert_eq!(decision.effects, []);
        let rows = Provider::project("prv_1", &it.state, &decision.events);
        assert_eq!(rows[0].row["deleted"], true);
        it.when(release()).then([]);
        it.caller = Caller::entity("request", "req_1");
        assert_eq!(it.when(Command::HoldSlot(hold("bkg_2"))).decision().events.len(), 1);
    }

    #[test]
    fn another_booking_releases_nothing() {
        let mut it = provider([enrolled()]);
        it.when(Command::HoldSlot(hold("bkg_1"))).decision();
        it.caller = Caller::entity("booking", "bkg_2");
        let release = Command::ReleaseSlot(ReleaseSlot { booking_id: "bkg_1".into() });
        it.when(release).then_rejected("internal_only");
        it.caller = Caller::entity("request", "req_2");
        it.when(Command::HoldSlot(hold("bkg_2"))).then_rejected("internal_only");
    }

    #[test]
    fn a_request_that_gave_up_undoes_the_booking_too() {
        let mut it = provider([enrolled()]);
        it.when(Command::HoldSlot(hold("bkg_1"))).decision();
        it.caller = Caller::entity("request", "req_1");
        let decision =
            it.when(Command::ReleaseSlot(ReleaseSlot { booking_id: "bkg_1".into() })).decision();
        let (key, command) = sent(&decision.effects, "booking").remove(0);
        assert_eq!(key, "bkg_1");
        assert!(command.get("Cancel").is_some());
    }

    #[test]
    fn past_bookings_leave_the_state_with_the_next_one() {
        let mut it = provider([enrolled(), held("bkg_9", "2026-01-12T09:00:00Z")]);
        it.now = at("2026-01-13T08:00:00Z");
        let fresh = HoldSlot { expires_at: at("2026-01-13T08:30:00Z"), ..hold("bkg_1") };
        it.when(Command::HoldSlot(fresh)).decision();
        assert_eq!(it.state.holds.len(), 1);
    }

    #[test]
    fn the_calendar_has_an_end() {
        let mut it = provider([enrolled()]);
        for n in 0..MAX_HOLDS {
            let slot = Span::new(later(at("2026-02-01T00:00:00Z"), 60 * n as i64), 15);
            it.state.holds.push(Held { booking_id: format!("bkg_{n}x"), slot });
        }
        let decision = it.when(Command::HoldSlot(hold("bkg_1"))).then([]);
        assert_eq!(answer(&decision)["HoldRefused"]["reason"], "calendar_full");
    }

    proptest! {
        /// Whatever is accepted, released and accepted again: no two held spans are closer than the travel time.
        #[test]
        fn two_overlapping_holds_never_both_succeed(
            steps in proptest::collection::vec((0u8..12, 0i64..60, 1i64..16, any::<bool>()), 1..40),
        ) {
            let mut it = provider([enrolled()]);
            let all_day = vec![schedule::Hours { from_minute: 0, to_minute: 1_440 }];
            let profile = it.state.profile.as_mut().unwrap();
            profile.weekly.values_mut().for_each(|hours| *hours = all_day.clone());
            for (booking, slot, length, release) in steps {
                let booking_id = format!("bkg_{booking}");
                if release {
                    it.when(Command::ReleaseSlot(ReleaseSlot { booking_id })).decision();
                    continue;
                }
                let starts_at = later(at(START), slot * GRID_MINUTES);
                let ends_at = later(starts_at, length * GRID_MINUTES);
                let profile = it.state.profile.as_mut().unwrap();
                profile.services[0].duration_minutes = (length * GRID_MINUTES) as u16;
                it.when(Command::HoldSlot(HoldSlot { starts_at, ends_at, ..hold(&booking_id) })).decision();
                for (n, a) in it.state.holds.iter().enumerate() {
                    for b in &it.state.holds[n + 1..] {
                        prop_assert!(!a.slot.with_travel().overlaps(&b.slot), "{a:?} {b:?}");
                        prop_assert_ne!(&a.booking_id, &b.booking_id);
                    }
                }
            }
        }

        /// Through the whole agent, not only through its pricing.
        #[test]
        fn no_offer_is_below_the_floor_or_above_the_budget(
            price in 1i64..100_000,
            discount in 0u8..=80,
            budget in 1i64..100_000,
        ) {
            let mut profile = profile();
            profile.services[0].price = eur(price);
            profile.max_discount_percent = discount;
            let floor = profile.services[0].floor_price(discount).amount_minor;
            let mut it = provider([Event::Enrolled {
                owner_id: "mirela".into(), profile, standing: Reputation::default(), at: at(NOW),
            }]);
            let lead = Lead { budget: Some(eur(budget)), ..lead() };
            it.when(Command::ConsiderLead(ConsiderLead { lead })).decision();
            prop_assert_eq!(it.state.offers.is_empty(), budget < floor);
            for offer in &it.state.offers {
                prop_assert!((floor..=budget).contains(&offer.price.amount_minor));
            }
        }
    }
}

#[test]
fn reviews_move_the_rating() {
    let mut it = provider([enrolled()]);
    for stars in [5, 4] {
        it.when(Command::RecordReview(RecordReview { booking_id: "bkg_1".into(), stars }))
            .decision();
    }
    assert_eq!((it.state.standing.rating, it.state.standing.reviews), (4.5, 2));
    let event = Event::ReviewRecorded { booking_id: "bkg_1".into(), stars: 4, at: at(NOW) };
    let rows = Provider::project("prv_1", &it.state, &[event]);
    assert_eq!((rows[0].view, &rows[0].row["rating"]), ("providers", &json!(4.5)));
}

#[test]
fn a_provider_cannot_be_asked_before_it_is_enrolled() {
    let mut nobody = provider([]);
    nobody.when(Command::ConsiderLead(ConsiderLead { lead: lead() })).then_rejected("not_found");
    nobody.caller = Caller::user("x", Role::Operator);
    nobody.when(Command::Get).then_rejected("not_found");
    assert_eq!(five_pm().earliest, at(START));
}
