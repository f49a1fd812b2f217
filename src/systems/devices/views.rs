//! What people watch.

use crate::persistence::views::{ViewError, Views};

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
