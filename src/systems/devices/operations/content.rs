//! Operations on content: on which platforms a film or an episode can be watched.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::contract::operation::ToolEffect;
use crate::contract::{Call, Meta, Operation, Outcome, Problem, input};
use crate::kernel::entity::Role;
use crate::systems::devices::domain::content::{
    self, Availability, Content, ContentView, MAX_AVAILABILITIES,
};
use crate::systems::devices::domain::operation::is_name;
use crate::systems::devices::settings::ResolvedPlayback;

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ContentId")]
pub struct ContentById {
    content_id: String,
}

/// Returns the platforms on which a content can be watched.
pub struct Get;

impl Operation for Get {
    const META: Meta =
        Meta::query("content.get", "Get the platforms on which a content can be watched")
            .get("/v1/content/{content_id}/availability")
            .tool("get_content_availability", ToolEffect::ReadOnly)
            .resource("proxie://content/{content_id}");
    type Input = ContentById;
    type Answer = ContentView;

    async fn run(call: &Call, ContentById { content_id }: ContentById) -> Outcome<ContentView> {
        if !is_name(&content_id) {
            return Err(Problem::not_found("content"));
        }
        let content = call.views()?.get::<ContentView>(&content_id).await?;
        content.ok_or_else(|| Problem::not_found("content"))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "SetAvailability")]
pub struct NewAvailability {
    content_id: String,
    #[schemars(with = "Vec<Availability>", length(max = 500))]
    availability: Vec<Value>,
}

/// Replaces the list of platforms on which a content can be watched.
pub struct SetAvailability;

impl Operation for SetAvailability {
    const META: Meta = Meta::command(
        "content.set_availability",
        "Set the platforms on which a content can be watched; operators only",
    )
    .put("/v1/content/{content_id}/availability");
    type Input = NewAvailability;
    type Answer = ContentView;

    fn allow(call: &Call) -> Outcome<()> {
        match call.role {
            Role::Operator => Ok(()),
            _ => Err(Problem::rejection(&content::Rejection::OperatorsOnly)),
        }
    }

    async fn run(call: &Call, input: NewAvailability) -> Outcome<ContentView> {
        let NewAvailability { content_id, availability } = input;
        if !is_name(&content_id) {
            return Err(Problem::bad_request("the id must have 1 to 128 visible ASCII characters"));
        }
        let platforms = &call.settings::<ResolvedPlayback>().platforms;
        let check = |way: &Availability| {
            way.check()?;
            if platforms.has_link(way) {
                Ok(())
            } else {
                Err(("platform", "is not one that links are known for: give a web_url"))
            }
        };
        let availability = input::items(&availability, "availability", MAX_AVAILABILITIES, check)?;
        let command = content::Command::SetAvailability(availability);
        let content::Reply::Content(content) =
            call.ask::<Content>(&content_id, command, call.undeduplicated()).await?;
        Ok(content)
    }
}
