//! What was spent on models, and what may be.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::call::known_id;
use crate::contract::list::{Page, Paging};
use crate::contract::operation::{Nothing, ToolEffect};
use crate::contract::{Call, Meta, Operation, Outcome, Problem};
use crate::kernel::chat::Cost;
use crate::kernel::entity::Role;
use crate::kernel::error::AskError;
use crate::systems::agents::domain::budget::{
    Allowance, Budget, BudgetView, Command, Period, Reply, UsageView, of_user,
};
use crate::systems::agents::settings::Models;

/// What the caller's calls of models came to, by day and model.
pub struct List;

impl Operation for List {
    const META: Meta =
        Meta::query("usage.list", "What you have used of each model, by day, newest first")
            .scope("ai")
            .get("/v1/usage")
            .tool("get_usage", ToolEffect::ReadOnly);
    type Input = Paging;
    type Answer = Page<UsageView>;

    async fn run(call: &Call, paging: Paging) -> Outcome<Page<UsageView>> {
        call.own_rows::<Self, _>(paging).await
    }
}

/// What the caller may spend.
pub struct GetBudget;

impl Operation for GetBudget {
    const META: Meta = Meta::query("budget.get", "What you may spend on models")
        .scope("ai")
        .get("/v1/budget")
        .tool("get_budget", ToolEffect::ReadOnly);
    type Input = Nothing;
    type Answer = BudgetView;

    async fn run(call: &Call, _: Nothing) -> Outcome<BudgetView> {
        let otherwise = call.settings::<Models>().allowance;
        let command = Command::Show { otherwise };
        shown(call.ask::<Budget>(&of_user(&call.user_id), command, call.undeduplicated()).await?)
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct NewAllowance {
    /// Whose budget it is.
    person_id: String,
    /// In billionths of a US dollar.
    limit: Cost,
    /// From so many percent of it on they are warned. Default: 80.
    #[schemars(range(min = 1, max = 100))]
    warn_percent: Option<u8>,
    /// Default: a day.
    period: Option<Period>,
}

/// What a person may spend, as an operator says.
pub struct SetAllowance;

impl Operation for SetAllowance {
    const META: Meta = Meta::command("budget.allow", "Set what a person may spend on models")
        .scope("ai")
        .put("/v1/budgets/{person_id}");
    type Input = NewAllowance;
    type Answer = BudgetView;

    fn allow(call: &Call) -> Outcome<()> {
        match call.role {
            Role::Operator => Ok(()),
            _ => Err(Problem::forbidden("only an operator may set what a person may spend")),
        }
    }

    async fn run(call: &Call, input: NewAllowance) -> Outcome<BudgetView> {
        let warn_percent = input.warn_percent.unwrap_or(80);
        if !(1..=100).contains(&warn_percent) {
            return Err(Problem::field("/warn_percent", "must be 1 to 100"));
        }
        let key = of_user(known_id(&input.person_id, "person")?);
        let period = input.period.unwrap_or_default();
        let command = Command::Allow(Allowance { limit: input.limit, warn_percent, period });
        shown(call.ask::<Budget>(&key, command, call.meta()).await?)
    }
}

fn shown(reply: Reply) -> Outcome<BudgetView> {
    match reply {
        Reply::Shown(budget) => Ok(budget),
        reply => {
            tracing::error!(?reply, "a budget answers otherwise than asked");
            Err(AskError::Internal.into())
        }
    }
}
