//! A user's inbox: owns the durable topic `user:<id>`, on which everything that concerns the user is announced.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kernel::entity::{DecideCx, Decided, Decision, Effect, Entity, Publication};
use crate::kernel::error::ErrorCode;
use crate::kernel::private::INBOX;

#[derive(Debug)]
pub struct User;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Internal: another entity's `Effect::notify`.
    Publish { event: String, data: Value },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The publication, without its data, which is in the topic's history while that is kept. Older releases wrote the
    /// data here too.
    Notified { event: String },
}

/// The inbox's state, a counter. The publications are in the topic's history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub notified: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("only the system may do this")]
    InternalOnly,
}

impl crate::kernel::entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        ErrorCode::Forbidden
    }

    fn reason(&self) -> &'static str {
        "internal_only"
    }
}

impl Entity for User {
    const KIND: &'static str = INBOX;
    const GOLDEN: &'static str = include_str!("golden/user.jsonl");
    const HAS_TOPIC: bool = true;

    crate::own_types!();

    fn decide(_: &State, command: Command, cx: &DecideCx<'_>) -> Decided<Self> {
        let is_entity = cx.caller.user_id().is_none();
        if !(cx.caller.is_system() || is_entity && cx.caller.may_act_for(cx.key, "user")) {
            return Err(Rejection::InternalOnly);
        }
        let Command::Publish { event, data } = command;
        let publish = Effect::publish(&event, data).private_to(cx.key);
        Ok(Decision::reply(Reply::Done).event(Event::Notified { event }).effect(publish))
    }

    fn evolve(state: &mut State, event: &Event) {
        let Event::Notified { .. } = event;
        state.notified += 1;
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

    fn publish() -> Command {
        Command::Publish { event: "offer:new".into(), data: json!({"n": 1}) }
    }

    #[test]
    fn a_notification_is_published_on_the_users_topic() {
        let decision =
            given::<User>([]).when(publish()).then([Event::Notified { event: "offer:new".into() }]);
        let publish = Effect::publish("offer:new", json!({"n": 1}));
        assert_eq!(decision.effects, [publish.private_to("key")]);
    }

    #[test]
    fn the_journal_does_not_hold_the_data_again() {
        let decision = given::<User>([]).when(publish()).decision();
        let written = serde_json::to_string(&decision.events).unwrap();
        assert_eq!(written, r#"[{"Notified":{"event":"offer:new"}}]"#);
    }

    #[test]
    fn old_releases_are_read() {
        assert_eq!(replay_golden::<User>().unwrap(), State { notified: 2 });
    }

    #[test]
    fn users_cannot_write_to_an_inbox() {
        given::<User>([]).by_user("alice").when(publish()).then_rejected("internal_only");
    }
}
