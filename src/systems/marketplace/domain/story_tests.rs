//! The entities together: their messages are delivered here in the order in which the runtime would deliver them.

use std::collections::{BTreeMap, VecDeque};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::kernel::entity::{
    Caller, DecideCx, Decided, Decision, Effect, Entity, Rejection, Role, RunOutcome, SendFailure,
    to_value,
};
use crate::kernel::ids::IdSource;
use crate::kernel::work::Work;
use crate::systems::marketplace::domain::booking::{self, Booking};
use crate::systems::marketplace::domain::demo_providers::demo_providers;
use crate::systems::marketplace::domain::fixtures::{NOW, at};
use crate::systems::marketplace::domain::matching::{
    Criteria, MatchProviders, Matches, candidate, rank,
};
use crate::systems::marketplace::domain::messages::{AcceptOffer, BookingCancellation, DropOffer};
use crate::systems::marketplace::domain::profile::ProfilePatch;
use crate::systems::marketplace::domain::provider::{self, Provider};
use crate::systems::marketplace::domain::request::{self, Request};
use crate::systems::marketplace::domain::session::{self, Session};
use crate::systems::marketplace::domain::user::User;

mod chat;

const SENTENCE: &str =
    "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros";

type States<E> = BTreeMap<String, <E as Entity>::State>;

struct Letter {
    from: Caller,
    kind: &'static str,
    key: String,
    command: Value,
}

struct World {
    now: Timestamp,
    decided: u128,
    users: States<User>,
    sessions: States<Session>,
    requests: States<Request>,
    providers: States<Provider>,
    bookings: States<Booking>,
    letters: VecDeque<Letter>,
    /// By time, then entity and name.
    timers: BTreeMap<(String, String, String), (Timestamp, &'static str, Value)>,
    /// `topic event`, in order.
    published: Vec<(String, Value)>,
    /// Letters to this kind are held back.
    stopped: Option<&'static str>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            now: at(NOW),
            decided: 0,
            users: States::<User>::new(),
            sessions: States::<Session>::new(),
            requests: States::<Request>::new(),
            providers: States::<Provider>::new(),
            bookings: States::<Booking>::new(),
            letters: VecDeque::new(),
            timers: BTreeMap::new(),
            published: vec![],
            stopped: None,
        };
        for (key, command) in demo_providers() {
            world.ask::<Provider>(Caller::Runtime, &key, command).unwrap();
        }
        world
    }

    fn ask<E: Entity + Kept>(
        &mut self,
        caller: Caller,
        key: &str,
        command: E::Command,
    ) -> Decided<E> {
        // Far apart, so that ids of one decision do not meet those of the next.
        self.decided += 1 << 20;
        let ids = IdSource::new(self.now, self.decided);
        let now = self.now;
        let state = E::states(self).entry(key.into()).or_default();
        let cx = DecideCx { key, now, caller: &caller, ids: &ids };
        let decision = E::decide(state, command, &cx)?;
        for event in &decision.events {
            E::evolve(state, event);
        }
        let for_user = E::acts_for(key, state).map(|person| person.narrowed(&caller));
        let me = Caller::Entity { kind: E::KIND.into(), key: key.into(), for_user };
        for effect in decision.effects.clone() {
            self.perform::<E>(&me, key, effect);
        }
        Ok(decision)
    }

    fn perform<E: Entity + Kept>(&mut self, me: &Caller, key: &str, effect: Effect) {
        let timer = |name: String| (E::KIND.to_owned(), key.to_owned(), name);
        match effect {
            Effect::Send { kind, key, command } => {
                self.letters.push_back(Letter { from: me.clone(), kind, key, command });
            }
            Effect::Schedule { name, at, command } => {
                self.timers.insert(timer(name), (at, E::KIND, command));
            }
            Effect::Cancel { name } => {
                self.timers.remove(&timer(name));
            }
            Effect::Publish { publication, .. } => {
                let topic = format!("{}:{key} {}", E::KIND, publication.event);
                self.published.push((topic, publication.data));
            }
            Effect::Notify { kind, key, publication } => {
                let command = match kind.as_str() {
                    "user" => to_value(&User::publication(publication)),
                    "session" => to_value(&Session::publication(publication)),
                    other => panic!("{other} has no inbox"),
                };
                let kind = if kind == "user" { "user" } else { "session" };
                self.letters.push_back(Letter { from: me.clone(), kind, key, command });
            }
            Effect::Private { effect, .. } => self.perform::<E>(me, key, *effect),
            Effect::Run { runner, tag, input } => {
                assert_eq!(runner, MatchProviders::NAME);
                let result = Ok(to_value(&self.run_match(&input)));
                let command = E::run_finished(RunOutcome { runner: runner.into(), tag, result });
                let command = to_value(&command.unwrap());
                let letter =
                    Letter { from: Caller::Runtime, kind: E::KIND, key: key.into(), command };
                self.letters.push_back(letter);
            }
        }
    }

    fn run_match(&self, input: &Value) -> Matches {
        let criteria: Criteria = serde_json::from_value(input.clone()).unwrap();
        let candidates = self
            .providers
            .iter()
            .filter_map(|(id, state)| {
                let whose = (id.as_str(), state.owner_id.as_str());
                Some(candidate(whose, state.profile.as_ref()?, &state.standing, state.busy()))
            })
            .collect();
        Matches { candidates: rank(&criteria, candidates, self.now) }
    }

    /// Until nobody has anything to say any more.
    fn deliver(&mut self) {
        let mut held = VecDeque::new();
        while let Some(letter) = self.letters.pop_front() {
            if self.stopped == Some(letter.kind) {
                held.push_back(letter);
                continue;
            }
            match letter.kind {
                "user" => self.post::<User>(letter),
                "session" => self.post::<Session>(letter),
                "request" => self.post::<Request>(letter),
                "provider" => self.post::<Provider>(letter),
                "booking" => self.post::<Booking>(letter),
                other => panic!("{other}"),
            }
        }
        self.letters = held;
    }

    /// A letter that is refused goes back to an entity that wants to know.
    fn post<E: Entity + Kept>(&mut self, letter: Letter) {
        let Letter { from, key, command, .. } = letter;
        let typed = serde_json::from_value(command.clone()).unwrap();
        let Err(rejection) = self.ask::<E>(from.clone(), &key, typed) else { return };
        let reason = rejection.reason().to_owned();
        let failure = SendFailure { kind: E::KIND.into(), key, command, reason };
        let Caller::Entity { kind, key, .. } = from else { panic!("{failure:?}") };
        let back = |kind, command: Option<Value>| {
            command.map(|command| Letter { from: Caller::Runtime, kind, key, command })
        };
        let letter = match kind.as_str() {
            "session" => back("session", Session::send_failed(failure).map(|c| to_value(&c))),
            "request" => back("request", Request::send_failed(failure).map(|c| to_value(&c))),
            _ => panic!("nobody heard of {failure:?}"),
        };
        self.letters.extend(letter);
    }

    /// Moves the clock; due timers fire in their order.
    fn wait(&mut self, minutes: i64) {
        let until = self.now + SignedDuration::from_mins(minutes);
        loop {
            let next = self.timers.iter().map(|(id, timer)| (timer.0, id.clone())).min();
            let Some((due, id)) = next.filter(|(due, _)| *due <= until) else { break };
            let (_, kind, command) = self.timers.remove(&id).unwrap();
            self.now = self.now.max(due);
            self.letters.push_back(Letter { from: Caller::Runtime, kind, key: id.1, command });
            self.deliver();
        }
        self.now = until;
    }

    /// Says the example sentence and returns the request that follows from it.
    fn request(&mut self, user: &str) -> String {
        let session = format!("ses_{user}");
        self.open(user, "Europe/Berlin", None);
        self.say(user, SENTENCE);
        self.sessions[&session].current().unwrap().request_id.clone()
    }

    fn open(&mut self, user: &str, time_zone: &str, currency: Option<&str>) {
        let open = session::Command::Open {
            time_zone: time_zone.into(),
            locale: "en".into(),
            currency: currency.map(Into::into),
        };
        self.ask::<Session>(person(user), &format!("ses_{user}"), open).unwrap();
    }

    fn say(&mut self, user: &str, content: &str) {
        let session = format!("ses_{user}");
        let message =
            session::Command::SendMessage { content: content.into(), media: vec![], thinks: false };
        self.ask::<Session>(person(user), &session, message).unwrap();
        self.deliver();
    }

    fn accept(&mut self, user: &str, request: &str, offer: &str) -> Result<String, String> {
        let accept = request::Command::AcceptOffer(AcceptOffer { offer_id: offer.into() });
        self.ask::<Request>(person(user), request, accept).map_err(|no| no.reason().to_owned())?;
        self.deliver();
        let wait = request::Command::AwaitAcceptance { offer_id: offer.into() };
        match self.ask::<Request>(person(user), request, wait) {
            Ok(Decision { reply: Some(request::Reply::Accepted { booking_id }), .. }) => {
                Ok(booking_id)
            }
            Ok(other) => panic!("{other:?}"),
            Err(no) => Err(no.reason().to_owned()),
        }
    }

    fn heard(&self, topic_and_event: &str) -> usize {
        self.published.iter().filter(|(heard, _)| heard == topic_and_event).count()
    }

    /// What provider and request believe is what the bookings say.
    fn check(&self) {
        for (id, provider) in &self.providers {
            for (n, a) in provider.holds.iter().enumerate() {
                assert_ne!(self.bookings[&a.booking_id].status, booking::Status::Cancelled);
                for b in &provider.holds[n + 1..] {
                    assert!(!a.slot.overlaps(&b.slot), "{id} is booked twice");
                }
            }
        }
        for (id, booking) in &self.bookings {
            let Some(agreed) = &booking.agreed else { continue };
            let held = &self.providers[&agreed.provider.id].holds;
            let cancelled = booking.status == booking::Status::Cancelled;
            assert_eq!(held.iter().any(|held| held.booking_id == *id), !cancelled, "{id}");
        }
    }
}

/// Where the world keeps an entity's states.
trait Kept: Entity {
    fn states(world: &mut World) -> &mut States<Self>;
}

impl Kept for User {
    fn states(world: &mut World) -> &mut States<Self> {
        &mut world.users
    }
}

impl Kept for Session {
    fn states(world: &mut World) -> &mut States<Self> {
        &mut world.sessions
    }
}

impl Kept for Request {
    fn states(world: &mut World) -> &mut States<Self> {
        &mut world.requests
    }
}

impl Kept for Provider {
    fn states(world: &mut World) -> &mut States<Self> {
        &mut world.providers
    }
}

impl Kept for Booking {
    fn states(world: &mut World) -> &mut States<Self> {
        &mut world.bookings
    }
}

fn person(id: &str) -> Caller {
    Caller::user(id, Role::Consumer)
}

#[test]
fn from_one_sentence_to_a_review() {
    let mut world = World::new();
    let request = world.request("alice");
    let offers = world.requests[&request].offers.clone();
    assert!(offers.len() >= 3);
    assert_eq!(world.heard("user:alice offer:new"), offers.len());
    let booking = world.accept("alice", &request, &offers[0].id).unwrap();
    world.check();
    let owner = world.bookings[&booking].agreed.as_ref().unwrap().provider_owner_id.clone();
    assert_eq!(world.heard("user:alice booking:confirmed"), 1);
    assert_eq!(world.heard(&format!("user:{owner} booking:confirmed")), 1);
    let last = world.published.iter().rfind(|(what, _)| what == "session:ses_alice chat:response");
    assert!(last.unwrap().1["content"].as_str().unwrap().contains("booked"));

    world.wait(2 * 24 * 60);
    assert_eq!(world.bookings[&booking].status, booking::Status::Completed);
    let reminders = world
        .published
        .iter()
        .filter(|(what, data)| what == "user:alice booking:updated" && data["kind"] == "reminder");
    assert!(reminders.count() >= 1);
    let reviews = |world: &World| world.providers[&offers[0].provider.id].standing.reviews;
    let before = reviews(&world);
    let review = booking::Command::Review { rating: 5, comment: None };
    world.ask::<Booking>(person("alice"), &booking, review).unwrap();
    world.deliver();
    assert_eq!(reviews(&world), before + 1);
    assert_eq!(world.timers.len(), 0, "{:?}", world.timers.keys());
}

#[test]
fn the_conversation_alone_is_enough() {
    let mut world = World::new();
    let request = world.request("alice");
    world.say("alice", "take the cheapest");
    assert_eq!(world.requests[&request].status, request::Status::Booked);
    let cheapest = world.requests[&request].offers.iter().map(|o| o.price.amount_minor).min();
    let booking = world.bookings.values().next().unwrap().agreed.as_ref().unwrap();
    assert_eq!(Some(booking.price.amount_minor), cheapest);
    world.check();
}

#[test]
fn of_many_who_want_the_same_time_one_gets_it() {
    let mut world = World::new();
    let users: Vec<String> = (0..20).map(|n| format!("user{n}")).collect();
    let requests: Vec<String> = users.iter().map(|user| world.request(user)).collect();
    // All of them accept the offer of the same provider before anybody is answered.
    let best = world.requests[&requests[0]].offers[0].provider.id.clone();
    let offer_of = |world: &World, request: &String| {
        world.requests[request].offers.iter().find(|o| o.provider.id == best).unwrap().id.clone()
    };
    for (user, request) in users.iter().zip(&requests) {
        let accept =
            request::Command::AcceptOffer(AcceptOffer { offer_id: offer_of(&world, request) });
        world.ask::<Request>(person(user), request, accept).unwrap();
    }
    world.deliver();
    let booked = requests.iter().filter(|id| world.requests[*id].status == request::Status::Booked);
    assert_eq!(booked.count(), 1);
    world.check();
    let (loser, request) = users.iter().zip(&requests).next_back().unwrap();
    let wait = request::Command::AwaitAcceptance { offer_id: offer_of(&world, request) };
    let refused = world.ask::<Request>(person(loser), request, wait).map(|_| ());
    assert_eq!(refused.unwrap_err().reason(), "slot_taken");
    // The others have other offers.
    let other =
        world.requests[request].offers.iter().find(|o| o.provider.id != best).unwrap().id.clone();
    world.accept(loser, request, &other).unwrap();
    world.check();
}

/// The owner changes the profile, or the request is on its way to them while they do.
fn offer_after(change: ProfilePatch, in_flight: bool) -> (World, String, String) {
    let mut world = World::new();
    let request = world.request("alice");
    let offer = world.requests[&request].offers[0].clone();
    if in_flight {
        world.stopped = Some("provider");
        let accept = request::Command::AcceptOffer(AcceptOffer { offer_id: offer.id.clone() });
        world.ask::<Request>(person("alice"), &request, accept).unwrap();
        world.deliver();
        world.stopped = None;
    }
    let owner = world.providers[&offer.provider.id].owner_id.clone();
    let update = provider::Command::Update {
        patch: change,
        expected_version: None,
        or_versions: Vec::new(),
    };
    world.ask::<Provider>(person(&owner), &offer.provider.id, update).unwrap();
    world.deliver();
    (world, request, offer.id)
}

#[test]
fn an_offer_dies_with_what_it_rests_on() {
    let holiday = |at: Timestamp| {
        let day = at.to_zoned(jiff::tz::TimeZone::UTC).date();
        ProfilePatch { days_off: Some([day].into()), ..Default::default() }
    };
    for in_flight in [false, true] {
        let before = World::new().now + SignedDuration::from_hours(24);
        let (mut world, request, offer) = offer_after(holiday(before), in_flight);
        assert_eq!(world.heard("user:alice offer:updated"), 1);
        let known = world.requests[&request].offer(&offer).unwrap();
        assert_eq!(
            known.status,
            crate::systems::marketplace::domain::offer::OfferStatus::Unavailable
        );
        let refused = world.accept("alice", &request, &offer);
        assert_eq!(refused, Err("offer_withdrawn".into()));
        assert!(world.bookings.is_empty());
        // The others stand.
        let other = world.requests[&request].offers[1].id.clone();
        world.accept("alice", &request, &other).unwrap();
        world.check();
    }
}

#[test]
fn nobody_books_themselves() {
    let mut world = World::new();
    let request = world.request("alice");
    let provider = world.requests[&request].offers[0].provider.id.clone();
    let owner = world.providers[&provider].owner_id.clone();
    let own = |world: &World, request: &String| {
        let asked = &world.requests[request].leads;
        asked.iter().any(|lead| world.providers[&lead.provider_id].owner_id == owner)
    };
    assert!(own(&world, &request));
    let request = world.request(&owner);
    assert!(!own(&world, &request));
}

#[test]
fn a_cancelled_booking_frees_the_time() {
    let mut world = World::new();
    let request = world.request("alice");
    let offer = world.requests[&request].offers[0].clone();
    let booking = world.accept("alice", &request, &offer.id).unwrap();
    world
        .ask::<Booking>(
            person("alice"),
            &booking,
            booking::Command::Cancel(BookingCancellation { reason: None }),
        )
        .unwrap();
    world.deliver();
    world.check();
    assert!(world.providers[&offer.provider.id].holds.is_empty());
    let second = world.request("bob");
    let again = world.requests[&second].offers.iter().find(|o| o.provider.id == offer.provider.id);
    let again = again.unwrap().id.clone();
    world.accept("bob", &second, &again).unwrap();
    world.check();
}

/// Whichever letters are held back, for whatever time: in the end booking, calendar and request agree.
#[test]
fn an_acceptance_that_hangs_is_given_up_without_a_trace_or_goes_through() {
    for stopped in ["provider", "booking", "request"] {
        for minutes in 0..6 {
            let mut world = World::new();
            let request = world.request("alice");
            let offer = world.requests[&request].offers[0].id.clone();
            let accept = request::Command::AcceptOffer(AcceptOffer { offer_id: offer });
            world.ask::<Request>(person("alice"), &request, accept).unwrap();
            world.stopped = Some(stopped);
            world.deliver();
            world.wait(minutes);
            world.stopped = None;
            world.deliver();
            world.wait(10);
            world.deliver();
            world.check();
            let booked = world.requests[&request].status == request::Status::Booked;
            let stands = world.bookings.values().any(|b| b.status == booking::Status::Confirmed);
            assert_eq!(booked, stands, "{stopped} stopped for {minutes} minutes");
            assert!(booked || minutes >= 3, "{stopped} stopped for {minutes} minutes");
        }
    }
}

#[test]
fn what_nobody_does_there_is_said() {
    let mut world = World::new();
    let request = world.request("alice");
    let mut far = world.requests[&request].asked.clone().unwrap();
    (far.place.latitude, far.place.longitude) = (0.0, 0.0);
    let create = request::Command::Create(far);
    world.ask::<Request>(person("alice"), "req_far", create).unwrap();
    world.deliver();
    assert_eq!(world.requests["req_far"].reason.as_deref(), Some("no_providers"));
    let hold = provider::Command::WithdrawOffer(DropOffer { offer_id: "off_unknown".into() });
    let id = world.providers.keys().next().unwrap().clone();
    assert!(world.ask::<Provider>(Caller::Runtime, &id, hold).unwrap().events.is_empty());
}
