//! What users can do, once for all edges: HTTP handlers and WebSocket events call these with the same ids, so that a
//! retry over the other edge is still the same command.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cluster::Meta;
use crate::contract::problem::{FieldError, Outcome, Problem};
use crate::gateway::asking::{asked_by_fields, asked_by_sentence, request_pointer};
use crate::gateway::auth::Claims;
use crate::gateway::bodies::{self, CreateRequest, parse};
use crate::gateway::{Gateway, Tier};
use crate::kernel::entity::{Caller, Entity, Role, to_value};
use crate::kernel::error::{AskError, ErrorCode};
use crate::kernel::ids::is_valid_id;
use crate::systems::app_topics::domain::app_topic::{self, AppTopic};
use crate::systems::marketplace::domain::booking::{self, Booking};
use crate::systems::marketplace::domain::profile::{Profile, ProfilePatch};
use crate::systems::marketplace::domain::provider::{self, Provider};
use crate::systems::marketplace::domain::request::{self, Asked, Request};
use crate::systems::marketplace::domain::schedule::{Hours, Weekday};
use crate::systems::marketplace::domain::session::{self, Session};
use crate::systems::marketplace::views;

/// Who asks, and under which command id.
#[derive(Clone)]
pub struct Call<'a> {
    pub gateway: &'a Gateway,
    pub user_id: &'a str,
    pub role: Role,
    /// What the user's plan allows.
    pub tier: Tier,
    pub id: &'a str,
}

impl<'a> Call<'a> {
    pub fn of(gateway: &'a Gateway, claims: &'a Claims, id: &'a str) -> Self {
        let tier = gateway.options.tier(claims.tier.as_deref());
        Self { gateway, user_id: &claims.sub, role: claims.role, tier, id }
    }
}

impl Call<'_> {
    fn caller(&self) -> Caller {
        Caller::User { id: self.user_id.into(), role: self.role }
    }

    pub fn meta(&self) -> Meta {
        Meta::new(self.caller()).id(self.id)
    }

    /// For queries and for what always runs.
    pub fn undeduplicated(&self) -> Meta {
        Meta::new(self.caller())
    }

    pub async fn ask<E: Entity>(
        &self,
        key: &str,
        command: E::Command,
        meta: Meta,
    ) -> Outcome<E::Reply> {
        match self.gateway.entities.of::<E>(key).ask(command, meta).await? {
            Ok(reply) => Ok(reply),
            Err(rejection) => Err(Problem::rejection(&rejection)),
        }
    }

    /// A body that names a user names the caller.
    pub fn check_user(&self, body: &Value) -> Outcome<()> {
        match body.get("user_id") {
            None | Some(Value::Null) => Ok(()),
            Some(id) if id.as_str() == Some(self.user_id) => Ok(()),
            Some(_) => Err(Problem::forbidden("user_id must be the token's")),
        }
    }
}

/// The id of what a command creates: the same for its retry, whatever node it reaches.
pub fn derived_id(prefix: &str, parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    format!("{prefix}_{}", ulid::Ulid::from(u128::from_be_bytes(bytes)))
}

pub fn known_id<'a>(id: &'a str, what: &str) -> Outcome<&'a str> {
    if is_valid_id(id) { Ok(id) } else { Err(Problem::not_found(what)) }
}

/// `topic:publish` to a durable application topic. The offset, once it is committed.
pub async fn publish(call: &Call<'_>, key: &str, event: &str, data: Value) -> Outcome<i64> {
    let command = app_topic::Command::Publish { event: event.into(), data };
    let app_topic::Reply::Published { offset } =
        call.ask::<AppTopic>(key, command, call.meta()).await?;
    Ok(offset)
}

/// `request:create`. The new request.
pub async fn create_request(call: Call<'_>, body: &Value) -> Outcome {
    call.check_user(body)?;
    let parsed: CreateRequest = parse(body)?;
    // The body is part of the id: another body under a used command id reaches another entity, whose commit then
    // finds the id taken.
    let key = derived_id("req", &[call.user_id, call.id, &body.to_string()]);
    let Some(text) = &parsed.text else {
        let asked = asked_by_fields(&call, &parsed)?;
        return create(&call, &key, asked)
            .await
            .map_err(|p| p.repoint(|at| request_pointer(at, &parsed)));
    };
    // What a sentence means depends on the moment. Where the request exists already this is a retry: it repeats the
    // command that the request remembers.
    if let Some(request) = already_created(&call, &key).await? {
        return repeat_create(&call, &key, request).await;
    }
    let asked = asked_by_sentence(&call, text, parsed.time_zone.as_deref())?;
    match create(&call, &key, asked).await {
        // The same sentence twice at once: the other one was first.
        Err(problem) if problem.code == ErrorCode::IdReused => {
            match already_created(&call, &key).await? {
                Some(request) => repeat_create(&call, &key, request).await,
                None => Err(problem),
            }
        }
        outcome => outcome.map_err(|problem| problem.repoint(|_| "/text".into())),
    }
}

async fn create(call: &Call<'_>, key: &str, asked: Asked) -> Outcome {
    match call.ask::<Request>(key, request::Command::Create(asked), call.meta()).await? {
        request::Reply::Request(request) => Ok(to_value(&request)),
        _ => shown_request(call, key).await,
    }
}

async fn already_created(call: &Call<'_>, key: &str) -> Outcome<Option<Value>> {
    match call.ask::<Request>(key, request::Command::Get, call.undeduplicated()).await {
        Ok(request::Reply::Request(request)) => Ok(Some(to_value(&request))),
        Ok(_) => Ok(None),
        Err(problem) if problem.code == ErrorCode::NotFound => Ok(None),
        Err(problem) => Err(problem),
    }
}

/// The first reply, or, where the request remembers it in other words (its window has been cut to the future), the
/// request as it is: its key says that it came from this very command.
async fn repeat_create(call: &Call<'_>, key: &str, request: Value) -> Outcome {
    let mut asked = request.clone();
    asked["when"] =
        json!({"earliest": asked["earliest"], "latest": asked["latest"], "exact": asked["exact"]});
    let Ok(asked) = serde_json::from_value(asked) else { return Ok(request) };
    match create(call, key, asked).await {
        Err(problem) if problem.code == ErrorCode::IdReused => Ok(request),
        outcome => outcome,
    }
}

/// A request of the caller, else not found.
pub async fn shown_request(call: &Call<'_>, id: &str) -> Outcome {
    let request = views::request(call.gateway.views()?, known_id(id, "request")?).await?;
    request
        .filter(|r| r.consumer_id == call.user_id)
        .map(|r| to_value(&r))
        .ok_or_else(|| Problem::not_found("request"))
}

/// `request:cancel`. The request as it is then.
pub async fn cancel_request(call: Call<'_>, id: &str, body: &Value) -> Outcome {
    call.check_user(body)?;
    let bodies::Cancel { reason } = parse(body)?;
    // Asked of the read model first, so that ids that never were do not wake an entity each.
    shown_request(&call, id).await?;
    match call.ask::<Request>(id, request::Command::Cancel { reason }, call.meta()).await? {
        request::Reply::Request(request) => Ok(to_value(&request)),
        _ => shown_request(&call, id).await,
    }
}

/// An offer to the caller, else not found.
pub async fn shown_offer(call: &Call<'_>, id: &str) -> Outcome {
    let offer = views::offer(call.gateway.views()?, known_id(id, "offer")?).await?;
    offer
        .filter(|to| to.consumer_id == call.user_id)
        .map(|to| to_value(&to.offer))
        .ok_or_else(|| Problem::not_found("offer"))
}

async fn request_of_offer(call: &Call<'_>, offer_id: &str) -> Outcome<String> {
    let offer = shown_offer(call, offer_id).await?;
    offer["request_id"].as_str().map(str::to_owned).ok_or_else(|| Problem::not_found("offer"))
}

/// `offer:accept`. Waits for the provider's word: the booking, or why not.
pub async fn accept_offer(call: Call<'_>, offer_id: &str, body: &Value) -> Outcome {
    call.check_user(body)?;
    let request_id = request_of_offer(&call, offer_id).await?;
    let meta = call.meta();
    let deadline = meta.deadline;
    let accept = request::Command::AcceptOffer { offer_id: offer_id.into() };
    if let request::Reply::Accepted { booking_id } =
        call.ask::<Request>(&request_id, accept, meta).await?
    {
        return Ok(json!({"booking_id": booking_id}));
    }
    // The acceptance is durable and goes on without us. The query waits for its end.
    let wait = Meta { deadline, ..call.undeduplicated() };
    let outcome = request::Command::AwaitAcceptance { offer_id: offer_id.into() };
    match call.ask::<Request>(&request_id, outcome, wait).await? {
        request::Reply::Accepted { booking_id } => Ok(json!({"booking_id": booking_id})),
        _ => Err(AskError::Internal.into()),
    }
}

/// `offer:decline`.
pub async fn decline_offer(call: Call<'_>, offer_id: &str, body: &Value) -> Outcome {
    call.check_user(body)?;
    let request_id = request_of_offer(&call, offer_id).await?;
    let decline = request::Command::DeclineOffer { offer_id: offer_id.into() };
    call.ask::<Request>(&request_id, decline, call.meta()).await?;
    Ok(json!({"offer_id": offer_id, "request_id": request_id, "status": "declined"}))
}

/// A booking of which the caller is a party, else not found.
pub async fn shown_booking(call: &Call<'_>, id: &str) -> Outcome {
    let booking = views::booking(call.gateway.views()?, known_id(id, "booking")?).await?;
    booking
        .filter(|(_, parties)| {
            parties.consumer_id == call.user_id || parties.provider_owner_id == call.user_id
        })
        .map(|(booking, _)| to_value(&booking))
        .ok_or_else(|| Problem::not_found("booking"))
}

async fn ask_booking(call: Call<'_>, id: &str, command: booking::Command) -> Outcome {
    shown_booking(&call, id).await?;
    match call.ask::<Booking>(id, command, call.meta()).await? {
        booking::Reply::Booking(booking) => Ok(to_value(&booking)),
        booking::Reply::Done => shown_booking(&call, id).await,
    }
}

/// `booking:cancel`.
pub async fn cancel_booking(call: Call<'_>, id: &str, body: &Value) -> Outcome {
    call.check_user(body)?;
    let bodies::Cancel { reason } = parse(body)?;
    ask_booking(call, id, booking::Command::Cancel { reason }).await
}

/// `booking:review`.
pub async fn review_booking(call: Call<'_>, id: &str, body: &Value) -> Outcome {
    call.check_user(body)?;
    let bodies::Review { rating, comment } = parse(body)?;
    let rating = rating.ok_or_else(|| Problem::field("/rating", "is required"))?;
    ask_booking(call, id, booking::Command::Review { rating, comment }).await
}

/// `booking:no_show`.
pub async fn mark_no_show(call: Call<'_>, id: &str, body: &Value) -> Outcome {
    call.check_user(body)?;
    ask_booking(call, id, booking::Command::MarkNoShow).await
}

pub async fn shown_provider(call: &Call<'_>, id: &str) -> Outcome {
    let provider = views::provider(call.gateway.views()?, known_id(id, "provider")?).await?;
    provider
        .map(|p| to_value(&p.for_user(call.user_id)))
        .ok_or_else(|| Problem::not_found("provider"))
}

fn only_providers(call: &Call<'_>) -> Outcome<()> {
    match call.role {
        Role::Provider | Role::Operator => Ok(()),
        Role::Consumer => Err(Problem::forbidden("this takes a token with the role provider")),
    }
}

/// Enrols the caller as a provider.
pub async fn enroll_provider(call: Call<'_>, body: &Value) -> Outcome {
    call.check_user(body)?;
    only_providers(&call)?;
    let profile = complete_profile(parse(body)?)?;
    let key = derived_id("prv", &[call.user_id, call.id, &body.to_string()]);
    let enroll =
        provider::Command::Enroll { owner_id: call.user_id.into(), profile, standing: None };
    let outcome = call.ask::<Provider>(&key, enroll, call.meta()).await;
    match outcome.map_err(|p| p.repoint(|at| at.strip_prefix("/profile").unwrap_or(at).into()))? {
        provider::Reply::Provider(provider) => Ok(to_value(&provider)),
        provider::Reply::Done => shown_provider(&call, &key).await,
    }
}

fn complete_profile(patch: ProfilePatch) -> Outcome<Profile> {
    let mut errors = Vec::new();
    for (given, pointer) in [
        (patch.name.is_some(), "/name"),
        (patch.services.is_some(), "/services"),
        (patch.base.is_some(), "/base"),
    ] {
        if !given {
            errors.push(FieldError::new(pointer, "is required"));
        }
    }
    let (Some(name), Some(services), Some(base)) = (patch.name, patch.services, patch.base) else {
        return Err(Problem::fields(errors));
    };
    // Weekdays from nine to five where nothing is said: a provider without hours would never make an offer.
    let office = || {
        Weekday::ALL[..5]
            .iter()
            .map(|day| (*day, vec![Hours { from_minute: 540, to_minute: 1_020 }]))
            .collect()
    };
    Ok(Profile {
        name,
        services,
        base,
        bio: patch.bio.unwrap_or_default(),
        languages: patch.languages.unwrap_or_default(),
        radius_km: patch.radius_km.unwrap_or(10.0),
        weekly: patch.weekly.unwrap_or_else(office),
        days_off: patch.days_off.unwrap_or_default(),
        minimum_notice_minutes: patch.minimum_notice_minutes.unwrap_or(60),
        max_discount_percent: patch.max_discount_percent.unwrap_or(0),
    })
}

/// Changes some fields; `expected_version` is the one the editor saw, `None` takes any.
pub async fn update_provider(
    call: Call<'_>,
    id: &str,
    body: &Value,
    expected_version: Option<u64>,
) -> Outcome {
    call.check_user(body)?;
    let patch: ProfilePatch = parse(body)?;
    shown_provider(&call, id).await?;
    let update = provider::Command::Update { patch, expected_version };
    match call.ask::<Provider>(id, update, call.meta()).await? {
        provider::Reply::Provider(provider) => Ok(to_value(&provider)),
        provider::Reply::Done => shown_provider(&call, id).await,
    }
}

/// A session of the caller, else not found.
pub async fn shown_session(call: &Call<'_>, id: &str) -> Outcome {
    let session = views::session(call.gateway.views()?, known_id(id, "session")?).await?;
    session
        .filter(|s| s.user_id == call.user_id)
        .map(|s| to_value(&s))
        .ok_or_else(|| Problem::not_found("session"))
}

/// Opens a session of the caller, or a new one. Opening twice changes nothing, so it needs no remembered id.
pub async fn open_session(call: &Call<'_>, body: &Value, remembered: bool) -> Outcome<String> {
    call.check_user(body)?;
    let bodies::OpenSession { session_id, time_zone, locale, currency } = parse(body)?;
    let (key, time_zone, locale) = match session_id {
        None => {
            let key = derived_id("ses", &[call.user_id, call.id]);
            (key, time_zone.unwrap_or_else(|| "UTC".into()), locale.unwrap_or_else(|| "en".into()))
        }
        Some(id) => {
            let known = shown_session(call, &id).await?;
            let kept = |name: &str| known[name].as_str().unwrap_or_default().to_owned();
            (
                id,
                time_zone.unwrap_or_else(|| kept("time_zone")),
                locale.unwrap_or_else(|| kept("locale")),
            )
        }
    };
    let meta = if remembered { call.meta() } else { call.undeduplicated() };
    call.ask::<Session>(&key, session::Command::Open { time_zone, locale, currency }, meta).await?;
    Ok(key)
}

/// `chat:message`. Durable when this returns; the answer comes on the session's topic.
pub async fn send_message(call: Call<'_>, session_id: &str, body: &Value) -> Outcome {
    call.check_user(body)?;
    let bodies::SendMessage { content, media } = parse(body)?;
    let content = content.ok_or_else(|| Problem::field("/content", "is required"))?;
    let session_id = known_id(session_id, "session")?;
    let send = session::Command::SendMessage { content, media: media.unwrap_or_default() };
    match call.ask::<Session>(session_id, send, call.meta()).await? {
        session::Reply::Sent { message_id } => Ok(json!({"message_id": message_id})),
        _ => Err(AskError::Internal.into()),
    }
}

/// `chat:typing`: lossy, so it gives up early.
pub async fn typing(call: &Call<'_>, session_id: &str, is_typing: bool) -> Outcome {
    let meta = Meta::within(Duration::from_secs(3), call.caller());
    call.ask::<Session>(
        known_id(session_id, "session")?,
        session::Command::Typing { is_typing },
        meta,
    )
    .await?;
    Ok(json!({}))
}

/// Ends a session for all devices.
pub async fn end_session(call: &Call<'_>, session_id: &str) -> Outcome {
    let session_id = known_id(session_id, "session")?;
    call.ask::<Session>(session_id, session::Command::Close { end: true }, call.undeduplicated())
        .await?;
    Ok(json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_repeat_and_differ() {
        let id = derived_id("req", &["alice", "1"]);
        assert_eq!(id, derived_id("req", &["alice", "1"]));
        assert_ne!(id, derived_id("req", &["alic", "e1"]));
        assert!(is_valid_id(&id) && id.starts_with("req_") && id.len() == 30, "{id}");
    }
}
