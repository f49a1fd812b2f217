//! Handling of a connection's frames and of their outcomes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::connection::Connection;
use super::ending::Flow;
use super::events;
use super::guards::{HoldGuard, Present};
use super::protocol::{self, Close, Frame, split_topic};
use crate::contract::Declared;
use crate::contract::call::check_user;
use crate::contract::connection::{ConnectionHold, OnConnection};
use crate::contract::problem::{Outcome, Problem};
use crate::gateway::auth::Claims;
use crate::gateway::bodies::text;
use crate::gateway::listening::subscribe::{self, Attempt, StartedSubscription};
use crate::gateway::users::ConnectionSlot;
use crate::kernel::error::ErrorCode;

/// The results of a connection's futures.
pub enum TaskOutcome {
    Answer {
        id: String,
        outcome: Outcome<Box<RawValue>>,
        /// The follow-up on the connection after an operation that succeeded.
        then: Option<FollowUp>,
    },
    /// The outcome of a subscription. `id` is `None` if the connection subscribed to its user by itself.
    Authenticated {
        id: Option<String>,
        fresh: bool,
        user: Option<ConnectionSlot>,
        topics: Vec<Attempt>,
    },
    /// The user has too many connections.
    Crowded { id: String, problem: Problem },
    Subscribed {
        id: String,
        key: u64,
        /// The answer of the operation that led to the subscription.
        answer: Value,
        outcome: Outcome<StartedSubscription>,
    },
}

/// A connection's follow-up to an operation that succeeded.
pub enum FollowUp {
    Listen { input: Value, topic: fn(&Value, &Value) -> Option<String> },
    Leave(Option<String>),
    Hold(HoldGuard),
    Release(&'static ConnectionHold),
}

/// A command under way.
pub enum InFlight {
    Operation {
        id: String,
        running: BoxFuture<'static, Outcome<Box<RawValue>>>,
        then: Option<FollowUp>,
    },
    Other(BoxFuture<'static, TaskOutcome>),
}

impl Future for InFlight {
    type Output = TaskOutcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TaskOutcome> {
        match self.get_mut() {
            Self::Operation { id, running, then } => running.poll_unpin(cx).map(|outcome| {
                TaskOutcome::Answer { id: std::mem::take(id), outcome, then: then.take() }
            }),
            Self::Other(other) => other.poll_unpin(cx),
        }
    }
}

impl Connection {
    /// Handles a frame without waiting: work that takes time becomes a future whose outcome comes back through
    /// [`Connection::done`].
    pub(super) fn frame(&mut self, frame: Frame) {
        if matches!(frame.event.as_str(), "auth" | "auth:refresh") {
            return self.auth(frame);
        }
        let Some(claims) = self.claims.clone() else {
            return self.answer(
                &frame.id,
                Err(Problem::unauthenticated("authenticate first: send auth with a token")),
            );
        };
        if self.deadlines.listen.is_some() {
            // Listen to the user's topic before the frame's effects are published there.
            self.held = Some(frame);
            return self.listen_to_user(None, Vec::new());
        }
        let limit = self.gateway.options.websocket.max_in_flight;
        if self.in_flight.len() >= limit {
            let problem = Problem::new(
                ErrorCode::Overloaded,
                format!("{limit} commands of this connection are already in flight"),
            );
            return self.answer(&frame.id, Err(problem.retry_after_ms(200)));
        }
        if let Some(operation) = self.gateway.operations.by_event(&frame.event) {
            let Frame { id, data, .. } = frame;
            if let Some(what) = operation.meta.on_connection {
                return self.run_and_then(operation, what, id, data, claims);
            }
            let mut call = self.gateway.call(&claims, id.clone());
            call.counted = true;
            let running = operation.run(call, data);
            return self.in_flight.push(InFlight::Operation { id, running, then: None });
        }
        let Frame { id, event, data } = frame;
        let check = check_user(&claims.sub, &data);
        if let Err(problem) = check {
            return self.answer(&id, Err(problem));
        }
        match event.as_str() {
            "ping" => {
                let now = self.gateway.now();
                self.answer(&id, Ok(json!({"now": now})));
            }
            "topic:subscribe" => match text(&data, "topic").map(str::to_owned) {
                Ok(topic) => self.subscribe(id, &topic, &data["position"], json!({})),
                Err(problem) => self.answer(&id, Err(problem)),
            },
            "topic:unsubscribe" => {
                let outcome = text(&data, "topic").map(|topic| {
                    self.topics.remove(topic);
                    json!({})
                });
                self.answer(&id, outcome);
            }
            "presence:online" => {
                let outcome = events::presence_status(&data).map(|status| {
                    self.gateway.presence.set(&claims.sub, &self.id, &status);
                    self.present.get_or_insert_with(|| Present {
                        presence: self.gateway.presence.clone(),
                        user_id: claims.sub.clone(),
                        connection_id: self.id.clone(),
                    });
                    json!({})
                });
                self.answer(&id, outcome);
            }
            other => self.answer(&id, Err(events::unknown(other))),
        }
    }

    /// Runs an operation that has a follow-up on the connection.
    fn run_and_then(
        &mut self,
        operation: &'static Declared,
        what: OnConnection,
        id: String,
        input: Value,
        claims: Arc<Claims>,
    ) {
        let mut call = self.gateway.call(&claims, id.clone());
        call.counted = true;
        let then = match what {
            OnConnection::Listens(topic) => FollowUp::Listen { input: input.clone(), topic },
            OnConnection::Leaves(topic) => FollowUp::Leave(topic(&input)),
            OnConnection::Holds(hold) if (hold.is_held)(&input) => {
                call.connection = Some(self.id.clone());
                FollowUp::Hold(HoldGuard {
                    gateway: self.gateway.clone(),
                    claims,
                    hold,
                    name: input[hold.field].as_str().unwrap_or_default().to_owned(),
                    connection_id: self.id.clone(),
                    until: hold.lasts.map(|lasts| Instant::now() + lasts),
                    is_over: false,
                })
            }
            OnConnection::Holds(hold) => FollowUp::Release(hold),
        };
        let running = operation.run(call, input);
        self.in_flight.push(InFlight::Operation { id, running, then: Some(then) });
    }

    fn subscribe(&mut self, id: String, topic: &str, position: &Value, answer: Value) {
        let Some(claims) = self.claims.clone() else { return };
        let limit = self.gateway.options.websocket.max_subscriptions;
        let full = self.topics.len() >= limit && !self.topics.has(topic);
        let checked = split_topic(topic).and_then(|_| protocol::position(position));
        let position = match checked {
            Ok(_) if full => {
                let problem = Problem::rejected(
                    "too_many_subscriptions",
                    format!("a connection may have {limit} subscriptions"),
                );
                return self.answer(&id, Err(problem));
            }
            Ok(position) => position,
            Err(problem) => return self.answer(&id, Err(problem)),
        };
        let topic: Arc<str> = topic.into();
        let key = self.topics.track(topic.clone());
        let (gateway, outgoing) = (self.gateway.clone(), self.topics.outgoing.clone());
        let starting = async move {
            let outcome =
                subscribe::start(&gateway, &claims, outgoing, key, &topic, position).await;
            TaskOutcome::Subscribed { id, key, answer, outcome }
        };
        self.in_flight.push(InFlight::Other(starting.boxed()));
    }

    pub(super) async fn done(&mut self, done: TaskOutcome) -> Flow {
        match done {
            TaskOutcome::Answer { id, outcome, then: None } => {
                self.feed(protocol::reply(&id, &outcome)).await
            }
            TaskOutcome::Answer { id, outcome: Ok(answer), then: Some(then) } => {
                self.then(id, answer, then).await
            }
            TaskOutcome::Answer { id, outcome: Err(problem), then } => {
                if let Some(FollowUp::Hold(mut held)) = then {
                    // An earlier guard of this connection may hold the same.
                    held.is_over = true;
                }
                self.feed(protocol::refusal(&id, &problem)).await
            }
            TaskOutcome::Subscribed { id, key, mut answer, outcome } => {
                let shown = outcome.as_ref().map_err(Clone::clone).map(|started| {
                    if let (Value::Object(answer), Value::Object(more)) =
                        (&mut answer, started.shown())
                    {
                        answer.extend(more);
                    }
                    answer
                });
                self.feed(protocol::reply(&id, &shown)).await?;
                self.begin(key, outcome.ok()).await
            }
            TaskOutcome::Authenticated { id, fresh, user, topics } => {
                self.authenticated(id, fresh, user, topics).await
            }
            TaskOutcome::Crowded { id, problem } => {
                self.end_with(Close::TooManyConnections);
                self.feed(protocol::refusal(&id, &problem)).await
            }
        }
    }

    async fn then(&mut self, id: String, answer: Box<RawValue>, then: FollowUp) -> Flow {
        match then {
            FollowUp::Listen { input, topic } => {
                let answer = serde_json::from_str(answer.get()).unwrap_or_default();
                let topic = topic(&input, &answer).unwrap_or_default();
                self.subscribe(id, &topic, &input["position"], answer);
                return Ok(());
            }
            FollowUp::Leave(topic) => {
                if let Some(topic) = topic {
                    self.topics.remove(&topic);
                }
            }
            FollowUp::Hold(held) => self.hold(held),
            FollowUp::Release(hold) => self.release(hold),
        }
        self.feed(protocol::reply(&id, &Ok(answer))).await
    }

    /// Begins to deliver after the reply: first the missed publications, then live ones.
    pub(super) async fn begin(&mut self, key: u64, started: Option<StartedSubscription>) -> Flow {
        self.topics.begin(key, started, &mut self.publications)?;
        self.feed_publications().await
    }
}
