//! Operations on a person's devices: registration, lists, removal and remote control.

use futures_util::FutureExt;
use futures_util::future::join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sync::{SyncStatusView, shown_standing};
use crate::cluster::CommandMeta;
use crate::contract::call::derived_id;
use crate::contract::connection::{ConnectionHold, OnConnection};
use crate::contract::list::Page;
use crate::contract::operation::{Done, Nothing, ToolEffect};
use crate::contract::{Call, FieldError, Meta, Operation, Outcome, Problem};
use crate::kernel::clock::Timestamp;
use crate::kernel::error::{AskError, ErrorCode};
use crate::kernel::private::Private;
use crate::kernel::text::{must_not_contain, wrong_in_name};
use crate::systems::devices::domain::clock::DeviceId;
use crate::systems::devices::domain::device::{
    self, Action, Capabilities, Device, DeviceProfile, DeviceType, DeviceView, RemoteAction,
};
use crate::systems::devices::domain::shared::{self, SyncLog};
use crate::systems::devices::settings::Tiers;

/// The time to live of a remote command that does not set one.
const COMMAND_MS: u32 = 10_000;
const MAX_COMMAND_MS: u32 = 60_000;
const MAX_PLATFORMS: usize = 64;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct RegisterDevice {
    /// The device's id, `dev_` and a ULID, which the device may mint itself before it is ever online. Default: a new id.
    pub device_id: Option<DeviceId>,
    #[serde(alias = "device_name")]
    #[schemars(with = "String", length(min = 1, max = 64))]
    pub name: Option<String>,
    pub device_type: DeviceType,
    pub capabilities: Option<Capabilities>,
    /// The token for push notifications that wake the device. Never shown.
    pub push_token: Option<String>,
}

/// A device, and its state of synchronisation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Device")]
pub struct DeviceWithStatus {
    #[serde(flatten)]
    pub device: Box<DeviceView>,
    pub sync: SyncStatusView,
}

fn with_standing(
    call: &Call,
    device: Box<DeviceView>,
    standing: &shared::SyncStatus,
) -> DeviceWithStatus {
    DeviceWithStatus { device, sync: shown_standing(call, standing) }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "DeviceId")]
pub struct DeviceById {
    device_id: String,
}

fn known(id: &str) -> Outcome<DeviceId> {
    id.parse().map_err(|_| Problem::not_found("device"))
}

fn profile(owner_id: &str, input: RegisterDevice) -> Outcome<DeviceProfile> {
    let mut errors = Vec::new();
    let name = input.name.unwrap_or_default();
    if name.trim().is_empty() || name.chars().count() > 64 {
        errors.push(FieldError::new("/name", "is required and has 1 to 64 characters"));
    } else if let Some(c) = wrong_in_name(&name) {
        errors.push(FieldError::new("/name", must_not_contain(c)));
    }
    let capabilities = input.capabilities.unwrap_or_default();
    let platforms = &capabilities.supported_platforms;
    if platforms.len() > MAX_PLATFORMS || platforms.iter().any(|p| p.is_empty() || p.len() > 64) {
        let message = "must be at most 64 names of 1 to 64 bytes";
        errors.push(FieldError::new("/capabilities/supported_platforms", message));
    }
    if input.push_token.as_ref().is_some_and(|token| token.is_empty() || token.len() > 512) {
        errors.push(FieldError::new("/push_token", "has 1 to 512 bytes"));
    }
    if !errors.is_empty() {
        return Err(Problem::fields(errors));
    }
    let device_type = input.device_type;
    let push_token = input.push_token.map(|token| Private::new(owner_id, token));
    Ok(DeviceProfile { name, device_type, capabilities, push_token })
}

/// Registers a device, or updates its registration.
pub struct Register;

impl Operation for Register {
    const META: Meta =
        Meta::command("device.register", "Register a device, or update its registration")
            .post("/v1/devices/register")
            .creates("/v1/devices/");
    type Input = RegisterDevice;
    type Answer = DeviceWithStatus;

    async fn run(call: &Call, input: RegisterDevice) -> Outcome<DeviceWithStatus> {
        let id = match input.device_id {
            Some(id) => id,
            None => known(&derived_id("dev", &[&call.user_id, &call.id]))?,
        };
        let profile = profile(&call.user_id, input)?;
        let devices = devices_of(call).await?;
        let max = call.settings::<Tiers>().of(call.plan.as_deref()).devices;
        let (count, known) = (devices.len(), devices.into_iter().find(|(known, _)| *known == id));
        if count >= max && known.is_none() {
            return Err(Problem::rejection(&shared::Rejection::TooManyDevices { max }));
        }
        // Both steps can be repeated without harm, so a client that was cut off in between repeats them. The device gets no
        // place in the log before it is registered, so no place has to be freed.
        let command = device::Command::Register(profile);
        let registered = call.ask::<Device>(&id.to_string(), command, call.undeduplicated()).await;
        let device::Reply::Device(device) = registered.map_err(|problem| match problem.code {
            // The device belongs to another person.
            ErrorCode::NotFound => {
                Problem::new(ErrorCode::Conflict, "this device id is taken: mint another")
            }
            _ => problem,
        })?
        else {
            return Err(AskError::Internal.into());
        };
        if let Some((_, standing)) = known {
            return Ok(with_standing(call, device, &standing));
        }
        let join = shared::Command::Join { device: id, max_devices: max };
        match call.ask::<SyncLog>(&call.user_id, join, call.undeduplicated()).await? {
            shared::Reply::Joined(standing) => Ok(with_standing(call, device, &standing)),
            _ => Err(AskError::Internal.into()),
        }
    }
}

async fn devices_of(call: &Call) -> Outcome<Vec<(DeviceId, shared::SyncStatus)>> {
    let asked = shared::Command::Devices;
    match call.ask::<SyncLog>(&call.user_id, asked, call.undeduplicated()).await? {
        shared::Reply::Devices(devices) => Ok(devices),
        _ => Err(AskError::Internal.into()),
    }
}

/// A device of the caller, else `not_found`.
pub async fn shown(call: &Call, id: &str) -> Outcome<DeviceWithStatus> {
    let id = known(id)?;
    // The person's log is asked first, so that unknown ids do not each load an entity.
    let asked = shared::Command::Device { device: id };
    let missing = |problem: Problem| match problem.reason.as_deref() {
        Some("unknown_device" | "device_removed") => Problem::not_found("device"),
        _ => problem,
    };
    let standing = call.ask::<SyncLog>(&call.user_id, asked, call.undeduplicated()).await;
    let shared::Reply::Joined(standing) = standing.map_err(missing)? else {
        return Err(AskError::Internal.into());
    };
    let key = id.to_string();
    let get = call.ask::<Device>(&key, device::Command::Get, call.undeduplicated());
    match get.await.map_err(missing)? {
        device::Reply::Device(device) => Ok(with_standing(call, device, &standing)),
        _ => Err(AskError::Internal.into()),
    }
}

pub struct Get;

impl Operation for Get {
    const META: Meta = Meta::query("device.get", "Get a device")
        .get("/v1/devices/{device_id}")
        .tool("get_device", ToolEffect::ReadOnly)
        .resource("proxie://devices/{device_id}");
    type Input = DeviceById;
    type Answer = DeviceWithStatus;

    async fn run(call: &Call, DeviceById { device_id }: DeviceById) -> Outcome<DeviceWithStatus> {
        shown(call, &device_id).await
    }
}

/// The caller's devices.
pub struct List;

impl Operation for List {
    const META: Meta =
        Meta::query("device.list", "List your devices; the user's id is `me`, or your own")
            .get("/v1/devices")
            .get("/v1/sync/devices")
            .get("/v1/sync/devices/{user_id}")
            .tool("list_devices", ToolEffect::ReadOnly)
            .resource("proxie://devices");
    type Input = Nothing;
    type Answer = Page<DeviceWithStatus>;

    async fn run(call: &Call, _: Nothing) -> Outcome<Page<DeviceWithStatus>> {
        let asking = devices_of(call).await?.into_iter().map(async |(id, standing)| {
            let get = device::Command::Get;
            match call.ask::<Device>(&id.to_string(), get, call.undeduplicated()).await? {
                device::Reply::Device(device) => Ok(with_standing(call, device, &standing)),
                _ => Err(Problem::from(AskError::Internal)),
            }
        });
        let shown: Vec<Outcome<DeviceWithStatus>> = join_all(asking).await;
        // A device whose registration or removal is under way is left out.
        let there = shown.into_iter().filter(|shown| match shown {
            Err(problem) if problem.code == ErrorCode::NotFound => false,
            Err(problem) => problem.reason.as_deref() != Some("device_removed"),
            Ok(_) => true,
        });
        Ok(Page::whole(there.collect::<Outcome<_>>()?))
    }
}

/// Removes a device for good: its id cannot be used again.
pub struct Remove;

impl Operation for Remove {
    const META: Meta =
        Meta::command("device.remove", "Remove a device for good: its id cannot be used again")
            .delete("/v1/devices/{device_id}");
    type Input = DeviceById;
    type Answer = Done;

    async fn run(call: &Call, DeviceById { device_id }: DeviceById) -> Outcome<Done> {
        let device = known(&device_id)?;
        // An earlier attempt may have done any of the steps.
        let removed = |outcome: Outcome<()>| match outcome {
            Err(problem) if problem.reason.as_deref() == Some("device_removed") => Ok(()),
            outcome => outcome,
        };
        let asked = shared::Command::Device { device };
        let standing = call.ask::<SyncLog>(&call.user_id, asked, call.undeduplicated()).await;
        removed(standing.map(drop)).map_err(|problem| match problem.reason.as_deref() {
            Some("unknown_device") => Problem::not_found("device"),
            _ => problem,
        })?;
        let remove = device::Command::Remove;
        let remove = call.ask::<Device>(&device_id, remove, call.undeduplicated()).await;
        removed(remove.map(drop))?;
        let leave = shared::Command::Leave { device };
        call.ask::<SyncLog>(&call.user_id, leave, call.undeduplicated()).await?;
        Ok(Done {})
    }
}

/// A remote command from one device to another.
#[derive(Debug)]
pub struct Remote {
    pub action: Action,
    from: Option<String>,
    ttl_ms: u32,
}

impl Remote {
    pub fn of(
        action: RemoteAction,
        position_ms: Option<u64>,
        from: Option<DeviceId>,
        ttl_ms: Option<u32>,
    ) -> Outcome<Self> {
        let ttl_ms = ttl_ms.unwrap_or(COMMAND_MS);
        if !(1..=MAX_COMMAND_MS).contains(&ttl_ms) {
            return Err(Problem::field("/ttl_ms", "must be 1 to 60000"));
        }
        let wrong = || Problem::field("/position_ms", "is required for a seek");
        let action = action.at(position_ms).ok_or_else(wrong)?;
        Ok(Self { action, from: from.map(|id| id.to_string()), ttl_ms })
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct DeviceCommand {
    device_id: String,
    action: RemoteAction,
    /// The target position. Required for a seek.
    position_ms: Option<u64>,
    from_device_id: Option<DeviceId>,
    /// The time to live in milliseconds, after which the device must not carry it out. Default: 10,000.
    #[schemars(range(min = 1, max = 60_000))]
    ttl_ms: Option<u32>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct DeviceCommanded {
    pub command_id: String,
    pub expires_at: Timestamp,
}

/// Sends a remote command to an online device.
pub struct Control;

impl Operation for Control {
    const META: Meta = Meta::command("device.command", "Send a remote command to an online device")
        .post("/v1/devices/{device_id}/commands")
        .tool("control_device", ToolEffect::Additive);
    type Input = DeviceCommand;
    type Answer = DeviceCommanded;

    async fn run(call: &Call, input: DeviceCommand) -> Outcome<DeviceCommanded> {
        let DeviceCommand { device_id, action, position_ms, from_device_id, ttl_ms } = input;
        known(&device_id)?;
        let remote = Remote::of(action, position_ms, from_device_id, ttl_ms)?;
        shown(call, &device_id).await?;
        tell(call, &device_id, remote, None, call.meta()).await
    }
}

/// Sends a remote command to a device; if a session is given, only if the device plays it.
pub async fn tell(
    call: &Call,
    id: &str,
    Remote { action, from, ttl_ms }: Remote,
    session_id: Option<String>,
    meta: CommandMeta,
) -> Outcome<DeviceCommanded> {
    let command = device::Command::Control { action, from, session_id, ttl_ms };
    match call.ask::<Device>(id, command, meta).await? {
        device::Reply::Controlled { command_id, expires_at } => {
            Ok(DeviceCommanded { command_id, expires_at })
        }
        _ => Err(AskError::Internal.into()),
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ConnectDevice {
    device_id: DeviceId,
}

/// Binds the calling connection to a device until the connection ends. It speaks for one device at a time.
pub struct Connect;

impl Operation for Connect {
    const META: Meta = Meta::command(
        "device.connect",
        "Bind this connection to a device until it ends; a connection speaks for one device at a time",
    )
    .on_connection(OnConnection::Holds(&ConnectionHold {
        field: "device_id",
        is_held: |_| true,
        lasts: None,
        renew: Some(|call, device| {
            async move {
                let (connection, lease_s) = lease(&call)?;
                tell_device(&call, &device, device::Command::Renew { connection, lease_s }).await
            }
            .boxed()
        }),
        // If this is lost, the device's lease expires by itself.
        end: |call, device| {
            async move {
                let (connection, _) = lease(&call)?;
                tell_device(&call, &device, device::Command::Disconnect { connection }).await
            }
            .boxed()
        },
    }));
    type Input = ConnectDevice;
    type Answer = Done;

    async fn run(call: &Call, ConnectDevice { device_id }: ConnectDevice) -> Outcome<Done> {
        let (connection, lease_s) = lease(call)?;
        let connect = device::Command::Connect { connection, lease_s };
        tell_device(call, &device_id.to_string(), connect).await?;
        Ok(Done {})
    }
}

/// The connection that speaks for a device, and the time for which that holds without a renewal.
fn lease(call: &Call) -> Outcome<(String, i64)> {
    let missing = || {
        Problem::rejected("connection_required", "only a lasting connection can speak for a device")
    };
    let connection = call.connection.as_deref().ok_or_else(missing)?;
    Ok((connection.into(), call.services.connection_lease_s))
}

async fn tell_device(call: &Call, device: &str, command: device::Command) -> Outcome<()> {
    call.ask::<Device>(device, command, call.undeduplicated()).await.map(drop)
}
