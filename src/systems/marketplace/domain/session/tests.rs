use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::kernel::entity::spec::{Given, given};
use crate::kernel::entity::{Caller, Role};
use crate::kernel::private;
use crate::systems::marketplace::domain::fixtures::{NOW, at, eur, published, sent};
use crate::systems::marketplace::domain::messages::{Party, Pick};
use crate::systems::marketplace::domain::offer::DeclineReason;
use crate::systems::marketplace::domain::request::Request;

const SENTENCE: &str =
    "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros";

fn opened() -> Event {
    Event::Opened {
        user_id: "alice".into(),
        time_zone: "Europe/Berlin".into(),
        locale: "en".into(),
        currency: None,
        at: at(NOW),
    }
}

fn started() -> Event {
    let service = Service::Haircut;
    Event::RequestStarted { request_id: "req_1".into(), service, asked: None, replaces: None }
}

fn followed(status: request::Status, offers: u32) -> Event {
    Event::RequestFollowed {
        request_id: "req_1".into(),
        status,
        offers,
        shown: vec![],
        complete: false,
        booking_id: None,
    }
}

/// Three offers have been shown: 50, 45 and 60 euros.
fn shown() -> Event {
    let offer = |id: &str, name: &str, price| OfferSummary {
        offer_id: id.into(),
        provider_name: name.into(),
        price: eur(price),
        ..summary()
    };
    Event::RequestFollowed {
        request_id: "req_1".into(),
        status: request::Status::Open,
        offers: 3,
        shown: vec![
            offer("off_1", "Mirela's Chair", 5_000),
            offer("off_2", "Anna Cuts", 4_500),
            offer("off_3", "Salon Berta", 6_000),
        ],
        complete: true,
        booking_id: None,
    }
}

fn booked() -> Event {
    Event::RequestFollowed {
        request_id: "req_1".into(),
        status: request::Status::Booked,
        offers: 3,
        shown: vec![summary()],
        complete: true,
        booking_id: Some("bkg_1".into()),
    }
}

fn session(events: impl IntoIterator<Item = Event>) -> Given<Session> {
    given::<Session>(events).at(at(NOW)).key("ses_1").by_user("alice")
}

fn inside(mut it: Given<Session>) -> Given<Session> {
    it.caller = Caller::entity("request", "req_1");
    it
}

fn open_command() -> Command {
    Command::Open { time_zone: "Europe/Berlin".into(), locale: "en".into(), currency: None }
}

fn message(content: &str) -> Command {
    Command::SendMessage { content: content.into(), media: vec![], thinks: false }
}

fn progress(progress: Progress) -> Command {
    Command::RequestProgress(RequestProgress {
        request_id: "req_1".into(),
        progress,
        service: None,
    })
}

fn summary() -> OfferSummary {
    OfferSummary {
        offer_id: "off_1".into(),
        provider_name: "Mirela's Chair".into(),
        price: eur(5_000),
        starts_at: at("2026-01-13T16:00:00Z"),
        time_zone: "Europe/Berlin".into(),
        score: 0.5,
    }
}

/// The agent's answer: text and data.
fn answer(decision: &Decision<Session>) -> (String, Value) {
    let responses: Vec<_> = published(&decision.effects)
        .into_iter()
        .filter(|(event, _)| *event == "chat:response")
        .collect();
    let [(_, response)] = responses[..] else { panic!("{:?}", decision.effects) };
    (response["content"].as_str().unwrap().into(), response["data"].clone())
}

mod dialogue;
mod thinking;

mod opening {
    use super::*;

    #[test]
    fn a_user_opens_a_session() {
        let mut it = session([]);
        let decision = it.when(open_command()).then([opened()]);
        let reply = |created| Some(Reply::Opened { session_id: "ses_1".into(), created });
        assert_eq!(decision.reply, reply(true));
        // Another device, or the same one again.
        assert_eq!(it.when(open_command()).then([]).reply, reply(false));
    }

    #[test]
    fn settings_follow_the_last_opening_and_an_ended_session_lives_again() {
        let mut it = session([opened(), Event::Ended { at: at(NOW) }]);
        it.when(message("hello")).then_rejected("session_ended");
        it.when(open_command()).then([opened()]);
        let moved = Command::Open {
            time_zone: "America/New_York".into(),
            locale: "en-US".into(),
            currency: Some("USD".into()),
        };
        it.when(moved).decision();
        assert_eq!(it.state.time_zone, "America/New_York");
        assert_eq!(it.state.currency.as_deref(), Some("USD"));
    }

    #[test]
    fn it_belongs_to_one_user() {
        let typing = Command::Typing { is_typing: true };
        let all = [open_command(), message("hello"), typing, Command::Close { end: true }];
        for command in all {
            session([opened()]).by_user("bob").when(command).then_rejected("not_found");
        }
        session([]).when(message("hello")).then_rejected("not_found");
        session([]).when(Command::Typing { is_typing: true }).then_rejected("not_found");
        inside(session([])).when(open_command()).then_rejected("user_only");
    }

    #[test]
    fn settings_are_checked() {
        let open = |time_zone: &str, locale: &str, currency: Option<&str>| Command::Open {
            time_zone: time_zone.into(),
            locale: locale.into(),
            currency: currency.map(Into::into),
        };
        for bad in [
            open("Nowhere", "en", None),
            open("Europe/Berlin", "", None),
            open("Europe/Berlin", "en", Some("euros")),
        ] {
            session([]).when(bad).then_rejected("invalid");
        }
    }

    #[test]
    fn it_can_be_ended() {
        let mut it = session([opened()]);
        it.when(Command::Close { end: false }).then([]);
        let decision = it.when(Command::Close { end: true }).then([Event::Ended { at: at(NOW) }]);
        assert_eq!(published(&decision.effects)[0].0, "session:ended");
        it.when(Command::Close { end: true }).then([]);
        it.when(Command::Typing { is_typing: true }).then_rejected("session_ended");
    }
}

mod messages {
    use super::*;

    #[test]
    fn a_whole_sentence_becomes_a_request() {
        let mut it = session([opened()]);
        let decision = it.when(message(SENTENCE)).decision();
        let requests = sent(&decision.effects, "request");
        let [(request_id, create)] = &requests[..] else { panic!("{requests:?}") };
        let asked = &create["Create"];
        assert_eq!(
            (&asked["consumer_id"], &asked["session_id"]),
            (&json!("alice"), &json!("ses_1"))
        );
        assert_eq!(asked["service"], "haircut");
        assert_eq!(asked["place"]["city"], "Berlin");
        assert!(request_id.starts_with("req_"));
        let (content, data) = answer(&decision);
        assert!(content.contains("Alexanderplatz"), "{content}");
        assert_eq!(data["request_id"], json!(request_id));
        assert_eq!(&it.state.current().unwrap().request_id, request_id);
        assert_eq!(it.state.draft, None);
        // What the session asks for is what a request accepts.
        let command: request::Command = serde_json::from_value(create.clone()).unwrap();
        given::<Request>([]).at(at(NOW)).key(request_id).when(command).decision();
    }

    #[test]
    fn the_message_comes_first_then_the_stream_then_the_response() {
        let decision = session([opened()]).when(message(SENTENCE)).decision();
        let Some(Reply::Sent { message_id }) = &decision.reply else { panic!() };
        let own = published(&decision.effects);
        assert_eq!(
            own.iter().map(|(event, _)| *event).collect::<Vec<_>>(),
            ["chat:message", "chat:response"]
        );
        assert_eq!(own[0].1["message_id"], json!(message_id));
        assert_eq!(own[0].1["role"], "user");
        assert_eq!(own[0].1["content"], SENTENCE);
        assert_ne!(own[1].1["message_id"], json!(message_id));
        let mut streamed = String::new();
        let tokens = decision.effects.iter().filter_map(|effect| match effect {
            Effect::Publish { publication, durable: false } => Some(publication),
            _ => None,
        });
        for (index, token) in tokens.enumerate() {
            assert_eq!(token.event, "chat:stream");
            assert_eq!(token.data["index"], json!(index));
            assert_eq!(token.data["message_id"], own[1].1["message_id"]);
            streamed.push_str(token.data["token"].as_str().unwrap());
        }
        assert_eq!(json!(streamed), own[1].1["content"]);
        let last = decision.effects.last().map(Effect::bare);
        assert!(matches!(last, Some(Effect::Publish { durable: true, .. })));
    }

    #[test]
    fn the_agent_asks_until_it_knows_enough() {
        let mut it = session([opened()]);
        let decision = it.when(message("I need a haircut")).decision();
        let (question, data) = answer(&decision);
        assert!(question.contains('?'), "{question}");
        assert!(!data["missing"].as_array().unwrap().is_empty());
        assert!(it.state.draft.is_some());
        it.when(message("near Alexanderplatz in Berlin")).decision();
        let decision = it.when(message("tomorrow at 5 pm")).decision();
        assert_eq!(sent(&decision.effects, "request").len(), 1);
        assert_eq!(it.state.draft, None);
    }

    #[test]
    fn small_talk_asks_for_nothing() {
        for text in ["hello", "help", "status", "cancel"] {
            let decision = session([opened()]).when(message(text)).decision();
            assert!(sent(&decision.effects, "request").is_empty(), "{text}");
            assert!(!answer(&decision).0.is_empty());
        }
    }

    #[test]
    fn an_open_request_is_cancelled_by_a_word() {
        let mut it = session([opened(), started()]);
        let decision = it.when(message("cancel")).decision();
        let cancel = json!({"Cancel": {"reason": null}});
        assert_eq!(sent(&decision.effects, "request"), [("req_1".into(), cancel)]);
        let old = [opened(), started(), followed(request::Status::Booked, 1)];
        let decision = session(old).when(message("cancel")).decision();
        assert!(sent(&decision.effects, "request").is_empty());
    }

    #[test]
    fn a_draft_is_forgotten_by_a_word() {
        let mut it = session([opened()]);
        it.when(message("I need a haircut")).decision();
        it.when(message("cancel")).decision();
        assert_eq!(it.state.draft, None);
    }

    #[test]
    fn an_offer_that_was_shown_is_accepted_by_a_sentence() {
        for (text, offer) in [
            ("take the cheapest", "off_2"),
            ("the first one", "off_1"),
            ("I'll take the third", "off_3"),
            ("accept Anna's offer", "off_2"),
        ] {
            let mut it = session([opened(), started(), shown()]);
            let decision = it.when(message(text)).decision();
            let accept = json!({"AcceptOffer": {"offer_id": offer}});
            assert_eq!(sent(&decision.effects, "request"), [("req_1".into(), accept)], "{text}");
        }
        for none in [
            vec![opened(), started()],
            vec![opened(), started(), followed(request::Status::Open, 2)],
        ] {
            for text in ["take the cheapest", "the second one", "accept it"] {
                let decision = session(none.clone()).when(message(text)).decision();
                assert!(sent(&decision.effects, "request").is_empty(), "{text}");
            }
        }
        let decision =
            session([opened(), started(), shown()]).when(message("the fourth one")).decision();
        assert!(sent(&decision.effects, "request").is_empty());
        assert!(answer(&decision).0.contains("Anna Cuts"));
    }

    #[test]
    fn what_is_near_to_an_act_is_read_back_and_a_yes_binds_it() {
        let accept = |offer: &str| json!({"AcceptOffer": {"offer_id": offer}});
        for (text, offer) in [
            ("the best one", "off_1"),
            ("hm, Anna sounds good", "off_2"),
            ("go for the third one then, tell them", "off_3"),
        ] {
            let mut it = session([opened(), started(), shown()]);
            let decision = it.when(message(text)).decision();
            assert!(sent(&decision.effects, "request").is_empty(), "{text}");
            let (content, data) = answer(&decision);
            assert!(content.contains("Say yes"), "{text}: {content}");
            assert_eq!(data["confirm"], "accept");
            // "ok" is no yes.
            assert!(sent(&it.when(message("ok")).decision().effects, "request").is_empty());
            let decision = it.when(message("Yes, please.")).decision();
            assert_eq!(sent(&decision.effects, "request"), [("req_1".into(), accept(offer))]);
            // Once.
            assert!(sent(&it.when(message("yes")).decision().effects, "request").is_empty());
        }
    }

    #[test]
    fn a_yes_binds_nothing_else_than_what_was_just_read_back_and_stands() {
        let read_back = || {
            let mut it = session([opened(), started(), shown()]);
            it.when(message("Anna sounds good")).decision();
            it
        };
        for between in ["no", "never mind", "is she near the station?", "how far is it", "yes?"] {
            let mut it = read_back();
            it.when(message(between)).decision();
            let decision = it.when(message("yes")).decision();
            assert!(sent(&decision.effects, "request").is_empty(), "{between}");
        }
        for end in [Progress::Expired, Progress::Cancelled] {
            let mut it = inside(read_back());
            it.when(progress(end)).decision();
            it.caller = Caller::user("alice", Role::Consumer);
            assert!(sent(&it.when(message("yes")).decision().effects, "request").is_empty());
        }
    }

    const UNBINDING: &str = include_str!("unbinding.txt");

    /// Whatever is under way: offers, a booking, a question of the agent's, a draft.
    #[test]
    fn no_question_refusal_condition_or_aside_binds() {
        let lines: Vec<&str> =
            UNBINDING.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        assert!(lines.len() >= 120, "{}", lines.len());
        let read_back = || Event::ReadBack {
            pending: Pending::Accept { request_id: "req_1".into(), offer_id: "off_2".into() },
        };
        let draft = || Event::DraftChanged { draft: Some(Understanding::default()) };
        let mut bound = Vec::new();
        for text in &lines {
            for events in [
                vec![opened(), started()],
                vec![opened(), started(), shown()],
                vec![opened(), started(), shown(), read_back()],
                vec![opened(), started(), shown(), draft()],
                vec![opened(), started(), booked()],
            ] {
                let decision = session(events).when(message(text)).decision();
                let creates = |(_, command): &(String, Value)| command.get("Create").is_some();
                let requests = sent(&decision.effects, "request");
                let binds = requests.iter().any(|sent| !creates(sent));
                if binds || !sent(&decision.effects, "booking").is_empty() {
                    bound.push(format!("{text}: {requests:?}"));
                }
            }
        }
        assert!(bound.is_empty(), "{}", bound.join("\n"));
    }

    #[test]
    fn a_booking_is_cancelled_by_a_sentence() {
        let cancel = json!({"CancelForConsumer": {"reason": null}});
        for text in ["cancel my appointment please", "cancel the haircut", "cancel my booking"] {
            let mut it = session([opened(), started(), booked()]);
            let decision = it.when(message(text)).decision();
            assert_eq!(
                sent(&decision.effects, "booking"),
                [("bkg_1".into(), cancel.clone())],
                "{text}"
            );
        }
        // Less clear ones are read back.
        for text in ["cancel", "cancel my request", "I'd like to cancel my appointment"] {
            let mut it = session([opened(), started(), booked()]);
            let decision = it.when(message(text)).decision();
            assert!(sent(&decision.effects, "booking").is_empty(), "{text}");
            let decision = it.when(message("yes")).decision();
            assert_eq!(
                sent(&decision.effects, "booking"),
                [("bkg_1".into(), cancel.clone())],
                "{text}"
            );
        }
        let failed = SendFailure {
            kind: "booking".into(),
            key: "bkg_1".into(),
            command: cancel,
            reason: "already_started".into(),
        };
        let refused = Session::send_failed(failed).unwrap();
        let mut it = session([opened(), started(), booked()]);
        it.caller = Caller::Runtime;
        let decision = it.when(refused).decision();
        assert!(answer(&decision).0.contains("started"));
    }

    #[test]
    fn the_request_that_is_named_is_cancelled() {
        let plumber = Event::RequestStarted {
            request_id: "req_2".into(),
            service: Service::Plumbing,
            asked: None,
            replaces: None,
        };
        let mut it = session([opened(), started(), plumber]);
        let decision = it.when(message("cancel")).decision();
        assert!(sent(&decision.effects, "request").is_empty());
        assert!(answer(&decision).0.contains("Which one"));
        let decision = it.when(message("cancel the haircut")).decision();
        let cancel = json!({"Cancel": {"reason": null}});
        assert_eq!(sent(&decision.effects, "request"), [("req_1".into(), cancel)]);
    }

    #[test]
    fn requests_are_remembered_within_a_bound() {
        let mut it = session([opened()]);
        for n in 0..20 {
            let text = format!("haircut tomorrow at {}:00 near Alexanderplatz", 9 + n % 8);
            it.when(message(&text)).decision();
        }
        assert_eq!(it.state.requests.len(), MAX_REQUESTS);
    }

    #[test]
    fn currency_and_locale_mean_what_they_say() {
        for (currency, locale, text, budget, day) in [
            (
                Some("GBP"),
                "en",
                "haircut on 3/12 at 16:00 in Berlin, up to 50",
                "GBP",
                "2026-12-03",
            ),
            (None, "de", "haircut on 3/12 at 16:00 in Berlin, up to 50", "EUR", "2026-12-03"),
            (
                Some("CHF"),
                "en-US",
                "haircut on 3/12 at 16:00 in Berlin, up to 50",
                "CHF",
                "2026-03-12",
            ),
            (
                Some("EUR"),
                "en-GB",
                "haircut on 3/4 at 16:00 in Chicago, up to 50",
                "EUR",
                "2026-04-03",
            ),
            (
                Some("AUD"),
                "en",
                "haircut on 3/4 at 16:00 in Chicago, up to $50",
                "AUD",
                "2026-03-04",
            ),
            (
                Some("GBP"),
                "en",
                "haircut on 3 April at 16:00 in Berlin, up to 50 euros",
                "EUR",
                "2026-04-03",
            ),
        ] {
            let mut it = session([Event::Opened {
                user_id: "alice".into(),
                time_zone: "Europe/Berlin".into(),
                locale: locale.into(),
                currency: currency.map(Into::into),
                at: at(NOW),
            }]);
            it.when(message(text)).decision();
            let known = it.state.draft.clone().or(it.state.current().and_then(|r| r.asked.clone()));
            let known = known.unwrap();
            assert_eq!(known.budget.unwrap().currency, budget, "{text}");
            let start = known
                .when
                .unwrap()
                .earliest
                .to_zoned(zone(&known.place.unwrap().time_zone).unwrap());
            assert_eq!(start.date().to_string(), day, "{text} {locale}");
        }
        // Opened again without it, a session keeps its currency.
        let mut it = session([opened()]);
        let open = |currency: Option<&str>| Command::Open {
            time_zone: "Europe/Berlin".into(),
            locale: "en".into(),
            currency: currency.map(Into::into),
        };
        it.when(open(Some("GBP"))).decision();
        it.when(open(None)).then([]);
        assert_eq!(it.state.currency.as_deref(), Some("GBP"));
    }

    #[test]
    fn the_status_is_told() {
        let mut it = session([opened(), started(), followed(request::Status::Open, 2)]);
        let (content, data) = answer(&it.when(message("status")).decision());
        assert!(content.contains("2 offers"), "{content}");
        assert_eq!(data["request_id"], "req_1");
    }

    #[test]
    fn messages_are_bounded() {
        let long = "x".repeat(MAX_CONTENT_BYTES + 1);
        for bad in ["", "  ", "\0", &long] {
            session([opened()]).when(message(bad)).then_rejected("invalid");
        }
        let media = |n: usize, url: &str| Command::SendMessage {
            content: "look".into(),
            media: vec![url.into(); n],
            thinks: false,
        };
        session([opened()]).when(media(9, "https://example.org/a.jpg")).then_rejected("invalid");
        session([opened()]).when(media(1, "")).then_rejected("invalid");
        session([opened()]).when(media(8, "https://example.org/a.jpg")).decision();
    }

    #[test]
    fn the_state_remembers_a_bounded_context() {
        let mut it = session([opened()]);
        let long = "word ".repeat(1_000);
        for _ in 0..30 {
            it.when(message(&long)).decision();
        }
        assert_eq!(it.state.messages, 60);
        assert_eq!(it.state.recent.len(), MAX_RECENT);
        assert!(
            it.state
                .recent
                .iter()
                .all(|line| line.content.reveal().unwrap().chars().count() <= RECENT_CHARS)
        );
    }

    #[test]
    fn typing_is_lossy_and_changes_nothing() {
        let decision = session([opened()]).when(Command::Typing { is_typing: true }).then([]);
        let data = json!({"session_id": "ses_1", "user_id": "alice", "is_typing": true});
        assert_eq!(decision.effects, [Effect::stream("chat:typing", data)]);
    }
}

mod following {
    use super::*;

    #[test]
    fn the_agent_tells_how_a_request_goes() {
        let lowest = Some(eur(7_000));
        let reasons: BTreeMap<_, _> = [(DeclineReason::OverBudget, 2)].into();
        let cases = [
            (Progress::Matched { providers: 8 }, "8 providers", request::Status::Matching),
            (
                Progress::FirstOffer { offer: summary() },
                "Mirela's Chair, Tue 13 Jan at 17:00",
                request::Status::Open,
            ),
            (
                Progress::AllAnswered { offers: 3, cheapest: summary(), open: vec![summary()] },
                "3 offers",
                request::Status::Open,
            ),
            (
                Progress::OfferRefused { offers: 2, reason: "offer_withdrawn".into() },
                "the provider does not stand by that offer any more. Other open offers: 2.",
                request::Status::Open,
            ),
            (
                Progress::Booked { booking_id: "bkg_1".into(), offer: summary() },
                "booked",
                request::Status::Booked,
            ),
            (
                Progress::Unmatched {
                    reason: "all_declined".into(),
                    reasons,
                    lowest_price: lowest,
                },
                "2 above your budget",
                request::Status::Unmatched,
            ),
            (Progress::Cancelled, "cancelled", request::Status::Cancelled),
            (Progress::Expired, "expired", request::Status::Expired),
            (
                Progress::BookingCancelled { by: Party::Provider, offer: Some(summary()) },
                "the provider has cancelled your booking (Mirela's Chair",
                request::Status::Cancelled,
            ),
        ];
        let mut it = inside(session([opened(), started()]));
        for (step, words, status) in cases {
            let decision = it.when(progress(step)).decision();
            let (content, data) = answer(&decision);
            assert!(content.contains(words), "{content}");
            assert_eq!(data["request_id"], "req_1");
            assert_eq!(data["status"], json!(status));
            assert_eq!(it.state.current().unwrap().status, status);
        }
    }

    #[test]
    fn every_end_of_a_search_has_its_words() {
        for reason in ["no_providers", "matching_unavailable", "slot_taken", "all_declined"] {
            let step = Progress::Unmatched {
                reason: reason.into(),
                reasons: BTreeMap::new(),
                lowest_price: None,
            };
            let decision = inside(session([opened(), started()])).when(progress(step)).decision();
            assert!(answer(&decision).0.contains("sorry"));
        }
    }

    #[test]
    fn a_refusal_is_explained() {
        let refused = |asked, reason: &str| Command::RequestRefused {
            request_id: "req_1".into(),
            asked,
            reason: reason.into(),
        };
        let mut it = session([opened(), started()]);
        it.caller = Caller::Runtime;
        it.when(refused(AskedOf::Create, "invalid")).decision();
        assert_eq!(it.state.current().unwrap().status, request::Status::Unmatched);
        for command in [
            refused(AskedOf::Cancel, "already_booked"),
            refused(AskedOf::Accept, "no_offers"),
            refused(AskedOf::Accept, "already_booked"),
        ] {
            assert!(!answer(&it.when(command).decision()).0.is_empty());
        }
    }

    #[test]
    fn returned_letters_become_refusals() {
        let failed = |kind: &str, command: &request::Command| SendFailure {
            kind: kind.into(),
            key: "req_1".into(),
            command: crate::kernel::entity::to_value(command),
            reason: "no_offers".into(),
        };
        let accept = request::Command::AcceptPick(AcceptPick { pick: Pick::Cheapest });
        let expected = Command::RequestRefused {
            request_id: "req_1".into(),
            asked: AskedOf::Accept,
            reason: "no_offers".into(),
        };
        assert_eq!(Session::send_failed(failed("request", &accept)), Some(expected));
        assert_eq!(Session::send_failed(failed("user", &accept)), None);
        assert_eq!(Session::send_failed(failed("request", &request::Command::Get)), None);
    }

    #[test]
    fn an_ended_session_says_nothing() {
        let mut it = inside(session([opened(), started(), Event::Ended { at: at(NOW) }]));
        assert_eq!(it.when(progress(Progress::Expired)).then([]).effects, []);
    }

    #[test]
    fn only_the_system_tells() {
        let publish = || Command::Publish { event: "x:y".into(), data: json!({}) };
        let mut it = session([opened()]);
        for command in [
            publish(),
            progress(Progress::Expired),
            Command::RequestRefused {
                request_id: "req_1".into(),
                asked: AskedOf::Create,
                reason: String::new(),
            },
        ] {
            it.when(command).then_rejected("internal_only");
        }
        let decision = inside(it).when(publish()).decision();
        assert_eq!(published(&decision.effects), [("x:y", &json!({}))]);
    }
}

#[test]
fn messages_are_rows_and_the_session_with_them() {
    let mut it = session([opened()]);
    let decision = it.when(message(SENTENCE)).decision();
    let (rows, of) = private::plain(|| Session::project("ses_1", &it.state, &decision.events));
    assert_eq!(of.as_deref(), Some("alice"));
    let views: Vec<_> = rows.iter().map(|row| (row.view, row.row["role"].as_str())).collect();
    assert_eq!(
        views,
        [("messages", Some("user")), ("messages", Some("agent")), ("sessions", None)]
    );
    assert_eq!(rows[2].row["user_id"], "alice");
    assert_eq!(Session::project("ses_1", &it.state, &[started()]), []);
    let operator = Caller::user("op", Role::Operator);
    it.caller = operator;
    it.when(Command::Typing { is_typing: true }).then_rejected("not_found");
}
