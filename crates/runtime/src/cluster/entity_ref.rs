//! [`EntityRef`]: the only way to reach an entity, wherever it lives.

use std::marker::PhantomData;
use std::sync::Arc;

use futures_util::future::Either;
use serde_json::Value;

use crate::cluster::ask::{Answering, Attempts, CommandMeta, EntityAnswer, LocalEntities};
use crate::cluster::router::{Router, WeakRouter};
use crate::kernel::entity::Entity;
use crate::kernel::error::AskError;
use crate::kernel::private;

/// The access to all entities; cheap to clone.
#[derive(Clone)]
pub struct Entities {
    router: Router,
}

/// The access that entities themselves hold. It is weak: a strong one would be a cycle, and a dropped node would stay in
/// memory with its connections to the store.
pub struct WeakEntities(WeakRouter);

impl WeakEntities {
    pub fn upgrade(&self) -> Option<Entities> {
        self.0.upgrade().map(Entities::new)
    }
}

impl Entities {
    pub fn new(router: Router) -> Self {
        Self { router }
    }

    pub fn downgrade(&self) -> WeakEntities {
        WeakEntities(self.router.downgrade())
    }

    pub fn of<E: Entity>(&self, key: impl Into<String>) -> EntityRef<E> {
        EntityRef { router: self.router.clone(), key: key.into(), entity: PhantomData }
    }

    pub fn ask_json(
        &self,
        kind: &str,
        key: &str,
        command: &str,
        meta: CommandMeta,
    ) -> Answering<Result<Value, String>> {
        let ask = AskJson {
            kind: kind.into(),
            key: key.into(),
            command: command.into(),
            local: self.router.local().clone(),
        };
        let router = self.router.clone();
        Box::pin(async move { router.route(ask, meta).await })
    }
}

pub struct EntityRef<E: Entity> {
    router: Router,
    key: String,
    entity: PhantomData<fn() -> E>,
}

impl<E: Entity> EntityRef<E> {
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Asks and waits for the answer, which comes only after the commit that it depends on.
    pub fn ask(
        &self,
        command: E::Command,
        meta: CommandMeta,
    ) -> impl Future<Output = EntityAnswer<E>> + Send + use<E> {
        let way = if self.router.is_clustered() {
            let ask = AskTyped::<E> { key: self.key.clone(), command };
            let router = self.router.clone();
            // The future is boxed because it is large, and a single node never needs it.
            Either::Left(Box::pin(async move { router.route(ask, meta).await }))
        } else {
            // A single node holds every entity, so no copy is kept for a second attempt.
            Either::Right(self.router.local().ask(E::KIND, &self.key, Box::new(command), meta))
        };
        async move {
            match way {
                Either::Left(answer) => answer.await,
                Either::Right(answer) => match answer.await {
                    Ok(answer) => {
                        Ok(*answer.downcast().expect("a kind answers with its own types"))
                    }
                    Err(AskError::NotHere) => Err(AskError::Unavailable {
                        reason: "the entity has just stopped".into(),
                        retry_after_ms: 10,
                    }),
                    Err(error) => Err(error),
                },
            }
        }
    }
}

struct AskTyped<E: Entity> {
    key: String,
    command: E::Command,
}

impl<E: Entity> Attempts for AskTyped<E> {
    type Answer = Result<E::Reply, E::Rejection>;

    fn kind(&self) -> &str {
        E::KIND
    }

    fn key(&self) -> &str {
        &self.key
    }

    fn is_query(&self) -> bool {
        E::is_query(&self.command)
    }

    async fn here(
        &self,
        local: &dyn LocalEntities,
        meta: CommandMeta,
    ) -> Result<Self::Answer, AskError> {
        let answer = local.ask(E::KIND, &self.key, Box::new(self.command.clone()), meta).await?;
        Ok(*answer.downcast().expect("a kind answers with its own types"))
    }

    fn command(&self) -> String {
        let (command, _) = private::plain(|| serde_json::to_string(&self.command));
        command.expect("commands are plain data")
    }

    fn decode(&self, outcome: &str) -> Option<Self::Answer> {
        serde_json::from_str(outcome).ok()
    }
}

struct AskJson {
    kind: String,
    key: String,
    command: String,
    local: Arc<dyn LocalEntities>,
}

impl Attempts for AskJson {
    type Answer = Result<Value, String>;

    fn kind(&self) -> &str {
        &self.kind
    }

    fn key(&self) -> &str {
        &self.key
    }

    /// Unknown for a command in JSON, so it counts as one that writes. Its sender gives it an id.
    fn is_query(&self) -> bool {
        false
    }

    async fn here(
        &self,
        local: &dyn LocalEntities,
        meta: CommandMeta,
    ) -> Result<Self::Answer, AskError> {
        local.ask_json(&self.kind, &self.key, &self.command, meta).await
    }

    fn command(&self) -> String {
        self.command.clone()
    }

    fn decode(&self, outcome: &str) -> Option<Self::Answer> {
        self.local.outcome_json(&self.kind, outcome).or_else(|| in_short(outcome))
    }
}

/// A newer release's answer that this one cannot read. Its sender only needs to know that the command was done.
fn in_short(outcome: &str) -> Option<Result<Value, String>> {
    let outcome: Result<Value, Value> = serde_json::from_str(outcome).ok()?;
    Some(outcome.map_err(|_| "rejected".to_owned()))
}
