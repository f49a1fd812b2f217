//! The purse of a person: their budget, which the router asks before each call of a model.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, poll};
use jiff::SignedDuration;

use super::domain::budget::{self, Allowance, Budget, Command, Rejection, Reply};
use crate::ai::{Bill, Failure, FailureKind, Purse};
use crate::cluster::{CommandMeta, Entities};
use crate::contract::Call;
use crate::kernel::chat::Cost;
use crate::kernel::clock::{Clock, saturating_add};
use crate::kernel::entity::Caller;
use crate::kernel::error::AskError;
use crate::systems::agents::settings::Models;

/// What a bill may need after the end of its call. A reserve that is older counts as spent.
const MARGIN: SignedDuration = SignedDuration::from_secs(5);
/// Attempts to write a bill down, a second and more apart. After the last one the reserve expires.
const ATTEMPTS: u32 = 6;

/// Pays for the calls of one question out of a person's budget.
pub struct PersonsPurse {
    pub entities: Entities,
    pub clock: Clock,
    pub caller: Caller,
    /// The person's id.
    pub person: String,
    /// What tells these calls from all others.
    pub question: String,
    /// The longest that a call can be under way.
    pub deadline: Duration,
    /// Where nobody has set one.
    pub allowance: Option<Allowance>,
}

impl PersonsPurse {
    /// Of the caller, for one question.
    pub fn of(call: &Call, sort: &str) -> Self {
        let models = call.settings::<Models>();
        Self {
            entities: call.services.entities.clone(),
            clock: call.services.clock.clone(),
            caller: call.caller(),
            person: call.user_id.to_string(),
            question: call.unique_id(sort),
            deadline: models.router.deadline(),
            allowance: models.allowance,
        }
    }

    fn id(&self, call: u32) -> String {
        format!("{}-{call}", self.question)
    }

    async fn ask(&self, command: Command) -> Result<Result<Reply, Rejection>, AskError> {
        let budget = self.entities.of::<Budget>(budget::of_user(&self.person));
        budget.ask(command, CommandMeta::new(self.caller.clone())).await
    }
}

/// A purse whose bills are written down while its run goes on. A reserve that comes later finds them taken.
pub struct Meanwhile(pub Arc<PersonsPurse>);

impl Purse for Meanwhile {
    fn reserve(&self, call: u32, model: &str, most: Cost) -> BoxFuture<'_, Result<(), Failure>> {
        self.0.reserve(call, model, most)
    }

    fn settle(&self, call: u32, bill: Bill) -> BoxFuture<'_, ()> {
        async move {
            let purse = self.0.clone();
            let mut settled = async move { purse.settle(call, bill).await }.boxed();
            // By its first poll the budget has it. Should it get lost, the reserve expires, which is seen.
            if poll!(&mut settled).is_pending() {
                tokio::spawn(settled);
            }
        }
        .boxed()
    }
}

impl Purse for PersonsPurse {
    fn reserve(&self, call: u32, model: &str, most: Cost) -> BoxFuture<'_, Result<(), Failure>> {
        let longest = SignedDuration::try_from(self.deadline).unwrap_or(SignedDuration::MAX);
        let until = saturating_add(self.clock.now(), longest.saturating_add(MARGIN));
        let model = model.to_owned();
        async move {
            let (call, otherwise) = (self.id(call), self.allowance);
            match self.ask(Command::Reserve { call, model, most, until, otherwise }).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(rejection)) => Err(Failure::new(FailureKind::Budget, rejection.to_string())),
                Err(error) => {
                    let why = format!("the budget cannot be asked: {error}");
                    Err(Failure::new(FailureKind::Unavailable, why))
                }
            }
        }
        .boxed()
    }

    fn settle(&self, call: u32, bill: Bill) -> BoxFuture<'_, ()> {
        async move {
            let call = self.id(call);
            let Bill { model, usage, cost, failure } = bill;
            let (model, has_failed) = (model.to_string(), failure.is_some());
            for attempt in 0..ATTEMPTS {
                let (call, model) = (call.clone(), model.clone());
                let command = Command::Settle { call, model, usage, cost, has_failed };
                match self.ask(command).await {
                    Ok(Ok(_)) => return,
                    Ok(Err(rejection)) => {
                        tracing::error!(%rejection, "a budget does not take a bill");
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(%error, attempt, "a bill is not written down yet");
                        tokio::time::sleep(Duration::from_secs(1 << attempt)).await;
                    }
                }
            }
        }
        .boxed()
    }
}
