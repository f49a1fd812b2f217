//! The rows of memories. Whoever reads or changes one names its owner, in the statement.

use std::fmt::Write;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection, Row};

use crate::kernel::clock::Timestamp;
use crate::persistence::store::{from_micros, micros};
use crate::persistence::views::{Cursor, RowPage, ViewError, Views};

/// Making an index reads a table.
const INDEX: Duration = Duration::from_secs(30);
/// A batch of vectors also changes their index.
const BATCH: Duration = Duration::from_secs(20);

/// A memory as the store has it.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryRow {
    pub id: String,
    pub owner_id: String,
    pub agent: String,
    /// Sealed.
    pub words: String,
    pub digest: Vec<u8>,
    pub embedder: i32,
    pub created_at: Timestamp,
}

const COLUMNS: &str = "id, owner_id, agent, words, digest, embedder, micros(created_at) as at";

fn memory(row: &PgRow) -> MemoryRow {
    MemoryRow {
        id: row.get("id"),
        owner_id: row.get("owner_id"),
        agent: row.get("agent"),
        words: row.get("words"),
        digest: row.get("digest"),
        embedder: row.get("embedder"),
        created_at: from_micros(row.get("at")),
    }
}

/// A vector as pgvector reads it.
fn text(vector: &[f32]) -> String {
    let mut text = String::with_capacity(vector.len() * 10 + 2);
    for part in vector {
        text.push(if text.is_empty() { '[' } else { ',' });
        let _ = write!(text, "{part}");
    }
    text + "]"
}

/// What an embedder is known by in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedderRow {
    pub n: i32,
    pub name: String,
    pub dimensions: i32,
}

/// Makes this embedder the one that vectors are to be of, unless it is. Also its index, before the first vector.
pub async fn choose(
    views: &Views,
    name: &str,
    dimensions: usize,
) -> Result<EmbedderRow, ViewError> {
    let dimensions = dimensions as i32;
    let n = views.within(INDEX, async |connection| {
        let mut tx = connection.begin().await?;
        let lock = "select pg_advisory_xact_lock(hashtext('proxie.embedders'))";
        sqlx::query(lock).execute(&mut *tx).await?;
        let n: i32 = sqlx::query_scalar(
            "insert into embedders as e (name, dimensions, chosen_at) values ($1, $2, clock_timestamp())
             on conflict (name) do update set chosen_at = case
                 when e.chosen_at = (select max(chosen_at) from embedders) then e.chosen_at else excluded.chosen_at end
             returning n",
        )
        .bind(name)
        .bind(dimensions)
        .fetch_one(&mut *tx)
        .await?;
        let index = format!(
            "create index if not exists memories_vector_{n} on memories
             using hnsw ((vector::halfvec({dimensions})) halfvec_ip_ops) where embedder = {n}"
        );
        sqlx::raw_sql(AssertSqlSafe(index)).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(n)
    });
    Ok(EmbedderRow { n: n.await?, name: name.into(), dimensions })
}

/// What an owner has: how many memories, and of which embedders.
pub struct Holding {
    pub memories: i64,
    pub embedders: Vec<EmbedderRow>,
}

pub async fn holding(views: &Views, owner: &str) -> Result<Holding, ViewError> {
    let rows = views.read(async |connection| {
        sqlx::query(
            "select e.n, e.name, e.dimensions,
                    coalesce((select o.memories from memory_owners o where o.owner_id = $1), 0) as memories
               from embedders e
              where exists (select from memories m where m.owner_id = $1 and m.embedder = e.n)",
        )
        .bind(owner)
        .fetch_all(connection)
        .await
    });
    let rows = rows.await?;
    let embedder = |row: &PgRow| EmbedderRow {
        n: row.get("n"),
        name: row.get("name"),
        dimensions: row.get("dimensions"),
    };
    let memories = rows.first().map_or(0, |row| row.get("memories"));
    Ok(Holding { memories, embedders: rows.iter().map(embedder).collect() })
}

pub struct NewMemory<'a> {
    pub row: &'a MemoryRow,
    /// The number of the key that its words are sealed under.
    pub key: i64,
    pub bytes: usize,
    /// Of the embedder of this name, which may not be known yet.
    pub vector: Option<(&'a str, &'a [f32])>,
    pub limit: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddedMemory {
    Yes,
    /// There is one with its id.
    Exists,
    /// The owner has as many as they may.
    Full,
    /// The owner was erased meanwhile.
    KeyGone,
}

pub async fn add(views: &Views, new: &NewMemory<'_>) -> Result<AddedMemory, ViewError> {
    let row = views.read(async |connection| {
        // The key first and then the count, which is the order of an erasure.
        sqlx::query(
            "with key as materialized (
                 select 1 from vault_keys where person = $2 and key = $4 for key share),
             room as materialized (
                 select o.memories from memory_owners o
                  where o.owner_id = $2 and exists (select from key) for update),
             made as materialized (select e.n from embedders e where e.name = $8),
             added as (
                 insert into memories (id, owner_id, agent, key, words, bytes, digest, embedder, vector, created_at)
                 select $1, $2, $3, $4, $5, $6, $7, coalesce((select n from made), 0),
                        case when exists (select from made) then $9::text::halfvec end, micros($10::bigint)
                  where exists (select from key) and coalesce((select memories from room), 0) < $11
                 on conflict (id) do nothing returning 1)
             select exists (select from key), coalesce((select memories from room), 0) < $11,
                    exists (select from added)",
        )
        .bind(&new.row.id)
        .bind(&new.row.owner_id)
        .bind(&new.row.agent)
        .bind(new.key)
        .bind(&new.row.words)
        .bind(new.bytes as i32)
        .bind(&new.row.digest)
        .bind(new.vector.map(|(name, _)| name))
        .bind(new.vector.map(|(_, vector)| text(vector)))
        .bind(micros(new.row.created_at))
        .bind(new.limit)
        .fetch_one(connection)
        .await
    });
    let row = row.await?;
    Ok(match (row.get(0), row.get(1), row.get(2)) {
        (_, _, true) => AddedMemory::Yes,
        (false, ..) => AddedMemory::KeyGone,
        (_, false, _) => AddedMemory::Full,
        _ => AddedMemory::Exists,
    })
}

pub async fn get(views: &Views, owner: &str, id: &str) -> Result<Option<MemoryRow>, ViewError> {
    let sql = format!("select {COLUMNS} from memories where id = $1 and owner_id = $2");
    let row = views.read(async |connection| {
        sqlx::query(AssertSqlSafe(sql)).bind(id).bind(owner).fetch_optional(connection).await
    });
    Ok(row.await?.as_ref().map(memory))
}

/// Whether there was one.
pub async fn forget(views: &Views, owner: &str, id: &str) -> Result<bool, ViewError> {
    let gone = views.read(async |connection| {
        sqlx::query("delete from memories where id = $1 and owner_id = $2")
            .bind(id)
            .bind(owner)
            .execute(connection)
            .await
    });
    Ok(gone.await?.rows_affected() > 0)
}

/// One page of an owner's memories, newest first.
pub async fn page(
    views: &Views,
    owner: &str,
    agent: Option<&str>,
    from: &Cursor,
    limit: usize,
) -> Result<RowPage<MemoryRow>, ViewError> {
    let sql = format!(
        "select {COLUMNS} from memories
          where owner_id = $1 and ($2::text is null or agent = $2 or agent = '')
            and (created_at, id) < (micros($3::bigint), $4)
          order by created_at desc, id desc limit $5"
    );
    let rows = views.read(async |connection| {
        sqlx::query(AssertSqlSafe(sql))
            .bind(owner)
            .bind(agent)
            .bind(micros(from.at))
            .bind(&from.id)
            .bind(limit as i64 + 1)
            .fetch_all(connection)
            .await
    });
    let rows: Vec<_> = rows.await?.iter().map(memory).collect();
    let next = (rows.len() > limit).then(|| &rows[limit - 1]);
    let next = next.map(|last| Cursor { at: last.created_at, id: last.id.clone() });
    let items = rows.into_iter().take(limit).collect();
    Ok(RowPage { items, omitted: 0, next })
}

/// Where vectors are looked for.
#[derive(Clone, Debug)]
pub struct Nearest<'a> {
    pub owner: &'a str,
    /// Also those that every agent has. `None`: of all of them.
    pub agent: Option<&'a str>,
    pub embedder: &'a EmbedderRow,
    pub vector: &'a [f32],
    pub limit: usize,
}

/// The memories that are nearest, with their cosine. By comparing each of the owner's, or with the index; where that finds
/// too few of an owner who has enough, by comparing after all.
pub async fn nearest(
    views: &Views,
    nearest: &Nearest<'_>,
    is_exact: bool,
) -> Result<Vec<(MemoryRow, f32)>, ViewError> {
    let Nearest { owner, agent, embedder, vector, limit } = nearest.clone();
    let EmbedderRow { n, dimensions, .. } = embedder;
    let (vector, limit) = (text(vector), limit as i64);
    // The sum keeps the index out. Plans are made without knowing what is bound, so what chooses an index is written out.
    let exact = "(m.vector <#> (select v from asked)) + 0".to_owned();
    let indexed =
        format!("m.vector::halfvec({dimensions}) <#> (select v from asked)::halfvec({dimensions})");
    let sql = |order: &str| {
        format!(
            "with asked as materialized (select $3::text::halfvec as v)
             select {COLUMNS}, {order} as far from memories m
              where m.owner_id = $1 and m.embedder = {n} and ($2::text is null or m.agent = $2 or m.agent = '')
              order by far limit $4"
        )
    };
    let rows = views.read(async |connection| {
        let ask = async |connection: &mut PgConnection, sql: String| {
            let query = sqlx::query(AssertSqlSafe(sql)).bind(owner).bind(agent);
            query.bind(&vector).bind(limit).fetch_all(connection).await
        };
        if is_exact {
            return ask(connection, sql(&exact)).await;
        }
        let mut tx = connection.begin().await?;
        let settings =
            "set local hnsw.iterative_scan = relaxed_order; set local hnsw.ef_search = 200;
                        set local enable_sort = off";
        sqlx::raw_sql(settings).execute(&mut *tx).await?;
        let rows = ask(&mut tx, sql(&indexed)).await?;
        tx.commit().await?;
        match (rows.len() as i64) < limit {
            true => ask(connection, sql(&exact)).await,
            false => Ok(rows),
        }
    });
    let mut found: Vec<_> =
        rows.await?.iter().map(|row| (memory(row), -row.get::<f64, _>("far") as f32)).collect();
    // Of equal ones the same each time.
    found.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.id.cmp(&b.0.id)));
    Ok(found)
}

/// Gives memories vectors of this embedder. Of any owner: it is their own words that were read.
pub async fn put_vectors(
    views: &Views,
    embedder: &EmbedderRow,
    vectors: &[(&str, Vec<f32>)],
) -> Result<(), ViewError> {
    let ids: Vec<&str> = vectors.iter().map(|(id, _)| *id).collect();
    let vectors: Vec<String> = vectors.iter().map(|(_, vector)| text(vector)).collect();
    let put = views.within(BATCH, async |connection| {
        sqlx::query(
            "update memories m set embedder = $1, vector = u.vector::halfvec, refused = null
               from unnest($2::text[], $3::text[]) u(id, vector) where m.id = u.id and m.embedder <> $1",
        )
        .bind(embedder.n)
        .bind(&ids)
        .bind(&vectors)
        .execute(connection)
        .await
    });
    put.await.map(drop)
}

/// Notes that this embedder makes no vector of a memory.
pub async fn refuse(views: &Views, embedder: &EmbedderRow, id: &str) -> Result<(), ViewError> {
    let noted = views.read(async |connection| {
        sqlx::query("update memories set refused = $1 where id = $2")
            .bind(embedder.n)
            .bind(id)
            .execute(connection)
            .await
    });
    noted.await.map(drop)
}

const STALE: &str =
    "from memories m where m.embedder = any(array(select e.n from embedders e where e.n <> $1))
    and m.refused is distinct from $1";

/// Memories whose vectors are of another embedder, or that have none.
pub async fn stale(
    views: &Views,
    embedder: &EmbedderRow,
    limit: usize,
) -> Result<Vec<MemoryRow>, ViewError> {
    let sql = format!("select {COLUMNS} {STALE} order by m.embedder, m.id limit $2");
    let rows = views.within(BATCH, async |connection| {
        let query = sqlx::query(AssertSqlSafe(sql)).bind(embedder.n).bind(limit as i64);
        query.fetch_all(connection).await
    });
    Ok(rows.await?.iter().map(memory).collect())
}

pub async fn count_stale(views: &Views, embedder: &EmbedderRow) -> Result<i64, ViewError> {
    let sql = format!("select count(*) {STALE}");
    views
        .within(BATCH, async |connection| {
            sqlx::query_scalar(AssertSqlSafe(sql)).bind(embedder.n).fetch_one(connection).await
        })
        .await
}

/// Whether this worker may make vectors anew now: it is of the embedder that was chosen last, and nobody else is at it.
pub async fn claim(
    views: &Views,
    embedder: &EmbedderRow,
    worker: &str,
    seconds: i32,
) -> Result<bool, ViewError> {
    let claimed = views.read(async |connection| {
        sqlx::query(
            "update embedders set worker = $2, until = clock_timestamp() + $3 * interval '1 second'
              where n = $1 and (worker = $2 or until is null or until < clock_timestamp())
                and chosen_at = (select max(chosen_at) from embedders)",
        )
        .bind(embedder.n)
        .bind(worker)
        .bind(seconds)
        .execute(connection)
        .await
    });
    Ok(claimed.await?.rows_affected() > 0)
}

/// Deletes the other embedders of which nothing is left, with their indexes.
pub async fn clear(views: &Views, embedder: &EmbedderRow) -> Result<(), ViewError> {
    views
        .within(INDEX, async |connection| {
            let mut tx = connection.begin().await?;
            let lock = "select pg_advisory_xact_lock(hashtext('proxie.embedders'))";
            sqlx::query(lock).execute(&mut *tx).await?;
            let gone: Vec<i32> = sqlx::query_scalar(
                "delete from embedders e where e.n not in (0, $1) and e.chosen_at < (select max(chosen_at) from embedders)
                    and not exists (select from memories m where m.embedder = e.n) returning e.n",
            )
            .bind(embedder.n)
            .fetch_all(&mut *tx)
            .await?;
            for n in gone {
                let drop = format!("drop index if exists memories_vector_{n}");
                sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *tx).await?;
            }
            tx.commit().await
        })
        .await
}

/// The embedder of this name. `None`: it was not chosen yet.
pub async fn embedder(views: &Views, name: &str) -> Result<Option<EmbedderRow>, ViewError> {
    let row = views.read(async |connection| {
        sqlx::query("select n, name, dimensions from embedders where name = $1")
            .bind(name)
            .fetch_optional(connection)
            .await
    });
    let row = row.await?;
    Ok(row.map(|row| EmbedderRow { n: row.get(0), name: row.get(1), dimensions: row.get(2) }))
}

/// Where an answer is looked for, and kept.
pub struct SimilarPlace<'a> {
    pub owner: &'a str,
    pub scope: &'a [u8],
    pub vector: &'a [f32],
}

/// The answer whose question is nearest, sealed, and its cosine. A person has few, so each of the scope is compared.
pub async fn similar(
    views: &Views,
    place: &SimilarPlace<'_>,
) -> Result<Option<(String, f32)>, ViewError> {
    let row = views.read(async |connection| {
        sqlx::query(
            "select answer, vector <#> $3::text::halfvec as far from similar_answers
              where owner_id = $1 and scope = $2 and expires_at > clock_timestamp()
              order by far, id desc limit 1",
        )
        .bind(place.owner)
        .bind(place.scope)
        .bind(text(place.vector))
        .fetch_optional(connection)
        .await
    });
    Ok(row.await?.map(|row| (row.get("answer"), -row.get::<f64, _>("far") as f32)))
}

/// Keeps an answer for so long, and of its owner so many: the oldest go.
pub async fn keep_similar(
    views: &Views,
    place: &SimilarPlace<'_>,
    key: i64,
    answer: &str,
    seconds: u32,
    max: i64,
) -> Result<(), ViewError> {
    let kept = views.read(async |connection| {
        sqlx::query(
            "with key as materialized (
                 select 1 from vault_keys where person = $1 and key = $2 for key share)
             insert into similar_answers (owner_id, key, scope, vector, answer, expires_at)
             select $1, $2, $3, $4::text::halfvec, $5, clock_timestamp() + $6 * interval '1 second'
              where exists (select from key)",
        )
        .bind(place.owner)
        .bind(key)
        .bind(place.scope)
        .bind(text(place.vector))
        .bind(answer)
        .bind(f64::from(seconds))
        .execute(&mut *connection)
        .await?;
        sqlx::query(
            "delete from similar_answers where owner_id = $1 and id <= (
                 select id from similar_answers where owner_id = $1 order by id desc offset $2 limit 1)",
        )
        .bind(place.owner)
        .bind(max)
        .execute(connection)
        .await
    });
    kept.await.map(drop)
}

/// Deletes some of what has expired, and of the oldest beyond so many. Whether there may be more.
pub async fn sweep_similar(views: &Views, max: i64) -> Result<bool, ViewError> {
    const MOST: i64 = 1_000;
    let gone = views.within(BATCH, async |connection| {
        sqlx::query(
            "with old as (
                 (select id from similar_answers where expires_at < clock_timestamp() order by expires_at limit $1)
                 union
                 (select id from similar_answers where id <= (
                      select id from similar_answers order by id desc offset $2 limit 1) order by id limit $1))
             delete from similar_answers where id = any(array(select id from old))",
        )
        .bind(MOST)
        .bind(max)
        .execute(connection)
        .await
    });
    Ok(gone.await?.rows_affected() as i64 >= MOST)
}
