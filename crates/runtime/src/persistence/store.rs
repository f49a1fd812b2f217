//! The connection to PostgreSQL: the pool, the migrations, and the store's identity.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use sqlx::migrate::{MigrateError, Migration as Applied, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool};
use sqlx::{Connection, Row, SqlSafeStr};

use crate::persistence::session;
use crate::persistence::views::{ViewTable, make_tables};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "cannot reach PostgreSQL: {0}. Check DATABASE_URL, or unset it to use the embedded server"
    )]
    Connect(sqlx::Error),
    #[error("{0}")]
    Unusable(String),
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
    #[error(
        "the database belongs to a later release of Proxie: its tables need migration {needed}, and this release knows those up to {last}. Use the later release"
    )]
    NeedsNewerRelease { needed: i64, last: i64 },
    #[error("migration failed: {0}")]
    Migrate(MigrateError),
    #[error("{0}")]
    Sql(#[from] sqlx::Error),
}

/// Microseconds since the epoch, the form in which times are exchanged with SQL.
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
    let connect = session::plain(connect);
    let mut first = first_connection(&connect).await?;
    let row = sqlx::query(
        "select current_setting('server_version_num')::int, current_setting('server_version'), current_setting('fsync') = 'on'",
    )
    .fetch_one(&mut first)
    .await?;
    if row.get::<i32, _>(0) < 160_000 {
        return Err(StoreError::TooOld { found: row.get(1) });
    }
    if !row.get::<bool, _>(2) && !options.allow_fsync_off {
        return Err(StoreError::FsyncOff);
    }
    let _ = first.close().await;
    session::refuse_pooled_transactions(&connect).await.map_err(refused)?;
    Ok(session::pool_options(options.max_connections).connect_lazy_with(connect))
}

/// A second pool with the same settings, whose connections stay free when the first pool is exhausted.
pub fn beside(pool: &PgPool, max_connections: u32) -> PgPool {
    let options = pool.options().clone().max_connections(max_connections);
    options.connect_lazy_with(pool.connect_options().as_ref().clone())
}

/// Waits a short time for a server that starts at the same time as this node.
async fn first_connection(options: &PgConnectOptions) -> Result<PgConnection, StoreError> {
    let started = Instant::now();
    loop {
        let error = match session::open(options).await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        let passes = match &error {
            sqlx::Error::Database(database) => {
                matches!(database.code().as_deref(), Some("57P03" | "53300"))
            }
            sqlx::Error::Io(_) => true,
            _ => false,
        };
        if !passes || started.elapsed() > Duration::from_secs(5) {
            return Err(refused(error));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn refused(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Configuration(reason) => StoreError::Unusable(reason.to_string()),
        error => StoreError::Connect(error),
    }
}

/// A migration: its number, subject and SQL.
pub type Migration = (i64, &'static str, &'static str);

/// The runtime's own migrations by number: a release knows those up to its last one.
const MIGRATIONS: &[Migration] = &[
    (1, "runtime", include_str!("../../migrations/0001_runtime.sql")),
    (4, "starvation", include_str!("../../migrations/0004_starvation.sql")),
    (5, "steady_state", include_str!("../../migrations/0005_steady_state.sql")),
    (7, "members", include_str!("../../migrations/0007_members.sql")),
    (8, "owing", include_str!("../../migrations/0008_owing.sql")),
    (10, "principals", include_str!("../../migrations/0010_principals.sql")),
    (12, "releases", include_str!("../../migrations/0012_releases.sql")),
    (13, "views", include_str!("../../migrations/0013_views.sql")),
    (14, "vault", include_str!("../../migrations/0014_vault.sql")),
    (15, "sealing", include_str!("../../migrations/0015_sealing.sql")),
];

/// Applies the missing migrations, on a connection without time limits. Several nodes may start at once: sqlx holds an
/// advisory lock meanwhile. Migrations of a later release are left alone, unless one of them states that this release can
/// no longer use the tables.
pub async fn migrate(
    pool: &PgPool,
    of_systems: &[Migration],
    tables: &[ViewTable],
) -> Result<(), StoreError> {
    let mut known = [MIGRATIONS, of_systems].concat();
    known.sort_by_key(|(number, ..)| *number);
    migrate_with(pool, &known, tables).await
}

async fn migrate_with(
    pool: &PgPool,
    known: &[Migration],
    tables: &[ViewTable],
) -> Result<(), StoreError> {
    let migrations = known.iter().map(|&(version, name, sql)| {
        let sql = sqlx::AssertSqlSafe(sql).into_sql_str();
        Applied::new(version, name.to_owned().into(), MigrationType::Simple, sql, false)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.set_ignore_missing(true);
    // The connection is not from the pool, because it would keep settings that the other connections do not have.
    let mut connection = pool.acquire().await?.detach();
    session::let_migrate(&mut connection).await.map_err(refused)?;
    let migrated = {
        let mut migrating = std::pin::pin!(migrator.run_direct(None, &mut connection, false));
        loop {
            match tokio::time::timeout(Duration::from_secs(10), &mut migrating).await {
                Ok(migrated) => break migrated,
                Err(_) => tracing::warn!(
                    "the migration of the database goes on, or waits for the one of another node"
                ),
            }
        }
    };
    migrated.map_err(migration_failed)?;
    make_tables(&mut connection, tables).await?;
    let last = known.iter().map(|(version, ..)| *version).max().unwrap_or(0);
    let needed: i64 =
        sqlx::query_scalar("select migration from schema_floor").fetch_one(&mut connection).await?;
    let _ = connection.close().await;
    if needed > last {
        return Err(StoreError::NeedsNewerRelease { needed, last });
    }
    Ok(())
}

fn migration_failed(error: MigrateError) -> StoreError {
    match &error {
        MigrateError::VersionMismatch(_) => StoreError::OtherSchema(error),
        MigrateError::ExecuteMigration(sqlx::Error::Database(db), _) => {
            match db.code().as_deref() {
                Some("42501") if db.message().contains("extension") => StoreError::MayNotExtend,
                Some("0A000" | "58P01") if db.message().contains("vector") => StoreError::NoVector,
                _ => StoreError::Migrate(error),
            }
        }
        _ => StoreError::Migrate(error),
    }
}

/// Whether Proxie's tables exist. Commands that only inspect a store, or issue tokens, create none.
pub async fn is_migrated(pool: &PgPool) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select to_regclass('schema_floor') is not null").fetch_one(pool).await
}

/// The store's identity, and the epoch of its topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub epoch: String,
    pub system_id: String,
    pub timeline: i32,
}

/// The timeline that the server writes. A promoted replica writes its own from its first record on, but its control file
/// names the old one until the next checkpoint, which may be minutes away.
const TIMELINE: &str =
    "case when pg_is_in_recovery() then (select timeline_id from pg_control_checkpoint())
    else ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int end";

/// Reads the store's identity. Starts a new epoch if the server or its timeline is not the one that wrote the last epoch:
/// clients may then hold positions that this history does not contain.
pub async fn identify(pool: &PgPool, fresh_epoch: &str) -> Result<Identity, StoreError> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!(
        "insert into store (epoch, system_id, timeline)
         select $1, system_identifier::text, {TIMELINE} from pg_control_system()
         on conflict (one) do update set
             epoch = case when store.system_id = excluded.system_id and store.timeline = excluded.timeline
                          then store.epoch else excluded.epoch end,
             system_id = excluded.system_id, timeline = excluded.timeline
         returning epoch, system_id, timeline",
    )))
    .bind(fresh_epoch)
    .fetch_one(pool)
    .await?;
    Ok(Identity { epoch: row.get(0), system_id: row.get(1), timeline: row.get(2) })
}

impl Identity {
    /// Compares the server with the one that this identity was read from. `None`: it is the same; otherwise a
    /// description for people.
    pub async fn differs(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Option<String>, sqlx::Error> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "select system_identifier::text, {TIMELINE} from pg_control_system()"
        )))
        .fetch_one(connection)
        .await?;
        let (system_id, timeline): (String, i32) = (row.get(0), row.get(1));
        Ok(if system_id != self.system_id {
            Some("another server answers".into())
        } else if timeline != self.timeline {
            Some(format!(
                "it is on timeline {timeline} and was on {}: a replica was promoted, or a backup restored",
                self.timeline
            ))
        } else {
            None
        })
    }
}

/// The database's clock.
pub async fn now(pool: &PgPool) -> Result<Timestamp, sqlx::Error> {
    sqlx::query_scalar("select micros(clock_timestamp())").fetch_one(pool).await.map(from_micros)
}
