//! A budget: the money that somebody may spend on models in a day, a month or ever.
//!
//! Each call of a model reserves before it is made the most that it can cost, and says afterwards what it did. A reserve
//! that nobody settles in time counts as spent, since the call may have been made; should its bill come later, it is put
//! right.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kernel::chat::{Cost, Usage};
use crate::kernel::entity::{
    Announcement, Caller, DecideCx, Decided, Decision, Effect, Entity, Role,
};
use crate::kernel::error::ErrorCode;
use crate::kernel::view::{Listed, View, ViewRow};

/// Calls of one budget that are under way.
const MAX_OPEN: usize = 1_024;
/// Expired reserves whose bill may still come.
const MAX_EXPIRED: usize = 1_024;
const EXPIRY: &str = "expiry";

#[derive(Debug)]
pub struct Budget;

/// The key of a person's budget.
pub fn of_user(user_id: &str) -> String {
    format!("{USER}{user_id}")
}

const USER: &str = "user-";

/// How much may be spent, and in which time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Allowance {
    /// In billionths of a US dollar.
    pub limit: Cost,
    /// From so many percent of it on the owner is warned.
    pub warn_percent: u8,
    pub period: Period,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// From midnight UTC.
    #[default]
    Day,
    Month,
    Forever,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Sets aside the most that one call can cost. Where nobody has set an allowance, this one holds.
    Reserve {
        call: String,
        model: String,
        most: Cost,
        until: Timestamp,
        otherwise: Option<Allowance>,
    },
    /// What a call came to. Told again, it is taken once.
    Settle {
        call: String,
        model: String,
        usage: Usage,
        cost: Cost,
        has_failed: bool,
    },
    Allow(Allowance),
    Show {
        otherwise: Option<Allowance>,
    },
    /// The timer's.
    Expire,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    Allowed {
        allowance: Allowance,
        at: Timestamp,
    },
    Reserved {
        call: String,
        model: String,
        most: Cost,
        until: Timestamp,
        at: Timestamp,
    },
    Settled {
        call: String,
        model: String,
        usage: Usage,
        cost: Cost,
        has_failed: bool,
        at: Timestamp,
    },
    Expired {
        calls: Vec<String>,
        at: Timestamp,
    },
    Warned {
        at: Timestamp,
    },
}

/// A reserve, open or expired.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reserve {
    pub model: String,
    pub most: Cost,
    pub until: Timestamp,
    pub at: Timestamp,
}

/// What one model has cost on one day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    pub calls: u64,
    pub failed: u64,
    /// Calls that counted as spent because nobody said what they came to.
    pub unsettled: u64,
    pub usage: Usage,
    pub cost: Cost,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub allowance: Option<Allowance>,
    /// The day of the last event, which says which periods are over.
    pub today: Date,
    pub spent_today: Cost,
    pub spent_this_month: Cost,
    pub spent: Cost,
    pub is_warned: bool,
    pub open: BTreeMap<String, Reserve>,
    pub expired: BTreeMap<String, Reserve>,
    /// Of the last two days.
    pub tallies: BTreeMap<Date, BTreeMap<String, Tally>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Reserved,
    Settled,
    Shown(BudgetView),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("this budget is not yours")]
    NotYours,
    #[error("only an operator may set an allowance")]
    OperatorsOnly,
    #[error("the budget is used up: {left} are left, and the call may cost {most}")]
    Exceeded { left: Cost, most: Cost },
    #[error("this call has its bill already")]
    Over,
    #[error("too many calls of this budget are under way")]
    TooMany,
}

impl crate::kernel::entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotYours | Self::OperatorsOnly => ErrorCode::Forbidden,
            Self::Exceeded { .. } => ErrorCode::Rejected,
            Self::Over => ErrorCode::Conflict,
            Self::TooMany => ErrorCode::Overloaded,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NotYours => "not_yours",
            Self::OperatorsOnly => "operators_only",
            Self::Exceeded { .. } => "budget_exceeded",
            Self::Over => "call_over",
            Self::TooMany => "too_many_calls",
        }
    }
}

/// A budget, as its owner sees it. Money is in billionths of a US dollar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Budget")]
pub struct BudgetView {
    pub id: String,
    /// `None`: as much as there is.
    pub allowance: Option<Allowance>,
    pub spent: Cost,
    /// For calls that are under way.
    pub reserved: Cost,
    pub left: Option<Cost>,
    /// When the period is over. `None`: never.
    pub renewed_at: Option<Timestamp>,
}

/// What one model has cost on one day.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ModelUsage")]
pub struct UsageView {
    pub id: String,
    pub owner_id: String,
    /// Its midnight, UTC.
    pub day: Timestamp,
    pub model: String,
    pub calls: i64,
    pub failed: i64,
    /// Calls that counted as spent because nobody said what they came to.
    pub unsettled: i64,
    pub input_tokens: i64,
    pub cached_input_tokens: i64,
    pub cache_write_tokens: i64,
    pub output_tokens: i64,
    pub reasoning_tokens: i64,
    /// In billionths of a US dollar.
    pub cost: i64,
}

impl View for UsageView {
    const NAME: &'static str = "model_usage";
    const LISTED: Option<Listed> = Listed::by("owner_id", "day");
}

/// A budget is nearly used up.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct BudgetLow {
    pub budget: BudgetView,
}

impl Announcement for BudgetLow {
    const EVENT: &'static str = "budget:low";
    const SUMMARY: &'static str = "A budget for models is nearly used up";
    const TOPICS: &'static [&'static str] = &["user"];
}

fn day_of(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}

fn midnight(day: Date) -> Timestamp {
    TimeZone::UTC.to_timestamp(day.at(0, 0, 0, 0)).unwrap_or(Timestamp::MAX)
}

impl Period {
    fn is_same(self, one: Date, other: Date) -> bool {
        match self {
            Self::Day => one == other,
            Self::Month => (one.year(), one.month()) == (other.year(), other.month()),
            Self::Forever => true,
        }
    }

    fn ends(self, today: Date) -> Option<Timestamp> {
        let next = match self {
            Self::Day => today.checked_add(1.day()),
            Self::Month => today.first_of_month().checked_add(1.month()),
            Self::Forever => return None,
        };
        next.ok().map(midnight)
    }
}

impl State {
    fn spent_in(&self, period: Period, today: Date) -> Cost {
        match period {
            _ if !period.is_same(self.today, today) => Cost(0),
            Period::Day => self.spent_today,
            Period::Month => self.spent_this_month,
            Period::Forever => self.spent,
        }
    }

    fn reserved(&self) -> Cost {
        self.open.values().fold(Cost(0), |sum, reserve| sum.saturating_add(reserve.most))
    }

    fn shown(&self, key: &str, otherwise: Option<Allowance>, now: Timestamp) -> BudgetView {
        let (allowance, today) = (self.allowance.or(otherwise), day_of(now));
        let period = allowance.map_or(Period::Forever, |allowance| allowance.period);
        let (spent, reserved) = (self.spent_in(period, today), self.reserved());
        let left = allowance
            .map(|allowance| allowance.limit.saturating_sub(spent.saturating_add(reserved)));
        let renewed_at = period.ends(today);
        BudgetView { id: key.into(), allowance, spent, reserved, left, renewed_at }
    }

    /// Days and months that are over take what was spent in them along.
    fn turn_to(&mut self, today: Date) {
        if today <= self.today {
            return;
        }
        if !Period::Month.is_same(self.today, today) {
            self.spent_this_month = Cost(0);
        }
        (self.today, self.spent_today, self.is_warned) = (today, Cost(0), false);
        let yesterday = today.yesterday().unwrap_or(today);
        self.tallies.retain(|day, _| *day >= yesterday);
    }

    fn spend(&mut self, cost: Cost) {
        for sum in [&mut self.spent_today, &mut self.spent_this_month, &mut self.spent] {
            *sum = sum.saturating_add(cost);
        }
    }

    fn spend_less(&mut self, cost: Cost) {
        for sum in [&mut self.spent_today, &mut self.spent_this_month, &mut self.spent] {
            *sum = sum.saturating_sub(cost);
        }
    }

    fn tally(&mut self, model: &str) -> &mut Tally {
        self.tallies.entry(self.today).or_default().entry(model.to_owned()).or_default()
    }

    /// The timer for the first of the reserves to expire.
    fn expiry(&self) -> Effect {
        match self.open.values().map(|reserve| reserve.until).min() {
            Some(first) => Effect::schedule::<Budget>(EXPIRY, first, &Command::Expire),
            None => Effect::cancel(EXPIRY),
        }
    }
}

/// Whose budget it is.
fn owner(key: &str) -> Option<&str> {
    key.strip_prefix(USER)
}

fn may_use(key: &str, caller: &Caller) -> bool {
    let is_owner = owner(key).is_some_and(|owner| caller.may_act_for(owner, "ai"));
    is_owner || caller.is_itself()
}

impl Entity for Budget {
    const KIND: &'static str = "budget";
    const GOLDEN: &'static str = include_str!("golden/budget.jsonl");

    crate::own_types!();

    fn decide(state: &State, command: Command, cx: &DecideCx<'_>) -> Decided<Self> {
        let is_operator = matches!(cx.caller, Caller::User { role: Role::Operator, .. });
        match command {
            Command::Allow(_) if !is_operator => return Err(Rejection::OperatorsOnly),
            Command::Expire if !cx.caller.is_itself() => return Err(Rejection::NotYours),
            Command::Allow(_) | Command::Expire => {}
            Command::Show { .. } if is_operator => {}
            _ if !may_use(cx.key, cx.caller) => return Err(Rejection::NotYours),
            _ => {}
        }
        let mut after = state.clone();
        let at = cx.now;
        let event = match command {
            Command::Show { otherwise } => {
                return Ok(Decision::reply(Reply::Shown(state.shown(cx.key, otherwise, at))));
            }
            Command::Allow(allowance) => {
                let event = Event::Allowed { allowance, at };
                Self::evolve(&mut after, &event);
                let shown = after.shown(cx.key, None, at);
                return Ok(Decision::reply(Reply::Shown(shown)).event(event));
            }
            Command::Expire => {
                let over = state.open.iter().filter(|(_, reserve)| reserve.until <= at);
                let calls: Vec<_> = over.map(|(call, _)| call.clone()).collect();
                if calls.is_empty() {
                    return Ok(Decision::reply(Reply::Settled).effect(state.expiry()));
                }
                Event::Expired { calls, at }
            }
            Command::Reserve { call, .. } if state.open.contains_key(&call) => {
                return Ok(Decision::reply(Reply::Reserved));
            }
            Command::Reserve { call, .. } if state.expired.contains_key(&call) => {
                return Err(Rejection::Over);
            }
            Command::Reserve { .. } if state.open.len() >= MAX_OPEN => {
                return Err(Rejection::TooMany);
            }
            Command::Reserve { call, model, most, until, otherwise } => {
                let left = state.shown(cx.key, otherwise, at).left;
                if let Some(left) = left.filter(|left| *left < most) {
                    return Err(Rejection::Exceeded { left, most });
                }
                let event = Event::Reserved { call, model, most, until, at };
                Self::evolve(&mut after, &event);
                let warned = after.warning(cx, otherwise);
                let decision = Decision::reply(Reply::Reserved).event(event);
                let decision = match warned {
                    Some(low) => decision.event(Event::Warned { at }).effects(low),
                    None => decision,
                };
                return Ok(decision.effect(after.expiry()));
            }
            Command::Settle { call, model, usage, cost, has_failed } => {
                if !state.open.contains_key(&call) && !state.expired.contains_key(&call) {
                    return Ok(Decision::reply(Reply::Settled));
                }
                Event::Settled { call, model, usage, cost, has_failed, at }
            }
        };
        Self::evolve(&mut after, &event);
        Ok(Decision::reply(Reply::Settled).event(event).effect(after.expiry()))
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Allowed { allowance, at } => {
                state.turn_to(day_of(*at));
                state.allowance = Some(*allowance);
                state.is_warned = false;
            }
            Event::Reserved { call, model, most, until, at } => {
                state.turn_to(day_of(*at));
                let reserve = Reserve { model: model.clone(), most: *most, until: *until, at: *at };
                state.open.insert(call.clone(), reserve);
            }
            Event::Settled { call, model, usage, cost, has_failed, at } => {
                state.turn_to(day_of(*at));
                let was_open = state.open.remove(call).is_some();
                if let Some(reserve) = state.expired.remove(call).filter(|_| !was_open) {
                    state.spend_less(reserve.most);
                    let tally = state.tally(&reserve.model);
                    tally.unsettled = tally.unsettled.saturating_sub(1);
                    tally.cost = tally.cost.saturating_sub(reserve.most);
                }
                state.spend(*cost);
                let tally = state.tally(model);
                tally.calls += 1;
                tally.failed += u64::from(*has_failed);
                tally.usage += *usage;
                tally.cost = tally.cost.saturating_add(*cost);
            }
            Event::Expired { calls, at } => {
                state.turn_to(day_of(*at));
                for call in calls {
                    let Some(reserve) = state.open.remove(call) else { continue };
                    state.spend(reserve.most);
                    let tally = state.tally(&reserve.model);
                    tally.unsettled += 1;
                    tally.cost = tally.cost.saturating_add(reserve.most);
                    state.expired.insert(call.clone(), reserve);
                }
                while state.expired.len() > MAX_EXPIRED {
                    let oldest = state.expired.iter().min_by_key(|(_, reserve)| reserve.at);
                    let Some(oldest) = oldest.map(|(call, _)| call.clone()) else { break };
                    state.expired.remove(&oldest);
                }
                let day = SignedDuration::from_hours(24);
                state.expired.retain(|_, reserve| at.duration_since(reserve.until) < day);
            }
            Event::Warned { .. } => state.is_warned = true,
        }
    }

    fn project(key: &str, state: &State, events: &[Event]) -> Vec<ViewRow> {
        let models = events.iter().flat_map(|event| match event {
            Event::Settled { model, .. } => vec![model.as_str()],
            Event::Expired { calls, .. } => {
                let reserves = calls.iter().filter_map(|call| state.expired.get(call));
                reserves.map(|reserve| reserve.model.as_str()).collect()
            }
            _ => Vec::new(),
        });
        let models: BTreeSet<_> = models.collect();
        let Some(today) = state.tallies.get(&state.today) else { return Vec::new() };
        let rows = models.iter().filter_map(|model| Some((model, today.get(*model)?)));
        rows.map(|(model, tally)| ViewRow::of(&usage(key, state.today, model, tally))).collect()
    }
}

impl State {
    /// What the owner is told once a period, when most of the allowance is gone.
    fn warning(&self, cx: &DecideCx<'_>, otherwise: Option<Allowance>) -> Option<Option<Effect>> {
        let allowance = self.allowance.or(otherwise).filter(|_| !self.is_warned)?;
        let shown = self.shown(cx.key, otherwise, cx.now);
        let used = shown.spent.saturating_add(shown.reserved);
        let from = u128::from(allowance.limit.0) * u128::from(allowance.warn_percent) / 100;
        if u128::from(used.0) < from {
            return None;
        }
        let low = BudgetLow { budget: shown };
        Some(owner(cx.key).map(|owner| Effect::announce_to("user", owner, &low)))
    }
}

fn usage(key: &str, day: Date, model: &str, tally: &Tally) -> UsageView {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    UsageView {
        id: format!("{key}.{day}.{model}"),
        owner_id: owner(key).unwrap_or(key).into(),
        day: midnight(day),
        model: model.into(),
        calls: number(tally.calls),
        failed: number(tally.failed),
        unsettled: number(tally.unsettled),
        input_tokens: number(tally.usage.input),
        cached_input_tokens: number(tally.usage.cached_input),
        cache_write_tokens: number(tally.usage.cache_writes),
        output_tokens: number(tally.usage.output),
        reasoning_tokens: number(tally.usage.reasoning),
        cost: number(tally.cost.0),
    }
}

#[cfg(test)]
mod tests;
