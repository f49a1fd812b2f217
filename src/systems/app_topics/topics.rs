//! Application topics, as the configuration grants them.

use crate::contract::call::Settings;
use crate::contract::topic::{Topic, TopicDelivery};
use crate::contract::{Call, Outcome, Problem};
use crate::systems::app_topics::settings;

/// An application topic, for the roles that its grant lets listen.
pub struct Application;

impl Topic for Application {
    const KIND: &'static str = "app";
    const SUMMARY: &'static str = "An application topic, as `[[app_topics]]` grants it";
    /// That of publishing.
    const SCOPE: &'static str = "topic";

    async fn may_listen(call: &Call, key: &str) -> Outcome<()> {
        let grant = call.settings::<settings::TopicGrants>().grant(&format!("app:{key}"));
        let granted = grant.is_some_and(|grant| grant.subscribe.contains(&call.role));
        let refused = || Problem::forbidden("this application topic is not granted to you");
        granted.then_some(()).ok_or_else(refused)
    }

    fn carriage(settings: &Settings, topic: &str) -> TopicDelivery {
        match settings.get::<settings::TopicGrants>().and_then(|all| all.grant(topic)) {
            Some(grant) if grant.durable => TopicDelivery::Durable,
            grant => {
                TopicDelivery::Lossy { latest_only: grant.is_some_and(|grant| grant.latest_only) }
            }
        }
    }
}
