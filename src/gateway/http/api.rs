//! `/v1`: thin. Each handler is a command, or a read.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::extract::{Body, Id, User};
use super::list::List;
use crate::contract::problem::{Outcome, Problem};
use crate::gateway::Gateway;
use crate::gateway::commands;
use crate::systems::marketplace::domain::service::Service;

type App = State<Arc<Gateway>>;
type Answer = Outcome<Json<Value>>;

/// 201 with the address of what is new.
fn created(collection: &str, object: Value) -> Response {
    let location = object["id"].as_str().map(|id| format!("/v1/{collection}/{id}"));
    let tag = etag(&object);
    let mut response = (StatusCode::CREATED, Json(object)).into_response();
    if let Some(location) = location.and_then(|location| HeaderValue::from_str(&location).ok()) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    if let Some(tag) = tag {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// Objects that clients edit have a version.
fn etag(object: &Value) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("\"{}\"", object["version"].as_u64()?)).ok()
}

fn with_etag(object: Value) -> Response {
    let tag = etag(&object);
    let mut response = Json(object).into_response();
    if let Some(tag) = tag {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

pub async fn create_request(user: User, Body(body): Body) -> Outcome<Response> {
    Ok(created("requests", commands::create_request(user.call(), &body).await?))
}

pub async fn list_requests(State(gateway): App, user: User, list: List) -> Answer {
    let page = gateway.views()?.requests_of(&user.claims.sub, list.down(), list.limit).await?;
    Ok(Json(list.shown(page)))
}

pub async fn get_request(user: User, Id(id): Id) -> Answer {
    commands::shown_request(&user.call(), &id).await.map(Json)
}

pub async fn cancel_request(user: User, Id(id): Id, Body(body): Body) -> Answer {
    commands::cancel_request(user.call(), &id, &body).await.map(Json)
}

pub async fn list_offers(State(gateway): App, user: User, Id(id): Id, list: List) -> Answer {
    commands::shown_request(&user.call(), &id).await?;
    let page = gateway.views()?.offers_of(&id, list.up(), list.limit).await?;
    Ok(Json(list.shown(page)))
}

pub async fn get_offer(user: User, Id(id): Id) -> Answer {
    commands::shown_offer(&user.call(), &id).await.map(Json)
}

pub async fn accept_offer(user: User, Id(id): Id, Body(body): Body) -> Answer {
    commands::accept_offer(user.call(), &id, &body).await.map(Json)
}

pub async fn decline_offer(user: User, Id(id): Id, Body(body): Body) -> Answer {
    commands::decline_offer(user.call(), &id, &body).await.map(Json)
}

pub async fn list_bookings(State(gateway): App, user: User, list: List) -> Answer {
    let page = gateway.views()?.bookings_of(&user.claims.sub, list.down(), list.limit).await?;
    Ok(Json(list.shown(page)))
}

pub async fn get_booking(user: User, Id(id): Id) -> Answer {
    commands::shown_booking(&user.call(), &id).await.map(Json)
}

pub async fn cancel_booking(user: User, Id(id): Id, Body(body): Body) -> Answer {
    commands::cancel_booking(user.call(), &id, &body).await.map(Json)
}

pub async fn review_booking(user: User, Id(id): Id, Body(body): Body) -> Answer {
    commands::review_booking(user.call(), &id, &body).await.map(Json)
}

pub async fn mark_no_show(user: User, Id(id): Id, Body(body): Body) -> Answer {
    commands::mark_no_show(user.call(), &id, &body).await.map(Json)
}

/// The directory; `?owner=me` lists one's own.
pub async fn list_providers(State(gateway): App, user: User, list: List) -> Answer {
    let service = list.filter("service");
    if let Some(service) = service
        && serde_json::from_value::<Service>(service.into()).is_err()
    {
        return Err(Problem::field("/service", "is not a service we know"));
    }
    let me = &user.claims.sub;
    let owner = match list.filter("owner") {
        None => None,
        Some("me") => Some(me.as_str()),
        Some(_) => return Err(Problem::field("/owner", "can only be me")),
    };
    let views = gateway.views()?;
    let mut page =
        views.providers(service, list.filter("city"), owner, list.up(), list.limit).await?;
    page.items =
        page.items.into_iter().map(|provider| commands::public_provider(me, provider)).collect();
    Ok(Json(list.shown(page)))
}

pub async fn get_provider(user: User, Id(id): Id, headers: HeaderMap) -> Outcome<Response> {
    let provider = commands::shown_provider(&user.call(), &id).await?;
    let tag = etag(&provider);
    let known = |seen: &str| {
        let seen = seen.strip_prefix("W/").unwrap_or(seen);
        seen == "*" || tag.as_ref().is_some_and(|tag| tag == seen)
    };
    if tag.is_some() && tags(&headers, header::IF_NONE_MATCH).any(known) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        response.headers_mut().extend(tag.map(|tag| (header::ETAG, tag)));
        return Ok(response);
    }
    Ok(with_etag(provider))
}

pub async fn enroll_provider(user: User, Body(body): Body) -> Outcome<Response> {
    Ok(created("providers", commands::enroll_provider(user.call(), &body).await?))
}

/// Takes the version that the editor saw (`If-Match: "3"`), one of several, or `*` for whatever is there.
pub async fn update_provider(
    user: User,
    Id(id): Id,
    headers: HeaderMap,
    Body(body): Body,
) -> Outcome<Response> {
    let seen = seen_versions(&headers)?;
    let outcome = commands::update_provider(user.call(), &id, &body, seen).await;
    outcome.map(with_etag).map_err(|problem| {
        if problem.reason.as_deref() == Some("version_mismatch") {
            problem.status(StatusCode::PRECONDITION_FAILED.as_u16())
        } else {
            problem
        }
    })
}

/// Versions in one `If-Match`.
const MAX_VERSIONS: usize = 64;

/// What a header of entity tags lists. No tag of ours has a comma, and no part of another's looks like one of ours.
fn tags(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lists = headers.get_all(name).into_iter().filter_map(|list| list.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(str::trim)
}

fn seen_versions(headers: &HeaderMap) -> Outcome<Option<Vec<u64>>> {
    if !headers.contains_key(header::IF_MATCH) {
        return Err(Problem::bad_request("If-Match is needed: the ETag of what you edit, or *")
            .status(StatusCode::PRECONDITION_REQUIRED.as_u16()));
    }
    if tags(headers, header::IF_MATCH).any(|seen| seen == "*") {
        return Ok(None);
    }
    // Anything that is not one of our tags can match no version, and a weak one is none of them here.
    let version = |seen: &str| {
        let quoted = seen.strip_prefix('"')?.strip_suffix('"')?;
        quoted.parse().ok().filter(|version: &u64| version.to_string() == quoted)
    };
    let versions: Vec<u64> = tags(headers, header::IF_MATCH).filter_map(version).collect();
    if versions.len() > MAX_VERSIONS {
        return Err(Problem::bad_request(format!("If-Match lists more than {MAX_VERSIONS} tags")));
    }
    Ok(Some(versions))
}

pub async fn list_sessions(State(gateway): App, user: User, list: List) -> Answer {
    let page = gateway.views()?.sessions_of(&user.claims.sub, list.down(), list.limit).await?;
    Ok(Json(list.shown(page)))
}

pub async fn open_session(user: User, Body(body): Body) -> Outcome<Response> {
    let call = user.call();
    let id = commands::open_session(&call, &body, true).await?;
    Ok(created("sessions", commands::shown_session(&call, &id).await?))
}

pub async fn get_session(user: User, Id(id): Id) -> Answer {
    commands::shown_session(&user.call(), &id).await.map(Json)
}

/// As they were said; `?order=desc` starts with the last.
pub async fn list_messages(State(gateway): App, user: User, Id(id): Id, list: List) -> Answer {
    let newest_first = match list.filter("order") {
        None | Some("asc") => false,
        Some("desc") => true,
        Some(_) => return Err(Problem::field("/order", "must be asc or desc")),
    };
    commands::shown_session(&user.call(), &id).await?;
    let from = if newest_first { list.down() } else { list.up() };
    let page = gateway.views()?.messages_of(&id, newest_first, from, list.limit).await?;
    Ok(Json(list.shown(page)))
}

pub async fn send_message(user: User, Id(id): Id, Body(body): Body) -> Outcome<Response> {
    let sent = commands::send_message(user.call(), &id, &body).await?;
    Ok((StatusCode::CREATED, Json(sent)).into_response())
}
