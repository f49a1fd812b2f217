//! Leads: requests that match a provider and wait for the answer of its owner or of their agent.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::contract::call::known_id;
use crate::contract::operation::{Done, ToolEffect};
use crate::contract::{Call, Meta, Operation, Outcome, Problem};
use crate::kernel::clock::Timestamp;
use crate::kernel::error::AskError;
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::provider::{
    Command, LeadView, OfferSuggestion, OwnTerms, Provider, Reply,
};
use crate::systems::marketplace::domain::request::RequestView;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct LeadsOf {
    provider_id: String,
}

/// At most 64.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LeadList {
    items: Vec<LeadView>,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct LeadId {
    provider_id: String,
    request_id: String,
}

async fn leads(call: &Call, provider: &str, request: Option<String>) -> Outcome<Vec<LeadView>> {
    let id = known_id(provider, "provider")?;
    // The read model is asked first, so that unknown ids do not each load an entity.
    super::providers::shown(call, id).await?;
    let asked = Command::Leads { request_id: request };
    match call.ask::<Provider>(id, asked, call.undeduplicated()).await? {
        Reply::Leads(leads) => Ok(leads),
        _ => Err(AskError::Internal.into()),
    }
}

async fn lead(call: &Call, id: &LeadId) -> Outcome<LeadView> {
    let found = leads(call, &id.provider_id, Some(id.request_id.clone())).await?;
    found.into_iter().next().ok_or_else(|| Problem::not_found("lead"))
}

/// Lists the leads that wait for an answer of the caller's provider.
pub struct List;

impl Operation for List {
    const META: Meta =
        Meta::query("lead.list", "Requests that match your provider and wait for your answer")
            .scope("provider")
            .get("/v1/providers/{provider_id}/leads")
            .tool("get_matching_requests", ToolEffect::ReadOnly);
    type Input = LeadsOf;
    type Answer = LeadList;

    async fn run(call: &Call, LeadsOf { provider_id }: LeadsOf) -> Outcome<LeadList> {
        Ok(LeadList { items: leads(call, &provider_id, None).await? })
    }
}

/// A lead with what the consumer said, but not who they are.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LeadDetail {
    #[serde(flatten)]
    lead: LeadView,
    /// In the consumer's words.
    details: String,
}

/// Returns a lead of the caller's provider.
pub struct Get;

impl Operation for Get {
    const META: Meta = Meta::query("lead.get", "A lead, with what is asked for in its words")
        .scope("provider")
        .get("/v1/providers/{provider_id}/leads/{request_id}")
        .tool("get_lead_details", ToolEffect::ReadOnly);
    type Input = LeadId;
    type Answer = LeadDetail;

    async fn run(call: &Call, id: LeadId) -> Outcome<LeadDetail> {
        let lead = lead(call, &id).await?;
        let request = call.views()?.get::<RequestView>(&lead.request_id).await?;
        let details = request.ok_or_else(|| Problem::not_found("lead"))?.details;
        Ok(LeadDetail { lead, details })
    }
}

/// Returns what the policy of the profile would offer.
pub struct Suggest;

impl Operation for Suggest {
    const META: Meta =
        Meta::query("lead.suggest", "The price and time that your profile suggests for a lead")
            .scope("provider")
            .get("/v1/providers/{provider_id}/leads/{request_id}/suggestion")
            .tool("suggest_offer", ToolEffect::ReadOnly);
    type Input = LeadId;
    type Answer = OfferSuggestion;

    async fn run(call: &Call, id: LeadId) -> Outcome<OfferSuggestion> {
        lead(call, &id).await?;
        let LeadId { provider_id, request_id } = id;
        let suggest = Command::SuggestOffer { request_id };
        match call.ask::<Provider>(&provider_id, suggest, call.undeduplicated()).await? {
            Reply::Suggestion(suggestion) => Ok(suggestion),
            _ => Err(AskError::Internal.into()),
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct SubmitOffer {
    provider_id: String,
    request_id: String,
    /// Default: as `suggest_offer` says. Never below your largest discount, never above your list price.
    price: Option<Money>,
    /// Default: as `suggest_offer` says.
    starts_at: Option<Timestamp>,
    /// What the consumer reads with it.
    #[schemars(length(max = 500))]
    message: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct OfferSubmitted {
    offer_id: String,
}

/// Makes an offer to the consumer of a lead, within the profile's limits.
pub struct Offer;

impl Operation for Offer {
    // The policy of a profile makes such offers all day without asking; this one stays within the same limits.
    const META: Meta =
        Meta::command("lead.offer", "Make an offer for a lead, within the limits of your profile")
            .scope("provider")
            .post("/v1/providers/{provider_id}/leads/{request_id}/offer")
            .tool("submit_offer", ToolEffect::Additive);
    type Input = SubmitOffer;
    type Answer = OfferSubmitted;

    async fn run(call: &Call, input: SubmitOffer) -> Outcome<OfferSubmitted> {
        let SubmitOffer { provider_id, request_id, price, starts_at, message } = input;
        let id = known_id(&provider_id, "provider")?;
        super::providers::shown(call, id).await?;
        let terms = OwnTerms { price, starts_at, message };
        let submit = Command::SubmitOffer { request_id, terms };
        match call.ask::<Provider>(id, submit, call.meta()).await? {
            Reply::Offered { offer_id } => Ok(OfferSubmitted { offer_id }),
            _ => Err(AskError::Internal.into()),
        }
    }
}

/// Makes no offer for a lead.
pub struct Decline;

impl Operation for Decline {
    const META: Meta = Meta::command("lead.decline", "Make no offer for a lead")
        .scope("provider")
        .post("/v1/providers/{provider_id}/leads/{request_id}/decline")
        .tool("decline_lead", ToolEffect::Additive);
    type Input = LeadId;
    type Answer = Done;

    async fn run(call: &Call, id: LeadId) -> Outcome<Done> {
        let LeadId { provider_id, request_id } = id;
        let id = known_id(&provider_id, "provider")?;
        super::providers::shown(call, id).await?;
        call.ask::<Provider>(id, Command::DeclineLead { request_id }, call.meta()).await?;
        Ok(Done {})
    }
}
