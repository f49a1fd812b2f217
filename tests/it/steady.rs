//! A store that is older than its retention windows and larger than on its first day: what is read for what is used.

use proxie::kernel::clock::Timestamp;
use proxie::persistence::letters::{self, LetterFilter};
use proxie::persistence::loader::{Loader, OWED_PAGE};
use proxie::persistence::outbox::owing;
use proxie::persistence::publications::Histories;
use proxie::persistence::store::{self, Options};
use proxie::persistence::sweep::{RowRetention, sweep};
use proxie::persistence::timers::claim;
use proxie::persistence::views::{Cursor, List, Views};
use proxie::systems::devices::domain::content::ContentView;
use proxie::systems::devices::domain::playback::PlaybackSessionView;
use proxie::systems::marketplace::domain::profile::ProviderView;
use proxie::systems::marketplace::domain::request::{OfferRow, RequestView};
use proxie::systems::marketplace::domain::session::{MessageRow, SessionView};
use proxie::systems::marketplace::views::{self as market, Window};
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{AssertSqlSafe, Executor};

use crate::support::{database, pool, vault};

/// As a node has it, but one connection: what it has read is counted when it says so.
async fn one(database: PgConnectOptions) -> PgPool {
    let options = Options { max_connections: 1, allow_fsync_off: true };
    store::connect(database, &options).await.unwrap()
}

/// Rows that were read from tables and indexes, whether or not they were of use, and pages of tables, so far.
async fn read(pool: &PgPool, watching: &PgPool) -> (i64, i64) {
    pool.execute("select pg_stat_force_next_flush()").await.unwrap();
    let sql = "select ((select sum(seq_tup_read) from pg_stat_user_tables)
                       + (select sum(idx_tup_read) from pg_stat_user_indexes))::bigint,
                      (select sum(heap_blks_read + heap_blks_hit) from pg_statio_user_tables)::bigint";
    sqlx::query_as(sql).fetch_one(watching).await.unwrap()
}

/// What this reads itself is counted when it returns, and not later.
async fn fill(watching: &PgPool, statements: &[&'static str]) {
    let mut connection = watching.acquire().await.unwrap();
    for sql in statements {
        connection.execute(*sql).await.unwrap();
    }
    connection.execute("select pg_stat_force_next_flush()").await.unwrap();
}

async fn without_vacuum(watching: &PgPool) {
    // Its reads would be counted too.
    let sql = "select format('alter table %I set (autovacuum_enabled = false)', relname) from pg_stat_user_tables";
    let tables: Vec<String> = sqlx::query_scalar(sql).fetch_all(watching).await.unwrap();
    for table in tables {
        watching.execute(AssertSqlSafe(table).into_sql_str()).await.unwrap();
    }
}

use sqlx::SqlSafeStr;

#[tokio::test]
async fn a_sweep_reads_what_it_deletes_also_after_three_windows() {
    const PER_HOUR: i64 = 4_000;
    const WINDOW_H: i64 = 8;
    let database = database().await;
    let (pool, watching) = (one(database.clone()).await, one(database).await);
    without_vacuum(&watching).await;
    let kept = RowRetention { dedupe_s: WINDOW_H * 3_600, publications_s: WINDOW_H * 3_600 };
    let start = 1_800_000_000;
    let mut steady = (0, 0, 0);
    for hour in 0..WINDOW_H * 4 {
        let at = start + hour * 3_600;
        let sql = "insert into dedupe select case when g % 2 = 0 then '@outbox' else 'alice' end, 'id' || $1 || '-' || g, 1, '{}',
                       micros(($1 * 1000000)::bigint) + g * interval '500 milliseconds' from generate_series(1, $2) g";
        sqlx::query(sql).bind(at).bind(PER_HOUR).execute(&watching).await.unwrap();
        let sql = "insert into publications select 'user:' || g % 50, $1 * 10 + g, 'e', null, '{}',
                       micros(($1 * 1000000)::bigint) + g * interval '500 milliseconds' from generate_series(1, $2) g";
        sqlx::query(sql).bind(at).bind(PER_HOUR).execute(&watching).await.unwrap();
        // One delivery of each hour is never taken, and stays in the outbox.
        let sql = "insert into outbox select 'id' || $1 || '-2', 1, 'a', 'a', 1, 'b', 'b', '{}', 12, now(), null, now()";
        sqlx::query(sql).bind(at).execute(&watching).await.unwrap();
        // What was read so far is counted now, and not with the sweep.
        watching.execute("select pg_stat_force_next_flush()").await.unwrap();
        let before = read(&pool, &watching).await;
        let now = Timestamp::from_second(at + 3_600).unwrap();
        let gone = sweep(&pool, Some(now), kept).await.unwrap() as i64;
        let after = read(&pool, &watching).await;
        if hour > WINDOW_H + 1 {
            let (rows, pages) = (after.0 - before.0, after.1 - before.1);
            assert!(gone > PER_HOUR, "hour {hour}: {gone} went");
            assert!(rows <= 2 * gone + 200, "hour {hour}: {rows} rows read to delete {gone}");
            assert!(pages <= 8 * gone, "hour {hour}: {pages} pages to delete {gone}");
            steady = (steady.0 + gone, steady.1 + rows, steady.2 + pages);
        }
        // What was deleted is used again, as autovacuum lets it be.
        watching.execute("vacuum dedupe, publications").await.unwrap();
    }
    let left = "select (select count(*) from dedupe where user_id = '@outbox'), (select count(*) from dedupe), (select count(*) from publications)";
    let (deliveries, outcomes, publications): (i64, i64, i64) =
        sqlx::query_as(left).fetch_one(&watching).await.unwrap();
    println!("deleted, rows read, pages read: {steady:?}");
    assert_eq!(publications, PER_HOUR * WINDOW_H);
    // An hour of deliveries, and those that are still owed.
    assert!(deliveries <= PER_HOUR / 2 + WINDOW_H * 4, "{deliveries} deliveries are kept");
    assert_eq!(outcomes - deliveries, PER_HOUR / 2 * WINDOW_H);
    let owed =
        "select count(*) from outbox o where not exists (select from dedupe d where d.id = o.id)";
    let lost: i64 = sqlx::query_scalar(owed).fetch_one(&watching).await.unwrap();
    assert_eq!(lost, 0, "a delivery that may be repeated would be taken twice");
}

#[tokio::test]
async fn what_is_over_is_forgotten() {
    let database = database().await;
    let (pool, watching) = (one(database.clone()).await, pool(database).await);
    for sql in [
        "insert into nodes (incarnation, name, address, version, state, host, pid, ended_at)
         select g, 'n', '', '1', case when g < 9 then 'dead' else 'active' end, 'h', 1,
                case when g < 9 then now() - g * interval '10 hours' end from generate_series(1, 10) g",
        "insert into leases select g, now() from generate_series(1, 10) g",
        "insert into lanes select g, l from generate_series(1, 10) g, generate_series(0, 1) l",
        "insert into suspicions values (1, 9), (8, 9), (10, 9)",
        "insert into revocations values ('user:over', now(), now() - interval '1 second'), ('user:not', now(), now() + interval '1 hour')",
        "insert into signing_keys (kid, secret, retired_at, token_s)
         values ('over', '', now() - interval '2 hours', 3600), ('not', '', now() - interval '2 hours', 36000), ('signs', '', null, 60)",
    ] {
        watching.execute(sql).await.unwrap();
    }
    sweep(&pool, None, RowRetention { dedupe_s: 1, publications_s: 1 }).await.unwrap();
    let left = "select (select string_agg(incarnation::text, ' ' order by incarnation) from nodes),
        (select string_agg(incarnation::text, ' ' order by incarnation) from leases),
        (select count(*) from lanes), (select count(*) from suspicions),
        (select string_agg(subject, ' ') from revocations), (select string_agg(kid, ' ' order by kid) from signing_keys)";
    let left: (String, String, i64, i64, String, String) =
        sqlx::query_as(left).fetch_one(&watching).await.unwrap();
    let text = |text: &str| text.to_owned();
    assert_eq!(
        left,
        (text("1 2 9 10"), text("1 2 9 10"), 8, 2, text("user:not"), text("not signs"))
    );
}

/// 100,000 rows of everything that is listed, much of it of one owner.
const FILL: &[&str] = &[
    r#"insert into providers select 'prv_' || g, 'own_' || g % 50000, 'n', case when g % 2 = 0 then 'Berlin' else 'City' || g % 1000 end,
         'DE', 50 + g % 1000 * 0.01, 10 + g / 1000 * 0.01, 10, array['haircut', 'cleaning'],
         '{"name":"n","bio":"","languages":[],"services":[],"radius_km":10,"weekly":{},"days_off":[],"minimum_notice_minutes":0,
           "max_discount_percent":0,"base":{"city":"c","country":"DE","latitude":1,"longitude":1,"time_zone":"UTC"}}',
         4.5, 0, 0.9, 1, now() from generate_series(1, 100000) g"#,
    "select list_services(array(select id from providers))",
    r#"insert into bookings select 'bkg_' || g, 'r', 'o', case when g % 2 = 0 then 'alice' else 'c' || g end, 'p',
         case when g % 2 = 1 then 'alice' else 'o' || g end, 'haircut', 'completed',
         '{"amount_minor":1,"currency":"EUR"}', now(), now(),
         '{"name":"n","city":"c","country":"DE","latitude":1,"longitude":1,"time_zone":"UTC"}',
         '{"id":"b","request_id":"r","offer_id":"o","consumer_id":"c","service":"haircut","details":"d","status":"completed",
           "provider":{"id":"prv_1","name":"n","city":"c","rating":4.5,"reviews":1},
           "price":{"amount_minor":1,"currency":"EUR"},"review":null,"cancellation":null,
           "place":{"name":"n","city":"c","country":"DE","latitude":1,"longitude":1,"time_zone":"UTC"},
           "starts_at":"2026-01-12T08:00:00Z","ends_at":"2026-01-12T08:00:00Z",
           "created_at":"2026-01-12T08:00:00Z","updated_at":"2026-01-12T08:00:00Z"}',
         now() - g * interval '1 second', now() from generate_series(1, 100000) g"#,
    r#"insert into requests select 'req_' || g, 'alice', null, 'haircut', case when g > 99998 then 'open' else 'expired' end, null, 'd',
         '{"name":"n","city":"c","country":"DE","latitude":1,"longitude":1,"time_zone":"UTC"}',
         now(), now(), true, 'UTC', null, now() - g * interval '1 second', now() from generate_series(1, 100000) g"#,
    r#"insert into offers select 'off_' || g, 'req_1', 'alice', 'prv_1',
         '{"id":"prv_1","name":"n","city":"c","rating":4.5,"reviews":1}', 'expired', '{"amount_minor":1,"currency":"EUR"}',
         now(), now(), 'm', '{"total":0,"parts":{"skill":0,"location":0,"availability":0,"price":0,"rating":0,"response":0}}',
         now() - g * interval '1 second', now() from generate_series(1, 100000) g"#,
    "insert into messages select 'msg_' || g, 'ses_1', 'user', 'c', '[]', null, now() - g * interval '1 second'
       from generate_series(1, 100000) g",
    "insert into sessions select 'ses_' || g, 'alice', 'UTC', 'en', now() - g * interval '1 second', now()
       from generate_series(1, 100000) g",
    "insert into playback_sessions select 'pbs_' || g, 'alice', 'c', 'd', 'p', 'free', 'hd', 'l', 'w', null, 'ended', null, null,
         now() - g * interval '1 second', now() from generate_series(1, 100000) g",
    "insert into contents select 'con_' || g, '[]', now(), 1 from generate_series(1, 100000) g",
    "insert into journal select 'counter', 'k' || g % 1000, g / 1000 + 1, 1, g / 1000 + 1, '{}', '-', null, now()
       from generate_series(0, 99999) g",
    "insert into snapshots select 'counter', 'k' || g, 90, 90, '' from generate_series(0, 999) g",
    "insert into publications select 'counter:k' || g % 1000, g / 1000 + 1, 'e', null, '{}', now()
       from generate_series(0, 99999) g",
    // Of timers and deliveries a few are due, and as many are dead.
    "update slots set incarnation = 1",
    "insert into timers (kind, key, name, id, slot, due_at, command, tried_id, dead_at)
       select 'counter', 'k' || g, 'n', 't' || g, g % 4096, case when g % 20000 = 0 then 'epoch' when g % 20000 = 1 then 'infinity'
              else timestamptz '2100-01-01' end, '{}', 't' || g, case when g % 20000 = 1 then now() - g * interval '1 second' end
         from generate_series(1, 100000) g",
    "insert into outbox (id, slot, sender_kind, sender_key, position, target_kind, target_key, body, due_at, look_at, dead_at)
       select 'o' || g, g % 4096, 'counter', 'owes' || g % 2, g, 'counter', 'k', '{}', 'epoch',
              case when g % 20000 = 0 then 'epoch' else timestamptz '2100-01-01' end,
              case when g % 20000 = 1 then now() - g * interval '1 second' end
         from generate_series(1, 100000) g",
];

/// 100,000 of each sort.
const DEAD: &[&str] = &[
    "update timers set due_at = 'infinity', dead_at = coalesce(dead_at, now()) where kind = 'counter'",
    "update outbox set dead_at = coalesce(dead_at, now()) where sender_key <> 'owes1'",
    "vacuum timers, outbox",
];

#[tokio::test]
async fn a_read_of_100_000_rows_reads_little_more_than_it_returns() {
    let database = database().await;
    let (pool, watching) = (one(database.clone()).await, pool(database).await);
    without_vacuum(&watching).await;
    let views = Views::new(pool.clone());
    let (_away, away) = tokio::sync::watch::channel(false);
    let loader = Loader::start(pool.clone(), 1, away);
    let histories = Histories::start(pool.clone(), vault(watching.clone()).await);
    let (letters_of, now) =
        (LetterFilter::default(), Timestamp::from_second(1_800_000_000).unwrap());
    let begin = letters::LetterCursor::default();
    let window = Window {
        service: "haircut".into(),
        south: 50.0,
        north: 60.0,
        west: 9.0,
        east: 12.0,
        earliest: Timestamp::from_second(1_800_000_000).unwrap(),
        latest: Timestamp::from_second(1_800_003_600).unwrap(),
    };
    // Plans are made while the tables are empty, and kept.
    for full in [false, true] {
        if full {
            fill(&watching, FILL).await;
        }
        let mut before = read(&pool, &watching).await.0;
        let last = Cursor::last;
        macro_rules! reads {
            ($($read:expr => $rows:expr),* $(,)?) => { $(
                let found = $read.await.unwrap();
                let returned: usize = ($rows)(&found);
                let after = read(&pool, &watching).await.0;
                let (rows, name) = (after - before, stringify!($read));
                before = after;
                if full {
                    assert!(returned > 0, "{name} found nothing");
                    let most = 2 * returned as i64 + 5;
                    assert!(rows <= most, "{name} reads {rows} rows for {returned}");
                }
            )* }
        }
        fn rows_of(owner: &str, newest_first: bool) -> List<'_> {
            let from = if newest_first { Cursor::last() } else { Cursor::first() };
            List { owner, newest_first, from, limit: 20 }
        }
        fn page<T>(page: &proxie::persistence::views::RowPage<T>) -> usize {
            page.items.len() + 1
        }
        fn some<T>(found: &Option<T>) -> usize {
            usize::from(found.is_some())
        }
        reads! {
            views.list::<RequestView>(rows_of("alice", true)) => page,
            views.list::<OfferRow>(rows_of("req_1", false)) => page,
            market::bookings_of(&views, "alice", last(), 20) => page,
            views.list::<SessionView>(rows_of("alice", true)) => page,
            views.list::<MessageRow>(rows_of("ses_1", true)) => page,
            views.list::<MessageRow>(rows_of("ses_1", false)) => page,
            views.list::<PlaybackSessionView>(rows_of("alice", true)) => page,
            market::providers(&views, None, None, None, Cursor::first(), 20) => page,
            market::providers(&views, None, Some("berlin"), None, Cursor::first(), 20) => page,
            market::providers(&views, Some("haircut"), None, None, Cursor::first(), 20) => page,
            market::providers(&views, Some("haircut"), Some("Berlin"), None, Cursor::first(), 20) => page,
            market::providers(&views, None, None, Some("own_7"), Cursor::first(), 20) => page,
            market::providers(&views, Some("cleaning"), Some("CITY7"), Some("own_7"), Cursor::first(), 20) => page,
            market::candidates(&views, &window) => Vec::len,
            views.get_of::<RequestView>("alice", "req_1") => some,
            views.get::<OfferRow>("off_1") => some,
            views.get::<ProviderView>("prv_1") => some,
            views.get_of::<SessionView>("alice", "ses_1") => some,
            views.get::<ContentView>("con_1") => some,
            views.get_of::<PlaybackSessionView>("alice", "pbs_1") => some,
            market::booking_of(&views, "alice", "bkg_1") => some,
            market::have_dealings(&views, "alice", "own_1") => |_: &bool| 2,
            loader.load("counter", "k7".into()) => |loaded: &proxie::persistence::loader::Loaded| loaded.events.len() + 1,
            // A row, its slot, and the row again to claim it.
            claim(&pool, 1, now, 60, 1_000) => |due: &Vec<_>| 3 * due.len(),
            owing(&pool, 1, now, 60, 1_000) => |due: &Vec<_>| 3 * due.len(),
            letters::list(&pool, &letters_of, &begin, 20) => Vec::len,
            loader.load("counter", "owes1".into()) => |loaded: &proxie::persistence::loader::Loaded| loaded.outbox.len(),
            loader.owed_after("counter", "owes1", 90_000) => Vec::len,
            histories.after("counter", "k7", 50) => |history: &std::sync::Arc<proxie::persistence::publications::History>| history.items.len() + 1,
        }
        if full {
            fill(&watching, DEAD).await;
            before = read(&pool, &watching).await.0;
            reads! {
                letters::list(&pool, &letters_of, &begin, 20) => |page: &Vec<_>| 2 * page.len(),
                loader.load("counter", "owes1".into()) => |loaded: &proxie::persistence::loader::Loaded| {
                    assert_eq!((loaded.outbox.len(), loaded.last_position), (OWED_PAGE, 99_999));
                    OWED_PAGE
                },
            }
        }
        let _ = before;
    }
}
