//! The entity runtime on a real PostgreSQL: durability, single effects, order, bounds, recovery.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use proxie::actors::{AnyRunner, Options, RunCx, RunError, Runner};
use proxie::app::core::{Core, Fate};
use proxie::cluster::slots::SlotOwnership;
use proxie::cluster::topics::{Published, Subscriber};
use proxie::cluster::{CommandMeta, skew};
use proxie::kernel::clock::{Clock, Timestamp};
use proxie::kernel::entity::{Caller, Role};
use proxie::kernel::error::AskError;
use proxie::kernel::ids::slot_of;
use proxie::persistence::letters::{self, LetterCursor, LetterFilter};
use proxie::persistence::publications::Histories;
use proxie::persistence::writer;

use crate::counter::{Again, Command, Counter, Rejection, Reply, Test};
use crate::support::{Cable, Setup, core, database, eventually, pool, server, try_core};

fn user(id: &str, command_id: &str) -> CommandMeta {
    CommandMeta::new(Caller::user(id, Role::Consumer)).id(command_id)
}

async fn ask(
    core: &Core,
    key: &str,
    command: Command,
    meta: CommandMeta,
) -> Result<Reply, AskError> {
    Ok(core.entities.of::<Counter>(key).ask(command, meta).await?.expect("not rejected"))
}

async fn total(core: &Core, key: &str) -> i64 {
    match ask(core, key, Command::Get, CommandMeta::runtime()).await {
        Ok(Reply::Total(total)) => total,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_that_is_dropped_leaves_nothing_behind() {
    let tokio = tokio::runtime::Runtime::new().unwrap();
    let left = tokio.block_on(async {
        let core = core(database().await, Setup::default()).await;
        ask(&core, "a", Command::Add(1), CommandMeta::runtime()).await.unwrap();
        Arc::downgrade(&core.runtime)
    });
    drop(tokio);
    // The lease has a thread of its own, which ends soon after.
    for _ in 0..2_000 {
        if left.strong_count() == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it is held {} times", left.strong_count());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_is_there_after_a_restart() {
    let database = database().await;
    let first = core(database.clone(), Setup::default()).await;
    for n in 1..=25 {
        assert_eq!(
            ask(&first, "a", Command::Add(1), CommandMeta::runtime()).await,
            Ok(Reply::Total(n))
        );
    }
    // Not stopped: as after a crash, the next one takes over.
    let second = core(database, Setup::default()).await;
    assert_eq!(total(&second, "a").await, 25);
    // The fenced one cannot write any more, and soon knows.
    assert!(matches!(
        ask(&first, "a", Command::Add(1), CommandMeta::runtime()).await,
        Err(AskError::Unavailable { .. })
    ));
    first.fate().wait_for(|fate| *fate == Fate::Evicted).await.unwrap();
    assert_eq!(total(&second, "a").await, 25);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_dead_mark_nothing_commits() {
    let database = database().await;
    let node = core(database.clone(), Setup::default()).await;
    ask(&node, "a", Command::Add(1), CommandMeta::runtime()).await.unwrap();
    // Only the mark: the slots are still this node's.
    let pool = pool(database).await;
    sqlx::query("update lanes set live = false").execute(&pool).await.unwrap();
    let answer = ask(&node, "a", Command::Add(1), CommandMeta::runtime()).await;
    assert!(matches!(answer, Err(AskError::Unavailable { .. })), "{answer:?}");
    node.fate().wait_for(|fate| *fate == Fate::Evicted).await.unwrap();
    let events: i64 =
        sqlx::query_scalar("select count(*) from journal").fetch_one(&pool).await.unwrap();
    assert_eq!(events, 1);
}

/// A slot was released, and this node does not know it yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_comes_after_its_slot_was_released_writes_nothing() {
    let database = database().await;
    let node = core(database.clone(), Setup::default()).await;
    for key in ["a", "b"] {
        ask(&node, key, Command::Add(1), CommandMeta::runtime()).await.unwrap();
    }
    let pool = pool(database).await;
    let events = async || -> i64 {
        sqlx::query_scalar("select count(*) from journal").fetch_one(&pool).await.unwrap()
    };
    let slot = slot_of("counter", "a");
    assert_ne!(slot, slot_of("counter", "b"));
    sqlx::query("update slots set epoch = epoch + 1 where slot = $1")
        .bind(i32::from(slot))
        .execute(&pool)
        .await
        .unwrap();
    // What was decided on the way, and what is decided on top of it, is gone; a neighbour in the same batch is not.
    let (one, two, neighbour) = tokio::join!(
        ask(&node, "a", Command::Add(1), user("u", "1")),
        ask(&node, "a", Command::Add(1), user("u", "2")),
        ask(&node, "b", Command::Add(1), user("u", "3"))
    );
    assert!(matches!(one, Err(AskError::Unavailable { .. })), "{one:?}");
    assert!(matches!(two, Err(AskError::Unavailable { .. })), "{two:?}");
    assert_eq!((neighbour, events().await), (Ok(Reply::Total(2)), 3));
    assert_eq!(*node.fate().borrow(), Fate::Living, "the rest of the node goes on");
    // As soon as the node knows, its activation answers no read either.
    let epoch = node.runtime.slots.owned(slot).epoch + 1;
    node.runtime.slots.learn(slot, SlotOwnership { owner: Some(i64::MAX), epoch }, 0);
    let read = ask(&node, "a", Command::Get, CommandMeta::runtime()).await;
    assert!(read.is_err(), "{read:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_id_has_one_effect_and_one_answer() {
    let database = database().await;
    let first = core(database.clone(), Setup::default()).await;
    let add = || ask(&first, "a", Command::Add(5), user("u", "c1"));
    // Twice at the same time, then again.
    let (one, two) = tokio::join!(add(), add());
    assert_eq!((one, two), (Ok(Reply::Total(5)), Ok(Reply::Total(5))));
    ask(&first, "a", Command::Add(1), user("u", "c2")).await.unwrap();
    assert_eq!(add().await, Ok(Reply::Total(5)));
    // Another command, another entity: the id is used.
    assert_eq!(ask(&first, "a", Command::Add(6), user("u", "c1")).await, Err(AskError::IdReused));
    assert_eq!(ask(&first, "b", Command::Add(5), user("u", "c1")).await, Err(AskError::IdReused));
    // Somebody else's id is another id.
    assert_eq!(ask(&first, "b", Command::Add(5), user("v", "c1")).await, Ok(Reply::Total(5)));
    // A rejection is remembered as well, although it would be accepted now.
    let up_to = |core: &Core, limit| {
        let counter = core.entities.of::<Counter>("a");
        async move { counter.ask(Command::AddUpTo { n: 10, limit }, user("u", "c3")).await.unwrap() }
    };
    assert_eq!(up_to(&first, 10).await, Err(Rejection::Limit { limit: 10 }));
    ask(&first, "a", Command::Add(-6), user("u", "c4")).await.unwrap();
    assert_eq!(up_to(&first, 10).await, Err(Rejection::Limit { limit: 10 }));

    // After a restart only the store remembers; commands in flight beside the retry are not harmed by it.
    let pool = pool(database.clone()).await;
    let second = core(database, Setup::default()).await;
    let others = (0..50).map(|n| {
        ask(&second, "a", Command::Add(1), user("u", ["x", &n.to_string()].concat().leak()))
    });
    let retry = ask(&second, "a", Command::Add(5), user("u", "c1"));
    let (retry, others) = tokio::join!(retry, join_all(others));
    assert_eq!(retry, Ok(Reply::Total(5)));
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    assert_eq!(up_to(&second, 10).await, Err(Rejection::Limit { limit: 10 }));
    assert_eq!(total(&second, "a").await, 50);

    // One id at the same moment at many entities, in one batch and over the lanes: it counts once.
    for round in 0..5 {
        let id = format!("same{round}");
        let asks = (0..40).map(|n| {
            let (key, id) = (format!("k{n}"), id.clone());
            let second = &second;
            async move { ask(second, &key, Command::Add(1), user("u", &id)).await }
        });
        // While the lanes are held by something else, all of it gathers in one batch each.
        let mut lock = pool.begin().await.unwrap();
        sqlx::query("select from lanes for update").execute(&mut *lock).await.unwrap();
        let hold = join_all((0..8).map(|n| format!("hold{n}")).map(async |key| {
            ask(&second, &key, Command::Add(1), CommandMeta::runtime()).await.unwrap()
        }));
        let let_go = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            lock.rollback().await.unwrap();
        };
        let (_, answers, ()) = tokio::join!(hold, join_all(asks), let_go);
        let won = answers.iter().filter(|answer| answer.is_ok()).count();
        assert_eq!(won, 1, "{answers:?}");
        assert!(
            answers.iter().all(|a| matches!(a, Ok(_) | Err(AskError::IdReused))),
            "{answers:?}"
        );
    }
    let totals = join_all((0..40).map(|n| format!("k{n}")).map(async |k| total(&second, &k).await));
    assert_eq!(totals.await.iter().sum::<i64>(), 5);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_after_a_refused_command_is_decided_again() {
    let database = database().await;
    let pool = pool(database.clone()).await;
    let first = core(database.clone(), Setup::default()).await;
    ask(&first, "a", Command::Add(5), user("u", "used")).await.unwrap();
    let node = core(database, Setup::default()).await;
    total(&node, "a").await;
    // The retry, which only the store knows for one, and what was decided behind it meet in one batch.
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("select from lanes for update").execute(&mut *lock).await.unwrap();
    let hold = ask(&node, "a", Command::Add(1), CommandMeta::runtime());
    let retry = ask(&node, "a", Command::Add(5), user("u", "used"));
    let after = (0..5).map(|n| format!("after{n}"));
    let after =
        join_all(after.map(async |id| ask(&node, "a", Command::Add(1), user("u", &id)).await));
    let let_go = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        lock.rollback().await.unwrap();
    };
    let (hold, retry, after, ()) = tokio::join!(hold, retry, after, let_go);
    assert_eq!((hold, retry), (Ok(Reply::Total(6)), Ok(Reply::Total(5))));
    assert_eq!(after, (7..=11).map(|n| Ok(Reply::Total(n))).collect::<Vec<_>>());

    // Somebody else has written: the command is refused, its id is free again, and it is decided on what is true.
    sqlx::query(
        "insert into journal select kind, key, seq + 1, version, topic_head, '{\"Added\": 100}', caller, null, at
         from journal where key = 'a' order by seq desc limit 1",
    )
    .execute(&pool)
    .await
    .unwrap();
    let answer = ask(&node, "a", Command::Add(1), user("u", "stale")).await;
    assert_eq!(answer, Ok(Reply::Total(112)));
    assert_eq!(total(&node, "a").await, 112);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_entity_answers_in_order() {
    let node = core(database().await, Setup::default()).await;
    let counter = node.entities.of::<Counter>("hot");
    let asks: Vec<_> =
        (0..500).map(|_| counter.ask(Command::Add(1), CommandMeta::runtime()).boxed()).collect();
    let totals: Vec<i64> = join_all(asks)
        .await
        .into_iter()
        .map(|answer| match answer {
            Ok(Ok(Reply::Total(total))) => total,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(totals, (1..=500).collect::<Vec<_>>());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_item_does_not_fail_its_neighbours() {
    let one_lane =
        Setup { writer: writer::Options { lanes: 1, ..Default::default() }, ..Default::default() };
    let node = core(database().await, one_lane).await;
    // Load both first, so that all of it meets in one batch.
    total(&node, "good").await;
    total(&node, "bad").await;
    let good = (0..20).map(|_| ask(&node, "good", Command::Add(1), CommandMeta::runtime()));
    let bad =
        ask(&node, "bad", Command::Note("a NUL \0 is no jsonb".into()), CommandMeta::runtime());
    let after = ask(&node, "bad", Command::Add(7), CommandMeta::runtime());
    let (good, bad, after) = tokio::join!(join_all(good), bad, after);
    assert!(good.iter().all(Result::is_ok), "{good:?}");
    assert_eq!(bad, Err(AskError::Internal));
    assert_eq!(after, Ok(Reply::Total(7)));
    assert_eq!((total(&node, "good").await, total(&node, "bad").await), (20, 7));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_costs_its_caller_only() {
    let node = core(database().await, Setup::default()).await;
    ask(&node, "a", Command::Add(1), CommandMeta::runtime()).await.unwrap();
    assert_eq!(
        ask(&node, "a", Command::Panic, CommandMeta::runtime()).await,
        Err(AskError::Internal)
    );
    eventually("the entity answers again", || async {
        ask(&node, "a", Command::Add(1), CommandMeta::runtime()).await.is_ok()
    })
    .await;
    assert_eq!(total(&node, "a").await, 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_answer_at_once() {
    let setup = Setup {
        entities: Options { max_in_flight: 4, ..Default::default() },
        ..Default::default()
    };
    let database = database().await;
    let node = core(database.clone(), setup).await;
    let pool = pool(database).await;
    let counter = node.entities.of::<Counter>("a");
    let late = CommandMeta::runtime().timeout(Duration::ZERO);
    assert_eq!(counter.ask(Command::Add(1), late).await, Err(AskError::DeadlineExceeded));
    total(&node, "a").await;
    // Nothing can be committed while somebody holds the lanes' rows.
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("select from lanes for update").execute(&mut *lock).await.unwrap();
    let mut in_flight: Vec<_> =
        (0..4).map(|_| counter.ask(Command::Add(1), CommandMeta::runtime()).boxed()).collect();
    for ask in &mut in_flight {
        assert!(futures_util::poll!(ask).is_pending());
    }
    // A full entity is full for reads too; everybody else is served.
    assert_eq!(counter.ask(Command::Get, CommandMeta::runtime()).await, Err(AskError::Overloaded));
    assert_eq!(total(&node, "b").await, 0);
    lock.rollback().await.unwrap();
    for ask in in_flight {
        assert!(ask.await.is_ok());
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_an_answer_may_ask_again_at_once() {
    let entities = Options { max_in_flight: 1, ..Default::default() };
    let node = core(database().await, Setup { entities, ..Default::default() }).await;
    for _ in 0..20_000 {
        assert_eq!(total(&node, "a").await, 0);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_queries_are_bounded_and_keep_no_command_out() {
    let setup = Setup {
        entities: Options { max_in_flight: 4, ..Default::default() },
        ..Default::default()
    };
    let node = core(database().await, setup).await;
    let counter = node.entities.of::<Counter>("a");
    let mut waiting = Vec::new();
    while waiting.len() < 256 {
        let mut ask =
            counter.ask(Command::WaitFor { at_least: 100 }, CommandMeta::runtime()).boxed();
        assert!(futures_util::poll!(&mut ask).is_pending());
        // Answered behind it, so by now it is parked.
        total(&node, "a").await;
        waiting.push(ask);
    }
    let more = || {
        counter.ask(
            Command::WaitFor { at_least: 100 },
            CommandMeta::runtime().timeout(Duration::from_millis(300)),
        )
    };
    assert_eq!(more().await, Err(AskError::Overloaded));
    assert_eq!(ask(&node, "a", Command::Add(1), CommandMeta::runtime()).await, Ok(Reply::Total(1)));
    drop(waiting);
    eventually("there is room again", || async { more().await == Err(AskError::DeadlineExceeded) })
        .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_can_wait_for_a_change() {
    let node = core(database().await, Setup::default()).await;
    let counter = node.entities.of::<Counter>("a");
    let waiting = tokio::spawn(async move {
        counter.ask(Command::WaitFor { at_least: 3 }, CommandMeta::runtime()).await
    });
    for _ in 0..3 {
        ask(&node, "a", Command::Add(1), CommandMeta::runtime()).await.unwrap();
    }
    assert_eq!(waiting.await.unwrap(), Ok(Ok(Reply::Total(3))));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sends_arrive_once_even_over_a_crash() {
    let database = database().await;
    let first = core(database.clone(), Setup::default()).await;
    let pool = pool(database.clone()).await;
    for statement in [
        "create table sent (like outbox)",
        "create function sent() returns trigger language plpgsql as
         $$ begin insert into sent select new.*; return new; end $$",
        "create trigger sent after insert on outbox for each row execute function sent()",
    ] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    let owed = || async {
        sqlx::query_scalar::<_, i64>("select count(*) from outbox").fetch_one(&pool).await.unwrap()
    };
    let to: Vec<String> = (0..40).map(|n| format!("to{n}")).collect();
    ask(&first, "from", Command::Spread { to: to.clone(), n: 3 }, CommandMeta::runtime())
        .await
        .unwrap();
    // In the middle of delivering, a successor takes over and finishes; some were delivered twice.
    let second = core(database, Setup::default()).await;
    for key in &to {
        eventually("it arrives", || async { total(&second, key).await != 0 }).await;
    }
    eventually("the outbox is empty", || async { owed().await == 0 }).await;
    sqlx::query("drop trigger sent on outbox").execute(&pool).await.unwrap();
    // What a crash between the receiver's commit and the sender's leaves behind: the row is still there.
    sqlx::query("insert into outbox select * from sent").execute(&pool).await.unwrap();
    eventually("the outbox is empty again", || async { owed().await == 0 }).await;
    for key in &to {
        assert_eq!(total(&second, key).await, 3, "{key}");
    }
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sends_to_one_receiver_keep_their_order() {
    let database = database().await;
    let pool = pool(database.clone()).await;
    let node = core(database, Setup::default()).await;
    let sends = (1..=20).map(|n| {
        ask(&node, "from", Command::Spread { to: vec!["to".into()], n }, CommandMeta::runtime())
    });
    assert!(join_all(sends).await.iter().all(Result::is_ok));
    eventually("all arrive", || async { total(&node, "to").await == 210 }).await;
    let order: Vec<i64> = sqlx::query_scalar(
        "select (event ->> 'Added')::bigint from journal where key = 'to' order by seq",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(order, (1..=20).collect::<Vec<_>>());
    node.stop().await;
}

/// More than is read at once, and more that comes while it is delivered.
#[tokio::test(flavor = "multi_thread")]
async fn an_entity_that_owes_much_delivers_it_once_and_in_order() {
    const OWED: i64 = 3_300;
    const RECEIVERS: i64 = 3;
    let database = database().await;
    let pool = pool(database.clone()).await;
    core(database.clone(), Setup::default()).await.stop().await;
    // One receiver cannot start, and most of the first page is for it.
    let broken = "insert into journal values ('counter', 'broken', 1, 2, 0, '{\"Unheard\": 1}', 'test', null, now())";
    sqlx::query(broken).execute(&pool).await.unwrap();
    let fill = "insert into outbox (id, slot, sender_kind, sender_key, position, target_kind, target_key, body, due_at)
        select 'owed-' || n, $1, 'counter', 'from', n, 'counter',
               case when n <= 900 then 'broken' else 'to' || n % $3 end, '{\"Add\":' || n || '}', now()
          from generate_series(1, $2) n";
    let slot = i32::from(slot_of("counter", "from"));
    sqlx::query(fill).bind(slot).bind(OWED).bind(RECEIVERS).execute(&pool).await.unwrap();
    let node = core(database, Setup::default()).await;
    let later = OWED + 1..=OWED + 60;
    for n in later.clone() {
        let to = vec![format!("to{}", n % RECEIVERS)];
        ask(&node, "from", Command::Spread { to, n }, CommandMeta::runtime()).await.unwrap();
    }
    eventually("all is delivered but what cannot be", || async {
        let left = "select count(*) from outbox where target_key <> 'broken'";
        sqlx::query_scalar::<_, i64>(left).fetch_one(&pool).await.unwrap() == 0
    })
    .await;
    for to in 0..RECEIVERS {
        let order: Vec<i64> = sqlx::query_scalar(
            "select (event ->> 'Added')::bigint from journal where key = $1 order by seq",
        )
        .bind(format!("to{to}"))
        .fetch_all(&pool)
        .await
        .unwrap();
        let all: Vec<i64> = (901..=*later.end()).filter(|n| n % RECEIVERS == to).collect();
        assert_eq!(order, all, "to{to}");
    }
    let of_it = "select count(distinct position) from outbox";
    let positions: i64 = sqlx::query_scalar(of_it).fetch_one(&pool).await.unwrap();
    assert_eq!(positions, 900, "what cannot be delivered is kept");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_far_off_starts_nothing_and_lets_nothing_expire() {
    let database = database().await;
    let limits = skew::SkewLimits { warn_ms: 30_000, limit_ms: 60_000 };
    let clock = Clock::manual(Clock::System.now());
    let setup = || Setup { clock: clock.clone(), clock_limits: limits, ..Default::default() };
    clock.advance_ms(120_000);
    let refused = try_core(database.clone(), setup()).await.err().expect("it does not start");
    let said = refused.to_string();
    assert!(
        said.contains("s ahead of the database's, and node.clock_limit_ms allows 60000 ms"),
        "{said}"
    );
    clock.advance_ms(-120_000);
    let node = core(database, setup()).await;
    let at = clock.now() + jiff::SignedDuration::from_secs(25);
    ask(&node, "a", Command::AddAt { at, n: 1, name: "late".into() }, CommandMeta::runtime())
        .await
        .unwrap();
    let (skew, known) = (node.runtime.skew.clone(), node.runtime.skew.clone());
    clock.advance_ms(-120_000);
    eventually("it notices", || async { skew.is_too_much() && skew.ms() < 0 }).await;
    // From far behind to far ahead.
    clock.advance_ms(300_000);
    eventually("it notices", || async { known.is_too_much() && known.ms() > 0 }).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(total(&node, "a").await, 0, "by this clock it was due");
    clock.advance_ms(-150_000);
    eventually("it fires", || async { total(&node, "a").await == 1 }).await;
    assert!(!node.runtime.skew.is_too_much());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn timers_fire_once_late_rather_than_never() {
    let database = database().await;
    let clock = Clock::manual("2026-01-01T00:00:00Z".parse().unwrap());
    let setup = || Setup { clock: clock.clone(), ..Default::default() };
    let first = core(database.clone(), setup()).await;
    let at = |s: i64| clock.now() + jiff::SignedDuration::from_secs(s);
    let plan = |name: &str, at: Timestamp, n| Command::AddAt { at, n, name: name.into() };
    ask(&first, "a", plan("one", at(60), 1), CommandMeta::runtime()).await.unwrap();
    ask(&first, "a", plan("two", at(60), 10), CommandMeta::runtime()).await.unwrap();
    ask(&first, "a", plan("two", at(120), 100), CommandMeta::runtime()).await.unwrap();
    ask(&first, "a", plan("gone", at(60), 1_000), CommandMeta::runtime()).await.unwrap();
    ask(&first, "a", Command::Forget { name: "gone".into() }, CommandMeta::runtime())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(total(&first, "a").await, 0);
    // The node is down when the first is due.
    first.stop().await;
    clock.advance_ms(61_000);
    let second = core(database, setup()).await;
    eventually("the first fires", || async { total(&second, "a").await == 1 }).await;
    clock.advance_ms(60_000);
    eventually("the second fires", || async { total(&second, "a").await == 101 }).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(total(&second, "a").await, 101);
    // A fire whose row is gone (fetched twice, replaced, cancelled meanwhile) comes to nothing.
    let again = second.registry.kind("counter").unwrap().fire(
        "a",
        "two".into(),
        "its row is gone".into(),
        r#"{"Fired":100}"#,
        Default::default(),
    );
    again.unwrap();
    ask(&second, "a", Command::Add(1), CommandMeta::runtime()).await.unwrap();
    assert_eq!(total(&second, "a").await, 102);
    second.stop().await;
}

struct Flaky(AtomicUsize);

impl Runner for Flaky {
    type Work = Test;

    async fn run(&self, _: RunCx, input: String) -> Result<String, RunError> {
        match (input.as_str(), self.0.fetch_add(1, Ordering::SeqCst)) {
            ("final", _) => Err(RunError::Final("no".into())),
            (_, 0 | 1) => Err(RunError::Retry("not yet".into())),
            _ => Ok(input),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_retried_and_their_outcome_comes_back() {
    let database = database().await;
    let mut setup = Setup::default();
    setup.runners.push(AnyRunner::new(Flaky(AtomicUsize::new(0))));
    let node = core(database.clone(), setup).await;
    let pool = pool(database).await;
    for (runner, outcome) in [
        ("hello", "ok:\"hello\""),
        ("final", "error:no"),
        ("missing", "error:there is no runner missing"),
    ] {
        ask(&node, "a", Command::Run { runner: runner.into() }, CommandMeta::runtime())
            .await
            .unwrap();
        eventually(outcome, || async {
            let ran = "select count(*) from journal where event ->> 'Ran' = $1";
            sqlx::query_scalar::<_, i64>(ran).bind(outcome).fetch_one(&pool).await.unwrap() == 1
        })
        .await;
    }
    eventually("the outbox is empty", || async {
        sqlx::query_scalar::<_, i64>("select count(*) from outbox").fetch_one(&pool).await.unwrap()
            == 0
    })
    .await;
    node.stop().await;
}

/// Says how often it was begun before, and how often without an end, once it is let go.
struct Counted(Arc<tokio::sync::Semaphore>);

impl Runner for Counted {
    type Work = Again;

    async fn run(&self, cx: RunCx, input: String) -> Result<String, RunError> {
        self.0.acquire().await.unwrap().forget();
        if input == "again, later" && cx.earlier == 0 {
            return Err(RunError::Retry("not yet".into()));
        }
        Ok(format!("{} {}", cx.earlier, cx.unfinished))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_harmless_run_is_noted_once_it_is_repeated() {
    let database = database().await;
    let counted = |permits| {
        let permits = Arc::new(tokio::sync::Semaphore::new(permits));
        let mut setup = Setup::default();
        setup.runners.push(AnyRunner::new(Counted(permits.clone())));
        (permits, setup)
    };
    let (permits, setup) = counted(1);
    let first = core(database.clone(), setup).await;
    let pool = pool(database.clone()).await;
    let run = async |node: &Core, runner: &str| {
        let command = Command::Run { runner: runner.into() };
        ask(node, "a", command, CommandMeta::runtime()).await.unwrap();
    };
    let ran = async |outcome: &str| {
        eventually(outcome, || async {
            let ran = "select count(*) from journal where event ->> 'Ran' = $1";
            let ran = sqlx::query_scalar(ran).bind(format!("ok:\"{outcome}\""));
            ran.fetch_one(&pool).await.unwrap_or(0i64) == 1
        })
        .await;
    };
    run(&first, "again").await;
    ran("0 0").await;
    run(&first, "again").await;
    let begun = sqlx::query_scalar("select begun from outbox").fetch_one(&pool);
    assert_eq!(begun.await.unwrap_or(-1i32), 0);
    // It never ends here. A successor cannot know that it was not begun.
    let (_permits, setup) = counted(100);
    let second = core(database, setup).await;
    ran("1 1").await;
    // An attempt that has ended is known.
    run(&second, "again, later").await;
    ran("1 0").await;
    assert_eq!(permits.available_permits(), 0);
    second.stop().await;
    drop(first);
}

/// Runs until it is let go.
struct Held(Arc<tokio::sync::Semaphore>);

impl Runner for Held {
    type Work = Test;

    async fn run(&self, _: RunCx, input: String) -> Result<String, RunError> {
        self.0.acquire().await.unwrap().forget();
        Ok(input)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_is_taken_once() {
    let database = database().await;
    let held = Arc::new(tokio::sync::Semaphore::new(0));
    let mut setup = Setup::default();
    setup.runners.push(AnyRunner::new(Held(held.clone())));
    let node = core(database.clone(), setup).await;
    let pool = pool(database).await;
    ask(&node, "a", Command::Run { runner: "held".into() }, CommandMeta::runtime()).await.unwrap();
    // As when another run of the same effect was quicker: its commit took the row.
    sqlx::query("delete from outbox").execute(&pool).await.unwrap();
    held.add_permits(1);
    tokio::time::sleep(Duration::from_millis(300)).await;
    ask(&node, "a", Command::Add(1), CommandMeta::runtime()).await.unwrap();
    let ran: i64 = sqlx::query_scalar("select count(*) from journal where event ? 'Ran'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(ran, 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_past_its_deadline_is_never_decided() {
    let database = database().await;
    let node = core(database.clone(), Setup::default()).await;
    let pool = pool(database).await;
    // The entity cannot be read while somebody holds the table, so the command waits in its mailbox.
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("lock table snapshots").execute(&mut *lock).await.unwrap();
    let soon = CommandMeta::runtime().timeout(Duration::from_millis(100));
    assert_eq!(ask(&node, "a", Command::Add(1), soon).await, Err(AskError::DeadlineExceeded));
    lock.rollback().await.unwrap();
    assert_eq!(
        ask(&node, "a", Command::Add(10), CommandMeta::runtime()).await,
        Ok(Reply::Total(10))
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn passive_entities_come_back_from_snapshot_and_events() {
    let database = database().await;
    let setup = || Setup {
        entities: Options { idle_s: 0, snapshot_every: 10, ..Default::default() },
        ..Default::default()
    };
    let node = core(database.clone(), setup()).await;
    for _ in 0..25 {
        ask(&node, "a", Command::Add(1), CommandMeta::runtime()).await.unwrap();
    }
    eventually("it becomes passive", || async { node.registry.live() == 0 }).await;
    let pool = pool(database.clone()).await;
    let seq: i64 = sqlx::query_scalar("select seq from snapshots where key = 'a'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(seq, 25);
    assert_eq!(total(&node, "a").await, 25);
    // A snapshot of another layout is dropped and the journal read instead.
    sqlx::query("update snapshots set data = '\\x01ffff0000000000000000'")
        .execute(&pool)
        .await
        .unwrap();
    eventually("it becomes passive again", || async { node.registry.live() == 0 }).await;
    assert_eq!(total(&node, "a").await, 25);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_that_cannot_start_is_parked_and_can_be_retried() {
    let database = database().await;
    let setup =
        Setup { entities: Options { park_after: 2, ..Default::default() }, ..Default::default() };
    let node = core(database.clone(), setup).await;
    let pool = pool(database).await;
    sqlx::query("insert into journal values ('counter', 'a', 1, 2, 0, '{\"Unheard\": 1}', 'test', null, now())")
        .execute(&pool)
        .await
        .unwrap();
    eventually("it is parked", || async {
        let _ = ask(&node, "a", Command::Get, CommandMeta::runtime()).await;
        sqlx::query_scalar::<_, i64>("select count(*) from parked").fetch_one(&pool).await.unwrap()
            == 1
    })
    .await;
    match ask(&node, "a", Command::Get, CommandMeta::runtime()).await {
        Err(AskError::Unavailable { reason, .. }) => assert!(reason.contains("parked"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(total(&node, "b").await, 0);
    sqlx::query("update journal set event = '{\"Added\": 4}'").execute(&pool).await.unwrap();
    assert!(proxie::persistence::outbox::unpark(&pool, "counter", "a").await.unwrap());
    eventually("it starts", || async {
        ask(&node, "a", Command::Get, CommandMeta::runtime()).await == Ok(Reply::Total(4))
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_and_can_be_retried() {
    let database = database().await;
    let setup = Setup {
        entities: Options { give_up_after: Duration::ZERO, park_after: 1, ..Default::default() },
        ..Default::default()
    };
    let node = core(database.clone(), setup).await;
    let pool = pool(database).await;
    sqlx::query("insert into journal values ('counter', 'broken', 1, 2, 0, '{\"Unheard\": 1}', 'test', null, now())")
        .execute(&pool)
        .await
        .unwrap();
    ask(&node, "from", Command::Spread { to: vec!["broken".into()], n: 3 }, CommandMeta::runtime())
        .await
        .unwrap();
    let dead = || async {
        letters::list(&pool, &LetterFilter::default(), &LetterCursor::default(), 10).await.unwrap()
    };
    eventually("it is a dead letter", || async { dead().await.len() == 1 }).await;
    sqlx::query("update journal set event = '{\"Added\": 4}' where key = 'broken'")
        .execute(&pool)
        .await
        .unwrap();
    sqlx::query("delete from parked").execute(&pool).await.unwrap();
    eventually("it starts", || async {
        ask(&node, "broken", Command::Get, CommandMeta::runtime()).await.is_ok()
    })
    .await;
    let which = LetterFilter { id: Some(dead().await[0].id.clone()), ..Default::default() };
    assert_eq!(letters::retry(&pool, &which).await.unwrap(), 1);
    eventually("it arrives after all", || async { total(&node, "broken").await == 7 }).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_live_node_is_refused() {
    let database = database().await;
    let node = core(database.clone(), Setup { data_lock_held: false, ..Default::default() }).await;
    let second = try_core(database, Setup { data_lock_held: false, ..Default::default() }).await;
    let error = second.err().expect("refused").to_string();
    assert!(error.contains("is live on this database"), "{error}");
    assert_eq!(total(&node, "a").await, 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_backends_lose_and_double_nothing() {
    let database = database().await;
    let node = Arc::new(core(database.clone(), Setup::default()).await);
    let pool = pool(database.clone()).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let workers: Vec<_> = (0..8)
        .map(|w| {
            let (node, stop) = (node.clone(), stop.clone());
            tokio::spawn(async move {
                let mut done = 0_i64;
                while !stop.load(Ordering::SeqCst) {
                    let id = format!("w{w}-{done}");
                    // The same id until it is acknowledged: exactly one effect.
                    while ask(&node, &format!("k{w}"), Command::Add(1), user("u", &id))
                        .await
                        .is_err()
                    {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    done += 1;
                }
                done
            })
        })
        .collect();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        sqlx::query(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid() and state = 'active'",
        )
        .execute(&pool)
        .await
        .unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    for (w, worker) in workers.into_iter().enumerate() {
        let done = worker.await.unwrap();
        assert!(done > 0);
        assert_eq!(total(&node, &format!("k{w}")).await, done, "worker {w}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_was_lost_counts_once() {
    let database = database().await;
    let cable = Cable::to(&database).await;
    let node = core(cable.options.clone(), Setup::default()).await;
    total(&node, "a").await;
    let pool = pool(database).await;
    // Without an id: nothing but the lane's row can tell what became of it.
    for n in [2, 4, 6] {
        // On this connection the statement is prepared: the call needs no answer to be carried out. After a cut
        // the store may be seen as away for a moment, hence with an id and until it is answered.
        let id = format!("before-{n}");
        eventually("the cable is noticed to be whole", || async {
            ask(&node, "a", Command::Add(1), user("u", &id)).await == Ok(Reply::Total(n - 1))
        })
        .await;
        cable.mute();
        let add = ask(&node, "a", Command::Add(1), CommandMeta::runtime());
        let lost = async {
            eventually("it is committed", || async {
                let events = sqlx::query_scalar::<_, i64>("select count(*) from journal");
                events.fetch_one(&pool).await.unwrap() == n
            })
            .await;
            cable.cut();
        };
        let (answer, ()) = tokio::join!(add, lost);
        assert_eq!(answer, Ok(Reply::Total(n)));
    }
    eventually("it is readable", || async {
        ask(&node, "a", Command::Get, CommandMeta::runtime()).await == Ok(Reply::Total(6))
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_proven_lease_nothing_is_read() {
    let database = database().await;
    let node = core(database.clone(), Setup::default()).await;
    ask(&node, "a", Command::Add(1), CommandMeta::runtime()).await.unwrap();
    let pool = pool(database).await;
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("select from leases for update").execute(&mut *lock).await.unwrap();
    eventually("the lease is not renewed", || async { !node.lease.is_fresh() }).await;
    let read = ask(&node, "a", Command::Get, CommandMeta::runtime()).await;
    assert!(matches!(read, Err(AskError::Unavailable { .. })), "{read:?}");
    // A commit proves by itself that nobody has taken over.
    assert_eq!(ask(&node, "a", Command::Add(1), CommandMeta::runtime()).await, Ok(Reply::Total(2)));
    lock.rollback().await.unwrap();
    eventually("it is renewed", || async {
        ask(&node, "a", Command::Get, CommandMeta::runtime()).await == Ok(Reply::Total(2))
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_pool_costs_no_lease() {
    let node = core(database().await, Setup::default()).await;
    ask(&node, "a", Command::Add(1), CommandMeta::runtime()).await.unwrap();
    let mut taken = Vec::new();
    let soon = Duration::from_millis(200);
    while let Ok(Ok(connection)) = tokio::time::timeout(soon, node.pool.acquire()).await {
        taken.push(connection);
    }
    assert!(!taken.is_empty());
    // Longer than a lease that is not renewed would be believed.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(total(&node, "a").await, 1);
    drop(taken);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publications_are_numbered_without_a_hole() {
    let database = database().await;
    let first = core(database.clone(), Setup::default()).await;
    for n in 0..5 {
        ask(&first, "a", Command::Publish { event: format!("e{n}") }, CommandMeta::runtime())
            .await
            .unwrap();
    }
    let second = core(database.clone(), Setup::default()).await;
    ask(&second, "a", Command::Publish { event: "e5".into() }, CommandMeta::runtime())
        .await
        .unwrap();
    ask(&second, "b", Command::Publish { event: "other".into() }, CommandMeta::runtime())
        .await
        .unwrap();
    // Many at once, as when their node has died.
    let histories = Histories::start(pool(database.clone()).await, first.runtime.vault.clone());
    let after = |key: &'static str, after| histories.after("counter", key, after);
    let same = futures_util::future::join_all((0..300).map(|_| after("a", 2)));
    let (all, beyond, other, none, head) = tokio::join!(
        same,
        after("a", 7),
        after("b", 0),
        after("nobody", 0),
        histories.head("counter", "a"),
    );
    let history = all[0].as_ref().unwrap();
    let answers: std::collections::BTreeSet<_> =
        all.iter().map(|read| Arc::as_ptr(read.as_ref().unwrap())).collect();
    assert!(answers.len() < 100, "{} reads for 300 who wanted the same", answers.len());
    assert_eq!(
        history.items.iter().map(|p| (p.offset, p.event.as_str())).collect::<Vec<_>>(),
        [(3, "e2"), (4, "e3"), (5, "e4"), (6, "e5")]
    );
    assert!(history.complete && history.head == 6);
    let (other, none) = (other.unwrap(), none.unwrap());
    assert_eq!((other.items[0].event.as_str(), other.head, other.complete), ("other", 1, true));
    assert_eq!((none.items.len(), none.head, none.complete), (0, 0, true));
    assert!(!beyond.unwrap().complete);
    assert_eq!(head.unwrap(), 6);
    sqlx::query("delete from publications where topic = 'counter:a' and \"offset\" <= 3")
        .execute(&pool(database).await)
        .await
        .unwrap();
    assert!(!after("a", 2).await.unwrap().complete, "something is no longer kept");
    assert!(after("a", 3).await.unwrap().complete);
    assert_eq!(first.identity.epoch, second.identity.epoch);
    second.stop().await;
}

/// Whoever begins to listen while a command is being committed has looked at the history too early.
#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_comes_during_a_commit_is_told() {
    #[derive(Default)]
    struct Heard(AtomicUsize);
    impl Subscriber for Heard {
        fn deliver(&self, _: u64, _: &Arc<Published>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        fn resync(&self, key: u64) {
            assert_eq!(key, 7);
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let database = database().await;
    let node = core(database.clone(), Setup::default()).await;
    let pool = pool(database).await;
    let histories = Histories::start(pool.clone(), node.runtime.vault.clone());
    let publish =
        || ask(&node, "a", Command::Publish { event: "e".into() }, CommandMeta::runtime());
    publish().await.unwrap();
    let mut held = pool.begin().await.unwrap();
    sqlx::query("lock table publications in exclusive mode").execute(&mut *held).await.unwrap();
    let heard = Arc::new(Heard::default());
    let listens = async {
        eventually("the commit waits", || async {
            let waits = "select count(*) from pg_locks where not granted";
            sqlx::query_scalar::<_, i64>(waits).fetch_one(&pool).await.unwrap() > 0
        })
        .await;
        let subscription = node.topics.subscribe("counter:a", 7, heard.clone());
        assert_eq!(histories.head("counter", "a").await.unwrap(), 1, "not committed yet");
        held.rollback().await.unwrap();
        subscription
    };
    let (published, _subscription) = tokio::join!(publish(), listens);
    published.unwrap();
    assert_eq!(heard.0.load(Ordering::SeqCst), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_away_nothing_is_acknowledged_and_then_it_goes_on() {
    use proxie::persistence::embedded::{DataLock, Embedded, Options as ServerOptions};
    let folder = std::env::temp_dir().join(format!("proxie-it-away-{}", std::process::id()));
    let start = || async {
        let options = ServerOptions {
            shared_buffers: "16MB".into(),
            ..ServerOptions::new(&folder).without_durability()
        };
        Embedded::start(options, DataLock::acquire(&folder).unwrap()).await.unwrap()
    };
    let server = start().await;
    let setup = Setup {
        writer: writer::Options { resolve_patience_ms: 200, ..Default::default() },
        ..Default::default()
    };
    let node = core(server.connect_options(), setup).await;
    let mut acknowledged = 0;
    for _ in 0..10 {
        ask(&node, "a", Command::Add(1), CommandMeta::runtime()).await.unwrap();
        acknowledged += 1;
    }
    server.stop().await.unwrap();
    let add = |n: u32| {
        ask(&node, "a", Command::Add(1), user("u", if n == 0 { "first" } else { "second" }))
    };
    assert!(matches!(add(0).await, Err(AskError::Unavailable { .. } | AskError::DeadlineExceeded)));
    eventually("the node is not ready", || async { !node.is_ready() }).await;
    // Reads too: without a proven lease they may be old.
    assert!(matches!(
        ask(&node, "a", Command::Get, CommandMeta::runtime()).await,
        Err(AskError::Unavailable { .. })
    ));
    let server = start().await;
    eventually("the node is ready again", || async { node.is_ready() }).await;
    // The unanswered command again, with its id, and another one: each counts once.
    for n in [0, 1] {
        eventually("it is answered", || async { add(n).await.is_ok() }).await;
        acknowledged += 1;
    }
    eventually("the total is right", || async { total(&node, "a").await == acknowledged }).await;
    node.stop().await;
    server.stop().await.unwrap();
    let _ = std::fs::remove_dir_all(&folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_room_is_away_and_is_tried_again() {
    let database = database().await;
    let setup = Setup {
        writer: writer::Options { resolve_patience_ms: 200, ..Default::default() },
        ..Default::default()
    };
    let node = core(database.clone(), setup).await;
    ask(&node, "a", Command::Add(1), CommandMeta::runtime()).await.unwrap();
    let pool = pool(database).await;
    // What a full disk does: whatever needs a new block fails, small updates still find room.
    for statement in [
        "create function full_disk() returns trigger language plpgsql as
         $$ begin raise exception 'No space left on device' using errcode = 'disk_full'; end $$",
        "create trigger full_disk before insert on journal for each row execute function full_disk()",
    ] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    for _ in 0..3 {
        let answer = ask(&node, "a", Command::Add(1), user("u", "once")).await;
        assert!(matches!(answer, Err(AskError::Unavailable { .. })), "{answer:?}");
    }
    assert!(!node.is_ready(), "it says that it can write, and cannot");
    sqlx::query("drop trigger full_disk on journal").execute(&pool).await.unwrap();
    eventually("there is room again", || async {
        ask(&node, "a", Command::Add(1), user("u", "once")).await.is_ok()
    })
    .await;
    assert_eq!(total(&node, "a").await, 2);
    eventually("the node is ready again", || async { node.is_ready() }).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_database_user_is_enough_once_the_extensions_are_there() {
    use proxie::app::core::migrate;
    use proxie::persistence::store::StoreError;
    let database = server().await.create_database("of_a_user", None).await.unwrap();
    let administrator = pool(database.clone()).await;
    for statement in ["create role of_a_user login", "alter database of_a_user owner to of_a_user"]
    {
        sqlx::query(statement).execute(&administrator).await.unwrap();
    }
    let mine = database.username("of_a_user");
    let refused = migrate(&pool(mine.clone()).await, proxie::systems::ALL).await.unwrap_err();
    assert!(matches!(refused, StoreError::MayNotExtend), "{refused}");
    for statement in ["create extension vector", "create extension btree_gist"] {
        sqlx::query(statement).execute(&administrator).await.unwrap();
    }
    migrate(&pool(mine.clone()).await, proxie::systems::ALL).await.unwrap();
    let node = core(mine, Setup::default()).await;
    ask(&node, "a", Command::Add(1), CommandMeta::runtime()).await.unwrap();
    node.stop().await;
}
