//! What a person watches: sessions on their devices.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::devices::{self, DeviceWithStatus, Remote};
use crate::contract::call::{derived_id, known_id};
use crate::contract::list::{Page, Paging};
use crate::contract::operation::Nothing;
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

/// How long the end of a session waits for the device to be told.
const STOP_WAITS: Duration = Duration::from_secs(3);

#[derive(Debug, Deserialize, JsonSchema)]
pub struct InitiatePlayback {
    #[schemars(length(min = 1, max = 128))]
    content_id: String,
    /// One of the caller's.
    device_id: DeviceId,
    /// Taken if it has the content and the device can do it.
    preferred_platform: Option<String>,
    /// Without: as good as the device.
    quality_preference: Option<Quality>,
    /// ISO 3166-1; without: in whatever region it is.
    region: Option<String>,
    /// From where the person was, which is the default.
    resume: Option<bool>,
    /// A session to end instead, where the plan allows no other.
    replaces: Option<String>,
}

/// A session, and what the seed calls its id.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct InitiatedPlayback {
    session_id: String,
    /// An offline device is not told.
    device_status: device::Status,
    #[serde(flatten)]
    session: Box<PlaybackSessionView>,
}

/// Plays something on the best platform that has it for the device. The same session under the same command id.
pub struct Initiate;

impl Operation for Initiate {
    const META: Meta = Meta::command(
        "playback.initiate",
        "Play something on one of your devices, on the best platform that has it",
    )
    .post("/v1/playback/initiate")
    .creates("/v1/playback/session/");
    type Input = InitiatePlayback;
    type Answer = InitiatedPlayback;

    async fn run(call: &Call, input: InitiatePlayback) -> Outcome<InitiatedPlayback> {
        if !is_name(&input.content_id) {
            let message = "is required and has 1 to 128 visible ASCII characters";
            return Err(Problem::field("/content_id", message));
        }
        let device = devices::shown(call, &input.device_id.to_string()).await?;
        let id = call.new_id("plb");
        // What is best depends on the moment. Where the session exists already this is a retry.
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
        // The same at once: the other one was first, and may have chosen otherwise.
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

/// Where the person was, on any device. Who has seen nearly all of it begins anew.
async fn resume_position(call: &Call, content_id: &str) -> Outcome<Option<u64>> {
    let asked = shared::Command::Explain { content_id: content_id.into() };
    let reply = call.ask::<SyncLog>(&call.user_id, asked, call.undeduplicated()).await?;
    let shared::Reply::Explained { explanation, .. } = reply else {
        return Err(AskError::Internal.into());
    };
    let Some(Register { wins, beaten }) = explanation.position else { return Ok(None) };
    let mut at = wins.value;
    // Who wrote last may not have said how long it is.
    at.duration_ms = at.duration_ms.or_else(|| beaten?.value.duration_ms);
    if at.duration_ms.is_none() {
        at.duration_ms = views::duration_of(call.views()?, &call.user_id, content_id).await?;
    }
    Ok((!at.is_nearly_over()).then_some(at.position_ms))
}

/// A session of the caller, else not found.
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
    const META: Meta =
        Meta::query("playback.get", "A playback session").get("/v1/playback/session/{session_id}");
    type Input = PlaybackSessionById;
    type Answer = PlaybackSessionView;

    async fn run(
        call: &Call,
        PlaybackSessionById { session_id }: PlaybackSessionById,
    ) -> Outcome<PlaybackSessionView> {
        shown(call, &session_id).await
    }
}

/// What the caller watches and has watched.
pub struct List;

impl Operation for List {
    const META: Meta =
        Meta::query("playback.list", "What you watch and have watched, newest first")
            .get("/v1/playback/session");
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
    /// Of a seek.
    position_ms: Option<u64>,
    from_device_id: Option<DeviceId>,
    /// After this the device must not carry it out any more; 10,000 without.
    #[schemars(range(min = 1, max = 60_000))]
    ttl_ms: Option<u32>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ControlledPlayback {
    session_id: String,
    status: Status,
    /// Whether the device was told.
    delivered: bool,
    command_id: Option<String>,
    expires_at: Option<Timestamp>,
}

/// Tells the device of a session what to do. `stop` ends the session, also without the device.
pub struct Control;

impl Operation for Control {
    const META: Meta = Meta::command(
        "playback.control",
        "Tell the device of a session what to do; stop ends the session",
    )
    .post("/v1/playback/control");
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
            // Whatever is the matter with the device, it is over.
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
    /// Not `starting`.
    status: Status,
    position_ms: Option<u64>,
    duration_ms: Option<u64>,
}

/// What a device says about its session, when it changes and every few minutes.
pub struct Report;

impl Operation for Report {
    const META: Meta = Meta::command("playback.report", "What a device says about its session")
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
            // Over, or somebody else's.
            Err(problem) => Err(shown(call, &session_id).await.err().unwrap_or(problem)),
        }
    }
}

/// A platform that links are known for.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Platform")]
pub struct PlatformView {
    id: String,
    name: String,
    /// Those with a link of their own; others get that of `web`.
    device_types: Vec<DeviceType>,
}

/// The platforms that links are known for.
pub struct Platforms;

impl Operation for Platforms {
    const META: Meta = Meta::query("playback.platforms", "The platforms that links are known for")
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
