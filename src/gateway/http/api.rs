//! `/v1`: thin. Each handler is a command, or a read.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::extract::{Body, Id, User};
use super::list::{List, shown};
use crate::contract::problem::{Outcome, Problem};
use crate::gateway::Gateway;
use crate::gateway::{devices, playback, sync};

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
