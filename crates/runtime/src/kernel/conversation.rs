//! Conversations that agents take part in: what passes between a run of an agent and the entity that has started it.
//!
//! As JSON these stand in rows of the outbox and travel between nodes: names stay, and a new field has a default.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chat::PromptMessage;
use super::entity::{Caller, Effect, Principal};
use super::private::{Field, Private};
use super::work::Work;

pub const AGENT_RUN: &str = "agent_run";
/// The kinds of entities that start runs and hear how they go.
pub const SESSION: &str = "session";
pub const PROVIDER: &str = "provider";

crate::messages! {
    AGENT_RUN: SayToRun as "Say", RunDecision as "Decide", RunCancellation as "Cancel";
    SESSION: RunTold as "RunTold";
    PROVIDER: DeskTold as "RunTold";
}

/// The start of a run, in the conversation of the entity that asks for it. An error is the reason why there is none.
pub enum Engage {}

impl Work for Engage {
    const NAME: &'static str = "agents.engage";
    type Input = Engagement;
    type Outcome = ();
}

/// An agent that is to take part in a conversation, and the first words to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Engagement {
    pub agent: String,
    pub run_id: String,
    pub words: Private<PromptMessage, FirstWords>,
    /// For whom, where the entity that asks acts for nobody by itself.
    #[serde(default)]
    pub owner: Option<Principal>,
}

/// The private field of an engagement.
#[derive(Debug)]
pub enum FirstWords {}

impl Field for FirstWords {
    const NAME: &'static str = "run.words";
}

/// What the person of a conversation says to the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SayToRun {
    pub text: PromptMessage,
}

/// The person's word on a call that waits for it, by the hash of its arguments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunDecision {
    pub use_id: u32,
    pub arguments: String,
    pub allow: bool,
}

/// The end of a run that nobody needs any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunCancellation;

/// Word from a run: it has answered, waits, or has stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunTold {
    pub run_id: String,
    /// Questions to the model so far.
    pub turn: u32,
    /// Messages of the person that it has heard so far.
    pub heard: u32,
    /// The model that thought last, if one did.
    pub model: Option<String>,
    pub news: RunNews,
}

/// The same for a provider, whose front desk the agent is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeskTold(pub RunTold);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RunNews {
    Answered {
        text: String,
    },
    /// Calls that a person must allow.
    Waits {
        calls: Vec<WaitingCall>,
    },
    /// It has stopped without an answer; whoever goes on does it without it.
    Stopped {
        reason: String,
    },
}

/// A call that waits for a person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitingCall {
    pub use_id: u32,
    pub tool: String,
    pub arguments: Value,
    /// What an approval names, so that it is for these arguments and no others.
    pub arguments_hash: String,
    /// It was begun, and nobody knows whether it has happened.
    pub is_unknown: bool,
}

/// The entity that has started a run in its conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFollower {
    pub kind: String,
    pub key: String,
}

impl RunFollower {
    /// The caller, where it is an entity that can be told.
    pub fn of(caller: &Caller) -> Option<Self> {
        match caller {
            Caller::Entity { kind, key, .. } if [SESSION, PROVIDER].contains(&kind.as_str()) => {
                Some(Self { kind: kind.clone(), key: key.clone() })
            }
            _ => None,
        }
    }

    pub fn is(&self, caller: &Caller) -> bool {
        Self::of(caller).as_ref() == Some(self)
    }

    /// The session, if it is one.
    pub fn session(&self) -> Option<&str> {
        (self.kind == SESSION).then_some(&*self.key)
    }

    pub fn tell(&self, told: RunTold) -> Effect {
        match self.kind.as_str() {
            SESSION => Effect::send(self.key.as_str(), &told),
            _ => Effect::send(self.key.as_str(), &DeskTold(told)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kernel::entity::to_value;

    #[test]
    fn what_stands_in_rows_stays_as_it_was_first_written() {
        let told = RunTold {
            run_id: "run_1".into(),
            turn: 2,
            heard: 1,
            model: Some("gpt".into()),
            news: RunNews::Stopped { reason: "busy".into() },
        };
        let follower = |kind: &str| RunFollower { kind: kind.into(), key: "x".into() };
        let written = json!({"RunTold": {
            "run_id": "run_1", "turn": 2, "heard": 1, "model": "gpt", "news": {"Stopped": {"reason": "busy"}},
        }});
        for kind in [SESSION, PROVIDER] {
            let effect = follower(kind).tell(told.clone());
            assert_eq!(effect, Effect::Send { kind, key: "x".into(), command: written.clone() });
        }
        let call = WaitingCall {
            use_id: 1,
            tool: "accept_offer".into(),
            arguments: json!({"offer_id": "off_1"}),
            arguments_hash: "ab".into(),
            is_unknown: false,
        };
        let waits = json!({"Waits": {"calls": [{
            "use_id": 1, "tool": "accept_offer", "arguments": {"offer_id": "off_1"}, "arguments_hash": "ab",
            "is_unknown": false,
        }]}});
        assert_eq!(to_value(&RunNews::Waits { calls: vec![call] }), waits);
        let answered = RunNews::Answered { text: "yes".into() };
        assert_eq!(to_value(&answered), json!({"Answered": {"text": "yes"}}));
        let names: Vec<_> = ALL.iter().map(|(to, name)| format!("{to} {name}")).collect();
        let known = ["agent_run Say", "agent_run Decide", "agent_run Cancel"];
        assert_eq!(names[..3], known);
        assert_eq!(names[3..], ["session RunTold", "provider RunTold"]);
    }

    #[test]
    fn only_who_has_started_a_run_is_told_of_it() {
        let session = Caller::entity(SESSION, "ses_1");
        let follower = RunFollower::of(&session).unwrap();
        assert!(follower.is(&session) && follower.session() == Some("ses_1"));
        assert!(!follower.is(&Caller::entity(SESSION, "ses_2")));
        assert_eq!(RunFollower::of(&Caller::entity("device", "d")), None);
        assert_eq!(RunFollower::of(&Caller::Runtime), None);
    }
}
