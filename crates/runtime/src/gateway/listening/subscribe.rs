//! Subscriptions: whether a user may listen to a topic, and from which position.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use serde_json::{Map, Value, json};

use super::SendQueue;
use crate::cluster::topics::Subscription;
use crate::contract::call::INSUFFICIENT_SCOPE;
use crate::contract::problem::{Outcome, Problem};
use crate::contract::topic::only_their_own;
use crate::gateway::Gateway;
use crate::gateway::auth::Claims;
use crate::gateway::operations::PRESENCE;
use crate::gateway::ws::protocol::{Position, split_topic};
use crate::persistence::publications::History;

/// A subscription that has started: live publications are already arriving.
pub struct StartedSubscription {
    pub handle: Subscription,
    /// The offset up to which the client is taken to have everything.
    pub after: i64,
    pub recovered: bool,
    pub position: Position,
    /// The first page of the publications that it missed.
    pub page: Option<Arc<History>>,
}

impl StartedSubscription {
    /// The reply to `topic:subscribe`.
    pub fn shown(&self) -> Value {
        json!({"recovered": self.recovered, "position": self.position})
    }
}

pub async fn authorise(gateway: &Gateway, claims: &Claims, topic: &str) -> Outcome<()> {
    let (kind, key) = split_topic(topic)?;
    // Reads need no command id.
    let reader = gateway.call(claims, String::new());
    if let Some(declared) = gateway.operations.topic(topic) {
        return declared.may_listen(&reader, key).await;
    }
    if kind != PRESENCE {
        return Err(Problem::not_found("topic"));
    }
    reader.may(PRESENCE)?;
    if only_their_own(&reader, key).is_ok() {
        return Ok(());
    }
    for have_dealings in gateway.operations.systems.iter().filter_map(|one| one.have_dealings) {
        if have_dealings(&reader, key).await? {
            return Ok(());
        }
    }
    only_their_own(&reader, key)
}

/// An attempt to subscribe: the topic, the subscription's key, and the outcome.
pub type Attempt = (Arc<str>, u64, Outcome<StartedSubscription>);

/// Topics of one client whose histories are read concurrently.
const AT_ONCE: usize = 8;

/// Subscribes to several topics, each with its key and the client's position.
pub async fn start_all(
    gateway: &Gateway,
    claims: &Claims,
    outgoing: &Arc<SendQueue>,
    wanted: Vec<(Arc<str>, u64, Option<Position>)>,
) -> Vec<Attempt> {
    stream::iter(wanted)
        .map(|(topic, key, position)| async move {
            let started = start(gateway, claims, outgoing.clone(), key, &topic, position).await;
            (topic, key, started)
        })
        .buffered(AT_ONCE)
        .collect()
        .await
}

/// The refusal of the client's own topic, if it was refused. Without this topic a client would miss events and not know
/// it; where its token has not the scope for them, it is not meant to have them.
pub fn own_refused(attempts: &[Attempt], claims: &Claims) -> Option<Problem> {
    let own = format!("user:{}", claims.sub);
    let of_own = attempts.iter().find(|(topic, ..)| **topic == *own);
    let refused = of_own.and_then(|(.., outcome)| outcome.as_ref().err());
    refused.filter(|problem| problem.reason.as_deref() != Some(INSUFFICIENT_SCOPE)).cloned()
}

/// The outcomes as the client sees them, by topic.
pub fn shown(attempts: &[Attempt]) -> Map<String, Value> {
    let shown = |outcome: &Outcome<StartedSubscription>| match outcome {
        Ok(started) => started.shown(),
        Err(problem) => json!({"error": problem.ws_error()}),
    };
    attempts.iter().map(|(topic, _, outcome)| (topic.to_string(), shown(outcome))).collect()
}

/// Subscribes to a topic. Registers first and reads the history afterwards, so nothing is lost in between.
pub async fn start(
    gateway: &Gateway,
    claims: &Claims,
    outgoing: Arc<SendQueue>,
    key: u64,
    topic: &str,
    position: Option<Position>,
) -> Outcome<StartedSubscription> {
    authorise(gateway, claims, topic).await?;
    let handle = gateway.topics.subscribe(topic, key, outgoing);
    if gateway.is_ephemeral(topic) {
        // There is no history to compare with, so only a client without a position has certainly missed nothing.
        let recovered = position.is_none();
        let position = Position { epoch: gateway.local_epoch.to_string(), offset: 0 };
        return Ok(StartedSubscription { handle, after: 0, recovered, position, page: None });
    }
    let (kind, name) = split_topic(topic)?;
    let histories = gateway.histories()?;
    let epoch = gateway.epoch().to_string();
    let at = |offset| Position { epoch: epoch.clone(), offset };
    let Some(position) = position else {
        let head = histories.head(kind, name).await?;
        return Ok(StartedSubscription {
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
            return Ok(StartedSubscription {
                handle,
                after: position.offset,
                recovered: true,
                position: at(head),
                page: Some(history),
            });
        }
        return Ok(StartedSubscription {
            handle,
            after: head,
            recovered: false,
            position: at(head),
            page: None,
        });
    }
    let head = histories.head(kind, name).await?;
    Ok(StartedSubscription {
        handle,
        after: head,
        recovered: false,
        position: at(head),
        page: None,
    })
}
