//! Operations on playback: sessions on a person's devices.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::devices::{self, DeviceWithStatus, Remote};
use crate::contract::call::{derived_id, known_id};
use crate::contract::list::{Page, Paging};
use crate::contract::operation::{Nothing, ToolEffect};
use crate::contract::{Call, FieldError, Meta, Operation, Outcome, Problem};
use crate::kernel::clock::Timestamp;
use crate::kernel::error::{AskError, ErrorCode};
use crate::systems::devices::domain::clock::DeviceId;
use crate::systems::devices::domain::content::ContentView;
use crate::systems::devices::domain::content::Quality;
use crate::systems::devices::domain::crdt::Register;
use crate::systems::devices::domain::device::{self, Action, DeviceType, RemoteAction};
use crate::systems::devices::domain::operation::{MAX_NUMBER, is_name};
use crate::systems::devices::domain::platforms::{Choice, Wish};
use crate::systems::devices::domain::playback::{
    self, PlaybackReport, PlaybackSessionView, PlaybackSessions, SessionStart, Status,
};
use crate::systems::devices::domain::shared::{self, SyncLog};
use crate::systems::devices::settings::{ResolvedPlayback, Tiers};
use crate::systems::devices::views;

/// The longest time that ending a session waits for the device to hear of it.
const STOP_WAITS: Duration = Duration::from_secs(3);

#[derive(Debug, Deserialize, JsonSchema)]
pub struct InitiatePlayback {
    #[schemars(length(min = 1, max = 128))]
    content_id: String,
    /// A device of the caller.
    device_id: DeviceId,
    /// The platform to use if it has the content and the device supports it.
    preferred_platform: Option<String>,
    /// The quality to prefer. Default: the best that the device supports.
    quality_preference: Option<Quality>,
    /// The region (ISO 3166-1). Default: any region.
    region: Option<String>,
    /// Whether to resume at the position where the person stopped. Default: true.
    resume: Option<bool>,
    /// A session to end in exchange, where the plan allows no further one.
    replaces: Option<String>,
}

/// A playback session that has been started, with its id under a second name.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct InitiatedPlayback {
    session_id: String,
    /// Whether the device is online: an offline device is not told to play.
    device_status: device::Status,
    #[serde(flatten)]
    session: Box<PlaybackSessionView>,
}

/// Starts a session on the best platform for the device. The same command id gives the same session.
pub struct Initiate;

impl Operation for Initiate {
    const META: Meta = Meta::command(
        "playback.initiate",
        "Play a content on one of your devices, on the best platform that has it",
    )
    .post("/v1/playback/initiate")
    .creates("/v1/playback/session/")
    .tool("initiate_playback", ToolEffect::Additive);
    type Input = InitiatePlayback;
    type Answer = InitiatedPlayback;

    async fn run(call: &Call, input: InitiatePlayback) -> Outcome<InitiatedPlayback> {
        if !is_name(&input.content_id) {
            let message = "is required and has 1 to 128 visible ASCII characters";
            return Err(Problem::field("/content_id", message));
        }
        let device = devices::shown(call, &input.device_id.to_string()).await?;
        let id = call.new_id("plb");
        // The best platform depends on the moment. If the session exists already, this call is a retry.
        let session = match call.views()?.get::<PlaybackSessionView>(&id).await? {
            Some(session) => Box::new(session),
            None => start(call, &id, &input, &device).await?,
        };
        let (session_id, device_status) = (session.id.clone(), device.device.status);
        Ok(InitiatedPlayback { session_id, device_status, session })
    }
}

async fn start(
    call: &Call,
    id: &str,
    asked: &InitiatePlayback,
    device: &DeviceWithStatus,
) -> Outcome<Box<PlaybackSessionView>> {
    let wish = Wish {
        platform: asked.preferred_platform.as_deref(),
        quality: asked.quality_preference,
        region: asked.region.as_deref(),
    };
    let content_id = &asked.content_id;
    let choice = choose(call, content_id, &wish, device).await?;
    let platform = choice.platform.clone();
    let start = SessionStart {
        content_id: content_id.into(),
        device_id: device.device.id.clone(),
        choice,
        resume_position_ms: match asked.resume {
            Some(false) => None,
            _ => resume_position(call, content_id).await?,
        },
        idle_s: call.settings::<ResolvedPlayback>().idle_s,
    };
    let command = playback::Command::Start {
        session_id: id.into(),
        start,
        replaces: asked.replaces.clone(),
        max_streams: call.settings::<Tiers>().of(call.plan.as_deref()).streams,
    };
    let started = match ask(call, command).await {
        // The same command twice at once: the other one was first, and may have chosen another platform.
        Err(problem) if problem.code == ErrorCode::IdReused => {
            let there = call.views()?.get::<PlaybackSessionView>(id).await?;
            return there.map(Box::new).ok_or(problem);
        }
        started => started?.ok_or(AskError::Internal)?,
    };
    metrics::counter!("proxie_playback_initiated_total", "platform" => platform).increment(1);
    Ok(started)
}

async fn ask(call: &Call, command: playback::Command) -> Outcome<Option<Box<PlaybackSessionView>>> {
    Ok(match call.ask::<PlaybackSessions>(&call.user_id, command, call.meta()).await? {
        playback::Reply::Session(session) => Some(session),
        playback::Reply::Done => None,
    })
}

async fn choose(
    call: &Call,
    content_id: &str,
    wish: &Wish<'_>,
    device: &DeviceWithStatus,
) -> Outcome<Choice> {
    let known = call.views()?.get::<ContentView>(content_id).await?;
    let availability = known.map(|content| content.availability).unwrap_or_default();
    let on = (device.device.device_type, &device.device.capabilities);
    let platforms = &call.settings::<ResolvedPlayback>().platforms;
    platforms
        .choose(&availability, wish, on, call.now())
        .map(|mut choices| choices.swap_remove(0))
        .map_err(|why| Problem::rejected(why.reason(), why.to_string()))
}

/// The position where the person stopped, on any device. A content that was watched nearly to its end starts anew.
async fn resume_position(call: &Call, content_id: &str) -> Outcome<Option<u64>> {
    let asked = shared::Command::Explain { content_id: content_id.into() };
    let reply = call.ask::<SyncLog>(&call.user_id, asked, call.undeduplicated()).await?;
    let shared::Reply::Explained { explanation, .. } = reply else {
        return Err(AskError::Internal.into());
    };
    let Some(Register { wins, beaten }) = explanation.position else { return Ok(None) };
    let mut at = wins.value;
    // The last write may lack the duration.
    at.duration_ms = at.duration_ms.or_else(|| beaten?.value.duration_ms);
    if at.duration_ms.is_none() {
        at.duration_ms = views::duration_of(call.views()?, &call.user_id, content_id).await?;
    }
    Ok((!at.is_nearly_over()).then_some(at.position_ms))
}

/// A session of the caller, else `not_found`.
async fn shown(call: &Call, id: &str) -> Outcome<PlaybackSessionView> {
    call.own(id, "session").await
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "PlaybackSessionId")]
pub struct PlaybackSessionById {
    session_id: String,
}

pub struct Get;

impl Operation for Get {
    const META: Meta = Meta::query("playback.get", "Get a playback session")
        .get("/v1/playback/session/{session_id}");
    type Input = PlaybackSessionById;
    type Answer = PlaybackSessionView;

    async fn run(
        call: &Call,
        PlaybackSessionById { session_id }: PlaybackSessionById,
    ) -> Outcome<PlaybackSessionView> {
        shown(call, &session_id).await
    }
}

/// Lists the caller's sessions, current and past.
pub struct List;

impl Operation for List {
    const META: Meta =
        Meta::query("playback.list", "List your playback sessions, current and past, newest first")
            .get("/v1/playback/session")
            .tool("list_playback", ToolEffect::ReadOnly);
    type Input = Paging;
    type Answer = Page<PlaybackSessionView>;

    async fn run(call: &Call, paging: Paging) -> Outcome<Page<PlaybackSessionView>> {
        call.own_rows::<Self, _>(paging).await
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ControlPlayback {
    session_id: String,
    action: RemoteAction,
    /// The target position. Required for a seek.
    position_ms: Option<u64>,
    from_device_id: Option<DeviceId>,
    /// The time to live in milliseconds, after which the device must not carry it out. Default: 10,000.
    #[schemars(range(min = 1, max = 60_000))]
    ttl_ms: Option<u32>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ControlledPlayback {
    session_id: String,
    status: Status,
    /// Whether the command was delivered to the device.
    delivered: bool,
    command_id: Option<String>,
    expires_at: Option<Timestamp>,
}

/// Sends a remote command to the device of a session. `stop` ends the session even if the device cannot be reached.
pub struct Control;

impl Operation for Control {
    const META: Meta = Meta::command(
        "playback.control",
        "Send a remote command to the device of a session; `stop` ends the session",
    )
    .post("/v1/playback/control")
    .tool("control_playback", ToolEffect::Additive);
    type Input = ControlPlayback;
    type Answer = ControlledPlayback;

    async fn run(call: &Call, input: ControlPlayback) -> Outcome<ControlledPlayback> {
        let ControlPlayback { session_id, action, position_ms, from_device_id, ttl_ms } = input;
        let remote = Remote::of(action, position_ms, from_device_id, ttl_ms)?;
        let session = shown(call, &session_id).await?;
        let stops = remote.action == Action::Stop;
        if session.status == Status::Ended && !stops {
            return Err(Problem::rejection(&playback::Rejection::Ended));
        }
        let meta = if stops { call.meta().timeout(STOP_WAITS) } else { call.meta() };
        let of = Some(session.id.clone());
        let told = devices::tell(call, &session.device_id, remote, of, meta).await;
        if !stops {
            return Ok(controlled(&session, Some(told?)));
        }
        let told = match told {
            // The session ends whatever the state of the device.
            Err(problem)
                if problem.code.retryable()
                    || matches!(problem.code, ErrorCode::Rejected | ErrorCode::NotFound) =>
            {
                None
            }
            told => Some(told?),
        };
        let stop = playback::Command::Stop { session_id };
        // A command id belongs to one command; this is the second of this call.
        let mut second = call.clone();
        second.id = derived_id("stop", &[&call.user_id, &call.id]);
        let stopped = ask(&second, stop).await?;
        Ok(controlled(stopped.as_deref().unwrap_or(&session), told))
    }
}

fn controlled(
    session: &PlaybackSessionView,
    told: Option<devices::DeviceCommanded>,
) -> ControlledPlayback {
    ControlledPlayback {
        session_id: session.id.clone(),
        status: session.status,
        delivered: told.is_some(),
        expires_at: told.as_ref().map(|told| told.expires_at),
        command_id: told.map(|told| told.command_id),
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ReportPlayback {
    session_id: String,
    /// Any status but `starting`.
    status: Status,
    position_ms: Option<u64>,
    duration_ms: Option<u64>,
}

/// Reports a device's progress in its session, at each change and every few minutes.
pub struct Report;

impl Operation for Report {
    const META: Meta =
        Meta::command("playback.report", "Report the progress of a session, as its device")
            .post("/v1/playback/report");
    type Input = ReportPlayback;
    type Answer = PlaybackSessionView;

    async fn run(call: &Call, input: ReportPlayback) -> Outcome<PlaybackSessionView> {
        let ReportPlayback { session_id, status, position_ms, duration_ms } = input;
        let mut errors = Vec::new();
        for (given, at) in [(position_ms, "/position_ms"), (duration_ms, "/duration_ms")] {
            if given.is_some_and(|ms| ms > MAX_NUMBER) {
                errors.push(FieldError::new(at, "must be below 2^53"));
            }
        }
        if status == Status::Starting {
            errors.push(FieldError::new("/status", "is required: playing, paused or ended"));
        }
        if !errors.is_empty() {
            return Err(Problem::fields(errors));
        }
        known_id(&session_id, "session")?;
        let report = PlaybackReport { status, position_ms, duration_ms };
        let command = playback::Command::Report { session_id: session_id.clone(), report };
        match ask(call, command).await {
            Ok(session) => Ok(*session.ok_or(AskError::Internal)?),
            // The session has ended, or is somebody else's.
            Err(problem) => Err(shown(call, &session_id).await.err().unwrap_or(problem)),
        }
    }
}

/// A platform for which links are known.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Platform")]
pub struct PlatformView {
    id: String,
    name: String,
    /// The types of devices with a link of their own; others get the link of `web`.
    device_types: Vec<DeviceType>,
}

/// Lists the platforms for which links are known.
pub struct Platforms;

impl Operation for Platforms {
    const META: Meta =
        Meta::query("playback.platforms", "List the platforms for which links are known")
            .get("/v1/playback/platforms");
    type Input = Nothing;
    type Answer = Page<PlatformView>;

    async fn run(call: &Call, _: Nothing) -> Outcome<Page<PlatformView>> {
        let platforms = call.settings::<ResolvedPlayback>().platforms.iter();
        let shown = platforms.map(|(id, platform)| PlatformView {
            id: id.into(),
            name: platform.name.clone(),
            device_types: platform.links.keys().copied().collect(),
        });
        Ok(Page::whole(shown.collect()))
    }
}
