//! Databases that are somebody else's: their defaults, what stands in front of them, and other releases' tables.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use proxie::app::core::migrate;
use proxie::persistence::keys::{self, SigningKey};
use proxie::persistence::patience::within;
use proxie::persistence::store::{self, Options, StoreError};
use proxie::persistence::{session, sweep};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool};
use sqlx::{AssertSqlSafe, Executor, SqlSafeStr};

use crate::counter::Command as Count;
use crate::embedded::Folder;
use crate::support::{self, Cable, Setup, database, eventually, pool};

fn options(max_connections: u32) -> Options {
    Options { max_connections, allow_fsync_off: true }
}

async fn run(pool: &PgPool, sql: String) {
    pool.execute(AssertSqlSafe(sql).into_sql_str()).await.unwrap();
}

async fn setting(pool: &PgPool, name: &str) -> String {
    sqlx::query_scalar("select current_setting($1)").bind(name).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn defaults_of_a_database_do_not_change_what_a_commit_means() {
    let database = database().await;
    let theirs = pool(database.clone()).await;
    support::make_hostile(&theirs, database.get_database().unwrap()).await;
    let ours = store::connect(database.clone(), &options(2)).await.unwrap();
    let beside = store::beside(&ours, 1);
    for pool in [&ours, &beside] {
        for (name, value) in [
            ("synchronous_commit", "on"),
            ("jit", "off"),
            ("default_transaction_isolation", "read committed"),
            ("default_transaction_read_only", "off"),
            ("search_path", "public, pg_temp"),
            ("statement_timeout", "30s"),
            ("idle_in_transaction_session_timeout", "2s"),
            ("lock_timeout", "0"),
            ("enable_seqscan", "off"),
            ("enable_indexscan", "on"),
            ("plan_cache_mode", "force_generic_plan"),
            ("TimeZone", "UTC"),
            ("bytea_output", "hex"),
        ] {
            assert_eq!(setting(pool, name).await, value, "{name}");
        }
    }
    // What is stronger stays.
    run(
        &theirs,
        format!(
            "alter database {} set synchronous_commit = 'remote_apply'",
            database.get_database().unwrap()
        ),
    )
    .await;
    let ours = store::connect(database, &options(2)).await.unwrap();
    assert_eq!(setting(&ours, "synchronous_commit").await, "remote_apply");
}

#[tokio::test]
async fn a_refused_connection_and_one_too_many_are_said_as_such() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nowhere =
        PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(nobody).username("a");
    let error = store::connect(nowhere, &options(2)).await.unwrap_err().to_string();
    assert!(error.contains("refused") && error.contains("DATABASE_URL"), "{error}");

    let database = database().await;
    let theirs = pool(database.clone()).await;
    let role = format!("few_{}", database.get_database().unwrap());
    run(&theirs, format!("create role {role} login connection limit 3")).await;
    let few = database.username(&role);
    let first = store::connect(few.clone(), &options(3)).await.unwrap();
    let _taken = (
        first.acquire().await.unwrap(),
        first.acquire().await.unwrap(),
        first.acquire().await.unwrap(),
    );
    let second = store::beside(&first, 1);
    let limit = Duration::from_millis(500);
    let read = async |connection: &mut PgConnection| connection.execute("select 1").await;
    let error = within(&second, "answer a test", limit, read).await.unwrap_err();
    let reason = session::reason(&second, &error).await;
    assert!(reason.contains("too many"), "{reason}");
    let error = store::connect(few, &options(3)).await.unwrap_err().to_string();
    assert!(error.contains("too many"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_went_silent_is_not_used_again() {
    let cable = Cable::to(&database().await).await;
    let pool = store::connect(cable.options.clone(), &options(3)).await.unwrap();
    let three = futures_util::future::join_all((0..3).map(|_| pool.acquire())).await;
    drop(three);
    eventually("all are idle", || async { pool.num_idle() == 3 }).await;
    cable.mute_present();
    let ask = |limit_s| {
        within(&pool, "answer a test", Duration::from_secs(limit_s), async |connection| {
            sqlx::query_scalar::<_, i32>("select 1").fetch_one(connection).await
        })
    };
    let error = ask(1).await.unwrap_err();
    assert!(matches!(error, sqlx::Error::Io(_)), "{error}");
    // The other two are as silent, and nobody waits for them.
    for _ in 0..4 {
        assert_eq!(ask(15).await.unwrap(), 1);
    }
    assert!(pool.size() <= 3);
}

#[tokio::test]
async fn a_server_that_was_restarted_costs_no_statement() {
    let database = database().await;
    let theirs = pool(database.clone()).await;
    let ours = store::connect(database, &options(1)).await.unwrap();
    let pid = || sqlx::query_scalar::<_, i32>("select pg_backend_pid()").fetch_one(&ours);
    let first = pid().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let end = "select pg_terminate_backend($1, 10000)";
    sqlx::query(end).bind(first).execute(&theirs).await.unwrap();
    assert_ne!(pid().await.unwrap(), first);
}

/// A PgBouncer in front of a database, which ends with the test.
struct Bouncer {
    process: Child,
    options: PgConnectOptions,
    _cable: Cable,
    _folder: Folder,
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Bouncer {
    async fn start(database: &PgConnectOptions, mode: &str, more: &str) -> Self {
        let cable = Cable::to(database).await;
        let folder = Folder::new("pgbouncer");
        std::fs::create_dir_all(folder.data()).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = any\npool_mode = {mode}\nmax_client_conn = 100\ndefault_pool_size = 40\n{more}\n",
            cable.options.get_port(),
        );
        let config =
            config.replace("* = host", &format!("* = user={} host", database.get_username()));
        let file = folder.data().join("pgbouncer.ini");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new("pgbouncer");
        if rustix::process::getuid().is_root() {
            command.args(["-u", "nobody"]);
        }
        let process = command
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("pgbouncer; ./dev test installs it");
        let options = cable.options.clone().port(port);
        let bouncer = Self { process, options, _cable: cable, _folder: folder };
        eventually("pgbouncer listens", || async {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        bouncer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_of_sessions_is_used_and_one_of_transactions_refused() {
    let database = database().await;
    let sessions = Bouncer::start(&database, "session", "").await;
    let pool = store::connect(sessions.options.clone(), &options(12)).await.unwrap();
    assert_eq!(setting(&pool, "enable_seqscan").await, "off");
    pool.close().await;
    let node = support::core_through(&sessions.options, Setup::default()).await;
    support::ask_counter(&node, "a", Count::Add(3)).await;
    node.stop().await;
    for (mode, more) in [
        ("transaction", ""),
        ("transaction", "server_round_robin = 1\nmin_pool_size = 3"),
        (
            "transaction",
            "ignore_startup_parameters = options,extra_float_digits\ndefault_pool_size = 1",
        ),
        ("statement", ""),
    ] {
        let pooler = Bouncer::start(&database, mode, more).await;
        let error = store::connect(pooler.options.clone(), &options(2)).await.unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, StoreError::Unusable(_)), "{mode} {more}: {said}");
        assert!(said.contains("pool_mode = session"), "{mode} {more}: {said}");
    }
}

#[tokio::test]
async fn an_older_release_starts_on_newer_tables_unless_a_migration_says_otherwise() {
    let pool = pool(database().await).await;
    pool.execute("insert into _sqlx_migrations (version, description, success, checksum, execution_time) values (9001, 'later', true, '', 0)")
        .await
        .unwrap();
    migrate(&pool, proxie::systems::ALL).await.unwrap();
    pool.execute("update schema_floor set migration = 9001").await.unwrap();
    let error = migrate(&pool, proxie::systems::ALL).await.unwrap_err();
    assert!(matches!(error, StoreError::NeedsNewerRelease { needed: 9001, .. }), "{error}");
}

#[tokio::test]
async fn a_migration_may_take_longer_than_a_statement() {
    let database = database().await;
    let pool = pool(database.clone()).await;
    let name = database.get_database().unwrap();
    for hurry in [
        "statement_timeout = '300ms'",
        "lock_timeout = '200ms'",
        "idle_in_transaction_session_timeout = '300ms'",
    ] {
        run(&pool, format!("alter database {name} set {hurry}")).await;
    }
    let mut other = pool.begin().await.unwrap();
    other.execute("lock table _sqlx_migrations in access exclusive mode").await.unwrap();
    let theirs = PgPool::connect_with(database).await.unwrap();
    let (migrated, ()) = tokio::join!(migrate(&theirs, proxie::systems::ALL), async {
        eventually("the migration waits", || async {
            let waits = "select count(*) from pg_locks where not granted";
            sqlx::query_scalar::<_, i64>(waits).fetch_one(&pool).await.unwrap() > 0
        })
        .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        other.rollback().await.unwrap();
    });
    migrated.unwrap();
}

fn key(kid: &str) -> SigningKey {
    SigningKey { kid: kid.into(), secret: [kid.len() as u8; 32].into() }
}

#[tokio::test]
async fn a_rotation_logs_nobody_out() {
    let pool = pool(database().await).await;
    let kids = |keys: Vec<SigningKey>| keys.into_iter().map(|key| key.kid).collect::<Vec<_>>();
    let known = async || {
        let mut connection = pool.acquire().await.unwrap();
        kids(keys::verifying(&mut connection).await.unwrap())
    };
    assert_eq!(kids(keys::signing_keys(&pool, key("a"), 7_200).await.unwrap()), ["a"]);
    keys::rotate(&pool, key("bb")).await.unwrap();
    assert_eq!(known().await, ["a", "bb"], "nodes have to know a key before it signs");
    pool.execute("update signing_keys set created_at = created_at - interval '10 seconds', retired_at = retired_at - interval '10 seconds'").await.unwrap();
    assert_eq!(known().await, ["bb", "a"]);
    assert_eq!(kids(keys::signing_keys(&pool, key("c"), 60).await.unwrap()), ["bb", "a"]);
    pool.execute("update signing_keys set retired_at = retired_at - interval '2 hours'")
        .await
        .unwrap();
    assert_eq!(known().await, ["bb"], "the last token of the other has ended");
    sweep::sweep(&pool, None, sweep::RowRetention { dedupe_s: 1, publications_s: 1 })
        .await
        .unwrap();
    let left: i64 =
        sqlx::query_scalar("select count(*) from signing_keys").fetch_one(&pool).await.unwrap();
    assert_eq!(left, 1);
}

#[tokio::test]
async fn a_revocation_outlives_the_longest_token() {
    let pool = pool(database().await).await;
    keys::signing_keys(&pool, key("a"), 30 * 86_400).await.unwrap();
    // The life of tokens is made shorter; those that were handed out live on.
    keys::signing_keys(&pool, key("b"), 60).await.unwrap();
    keys::revoke(&pool, "user:alice").await.unwrap();
    pool.execute(
        "update revocations set at = at - interval '29 days', until = until - interval '29 days'",
    )
    .await
    .unwrap();
    sweep::sweep(&pool, None, sweep::RowRetention { dedupe_s: 1, publications_s: 1 })
        .await
        .unwrap();
    let mut connection = pool.acquire().await.unwrap();
    assert_eq!(keys::revocations(&mut connection).await.unwrap().len(), 1);
    pool.execute("update revocations set until = until - interval '2 days'").await.unwrap();
    assert_eq!(keys::revocations(&mut connection).await.unwrap().len(), 0);
}
