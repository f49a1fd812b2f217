//! What a connection does with its frames and with the outcomes they lead to.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::Message;
use futures_util::FutureExt;
use serde_json::{Value, json};

use super::connection::{Connection, Ending, Flow, Listening, Present};
use super::events;
use super::protocol::{self, Close, Frame, split_topic};
use super::subscribe::{self, PAGE, Started, is_ephemeral};
use super::track::{Next, Track};
use crate::cluster::topics::Published;
use crate::gateway::auth::Claims;
use crate::gateway::bodies::text;
use crate::gateway::commands::{self, Call};
use crate::gateway::problem::{Outcome, Problem};
use crate::kernel::error::ErrorCode;
use crate::persistence::publications::History;

/// What comes back from the futures of a connection.
pub enum Done {
    Reply {
        id: String,
        outcome: Outcome,
    },
    /// `id` is `None` where the connection subscribed to its user by itself.
    Authenticated {
        id: Option<String>,
        fresh: bool,
        topics: Vec<(Arc<str>, u64, Outcome<Started>)>,
    },
    Opened {
        id: String,
        outcome: Outcome<String>,
    },
    Subscribed {
        id: String,
        topic: Arc<str>,
        generation: u64,
        session_id: Option<String>,
        outcome: Outcome<Started>,
    },
    Page {
        topic: Arc<str>,
        generation: u64,
        after: i64,
        outcome: Outcome<History>,
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
        if events::is_command(&frame.event) {
            if let ("chat:typing", Some(session_id), Some(is_typing)) = (
                frame.event.as_str(),
                frame.data["session_id"].as_str(),
                frame.data["is_typing"].as_bool(),
            ) {
                self.types(session_id, is_typing);
            }
            let gateway = self.gateway.clone();
            let command = async move {
                let outcome = events::run(gateway, claims, &frame).await;
                Done::Reply { id: frame.id, outcome }
            };
            return self.in_flight.push(command.boxed());
        }
        let Frame { id, event, data } = frame;
        let check =
            Call { gateway: &self.gateway, user_id: &claims.sub, role: claims.role, id: &id }
                .check_user(&data);
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
            "topic:publish" => {
                let outcome = events::publish(&self.gateway, &claims, &data);
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

    /// Begins a subscription, in the place of an earlier one to the same topic.
    pub(super) fn track(&mut self, topic: Arc<str>) -> u64 {
        self.generation += 1;
        let listening =
            Listening { track: Track::starting(), generation: self.generation, handle: None };
        self.topics.insert(topic, listening);
        self.generation
    }

    fn subscribe(&mut self, id: String, topic: &str, position: &Value, session_id: Option<String>) {
        let Some(claims) = self.claims.clone() else { return };
        let limit = self.gateway.options.websocket.max_subscriptions;
        let full = self.topics.len() >= limit && !self.topics.contains_key(topic);
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
        let generation = self.track(topic.clone());
        let (gateway, outgoing) = (self.gateway.clone(), self.outgoing.clone());
        let starting = async move {
            let outcome = subscribe::start(&gateway, &claims, outgoing, &topic, position).await;
            Done::Subscribed { id, topic, generation, session_id, outcome }
        };
        self.in_flight.push(starting.boxed());
    }

    fn open(&mut self, id: String, data: Value, claims: Arc<Claims>) {
        let gateway = self.gateway.clone();
        let opening = async move {
            let call = Call { gateway: &gateway, user_id: &claims.sub, role: claims.role, id: &id };
            let outcome = commands::open_session(&call, &data, false).await;
            Done::Opened { id, outcome }
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
            let call = Call { gateway: &gateway, user_id: &claims.sub, role: claims.role, id: &id };
            let outcome = commands::end_session(&call, &session_id).await;
            Done::Reply { id, outcome }
        };
        self.in_flight.push(ending.boxed());
    }

    pub(super) async fn done(&mut self, done: Done) -> Flow {
        match done {
            Done::Reply { id, outcome } => self.feed(protocol::reply(&id, &outcome)).await,
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
                self.feed(protocol::reply(&id, &Err(problem))).await
            }
            Done::Subscribed { id, topic, generation, session_id, outcome } => {
                let shown =
                    outcome.as_ref().map_err(Clone::clone).map(|started| match session_id {
                        Some(session_id) => {
                            json!({"session_id": session_id, "position": started.position})
                        }
                        None => started.shown(),
                    });
                self.feed(protocol::reply(&id, &shown)).await?;
                self.begin(topic, generation, outcome.ok()).await
            }
            Done::Authenticated { id, fresh, topics } => {
                self.authenticated(id, fresh, topics).await
            }
            Done::Page { topic, generation, after, outcome } => {
                self.page(topic, generation, after, outcome).await
            }
        }
    }

    /// The reply is out: now what was missed, then what is live.
    pub(super) async fn begin(
        &mut self,
        topic: Arc<str>,
        generation: u64,
        started: Option<Started>,
    ) -> Flow {
        let current =
            self.topics.get_mut(&topic).filter(|listening| listening.generation == generation);
        let Some(listening) = current else { return Ok(()) };
        let Some(Started { handle, after, page, .. }) = started else {
            self.topics.remove(&topic);
            return Ok(());
        };
        listening.handle = Some(handle);
        let next = listening.track.start(after);
        if let Some(user) = topic.strip_prefix("presence:") {
            self.gateway.presence.ask(user);
        }
        match page {
            Some(history) => self.page(topic, generation, after, Ok(history)).await,
            None => self.go_on(topic, generation, next),
        }
    }

    async fn page(
        &mut self,
        topic: Arc<str>,
        generation: u64,
        after: i64,
        outcome: Outcome<History>,
    ) -> Flow {
        let History { head, items, complete } = match outcome {
            Ok(history) => history,
            // The store is away. The client resumes where it is once it is back.
            Err(_) => return self.read_later(topic, generation, after),
        };
        for item in items {
            let current =
                self.topics.get_mut(&topic).filter(|listening| listening.generation == generation);
            let Some(listening) = current else { return Ok(()) };
            if listening.track.replayed(item.offset) {
                let published = Published::new(&topic, Some(item.offset), &item.event, &item.data);
                self.feed(Message::text(&*published.frame)).await?;
            }
        }
        let current =
            self.topics.get_mut(&topic).filter(|listening| listening.generation == generation);
        let Some(listening) = current else { return Ok(()) };
        let next = listening.track.page_ended(after, head, complete);
        self.go_on(topic, generation, next)
    }

    fn go_on(&mut self, topic: Arc<str>, generation: u64, next: Next) -> Flow {
        match next {
            Next::Send | Next::Skip => {}
            Next::Read { after } => self.read(topic, generation, after, Duration::ZERO),
            Next::Lost => return Err(Ending::Close(Close::HistoryLost)),
        }
        Ok(())
    }

    fn read_later(&mut self, topic: Arc<str>, generation: u64, after: i64) -> Flow {
        self.read(topic, generation, after, Duration::from_millis(500));
        Ok(())
    }

    /// The next page is read only when the one before is in the socket, so a replay goes as fast as its reader.
    fn read(&mut self, topic: Arc<str>, generation: u64, after: i64, delay: Duration) {
        let gateway = self.gateway.clone();
        let reading = async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let outcome = async {
                let (kind, key) = split_topic(&topic)?;
                Ok(gateway.views()?.history(kind, key, after, PAGE).await?)
            }
            .await;
            Done::Page { topic, generation, after, outcome }
        };
        self.reading.push(reading.boxed());
    }

    /// Publications may have been missed between the nodes. What comes meanwhile is sent all the same.
    pub(super) fn resync(&mut self, topic: Arc<str>) -> Flow {
        let Some(listening) = self.topics.get_mut(&topic) else { return Ok(()) };
        if let Some(user) = topic.strip_prefix("presence:") {
            self.gateway.presence.ask(user);
        }
        if is_ephemeral(&topic) {
            return Ok(());
        }
        let next = listening.track.resync();
        let generation = listening.generation;
        self.go_on(topic, generation, next)
    }

    pub(super) async fn publication(&mut self, published: &Published) -> Flow {
        let Some(listening) = self.topics.get_mut(&published.topic) else { return Ok(()) };
        let generation = listening.generation;
        match listening.track.publication(published.offset) {
            Next::Send => self.feed(Message::text(&*published.frame)).await,
            next => self.go_on(published.topic.clone(), generation, next),
        }
    }
}
