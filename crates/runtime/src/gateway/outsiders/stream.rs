//! A task as it goes on: first as it is, then what changes.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Asked;
use super::refusal::Refusal;
use crate::ai::peers::wire;
use crate::gateway::Leaving;
use crate::gateway::auth::Revocations;
use crate::gateway::users::ConnectionSlot;
use crate::gateway::ws::Opened;
use crate::kernel::task::TaskRow;

/// The longest wait for one change, after which it is waited for again.
const PATIENCE: Duration = Duration::from_secs(8);
/// The pause after a wait that failed: the task's node may have died, and another takes over.
const PAUSE: Duration = Duration::from_millis(300);

pub type Changes = BoxStream<'static, a2a::StreamResponse>;

/// When a stream ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// When the agent waits for the client, too.
    Rest,
    Over,
}

struct Follower {
    asked: Asked,
    row: TaskRow,
    until: Until,
    ready: VecDeque<a2a::StreamResponse>,
    token_end: Instant,
    revocations: watch::Receiver<Revocations>,
    leaving: watch::Receiver<Leaving>,
    _counted: ConnectionSlot,
    _opened: Opened,
}

/// The task, and its changes until it is over, its token ends or its node leaves. Whoever misses the end subscribes again.
pub async fn follow(asked: Asked, row: TaskRow, until: Until) -> Result<Changes, Refusal> {
    let gateway = asked.gateway.clone();
    gateway.takes_connections()?;
    let left = asked.claims.expires_at().duration_since(gateway.now());
    let first = a2a::StreamResponse::Task(wire::task(&row, None, true));
    let follower = Follower {
        token_end: Instant::now() + Duration::try_from(left).unwrap_or_default(),
        revocations: gateway.auth.revocations(),
        leaving: gateway.readiness.leaving(),
        _counted: gateway.users.seat(&asked.claims.sub).await?,
        _opened: gateway.connections.opened(),
        ready: VecDeque::from([first]),
        asked,
        row,
        until,
    };
    let changes = stream::unfold(follower, async |mut follower| {
        let next = follower.next().await?;
        Some((next, follower))
    });
    Ok(changes.boxed())
}

impl Follower {
    async fn next(&mut self) -> Option<a2a::StreamResponse> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(change);
            }
            let ends = match self.until {
                Until::Rest => self.row.state.is_at_rest(),
                Until::Over => self.row.state.is_over(),
            };
            if ends || !self.may_go_on() {
                return None;
            }
            self.wait().await;
        }
    }

    fn may_go_on(&self) -> bool {
        let Asked { gateway, claims, .. } = &self.asked;
        Instant::now() < self.token_end
            && *self.leaving.borrow() == Leaving::No
            && !gateway.auth.is_revoked(claims)
    }

    async fn wait(&mut self) {
        let since = self.row.version;
        let Self { asked: Asked { agent, call, .. }, row, revocations, leaving, .. } = self;
        let changed = async {
            (agent.changed)(call, &row.id, since, PATIENCE).await?;
            call.own::<TaskRow>(&row.id, "task").await
        };
        tokio::select! {
            changed = changed => match changed {
                Ok(row) => {
                    self.ready.extend(wire::changes(&row, since));
                    self.row = row;
                }
                Err(problem) => {
                    tracing::debug!(?problem.code, "a task could not be followed for a moment");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            _ = revocations.changed() => {}
            _ = leaving.changed() => {}
            () = tokio::time::sleep_until(self.token_end) => {}
        }
    }
}
