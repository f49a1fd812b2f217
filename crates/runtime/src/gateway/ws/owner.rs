//! The actors that own the sockets: a few actors with many sockets each (ADR 10).
//!
//! A socket that fails ends alone. An owner that fails takes its sockets with it and is restarted; the clients
//! reconnect.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::task::JoinSet;

use super::connection::{self, Arguments};

pub struct SocketOwners {
    actors: Actors,
    next: AtomicUsize,
}

type Actors = Arc<Mutex<Vec<ActorRef<Message>>>>;

impl SocketOwners {
    /// Starts one owner per core.
    pub async fn start() -> Result<Self, SpawnErr> {
        let actors = Actors::default();
        let (supervisor, _) = Actor::spawn(None, Supervisor, actors.clone()).await?;
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let (actor, _) = Actor::spawn_linked(None, Owner, (), supervisor.get_cell()).await?;
            actors.lock().push(actor);
        }
        Ok(Self { actors, next: AtomicUsize::new(0) })
    }

    pub fn own(&self, socket: Arguments) {
        let actors = self.actors.lock();
        let at = self.next.fetch_add(1, Ordering::Relaxed) % actors.len().max(1);
        if let Some(owner) = actors.get(at)
            && owner.cast(Message::Own(Box::new(socket))).is_err()
        {
            tracing::error!("a connection did not start: its owner has failed");
        }
    }
}

enum Message {
    Own(Box<Arguments>),
    /// One of the sockets has ended.
    Ended,
}

impl ractor::Message for Message {}

struct Owner;

/// Tells the owner that a connection has ended, even if it panicked.
struct Ends(ActorRef<Message>);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.cast(Message::Ended);
    }
}

impl Actor for Owner {
    type Msg = Message;
    /// The tasks of the sockets; dropping the set closes them.
    type State = JoinSet<()>;
    type Arguments = ();

    async fn pre_start(
        &self,
        _: ActorRef<Message>,
        (): (),
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(JoinSet::new())
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        sockets: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Own(socket) => {
                let ends = Ends(myself);
                sockets.spawn(async move {
                    let _ends = ends;
                    connection::run(*socket).await;
                });
            }
            Message::Ended => {
                while let Some(ended) = sockets.try_join_next() {
                    if let Err(error) = ended {
                        metrics::counter!("proxie_ws_connection_failures_total").increment(1);
                        tracing::error!(%error, "a connection failed; its client reconnects");
                    }
                }
            }
        }
        Ok(())
    }
}

/// Replaces an owner that fails.
struct Supervisor;

/// The supervisor takes no messages.
enum Nothing {}

impl ractor::Message for Nothing {}

impl Actor for Supervisor {
    type Msg = Nothing;
    type State = Actors;
    type Arguments = Actors;

    async fn pre_start(
        &self,
        _: ActorRef<Nothing>,
        actors: Actors,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(actors)
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Nothing>,
        event: SupervisionEvent,
        actors: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(failed, error) = event {
            tracing::error!(%error, "a gateway actor failed; the clients of its connections reconnect");
            let (fresh, _) = Actor::spawn_linked(None, Owner, (), myself.get_cell()).await?;
            for actor in actors.lock().iter_mut().filter(|actor| actor.get_id() == failed.get_id())
            {
                *actor = fresh.clone();
            }
        }
        Ok(())
    }
}
