//! The rows of photos. Whoever reads or changes one names its owner, in the statement.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, Row};

use crate::kernel::clock::Timestamp;
use crate::persistence::store::{from_micros, micros};
use crate::persistence::views::{Cursor, RowPage, ViewError, Views};

/// What storing a photo can take at most. After that nobody is at it.
const UPLOAD_S: i32 = 600;
const BATCH: i64 = 100;
const SWEEP: Duration = Duration::from_secs(10);

/// A photo as the store has it.
#[derive(Clone, Debug, PartialEq)]
pub struct PhotoRow {
    pub id: String,
    pub owner_id: String,
    /// The number of the key that its bytes are sealed under.
    pub key: i64,
    pub object: String,
    pub media_type: String,
    pub width: i32,
    pub height: i32,
    pub bytes: i64,
    pub digest: Vec<u8>,
    pub created_at: Timestamp,
}

const COLUMNS: &str =
    "id, owner_id, key, object, media_type, width, height, bytes, digest, micros(created_at) as at";

fn photo(row: &PgRow) -> PhotoRow {
    PhotoRow {
        id: row.get("id"),
        owner_id: row.get("owner_id"),
        key: row.get("key"),
        object: row.get("object"),
        media_type: row.get("media_type"),
        width: row.get("width"),
        height: row.get("height"),
        bytes: row.get("bytes"),
        digest: row.get("digest"),
        created_at: from_micros(row.get("at")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    Yes,
    /// There is one with its id.
    Exists,
    /// The owner has as many, or as many bytes, as they may.
    Full,
    /// The owner was erased meanwhile.
    KeyGone,
}

/// Makes room for a photo whose bytes are about to be stored. An attempt of before that did not end gives way.
pub async fn reserve(
    views: &Views,
    new: &PhotoRow,
    max: i64,
    max_bytes: i64,
) -> Result<Reserved, ViewError> {
    let reserved = views.read(async |connection| {
        let mut tx = connection.begin().await?;
        // Of an owner one at a time, so that the count is right.
        sqlx::query("select pg_advisory_xact_lock(hashtext('proxie.photos'), hashtext($1))")
            .bind(&new.owner_id)
            .execute(&mut *tx)
            .await?;
        sqlx::query("delete from photos where id = $1 and owner_id = $2 and stored_at is null")
            .bind(&new.id)
            .bind(&new.owner_id)
            .execute(&mut *tx)
            .await?;
        let row = sqlx::query(
            "with key as materialized (
                 select 1 from vault_keys where person = $2 and key = $3 for key share),
             room as materialized (
                 select count(*) < $11 and coalesce(sum(bytes), 0) + $8 <= $12 as is_there
                   from photos where owner_id = $2),
             added as (
                 insert into photos (id, owner_id, key, object, media_type, width, height, bytes, digest, created_at)
                 select $1, $2, $3, $4, $5, $6, $7, $8, $9, micros($10::bigint)
                  where exists (select from key) and (select is_there from room)
                 on conflict (id) do nothing returning 1)
             select exists (select from key), (select is_there from room), exists (select from added)",
        )
        .bind(&new.id)
        .bind(&new.owner_id)
        .bind(new.key)
        .bind(&new.object)
        .bind(&new.media_type)
        .bind(new.width)
        .bind(new.height)
        .bind(new.bytes)
        .bind(&new.digest)
        .bind(micros(new.created_at))
        .bind(max)
        .bind(max_bytes)
        .fetch_one(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(row)
    });
    let row = reserved.await?;
    Ok(match (row.get(0), row.get(1), row.get(2)) {
        (_, _, true) => Reserved::Yes,
        (false, ..) => Reserved::KeyGone,
        (_, false, _) => Reserved::Full,
        _ => Reserved::Exists,
    })
}

/// The bytes of this attempt are there. False: it has given way to another one, or its owner was erased.
pub async fn stored(views: &Views, row: &PhotoRow) -> Result<bool, ViewError> {
    let done = views.read(async |connection| {
        sqlx::query(
            "update photos set stored_at = clock_timestamp()
              where id = $1 and owner_id = $2 and object = $3 and stored_at is null",
        )
        .bind(&row.id)
        .bind(&row.owner_id)
        .bind(&row.object)
        .execute(connection)
        .await
    });
    Ok(done.await?.rows_affected() > 0)
}

/// The photos of these ids that are this person's, in no order.
pub async fn of(views: &Views, owner: &str, ids: &[&str]) -> Result<Vec<PhotoRow>, ViewError> {
    let sql = format!(
        "select {COLUMNS} from photos where id = any($1) and owner_id = $2 and stored_at is not null"
    );
    let rows = views.read(async |connection| {
        sqlx::query(AssertSqlSafe(sql)).bind(ids).bind(owner).fetch_all(connection).await
    });
    Ok(rows.await?.iter().map(photo).collect())
}

/// One page of an owner's photos, newest first.
pub async fn page(
    views: &Views,
    owner: &str,
    from: &Cursor,
    limit: usize,
) -> Result<RowPage<PhotoRow>, ViewError> {
    let sql = format!(
        "select {COLUMNS} from photos
          where owner_id = $1 and stored_at is not null and (created_at, id) < (micros($2::bigint), $3)
          order by created_at desc, id desc limit $4"
    );
    let rows = views.read(async |connection| {
        sqlx::query(AssertSqlSafe(sql))
            .bind(owner)
            .bind(micros(from.at))
            .bind(&from.id)
            .bind(limit as i64 + 1)
            .fetch_all(connection)
            .await
    });
    let rows: Vec<_> = rows.await?.iter().map(photo).collect();
    let next = (rows.len() > limit).then(|| &rows[limit - 1]);
    let next = next.map(|last| Cursor { at: last.created_at, id: last.id.clone() });
    Ok(RowPage { items: rows.into_iter().take(limit).collect(), omitted: 0, next })
}

/// Deletes a photo, or what an attempt to store it has left. Whether there was one.
pub async fn delete(views: &Views, owner: &str, id: &str) -> Result<bool, ViewError> {
    let gone = views.read(async |connection| {
        sqlx::query("delete from photos where id = $1 and owner_id = $2")
            .bind(id)
            .bind(owner)
            .execute(connection)
            .await
    });
    Ok(gone.await?.rows_affected() > 0)
}

/// Gives up what was begun and not ended in time.
pub async fn expire(views: &Views) -> Result<(), ViewError> {
    let expired = views.within(SWEEP, async |connection| {
        sqlx::query(
            "delete from photos where id = any(array(
                 select id from photos
                  where stored_at is null and created_at < clock_timestamp() - $1 * interval '1 second'
                  order by created_at limit $2)) and stored_at is null",
        )
        .bind(UPLOAD_S)
        .bind(BATCH)
        .execute(connection)
        .await
    });
    expired.await.map(drop)
}

/// An object that nobody needs, and whether somebody may still be storing it.
pub struct Leftover {
    pub object: String,
    pub is_final: bool,
}

/// Takes some of what is due. Who does not get far with it leaves it to others a minute later.
pub async fn leftovers(views: &Views) -> Result<Vec<Leftover>, ViewError> {
    let rows = views.within(SWEEP, async |connection| {
        sqlx::query(
            "update photo_leftovers l set due = clock_timestamp() + interval '1 minute'
              where object = any(array(
                  select object from photo_leftovers where due <= clock_timestamp()
                   order by due limit $2 for update skip locked))
             returning object, gone_at < clock_timestamp() - $1 * interval '1 second'",
        )
        .bind(UPLOAD_S)
        .bind(BATCH)
        .fetch_all(connection)
        .await
    });
    let leftover = |row: &PgRow| Leftover { object: row.get(0), is_final: row.get(1) };
    Ok(rows.await?.iter().map(leftover).collect())
}

/// Notes that these objects were deleted.
pub async fn swept(views: &Views, done: &[Leftover]) -> Result<(), ViewError> {
    let names = |is_final: bool| {
        let some = done.iter().filter(move |one| one.is_final == is_final);
        some.map(|one| one.object.as_str()).collect::<Vec<_>>()
    };
    let noted = views.within(SWEEP, async |connection| {
        sqlx::query("delete from photo_leftovers where object = any($1)")
            .bind(names(true))
            .execute(&mut *connection)
            .await?;
        sqlx::query(
            "update photo_leftovers set due = gone_at + ($2 + 1) * interval '1 second' where object = any($1)",
        )
        .bind(names(false))
        .bind(UPLOAD_S)
        .execute(connection)
        .await
    });
    noted.await.map(drop)
}
