//! A small entity with every feature of the runtime, for tests and benchmarks.

use proxie::kernel::clock::Timestamp;
use proxie::kernel::entity::*;
use proxie::kernel::error::ErrorCode;
use proxie::kernel::work::Work;
use serde::{Deserialize, Serialize};
use serde_json::json;

pub struct Counter;

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    pub total: i64,
    pub timers: u32,
    pub runs: Vec<String>,
    pub failures: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    Add(i64),
    /// Adds, unless the total would exceed the limit.
    AddUpTo {
        n: i64,
        limit: i64,
    },
    Get,
    WaitFor {
        at_least: i64,
    },
    Echo(String),
    /// Adds here and tells others to add, through the outbox.
    Spread {
        to: Vec<String>,
        n: i64,
    },
    AddAt {
        at: Timestamp,
        n: i64,
        name: String,
    },
    Forget {
        name: String,
    },
    Fired(i64),
    Run {
        runner: String,
    },
    Ran {
        outcome: String,
    },
    Failed(String),
    Note(String),
    Publish {
        event: String,
    },
    Panic,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    Added(i64),
    Fired(i64),
    Ran(String),
    Failed(String),
    Noted(String),
    Planned,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Total(i64),
    Echo(String),
    Done,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("the limit of {limit} would be exceeded")]
    Limit { limit: i64 },
}

impl proxie::kernel::entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        ErrorCode::Rejected
    }
    fn reason(&self) -> &'static str {
        "limit"
    }
}

/// Work of the runners in tests. What they do is the input.
pub struct Test;

impl Work for Test {
    const NAME: &'static str = "test";
    type Input = String;
    type Outcome = String;
}

/// Work whose repetition is harmless.
pub struct Again;

impl Work for Again {
    const NAME: &'static str = "again";
    type Input = String;
    type Outcome = String;
    const REPEATABLE: bool = true;
}

/// Work that no node has a runner for.
struct Missing;

impl Work for Missing {
    const NAME: &'static str = "missing";
    type Input = ();
    type Outcome = ();
}

/// `Command::Add`, as another counter sends it.
#[derive(Serialize, Deserialize)]
struct Add(i64);

impl Message for Add {
    const TO: &'static str = Counter::KIND;
    const NAME: &'static str = "Add";
}

impl Entity for Counter {
    const KIND: &'static str = "counter";
    const EVENT_VERSION: u16 = 2;
    const GOLDEN: &'static str = r#"
{"version":1,"event":{"Increased":1}}
{"version":2,"event":{"Added":2}}
{"version":2,"event":{"Fired":3}}
{"version":2,"event":{"Ran":"ok"}}
{"version":2,"event":{"Failed":"no"}}
{"version":2,"event":{"Noted":"x"}}
{"version":2,"event":"Planned"}
"#;
    const HAS_TOPIC: bool = true;

    proxie::own_types!();

    fn is_query(command: &Command) -> bool {
        matches!(command, Command::Get | Command::Echo(_) | Command::WaitFor { .. })
    }

    fn decide(state: &State, command: Command, _: &DecideCx<'_>) -> Decided<Self> {
        Ok(match command {
            Command::Add(n) => {
                Decision::reply(Reply::Total(state.total + n)).event(Event::Added(n))
            }
            Command::AddUpTo { n, limit } if state.total + n > limit => {
                return Err(Rejection::Limit { limit });
            }
            Command::AddUpTo { n, .. } => {
                Decision::reply(Reply::Total(state.total + n)).event(Event::Added(n))
            }
            Command::Get => Decision::reply(Reply::Total(state.total)),
            Command::WaitFor { at_least } if state.total < at_least => Decision::wait(),
            Command::WaitFor { .. } => Decision::reply(Reply::Total(state.total)),
            Command::Echo(text) => Decision::reply(Reply::Echo(text)),
            Command::Spread { to, n } => Decision::reply(Reply::Done)
                .event(Event::Planned)
                .effects(to.into_iter().map(|key| Effect::send(key, &Add(n)))),
            Command::AddAt { at, n, name } => Decision::reply(Reply::Done)
                .event(Event::Planned)
                .effect(Effect::schedule::<Counter>(name, at, &Command::Fired(n))),
            Command::Forget { name } => {
                Decision::reply(Reply::Done).event(Event::Planned).effect(Effect::cancel(name))
            }
            Command::Fired(n) => Decision::reply(Reply::Done).event(Event::Fired(n)),
            Command::Run { runner } => {
                let run = match runner.as_str() {
                    "missing" => Effect::run::<Missing>("tag", &()),
                    again if again.starts_with("again") => Effect::run::<Again>("tag", &runner),
                    _ => Effect::run::<Test>("tag", &runner),
                };
                Decision::reply(Reply::Done).event(Event::Planned).effect(run)
            }
            Command::Ran { outcome } if outcome.contains("poison") => panic!("told to"),
            Command::Ran { outcome } => Decision::reply(Reply::Done).event(Event::Ran(outcome)),
            Command::Failed(reason) => Decision::reply(Reply::Done).event(Event::Failed(reason)),
            Command::Note(text) => Decision::reply(Reply::Done).event(Event::Noted(text)),
            Command::Publish { event } => Decision::reply(Reply::Done)
                .event(Event::Planned)
                .effect(Effect::publish(&event, json!({ "total": state.total }))),
            Command::Panic => panic!("told to"),
        })
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Added(n) => state.total += n,
            Event::Fired(n) => {
                state.total += n;
                state.timers += 1;
            }
            Event::Ran(outcome) => state.runs.push(outcome.clone()),
            Event::Failed(reason) => state.failures.push(reason.clone()),
            Event::Noted(_) | Event::Planned => {}
        }
    }

    fn upcast(_version: u16, mut event: serde_json::Value) -> serde_json::Value {
        // Version 1 called it `Increased`.
        match event.get_mut("Increased").map(serde_json::Value::take) {
            Some(n) => json!({ "Added": n }),
            None => event,
        }
    }

    fn run_finished(outcome: RunOutcome) -> Option<Command> {
        let outcome = match outcome.result {
            Ok(value) => format!("ok:{value}"),
            Err(error) => format!("error:{error}"),
        };
        Some(Command::Ran { outcome })
    }

    fn send_failed(failure: SendFailure) -> Option<Command> {
        Some(Command::Failed(failure.reason))
    }
}
