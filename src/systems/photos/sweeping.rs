//! Deletes the objects whose photos are gone: deleted, erased with their owner, or never stored to their end. Any node
//! does, each what the others have not taken.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::views;
use crate::contract::call::Services;

const IDLE: Duration = Duration::from_secs(5);

pub fn keep_clean(services: Arc<Services>) -> BoxFuture<'static, ()> {
    async move {
        loop {
            if !sweep(&services).await {
                tokio::time::sleep(IDLE).await;
            }
        }
    }
    .boxed()
}

/// Whether something was deleted.
async fn sweep(services: &Services) -> bool {
    let Ok(views) = services.views() else { return false };
    // A failure of the store is in the log and counted where it was noticed.
    if views::expire(views).await.is_err() {
        return false;
    }
    let Ok(taken) = views::leftovers(views).await else { return false };
    let mut done = Vec::new();
    for leftover in taken {
        match services.objects.delete(&leftover.object).await {
            Ok(()) => done.push(leftover),
            Err(error) => {
                tracing::warn!(%error, "a photo's bytes are not deleted yet; it is tried again");
                break;
            }
        }
    }
    let has_some = !done.is_empty();
    has_some && views::swept(views, &done).await.is_ok()
}
