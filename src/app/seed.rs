//! Demonstration data for a fresh embedded store.

use futures_util::{StreamExt, stream};

use crate::app::core::Core;
use crate::cluster::Meta;
use crate::persistence::views::Views;
use crate::systems::marketplace::domain::demo_providers::demo_providers;
use crate::systems::marketplace::domain::profile::ProviderView;
use crate::systems::marketplace::domain::provider::Provider;

/// Enrols the demonstration providers where there are none. Each has an id of its own, so a seeding that was cut off
/// goes on where it stopped.
pub async fn demo(core: &Core) -> anyhow::Result<()> {
    let providers = demo_providers();
    // The last one is there: an earlier start has finished this.
    let (last, _) = providers.last().expect("there are demonstration providers");
    let seeded = Views::new(core.pool.clone()).get::<ProviderView>(last).await;
    if seeded.map_err(|e| anyhow::anyhow!("{e}"))?.is_some() {
        return Ok(());
    }
    tracing::info!(
        providers = providers.len(),
        "filling a fresh store with demonstration providers"
    );
    let enrolments = providers.into_iter().map(|(key, command)| {
        let meta = Meta::runtime().id(format!("seed-{key}"));
        core.entities.of::<Provider>(key).ask(command, meta)
    });
    let failed = stream::iter(enrolments)
        .buffer_unordered(64)
        .filter_map(|answer| {
            std::future::ready(match answer {
                Ok(Ok(_)) => None,
                Ok(Err(rejection)) => Some(rejection.to_string()),
                Err(error) => Some(error.to_string()),
            })
        })
        .collect::<Vec<_>>()
        .await;
    anyhow::ensure!(
        failed.is_empty(),
        "a demonstration provider could not be enrolled: {}",
        failed[0]
    );
    Ok(())
}
