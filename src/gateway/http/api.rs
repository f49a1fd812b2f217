//! `/v1`: thin. Each handler is a command, or a read.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::extract::{Body, Id, User};
use super::list::{List, shown};
use crate::contract::problem::{Outcome, Problem};
use crate::gateway::Gateway;
use crate::gateway::commands;
use crate::gateway::{devices, playback, sync};
use crate::systems::marketplace::domain::service::Service;
use crate::systems::marketplace::views;

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
    let page =
        views::requests_of(gateway.views()?, &user.claims.sub, list.down(), list.limit).await?;
    Ok(Json(shown(page)))
}

pub async fn get_request(user: User, Id(id): Id) -> Answer {
    commands::shown_request(&user.call(), &id).await.map(Json)
}

pub async fn cancel_request(user: User, Id(id): Id, Body(body): Body) -> Answer {
    commands::cancel_request(user.call(), &id, &body).await.map(Json)
}

pub async fn list_offers(State(gateway): App, user: User, Id(id): Id, list: List) -> Answer {
    commands::shown_request(&user.call(), &id).await?;
    Ok(Json(shown(views::offers_of(gateway.views()?, &id, list.up(), list.limit).await?)))
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
    let page =
        views::bookings_of(gateway.views()?, &user.claims.sub, list.down(), list.limit).await?;
    Ok(Json(shown(page)))
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
    let (city, up) = (list.filter("city"), list.up());
    let mut page = views::providers(gateway.views()?, service, city, owner, up, list.limit).await?;
    page.items = page.items.into_iter().map(|provider| provider.for_user(me)).collect();
    Ok(Json(shown(page)))
}

pub async fn get_provider(user: User, Id(id): Id, headers: HeaderMap) -> Outcome<Response> {
    let provider = commands::shown_provider(&user.call(), &id).await?;
    let tag = etag(&provider);
    if tag.is_some() && headers.get(header::IF_NONE_MATCH) == tag.as_ref() {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        response.headers_mut().extend(tag.map(|tag| (header::ETAG, tag)));
        return Ok(response);
    }
    Ok(with_etag(provider))
}

pub async fn enroll_provider(user: User, Body(body): Body) -> Outcome<Response> {
    Ok(created("providers", commands::enroll_provider(user.call(), &body).await?))
}

/// Takes the version that the editor saw (`If-Match: "3"`), or `*` for whatever is there.
pub async fn update_provider(
    user: User,
    Id(id): Id,
    headers: HeaderMap,
    Body(body): Body,
) -> Outcome<Response> {
    let expected = expected_version(&headers)?;
    let outcome = commands::update_provider(user.call(), &id, &body, expected).await;
    outcome.map(with_etag).map_err(|problem| {
        if problem.reason.as_deref() == Some("version_mismatch") {
            problem.status(StatusCode::PRECONDITION_FAILED.as_u16())
        } else {
            problem
        }
    })
}

fn expected_version(headers: &HeaderMap) -> Outcome<Option<u64>> {
    let Some(given) = headers.get(header::IF_MATCH) else {
        return Err(Problem::bad_request("If-Match is needed: the ETag of what you edit, or *")
            .status(StatusCode::PRECONDITION_REQUIRED.as_u16()));
    };
    let given = given.to_str().unwrap_or_default().trim();
    if given == "*" {
        return Ok(None);
    }
    // Anything that is not one of our tags can match no version; version 0 does not exist.
    let quoted = given.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    Ok(Some(quoted.and_then(|version| version.parse().ok()).unwrap_or(0)))
}

pub async fn list_sessions(State(gateway): App, user: User, list: List) -> Answer {
    let page =
        views::sessions_of(gateway.views()?, &user.claims.sub, list.down(), list.limit).await?;
    Ok(Json(shown(page)))
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
    Ok(Json(shown(
        views::messages_of(gateway.views()?, &id, newest_first, from, list.limit).await?,
    )))
}

pub async fn send_message(user: User, Id(id): Id, Body(body): Body) -> Outcome<Response> {
    let sent = commands::send_message(user.call(), &id, &body).await?;
    Ok((StatusCode::CREATED, Json(sent)).into_response())
}

/// `me`, or one's own id.
fn check_own(user: &User, id: &str) -> Outcome<()> {
    if id == "me" || id == user.claims.sub { Ok(()) } else { Err(Problem::not_found("user")) }
}

pub async fn sync_state(user: User, Id(id): Id) -> Outcome<Json<sync::State>> {
    check_own(&user, &id)?;
    sync::state(&user.call()).await.map(Json)
}

pub async fn sync_merge(user: User, Body(body): Body) -> Answer {
    sync::merge(&user.call(), &body).await.map(Json)
}

pub async fn sync_explain(user: User, Id(id): Id) -> Answer {
    sync::explain(&user.call(), &id).await.map(Json)
}

pub async fn list_devices(user: User) -> Answer {
    devices::list(&user.call()).await.map(Json)
}

pub async fn list_devices_of(user: User, Id(id): Id) -> Answer {
    check_own(&user, &id)?;
    devices::list(&user.call()).await.map(Json)
}

pub async fn register_device(user: User, Body(body): Body) -> Outcome<Response> {
    Ok(created("devices", devices::register(&user.call(), &body).await?))
}

pub async fn get_device(user: User, Id(id): Id) -> Answer {
    devices::shown(&user.call(), &id).await.map(Json)
}

pub async fn remove_device(user: User, Id(id): Id) -> Outcome<StatusCode> {
    devices::remove(&user.call(), &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn command_device(user: User, Id(id): Id, Body(body): Body) -> Answer {
    devices::control(&user.call(), &id, &body).await.map(Json)
}

pub async fn initiate_playback(user: User, Body(body): Body) -> Outcome<Response> {
    Ok(created("playback/session", playback::initiate(&user.call(), &body).await?))
}

pub async fn control_playback(user: User, Body(body): Body) -> Answer {
    playback::control(&user.call(), &body).await.map(Json)
}

pub async fn report_playback(user: User, Body(body): Body) -> Answer {
    playback::report(&user.call(), &body).await.map(Json)
}

pub async fn list_playback_sessions(State(gateway): App, user: User, list: List) -> Answer {
    let views = gateway.views()?;
    let page = views.playback_sessions_of(&user.claims.sub, list.down(), list.limit).await?;
    Ok(Json(shown(page)))
}

pub async fn get_playback_session(user: User, Id(id): Id) -> Answer {
    playback::shown(&user.call(), &id).await.map(Json)
}

pub async fn list_platforms(user: User) -> Answer {
    Ok(Json(playback::platforms(&user.call())))
}

pub async fn get_availability(user: User, Id(id): Id) -> Answer {
    playback::content(&user.call(), &id).await.map(Json)
}

pub async fn set_availability(user: User, Id(id): Id, Body(body): Body) -> Answer {
    playback::set_availability(&user.call(), &id, &body).await.map(Json)
}
