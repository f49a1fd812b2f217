//! Where contents can be watched, and what people watch.

use super::domain::content::ContentView;
use super::domain::playback::SessionView;
use crate::persistence::views::{Cursor, Page, ViewError, Views};

pub async fn content(views: &Views, id: &str) -> Result<Option<ContentView>, ViewError> {
    views.row("select to_jsonb(c)::text from contents c where id = $1", id).await
}

pub async fn playback_session(views: &Views, id: &str) -> Result<Option<SessionView>, ViewError> {
    views.row("select to_jsonb(s)::text from playback_sessions s where id = $1", id).await
}

/// How long a content is, by the last session of this person whose device said so. Of their last 200 sessions.
pub async fn duration_of(
    views: &Views,
    user_id: &str,
    content_id: &str,
) -> Result<Option<u64>, ViewError> {
    let sql = "select duration_ms from
         (select content_id, duration_ms from playback_sessions
           where user_id = $1 order by started_at desc, id collate \"C\" desc limit 200) s
         where content_id = $2 and duration_ms is not null limit 1";
    let duration = views.number(sql, (user_id, content_id)).await?;
    Ok(duration.and_then(|ms| u64::try_from(ms).ok()))
}

/// Newest first.
pub async fn playback_sessions_of(
    views: &Views,
    user_id: &str,
    from: Cursor,
    limit: usize,
) -> Result<Page<SessionView>, ViewError> {
    let sql = "select to_jsonb(s)::text, micros(started_at), id from playback_sessions s
         where user_id = $1 and (started_at, id collate \"C\") < (micros($2::bigint), $3)
         order by started_at desc, id collate \"C\" desc limit $4";
    views.rows(sql, user_id, from, limit).await
}
