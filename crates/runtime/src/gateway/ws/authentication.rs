//! Authentication of a connection: `auth`, `auth:refresh`, and the subscription to the user's own topic.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::connection::Connection;
use super::dispatch::{InFlight, TaskOutcome};
use super::ending::Flow;
use super::protocol::{self, Close, Frame, Position, split_topic};
use crate::contract::problem::{Outcome, Problem};
use crate::gateway::auth::Claims;
use crate::gateway::listening::subscribe::{self, Attempt};
use crate::gateway::users::ConnectionSlot;
use crate::kernel::error::ErrorCode;

impl Connection {
    pub(super) fn auth(&mut self, frame: Frame) {
        let Frame { id, event, data } = frame;
        let fresh = self.claims.is_none();
        if fresh && event == "auth:refresh" {
            return self.answer(
                &id,
                Err(Problem::unauthenticated("there is nothing to refresh: send auth")),
            );
        }
        let verified = match data.get("token") {
            None | Some(Value::Null) if !fresh && event == "auth" => Ok(None),
            Some(Value::String(token)) => self
                .gateway
                .auth
                .verify(token, self.gateway.now())
                .map(|claims| Some(Arc::new(claims)))
                .map_err(|error| Problem::unauthenticated(error.to_string())),
            _ => Err(Problem::unauthenticated("a token is needed")),
        };
        let claims = match verified {
            Ok(claims) => claims,
            Err(problem) => {
                // A connection that was authenticated stays so, by its earlier token.
                if fresh {
                    self.end_with(Close::Unauthenticated);
                }
                return self.answer(&id, Err(problem));
            }
        };
        let positions = match positions(&data).and_then(|given| self.may_name(given, &claims)) {
            Ok(positions) => positions,
            Err(problem) => return self.answer(&id, Err(problem)),
        };
        if let Some(new) = claims {
            if self.claims.as_ref().is_some_and(|old| old.sub != new.sub) {
                let problem = Problem::forbidden("the token is another user's");
                return self.answer(&id, Err(problem));
            }
            self.identify(new);
        }
        self.count(u32::try_from(positions.len()).unwrap_or(u32::MAX));
        self.authenticate(Some(id), fresh, positions);
    }

    /// The named positions, if the connection's limits of subscriptions and reads allow them.
    fn may_name(
        &mut self,
        named: Vec<(Arc<str>, Position)>,
        claims: &Option<Arc<Claims>>,
    ) -> Outcome<Vec<(Arc<str>, Position)>> {
        let limit = self.gateway.options.websocket.max_subscriptions;
        let user = claims.as_ref().or(self.claims.as_ref()).map(|claims| own_topic(claims));
        // The user's own topic is always subscribed to.
        let own = user.filter(|own| !named.iter().any(|(topic, _)| topic == own));
        let wanted = named.iter().map(|(topic, _)| topic).chain(&own);
        let new = wanted.filter(|topic| !self.topics.has(topic)).count();
        if self.topics.len() + new > limit {
            let detail = format!("a connection may have {limit} subscriptions");
            return Err(Problem::rejected("too_many_subscriptions", detail));
        }
        let reads = u32::try_from(named.len()).unwrap_or(u32::MAX);
        if self.positions.take_many(Instant::now().into_std(), reads) {
            return Ok(named);
        }
        let problem = Problem::new(ErrorCode::RateLimited, "too many positions: slow down");
        Err(problem.retry_after_ms(1_000))
    }

    /// Subscribes to the user's own topic, unless that is done, and to the topics that the client names positions for.
    pub(super) fn listen_to_user(
        &mut self,
        id: Option<String>,
        positions: Vec<(Arc<str>, Position)>,
    ) {
        self.authenticate(id, false, positions);
    }

    fn authenticate(
        &mut self,
        id: Option<String>,
        fresh: bool,
        positions: Vec<(Arc<str>, Position)>,
    ) {
        let Some(claims) = self.claims.clone() else { return };
        self.deadlines.listen = None;
        let own = own_topic(&claims);
        let mut wanted: Vec<(Arc<str>, Option<Position>)> =
            positions.into_iter().map(|(topic, position)| (topic, Some(position))).collect();
        if !self.topics.has(&own) && !wanted.iter().any(|(topic, _)| *topic == own) {
            wanted.push((own, None));
        }
        let wanted: Vec<_> = wanted
            .into_iter()
            .map(|(topic, position)| {
                let key = self.topics.track(topic.clone());
                (topic, key, position)
            })
            .collect();
        self.authenticating = true;
        let (gateway, outgoing) = (self.gateway.clone(), self.topics.outgoing.clone());
        // A client with an `Authorization` header has had a seat since the upgrade.
        let seatless = id.clone().filter(|_| self.user.is_none());
        let starting = async move {
            let user = match seatless {
                None => None,
                Some(id) => match gateway.users.seat(&claims.sub).await {
                    Ok(seat) => Some(seat),
                    Err(problem) => return TaskOutcome::Crowded { id, problem },
                },
            };
            let topics = subscribe::start_all(&gateway, &claims, &outgoing, wanted).await;
            TaskOutcome::Authenticated { id, fresh, user, topics }
        };
        self.in_flight.push(InFlight::Other(starting.boxed()));
    }

    pub(super) async fn authenticated(
        &mut self,
        id: Option<String>,
        fresh: bool,
        user: Option<ConnectionSlot>,
        topics: Vec<Attempt>,
    ) -> Flow {
        self.authenticating = false;
        self.user = user.or(self.user.take());
        let Some(claims) = self.claims.clone() else { return Ok(()) };
        if let Some(problem) = subscribe::own_refused(&topics, &claims) {
            self.topics.clear();
            let soon = Instant::now() + Duration::from_secs(1);
            if fresh {
                self.claims = None;
                self.user = None;
                let timeout = Duration::from_millis(self.gateway.options.websocket.auth_timeout_ms);
                self.deadlines.auth = Some(Instant::now() + timeout);
                self.deadlines.token_end = None;
                self.deadlines.token_warning = None;
            } else {
                self.deadlines.listen = Some(soon);
            }
            if let Some(id) = id {
                self.feed(protocol::refusal(&id, &problem)).await?;
            }
            return match self.held.take() {
                Some(frame) => self.feed(protocol::refusal(&frame.id, &problem)).await,
                None => Ok(()),
            };
        }
        if let Some(id) = id {
            let limits = &self.gateway.options.websocket;
            let data = json!({
                "user_id": claims.sub,
                "role": claims.role,
                "connection_id": self.id,
                "expires_at": claims.expires_at(),
                "ping_ms": limits.ping_ms,
                "limits": limits.shown(),
                "topics": subscribe::shown(&topics),
            });
            self.feed(protocol::reply(&id, &Ok(data))).await?;
        }
        for (_, key, outcome) in topics {
            self.begin(key, outcome.ok()).await?;
        }
        if let Some(frame) = self.held.take() {
            self.frame(frame);
        }
        Ok(())
    }
}

fn own_topic(claims: &Claims) -> Arc<str> {
    format!("user:{}", claims.sub).into()
}

/// The `positions` of `auth`, by topic.
fn positions(data: &Value) -> Outcome<Vec<(Arc<str>, Position)>> {
    let given = match data.get("positions") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(given)) => given,
        Some(_) => return Err(Problem::field("/positions", "must be an object of topics")),
    };
    given
        .iter()
        .map(|(topic, value)| {
            split_topic(topic)?;
            let position = protocol::position(value)?;
            let position = position
                .ok_or_else(|| Problem::field("/positions", "a position is {epoch, offset}"))?;
            Ok((Arc::from(topic.as_str()), position))
        })
        .collect()
}
