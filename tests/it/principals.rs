//! Who acts, for whom: an agent that turns words into sends reaches what its own person has, and nothing else.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proxie::actors::{AnyRunner, RunCx, RunError, RunLimits, Runner};
use proxie::app::core::Core;
use proxie::cluster::CommandMeta;
use proxie::cluster::topics::{Published, Subscriber};
use proxie::kernel::entity::spec::Never;
use proxie::kernel::entity::*;
use proxie::kernel::error::AskError;
use proxie::kernel::work::Work;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Setup, database, eventually, pool, try_prepare};

/// Sends what it is told to, as one that is talked into anything.
struct Agent;

#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    person: Option<Principal>,
    refused: Vec<(String, String, String)>,
    ran: Vec<String>,
}

/// Kind, key and command of a send.
type Attempt = (String, String, Value);

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Command {
    Hire(Option<Principal>),
    Try(Vec<Attempt>),
    Refused(SendFailure),
    Refusals,
    /// Has it run, with this input.
    Run(String),
    Ran(String),
}

#[derive(Debug, Serialize, Deserialize)]
enum Event {
    Hired(Option<Principal>),
    Tried,
    Refused(String, String, String),
    Ran(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Reply {
    Done,
    /// Kind, command and reason of each, and what came of runs.
    Refusals(Vec<(String, String, String)>, Vec<String>),
}

impl Entity for Agent {
    const KIND: &'static str = "agent";
    const GOLDEN: &'static str = r#"
{"version":1,"event":{"Hired":{"user_id":"alice","scopes":["playback"]}}}
{"version":1,"event":"Tried"}
{"version":1,"event":{"Refused":["device","Get","not_found"]}}
{"version":1,"event":{"Ran":"said"}}
"#;

    type State = State;
    type Command = Command;
    type Event = Event;
    type Reply = Reply;
    type Rejection = Never;

    fn decide(state: &State, command: Command, _: &DecideCx<'_>) -> Decided<Self> {
        let done = Decision::reply(Reply::Done);
        Ok(match command {
            Command::Hire(person) => done.event(Event::Hired(person)),
            Command::Try(attempts) => {
                let send = |(kind, key, command): Attempt| Effect::Send {
                    kind: Box::leak(kind.into_boxed_str()),
                    key,
                    command,
                };
                done.event(Event::Tried).effects(attempts.into_iter().map(send))
            }
            Command::Refused(SendFailure { kind, command, reason, .. }) => {
                done.event(Event::Refused(kind, name_of(&command), reason))
            }
            Command::Refusals => {
                Decision::reply(Reply::Refusals(state.refused.clone(), state.ran.clone()))
            }
            Command::Run(input) => {
                done.event(Event::Tried).effect(Effect::run::<Say>("tag", &input))
            }
            Command::Ran(outcome) => done.event(Event::Ran(outcome)),
        })
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Hired(person) => state.person = person.clone(),
            Event::Tried => {}
            Event::Ran(outcome) => state.ran.push(outcome.clone()),
            Event::Refused(kind, command, reason) => {
                state.refused.push((kind.clone(), command.clone(), reason.clone()));
            }
        }
    }

    fn is_query(command: &Command) -> bool {
        matches!(command, Command::Refusals)
    }

    fn acts_for(_: &str, state: &State) -> Option<Principal> {
        state.person.clone()
    }

    fn run_finished(outcome: RunOutcome) -> Option<Command> {
        Some(Command::Ran(outcome.of::<Say>().unwrap_or_else(|error| error)))
    }

    fn send_failed(failure: SendFailure) -> Option<Command> {
        Some(Command::Refused(failure))
    }
}

/// A command's variant.
fn name_of(command: &Value) -> String {
    match command {
        Value::String(name) => name.clone(),
        Value::Object(variant) => variant.keys().next().unwrap().clone(),
        other => panic!("{other} is no command"),
    }
}

/// What a person has: an object of every kind, made in ways that are open to them.
struct Person {
    id: &'static str,
    device: &'static str,
}

const ALICE: Person = Person { id: "alice", device: "dev_00000000000000000000000001" };
const BOB: Person = Person { id: "bob", device: "dev_00000000000000000000000002" };

impl Person {
    fn key(&self, prefix: &str) -> String {
        format!("{prefix}_{}", self.id)
    }

    fn card(&self) -> Value {
        json!({"id": self.key("prv"), "name": "X", "city": "Berlin", "rating": 5.0, "reviews": 0})
    }

    fn terms(&self) -> Value {
        json!({
            "request_id": self.key("req"), "offer_id": "off_1", "consumer_id": self.id, "provider": self.card(),
            "provider_owner_id": self.id, "booking_id": self.key("bkg"), "service": "haircut", "details": "short",
            "place": place(), "price": money(), "starts_at": "2030-01-07T10:00:00Z",
            "ends_at": "2030-01-07T11:00:00Z", "expires_at": "2030-01-06T10:00:00Z",
        })
    }

    fn asked(&self) -> Value {
        json!({
            "consumer_id": self.id, "session_id": self.key("ses"), "service": "haircut", "details": "short",
            "place": place(), "when": when(), "budget": null, "time_zone": "Europe/Berlin",
        })
    }

    fn device(&self, name: &str) -> Value {
        json!({
            "name": name, "device_type": "web", "push_token": null,
            "capabilities": {"supports_4k": false, "supports_hdr": false, "supports_dolby_atmos": false,
                "supported_platforms": ["netflix"], "remote_control": true},
        })
    }

    fn start(&self) -> Value {
        let choice = json!({"platform": "netflix", "access": "free", "quality": "hd", "deep_link": "x:1",
            "web_fallback": "https://x.example"});
        json!({"content_id": "tt1", "device_id": self.device, "choice": choice, "resume_position_ms": null, "idle_s": 600})
    }

    async fn moves_in(&self, core: &Core) {
        let user = || Caller::user(self.id, Role::Consumer);
        let open =
            json!({"Open": {"time_zone": "Europe/Berlin", "locale": "en", "currency": null}});
        ask(core, "session", &self.key("ses"), open, user()).await;
        ask(core, "request", &self.key("req"), json!({"Create": self.asked()}), user()).await;
        let take = json!({
            "agent": "/a2a", "provider_id": null, "context_id": "ctx", "begins": true, "message_id": "m1",
            "parts": [], "act": {"say": "a haircut"}, "push": null,
        });
        ask(core, "task", &self.key("task"), json!({"Take": take}), user()).await;
        let enroll =
            json!({"Enroll": {"owner_id": self.id, "profile": profile(), "standing": null}});
        ask(core, "provider", &self.key("prv"), enroll, user()).await;
        let provider = Caller::entity("provider", self.key("prv"));
        ask(core, "booking", &self.key("bkg"), json!({"Confirm": self.terms()}), provider).await;
        ask(core, "device", self.device, json!({"Register": self.device("old")}), user()).await;
        let join = json!({"Join": {"device": self.device, "max_devices": 8}});
        ask(core, "sync", self.id, join, user()).await;
        let start = json!({"Start": {"session_id": self.key("plb"), "start": self.start(), "replaces": null, "max_streams": 4}});
        ask(core, "playback", self.id, start, user()).await;
        let start = self.run();
        ask(core, "agent_run", &self.key("run"), start, user()).await;
    }

    fn run(&self) -> Value {
        let terms = json!({
            "on_message": "steer", "max_turns": 1, "max_cost": 1, "max_seconds": 600, "approval_seconds": 600,
            "max_same_calls": 3, "context_tokens": 1_000,
        });
        let words = json!({"role": "user", "parts": [{"type": "text", "text": "hello"}]});
        let version = "ver_00000000000000000000000000000000";
        json!({"Start": {"agent": "a", "version": version, "terms": terms, "scopes": null, "words": words}})
    }

    /// Every command of every kind, at what this person has. What ends an object comes last.
    fn attempts(&self) -> Vec<Attempt> {
        let mut attempts = Vec::new();
        let mut at = |kind: &str, key: &str, commands: Vec<Value>| {
            attempts.extend(commands.into_iter().map(|c| (kind.to_owned(), key.to_owned(), c)));
        };
        let publication = || json!({"@publication": {"event": "x:y", "data": {}}});
        let publish = || json!({"Publish": {"event": "x:y", "data": {}}});
        let (request_id, booking_id) = (self.key("req"), self.key("bkg"));
        let session_id = self.key("plb");
        at("user", self.id, vec![publish(), publication()]);
        at("app", "room", vec![publish(), publication()]);
        let call = json!({"call": "1", "model": "gpt", "most": 1, "until": "2030-01-07T10:00:00Z", "otherwise": null});
        let bill = json!({
            "call": "1", "model": "gpt", "cost": 1, "has_failed": false,
            "usage": {"input": 1, "cached_input": 0, "cache_writes": 0, "output": 1, "reasoning": 0, "is_estimate": false},
        });
        at(
            "budget",
            &format!("user-{}", self.id),
            vec![
                json!({"Allow": {"limit": 1, "warn_percent": 80, "period": "day"}}),
                json!({"Show": {"otherwise": null}}),
                json!({"Reserve": call}),
                json!({"Settle": bill}),
                json!("Expire"),
            ],
        );
        at("content", "tt1", vec![json!({"SetAvailability": []})]);
        let start = self.run();
        let definition = json!({
            "name": "a", "instructions": "x", "tools": [], "scopes": null, "max_tokens": 1,
            "terms": start["Start"]["terms"],
        });
        at("agent_version", "ver_1", vec![json!({"Define": definition}), json!("Show")]);
        let words = start["Start"]["words"].clone();
        at(
            "agent_run",
            &self.key("run"),
            vec![
                start,
                json!({"Say": {"text": words}}),
                json!({"Decide": {"use_id": 1, "arguments": "x", "allow": true}}),
                json!("Show"),
                json!({"Turn": {"turn": 1}}),
                json!({"Use": {"use_id": 1}}),
                json!({"TurnOver": {"turn": 1}}),
                json!({"UseOver": {"use_id": 1}}),
                json!({"Delivered": {"use_id": 1, "task": {"id": "t", "context_id": "c", "use_id": 1}}}),
                json!({"Thought": {"turn": 1, "thought": "Over"}}),
                json!({"Acted": {"use_id": 1, "acted": "Over"}}),
                json!("TimeOut"),
                json!("ApprovalsExpire"),
                json!("Cancel"),
            ],
        );
        at(
            "session",
            &self.key("ses"),
            vec![
                json!({"Open": {"time_zone": "Europe/Berlin", "locale": "de", "currency": null}}),
                json!({"SendMessage": {"content": "hello", "media": []}}),
                json!({"Compare": {"asked": self.asked()}}),
                json!({"Typing": {"is_typing": true}}),
                publish(),
                publication(),
                json!({"RequestProgress": {"request_id": request_id, "progress": "Expired"}}),
                json!({"RequestRefused": {"request_id": request_id, "asked": "create", "reason": "x"}}),
                json!({"RunTold": {"run_id": self.key("run"), "turn": 1, "heard": 1, "model": null, "news": {"Answered": {"text": "x"}}}}),
                json!({"TakeEngaged": {"run_id": self.key("run"), "outcome": {"Ok": null}}}),
                json!({"Close": {"end": true}}),
            ],
        );
        let offer = json!({
            "id": "off_1", "provider": self.card(), "price": money(), "starts_at": "2030-01-07T10:00:00Z",
            "ends_at": "2030-01-07T11:00:00Z", "message": "", "score": score(), "status": "open",
            "created_at": "2030-01-06T10:00:00Z", "expires_at": "2030-01-07T09:00:00Z",
        });
        let of_offer = |name: &str| json!({name: {"offer_id": "off_1"}});
        at(
            "request",
            &request_id,
            vec![
                json!({"Create": self.asked()}),
                json!({"AskFor": {"asked": self.asked(), "provider_id": null, "task_id": self.key("task")}}),
                json!({"CreateWithPhotos": {"asked": self.asked(), "photos": ["pho_1"]}}),
                json!("Get"),
                json!("WhoWasAsked"),
                of_offer("AcceptOffer"),
                of_offer("DeclineOffer"),
                of_offer("AwaitAcceptance"),
                json!({"AcceptPick": {"pick": "best"}}),
                json!({"TakeMatches": {"candidates": []}}),
                json!({"MatchFailed": {"error": "x"}}),
                json!("RetryMatch"),
                json!({"ReceiveOffer": {"offer": offer}}),
                json!({"ReceiveDecline": {"provider_id": self.key("prv"), "decline": {"reason": "no_skill", "lowest_price": null}}}),
                of_offer("WithdrawOffer"),
                json!({"HoldRefused": {"offer_id": "off_1", "booking_id": booking_id, "reason": "x"}}),
                json!({"BookingConfirmed": {"booking_id": booking_id, "offer_id": "off_1"}}),
                json!({"BookingCancelled": {"booking_id": booking_id, "by": "system"}}),
                of_offer("ExpireOffer"),
                json!({"AcceptanceOverdue": {"booking_id": booking_id}}),
                json!({"AbandonAcceptance": {"booking_id": booking_id, "reason": "x"}}),
                json!("Expire"),
                json!({"Cancel": {"reason": null}}),
            ],
        );
        let take = json!({
            "agent": "/a2a", "provider_id": null, "context_id": "ctx", "begins": true, "message_id": "m2",
            "parts": [], "act": {"say": "a haircut"}, "push": null,
        });
        let push = json!({"id": "p", "url": "https://example.org", "token": null, "scheme": null, "credentials": null});
        let progress =
            json!({"request_id": request_id, "progress": "Expired", "offers": [], "pending": 0});
        at(
            "task",
            &self.key("task"),
            vec![
                json!({"Take": take}),
                json!({"PutPush": {"push": push}}),
                json!({"DropPush": {"id": "p"}}),
                json!({"AwaitChange": {"after": 0}}),
                json!({"RequestTold": progress}),
                json!({"RequestRefused": {"request_id": request_id, "asked": "create", "reason": "x"}}),
                json!("Notified"),
                json!("Cancel"),
            ],
        );
        at(
            "provider",
            &self.key("prv"),
            vec![
                json!("Get"),
                json!({"Enroll": {"owner_id": self.id, "profile": profile(), "standing": null}}),
                json!({"Update": {"patch": {"bio": "mine now"}, "expected_version": null}}),
                json!({"Leads": {"request_id": null}}),
                json!({"SuggestOffer": {"request_id": request_id}}),
                json!({"SubmitOffer": {"request_id": request_id, "terms": {}}}),
                json!({"DeclineLead": {"request_id": request_id}}),
                json!({"LeadOverdue": {"request_id": request_id}}),
                json!({"DeskEngaged": {"run_id": self.key("run"), "outcome": {"Ok": null}}}),
                json!({"RunTold": {"run_id": self.key("run"), "turn": 1, "heard": 1, "model": null, "news": {"Answered": {"text": "x"}}}}),
                json!({"ConsiderLead": {"lead": {"request_id": request_id, "service": "haircut", "details": "", "place": place(),
                    "when": when(), "budget": null, "score": score()}}}),
                json!({"HoldSlot": self.terms()}),
                json!({"ReleaseSlot": {"booking_id": booking_id}}),
                json!({"WithdrawOffer": {"offer_id": "off_1"}}),
                json!({"RecordReview": {"booking_id": booking_id, "stars": 1}}),
            ],
        );
        at(
            "booking",
            &booking_id,
            vec![
                json!("Get"),
                json!({"Confirm": self.terms()}),
                json!({"Remind": {"hours_before": 1}}),
                json!("Start"),
                json!("Complete"),
                json!({"Review": {"rating": 1, "comment": null}}),
                json!("MarkNoShow"),
                json!({"CancelForConsumer": {"reason": null}}),
                json!({"Cancel": {"reason": null}}),
            ],
        );
        at(
            "device",
            self.device,
            vec![
                json!("Get"),
                json!({"Register": self.device("new")}),
                json!({"Connect": {"connection": "con_1", "lease_s": 60}}),
                json!({"Renew": {"connection": "con_1", "lease_s": 60}}),
                json!({"Control": {"action": {"action": "pause"}, "from": null, "session_id": null, "ttl_ms": 1_000}}),
                json!({"Disconnect": {"connection": "con_1"}}),
                json!("LeaseEnded"),
                json!({"Play": {"session_id": session_id, "start": self.start()}}),
                json!({"Stopped": {"session_id": session_id}}),
                json!("Remove"),
            ],
        );
        at(
            "playback",
            self.id,
            vec![
                json!({"Report": {"session_id": session_id, "report": {"status": "paused", "position_ms": 1, "duration_ms": null}}}),
                json!({"DeviceIs": {"session_id": session_id, "there": "Removed"}}),
                json!({"TimedOut": {"session_id": session_id, "why": "timed_out"}}),
                json!({"Start": {"session_id": "plb_new", "start": self.start(), "replaces": null, "max_streams": 4}}),
                json!({"Stop": {"session_id": "plb_new"}}),
            ],
        );
        let limits = json!({"max_skew_ms": 1_000, "max_entries": 100, "max_tombstones": 100});
        at(
            "sync",
            self.id,
            vec![
                json!({"Join": {"device": "dev_00000000000000000000000009", "max_devices": 8}}),
                json!({"Update": {"device": self.device, "seen": 0, "operations": [], "limits": limits}}),
                json!({"Read": {"after": null}}),
                json!({"Device": {"device": self.device}}),
                json!("Devices"),
                json!({"Explain": {"content_id": "tt1"}}),
                json!({"Leave": {"device": self.device}}),
            ],
        );
        attempts
    }
}

fn place() -> Value {
    json!({"name": "Alexanderplatz", "city": "Berlin", "country": "DE", "latitude": 52.522, "longitude": 13.413,
        "time_zone": "Europe/Berlin"})
}

fn money() -> Value {
    json!({"amount_minor": 5_000, "currency": "EUR"})
}

fn when() -> Value {
    let soon = proxie::kernel::clock::Clock::System.now() + jiff::SignedDuration::from_hours(30);
    json!({"earliest": soon, "latest": soon, "exact": true})
}

fn score() -> Value {
    json!({"total": 1.0, "parts": {"skill": 1.0, "location": 1.0, "availability": 1.0, "price": 1.0, "rating": 1.0,
        "response": 1.0}})
}

fn profile() -> Value {
    json!({
        "name": "A Chair", "bio": "", "languages": ["en"], "radius_km": 10.0, "weekly": {}, "days_off": [],
        "services": [{"service": "haircut", "price": money(), "per": "service", "duration_minutes": 45}],
        "base": {"city": "Berlin", "country": "DE", "latitude": 52.5, "longitude": 13.4, "time_zone": "Europe/Berlin"},
        "minimum_notice_minutes": 120, "max_discount_percent": 20,
    })
}

async fn ask(core: &Core, kind: &str, key: &str, command: Value, caller: Caller) {
    let text = command.to_string();
    let answer = core.entities.ask_json(kind, key, &text, CommandMeta::new(caller)).await;
    assert!(matches!(answer, Ok(Ok(_))), "{kind}/{key} {command}: {answer:?}");
}

async fn node() -> (Core, PgPool) {
    node_with(Setup::default()).await
}

async fn node_with(setup: Setup) -> (Core, PgPool) {
    let database = database().await;
    let reads = pool(database.clone()).await;
    let mut prepared = try_prepare(database, setup).await.unwrap();
    for kind in proxie::systems::ALL.iter().flat_map(|system| system.entities) {
        (kind.register)(&mut prepared.registry).await.unwrap();
    }
    prepared.registry.register::<Agent>().await.unwrap();
    let core = prepared.run().await.unwrap();
    ALICE.moves_in(&core).await;
    BOB.moves_in(&core).await;
    (core, reads)
}

/// What an agent that acts for `person` may not do, of these. Everything has been delivered.
async fn refused(
    (core, reads): &(Core, PgPool),
    key: &str,
    person: Option<Principal>,
    attempts: Vec<Attempt>,
) -> BTreeSet<String> {
    let agent = core.entities.of::<Agent>(key);
    let all = attempts.clone();
    for command in [Command::Hire(person), Command::Try(attempts)] {
        agent.ask(command, CommandMeta::runtime()).await.unwrap().unwrap();
    }
    eventually("all is delivered", || async {
        let sql = "select count(*) from outbox where sender_kind = 'agent' and sender_key = $1";
        let owed: i64 = sqlx::query_scalar(sql).bind(key).fetch_one(reads).await.unwrap();
        owed == 0
    })
    .await;
    let refusals = agent.ask(Command::Refusals, CommandMeta::runtime()).await.unwrap().unwrap();
    let Reply::Refusals(refusals, _) = refusals else { panic!("{refusals:?}") };
    let mut refused: BTreeSet<String> =
        refusals.iter().map(|(kind, command, _)| format!("{kind} {command}")).collect();
    // What is sent to a person is sealed on its way, so that its name is not told; but all of it is one kind's.
    let sealed = |kind: &str| refusals.iter().filter(|(of, ..)| of == kind).count();
    let to_inboxes: Vec<Attempt> = all.into_iter().filter(|(kind, ..)| *kind == "user").collect();
    if sealed("user") == to_inboxes.len() {
        refused.extend(names(&to_inboxes));
    }
    refused
}

fn names(attempts: &[Attempt]) -> BTreeSet<String> {
    attempts.iter().map(|(kind, _, command)| format!("{kind} {}", name_of(command))).collect()
}

/// What the agent `key` has written in objects of others.
async fn written(reads: &PgPool, key: &str) -> Vec<String> {
    let sql = "select distinct kind || '/' || key || ' by ' || caller from journal
               where caller like 'agent:' || $1 || '%' and kind <> 'agent' order by 1";
    sqlx::query_scalar(sql).bind(key).fetch_all(reads).await.unwrap()
}

/// The commands that a kind reads, as it names them itself when it is asked for another.
async fn commands_of(core: &Core, kind: &str) -> Vec<String> {
    let asked = core.entities.ask_json(kind, "x", r#"{"@":{}}"#, CommandMeta::runtime()).await;
    let Err(AskError::BadCommand(known)) = asked else { panic!("{kind}: {asked:?}") };
    let listed = known.split("expected").nth(1).expect("it says what it expects");
    listed.split('`').skip(1).step_by(2).map(|name| format!("{kind} {name}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_reaches_nothing_of_another_person() {
    let node = node().await;
    let attempts = BOB.attempts();
    // Whatever kind and command there is, is tried.
    let mut known = BTreeSet::new();
    for (kind, _) in node.0.registry.kinds().filter(|(kind, _)| *kind != Agent::KIND) {
        known.extend(commands_of(&node.0, kind).await);
    }
    let mut tried = names(&attempts);
    tried.retain(|name| !name.ends_with("@publication"));
    assert_eq!(tried, known);

    let open: BTreeSet<String> = ["provider Get".to_owned()].into();
    for (key, person) in [
        ("unlimited", Principal::of("alice")),
        (
            "limited",
            Principal { user_id: "alice".into(), scopes: Scopes::parse("playback device") },
        ),
    ] {
        let refused = refused(&node, key, Some(person), attempts.clone()).await;
        assert_eq!(&names(&attempts) - &refused, open, "{key}");
        assert_eq!(written(&node.1, key).await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_no_protocol_knows_has_no_authority_of_its_own() {
    let node = node().await;
    let attempts = BOB.attempts();
    let refused = refused(&node, "own", None, attempts.clone()).await;
    let mut open = &names(&attempts) - &refused;
    // Parts of the system may announce something.
    open.retain(|name| !name.ends_with(" Publish") && !name.ends_with(" @publication"));
    assert_eq!(open, ["provider Get".to_owned()].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_does_for_its_person_what_its_scopes_name() {
    let node = node().await;
    let limited = Principal { user_id: "alice".into(), scopes: Scopes::parse("playback device") };
    let done =
        |refused: &BTreeSet<String>| -> BTreeSet<String> { &names(&ALICE.attempts()) - refused };
    let few = done(&refused(&node, "limited", Some(limited), ALICE.attempts()).await);
    let of = |kinds: &[&str]| -> BTreeSet<String> {
        let of = |name: &String| kinds.iter().any(|kind| name.starts_with(&format!("{kind} ")));
        few.iter().filter(|name| of(name)).cloned().collect()
    };
    let public = ["provider Get".to_owned()].into();
    assert_eq!(&of(&["device", "playback"]) | &public, few, "only these scopes");
    for does in
        ["device Register", "device Connect", "device Remove", "playback Report", "playback Start"]
    {
        assert!(few.contains(does), "{does}: {few:?}");
    }
    for internal in ["device Play", "playback TimedOut", "playback DeviceIs"] {
        assert!(!few.contains(internal), "{internal}");
    }
    assert_eq!(
        written(&node.1, "limited").await,
        [
            format!("device/{} by agent:limited for user:alice", ALICE.device),
            "playback/alice by agent:limited for user:alice".into(),
        ]
    );

    let all =
        done(&refused(&node, "unlimited", Some(Principal::of("alice")), ALICE.attempts()).await);
    for does in [
        "session SendMessage",
        "session Close",
        "request Cancel",
        "provider Update",
        "booking CancelForConsumer",
        "sync Join",
        "user Publish",
    ] {
        assert!(all.contains(does), "{does}: {all:?}");
    }
    for refused in [
        "content SetAvailability",
        "app Publish",
        "request Expire",
        "booking Confirm",
        "provider HoldSlot",
        "provider Enroll",
        "session RequestProgress",
    ] {
        assert!(!all.contains(refused), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_does_takes_the_scopes_of_whoever_speaks_in_it() {
    let (core, reads) = node().await;
    let say = |scopes: Scopes| {
        let content = "I need a haircut at Alexanderplatz, Berlin tomorrow at 5pm";
        let caller = Caller::User { id: "alice".into(), role: Role::Consumer, scopes };
        let command = json!({"SendMessage": {"content": content, "media": []}});
        ask(&core, "session", "ses_alice", command, caller)
    };
    let count = async |sql: &'static str| -> i64 {
        sqlx::query_scalar(sql).fetch_one(&reads).await.unwrap()
    };
    let requests =
        "select count(*) from journal where kind = 'request' and caller like 'session:%'";
    say(Scopes::parse("chat session")).await;
    eventually("the agent says that it may not", || async {
        count(
            "select count(*) from journal where kind = 'session' and event::text like '%nmatched%'",
        )
        .await
            == 1
    })
    .await;
    assert_eq!(count(requests).await, 0);
    say(Scopes::parse("chat request")).await;
    eventually("it asks for a haircut", || async { count(requests).await == 1 }).await;
}

/// A row as it is in the store, of this release or the one before.
async fn owe(
    reads: &PgPool,
    (kind, key): (&str, &str),
    to: (&str, &str, Value),
    principal: Option<&str>,
) {
    sqlx::query(
        "insert into outbox (id, slot, sender_kind, sender_key, position, target_kind, target_key, body, due_at, principal)
         select 'eff_' || $1 || $3 || $4, $2, $1, $3, coalesce(max(position), 0) + 1, $5, $4, $6, now() - interval '1 minute', $7
           from outbox where sender_kind = $1 and sender_key = $3",
    )
    .bind(kind)
    .bind(i32::from(proxie::kernel::ids::slot_of(kind, key)))
    .bind(key)
    .bind(to.1)
    .bind(to.0)
    .bind(to.2.to_string())
    .bind(principal)
    .execute(reads)
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_owed_says_for_whom_and_that_of_the_release_before_is_delivered() {
    let (core, reads) = node().await;
    let alice = r#"{"user_id":"alice","scopes":["device"]}"#;
    let cancel = || json!({"Cancel": {"reason": null}});
    let renamed = |person: &Person| json!({"Register": person.device("new")});
    let session = ("session", "ses_alice");
    owe(&reads, session, ("request", "req_alice", cancel()), None).await;
    owe(&reads, session, ("request", "req_bob", cancel()), None).await;
    owe(&reads, ("agent", "a"), ("device", ALICE.device, renamed(&ALICE)), Some(alice)).await;
    owe(&reads, ("agent", "a"), ("device", BOB.device, renamed(&BOB)), Some(alice)).await;
    owe(&reads, ("agent", "b"), ("device", ALICE.device, renamed(&ALICE)), Some("{}")).await;
    eventually("what can be delivered is", || async {
        let sql = "select count(*) from outbox where sender_key in ('ses_alice', 'a')";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&reads).await.unwrap() == 0
    })
    .await;
    let written = "select kind || '/' || key || ' by ' || caller from journal
                   where caller like 'session:%' or caller like 'agent:%' order by 1";
    let written: Vec<String> = sqlx::query_scalar(written).fetch_all(&reads).await.unwrap();
    let expected = [
        format!("device/{} by agent:a for user:alice", ALICE.device),
        "request/req_alice by session:ses_alice".to_owned(),
    ];
    assert_eq!(written, expected);
    // A newer release may say it in other words: it waits for a node that reads them.
    eventually("the other one was tried", || async {
        let sql =
            "select count(*) from outbox where sender_key = 'b' and last_error like '%for whom%'";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&reads).await.unwrap() == 1
    })
    .await;
    core.stop().await;
}

/// A run: of which runner, by which entity, and for whom.
type AskedFor = (&'static str, String, Option<Principal>);

struct Say;

impl Work for Say {
    const NAME: &'static str = "words";
    type Input = String;
    type Outcome = String;
}

/// Says what it knows of who asks, or hangs.
#[derive(Clone, Default)]
struct Words {
    asked: Arc<Mutex<Vec<AskedFor>>>,
    over: Arc<AtomicUsize>,
}

#[derive(Serialize, schemars::JsonSchema)]
struct Word {
    word: &'static str,
}

impl Announcement for Word {
    const EVENT: &'static str = "agent:word";
    const SUMMARY: &'static str = "A word of an answer";
    const TOPICS: &'static [&'static str] = &["agent"];
    const DURABLE: bool = false;
}

impl Runner for Words {
    type Work = Say;
    const LIMITS: RunLimits =
        RunLimits { timeout: Duration::from_millis(200), tries: 2, ..RunLimits::DEFAULT };

    async fn run(&self, cx: RunCx, input: String) -> Result<String, RunError> {
        assert!(cx.id.starts_with("eff_") && cx.deadline > Instant::now());
        self.asked.lock().unwrap().push((cx.kind, cx.key.to_string(), cx.principal.clone()));
        let (ended, over) = (cx.over(), self.over.clone());
        tokio::spawn(async move {
            ended.await;
            over.fetch_add(1, Ordering::SeqCst);
        });
        cx.stream(&Word { word: "yes" });
        if input == "hang" { std::future::pending().await } else { Ok("said".into()) }
    }
}

/// Keeps the frames that it hears.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Subscriber for Heard {
    fn deliver(&self, _: u64, published: &Arc<Published>) {
        self.0.lock().unwrap().push(published.text().to_owned());
    }

    fn resync(&self, _: u64) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_knows_for_whom_it_is_and_when_it_is_over() {
    let words = Words::default();
    let mut setup = Setup::default();
    setup.runners.push(AnyRunner::new(words.clone()));
    let (core, _reads) = node_with(setup).await;
    let heard = Arc::new(Heard::default());
    let _listens = core.topics.subscribe("agent:a", 0, heard.clone());
    let agent = core.entities.of::<Agent>("a");
    let alice = Principal { user_id: "alice".into(), scopes: Scopes::parse("chat") };
    let ran = async || {
        let reply = agent.ask(Command::Refusals, CommandMeta::runtime()).await.unwrap().unwrap();
        let Reply::Refusals(_, ran) = reply else { panic!("{reply:?}") };
        ran
    };
    for command in [Command::Hire(Some(alice.clone())), Command::Run("yes".into())] {
        agent.ask(command, CommandMeta::runtime()).await.unwrap().unwrap();
    }
    eventually("it has run", || async { ran().await == ["said"] }).await;
    assert_eq!(*words.asked.lock().unwrap(), [("agent", "a".to_owned(), Some(alice))]);
    eventually("it is over", || async { words.over.load(Ordering::SeqCst) == 1 }).await;
    let word = r#"{"event":"agent:word","topic":"agent:a","data":{"word":"yes"}}"#;
    assert_eq!(*heard.0.lock().unwrap(), [word]);

    // What hangs is dropped, what it started hears of that, and after two tries the agent does.
    agent.ask(Command::Run("hang".into()), CommandMeta::runtime()).await.unwrap().unwrap();
    eventually("it was given up", || async { ran().await.len() == 2 }).await;
    assert!(ran().await[1].contains("no outcome within"), "{:?}", ran().await);
    assert_eq!(words.asked.lock().unwrap().len(), 3);
    eventually("both are over", || async { words.over.load(Ordering::SeqCst) == 3 }).await;
}
