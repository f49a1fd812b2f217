//! A version of an agent: its definition, under the id that follows from its content. It never changes, so a run that
//! waited through releases goes on as it began.

use serde::{Deserialize, Serialize};

use crate::kernel::agent::AgentDefinition;
use crate::kernel::entity::{Caller, DecideCx, Decided, Decision, Entity, Role, to_value};
use crate::kernel::error::ErrorCode;

#[derive(Debug)]
pub struct AgentVersion;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    /// The node's, or an operator's. Told again, it is taken once.
    Define(Box<AgentDefinition>),
    /// Query.
    Show,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    Defined { definition: Box<AgentDefinition> },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    Defined,
    Shown(Box<AgentDefinition>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("there is no such version of an agent")]
    Unknown,
    #[error("the id of a version follows from its content")]
    OtherContent,
    #[error("versions are the node's to define")]
    NotYours,
}

impl crate::kernel::entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Unknown => ErrorCode::NotFound,
            Self::OtherContent => ErrorCode::Conflict,
            Self::NotYours => ErrorCode::Forbidden,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Unknown => "no_such_version",
            Self::OtherContent => "other_content",
            Self::NotYours => "not_yours",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// As JSON, since the schemas of its tools are.
    definition: Option<String>,
}

impl Entity for AgentVersion {
    const KIND: &'static str = "agent_version";
    const GOLDEN: &'static str = include_str!("golden/agent_version.jsonl");

    crate::own_types!();

    fn decide(state: &State, command: Command, cx: &DecideCx<'_>) -> Decided<Self> {
        let may =
            cx.caller.is_itself() || matches!(cx.caller, Caller::User { role: Role::Operator, .. });
        if !may {
            return Err(Rejection::NotYours);
        }
        match command {
            Command::Define(definition) if definition.version() != cx.key => {
                Err(Rejection::OtherContent)
            }
            Command::Define(_) if state.definition.is_some() => Ok(Decision::reply(Reply::Defined)),
            Command::Define(definition) => {
                Ok(Decision::reply(Reply::Defined).event(Event::Defined { definition }))
            }
            Command::Show => {
                let text = state.definition.as_deref().ok_or(Rejection::Unknown)?;
                // It was written by this type, of this release or of one before.
                let definition = serde_json::from_str(text).map_err(|_| Rejection::Unknown)?;
                Ok(Decision::reply(Reply::Shown(definition)))
            }
        }
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Defined { definition } => {
                state.definition = Some(to_value(definition).to_string());
            }
        }
    }

    fn is_query(command: &Command) -> bool {
        matches!(command, Command::Show)
    }
}
