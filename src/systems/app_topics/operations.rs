//! The operation on application topics: publishing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cluster::topics::Published;
use crate::contract::topic::split_topic;
use crate::contract::{Call, Meta, Operation, Outcome, Problem};
use crate::kernel::error::ErrorCode;
use crate::systems::app_topics::domain::app_topic::{self, AppTopic};
use crate::systems::app_topics::settings::TopicGrants;

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Publication")]
pub struct PublicationInput {
    topic: String,
    /// Starts with `app:`.
    event: String,
    #[serde(default)]
    data: Value,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct PublicationAccepted {
    /// The offset of the publication, which is committed. Only for durable topics.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<i64>,
}

/// Publishes to an application topic, where the configuration grants it.
pub struct Publish;

impl Operation for Publish {
    const META: Meta = Meta::command(
        "topic.publish",
        "Publish to an application topic; on a durable topic the answer has the committed offset",
    )
    .heard_again();
    type Input = PublicationInput;
    type Answer = PublicationAccepted;

    fn is_kept(call: &Call, input: &PublicationInput) -> bool {
        call.settings::<TopicGrants>().grant(&input.topic).is_some_and(|grant| grant.durable)
    }

    async fn run(call: &Call, input: PublicationInput) -> Outcome<PublicationAccepted> {
        let PublicationInput { topic, event, data } = input;
        let settings: &TopicGrants = call.settings();
        let (kind, key) = split_topic(&topic)?;
        let granted = settings
            .grant(&topic)
            .filter(|grant| kind == "app" && grant.publish.contains(&call.role));
        let granted =
            granted.ok_or_else(|| Problem::forbidden("you may not publish to this topic"))?;
        if !event.starts_with("app:") || event.len() > 64 {
            return Err(Problem::field("/event", "must start with app: and have at most 64 bytes"));
        }
        call.check_user(&data)?;
        if !settings.may_publish_now(&topic) {
            let problem =
                Problem::new(ErrorCode::RateLimited, "too many publications to this topic");
            return Err(problem.retry_after_ms(1_000));
        }
        if granted.durable {
            let command = app_topic::Command::Publish { event, data };
            let app_topic::Reply::Published { offset } =
                call.ask::<AppTopic>(key, command, call.meta()).await?;
            return Ok(PublicationAccepted { offset: Some(offset) });
        }
        let said = Published::said(&topic, None, &event, Some(&call.user_id), &data.to_string());
        let posted = call.services.topics.post(&said);
        if posted { Ok(PublicationAccepted { offset: None }) } else { Err(Problem::unavailable()) }
    }
}
