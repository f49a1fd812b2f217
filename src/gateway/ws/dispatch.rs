//! What a connection does with its frames and with the outcomes they lead to.

use std::sync::Arc;

use futures_util::FutureExt;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::connection::Connection;
use super::ending::Flow;
use super::events;
use super::guards::{Bound, Present};
use super::protocol::{self, Close, Frame, split_topic};
use crate::contract::call::check_user;
use crate::contract::input;
use crate::contract::operation::Done as Ended;
use crate::contract::problem::{Outcome, Problem};
use crate::gateway::auth::Claims;
use crate::gateway::bodies::text;
use crate::gateway::listening::subscribe::{self, Attempt, Started};
use crate::gateway::users::Seat;
use crate::kernel::error::ErrorCode;
use crate::systems::devices::domain::clock::DeviceId;
use crate::systems::marketplace::operations::sessions;

/// What comes back from the futures of a connection.
pub enum Done {
    Reply {
        id: String,
        outcome: Outcome,
    },
    Answer {
        id: String,
        outcome: Outcome<Box<RawValue>>,
    },
    /// `id` is `None` where the connection subscribed to its user by itself.
    Authenticated {
        id: Option<String>,
        fresh: bool,
        user: Option<Seat>,
        topics: Vec<Attempt>,
    },
    /// The user has too many connections.
    Crowded {
        id: String,
        problem: Problem,
    },
    Opened {
        id: String,
        outcome: Outcome<String>,
    },
    Bound {
        id: String,
        outcome: Outcome<Bound>,
    },
    Subscribed {
        id: String,
        key: u64,
        session_id: Option<String>,
        outcome: Outcome<Started>,
    },
}

impl Connection {
    /// Never waits: what takes time becomes a future whose outcome comes back through [`Connection::done`].
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
            // Listen to the user before anything the frame does is told there.
            self.held = Some(frame);
            return self.listen_to_user(None, Vec::new());
        }
        let limit = self.gateway.options.websocket.max_in_flight;
        if self.in_flight.len() >= limit {
            let problem = Problem::new(
                ErrorCode::Overloaded,
                format!("{limit} commands of this connection are in flight"),
            );
            return self.answer(&frame.id, Err(problem.retry_after_ms(200)));
        }
        if let ("chat:typing", Some(session_id), Some(is_typing)) = (
            frame.event.as_str(),
            frame.data["session_id"].as_str(),
            frame.data["is_typing"].as_bool(),
        ) {
            self.types(session_id, is_typing);
        }
        if let Some(operation) = self.gateway.operations.by_event(&frame.event) {
            let Frame { id, data, .. } = frame;
            let mut call = self.gateway.call(&claims, id.clone());
            call.counted = true;
            let running = operation.run(call, data);
            let command = async move { Done::Answer { id, outcome: running.await } };
            return self.in_flight.push(command.boxed());
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
            "session:open" => self.open(id, data, claims),
            "session:resume" => match text(&data, "session_id") {
                Ok(session) => {
                    self.subscribe(id, &format!("session:{session}"), &data["position"], None)
                }
                Err(problem) => self.answer(&id, Err(problem)),
            },
            "session:close" => self.close(id, data, claims),
            "topic:subscribe" => match text(&data, "topic").map(str::to_owned) {
                Ok(topic) => self.subscribe(id, &topic, &data["position"], None),
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
            "device:connect" => match device_id(&data) {
                Ok(device) => self.bind(id, device, claims),
                Err(problem) => self.answer(&id, Err(problem)),
            },
            other => self.answer(&id, Err(events::unknown(other))),
        }
    }

    /// From now on this connection speaks for the device, and for no other.
    fn bind(&mut self, id: String, device: DeviceId, claims: Arc<Claims>) {
        let bound =
            Bound { gateway: self.gateway.clone(), claims, device, connection_id: self.id.clone() };
        let connecting = async move {
            let outcome = match bound.gateway.may_command(&bound.claims.sub).await {
                Ok(()) => bound.connect().await,
                Err(problem) => {
                    bound.forget();
                    Err(problem)
                }
            };
            Done::Bound { id, outcome }
        };
        self.in_flight.push(connecting.boxed());
    }

    fn subscribe(&mut self, id: String, topic: &str, position: &Value, session_id: Option<String>) {
        let Some(claims) = self.claims.clone() else { return };
        let limit = self.gateway.options.websocket.max_subscriptions;
        let full = self.topics.len() >= limit && !self.topics.has(topic);
        let checked = split_topic(topic).and_then(|_| protocol::position(position));
        let position = match checked {
            Ok(_) if full => {
                let problem = Problem::rejected(
                    "too_many_subscriptions",
                    format!("a connection may have {limit}"),
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
            Done::Subscribed { id, key, session_id, outcome }
        };
        self.in_flight.push(starting.boxed());
    }

    fn open(&mut self, id: String, data: Value, claims: Arc<Claims>) {
        let gateway = self.gateway.clone();
        let opening = async move {
            let call = gateway.call(&claims, id.clone());
            let outcome = async {
                gateway.may_command(&claims.sub).await?;
                sessions::open(&call, input::read(&data)?, false).await
            };
            Done::Opened { outcome: outcome.await, id }
        };
        self.in_flight.push(opening.boxed());
    }

    fn close(&mut self, id: String, data: Value, claims: Arc<Claims>) {
        let session_id = match text(&data, "session_id") {
            Ok(session_id) => session_id.to_owned(),
            Err(problem) => return self.answer(&id, Err(problem)),
        };
        let end = match data.get("end") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(end)) => *end,
            Some(_) => {
                return self.answer(&id, Err(Problem::field("/end", "must be true or false")));
            }
        };
        if !end {
            self.topics.remove(format!("session:{session_id}").as_str());
            return self.answer(&id, Ok(json!({})));
        }
        // This device stays subscribed, so that it hears `session:ended` like the others.
        let gateway = self.gateway.clone();
        let ending = async move {
            let call = gateway.call(&claims, id.clone());
            let outcome = async {
                gateway.may_command(&claims.sub).await?;
                sessions::end(&call, &session_id).await.map(|Ended {}| json!({}))
            };
            Done::Reply { outcome: outcome.await, id }
        };
        self.in_flight.push(ending.boxed());
    }

    pub(super) async fn done(&mut self, done: Done) -> Flow {
        match done {
            Done::Answer { id, outcome } => self.feed(protocol::reply(&id, &outcome)).await,
            Done::Reply { id, outcome } => self.feed(protocol::reply(&id, &outcome)).await,
            Done::Bound { id, outcome } => {
                let shown = outcome.as_ref().map_err(Clone::clone).map(|_| json!({}));
                match (outcome, &self.bound) {
                    (Ok(again), Some(bound)) if again.device == bound.device => again.forget(),
                    (Ok(bound), _) => self.bound = Some(bound),
                    (Err(_), _) => {}
                }
                self.feed(protocol::reply(&id, &shown)).await
            }
            Done::Opened { id, outcome: Ok(session_id) } => {
                self.subscribe(
                    id,
                    &format!("session:{session_id}"),
                    &Value::Null,
                    Some(session_id.clone()),
                );
                Ok(())
            }
            Done::Opened { id, outcome: Err(problem) } => {
                self.feed(protocol::refusal(&id, &problem)).await
            }
            Done::Subscribed { id, key, session_id, outcome } => {
                let shown =
                    outcome.as_ref().map_err(Clone::clone).map(|started| match session_id {
                        Some(session_id) => {
                            json!({"session_id": session_id, "position": started.position})
                        }
                        None => started.shown(),
                    });
                self.feed(protocol::reply(&id, &shown)).await?;
                self.begin(key, outcome.ok()).await
            }
            Done::Authenticated { id, fresh, user, topics } => {
                self.authenticated(id, fresh, user, topics).await
            }
            Done::Crowded { id, problem } => {
                self.end_with(Close::TooManyConnections);
                self.feed(protocol::refusal(&id, &problem)).await
            }
        }
    }

    /// The reply is out: now what was missed, then what is live.
    pub(super) async fn begin(&mut self, key: u64, started: Option<Started>) -> Flow {
        self.topics.begin(key, started, &mut self.publications)?;
        self.feed_publications().await
    }
}

fn device_id(data: &Value) -> Outcome<DeviceId> {
    let wrong = |error| Problem::field("/device_id", format!("{error}"));
    text(data, "device_id")?.parse().map_err(wrong)
}
