//! Lists of tasks: a person's with one agent, by what they ask for.

use crate::kernel::entity::to_value;
use crate::kernel::task::{TaskFilter, TaskRow};
use crate::persistence::store::micros;
use crate::persistence::views::{Cursor, RowPage, ViewError, Views};

/// Beyond this nobody counts.
const MAX_COUNTED: i64 = 10_000;

const WANTED: &str = "owner_id = $1 and agent = $2 and ($3::text is null or context_id = $3)
    and ($4::text is null or state = $4) and ($5::bigint is null or updated_at >= micros($5::bigint))";

/// One page of the tasks, the last changed first, and how many there are on all pages: at most [`MAX_COUNTED`].
pub async fn tasks(
    views: &Views,
    filter: &TaskFilter<'_>,
    from: &Cursor,
    limit: usize,
) -> Result<(RowPage<TaskRow>, i64), ViewError> {
    let page = format!(
        "select to_jsonb(t)::text, micros(updated_at), id from tasks t
          where {WANTED} and (updated_at, id collate \"C\") < (micros($6::bigint), $7)
          order by updated_at desc, id collate \"C\" desc limit $8"
    );
    let count =
        format!("select count(*) from (select from tasks where {WANTED} limit {MAX_COUNTED}) t");
    let state = filter.state.map(|state| to_value(&state).as_str().unwrap_or_default().to_owned());
    let after = filter.changed_since.map(micros);
    let rows = views.page_of(limit, async |connection| {
        sqlx::query(sqlx::AssertSqlSafe(page))
            .bind(filter.owner)
            .bind(filter.agent)
            .bind(filter.context_id)
            .bind(&state)
            .bind(after)
            .bind(micros(from.at))
            .bind(&from.id)
            .bind(limit as i64 + 1)
            .fetch_all(connection)
            .await
    });
    let rows = rows.await?;
    let all = views.read(async |connection| {
        sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(count))
            .bind(filter.owner)
            .bind(filter.agent)
            .bind(filter.context_id)
            .bind(&state)
            .bind(after)
            .fetch_one(connection)
            .await
    });
    Ok((rows, all.await?))
}
