//! Runs: their limits, their rate, and their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proxie::actors::{AnyRunner, Rate, RunCx, RunError, RunLimits, Runner};
use proxie::kernel::clock::Clock;
use proxie::kernel::ids::slot_of;
use proxie::persistence::letters::LetterFilter;

use crate::counter::{Command, Test};
use crate::starvation::{ask, count, dead, hurry, run};
use crate::support::{Setup, core, database, eventually, pool};

/// Counts its calls. What it does is the input.
#[derive(Clone, Default)]
struct Outside {
    calls: Arc<AtomicUsize>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

/// Counts a run for as long as it is kept.
struct Under(Arc<AtomicUsize>);

impl Drop for Under {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Outside {
    async fn call(&self, input: String) -> Result<String, RunError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let _under = Under(self.now.clone());
        match input.as_str() {
            "hang" => std::future::pending().await,
            "panic" => panic!("told to"),
            "large" => return Ok("x".repeat(200)),
            "brief" => tokio::time::sleep(Duration::from_millis(20)).await,
            _ => {}
        }
        Ok(input)
    }
}

impl Runner for Outside {
    type Work = Test;
    const LIMITS: RunLimits = RunLimits {
        timeout: Duration::from_millis(500),
        concurrent: 2,
        max_outcome_bytes: 100,
        ..RunLimits::DEFAULT
    };

    async fn run(&self, _: RunCx, input: String) -> Result<String, RunError> {
        self.call(input).await
    }
}

fn with_runner(runner: &Outside) -> Setup {
    let mut setup = Setup::default();
    setup.runners.push(AnyRunner::new(runner.clone()));
    setup
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_outcome_cannot_be_taken_is_not_made_for_ever() {
    let database = database().await;
    let pool = pool(database.clone()).await;
    let outside = Outside::default();
    let node = core(database, with_runner(&outside)).await;
    ask(&node, "a", Command::Run { runner: "poison".into() }).await.unwrap();
    eventually("it is set aside", || async {
        hurry(&pool).await;
        dead(&pool, &LetterFilter::default()).await.len() == 1
    })
    .await;
    assert_eq!(outside.calls.load(Ordering::SeqCst), 5);
    let letter = dead(&pool, &LetterFilter::default()).await.pop().unwrap();
    assert_eq!((letter.from.as_str(), letter.to.as_str()), ("counter/a", "run/test"));
    assert!(letter.last_error.unwrap().contains("never taken"));
    // The entity goes on.
    eventually("it answers", || async { ask(&node, "a", Command::Add(1)).await.is_ok() }).await;
    hurry(&pool).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(outside.calls.load(Ordering::SeqCst), 5);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_keep_to_their_limits() {
    let database = database().await;
    let pool = pool(database.clone()).await;
    let outside = Outside::default();
    let node = core(database, with_runner(&outside)).await;
    for (what, error) in [("hang", "no outcome within 500ms"), ("panic", "the runner panicked")] {
        ask(&node, what, Command::Run { runner: what.into() }).await.unwrap();
        eventually(error, || async {
            let last = "select coalesce(max(last_error), '') from outbox where sender_key = $1";
            let last: String = sqlx::query_scalar(last).bind(what).fetch_one(&pool).await.unwrap();
            last == error
        })
        .await;
    }
    run(&pool, "update outbox set dead_at = now()").await;
    ask(&node, "large", Command::Run { runner: "large".into() }).await.unwrap();
    eventually("it is an error", || async {
        count(&pool, "select count(*) from journal where event ->> 'Ran' like 'error:the outcome has 202 bytes%'")
            .await
            == 1
    })
    .await;
    outside.most.store(0, Ordering::SeqCst);
    for n in 0..20 {
        ask(&node, &format!("k{n}"), Command::Run { runner: "brief".into() }).await.unwrap();
    }
    eventually("all have ended", || async {
        count(&pool, "select count(*) from journal where event ->> 'Ran' = 'ok:\"brief\"'").await
            == 20
    })
    .await;
    assert!(outside.most.load(Ordering::SeqCst) <= 2);
    node.stop().await;
}

/// May begin twice an hour, and no more than two wait.
struct Paced(Outside);

impl Runner for Paced {
    type Work = Test;
    const LIMITS: RunLimits = RunLimits {
        rate: Some(Rate { begins: 2, per: Duration::from_secs(3_600) }),
        waiting: 2,
        ..RunLimits::DEFAULT
    };

    async fn run(&self, _: RunCx, input: String) -> Result<String, RunError> {
        self.0.call(input).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_begin_at_their_runners_rate_and_none_is_lost() {
    let database = database().await;
    let pool = pool(database.clone()).await;
    let clock = Clock::manual("2026-01-12T08:00:00Z".parse().unwrap());
    let outside = Outside::default();
    let mut setup = Setup { clock: clock.clone(), ..Setup::default() };
    setup.runners.push(AnyRunner::new(Paced(outside.clone())));
    let node = core(database, setup).await;
    for n in 0..6 {
        ask(&node, &format!("k{n}"), Command::Run { runner: "go".into() }).await.unwrap();
    }
    let ended = async || count(&pool, "select count(*) from journal where event ? 'Ran'").await;
    eventually("two have ended", || async { ended().await == 2 }).await;
    // Two wait for their turn, and two in the outbox, since no more may wait.
    let put_off = "select count(*) from outbox where last_error like 'it waits for its turn%' and attempts = 0";
    eventually("two are put off", || async { count(&pool, put_off).await == 2 }).await;
    assert_eq!(outside.calls.load(Ordering::SeqCst), 2);
    for n in 3..=6 {
        clock.advance_ms(29 * 60_000);
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        assert_eq!(outside.calls.load(Ordering::SeqCst), n - 1, "a minute early");
        clock.advance_ms(60_000);
        eventually("one more has ended", || async { ended().await == n as i64 }).await;
        assert_eq!(outside.calls.load(Ordering::SeqCst), n);
    }
    assert_eq!(count(&pool, "select count(*) from outbox").await, 0);
    node.stop().await;
}

/// Goes on for as long as it may.
struct Long(Outside);

impl Runner for Long {
    type Work = Test;

    async fn run(&self, _: RunCx, input: String) -> Result<String, RunError> {
        self.0.call(input).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_ends_with_its_activation() {
    let outside = Outside::default();
    let mut setup = Setup::default();
    setup.runners.push(AnyRunner::new(Long(outside.clone())));
    let node = core(database().await, setup).await;
    ask(&node, "a", Command::Run { runner: "hang".into() }).await.unwrap();
    eventually("it runs", || async { outside.now.load(Ordering::SeqCst) == 1 }).await;
    let _ = ask(&node, "a", Command::Panic).await;
    eventually("it is dropped", || async { outside.now.load(Ordering::SeqCst) == 0 }).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_moves_with_its_slot() {
    let database = database().await;
    let member = async |name, outside: &Outside| {
        let mut setup = Setup { name, clustered: true, data_lock_held: false, ..Setup::default() };
        setup.runners.push(AnyRunner::new(Long(outside.clone())));
        core(database.clone(), setup).await
    };
    let (there, here) = (Outside::default(), Outside::default());
    let now = |outside: &Outside| outside.now.load(Ordering::SeqCst);
    let first = member("first", &there).await;
    first.standing().wait_for(|standing| standing.active && standing.settled).await.unwrap();
    let keys: Vec<String> = (0..12).map(|n| format!("k{n}")).collect();
    for key in &keys {
        ask(&first, key, Command::Run { runner: "hang".into() }).await.unwrap();
    }
    eventually("all run", || async { now(&there) == 12 }).await;
    let second = member("second", &here).await;
    eventually("half of the slots have moved, and their runs", || async {
        let slots = &second.runtime.slots;
        let moved = keys
            .iter()
            .filter(|key| slots.owned(slot_of("counter", key)).owner == Some(slots.me()))
            .count();
        slots.count_mine() == 2_048 && moved > 0 && now(&here) == moved && now(&there) == 12 - moved
    })
    .await;
    second.stop().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_a_release_before_asked_for_is_made_and_an_unreadable_one_is_an_error() {
    let database = database().await;
    let pool = pool(database.clone()).await;
    let mut setup = Setup::default();
    setup.runners.push(AnyRunner::new(Long(Outside::default())));
    let node = core(database, setup).await;
    for (at, input) in [(1, "\"hello\""), (2, "{\"of\": \"another shape\"}")] {
        let slot = slot_of("counter", "a");
        let row = format!(
            "insert into outbox (id, slot, sender_kind, sender_key, position, target_kind, target_key, body, due_at)
             values ('eff_{at}', {slot}, 'counter', 'a', {at}, 'run', 'test', '{{\"tag\":\"tag\",\"input\":{input}}}', now() - interval '1 minute')"
        );
        run(&pool, &row).await;
    }
    eventually("both have ended", || async {
        count(&pool, "select count(*) from journal where event ->> 'Ran' = 'ok:\"hello\"'").await == 1
            && count(&pool, "select count(*) from journal where event ->> 'Ran' like 'error:its input cannot be read%'").await == 1
    })
    .await;
    node.stop().await;
}
