//! A durable application topic: what clients publish gets an offset, and is kept.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kernel::entity::{Caller, DecideCx, Decided, Decision, Effect, Entity, Publication};
use crate::kernel::error::ErrorCode;

#[derive(Debug)]
pub struct AppTopic;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Whether a user may is configuration, and the gateway's word.
    Publish { event: String, data: Value },
}

/// Without the data, which is in the topic's history for as long as that is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    Published { event: String },
}

/// Bounded: a counter, and the topic's newest offset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub published: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Published { offset: i64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    /// Grants are of roles, and whoever acts for somebody has no role of theirs.
    #[error("this topic is not open to what acts for a person")]
    NotGranted,
}

impl crate::kernel::entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        ErrorCode::Forbidden
    }

    fn reason(&self) -> &'static str {
        "not_granted"
    }
}

impl Entity for AppTopic {
    const KIND: &'static str = "app";
    const GOLDEN: &'static str = include_str!("golden/app.jsonl");
    const HAS_TOPIC: bool = true;

    crate::own_types!();

    fn decide(
        state: &State,
        Command::Publish { event, data }: Command,
        cx: &DecideCx<'_>,
    ) -> Decided<Self> {
        let publish = match cx.caller {
            Caller::User { id, .. } => Effect::publish_from(id, &event, data),
            Caller::Entity { for_user: None, .. } | Caller::Runtime => {
                Effect::publish(&event, data)
            }
            Caller::Entity { for_user: Some(_), .. } => return Err(Rejection::NotGranted),
        };
        // Each event publishes once, so their number is the offset.
        let reply = Reply::Published { offset: state.published + 1 };
        Ok(Decision::reply(reply).event(Event::Published { event }).effect(publish))
    }

    fn evolve(state: &mut State, Event::Published { .. }: &Event) {
        state.published += 1;
    }

    fn publication(publication: Publication) -> Option<Command> {
        Some(Command::Publish { event: publication.event, data: publication.data })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kernel::entity::replay_golden;
    use crate::kernel::entity::spec::given;

    fn said() -> Command {
        Command::Publish { event: "app:said".into(), data: json!({"n": 1}) }
    }

    fn published() -> Event {
        Event::Published { event: "app:said".into() }
    }

    #[test]
    fn what_a_user_says_goes_under_his_name() {
        let mut topic = given::<AppTopic>([published(), published()]).by_user("alice");
        let decision = topic.when(said()).then([published()]);
        assert_eq!(decision.reply, Some(Reply::Published { offset: 3 }));
        assert_eq!(decision.effects, [Effect::publish_from("alice", "app:said", json!({"n": 1}))]);
    }

    #[test]
    fn what_an_entity_says_is_the_systems() {
        let decision = given::<AppTopic>([]).when(said()).then([published()]);
        assert_eq!(decision.effects, [Effect::publish("app:said", json!({"n": 1}))]);
    }

    #[test]
    fn old_releases_are_read() {
        assert_eq!(replay_golden::<AppTopic>().unwrap(), State { published: 1 });
    }
}
