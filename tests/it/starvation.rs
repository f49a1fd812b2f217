//! What can never be handled keeps out nothing else, is not tried for ever, and is seen.

use std::collections::HashMap;
use std::time::Duration;

use proxie::actors::Options;
use proxie::app::core::Core;
use proxie::cluster::CommandMeta;
use proxie::kernel::clock::Timestamp;
use proxie::kernel::entity::{Caller, Role};
use proxie::kernel::error::AskError;
use proxie::kernel::ids::slot_of;
use proxie::persistence::letters::{self, DeadLetter, LetterCursor, LetterFilter};
use proxie::persistence::outbox;
use proxie::persistence::patience::within;
use sqlx::Row;
use sqlx::postgres::{PgPool, PgPoolOptions};

use crate::counter::{Command, Counter, Rejection, Reply};
use crate::support::{Cable, Setup, core, database, eventually, known_as, pool};

pub async fn ask(core: &Core, key: &str, command: Command) -> Result<Reply, AskError> {
    let asked = core.entities.of::<Counter>(key).ask(command, CommandMeta::runtime());
    Ok(asked.await?.expect("not rejected"))
}

pub async fn count(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

pub async fn run(pool: &PgPool, sql: &str) -> u64 {
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(pool).await.unwrap().rows_affected()
}

/// Whatever waits for its time is looked at again at once.
pub async fn hurry(pool: &PgPool) {
    run(pool, "update timers set due_at = 'epoch' where due_at <> 'infinity'").await;
    run(pool, "update outbox set due_at = 'epoch', look_at = 'epoch' where dead_at is null").await;
}

pub async fn dead(pool: &PgPool, which: &LetterFilter) -> Vec<DeadLetter> {
    letters::list(pool, which, &LetterCursor::default(), 1_000).await.unwrap()
}

/// Rows that nobody can handle, older than everything else: `n` of each sort.
async fn unhandleable(pool: &PgPool, n: i32) {
    for (sort, kind, command) in [
        ("unknown", "ghost", r#"{"Fired":1}"#),
        ("unreadable", "counter", r#"{"Unheard":1}"#),
        ("parked", "counter", r#"{"Fired":1}"#),
        ("panics", "counter", r#""Panic""#),
    ] {
        sqlx::query(
            "insert into timers (kind, key, name, id, slot, due_at, command)
             select $1, $2 || n, 'bad', 'bad-' || $2 || n, n % 4096, now() - interval '1 hour', $3
             from generate_series(1, $4) n",
        )
        .bind(kind)
        .bind(sort)
        .bind(command)
        .bind(n)
        .execute(pool)
        .await
        .unwrap();
    }
    run(
        pool,
        &format!(
            "insert into parked (kind, key, reason, failures, known_as)
             select kind, key, 'it is broken', 5, '{}' from timers where key like 'parked%'",
            known_as()
        ),
    )
    .await;
    for (sort, sender_kind, senders, target_kind, target_key, body) in [
        ("lost", "ghost", n, "counter", "honest", r#"{"Add":1}"#),
        ("parked", "counter", n, "counter", "honest", r#"{"Add":1}"#),
        ("astray", "counter", 50, "ghost", "nobody", r#"{"Add":1}"#),
        ("runs", "counter", 50, "run", "missing", r#"{"tag":"t","input":null}"#),
    ] {
        sqlx::query(
            "insert into outbox (id, slot, sender_kind, sender_key, position, target_kind, target_key, body, due_at, look_at)
             select 'eff_bad-' || $1 || n, n % 4096, $2, $1 || n % $3 + 1, n, $4,
                    case $4 when 'ghost' then $5 || n else $5 end, $6, now() - interval '1 hour', now() - interval '1 hour'
             from generate_series(1, $7) n",
        )
        .bind(sort)
        .bind(sender_kind)
        .bind(senders)
        .bind(target_kind)
        .bind(target_key)
        .bind(body)
        .bind(n)
        .execute(pool)
        .await
        .unwrap();
    }
}

/// In ms, the median, the 99th of a hundred, and the last.
fn figures(mut late: Vec<i64>) -> (i64, i64, i64) {
    late.sort_unstable();
    let at = |share: usize| late[(late.len() - 1) * share / 100] / 1_000;
    (at(50), at(99), at(100))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_handled_keeps_out_nothing_else() {
    let n: i32 = std::env::var("PROXIE_UNHANDLEABLE").map_or(1_200, |n| n.parse().unwrap());
    let database = database().await;
    let pool = pool(database.clone()).await;
    unhandleable(&pool, n).await;
    // Deliveries whose senders died with them.
    sqlx::query(
        "insert into outbox (id, slot, sender_kind, sender_key, position, target_kind, target_key, body, due_at, look_at)
         select 'eff_good' || n, n, 'counter', 'orphan' || n, 1, 'counter', 'found' || n, '{\"Add\":1}', now(), now()
         from generate_series(1, 200) n",
    )
    .execute(&pool)
    .await
    .unwrap();
    let node = core(database, Setup::default()).await;
    // Timers that become due meanwhile, and deliveries of entities that live.
    let began = node.runtime.clock.now();
    let (mut due, mut sends) = (HashMap::new(), HashMap::new());
    for i in 0..400_i64 {
        let at = node.runtime.clock.now() + jiff::SignedDuration::from_millis(500);
        due.insert(i, at);
        let plan = Command::AddAt { at, n: i, name: format!("good{i}") };
        ask(&node, &format!("timed{}", i % 100), plan).await.unwrap();
        if i % 4 == 0 {
            let to = vec![format!("to{i}")];
            sends.insert(i, node.runtime.clock.now());
            ask(&node, &format!("from{}", i % 20), Command::Spread { to, n: 1 }).await.unwrap();
        }
    }
    let all = "select count(*) from journal
        where event ? 'Fired' and key like 'timed%' or event ? 'Added' and (key like 'to%' or key like 'found%')";
    let waited = std::time::Instant::now();
    while count(&pool, all).await < 400 + 100 + 200 {
        assert!(waited.elapsed() < Duration::from_secs(120), "{}", count(&pool, all).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let at = async |filter: &'static str, value: &'static str| -> Vec<(i64, i64)> {
        let sql = format!(
            "select {value}, (extract(epoch from at) * 1000000)::bigint from journal where {filter}"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&pool).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    let timers = at("event ? 'Fired' and key like 'timed%'", "(event ->> 'Fired')::bigint").await;
    let timers = timers.into_iter().map(|(i, at)| at - due[&i].as_microsecond());
    let sent = at("event ? 'Added' and key like 'to%'", "substr(key, 3)::bigint").await;
    let sent = sent.into_iter().map(|(i, at)| at - sends[&i].as_microsecond());
    let found = at("event ? 'Added' and key like 'found%'", "0::bigint").await;
    let found = found.into_iter().map(|(_, at)| at - began.as_microsecond());
    println!(
        "beside {n} of each of 8 sorts, late by ms (median, 99 %, most): timers {:?}, sends {:?}, found again {:?}",
        figures(timers.collect()),
        figures(sent.collect()),
        figures(found.collect())
    );
    // All of it was looked at, and is put off.
    for rest in [
        "select count(*) from timers where attempts = 0",
        "select count(*) from outbox where found = 0 and attempts = 0",
    ] {
        eventually(rest, || async { count(&pool, rest).await == 0 }).await;
    }
    let reasons =
        "select count(distinct left(last_error, 20)) from timers where last_error is not null";
    eventually("reasons are noted", || async { count(&pool, reasons).await >= 4 }).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_tried_for_too_long_is_set_aside_and_can_be_tried_again() {
    let database = database().await;
    let pool = pool(database.clone()).await;
    unhandleable(&pool, 3).await;
    let entities = Options { give_up_after: Duration::from_secs(1), ..Default::default() };
    let node = core(database, Setup { entities, ..Default::default() }).await;
    eventually("all are dead letters", || async {
        hurry(&pool).await;
        dead(&pool, &LetterFilter::default()).await.len() == 3 * 7
    })
    .await;
    let of = |kind: &str, reason: &str| LetterFilter {
        kind: Some(kind.into()),
        reason: Some(reason.into()),
        ..Default::default()
    };
    assert_eq!(dead(&pool, &of("ghost", "no kind ghost")).await.len(), 6, "timers and sends");
    assert_eq!(dead(&pool, &of("counter", "unknown variant")).await.len(), 3);
    assert_eq!(dead(&pool, &of("counter", "panicked")).await.len(), 3);
    assert_eq!(dead(&pool, &of("counter", "parked")).await.len(), 3);
    assert_eq!(dead(&pool, &of("counter", letters::ASLEEP)).await.len(), 6);
    // By pages, each once.
    let (mut ids, mut after) = (Vec::new(), LetterCursor::default());
    loop {
        let page = letters::list(&pool, &LetterFilter::default(), &after, 4).await.unwrap();
        let Some(last) = page.last() else { break };
        after = last.cursor.clone();
        ids.extend(page.into_iter().map(|letter| letter.id));
    }
    assert_eq!(ids.len(), 21);
    assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 21);

    // A timer of the same name that is set anew is another one.
    let plan = Command::AddAt { at: Timestamp::UNIX_EPOCH, n: 5, name: "bad".into() };
    ask(&node, "panics1", plan).await.unwrap();
    eventually("it fires", || async {
        ask(&node, "panics1", Command::Get).await == Ok(Reply::Total(5))
    })
    .await;
    // What is repaired and tried again arrives.
    run(&pool, "update timers set command = '{\"Fired\":7}' where key like 'unreadable%'").await;
    assert_eq!(letters::retry(&pool, &of("counter", "unknown variant")).await.unwrap(), 3);
    eventually("it fires at last", || async {
        ask(&node, "unreadable3", Command::Get).await == Ok(Reply::Total(7))
    })
    .await;
    // Whoever may start again gets what was given up meanwhile.
    assert!(outbox::unpark(&pool, "counter", "parked2").await.unwrap());
    eventually("its timer fires", || async {
        // Tried before the node had learned of it, within the second that it has here, it would be given up again.
        let its = LetterFilter { key: Some("parked2".into()), ..of("counter", "") };
        letters::retry(&pool, &its).await.unwrap();
        matches!(ask(&node, "parked2", Command::Get).await, Ok(Reply::Total(1)))
    })
    .await;
    eventually("what it sends arrives", || async {
        ask(&node, "honest", Command::Get).await == Ok(Reply::Total(1))
    })
    .await;
    assert_eq!(letters::discard(&pool, &of("ghost", "")).await.unwrap(), 6);
    assert!(dead(&pool, &of("ghost", "")).await.is_empty());
    node.stop().await;
}

#[tokio::test]
async fn a_claim_moves_on_what_it_claims() {
    let pool = pool(database().await).await;
    run(&pool, "update slots set incarnation = 1").await;
    unhandleable(&pool, 5).await;
    let now: Timestamp = "2100-01-01T00:00:00Z".parse().unwrap();
    let first = outbox::owing(&pool, 1, now, i64::MAX >> 32, 1_000).await.unwrap();
    assert_eq!(first.len(), 20);
    assert!(outbox::owing(&pool, 1, now, i64::MAX >> 32, 1_000).await.unwrap().is_empty());
    let timers = async || {
        let claim = proxie::persistence::timers::claim(&pool, 1, now, i64::MAX >> 32, 15);
        claim.await.unwrap().len()
    };
    assert_eq!((timers().await, timers().await, timers().await), (15, 5, 0));
    // Those of another node's slots are not this one's to claim.
    hurry(&pool).await;
    run(&pool, "update slots set incarnation = 2").await;
    assert_eq!(timers().await, 0);
    assert!(outbox::owing(&pool, 1, now, i64::MAX >> 32, 1_000).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_are_served_in_turn() {
    let database = database().await;
    let pool = pool(database.clone()).await;
    let entities = Options { max_deliveries: 1, ..Default::default() };
    let node = core(database, Setup { entities, ..Default::default() }).await;
    let mut to = vec!["a".to_owned(); 30];
    to.push("z".into());
    ask(&node, "from", Command::Spread { to, n: 1 }).await.unwrap();
    eventually("all arrive", || async {
        count(&pool, "select count(*) from journal where event ? 'Added'").await == 31
    })
    .await;
    let before = "select count(*) from journal where key = 'a' and at < (select at from journal where key = 'z')";
    let before = count(&pool, before).await;
    assert!(before < 10, "the last of the alphabet came after {before}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_journal_is_folded_in_pages_that_count() {
    let database = database().await;
    let pool = pool(database.clone()).await;
    run(
        &pool,
        "insert into journal select 'counter', 'old', n, 2, 0, '{\"Added\":1}', 'test', null, now() from generate_series(1, 23456) n",
    )
    .await;
    // Of a layout that this release does not know.
    run(
        &pool,
        "insert into snapshots values ('counter', 'old', 23400, 0, '\\x01ffff0000000000000000')",
    )
    .await;
    let node = core(database.clone(), Setup::default()).await;
    assert_eq!(ask(&node, "old", Command::Get).await, Ok(Reply::Total(23_456)));
    // What was folded on the way is kept, and is no less true for that.
    assert_eq!(count(&pool, "select seq from snapshots where key = 'old'").await, 20_000);
    let next = core(database, Setup::default()).await;
    assert_eq!(ask(&next, "old", Command::Get).await, Ok(Reply::Total(23_456)));
    assert_eq!(ask(&next, "old", Command::Add(1)).await, Ok(Reply::Total(23_457)));
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_parked_entity_stays_parked() {
    let database = database().await;
    let pool = pool(database.clone()).await;
    run(
        &pool,
        &format!(
            "insert into parked (kind, key, reason, failures, known_as, at)
             select 'counter', 'p' || n, 'broken', 5, '{}', now() + n * interval '1 s' from generate_series(1, 10050) n",
            known_as()
        ),
    )
    .await;
    let node = core(database, Setup::default()).await;
    let parked = async |key: &str| {
        let answer = ask(&node, key, Command::Get).await;
        matches!(answer, Err(AskError::Unavailable { reason, .. }) if reason.contains("parked"))
    };
    eventually("they are known", || async { parked("p1").await }).await;
    assert!(parked("p9999").await);
    assert!(outbox::unpark(&pool, "counter", "p9999").await.unwrap());
    eventually("one may start", || async { !parked("p9999").await }).await;
    assert!(parked("p9998").await);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_waits_sees_what_others_wrote() {
    let database = database().await;
    let pool = pool(database.clone()).await;
    let node = core(database, Setup::default()).await;
    ask(&node, "a", Command::Add(1)).await.unwrap();
    let counter = node.entities.of::<Counter>("a");
    let waits =
        tokio::spawn(counter.ask(Command::WaitFor { at_least: 50 }, CommandMeta::runtime()));
    ask(&node, "a", Command::Get).await.unwrap();
    run(
        &pool,
        "insert into journal select kind, key, 2, version, topic_head, '{\"Added\": 100}', caller, null, at from journal",
    )
    .await;
    // Refused as stale, decided again on what is true, and then no event follows from it.
    let user = CommandMeta::new(Caller::user("u", Role::Consumer)).id("once");
    let refused = counter.ask(Command::AddUpTo { n: 1, limit: 0 }, user).await.unwrap();
    assert_eq!(refused, Err(Rejection::Limit { limit: 0 }));
    assert_eq!(waits.await.unwrap(), Ok(Ok(Reply::Total(101))));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entities_are_found_by_their_slots() {
    let node = core(database().await, Setup::default()).await;
    for n in 0..200 {
        ask(&node, &format!("k{n}"), Command::Add(1)).await.unwrap();
        if n % 3 == 0 {
            // Ends, and starts again.
            let _ = ask(&node, &format!("k{n}"), Command::Panic).await;
            eventually("it is back", || async {
                ask(&node, &format!("k{n}"), Command::Get).await.is_ok()
            })
            .await;
        }
    }
    let leaving = (0..100).map(|n| slot_of("counter", &format!("k{n}"))).collect();
    let others = (100..200).filter(|n| {
        !std::collections::HashSet::contains(&leaving, &slot_of("counter", &format!("k{n}")))
    });
    let others = others.count();
    assert_eq!(node.registry.retire(&leaving), 200 - others);
    eventually("they are gone", || async { node.registry.retire(&leaving) == 0 }).await;
    assert_eq!(node.registry.live(), others);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_does_not_answer_is_given_up() {
    let cable = Cable::to(&database().await).await;
    let one = PgPoolOptions::new().max_connections(1).test_before_acquire(false);
    let pool = one.connect_with(cable.options.clone()).await.unwrap();
    let ask = async |limit| {
        within(&pool, "answer a test", limit, async |connection| {
            sqlx::query("select 1").execute(connection).await.map(drop)
        })
        .await
    };
    ask(Duration::from_secs(20)).await.unwrap();
    cable.mute();
    let silent = ask(Duration::from_millis(200)).await;
    assert!(matches!(silent, Err(sqlx::Error::Io(_))), "{silent:?}");
    cable.unmute();
    // The one place of the pool is free.
    ask(Duration::from_secs(20)).await.unwrap();
}
