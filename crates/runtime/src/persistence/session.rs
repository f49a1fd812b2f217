//! The settings of a connection, on which durability, correctness and bounded waits depend.
//!
//! A server, a role or a database may have other defaults, and a pooler may drop what a client sets. So every
//! connection applies its settings after it was opened, and reads them back. They are not sent as startup parameters,
//! which poolers refuse.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection, Executor, Row};

/// Time limit to open a connection; a slower server counts as not answering.
const CONNECT: Duration = Duration::from_secs(5);

/// The settings, with names and values as PostgreSQL shows them. Names that a version does not know are left out.
const SETTINGS: &[(&str, &str)] = &[
    // An acknowledged commit is on disk. A server with `remote_apply` keeps it, because that is stronger.
    ("synchronous_commit", "on"),
    // A batch that has waited for a lane's row must see what was committed meanwhile.
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    // Tables are in this schema, and no temporary table hides them.
    ("search_path", "public, pg_temp"),
    ("statement_timeout", "30s"),
    // A node that is stopped in the middle of a transaction would keep the members' lock, and with it all others from
    // declaring it dead.
    ("idle_in_transaction_session_timeout", "2s"),
    // Waits are bounded by `statement_timeout`. A shorter one would make a neighbour's batch a fault of the item.
    ("lock_timeout", "0"),
    ("transaction_timeout", "0"),
    // A connection waits in its pool for as long as the pool keeps it.
    ("idle_session_timeout", "0"),
    // Every statement of the runtime reads by key and in the order of an index. Its plans are made while the tables
    // are still small, and kept: without this they would scan a journal that has grown since. The cost that PostgreSQL
    // up to 17 adds to what is off is above the threshold of the compiler, which takes longer than the statements.
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "off"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_indexscan", "on"),
    ("enable_indexonlyscan", "on"),
    ("enable_tidscan", "on"),
    ("enable_nestloop", "on"),
    ("enable_sort", "on"),
    ("enable_incremental_sort", "on"),
    ("max_parallel_workers_per_gather", "0"),
    ("gin_fuzzy_search_limit", "0"),
    // The text format of values.
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
    ("standard_conforming_strings", "on"),
    ("transform_null_equals", "off"),
    ("row_security", "on"),
    // Otherwise every start would log a notice that existing tables exist.
    ("client_min_messages", "warning"),
];

/// Settings that make a server give up a silent client, and its locks with it. They have no effect over a Unix socket.
const KEEPALIVES: &[(&str, &str)] = &[
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "15000"),
];

/// Different settings for migrations: building an index reads a whole table and takes long.
const MIGRATING: &[(&str, &str)] = &[
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("plan_cache_mode", "auto"),
    ("enable_seqscan", "on"),
    ("enable_bitmapscan", "on"),
    ("enable_hashjoin", "on"),
    ("enable_mergejoin", "on"),
];

/// The reason why a server, or a pooler in front of it, cannot be used.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(
        "the connection does not keep its settings: {name} is {found:?} after it was set to {wanted:?}. Where a pooler (PgBouncer) is in between: let it pool sessions (pool_mode = session), or connect to PostgreSQL itself"
    )]
    NotKept { name: String, wanted: String, found: String },
    #[error(
        "a pooler (PgBouncer) gives each transaction another connection to PostgreSQL, and settings, prepared statements and notifications are lost on the way: let it pool sessions (pool_mode = session), or connect to PostgreSQL itself"
    )]
    PoolsTransactions,
}

impl From<Refusal> for sqlx::Error {
    fn from(refusal: Refusal) -> Self {
        Self::Configuration(Box::new(refusal))
    }
}

/// The options without parameters that poolers refuse.
pub fn plain(options: PgConnectOptions) -> PgConnectOptions {
    options.application_name("proxie").extra_float_digits(None).statement_cache_capacity(64)
}

/// Options of a pool whose connections all get their settings.
pub fn pool_options(max_connections: u32) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(CONNECT)
        .idle_timeout(Duration::from_secs(600))
        // A connection that was just used is not pinged: if it is broken, the statement will show it.
        .test_before_acquire(false)
        .after_connect(|connection, _| Box::pin(prepare(connection)))
        .before_acquire(|connection, known| Box::pin(is_alive(connection, known.idle_for)))
}

/// A connection that was idle for longer than this is pinged before use: the server may have been restarted.
const TRUSTED: Duration = Duration::from_secs(1);
const PING: Duration = Duration::from_secs(1);

async fn is_alive(connection: &mut PgConnection, idle_for: Duration) -> Result<bool, sqlx::Error> {
    if is_suspect(idle_for) {
        return Ok(false);
    }
    if idle_for < TRUSTED {
        return Ok(true);
    }
    let answered = tokio::time::timeout(PING, connection.ping()).await;
    if answered.is_err() {
        was_silent();
    }
    Ok(matches!(answered, Ok(Ok(()))))
}

/// The time when a statement was last given up because the server was silent.
static SILENCE: Mutex<Option<Instant>> = Mutex::new(None);

/// Notes that a statement was not answered in time. The cause, such as a server or an address that is gone, may also
/// have silenced the connections that were idle at that moment. Each would keep its next user waiting, so none of them
/// is used again.
pub fn was_silent() {
    *SILENCE.lock() = Some(Instant::now());
}

fn is_suspect(idle_for: Duration) -> bool {
    let silence = *SILENCE.lock();
    silence.is_some_and(|at| at.elapsed() < idle_for)
}

/// Opens a connection outside the pool, with its settings.
pub async fn open(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let opening = async {
        let mut connection = PgConnection::connect_with(options).await?;
        prepare(&mut connection).await?;
        Ok(connection)
    };
    tokio::time::timeout(CONNECT, opening)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}

async fn prepare(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    set(connection, SETTINGS.iter().chain(KEEPALIVES)).await?;
    verify(connection, SETTINGS).await
}

/// Gives the connection the settings of a migration.
pub async fn let_migrate(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    prepare(connection).await?;
    set(connection, MIGRATING.iter()).await?;
    verify(connection, MIGRATING).await
}

/// Applies settings, in the simple protocol: a pooler's effect on prepared statements must not hide its effect on
/// settings.
async fn set(
    connection: &mut PgConnection,
    settings: impl Iterator<Item = &'static (&'static str, &'static str)>,
) -> Result<(), sqlx::Error> {
    let values: Vec<String> =
        settings.map(|(name, value)| format!("('{name}', '{value}')")).collect();
    let sql = format!(
        "select set_config(s.name, case when s.name = 'synchronous_commit' and s.setting = 'remote_apply'
                                        then s.setting else w.value end, false)
           from (values {}) w(name, value) join pg_settings s on lower(s.name) = lower(w.name)",
        values.join(", ")
    );
    connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql))).await.map(drop)
}

async fn verify(
    connection: &mut PgConnection,
    settings: &[(&'static str, &'static str)],
) -> Result<(), sqlx::Error> {
    let names: Vec<String> =
        settings.iter().map(|(name, _)| format!("current_setting('{name}', true)")).collect();
    let sql = format!("select array[{}]::text[]", names.join(", "));
    let row = connection.fetch_one(sqlx::raw_sql(sqlx::AssertSqlSafe(sql))).await?;
    let found: Vec<Option<String>> = row.try_get(0)?;
    for ((name, wanted), found) in settings.iter().zip(found) {
        let stronger = |found: &str| *name == "synchronous_commit" && found == "remote_apply";
        if let Some(found) = found.filter(|found| found != wanted && !stronger(found)) {
            let (name, wanted) = ((*name).to_owned(), (*wanted).to_owned());
            return Err(Refusal::NotKept { name, wanted, found }.into());
        }
    }
    Ok(())
}

/// Refuses a pooler that hands one connection of the server to several clients. Two connections on our side must be two
/// on the server's, and stay the same from statement to statement, even while the other one is busy.
pub async fn refuse_pooled_transactions(options: &PgConnectOptions) -> Result<(), sqlx::Error> {
    let (mut one, mut other) = (open(options).await?, open(options).await?);
    let mark = format!("{:x}", rand::random::<u64>());
    let marking = format!("select set_config('proxie.connection', '{mark}', false)");
    one.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(marking))).await?;
    let marked = "select coalesce(current_setting('proxie.connection', true), '')";
    let begun = other.execute(sqlx::raw_sql("begin")).await;
    begun.map_err(|_| Refusal::PoolsTransactions)?;
    let seen_there: String = other.fetch_one(sqlx::raw_sql(marked)).await?.try_get(0)?;
    // If all connections of the pooler are taken now, this statement waits for `other`.
    let asked = tokio::time::timeout(Duration::from_secs(2), one.fetch_one(sqlx::raw_sql(marked)));
    let seen_here: String = match asked.await {
        Ok(row) => row?.try_get(0)?,
        Err(_) => return Err(Refusal::PoolsTransactions.into()),
    };
    if seen_there == mark || seen_here != mark {
        return Err(Refusal::PoolsTransactions.into());
    }
    let _ = other.close().await;
    let _ = one.close().await;
    Ok(())
}

/// The reason for an error in the words of the server or the network, if the pool's own error says only that it took
/// too long.
pub async fn reason(pool: &PgPool, error: &sqlx::Error) -> String {
    let waited = matches!(error, sqlx::Error::PoolTimedOut)
        || matches!(error, sqlx::Error::Io(io) if io.kind() == std::io::ErrorKind::TimedOut);
    if !waited {
        return error.to_string();
    }
    let options = pool.connect_options();
    match tokio::time::timeout(Duration::from_secs(1), open(&options)).await {
        Ok(Ok(connection)) => {
            let _ = connection.close().await;
            let (size, all) = (pool.size(), pool.options().get_max_connections());
            format!(
                "PostgreSQL answers, but not in time ({size} of {all} connections of this pool are open)"
            )
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "PostgreSQL does not answer".into(),
    }
}
