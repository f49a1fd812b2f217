//! Providers: the directory, and the profiles in it.

use std::collections::BTreeSet;

use jiff::civil::Date;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::call::known_id;
use crate::contract::list::{After, Limit, ListOf, Page};
use crate::contract::operation::ToolEffect;
use crate::contract::{Call, Meta, Operation, Outcome, Problem};
use crate::kernel::entity::{Role, to_value};
use crate::systems::marketplace::domain::pricing::Offering;
use crate::systems::marketplace::domain::profile::{
    Base, LeadAnswerer, Profile, ProfilePatch, ProviderView,
};
use crate::systems::marketplace::domain::provider::{self, Provider};
use crate::systems::marketplace::domain::schedule::{Hours, Weekday, Weekly};
use crate::systems::marketplace::domain::service::Service;
use crate::systems::marketplace::views;

/// The owner whose providers are listed.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProviderOwner {
    Me,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListProviders {
    /// Only providers of this service
    service: Option<Service>,
    /// Only providers in this city
    city: Option<String>,
    /// `me`: only your own
    owner: Option<ProviderOwner>,
    limit: Option<Limit>,
    cursor: Option<After>,
}

/// Lists the directory of providers; `owner=me` lists the caller's own.
pub struct List;

impl Operation for List {
    const META: Meta = Meta::query("provider.list", "List the directory of providers")
        .get("/v1/providers")
        .tool("list_providers", ToolEffect::ReadOnly);
    type Input = ListProviders;
    type Answer = Page<ProviderView>;

    async fn run(call: &Call, input: ListProviders) -> Outcome<Page<ProviderView>> {
        let service = input.service.map(|service| to_value(&service));
        let service = service.as_ref().and_then(|service| service.as_str());
        let owner = input.owner.map(|ProviderOwner::Me| &*call.user_id);
        let list = ListOf::new(&[Self::META.name]);
        let (city, from) = (input.city.as_deref(), list.up(input.cursor)?);
        let limit = input.limit.unwrap_or_default().0;
        let page = views::providers(call.views()?, service, city, owner, from, limit).await?;
        Ok(list.page(page).map(|provider| provider.for_user(&call.user_id)))
    }
}

pub async fn shown(call: &Call, id: &str) -> Outcome<ProviderView> {
    let provider = call.views()?.get::<ProviderView>(known_id(id, "provider")?).await?;
    let provider = provider.ok_or_else(|| Problem::not_found("provider"))?;
    Ok(provider.for_user(&call.user_id))
}

async fn ask(call: &Call, id: &str, command: provider::Command) -> Outcome<ProviderView> {
    match call.ask::<Provider>(id, command, call.meta()).await? {
        provider::Reply::Provider(provider) => Ok(*provider),
        _ => shown(call, id).await,
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ProviderId")]
pub struct ProviderById {
    provider_id: String,
}

/// Returns a provider's public profile.
pub struct Get;

impl Operation for Get {
    const META: Meta = Meta::query("provider.get", "Get a provider's public profile")
        .get("/v1/providers/{provider_id}")
        .versioned()
        .tool("get_provider", ToolEffect::ReadOnly)
        .resource("proxie://providers/{provider_id}");
    type Input = ProviderById;
    type Answer = ProviderView;

    async fn run(call: &Call, ProviderById { provider_id }: ProviderById) -> Outcome<ProviderView> {
        shown(call, &provider_id).await
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct EnrollProvider {
    #[schemars(length(min = 1, max = 80))]
    name: String,
    /// The speciality first.
    #[schemars(length(min = 1, max = 8))]
    services: Vec<Offering>,
    base: Base,
    #[schemars(length(max = 2_000))]
    bio: Option<String>,
    /// BCP 47 tags, the preferred one first.
    #[schemars(length(max = 10))]
    languages: Option<Vec<String>>,
    /// Default: 10.
    #[schemars(range(min = 0.5, max = 200))]
    radius_km: Option<f64>,
    /// By weekday; a day that is missing is closed. Default: Monday to Friday from nine to five.
    weekly: Option<Weekly>,
    #[schemars(length(max = 366))]
    days_off: Option<BTreeSet<Date>>,
    /// Default: 60.
    #[schemars(range(max = 20_160))]
    minimum_notice_minutes: Option<u32>,
    /// Default: 0.
    #[schemars(range(max = 80))]
    max_discount_percent: Option<u8>,
    /// Default: `policy`.
    answers_leads: Option<LeadAnswerer>,
}

impl EnrollProvider {
    fn profile(self) -> Profile {
        // Weekdays from nine to five by default: a provider without hours would never make an offer.
        let office = || {
            Weekday::ALL[..5]
                .iter()
                .map(|day| (*day, vec![Hours { from_minute: 540, to_minute: 1_020 }]))
                .collect()
        };
        Profile {
            name: self.name,
            services: self.services,
            base: self.base,
            bio: self.bio.unwrap_or_default(),
            languages: self.languages.unwrap_or_default(),
            radius_km: self.radius_km.unwrap_or(10.0),
            weekly: self.weekly.unwrap_or_else(office),
            days_off: self.days_off.unwrap_or_default(),
            minimum_notice_minutes: self.minimum_notice_minutes.unwrap_or(60),
            max_discount_percent: self.max_discount_percent.unwrap_or(0),
            answers_leads: self.answers_leads.unwrap_or_default(),
        }
    }
}

/// Makes the caller a provider.
pub struct Enroll;

impl Operation for Enroll {
    const META: Meta = Meta::command("provider.enroll", "Become a provider")
        .post("/v1/providers")
        .creates("/v1/providers/")
        .versioned();
    type Input = EnrollProvider;
    type Answer = ProviderView;

    fn allow(call: &Call) -> Outcome<()> {
        match call.role {
            Role::Provider | Role::Operator => Ok(()),
            Role::Consumer => Err(Problem::forbidden("this takes a token with the role provider")),
        }
    }

    async fn run(call: &Call, input: EnrollProvider) -> Outcome<ProviderView> {
        let enroll = provider::Command::Enroll {
            owner_id: call.user_id.to_string(),
            profile: input.profile(),
            standing: None,
        };
        let enrolled = ask(call, &call.new_id("prv"), enroll).await;
        enrolled.map_err(|problem| {
            problem.repoint(|at| at.strip_prefix("/profile").unwrap_or(at).into())
        })
    }
}

/// The most versions that one change may name.
const MAX_VERSIONS: usize = 64;

/// The fields to change; a list replaces the whole list.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct UpdateProvider {
    provider_id: String,
    /// The versions of the profile that the change applies to. Default: any version.
    #[schemars(length(max = 64))]
    expected_versions: Option<Vec<u64>>,
    #[schemars(length(min = 1, max = 80))]
    name: Option<String>,
    #[schemars(length(max = 2_000))]
    bio: Option<String>,
    /// BCP 47 tags, the preferred one first.
    #[schemars(length(max = 10))]
    languages: Option<Vec<String>>,
    /// The speciality first.
    #[schemars(length(min = 1, max = 8))]
    services: Option<Vec<Offering>>,
    base: Option<Base>,
    #[schemars(range(min = 0.5, max = 200))]
    radius_km: Option<f64>,
    /// By weekday; a day that is missing is closed.
    weekly: Option<Weekly>,
    #[schemars(length(max = 366))]
    days_off: Option<BTreeSet<Date>>,
    #[schemars(range(max = 20_160))]
    minimum_notice_minutes: Option<u32>,
    #[schemars(range(max = 80))]
    max_discount_percent: Option<u8>,
    answers_leads: Option<LeadAnswerer>,
}

/// Changes some fields of the caller's profile.
pub struct Update;

impl Operation for Update {
    const META: Meta =
        Meta::command("provider.update", "Change your profile; takes the ETag as If-Match")
            .patch("/v1/providers/{provider_id}")
            .versioned()
            .if_match("expected_versions")
            .tool("update_availability", ToolEffect::Idempotent)
            .tool_description("Change your hours and days off as a provider, or other fields of your profile; a list replaces the whole list");
    type Input = UpdateProvider;
    type Answer = ProviderView;

    async fn run(call: &Call, input: UpdateProvider) -> Outcome<ProviderView> {
        let UpdateProvider { provider_id: id, expected_versions, .. } = &input;
        if expected_versions.as_ref().is_some_and(|versions| versions.len() > MAX_VERSIONS) {
            let message = format!("must be a list of at most {MAX_VERSIONS}");
            return Err(Problem::field("/expected_versions", message));
        }
        shown(call, id).await?;
        let id = id.clone();
        // Version 0 does not exist: none of the versions that were given can be the one.
        let mut seen = expected_versions.clone().map(Vec::into_iter);
        let expected_version = seen.as_mut().map(|seen| seen.next().unwrap_or(0));
        let or_versions = seen.into_iter().flatten().collect();
        let patch = ProfilePatch {
            name: input.name,
            bio: input.bio,
            languages: input.languages,
            services: input.services,
            base: input.base,
            radius_km: input.radius_km,
            weekly: input.weekly,
            days_off: input.days_off,
            minimum_notice_minutes: input.minimum_notice_minutes,
            max_discount_percent: input.max_discount_percent,
            answers_leads: input.answers_leads,
        };
        ask(call, &id, provider::Command::Update { patch, expected_version, or_versions }).await
    }
}
