//! A person's devices: the commands behind `/v1/devices` and `/v1/ws`.

use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::cluster::Meta;
use crate::contract::problem::{FieldError, Outcome, Problem};
use crate::gateway::bodies::{parse, text};
use crate::gateway::commands::{Call, derived_id};
use crate::gateway::http::schemas::devices as schema;
use crate::gateway::sync::shown_standing;
use crate::kernel::error::{AskError, ErrorCode};
use crate::kernel::text::{must_not_contain, wrong_in_name};
use crate::systems::devices::domain::clock::DeviceId;
use crate::systems::devices::domain::device::{
    self, Action, Capabilities, Device, DeviceType, Profile,
};
use crate::systems::devices::domain::shared::{self, Shared, Standing};

/// What a remote command is worth, unless it says so itself.
const COMMAND_MS: u32 = 10_000;
const MAX_COMMAND_MS: u32 = 60_000;
const MAX_PLATFORMS: usize = 64;

#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct RegisterDevice {
    /// `dev_` and a ULID, which the device mints itself before it was ever online. Without: a new one.
    pub device_id: Option<String>,
    #[serde(alias = "device_name")]
    #[schema(value_type = String, max_length = 64)]
    pub name: Option<String>,
    #[schema(value_type = schema::DeviceType)]
    pub device_type: Option<DeviceType>,
    #[schema(value_type = Option<schema::Capabilities>)]
    pub capabilities: Option<Capabilities>,
    /// For waking the device up. Never shown.
    pub push_token: Option<String>,
}

fn known(id: &str) -> Outcome<DeviceId> {
    id.parse().map_err(|_| Problem::not_found("device"))
}

fn profile(body: RegisterDevice) -> Outcome<Profile> {
    let mut errors = Vec::new();
    let name = body.name.unwrap_or_default();
    if name.trim().is_empty() || name.chars().count() > 64 {
        errors.push(FieldError::new("/name", "is required and has 1 to 64 characters"));
    } else if let Some(c) = wrong_in_name(&name) {
        errors.push(FieldError::new("/name", must_not_contain(c)));
    }
    let capabilities = body.capabilities.unwrap_or_default();
    let platforms = &capabilities.supported_platforms;
    if platforms.len() > MAX_PLATFORMS || platforms.iter().any(|p| p.is_empty() || p.len() > 64) {
        let message = "must be at most 64 names of 1 to 64 bytes";
        errors.push(FieldError::new("/capabilities/supported_platforms", message));
    }
    if body.push_token.as_ref().is_some_and(|token| token.is_empty() || token.len() > 512) {
        errors.push(FieldError::new("/push_token", "has 1 to 512 bytes"));
    }
    let Some(device_type) = body.device_type else {
        errors.push(FieldError::new("/device_type", "is required"));
        return Err(Problem::fields(errors));
    };
    if !errors.is_empty() {
        return Err(Problem::fields(errors));
    }
    Ok(Profile { name, device_type, capabilities, push_token: body.push_token })
}

/// Registers a device, or changes what is known about it.
pub async fn register(call: &Call<'_>, body: &Value) -> Outcome {
    call.check_user(body)?;
    let parsed: RegisterDevice = parse(body)?;
    let id = match &parsed.device_id {
        Some(id) => id.parse().map_err(|error| Problem::field("/device_id", format!("{error}")))?,
        None => known(&derived_id("dev", &[call.user_id, call.id]))?,
    };
    let profile = profile(parsed)?;
    let asked = shared::Command::Devices;
    let reply = call.ask::<Shared>(call.user_id, asked, call.undeduplicated()).await?;
    let shared::Reply::Devices(devices) = reply else { return Err(AskError::Internal.into()) };
    let max = call.tier.devices;
    let (count, known) = (devices.len(), devices.into_iter().find(|(known, _)| *known == id));
    if count >= max && known.is_none() {
        return Err(Problem::rejection(&shared::Rejection::TooManyDevices { max }));
    }
    // Both take it twice without harm, so whoever was cut off in between does it again; and it has no place before it is
    // known, so nobody has to free one.
    let command = device::Command::Register(profile);
    let registered = call.ask::<Device>(&id.to_string(), command, call.undeduplicated()).await;
    let device::Reply::Device(shown) = registered.map_err(|problem| match problem.code {
        // Another person's.
        ErrorCode::NotFound => {
            Problem::new(ErrorCode::Conflict, "this device id is taken: mint another")
        }
        _ => problem,
    })?
    else {
        return Err(AskError::Internal.into());
    };
    if let Some((_, standing)) = known {
        return Ok(with_standing(call, shown, &standing));
    }
    let join = shared::Command::Join { device: id, max_devices: max };
    match call.ask::<Shared>(call.user_id, join, call.undeduplicated()).await? {
        shared::Reply::Joined(standing) => Ok(with_standing(call, shown, &standing)),
        _ => Err(AskError::Internal.into()),
    }
}

/// A device of the caller, else not found.
pub async fn shown(call: &Call<'_>, id: &str) -> Outcome {
    let id = known(id)?;
    // Asked of the person first, so that ids that never were do not wake an entity each.
    let asked = shared::Command::Device { device: id };
    let missing = |problem: Problem| match problem.reason.as_deref() {
        Some("unknown_device" | "device_removed") => Problem::not_found("device"),
        _ => problem,
    };
    let standing = call.ask::<Shared>(call.user_id, asked, call.undeduplicated()).await;
    let shared::Reply::Joined(standing) = standing.map_err(missing)? else {
        return Err(AskError::Internal.into());
    };
    let key = id.to_string();
    let get = call.ask::<Device>(&key, device::Command::Get, call.undeduplicated());
    match get.await.map_err(missing)? {
        device::Reply::Device(shown) => Ok(with_standing(call, shown, &standing)),
        _ => Err(AskError::Internal.into()),
    }
}

fn with_standing(call: &Call<'_>, mut device: Value, standing: &Standing) -> Value {
    device["sync"] = shown_standing(call, standing);
    device
}

pub async fn list(call: &Call<'_>) -> Outcome {
    let asked = shared::Command::Devices;
    let reply = call.ask::<Shared>(call.user_id, asked, call.undeduplicated()).await?;
    let shared::Reply::Devices(devices) = reply else { return Err(AskError::Internal.into()) };
    let asking = devices.into_iter().map(async |(id, standing)| {
        let get = device::Command::Get;
        match call.ask::<Device>(&id.to_string(), get, call.undeduplicated()).await? {
            device::Reply::Device(shown) => Ok(with_standing(call, shown, &standing)),
            _ => Err(Problem::from(AskError::Internal)),
        }
    });
    let shown: Vec<Outcome> = join_all(asking).await;
    // One that is being registered, or removed, is not there.
    let there = shown.into_iter().filter(|shown| match shown {
        Err(problem) if problem.code == ErrorCode::NotFound => false,
        Err(problem) => problem.reason.as_deref() != Some("device_removed"),
        Ok(_) => true,
    });
    let items = there.collect::<Outcome<Vec<Value>>>()?;
    Ok(json!({"items": items, "next_cursor": null}))
}

pub async fn remove(call: &Call<'_>, id: &str) -> Outcome<()> {
    let device = known(id)?;
    // Each step may have been taken by an earlier attempt.
    let removed = |outcome: Outcome<()>| match outcome {
        Err(problem) if problem.reason.as_deref() == Some("device_removed") => Ok(()),
        outcome => outcome,
    };
    let asked = shared::Command::Device { device };
    let standing = call.ask::<Shared>(call.user_id, asked, call.undeduplicated()).await;
    removed(standing.map(drop)).map_err(|problem| match problem.reason.as_deref() {
        Some("unknown_device") => Problem::not_found("device"),
        _ => problem,
    })?;
    let remove = call.ask::<Device>(id, device::Command::Remove, call.undeduplicated()).await;
    removed(remove.map(drop))?;
    let leave = shared::Command::Leave { device };
    call.ask::<Shared>(call.user_id, leave, call.undeduplicated()).await?;
    Ok(())
}

/// What one device tells another: `{action, position_ms?, from_device_id?, ttl_ms?}`.
#[derive(Debug)]
pub struct Remote {
    pub action: Action,
    from: Option<String>,
    ttl_ms: u32,
}

impl Remote {
    pub fn of(body: &Value) -> Outcome<Self> {
        text(body, "action")?;
        let action = Action::deserialize(body).map_err(|error| {
            let seek = error.to_string().contains("position_ms");
            Problem::field(if seek { "/position_ms" } else { "/action" }, error.to_string())
        })?;
        let ttl_ms = match body.get("ttl_ms") {
            None | Some(Value::Null) => COMMAND_MS,
            Some(ttl) => ttl
                .as_u64()
                .and_then(|ttl| u32::try_from(ttl).ok())
                .filter(|ttl| (1..=MAX_COMMAND_MS).contains(ttl))
                .ok_or_else(|| Problem::field("/ttl_ms", "must be 1 to 60000"))?,
        };
        let from = match body.get("from_device_id") {
            None | Some(Value::Null) => None,
            Some(_) => {
                let wrong = |error| Problem::field("/from_device_id", format!("{error}"));
                Some(text(body, "from_device_id")?.parse::<DeviceId>().map_err(wrong)?.to_string())
            }
        };
        Ok(Self { action, from, ttl_ms })
    }
}

pub async fn control(call: &Call<'_>, id: &str, body: &Value) -> Outcome {
    call.check_user(body)?;
    known(id)?;
    let remote = Remote::of(body)?;
    shown(call, id).await?;
    tell(call, id, remote, None, call.meta()).await
}

/// Tells a device that there is; with a session only if it plays that.
pub async fn tell(
    call: &Call<'_>,
    id: &str,
    Remote { action, from, ttl_ms }: Remote,
    session_id: Option<String>,
    meta: Meta,
) -> Outcome {
    let command = device::Command::Control { action, from, session_id, ttl_ms };
    match call.ask::<Device>(id, command, meta).await? {
        device::Reply::Controlled { command_id, expires_at } => {
            Ok(json!({"command_id": command_id, "expires_at": expires_at}))
        }
        _ => Err(AskError::Internal.into()),
    }
}

/// A device is there for as long as its connection answers pings.
fn lease_s(call: &Call<'_>) -> i64 {
    let limits = &call.gateway.options.websocket;
    i64::try_from((3 * limits.ping_ms + limits.pong_timeout_ms).div_ceil(1_000)).unwrap_or(90)
}

pub async fn connect(call: &Call<'_>, device: DeviceId, connection: &str) -> Outcome<()> {
    let (connection, lease_s) = (connection.into(), lease_s(call));
    let command = device::Command::Connect { connection, lease_s };
    call.ask::<Device>(&device.to_string(), command, call.undeduplicated()).await.map(drop)
}

pub async fn renew(call: &Call<'_>, device: DeviceId, connection: &str) -> Outcome<()> {
    let (connection, lease_s) = (connection.into(), lease_s(call));
    let command = device::Command::Renew { connection, lease_s };
    call.ask::<Device>(&device.to_string(), command, call.undeduplicated()).await.map(drop)
}

pub async fn disconnect(call: &Call<'_>, device: DeviceId, connection: &str) -> Outcome<()> {
    let command = device::Command::Disconnect { connection: connection.into() };
    call.ask::<Device>(&device.to_string(), command, call.undeduplicated()).await.map(drop)
}
