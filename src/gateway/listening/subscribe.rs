//! Who may listen to a topic, and from where.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Outgoing;
use crate::cluster::topics::Subscription;
use crate::gateway::auth::Claims;
use crate::gateway::commands::{self, Call};
use crate::gateway::problem::{Outcome, Problem};
use crate::gateway::ws::protocol::{Position, split_topic};
use crate::gateway::{Gateway, Grant};
use crate::kernel::entity::Role;
use crate::persistence::publications::History;

/// A subscription that has begun. Live publications are already arriving.
pub struct Started {
    pub handle: Subscription,
    /// What the client is taken to have.
    pub after: i64,
    pub recovered: bool,
    pub position: Position,
    /// The first page of what it missed.
    pub page: Option<Arc<History>>,
}

impl Started {
    /// The reply to `topic:subscribe`.
    pub fn shown(&self) -> Value {
        json!({"recovered": self.recovered, "position": self.position})
    }
}

enum Kind {
    /// Its owner's commits assign offsets.
    Durable,
    /// Without history.
    Ephemeral,
}

async fn authorise(gateway: &Gateway, claims: &Claims, topic: &str) -> Outcome<Kind> {
    let (kind, key) = split_topic(topic)?;
    // Reads need no command id.
    let call = Call { gateway, user_id: &claims.sub, role: claims.role, id: "" };
    match kind {
        "user" if key == claims.sub => Ok(Kind::Durable),
        "presence" if key == claims.sub => Ok(Kind::Ephemeral),
        "presence" if gateway.views()?.have_dealings(&claims.sub, key).await? => {
            Ok(Kind::Ephemeral)
        }
        "user" | "presence" => Err(Problem::forbidden("this topic belongs to another user")),
        "session" => commands::shown_session(&call, key).await.map(|_| Kind::Durable),
        "booking" => commands::shown_booking(&call, key).await.map(|_| Kind::Durable),
        "app" => match grant(gateway, topic) {
            Some(grant) if grant.subscribe.contains(&claims.role) => Ok(Kind::Ephemeral),
            _ => Err(Problem::forbidden("this application topic is not granted to you")),
        },
        _ => Err(Problem::not_found("topic")),
    }
}

/// Nothing of the topic is kept.
pub fn is_ephemeral(topic: &str) -> bool {
    topic.starts_with("app:") || topic.starts_with("presence:")
}

pub fn grant<'a>(gateway: &'a Gateway, topic: &str) -> Option<&'a Grant> {
    gateway.options.grants.iter().find(|grant| grant.topic == topic)
}

pub fn may_publish(gateway: &Gateway, role: Role, topic: &str) -> bool {
    grant(gateway, topic).is_some_and(|grant| grant.publish.contains(&role))
}

/// Registers first and looks at the history after that, so that nothing falls in between.
pub async fn start(
    gateway: &Gateway,
    claims: &Claims,
    outgoing: Arc<Outgoing>,
    key: u64,
    topic: &str,
    position: Option<Position>,
) -> Outcome<Started> {
    let kind = authorise(gateway, claims, topic).await?;
    let handle = gateway.topics.subscribe(topic, key, outgoing);
    if let Kind::Ephemeral = kind {
        // Nobody can say what was missed here, so only a newcomer has missed nothing.
        let recovered = position.is_none();
        let position = Position { epoch: gateway.local_epoch.to_string(), offset: 0 };
        return Ok(Started { handle, after: 0, recovered, position, page: None });
    }
    let (kind, name) = split_topic(topic)?;
    let histories = gateway.histories()?;
    let epoch = gateway.epoch().to_string();
    let at = |offset| Position { epoch: epoch.clone(), offset };
    let Some(position) = position else {
        let head = histories.head(kind, name).await?;
        return Ok(Started {
            handle,
            after: head,
            recovered: true,
            position: at(head),
            page: None,
        });
    };
    if position.epoch == epoch && position.offset >= 0 {
        let history = histories.after(kind, name, position.offset).await?;
        let head = history.head;
        if history.complete {
            return Ok(Started {
                handle,
                after: position.offset,
                recovered: true,
                position: at(head),
                page: Some(history),
            });
        }
        return Ok(Started {
            handle,
            after: head,
            recovered: false,
            position: at(head),
            page: None,
        });
    }
    let head = histories.head(kind, name).await?;
    Ok(Started { handle, after: head, recovered: false, position: at(head), page: None })
}
