//! Read models: their tables, and the reads of them. The systems declare which ones exist.

use std::time::Duration;

use serde::de::DeserializeOwned;
use sqlx::postgres::{PgConnection, PgPool, PgRow};
use sqlx::{AssertSqlSafe, Row};

use crate::kernel::clock::Timestamp;
use crate::kernel::private::{self, EncryptionContext, Trouble};
use crate::kernel::view::{Listed, View};
use crate::persistence::patience::{PATIENCE, within};
use crate::persistence::store::{from_micros, micros};
use crate::persistence::vault::Vault;

/// The name, in logs and metrics, of a read that is refused or not answered in time.
const READ: &str = "answer a read";

/// The access to the read models; cheap to clone.
#[derive(Clone)]
pub struct Views {
    pool: PgPool,
    vault: Option<Vault>,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum ViewError {
    /// The store cannot be reached: the same read may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The row exists, but a newer release has written it in a form that this one does not know.
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

/// The position where a list continues: after the item with this time and id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub at: Timestamp,
    pub id: String,
}

#[derive(Debug)]
pub struct RowPage<T> {
    pub items: Vec<T>,
    /// The number of rows that are not among the items, because only a newer release can read them.
    pub omitted: usize,
    pub next: Option<Cursor>,
}

impl Views {
    pub fn new(pool: PgPool) -> Self {
        Self { pool, vault: None }
    }

    /// The read models with a vault, which opens the personal data in rows. Without it such rows cannot be read.
    pub fn opened_by(self, vault: Vault) -> Self {
        Self { vault: Some(vault), ..self }
    }

    async fn typed<V: View>(&self, row: &PgRow) -> Result<V, ViewError> {
        let (Some((kind, column)), Some(vault)) = (V::PRIVATE_TO, &self.vault) else {
            return typed(row, 0);
        };
        let text: &str = row.try_get(0)?;
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(text).map_err(unreadable)?;
        let key = fields.get(column).and_then(|key| key.as_str()).unwrap_or_default();
        let (cipher, place) = (vault.cipher(), EncryptionContext::new(kind, key));
        loop {
            match private::sealed(&cipher, &place, || serde_json::from_str(text)) {
                Ok(row) => return Ok(row),
                Err(Trouble::Broken(error)) => return Err(unreadable(error)),
                Err(Trouble::Needs(need)) => {
                    vault.fetch(need).await.map_err(ViewError::Unavailable)?;
                }
            }
        }
    }

    async fn page<V: View>(&self, rows: &[PgRow], limit: usize) -> Result<RowPage<V>, ViewError> {
        let mut page = RowPage { items: Vec::new(), omitted: 0, next: next(rows, limit) };
        for row in rows.iter().take(limit) {
            match self.typed(row).await {
                Ok(item) => page.items.push(item),
                Err(ViewError::Unreadable(_)) => page.omitted += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(page)
    }

    pub fn vault(&self) -> Result<&Vault, ViewError> {
        self.vault.as_ref().ok_or_else(|| ViewError::Internal("there is no vault here".into()))
    }

    /// Whatever a statement says, within this limit.
    pub async fn within<T>(
        &self,
        limit: Duration,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, ViewError> {
        Ok(within(&self.pool, READ, limit, statement).await?)
    }

    /// Runs a statement within the time limit of a read.
    pub async fn read<T>(
        &self,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, ViewError> {
        Ok(within(&self.pool, READ, PATIENCE, statement).await?)
    }

    /// The row with this key.
    pub async fn get<V: View>(&self, key: &str) -> Result<Option<V>, ViewError> {
        let (name, column) = (V::NAME, V::KEY);
        let sql = format!("select to_jsonb(t)::text from {name} t where \"{column}\" = $1");
        let row = within(&self.pool, READ, PATIENCE, async |connection| {
            sqlx::query(AssertSqlSafe(sql)).bind(key).fetch_optional(connection).await
        });
        match row.await? {
            Some(row) => self.typed(&row).await.map(Some),
            None => Ok(None),
        }
    }

    /// The row with this key, if it belongs to this owner.
    pub async fn get_of<V: View>(&self, owner: &str, key: &str) -> Result<Option<V>, ViewError> {
        let (name, column, owned) = (V::NAME, V::KEY, const { Listed::of::<V>().by });
        // The owner is compared, not searched for: otherwise a plan could scan the index of all rows of the owner.
        let sql = format!(
            "select to_jsonb(t)::text, \"{owned}\" = $2 from {name} t where \"{column}\" = $1"
        );
        let row = within(&self.pool, READ, PATIENCE, async |connection| {
            sqlx::query(AssertSqlSafe(sql)).bind(key).bind(owner).fetch_optional(connection).await
        });
        let own = row.await?.filter(|row| row.get::<Option<bool>, _>(1) == Some(true));
        match own {
            Some(row) => self.typed(&row).await.map(Some),
            None => Ok(None),
        }
    }

    /// One page of an owner's rows.
    pub async fn list<V: View>(&self, list: List<'_>) -> Result<RowPage<V>, ViewError> {
        let (name, key) = (V::NAME, V::KEY);
        let Listed { by: owner, order } = const { Listed::of::<V>() };
        let (beyond, direction) = if list.newest_first { ("<", "desc") } else { (">", "asc") };
        let sql = format!(
            "select to_jsonb(t)::text, micros(\"{order}\"), \"{key}\" from {name} t
              where \"{owner}\" = $1 and (\"{order}\", \"{key}\" collate \"C\") {beyond} (micros($2::bigint), $3)
              order by \"{order}\" {direction}, \"{key}\" collate \"C\" {direction} limit $4"
        );
        let rows = within(&self.pool, READ, PATIENCE, async |connection| {
            sqlx::query(AssertSqlSafe(sql))
                .bind(list.owner)
                .bind(micros(list.from.at))
                .bind(&list.from.id)
                .bind(list.limit as i64 + 1)
                .fetch_all(connection)
                .await
        });
        self.page(&rows.await?, list.limit).await
    }

    /// One page of what a statement finds: rows as those of [`Views::list`], one more where there is a next page.
    pub async fn page_of<V: View>(
        &self,
        limit: usize,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<Vec<PgRow>, sqlx::Error>,
    ) -> Result<RowPage<V>, ViewError> {
        let rows = self.read(statement).await?;
        self.page(&rows, limit).await
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
    ) -> Result<RowPage<V>, ViewError> {
        let rows = within(&self.pool, READ, PATIENCE, async |connection| {
            sqlx::query(sql)
                .bind(owner)
                .bind(micros(cursor.at))
                .bind(&cursor.id)
                .bind(limit as i64 + 1)
                .fetch_all(connection)
                .await
        });
        RowPage::of(&rows.await?, limit)
    }
}

impl<V: DeserializeOwned> RowPage<V> {
    /// Makes a page of the rows that [`Views::rows`] describes; one row beyond the limit tells that there is a next page.
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

/// Reads a jsonb column from its text. A word that this release does not know makes the row unreadable, and is not
/// replaced: an answer conforms to the documents of the node that gives it.
pub fn typed<V: DeserializeOwned>(row: &PgRow, at: usize) -> Result<V, ViewError> {
    let text: &str = row.try_get(at)?;
    serde_json::from_str(text).map_err(unreadable)
}

fn unreadable(error: impl std::fmt::Display) -> ViewError {
    metrics::counter!("proxie_rows_unreadable_total").increment(1);
    tracing::debug!(%error, "a row of a read model cannot be read");
    ViewError::Unreadable(error.to_string())
}

fn next(rows: &[PgRow], limit: usize) -> Option<Cursor> {
    let last = (rows.len() > limit).then(|| rows.get(limit - 1)).flatten();
    last.map(|row| Cursor { at: from_micros(row.get(1)), id: row.get(2) })
}

/// The page of an owner's rows that is wanted.
#[derive(Clone, Debug)]
pub struct List<'a> {
    pub owner: &'a str,
    pub newest_first: bool,
    pub from: Cursor,
    pub limit: usize,
}

/// A view's table, as derived from its type.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewTable {
    pub name: &'static str,
    pub key: &'static str,
    pub listed: Option<Listed>,
    /// The columns' names and types.
    pub columns: Vec<(String, &'static str)>,
}

/// Creates missing tables and columns. Columns are never removed, so that older releases continue to work.
pub async fn make_tables(
    connection: &mut PgConnection,
    tables: &[ViewTable],
) -> Result<(), sqlx::Error> {
    // The lock is for several nodes that start at once.
    let lock = "select pg_advisory_lock(hashtext('proxie.views'))";
    sqlx::query(lock).execute(&mut *connection).await?;
    for table in tables {
        for sql in table.missing(connection).await? {
            tracing::info!(table = table.name, sql, "a read model's table is extended");
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
        }
    }
    let unlock = "select pg_advisory_unlock(hashtext('proxie.views'))";
    sqlx::query(unlock).execute(connection).await?;
    Ok(())
}

impl ViewTable {
    /// The statements that create the missing parts.
    async fn missing(&self, connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
        let Self { name, key, listed, columns } = self;
        let there: Vec<String> = sqlx::query_scalar(
            "select attname::text from pg_attribute
              where attrelid = to_regclass($1) and attnum > 0 and not attisdropped",
        )
        .bind(name)
        .fetch_all(&mut *connection)
        .await?;
        let mut statements = Vec::new();
        if there.is_empty() {
            let define = |(column, kind): &(String, &str)| {
                let unique = if column == key { " primary key" } else { "" };
                format!("\"{column}\" {kind}{unique}")
            };
            let columns: Vec<_> = columns.iter().map(define).collect();
            statements.push(format!("create table {name} ({})", columns.join(", ")));
        } else {
            let missing = columns.iter().filter(|(column, _)| !there.contains(column));
            let add = |(column, kind): &(String, &str)| format!("add column \"{column}\" {kind}");
            let added: Vec<_> = missing.map(add).collect();
            if !added.is_empty() {
                statements.push(format!("alter table {name} {}", added.join(", ")));
            }
        }
        if !statements.is_empty() {
            statements.push(format!("call make_view('{name}')"));
        }
        let Some(Listed { by, order }) = listed else { return Ok(statements) };
        let is_indexed: bool = sqlx::query_scalar(
            "select exists (
                select from pg_index where indrelid = to_regclass($1) and indisvalid and indnkeyatts = 3
                   and (select array_agg(pg_get_indexdef(indexrelid, n, true) order by n)
                          from generate_series(1, 3) n) = array[$2, $3, $4])",
        )
        .bind(name)
        .bind(by)
        .bind(order)
        .bind(key)
        .fetch_one(connection)
        .await?;
        if !is_indexed {
            let index = format!("{name}_{by}_{order}");
            let columns = format!("\"{by}\", \"{order}\", \"{key}\" collate \"C\"");
            statements.push(format!("create index {index} on {name} ({columns})"));
        }
        Ok(statements)
    }
}

/// The cursor before the first item of a list in ascending or descending order of time.
impl Cursor {
    pub fn first() -> Self {
        Self { at: Timestamp::UNIX_EPOCH, id: String::new() }
    }

    pub fn last() -> Self {
        // The year 9999 is in range here and in PostgreSQL.
        Self { at: from_micros(253_370_764_800_000_000), id: String::new() }
    }
}
