//! What a person watches, and where it can be watched: the commands behind `/v1/playback`, `/v1/content` and `/v1/ws`.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::contract::problem::{FieldError, Outcome, Problem};
use crate::gateway::bodies::{list, parse, text};
use crate::gateway::commands::{Call, derived_id, known_id};
use crate::gateway::devices::{self, Remote};
use crate::gateway::http::schemas::devices as schema;
use crate::kernel::entity::Role;
use crate::kernel::error::{AskError, ErrorCode};
use crate::systems::devices::domain::clock::DeviceId;
use crate::systems::devices::domain::content::{
    self, Availability, Content, MAX_AVAILABILITIES, Quality,
};
use crate::systems::devices::domain::crdt::Register;
use crate::systems::devices::domain::device::Action;
use crate::systems::devices::domain::operation::{MAX_NUMBER, is_name};
use crate::systems::devices::domain::platforms::{Choice, Platforms, Wish};
use crate::systems::devices::domain::playback::{self, Playback, Report, Start, Status};
use crate::systems::devices::domain::shared::{self, Shared};

/// How long the end of a session waits for the device to be told.
const STOP_WAITS: Duration = Duration::from_secs(3);

/// What configuration says.
#[derive(Clone, Debug)]
pub struct Options {
    /// Without a report for so long a session is over.
    pub idle_s: u32,
    pub platforms: Platforms,
}

impl Default for Options {
    fn default() -> Self {
        Self { idle_s: 14_400, platforms: Platforms::default() }
    }
}

#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct InitiatePlayback {
    #[schema(value_type = String, max_length = 128)]
    pub content_id: Option<String>,
    /// One of the caller's.
    #[schema(value_type = String)]
    pub device_id: Option<String>,
    /// Taken if it has the content and the device can do it.
    pub preferred_platform: Option<String>,
    /// sd, hd or uhd; without: as good as the device.
    #[schema(value_type = Option<schema::Quality>)]
    pub quality_preference: Option<Quality>,
    /// ISO 3166-1; without: in whatever region it is.
    pub region: Option<String>,
    /// From where the person was, which is the default.
    pub resume: Option<bool>,
    /// A session to end instead, where the plan allows no other.
    pub replaces: Option<String>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct ReportPlayback {
    #[schema(value_type = String)]
    pub session_id: Option<String>,
    /// playing, paused or ended
    #[schema(value_type = schema::PlaybackStatus)]
    pub status: Option<Status>,
    pub position_ms: Option<u64>,
    pub duration_ms: Option<u64>,
}

/// `playback:initiate`: on the best platform that has it for the device. The same under the same id.
pub async fn initiate(call: &Call<'_>, body: &Value) -> Outcome {
    call.check_user(body)?;
    let parsed: InitiatePlayback = parse(body)?;
    let mut errors = Vec::new();
    let content_id = parsed.content_id.clone().unwrap_or_default();
    if !is_name(&content_id) {
        let message = "is required and has 1 to 128 visible ASCII characters";
        errors.push(FieldError::new("/content_id", message));
    }
    let device = parsed.device_id.as_deref().and_then(|id| id.parse::<DeviceId>().ok());
    if device.is_none() {
        errors.push(FieldError::new("/device_id", "is required and is that of a device"));
    }
    let Some(device_id) = device.filter(|_| errors.is_empty()).map(|id| id.to_string()) else {
        return Err(Problem::fields(errors));
    };
    let device = devices::shown(call, &device_id).await?;
    let id = derived_id("plb", &[call.user_id, call.id, &body.to_string()]);
    // What is best depends on the moment. Where the session exists already this is a retry.
    let session = match call.gateway.views()?.playback_session(&id).await? {
        Some(session) => session,
        None => start(call, &id, &content_id, &parsed, &device).await?,
    };
    Ok(with_session_id(session, &device["status"]))
}

async fn start(
    call: &Call<'_>,
    id: &str,
    content_id: &str,
    asked: &InitiatePlayback,
    device: &Value,
) -> Outcome {
    let wish = Wish {
        platform: asked.preferred_platform.as_deref(),
        quality: asked.quality_preference,
        region: asked.region.as_deref(),
    };
    let choice = choose(call, content_id, &wish, device).await?;
    let platform = choice.platform.clone();
    let start = Start {
        content_id: content_id.into(),
        device_id: text(device, "id")?.into(),
        choice,
        resume_position_ms: match asked.resume {
            Some(false) => None,
            _ => resume_position(call, content_id).await?,
        },
        idle_s: call.gateway.options.playback.idle_s,
    };
    let command = playback::Command::Start {
        session_id: id.into(),
        start,
        replaces: asked.replaces.clone(),
        max_streams: call.tier.streams,
    };
    let started = match ask(call, command).await {
        // The same at once: the other one was first, and may have chosen otherwise.
        Err(problem) if problem.code == ErrorCode::IdReused => {
            return call.gateway.views()?.playback_session(id).await?.ok_or(problem);
        }
        started => started?.ok_or(AskError::Internal)?,
    };
    metrics::counter!("proxie_playback_initiated_total", "platform" => platform).increment(1);
    Ok(started)
}

/// What the seed calls it, beside the `id` that every object has.
fn with_session_id(mut session: Value, device_status: &Value) -> Value {
    session["session_id"] = session["id"].clone();
    session["device_status"] = device_status.clone();
    session
}

async fn ask(call: &Call<'_>, command: playback::Command) -> Outcome<Option<Value>> {
    Ok(match call.ask::<Playback>(call.user_id, command, call.meta()).await? {
        playback::Reply::Session(session) => Some(session),
        playback::Reply::Done => None,
    })
}

fn read<T: DeserializeOwned>(value: &Value) -> Outcome<T> {
    T::deserialize(value).map_err(|error| {
        tracing::error!(%error, "a row is not what was written");
        AskError::Internal.into()
    })
}

async fn choose(
    call: &Call<'_>,
    content_id: &str,
    wish: &Wish<'_>,
    device: &Value,
) -> Outcome<Choice> {
    let known = call.gateway.views()?.content(content_id).await?;
    let availability: Vec<Availability> = match &known {
        Some(content) => read(&content["availability"])?,
        None => Vec::new(),
    };
    let capabilities = read(&device["capabilities"])?;
    let on = (read(&device["device_type"])?, &capabilities);
    let platforms = &call.gateway.options.playback.platforms;
    platforms
        .choose(&availability, wish, on, call.gateway.now())
        .map(|mut choices| choices.swap_remove(0))
        .map_err(|why| Problem::rejected(why.reason(), why.to_string()))
}

/// Where the person was, on any device. Who has seen nearly all of it begins anew.
async fn resume_position(call: &Call<'_>, content_id: &str) -> Outcome<Option<u64>> {
    let asked = shared::Command::Explain { content_id: content_id.into() };
    let reply = call.ask::<Shared>(call.user_id, asked, call.undeduplicated()).await?;
    let shared::Reply::Explained { explanation, .. } = reply else {
        return Err(AskError::Internal.into());
    };
    let Some(Register { wins, beaten }) = explanation.position else { return Ok(None) };
    let mut at = wins.value;
    // Who wrote last may not have said how long it is.
    at.duration_ms = at.duration_ms.or_else(|| beaten?.value.duration_ms);
    if at.duration_ms.is_none() {
        at.duration_ms = call.gateway.views()?.duration_of(call.user_id, content_id).await?;
    }
    Ok((!at.is_nearly_over()).then_some(at.position_ms))
}

/// A session of the caller, else not found.
pub async fn shown(call: &Call<'_>, id: &str) -> Outcome {
    let session = call.gateway.views()?.playback_session(known_id(id, "session")?).await?;
    let mine = session.filter(|session| session["user_id"] == call.user_id);
    mine.ok_or_else(|| Problem::not_found("session"))
}

/// `playback:control`: tells the device of a session what to do. `stop` ends the session, also without the device.
pub async fn control(call: &Call<'_>, body: &Value) -> Outcome {
    call.check_user(body)?;
    let remote = Remote::of(body)?;
    let session = shown(call, text(body, "session_id")?).await?;
    let stops = remote.action == Action::Stop;
    if session["status"] == "ended" && !stops {
        return Err(Problem::rejection(&playback::Rejection::Ended));
    }
    let (id, device_id) = (text(&session, "id")?, text(&session, "device_id")?);
    let meta = if stops { call.meta().timeout(STOP_WAITS) } else { call.meta() };
    let told = devices::tell(call, device_id, remote, Some(id.into()), meta).await;
    if !stops {
        return Ok(controlled(&session, &told?));
    }
    let told = match told {
        // Whatever is the matter with the device, it is over.
        Err(problem)
            if problem.code.retryable()
                || matches!(problem.code, ErrorCode::Rejected | ErrorCode::NotFound) =>
        {
            Value::Null
        }
        told => told?,
    };
    let stop = playback::Command::Stop { session_id: id.into() };
    // A command id belongs to one command; this is the second of this call.
    let id = derived_id("stop", &[call.user_id, call.id]);
    let stopped = ask(&Call { id: &id, ..call.clone() }, stop).await?;
    Ok(controlled(stopped.as_ref().unwrap_or(&session), &told))
}

fn controlled(session: &Value, told: &Value) -> Value {
    let (id, status) = (&session["id"], &session["status"]);
    json!({
        "session_id": id, "status": status, "delivered": !told.is_null(),
        "command_id": told["command_id"], "expires_at": told["expires_at"],
    })
}

/// `playback:report`: what the device says about its session, when it changes and every few minutes.
pub async fn report(call: &Call<'_>, body: &Value) -> Outcome {
    call.check_user(body)?;
    let parsed: ReportPlayback = parse(body)?;
    let mut errors = Vec::new();
    for (given, at) in [(parsed.position_ms, "/position_ms"), (parsed.duration_ms, "/duration_ms")]
    {
        if given.is_some_and(|ms| ms > MAX_NUMBER) {
            errors.push(FieldError::new(at, "must be below 2^53"));
        }
    }
    let status = parsed.status.filter(|status| *status != Status::Starting);
    if status.is_none() {
        errors.push(FieldError::new("/status", "is required: playing, paused or ended"));
    }
    let (Some(status), true) = (status, errors.is_empty()) else {
        return Err(Problem::fields(errors));
    };
    let session_id = known_id(text(body, "session_id")?, "session")?;
    let report =
        Report { status, position_ms: parsed.position_ms, duration_ms: parsed.duration_ms };
    match ask(call, playback::Command::Report { session_id: session_id.into(), report }).await {
        Ok(session) => session.ok_or_else(|| AskError::Internal.into()),
        // Over, or somebody else's.
        Err(problem) => Err(shown(call, session_id).await.err().unwrap_or(problem)),
    }
}

pub async fn content(call: &Call<'_>, id: &str) -> Outcome {
    if !is_name(id) {
        return Err(Problem::not_found("content"));
    }
    let content = call.gateway.views()?.content(id).await?;
    content.ok_or_else(|| Problem::not_found("content"))
}

/// Where it can be watched, from now on.
pub async fn set_availability(call: &Call<'_>, id: &str, body: &Value) -> Outcome {
    if call.role != Role::Operator {
        return Err(Problem::rejection(&content::Rejection::OperatorsOnly));
    }
    if !is_name(id) {
        return Err(Problem::bad_request("the id must have 1 to 128 visible ASCII characters"));
    }
    let platforms = &call.gateway.options.playback.platforms;
    let availability = list(body, "availability", MAX_AVAILABILITIES, |way: &Availability| {
        way.check()?;
        if platforms.has_link(way) {
            Ok(())
        } else {
            Err(("platform", "is not one that links are known for: give a web_url"))
        }
    })?;
    let command = content::Command::SetAvailability(availability);
    let content::Reply::Content(content) =
        call.ask::<Content>(id, command, call.undeduplicated()).await?;
    Ok(content)
}

/// What links are known for.
pub fn platforms(call: &Call<'_>) -> Value {
    let platforms = call.gateway.options.playback.platforms.iter();
    let shown = platforms.map(|(id, platform)| {
        json!({"id": id, "name": platform.name, "device_types": platform.links.keys().collect::<Vec<_>>()})
    });
    json!({"items": shown.collect::<Vec<_>>(), "next_cursor": null})
}
