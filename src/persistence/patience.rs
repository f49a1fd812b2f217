//! Statements with a limit of this side: a server that has gone without a word, or hangs, holds up nobody for longer.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgPool};

/// The limit of a statement that reads by key, or a bounded number of rows.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Statements that failed when they were last carried out, so that an outage is one line in the log for each.
static FAILING: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);

/// Carries out `statement` on a connection of the pool, within `limit` from now, waiting for the connection included.
/// A connection that did not answer in time, or failed, is closed and not given back: it may be half dead.
///
/// `what` completes "the store did not …" in the log, once until it succeeds again, and is a label of
/// `proxie_statement_failures_total`.
pub async fn within<T>(
    pool: &PgPool,
    what: &'static str,
    limit: Duration,
    statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    let mut taken = None;
    let carried_out = async {
        let connection = taken.insert(pool.acquire().await?);
        statement(connection).await
    };
    let silent = || sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    let done = tokio::time::timeout(limit, carried_out).await.unwrap_or_else(|_| Err(silent()));
    // The server refused the statement: the connection is as good as before.
    let usable = matches!(done, Ok(_) | Err(sqlx::Error::RowNotFound | sqlx::Error::Database(_)));
    match taken {
        Some(connection) if !usable => drop(connection.detach()),
        // It is pinged on its way back into the pool, which has no limit of its own.
        Some(mut connection) => {
            drop(tokio::spawn(tokio::time::timeout(PATIENCE, connection.return_to_pool())));
        }
        None => {}
    }
    note(what, done.as_ref().err());
    done
}

fn note(what: &'static str, error: Option<&sqlx::Error>) {
    let mut failing = FAILING.lock().unwrap_or_else(PoisonError::into_inner);
    let failing = failing.get_or_insert_default();
    match error {
        Some(error) => {
            metrics::counter!("proxie_statement_failures_total", "what" => what).increment(1);
            if failing.insert(what) {
                tracing::warn!(%error, "the store did not {what}; it is tried again");
            }
        }
        None if failing.is_empty() => {}
        None => {
            if failing.remove(what) {
                tracing::info!("the store can {what} again");
            }
        }
    }
}
