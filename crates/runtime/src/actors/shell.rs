//! The one shell around every entity, as an actor: it loads when the first message comes, and hands each on.

use std::marker::PhantomData;
use std::sync::Arc;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};

use crate::actors::activation::{Activation, Next, Stop};
use crate::actors::ask::ActivationMessage;
use crate::actors::registry::{KindTable, Registry};
use crate::kernel::entity::Entity;
use crate::kernel::error::AskError;

impl Registry {
    /// Adds a kind, whose entities this shell drives. Fails where its golden journal cannot be read.
    pub async fn register<E: Entity>(&mut self) -> anyhow::Result<()> {
        self.add::<E>(start::<E>).await
    }
}

fn start<E: Entity>(
    table: Arc<KindTable<E>>,
    key: Arc<str>,
    epoch: i64,
    supervisor: ActorCell,
) -> Result<ActorRef<ActivationMessage<E>>, SpawnErr> {
    let shell = Shell::<E>(PhantomData);
    let started =
        ractor::ActorRuntime::spawn_linked_instant(None, shell, (table, key, epoch), supervisor)?;
    Ok(started.0)
}

struct Shell<E>(PhantomData<fn() -> E>);

impl<E: Entity> Actor for Shell<E> {
    type Msg = ActivationMessage<E>;
    /// Boxed: ractor's task holds room for several moves of its state.
    type State = Box<Activation<E>>;
    type Arguments = (Arc<KindTable<E>>, Arc<str>, i64);

    async fn pre_start(
        &self,
        myself: ActorRef<ActivationMessage<E>>,
        (table, key, epoch): Self::Arguments,
    ) -> Result<Box<Activation<E>>, ActorProcessingErr> {
        Ok(Box::new(Activation::new(table, key, epoch, myself.get_id())))
    }

    async fn handle(
        &self,
        myself: ActorRef<ActivationMessage<E>>,
        message: ActivationMessage<E>,
        a: &mut Box<Activation<E>>,
    ) -> Result<(), ActorProcessingErr> {
        if !a.is_loaded()
            && let Err(stop) = Box::pin(a.load()).await
        {
            return a.end(&myself, Some(message), stop);
        }
        if a.is_outdated()
            && a.holds_back()
            && let Err(stop) = Box::pin(a.roll_back(&myself)).await
        {
            return a.end(&myself, Some(message), stop);
        }
        // The rare long ways are boxed: an idle actor's memory holds the largest future that its handler may become.
        let mut step = match message {
            ActivationMessage::Ask(ask) => a.ask(&myself, ask),
            ActivationMessage::Finished { ticket, result } => {
                match a.finished(&myself, ticket, result) {
                    Ok(Next::RollBack) => Box::pin(a.roll_back(&myself)).await,
                    Ok(Next::GoOn) => Ok(()),
                    Err(stop) => Err(stop),
                }
            }
            ActivationMessage::Delivered(delivered) => a.delivered(&myself, *delivered),
            ActivationMessage::Wake => {
                a.pump(&myself);
                Ok(())
            }
            ActivationMessage::Owed => match a.owed(&myself) {
                Next::RollBack => Box::pin(a.roll_back(&myself)).await,
                Next::GoOn => Ok(()),
            },
            ActivationMessage::Passivate => a.passivate(&myself),
            ActivationMessage::Retire => {
                a.retire();
                Ok(())
            }
        };
        if step.is_ok() && a.needs_keys() {
            step = Box::pin(a.fetch_keys(&myself)).await;
        }
        if step.is_ok() && a.is_outdated() && a.holds_back() {
            step = Box::pin(a.roll_back(&myself)).await;
        }
        if step.is_ok() && !a.is_retiring() && a.reads_on_after().is_some() {
            Box::pin(a.read_on(&myself)).await;
        }
        match step {
            Ok(()) if a.is_retiring() && a.is_idle() => {
                a.end(&myself, None, Stop::Orderly(AskError::NotHere))
            }
            Ok(()) => Ok(()),
            Err(stop) => a.end(&myself, None, stop),
        }
    }
}
