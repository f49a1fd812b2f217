//! Statements with a time limit on our side: a server that vanished silently or hangs delays nobody for longer.

use std::collections::HashSet;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection, PgPool, PgRow};
use sqlx::query::Query;

use crate::persistence::session;

/// The limit of a statement that reads by key, or a bounded number of rows.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Statements that failed on their last execution, so that an outage logs one line for each.
static FAILING: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);

/// Executes `statement` on a connection of the pool, within `limit`, which includes the wait for the connection. A
/// connection that failed or did not answer in time is closed and not returned: it may be half dead.
///
/// `what` completes "the store did not …" in the log, once until it succeeds again, and is a label of
/// `proxie_statement_failures_total`.
pub async fn within<T>(
    pool: &PgPool,
    what: &'static str,
    limit: Duration,
    statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    let mut taken = Taken(None);
    let carried_out = async {
        let connection = taken.0.insert(pool.acquire().await?);
        statement(connection).await
    };
    let done = match tokio::time::timeout(limit, carried_out).await {
        Ok(done) => done,
        Err(_) => {
            if taken.0.is_some() {
                session::was_silent();
            }
            Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))
        }
    };
    // The server refused the statement: the connection is as good as before.
    if matches!(done, Ok(_) | Err(sqlx::Error::RowNotFound | sqlx::Error::Database(_)))
        && let Some(mut connection) = taken.0.take()
    {
        // The pool pings it on its return, without a limit of its own, so one is set here.
        drop(tokio::spawn(tokio::time::timeout(PATIENCE, connection.return_to_pool())));
    }
    drop(taken);
    if is_news(what, done.is_err())
        && let Err(error) = &done
    {
        let reason = session::reason(pool, error).await;
        tracing::warn!(reason, "the store did not {what}; it is tried again");
    }
    done
}

/// The rows of one query, [`within`] [`PATIENCE`].
pub async fn rows(
    pool: &PgPool,
    what: &'static str,
    query: Query<'_, Postgres, PgArguments>,
) -> Result<Vec<PgRow>, sqlx::Error> {
    within(pool, what, PATIENCE, async |connection| query.fetch_all(connection).await).await
}

/// A connection with a statement under way. If its future is dropped, it is closed, since the pool would wait for the
/// statement in turn.
struct Taken(Option<PoolConnection<Postgres>>);

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}

/// Whether the statement failed now but not the last time.
fn is_news(what: &'static str, failed: bool) -> bool {
    let mut failing = FAILING.lock();
    let failing = failing.get_or_insert_default();
    if failed {
        metrics::counter!("proxie_statement_failures_total", "what" => what).increment(1);
        return failing.insert(what);
    }
    if !failing.is_empty() && failing.remove(what) {
        tracing::info!("the store can {what} again");
    }
    false
}
