//! Statements with a limit of this side: a server that has gone without a word, or hangs, holds up nobody for longer.

use std::collections::HashSet;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool};

use crate::persistence::session;

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
        // It is pinged on its way back into the pool, which has no limit of its own.
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

/// A connection with a statement under way. Whoever stops to wait for it closes it: a pool would wait for it in turn.
struct Taken(Option<PoolConnection<Postgres>>);

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}

/// Whether it failed, and had not failed the last time.
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
