use serde_json::json;

use super::*;
use crate::domain::marketplace::fixtures::{NOW, at, eur, published, sent};
use crate::kernel::entity::spec::{Given, given};
use crate::kernel::entity::{Caller, Role};

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
    Event::RequestStarted { request_id: "req_1".into(), service: Service::Haircut }
}

fn followed(status: request::Status, offers: u32) -> Event {
    Event::RequestFollowed { request_id: "req_1".into(), status, offers }
}

fn session(events: impl IntoIterator<Item = Event>) -> Given<Session> {
    given::<Session>(events).at(at(NOW)).key("ses_1").by_user("alice")
}

fn inside(mut it: Given<Session>) -> Given<Session> {
    it.caller = Caller::Entity { kind: "request".into(), key: "req_1".into() };
    it
}

fn open_command() -> Command {
    Command::Open { time_zone: "Europe/Berlin".into(), locale: "en".into(), currency: None }
}

fn message(content: &str) -> Command {
    Command::SendMessage { content: content.into(), media: vec![] }
}

fn progress(progress: Progress) -> Command {
    Command::RequestProgress { request_id: "req_1".into(), progress }
}

fn summary() -> OfferSummary {
    OfferSummary {
        offer_id: "off_1".into(),
        provider_name: "Mirela's Chair".into(),
        price: eur(5_000),
        starts_at: at("2026-01-13T16:00:00Z"),
        time_zone: "Europe/Berlin".into(),
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
        let all = [open_command(), message("hello"), Command::Check, Command::Close { end: true }];
        for command in all {
            session([opened()]).by_user("bob").when(command).then_rejected("not_found");
        }
        session([]).when(message("hello")).then_rejected("not_found");
        session([]).when(Command::Check).then_rejected("not_found");
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
    fn it_can_be_checked_and_ended() {
        let mut it = session([opened()]);
        let reply = it.when(Command::Check).decision().reply;
        assert!(
            matches!(reply, Some(Reply::Session { user_id, ended: false, .. }) if user_id == "alice")
        );
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
        assert_eq!(&it.state.current.as_ref().unwrap().request_id, request_id);
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
        assert!(matches!(decision.effects.last(), Some(Effect::Publish { durable: true, .. })));
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
        let booked = [opened(), started(), followed(request::Status::Booked, 1)];
        let decision = session(booked).when(message("cancel")).decision();
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
    fn an_offer_is_accepted_by_a_sentence() {
        let mut it = session([opened(), started(), followed(request::Status::Open, 2)]);
        let decision = it.when(message("take the cheapest")).decision();
        let accept = json!({"AcceptPick": {"pick": "cheapest"}});
        assert_eq!(sent(&decision.effects, "request"), [("req_1".into(), accept)]);
        let decision = session([opened(), started()]).when(message("take the cheapest")).decision();
        assert!(sent(&decision.effects, "request").is_empty());
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
        assert!(it.state.recent.iter().all(|line| line.content.chars().count() <= RECENT_CHARS));
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
                Progress::AllAnswered { offers: 3, cheapest: summary() },
                "3 offers",
                request::Status::Open,
            ),
            (Progress::OfferRefused { offers: 2 }, "2", request::Status::Open),
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
        ];
        let mut it = inside(session([opened(), started()]));
        for (step, words, status) in cases {
            let decision = it.when(progress(step)).decision();
            let (content, data) = answer(&decision);
            assert!(content.contains(words), "{content}");
            assert_eq!(data["request_id"], "req_1");
            assert_eq!(data["status"], json!(status));
            assert_eq!(it.state.current.as_ref().unwrap().status, status);
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
        let mut it = inside(session([opened(), started()]));
        it.when(refused(AskedOf::Create, "invalid")).decision();
        assert_eq!(it.state.current.as_ref().unwrap().status, request::Status::Unmatched);
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
        let accept = request::Command::AcceptPick { pick: request::Pick::Cheapest };
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
    let rows = Session::project("ses_1", &it.state, &decision.events);
    let views: Vec<_> = rows.iter().map(|row| (row.view, row.row["role"].as_str())).collect();
    assert_eq!(
        views,
        [("messages", Some("user")), ("messages", Some("agent")), ("sessions", None)]
    );
    assert_eq!(rows[2].row["user_id"], "alice");
    assert_eq!(Session::project("ses_1", &it.state, &[started()]), []);
    let operator = Caller::User { id: "op".into(), role: Role::Operator };
    it.caller = operator;
    it.when(Command::Check).then_rejected("not_found");
}
