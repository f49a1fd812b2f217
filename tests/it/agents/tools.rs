//! A system with a tool of each sort, and an agent that has them.

use proxie::contract::assistant::Assistant;
use proxie::contract::declare::{entity, operation, section};
use proxie::contract::operation::{Done, Nothing, ToolEffect};
use proxie::contract::section::Section;
use proxie::contract::{Call, Meta, Operation, Outcome, Problem, System};
use proxie::kernel::agent::MessagePolicy;
use proxie::kernel::entity::{self, DecideCx, Decided, Decision, Entity};
use proxie::kernel::error::ErrorCode;
use proxie::systems::{agents, app_topics, devices, marketplace};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub const SYSTEM: System = System {
    entities: &[entity::<Notes>()],
    operations: &[
        operation::<Write>(),
        operation::<Read>(),
        operation::<Send>(),
        operation::<Fax>(),
        operation::<Burn>(),
    ],
    assistants: &[
        Assistant {
            name: "clerk",
            summary: "Writes, sends and faxes",
            instructions: "You are a clerk.",
            tools: &["write_note", "read_notes", "send_webhook", "send_fax", "burn_notes"],
            without_asking: &["send_webhook"],
            hands_over_to: &["archivist"],
            on_message: MessagePolicy::Interrupt,
            max_seconds: None,
        },
        Assistant {
            name: "archivist",
            summary: "Reads",
            instructions: "You are an archivist.",
            tools: &["read_notes"],
            without_asking: &[],
            hands_over_to: &[],
            on_message: MessagePolicy::Reject,
            max_seconds: None,
        },
    ],
    sections: &[section::<OutsideSection>()],
    ..System::new("tools")
};

pub const ALL: &[&System] =
    &[&marketplace::SYSTEM, &devices::SYSTEM, &app_topics::SYSTEM, &agents::SYSTEM, &SYSTEM];

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct OutsideSection {
    pub url: String,
}

impl Section for OutsideSection {
    const NAME: &'static str = "outside";
    type Ready = Self;

    fn prepare(&self) -> Result<Self, String> {
        Ok(self.clone())
    }
}

/// A person's notes.
#[derive(Debug)]
pub struct Notes;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    Write(String),
    Burn,
    Read,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    Written(String),
    Burned,
}

#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("these are another person's notes")]
pub struct Rejection;

impl entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        ErrorCode::Forbidden
    }

    fn reason(&self) -> &'static str {
        "not_yours"
    }
}

type State = Vec<String>;
type Reply = Vec<String>;

impl Entity for Notes {
    const KIND: &'static str = "notes";
    const GOLDEN: &'static str =
        "{\"version\":1,\"event\":\"Burned\"}\n{\"version\":1,\"event\":{\"Written\":\"a\"}}";

    proxie::own_types!();

    fn decide(state: &State, command: Command, cx: &DecideCx<'_>) -> Decided<Self> {
        if !cx.caller.may_act_for(cx.key, "note") {
            return Err(Rejection);
        }
        let decision = Decision::reply(state.clone());
        Ok(match command {
            Command::Write(text) => decision.event(Event::Written(text)),
            Command::Burn => decision.event(Event::Burned),
            Command::Read => decision,
        })
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Written(text) => state.push(text.clone()),
            Event::Burned => state.clear(),
        }
    }

    fn is_query(command: &Command) -> bool {
        matches!(command, Command::Read)
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Words {
    text: String,
    /// Whose notes. Default: yours.
    of: Option<String>,
}

pub struct Write;

impl Operation for Write {
    const META: Meta = Meta::command("note.write", "Write a note")
        .post("/v1/notes")
        .tool("write_note", ToolEffect::Additive);
    type Input = Words;
    type Answer = Done;

    async fn run(call: &Call, Words { text, of }: Words) -> Outcome<Done> {
        let of = of.unwrap_or_else(|| call.user_id.to_string());
        call.ask::<Notes>(&of, Command::Write(text), call.meta()).await?;
        Ok(Done {})
    }
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct AllNotes {
    items: Vec<String>,
}

pub struct Read;

impl Operation for Read {
    const META: Meta = Meta::query("note.read", "Read your notes")
        .get("/v1/notes")
        .tool("read_notes", ToolEffect::ReadOnly);
    type Input = Nothing;
    type Answer = AllNotes;

    async fn run(call: &Call, _: Nothing) -> Outcome<AllNotes> {
        let items = call.ask::<Notes>(&call.user_id, Command::Read, call.undeduplicated()).await?;
        Ok(AllNotes { items })
    }
}

pub struct Burn;

impl Operation for Burn {
    const META: Meta = Meta::command("note.burn", "Burn all notes")
        .post("/v1/notes/burn")
        .tool("burn_notes", ToolEffect::Destructive);
    type Input = Nothing;
    type Answer = Done;

    async fn run(call: &Call, _: Nothing) -> Outcome<Done> {
        call.ask::<Notes>(&call.user_id, Command::Burn, call.meta()).await?;
        Ok(Done {})
    }
}

async fn post(call: &Call, path: &str, text: String) -> Outcome<Done> {
    let url = format!("{}{path}", call.settings::<OutsideSection>().url);
    let request = reqwest::Client::new().post(url).header("idempotency-key", &call.id).body(text);
    let away = |error: reqwest::Error| {
        let code = ErrorCode::Unavailable;
        Problem::new(code, error.without_url().to_string())
    };
    request.send().await.and_then(reqwest::Response::error_for_status).map_err(away)?;
    Ok(Done {})
}

pub struct Send;

impl Operation for Send {
    const META: Meta = Meta::command("note.send", "Send a note outside")
        .post("/v1/notes/send")
        .tool("send_webhook", ToolEffect::Outside)
        .keyed();
    type Input = Words;
    type Answer = Done;

    async fn run(call: &Call, Words { text, .. }: Words) -> Outcome<Done> {
        post(call, "/keyed", text).await
    }
}

pub struct Fax;

impl Operation for Fax {
    const META: Meta = Meta::command("note.fax", "Fax a note")
        .post("/v1/notes/fax")
        .tool("send_fax", ToolEffect::Outside);
    type Input = Words;
    type Answer = Done;

    async fn run(call: &Call, Words { text, .. }: Words) -> Outcome<Done> {
        post(call, "/fax", text).await
    }
}
