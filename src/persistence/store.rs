//! The connection to Postgres: pool, migrations, and what this store is.

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::Row;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "cannot reach PostgreSQL: {0}. Check DATABASE_URL, or unset it to use the embedded server"
    )]
    Connect(sqlx::Error),
    #[error("PostgreSQL {found} is too old: 16 or later is needed")]
    TooOld { found: String },
    #[error(
        "the server runs with fsync = off, so an acknowledged command could be lost: turn it on, or set persistence.allow_fsync_off = true for throw-away data"
    )]
    FsyncOff,
    #[error(
        "the database's user may not create the extensions it needs. Let an administrator run once, in that database: create extension vector; create extension btree_gist"
    )]
    MayNotExtend,
    #[error(
        "the database has no pgvector: install it on its server (a package postgresql-NN-pgvector, or the provider's setting)"
    )]
    NoVector,
    #[error(
        "the database was made by another release of Proxie ({0}). Use the release that made it, or another database"
    )]
    OtherSchema(MigrateError),
    #[error("migration failed: {0}")]
    Migrate(MigrateError),
    #[error("{0}")]
    Sql(#[from] sqlx::Error),
}

/// Microseconds since the epoch: how times travel to and from SQL.
pub fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

pub fn from_micros(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[derive(Clone, Debug)]
pub struct Options {
    pub max_connections: u32,
    pub allow_fsync_off: bool,
}

/// Opens the pool and refuses servers on which "acknowledged" would not mean "durable".
pub async fn connect(connect: PgConnectOptions, options: &Options) -> Result<PgPool, StoreError> {
    let connect = connect
        .application_name("proxie")
        // lock_timeout and the like stay the server's; these are what durability and bounded waits rest on.
        .options([
            ("synchronous_commit", "on"),
            ("statement_timeout", "30s"),
            // Else it says at every start that what is there is there.
            ("client_min_messages", "warning"),
            // A node that is stopped in the middle of a transaction would keep the members' lock, and with it all
            // others from declaring it dead.
            ("idle_in_transaction_session_timeout", "2s"),
            // Every statement of the runtime reads by key. Its plans are made while the tables are still small, and
            // kept: without this they would scan a journal that has grown since.
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("plan_cache_mode", "force_generic_plan"),
        ])
        .statement_cache_capacity(64);
    let pool = PgPoolOptions::new()
        .max_connections(options.max_connections)
        .acquire_timeout(Duration::from_secs(5))
        .idle_timeout(Duration::from_secs(600))
        // A broken connection shows itself in the statement, which every caller handles anyway.
        .test_before_acquire(false)
        .connect_with(connect)
        .await
        .map_err(StoreError::Connect)?;
    let row = sqlx::query(
        "select current_setting('server_version_num')::int, current_setting('server_version'), current_setting('fsync') = 'on'",
    )
    .fetch_one(&pool)
    .await?;
    if row.get::<i32, _>(0) < 160_000 {
        return Err(StoreError::TooOld { found: row.get(1) });
    }
    if !row.get::<bool, _>(2) && !options.allow_fsync_off {
        return Err(StoreError::FsyncOff);
    }
    Ok(pool)
}

/// Applies what is missing. Several nodes may start at once: sqlx holds an advisory lock meanwhile.
pub async fn migrate(pool: &PgPool) -> Result<(), StoreError> {
    let files: [(i64, &'static str, &'static str); 4] = [
        (1, "runtime", include_str!("../../migrations/0001_runtime.sql")),
        (2, "marketplace", include_str!("../../migrations/0002_marketplace.sql")),
        (3, "playback", include_str!("../../migrations/0003_playback.sql")),
        (4, "starvation", include_str!("../../migrations/0004_starvation.sql")),
    ];
    let migrations = files
        .into_iter()
        .map(|(version, name, sql)| {
            Migration::new(
                version,
                Cow::Borrowed(name),
                MigrationType::Simple,
                sqlx::AssertSqlSafe(sql).into_sql_str(),
                false,
            )
        })
        .collect::<Vec<_>>();
    Migrator::with_migrations(migrations).run(pool).await.map_err(|error| match &error {
        MigrateError::VersionMismatch(_) | MigrateError::VersionMissing(_) => {
            StoreError::OtherSchema(error)
        }
        MigrateError::ExecuteMigration(sqlx::Error::Database(db), _) => {
            match db.code().as_deref() {
                Some("42501") if db.message().contains("extension") => StoreError::MayNotExtend,
                Some("0A000" | "58P01") if db.message().contains("vector") => StoreError::NoVector,
                _ => StoreError::Migrate(error),
            }
        }
        _ => StoreError::Migrate(error),
    })
}

use sqlx::SqlSafeStr;

/// What this store is, and the epoch of its topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub epoch: String,
    pub system_id: String,
    pub timeline: i32,
}

/// Reads the store's identity, and starts a new epoch when the server is another one, or on another timeline, than
/// the one that wrote the last: positions that clients hold may name offsets that this history has not.
pub async fn identify(pool: &PgPool, fresh_epoch: &str) -> Result<Identity, StoreError> {
    let row = sqlx::query(
        "insert into store (epoch, system_id, timeline)
         select $1, s.system_identifier::text, c.timeline_id from pg_control_system() s, pg_control_checkpoint() c
         on conflict (one) do update set
             epoch = case when store.system_id = excluded.system_id and store.timeline = excluded.timeline
                          then store.epoch else excluded.epoch end,
             system_id = excluded.system_id, timeline = excluded.timeline
         returning epoch, system_id, timeline",
    )
    .bind(fresh_epoch)
    .fetch_one(pool)
    .await?;
    Ok(Identity { epoch: row.get(0), system_id: row.get(1), timeline: row.get(2) })
}

/// Whether the server answers, and is still the one it was.
pub async fn probe(connection: &mut PgConnection) -> Result<(String, i32), sqlx::Error> {
    let row = sqlx::query(
        "select s.system_identifier::text, c.timeline_id from pg_control_system() s, pg_control_checkpoint() c",
    )
    .fetch_one(connection)
    .await?;
    Ok((row.get(0), row.get(1)))
}

/// Deletes in bounded steps what nobody can ask for any more: dedupe rows after their window (but never those of an
/// outbox row that still exists), and old publications. Returns how many rows went.
pub async fn sweep(
    pool: &PgPool,
    now: Timestamp,
    dedupe_s: i64,
    publications_s: i64,
) -> Result<u64, sqlx::Error> {
    let dedupe = sqlx::query(
        "delete from dedupe where ctid = any(array(
             select d.ctid from dedupe d where d.at < micros($1) - $2 * interval '1 second'
                and not (d.user_id = '@outbox' and exists (select from outbox o where o.id = d.id)) limit 5000))",
    )
    .bind(micros(now))
    .bind(dedupe_s)
    .execute(pool)
    .await?
    .rows_affected();
    let publications = sqlx::query(
        "delete from publications where ctid = any(array(
             select p.ctid from publications p where p.at < micros($1) - $2 * interval '1 second' limit 5000))",
    )
    .bind(micros(now))
    .bind(publications_s)
    .execute(pool)
    .await?
    .rows_affected();
    Ok(dedupe + publications)
}
