//! Reads of the read models. Which ones there are is for the systems to say.

use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgPool, PgRow};

use crate::kernel::clock::Timestamp;
use crate::persistence::patience::{PATIENCE, within};
use crate::persistence::store::{from_micros, micros};

/// A read that is refused or not answered in time, in the log and in metrics.
const READ: &str = "answer a read";

/// Cheap to clone.
#[derive(Clone)]
pub struct Views {
    pool: PgPool,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum ViewError {
    /// The store is away: the same read may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The row is there, and is none that this release knows: a newer one has written it.
    #[error("{0}")]
    Unreadable(String),
    #[error("{0}")]
    Internal(String),
}

impl From<sqlx::Error> for ViewError {
    fn from(error: sqlx::Error) -> Self {
        let temporary = match &error {
            sqlx::Error::Database(database) => database.code().is_none_or(|code| {
                // Connection, resources, operator intervention, system error, serialisation.
                ["08", "53", "57", "58", "40"].iter().any(|class| code.starts_with(class))
            }),
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::Encode(_)
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. } => false,
            _ => true,
        };
        if temporary {
            Self::Unavailable(error.to_string())
        } else {
            Self::Internal(error.to_string())
        }
    }
}

/// Where a list goes on: after the item that was made then and has this id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub at: Timestamp,
    pub id: String,
}

#[derive(Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Rows of this page that are none of its items, since only a newer release can read them.
    pub omitted: usize,
    pub next: Option<Cursor>,
}

impl Views {
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Whatever a statement says, within the limit of a read.
    pub async fn read<T>(
        &self,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, ViewError> {
        Ok(within(&self.pool, READ, PATIENCE, statement).await?)
    }

    /// One row or none; the query binds `$1` and yields one jsonb column as text.
    pub async fn row<V: DeserializeOwned>(
        &self,
        sql: &'static str,
        id: &str,
    ) -> Result<Option<V>, ViewError> {
        let row = within(&self.pool, READ, PATIENCE, async |connection| {
            sqlx::query(sql).bind(id).fetch_optional(connection).await
        });
        row.await?.map(|row| typed(&row, 0)).transpose()
    }

    /// One number or none; the query binds `$1` and `$2`.
    pub async fn number(
        &self,
        sql: &'static str,
        of: (&str, &str),
    ) -> Result<Option<i64>, ViewError> {
        let number = within(&self.pool, READ, PATIENCE, async |connection| {
            sqlx::query_scalar::<_, i64>(sql).bind(of.0).bind(of.1).fetch_optional(connection).await
        });
        Ok(number.await?)
    }

    /// One page of a list. `sql` binds `$1` the owner, `$2` and `$3` the cursor, `$4` the limit, and yields the item
    /// as text, its time in microseconds and its id.
    pub async fn rows<V: DeserializeOwned>(
        &self,
        sql: &'static str,
        owner: &str,
        cursor: Cursor,
        limit: usize,
    ) -> Result<Page<V>, ViewError> {
        let rows = within(&self.pool, READ, PATIENCE, async |connection| {
            sqlx::query(sql)
                .bind(owner)
                .bind(micros(cursor.at))
                .bind(&cursor.id)
                .bind(limit as i64 + 1)
                .fetch_all(connection)
                .await
        });
        Page::of(&rows.await?, limit)
    }
}

impl<V: DeserializeOwned> Page<V> {
    /// Of rows that [`Views::rows`] describes, one more than asked for where there is a next page.
    pub fn of(rows: &[PgRow], limit: usize) -> Result<Self, ViewError> {
        let mut page = Self { items: Vec::new(), omitted: 0, next: next(rows, limit) };
        for row in rows.iter().take(limit) {
            match typed(row, 0) {
                Ok(item) => page.items.push(item),
                Err(ViewError::Unreadable(_)) => page.omitted += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(page)
    }
}

/// A jsonb column that was read as text. Words that this release does not know make it unreadable, and nothing else
/// takes their place: an answer fits the documents of the node that gives it.
pub fn typed<V: DeserializeOwned>(row: &PgRow, at: usize) -> Result<V, ViewError> {
    let text: &str = row.try_get(at)?;
    serde_json::from_str(text).map_err(|error| {
        metrics::counter!("proxie_rows_unreadable_total").increment(1);
        tracing::debug!(%error, "a row of a read model cannot be read");
        ViewError::Unreadable(error.to_string())
    })
}

fn next(rows: &[PgRow], limit: usize) -> Option<Cursor> {
    let last = (rows.len() > limit).then(|| rows.get(limit - 1)).flatten();
    last.map(|row| Cursor { at: from_micros(row.get(1)), id: row.get(2) })
}

/// Before the first item of a list that goes up, or down, in time.
impl Cursor {
    pub fn first() -> Self {
        Self { at: Timestamp::UNIX_EPOCH, id: String::new() }
    }

    pub fn last() -> Self {
        // The year 9999 is in the range of both sides.
        Self { at: from_micros(253_370_764_800_000_000), id: String::new() }
    }
}
