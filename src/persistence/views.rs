//! Reads of the read models, for the edges and for matching.

use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgPool, PgRow};

use crate::kernel::clock::Timestamp;
use crate::persistence::patience::{PATIENCE, within};
use crate::persistence::store::{from_micros, micros};

mod playback;

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
pub struct Page<T = Value> {
    pub items: Vec<T>,
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

    /// One row or none; the query yields one jsonb column as text.
    async fn one(&self, sql: &'static str, id: &str) -> Result<Option<Value>, ViewError> {
        let row = within(&self.pool, READ, PATIENCE, async |connection| {
            sqlx::query(sql).bind(id).fetch_optional(connection).await
        });
        row.await?.map(|row| json(&row, 0)).transpose()
    }

    /// One page of a list. `sql` binds `$1` the owner, `$2` and `$3` the cursor, `$4` the limit, and yields the item
    /// as text, its time in microseconds and its id.
    async fn page(
        &self,
        sql: &'static str,
        owner: &str,
        cursor: Cursor,
        limit: usize,
    ) -> Result<Page, ViewError> {
        let rows = within(&self.pool, READ, PATIENCE, async |connection| {
            sqlx::query(sql)
                .bind(owner)
                .bind(micros(cursor.at))
                .bind(&cursor.id)
                .bind(limit as i64 + 1)
                .fetch_all(connection)
                .await
        });
        into_page(&rows.await?, limit)
    }
}

impl Views {
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
        let items = rows.iter().take(limit).map(|row| typed(row, 0)).collect::<Result<_, _>>()?;
        Ok(Self { items, next: next(rows, limit) })
    }
}

/// A jsonb column that was read as text.
pub fn typed<V: DeserializeOwned>(row: &PgRow, at: usize) -> Result<V, ViewError> {
    let text: &str = row.try_get(at)?;
    serde_json::from_str(text).map_err(|e| ViewError::Internal(e.to_string()))
}

fn next(rows: &[PgRow], limit: usize) -> Option<Cursor> {
    let last = (rows.len() > limit).then(|| rows.get(limit - 1)).flatten();
    last.map(|row| Cursor { at: from_micros(row.get(1)), id: row.get(2) })
}

/// One row more than asked for tells whether there is a next page.
fn into_page(rows: &[PgRow], limit: usize) -> Result<Page, ViewError> {
    let items = rows.iter().take(limit).map(|row| json(row, 0)).collect::<Result<Vec<_>, _>>()?;
    Ok(Page { items, next: next(rows, limit) })
}

fn json(row: &PgRow, at: usize) -> Result<Value, ViewError> {
    let text: &str = row.try_get(at)?;
    let mut value = serde_json::from_str(text).map_err(|e| ViewError::Internal(e.to_string()))?;
    utc(&mut value);
    Ok(value)
}

/// The columns of the views that are times; a test compares them with the migrations. What is nested in other columns is
/// as its entity wrote it.
const TIMES: &[&str] = &[
    "created_at",
    "earliest",
    "ended_at",
    "ends_at",
    "expires_at",
    "last_active_at",
    "latest",
    "started_at",
    "starts_at",
    "updated_at",
];

/// Postgres writes times in its session's zone (`…+00:00`); clients get `…Z`, as the entities write them.
fn utc(value: &mut Value) {
    let Value::Object(fields) = value else { return };
    for (name, field) in fields {
        if TIMES.contains(&name.as_str())
            && let Some(time) = field.as_str().and_then(|text| text.parse::<Timestamp>().ok())
        {
            *field = Value::String(time.to_string());
        }
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_become_utc() {
        let said = "2026-05-04T10:00:00.5+02:00";
        let mut row =
            json!({"created_at": said, "content": said, "look_at": said, "ends_at": null});
        utc(&mut row);
        let shown = "2026-05-04T08:00:00.5Z";
        assert_eq!(
            row,
            json!({"created_at": shown, "content": said, "look_at": said, "ends_at": null})
        );
        assert!(micros(Cursor::last().at) > micros(Cursor::first().at));
    }

    /// A column of a view that is a time under another name, or something else under one of these, is found here.
    #[test]
    fn the_times_are_those_of_the_tables() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
        let mut found = std::collections::BTreeSet::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let file = file.unwrap();
            // These have the runtime's tables, which nobody is shown.
            let name = file.file_name().into_string().unwrap();
            if !name.ends_with(".sql") || ["0001", "0004"].contains(&&name[..4]) {
                continue;
            }
            for line in std::fs::read_to_string(file.path()).unwrap().lines() {
                let mut words = line.split_whitespace().skip_while(|word| {
                    ["alter", "add", "column", "if", "not", "exists"].contains(word)
                });
                let (Some(column), Some(of)) = (words.next(), words.next()) else { continue };
                if of.trim_end_matches(',') == "timestamptz" {
                    found.insert(column.to_owned());
                } else if TIMES.contains(&column) {
                    assert!(["is", "desc", "desc,"].contains(&of), "{name}: {line}");
                }
            }
        }
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), TIMES);
    }
}
