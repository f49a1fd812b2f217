//! Whole conversations: nothing binds that was not said, and what was said is done.

use super::*;
use crate::systems::marketplace::domain::messages::Party;
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::service::Service;

/// On Friday 27 November 2026, at 10 in the morning in Berlin.
fn friday(time_zone: &str) -> World {
    let mut world = World::new();
    world.now = at("2026-11-27T09:00:00Z");
    world.open("alice", time_zone, None);
    world
}

impl World {
    fn say_all(&mut self, sentences: &[&str]) {
        for sentence in sentences {
            self.say("alice", sentence);
        }
    }

    fn session(&self) -> &session::State {
        &self.sessions["ses_alice"]
    }

    fn of(&self, service: Service) -> Vec<&request::State> {
        let asked = |r: &&request::State| r.asked.as_ref().is_some_and(|a| a.service == service);
        self.requests.values().filter(asked).collect()
    }

    /// The agent's last words.
    fn told(&self) -> &str {
        let said = self.published.iter().rfind(|(what, _)| what.ends_with(" chat:response"));
        said.unwrap().1["content"].as_str().unwrap()
    }

    fn booked(&self) -> usize {
        self.bookings.values().filter(|b| b.status == booking::Status::Confirmed).count()
    }
}

const HAIRCUT: &str = "need a haircut next Thursday at 13:00 at Hackescher Markt";

#[test]
fn questions_and_refusals_while_offers_are_open_bind_nothing() {
    for text in include_str!("../session/unbinding.txt").lines() {
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let mut world = friday("Europe/Berlin");
        world.say_all(&[HAIRCUT, text]);
        assert_eq!(world.bookings.len(), 0, "{text}: {}", world.told());
        let open = world.of(Service::Haircut);
        assert_eq!(open[0].status, request::Status::Open, "{text}: {}", world.told());
    }
}

#[test]
fn an_appointment_is_cancelled_in_the_chat() {
    let mut world = friday("Europe/Berlin");
    world.say_all(&[HAIRCUT, "the cheapest", "great. can you remind me?"]);
    assert_eq!(world.booked(), 1);
    world.say("alice", "cancel my appointment please");
    let booking = world.bookings.values().next().unwrap();
    assert_eq!(booking.status, booking::Status::Cancelled);
    assert_eq!(booking.cancellation.as_ref().unwrap().by, Party::Consumer);
    assert_eq!(world.of(Service::Haircut)[0].status, request::Status::Cancelled);
    assert!(world.told().contains("cancelled"), "{}", world.told());
    world.check();
}

#[test]
fn when_the_provider_cancels_request_and_chat_know() {
    let mut world = friday("Europe/Berlin");
    world.say_all(&[HAIRCUT, "the cheapest"]);
    let (id, booking) = world.bookings.iter().next().unwrap();
    let (id, owner) = (id.clone(), booking.agreed.as_ref().unwrap().provider_owner_id.clone());
    let cancel = booking::Command::Cancel(BookingCancellation { reason: None });
    world.ask::<Booking>(person(&owner), &id, cancel).unwrap();
    world.deliver();
    let request = world.of(Service::Haircut)[0];
    assert_eq!(request.status, request::Status::Cancelled);
    assert_eq!(request.reason.as_deref(), Some("booking_cancelled"));
    assert!(world.told().contains("the provider has cancelled"), "{}", world.told());
    world.say("alice", "status");
    assert!(!world.told().contains("is booked"), "{}", world.told());
}

#[test]
fn a_request_is_cancelled_after_a_question() {
    let mut world = friday("Europe/Berlin");
    world.say_all(&[HAIRCUT, "hmm, anything earlier?", "cancel"]);
    assert_eq!(world.of(Service::Haircut)[0].status, request::Status::Cancelled);
}

#[test]
fn the_haircut_is_cancelled_and_the_plumber_stays() {
    let mut world = friday("Europe/Berlin");
    world.say_all(&[
        "haircut next Monday at 16:00 at Hackescher Markt",
        "I also need a plumber on Tuesday at 10 in Kreuzberg",
        "cancel the haircut",
    ]);
    assert_eq!(world.of(Service::Haircut)[0].status, request::Status::Cancelled);
    assert!(world.of(Service::Plumbing)[0].status != request::Status::Cancelled);
}

#[test]
fn a_draft_is_corrected() {
    let mut world = friday("Europe/Berlin");
    world.say_all(&[
        "I need a haircut tomorrow at 5",
        "sorry, I meant a plumber",
        "not tomorrow, on Monday",
        "in Kreuzberg",
    ]);
    assert_eq!(world.requests.len(), 1);
    let asked = world.of(Service::Plumbing)[0].asked.clone().unwrap();
    assert_eq!(asked.when.earliest, at("2026-11-30T16:00:00Z"));
    assert_eq!(asked.place.name, "Kreuzberg");
}

#[test]
fn a_word_for_cancelling_cancels_nothing() {
    let mut world = friday("Europe/Berlin");
    world.say_all(&[HAIRCUT, "please don't cancel my request"]);
    assert_eq!(world.of(Service::Haircut)[0].status, request::Status::Open);
    let mut world = friday("Europe/Berlin");
    world.say("alice", "my plumber cancelled, I need another one tomorrow at 10 in Berlin");
    let asked = world.of(Service::Plumbing)[0].asked.clone().unwrap();
    assert_eq!(asked.when.earliest, at("2026-11-28T09:00:00Z"));
}

#[test]
fn another_budget_is_taken_where_the_agent_asks_for_one() {
    let mut world = friday("Europe/London");
    world.say(
        "alice",
        "could someone cut my hair tomorrow at half five in Camden please? can do 30 quid",
    );
    let first = world.of(Service::Haircut)[0].clone();
    assert_eq!(first.status, request::Status::Unmatched);
    world.say("alice", "ok 45 quid then");
    let second = world.of(Service::Haircut).into_iter().find(|r| **r != first).unwrap();
    let (first, second) = (first.asked.unwrap(), second.asked.clone().unwrap());
    assert_eq!(second.budget, Some(Money::new(4_500, "GBP")));
    assert_eq!((first.when, first.place), (second.when, second.place));
}

#[test]
fn a_change_of_mind_takes_the_place_of_the_request() {
    let mut world = friday("Europe/Berlin");
    world.say_all(&[
        "haircut tomorrow at 5pm near Alexanderplatz, max 50",
        "actually make it 6pm",
        "a haircut of course",
        "the same place",
        "the cheapest",
    ]);
    assert_eq!(world.booked(), 1, "{}", world.told());
    let booking = world.bookings.values().next().unwrap().agreed.as_ref().unwrap();
    assert_eq!(booking.starts_at, at("2026-11-28T17:00:00Z"));
    let open = world.requests.values().filter(|r| r.status.is_searching()).count();
    assert_eq!(open, 0);
}

#[test]
fn an_aside_with_a_time_in_it_takes_no_request_back() {
    for text in ["sorry, tomorrow at 6 is my wife's birthday", "actually my train leaves at 7"] {
        let mut world = friday("Europe/Berlin");
        world.say_all(&["haircut tomorrow at 5pm near Alexanderplatz, max 50", text]);
        assert_eq!(world.requests.len(), 1, "{text}");
        assert_eq!(world.of(Service::Haircut)[0].status, request::Status::Open, "{text}");
    }
}

#[test]
fn a_change_that_is_asked_about_waits_for_a_yes() {
    let mut world = friday("Europe/Berlin");
    world.say_all(&["haircut tomorrow at 5pm near Alexanderplatz, max 50", "could we do 6pm?"]);
    assert_eq!(world.requests.len(), 1);
    assert!(world.told().contains("Say yes"), "{}", world.told());
    world.say("alice", "yes");
    let asked = world.requests.values().filter(|r| r.status == request::Status::Open);
    let starts: Vec<_> = asked.map(|r| r.asked.as_ref().unwrap().when.earliest).collect();
    assert_eq!(starts, [at("2026-11-28T17:00:00Z")]);
}

#[test]
fn what_was_said_of_a_booking_fills_no_other_request() {
    let mut world = friday("Europe/Berlin");
    world.say_all(&[
        "haircut next Wednesday at 16:30 at Hackescher Markt",
        "the cheapest",
        "can I move it to 6 pm? I'd pay 35 euros more",
        "I also need a plumber in Berlin",
    ]);
    assert_eq!(world.told(), "When do you need the plumbing near Berlin?");
    let draft = world.session().draft.clone().unwrap();
    assert_eq!((draft.budget, draft.when), (None, None));
    assert_eq!(world.booked(), 1);
}

#[test]
fn the_second_one_is_the_second_that_was_shown() {
    let mut world = friday("Europe/Berlin");
    world.say("alice", "need a haircut on Wednesday at 12:15 at Hackescher Markt");
    let shown = world.session().current().unwrap().shown.clone();
    assert!(shown.len() > 2 && world.told().contains(&format!("2. {}", shown[1].provider_name)));
    world.say("alice", "the second one");
    let booking = world.bookings.values().next().unwrap().agreed.clone().unwrap();
    assert_eq!(booking.offer_id, shown[1].offer_id);
}

#[test]
fn the_currency_of_the_session_is_that_of_amounts_without_one() {
    let mut world = friday("Europe/Berlin");
    world.open("alice", "Europe/Berlin", Some("GBP"));
    world.say("alice", "haircut next Thursday at 16:00 in Berlin, up to 50");
    let asked = world.of(Service::Haircut)[0].asked.clone().unwrap();
    assert_eq!(asked.budget, Some(Money::new(5_000, "GBP")));
}

#[test]
fn a_provider_at_the_door_is_told_how_to_enrol() {
    let mut world = friday("Europe/Berlin");
    for text in [
        "Hi, I'm a plumber in Berlin and I want to offer my services here",
        "I charge 80 euros per hour, Monday to Friday 9 to 5, within 10 km of Alexanderplatz",
    ] {
        world.say("alice", text);
        assert!(world.told().contains("POST /v1/providers"), "{}", world.told());
    }
    assert!(world.requests.is_empty() && world.session().draft.is_none());
}

#[test]
fn what_was_not_understood_is_asked_for_and_said() {
    let mut world = friday("Europe/Berlin");
    world.say("alice", "haircut on 31 November at 10 in Berlin");
    assert!(world.told().contains("31 November"), "{}", world.told());
    assert!(world.requests.is_empty());
    // An hour alone is not put on another day; the day alone is at the hour that was said.
    world.say("alice", "at 11");
    assert!(world.requests.is_empty());
    world.say("alice", "on 30 November");
    let asked = world.of(Service::Haircut)[0].asked.clone().unwrap();
    assert_eq!(asked.when.earliest, at("2026-11-30T10:00:00Z"));
}

#[test]
fn one_appointment_at_a_time_is_agreed_first() {
    let mut world = friday("Europe/Berlin");
    world.say("alice", "Haircut for my husband and me, tomorrow 4pm, Alexanderplatz");
    assert!(world.requests.is_empty());
    world.say("alice", "yes");
    assert_eq!(world.of(Service::Haircut).len(), 1);
    world.say("alice", "I need a cleaner and a plumber on Thursday at 9 in Neukölln");
    assert_eq!(world.requests.len(), 1);
    world.say("alice", "the plumber");
    assert_eq!(world.of(Service::Plumbing).len(), 1);
}
