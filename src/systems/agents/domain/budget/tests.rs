use super::*;
use crate::kernel::entity::Principal;
use crate::kernel::entity::spec::{Given, given};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

const NOON: &str = "2026-01-31T12:00:00Z";

fn dollars(text: &str) -> Cost {
    Cost::parse(text).unwrap()
}

fn allowance(limit: &str, period: Period) -> Allowance {
    Allowance { limit: dollars(limit), warn_percent: 80, period }
}

fn alices() -> Given<Budget> {
    given::<Budget>([]).key(&of_user("alice")).by_user("alice").at(at(NOON))
}

fn reserve_until(call: &str, most: &str, until: &str) -> Command {
    let (call, model) = (call.into(), "gpt".into());
    let otherwise = Some(allowance("1", Period::Day));
    Command::Reserve { call, model, most: dollars(most), until: at(until), otherwise }
}

fn reserve(call: &str, most: &str) -> Command {
    reserve_until(call, most, "2026-01-31T12:05:00Z")
}

fn settle(call: &str, cost: &str) -> Command {
    let usage = Usage { input: 10, output: 5, ..Usage::default() };
    let (call, model, cost) = (call.into(), "gpt".into(), dollars(cost));
    Command::Settle { call, model, usage, cost, has_failed: false }
}

fn shown(budget: &mut Given<Budget>) -> BudgetView {
    let otherwise = Some(allowance("1", Period::Day));
    match budget.when(Command::Show { otherwise }).decision().reply {
        Some(Reply::Shown(shown)) => shown,
        reply => panic!("{reply:?}"),
    }
}

#[test]
fn what_may_be_spent_is_set_aside_before_and_what_was_not_comes_back() {
    let mut budget = alices();
    for call in ["1", "2"] {
        budget.when(reserve(call, "0.4")).decision();
    }
    budget.when(reserve("3", "0.4")).then_rejected("budget_exceeded");
    assert_eq!(shown(&mut budget).left, Some(dollars("0.2")));
    budget.when(settle("1", "0.1")).decision();
    let after = shown(&mut budget);
    assert_eq!((after.spent, after.reserved), (dollars("0.1"), dollars("0.4")));
    budget.when(reserve("3", "0.4")).decision();
}

#[test]
fn the_same_reserve_and_the_same_bill_count_once() {
    let mut budget = alices();
    for _ in 0..3 {
        budget.when(reserve("1", "0.4")).decision();
    }
    assert_eq!(shown(&mut budget).reserved, dollars("0.4"));
    for _ in 0..3 {
        budget.when(settle("1", "0.3")).decision();
    }
    assert_eq!(shown(&mut budget).spent, dollars("0.3"));
}

#[test]
fn what_nobody_settles_counts_as_spent_until_its_bill_comes() {
    let mut budget = alices();
    budget.when(reserve("1", "0.4")).decision();
    budget.when(Command::Expire).then_rejected("not_yours");
    budget.caller = Caller::Runtime;
    budget.now = at("2026-01-31T12:04:59Z");
    assert!(budget.when(Command::Expire).decision().events.is_empty());
    budget.now = at("2026-01-31T12:05:00Z");
    let decision = budget.when(Command::Expire).decision();
    assert_eq!(decision.events.len(), 1);
    let rows = Budget::project(&of_user("alice"), &budget.state, &decision.events);
    assert_eq!(
        (rows[0].row["unsettled"].as_i64(), rows[0].row["cost"].as_i64()),
        (Some(1), Some(400_000_000))
    );
    let after = shown(&mut budget);
    assert_eq!((after.spent, after.reserved), (dollars("0.4"), Cost(0)));
    budget.when(reserve("1", "0.4")).then_rejected("call_over");
    let decision = budget.when(settle("1", "0.1")).decision();
    assert_eq!(shown(&mut budget).spent, dollars("0.1"));
    let rows = Budget::project(&of_user("alice"), &budget.state, &decision.events);
    assert_eq!(
        (rows[0].row["unsettled"].as_i64(), rows[0].row["cost"].as_i64()),
        (Some(0), Some(100_000_000))
    );
}

#[test]
fn a_period_ends_at_midnight_utc() {
    let mut budget = alices();
    budget.when(reserve("1", "0.9")).decision();
    budget.when(settle("1", "0.9")).decision();
    budget.when(reserve("2", "0.2")).then_rejected("budget_exceeded");
    assert_eq!(shown(&mut budget).renewed_at, Some(at("2026-02-01T00:00:00Z")));
    budget.now = at("2026-02-01T00:00:00Z");
    assert_eq!(shown(&mut budget).left, Some(dollars("1")));
    budget.when(reserve_until("2", "0.2", "2026-02-01T00:05:00Z")).decision();
    assert_eq!(budget.state.spent_this_month, Cost(0));
    budget.when(settle("2", "0.2")).decision();
    assert_eq!(budget.state.spent, dollars("1.1"));
}

#[test]
fn only_an_operator_sets_an_allowance_and_it_outranks_the_common_one() {
    let mut budget = alices();
    let allow = || Command::Allow(allowance("2", Period::Month));
    budget.when(allow()).then_rejected("operators_only");
    budget.caller = Caller::user("olga", Role::Operator);
    budget.when(allow()).decision();
    budget.caller = Caller::user("alice", Role::Consumer);
    budget.when(reserve("1", "1.5")).decision();
    assert_eq!(shown(&mut budget).left, Some(dollars("0.5")));
}

#[test]
fn a_budget_is_its_owners_and_of_whoever_acts_for_them() {
    let mut budget = alices();
    budget.caller = Caller::user("bob", Role::Consumer);
    budget.when(reserve("1", "0.1")).then_rejected("not_yours");
    budget.when(settle("1", "0.1")).then_rejected("not_yours");
    budget.when(Command::Show { otherwise: None }).then_rejected("not_yours");
    let agent = |person: &str| Caller::Entity {
        kind: "run".into(),
        key: "1".into(),
        for_user: Some(Principal::of(person)),
    };
    budget.caller = agent("bob");
    budget.when(reserve("1", "0.1")).then_rejected("not_yours");
    budget.caller = agent("alice");
    budget.when(reserve("1", "0.1")).decision();
}

#[test]
fn the_owner_is_warned_once_a_period() {
    let mut budget = alices();
    let warnings = |decision: &Decision<Budget>| {
        decision.events.iter().filter(|event| matches!(event, Event::Warned { .. })).count()
    };
    assert_eq!(warnings(&budget.when(reserve("1", "0.5")).decision()), 0);
    let warned = budget.when(reserve("2", "0.3")).decision();
    assert_eq!(warnings(&warned), 1);
    assert!(warned.effects.iter().any(|effect| matches!(effect, Effect::Notify { .. })));
    assert_eq!(warnings(&budget.when(reserve("3", "0.1")).decision()), 0);
}

#[test]
fn the_calls_under_way_are_bounded() {
    let mut budget = alices();
    for n in 0..MAX_OPEN {
        budget.when(reserve(&n.to_string(), "0")).decision();
    }
    budget.when(reserve("one more", "0")).then_rejected("too_many_calls");
}
