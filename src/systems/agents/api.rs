//! What other systems name of agents.

use super::settings::Models;
use crate::contract::Services;

/// Whether this node has a model that thinks.
pub fn has_models(services: &Services) -> bool {
    services.settings.get::<Models>().is_some_and(|models| models.router.has_models())
}
