//! The availability of a film or an episode. Operators set it, or the service that fills the catalogue for them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::operation::is_name;
use crate::kernel::clock::Timestamp;
use crate::kernel::entity::{Caller, DecideCx, Decided, Decision, Entity, Role};
use crate::kernel::error::ErrorCode;
use crate::kernel::view::{Listed, View, ViewRow};

/// Most availabilities of one content: platforms times regions.
pub const MAX_AVAILABILITIES: usize = 500;

#[derive(Debug)]
pub struct Content;

/// A platform on which a content can be watched, with its terms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Availability {
    /// `netflix`, `youtube`, …
    pub platform: String,
    /// The platform's own id of the content, for links.
    #[serde(default)]
    pub platform_content_id: Option<String>,
    /// The address for browsers, if not the platform's usual link.
    #[serde(default)]
    pub web_url: Option<String>,
    pub access: Access,
    #[serde(default)]
    pub quality: Quality,
    /// The region (ISO 3166-1). Default: everywhere.
    #[serde(default)]
    pub region: Option<String>,
    #[serde(default)]
    pub available_from: Option<Timestamp>,
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
}

/// The terms of access, in order of preference.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    Free,
    Subscription,
    Ads,
    Rent,
    Buy,
}

#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Quality {
    Sd,
    #[default]
    Hd,
    Uhd,
}

impl Availability {
    /// Checks the fields; the error is the wrong field and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if !is_name(&self.platform) || self.platform.len() > 64 {
            return Err(("platform", "must have 1 to 64 visible ASCII characters"));
        }
        // An id of only dots would change the path of the link.
        let is_id = |id: &str| is_name(id) && !id.bytes().all(|b| b == b'.');
        if !self.platform_content_id.as_deref().is_none_or(is_id) {
            let message = "must have 1 to 128 visible ASCII characters, not dots alone";
            return Err(("platform_content_id", message));
        }
        let is_url =
            |url: &str| url.starts_with("https://") && url.len() <= 1_024 && is_visible(url);
        match &self.web_url {
            Some(url) if !is_url(url) => return Err(("web_url", "must be an https URL")),
            None if self.platform_content_id.is_none() => {
                return Err(("platform_content_id", "is required where there is no web_url"));
            }
            _ => {}
        }
        let is_region = |code: &str| {
            matches!(code.len(), 2 | 3) && code.bytes().all(|b| b.is_ascii_uppercase())
        };
        if self.region.as_deref().is_some_and(|code| !is_region(code)) {
            return Err(("region", "must be an ISO 3166-1 code in capitals, like DE"));
        }
        if let (Some(from), Some(until)) = (self.available_from, self.expires_at)
            && from >= until
        {
            return Err(("expires_at", "must be after available_from"));
        }
        Ok(())
    }

    pub fn is_at(&self, now: Timestamp) -> bool {
        self.available_from.is_none_or(|from| from <= now)
            && self.expires_at.is_none_or(|until| now < until)
    }

    /// Whether it is available in a region. Without a wanted region, any region counts.
    pub fn is_in(&self, region: Option<&str>) -> bool {
        match (&self.region, region) {
            (Some(here), Some(wanted)) => here == wanted,
            _ => true,
        }
    }
}

fn is_visible(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic())
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Replaces the known availability.
    SetAvailability(Vec<Availability>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    AvailabilitySet { availability: Vec<Availability>, at: Timestamp },
}

/// The content's state, bounded by [`MAX_AVAILABILITIES`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub availability: Vec<Availability>,
    pub updated_at: Option<Timestamp>,
    pub version: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Content(ContentView),
}

/// A content as everybody sees it: the reply and the row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Content")]
pub struct ContentView {
    pub id: String,
    pub availability: Vec<Availability>,
    pub updated_at: Option<Timestamp>,
    pub version: u64,
}

impl View for ContentView {
    const NAME: &'static str = "contents";
    const LISTED: Option<Listed> = None;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("this needs a token with the role operator")]
    OperatorsOnly,
    #[error("a content may have at most {MAX_AVAILABILITIES} availabilities")]
    TooMany,
}

impl crate::kernel::entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        match self {
            Self::OperatorsOnly => ErrorCode::Forbidden,
            Self::TooMany => ErrorCode::Rejected,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::OperatorsOnly => "operators_only",
            Self::TooMany => "too_many_availabilities",
        }
    }
}

impl State {
    fn shown(&self, key: &str) -> ContentView {
        ContentView {
            id: key.into(),
            availability: self.availability.clone(),
            updated_at: self.updated_at,
            version: self.version,
        }
    }
}

impl Entity for Content {
    const KIND: &'static str = "content";
    const GOLDEN: &'static str = include_str!("golden/content.jsonl");

    crate::own_types!();

    fn decide(state: &State, command: Command, cx: &DecideCx<'_>) -> Decided<Self> {
        // Whoever acts for an operator has no role of theirs.
        if !matches!(cx.caller, Caller::User { role: Role::Operator, .. } | Caller::Runtime) {
            return Err(Rejection::OperatorsOnly);
        }
        let Command::SetAvailability(availability) = command;
        if availability.len() > MAX_AVAILABILITIES {
            return Err(Rejection::TooMany);
        }
        if state.version > 0 && availability == state.availability {
            return Ok(Decision::reply(Reply::Content(state.shown(cx.key))));
        }
        let event = Event::AvailabilitySet { availability, at: cx.now };
        let mut after = state.clone();
        Self::evolve(&mut after, &event);
        Ok(Decision::reply(Reply::Content(after.shown(cx.key))).event(event))
    }

    fn evolve(state: &mut State, event: &Event) {
        let Event::AvailabilitySet { availability, at } = event;
        state.availability = availability.clone();
        state.updated_at = Some(*at);
        state.version += 1;
    }

    fn project(key: &str, state: &State, events: &[Event]) -> Vec<ViewRow> {
        if events.is_empty() {
            return Vec::new();
        }
        vec![ViewRow::of(&state.shown(key))]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::kernel::entity::spec::given;
    use crate::kernel::entity::to_value;

    fn on(platform: &str) -> Availability {
        serde_json::from_value(
            json!({"platform": platform, "platform_content_id": "1", "access": "free"}),
        )
        .unwrap()
    }

    #[test]
    fn operators_say_where_it_is() {
        let set = || Command::SetAvailability(vec![on("netflix")]);
        let mut film = given::<Content>([]).by_user("alice").key("tt1");
        film.when(set()).then_rejected("operators_only");
        film.caller = Caller::user("ops", Role::Operator);
        let decision = film.when(set()).decision();
        let Some(Reply::Content(shown)) = decision.reply else { panic!() };
        assert_eq!((shown.id.as_str(), shown.version), ("tt1", 1));
        film.when(set()).then([]);
        film.when(Command::SetAvailability(Vec::new())).decision();
        assert_eq!(film.state.version, 2);
        let many = vec![on("netflix"); MAX_AVAILABILITIES + 1];
        film.when(Command::SetAvailability(many)).then_rejected("too_many_availabilities");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |change: Value| {
            let mut fields = to_value(&on("netflix"));
            fields.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let availability: Availability = serde_json::from_value(fields).unwrap();
            availability.check().map_err(|(field, _)| field)
        };
        assert_eq!(wrong(json!({})), Ok(()));
        assert_eq!(wrong(json!({"platform": ""})), Err("platform"));
        assert_eq!(wrong(json!({"platform_content_id": null})), Err("platform_content_id"));
        assert_eq!(wrong(json!({"platform_content_id": ".."})), Err("platform_content_id"));
        assert_eq!(wrong(json!({"platform_content_id": "1..2"})), Ok(()));
        assert_eq!(wrong(json!({"web_url": "http://x.example/1"})), Err("web_url"));
        assert_eq!(wrong(json!({"web_url": "javascript:alert(1)"})), Err("web_url"));
        assert_eq!(wrong(json!({"region": "Germany"})), Err("region"));
        let at = "2026-01-12T08:00:00Z";
        assert_eq!(wrong(json!({"available_from": at, "expires_at": at})), Err("expires_at"));
    }
}
