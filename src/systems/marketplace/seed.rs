//! Demonstration providers for a fresh store.

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};

use crate::cluster::{CommandMeta, Entities};
use crate::persistence::views::Views;
use crate::systems::marketplace::domain::demo_providers::demo_providers;
use crate::systems::marketplace::domain::profile::ProviderView;
use crate::systems::marketplace::domain::provider::Provider;

/// Enrols the demonstration providers where there are none. Each has an id of its own, so an interrupted seeding
/// continues where it stopped.
pub fn seed<'a>(entities: &'a Entities, views: &'a Views) -> BoxFuture<'a, Result<(), String>> {
    enrol_all(entities, views).boxed()
}

async fn enrol_all(entities: &Entities, views: &Views) -> Result<(), String> {
    let providers = demo_providers();
    // The last provider exists, so an earlier start has finished the seeding.
    let (last, _) = providers.last().expect("there are demonstration providers");
    let seeded = views.get::<ProviderView>(last).await;
    if seeded.map_err(|error| error.to_string())?.is_some() {
        return Ok(());
    }
    tracing::info!(
        providers = providers.len(),
        "filling a fresh store with demonstration providers"
    );
    let enrolments = providers.into_iter().map(|(key, command)| {
        let meta = CommandMeta::runtime().id(format!("seed-{key}"));
        entities.of::<Provider>(key).ask(command, meta)
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
    match failed.first() {
        None => Ok(()),
        Some(why) => Err(format!("a demonstration provider could not be enrolled: {why}")),
    }
}
