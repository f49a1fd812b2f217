//! Client events that are commands: the same functions as behind `/v1`, with the frame's id as command id.

use std::sync::Arc;

use serde_json::{Value, json};

use super::protocol::{Frame, split_topic};
use crate::cluster::topics::Published;
use crate::contract::problem::{Outcome, Problem};
use crate::gateway::Gateway;
use crate::gateway::auth::Claims;
use crate::gateway::bodies::{optional_text, text};
use crate::gateway::commands::{self, Call};
use crate::gateway::listening::subscribe::{grant, may_publish};
use crate::gateway::{devices, playback, sync};
use crate::kernel::error::ErrorCode;
use crate::kernel::text::{must_not_contain, wrong_in_name};

/// Whether [`run`] knows this event.
pub fn is_command(event: &str) -> bool {
    matches!(
        event,
        "topic:publish"
            | "sync:update"
            | "sync:read"
            | "sync:device"
            | "device:register"
            | "device:command"
            | "playback:initiate"
            | "playback:control"
            | "playback:report"
    )
}

/// Whether what it leads to is kept, so that its user has to have something left for it.
fn is_kept(gateway: &Gateway, frame: &Frame) -> bool {
    match frame.event.as_str() {
        "sync:read" | "sync:device" => false,
        "topic:publish" => {
            let topic = frame.data["topic"].as_str();
            topic.and_then(|topic| grant(gateway, topic)).is_some_and(|grant| grant.durable)
        }
        _ => true,
    }
}

pub async fn run(gateway: Arc<Gateway>, claims: Arc<Claims>, frame: &Frame) -> Outcome {
    if is_kept(&gateway, frame) {
        gateway.may_command(&claims.sub).await?;
    }
    let call = Call::of(&gateway, &claims, &frame.id);
    let data = &frame.data;
    match frame.event.as_str() {
        "topic:publish" => publish(call, data).await,
        // Boxed, so that a frame of a publication is not as large as the largest of these.
        "sync:update" => Box::pin(sync::update(&call, data)).await,
        "sync:read" => Box::pin(sync::read(&call, data)).await,
        "device:register" => Box::pin(devices::register(&call, data)).await,
        "device:command" => Box::pin(devices::control(&call, text(data, "device_id")?, data)).await,
        "playback:initiate" => Box::pin(playback::initiate(&call, data)).await,
        "playback:control" => Box::pin(playback::control(&call, data)).await,
        "playback:report" => Box::pin(playback::report(&call, data)).await,
        "sync:device" => Box::pin(sync::device(&call, data)).await,
        _ => Err(unknown(&frame.event)),
    }
}

pub fn unknown(event: &str) -> Problem {
    let shown: String = event.chars().take(64).collect();
    Problem::field("/event", format!("{shown:?} is not an event I know"))
}

/// Of `presence:online`.
pub fn presence_status(data: &Value) -> Outcome<String> {
    let status = optional_text(data, "status")?.unwrap_or("online");
    if status.trim().is_empty() || status.chars().count() > 32 {
        return Err(Problem::field("/status", "must have 1 to 32 characters"));
    }
    match wrong_in_name(status) {
        Some(c) => Err(Problem::field("/status", must_not_contain(c))),
        None => Ok(status.into()),
    }
}

/// `topic:publish`: to application topics only, and only where configuration grants it.
async fn publish(call: Call<'_>, data: &Value) -> Outcome {
    let Call { gateway, user_id, .. } = call;
    call.check_user(data)?;
    let topic = text(data, "topic")?;
    let event = text(data, "event")?;
    let (kind, key) = split_topic(topic)?;
    let granted = may_publish(gateway, call.role, topic).filter(|_| kind == "app");
    let granted = granted.ok_or_else(|| Problem::forbidden("you may not publish to this topic"))?;
    if !event.starts_with("app:") || event.len() > 64 {
        return Err(Problem::field("/event", "must start with app: and have at most 64 bytes"));
    }
    let payload = data.get("data").unwrap_or(&Value::Null);
    call.check_user(payload)?;
    if !gateway.may_publish_now(topic) {
        let problem = Problem::new(ErrorCode::RateLimited, "too many publications to this topic");
        return Err(problem.retry_after_ms(1_000));
    }
    if granted.durable {
        let offset = commands::publish(&call, key, event, payload.clone()).await?;
        return Ok(json!({"offset": offset}));
    }
    let said = Published::said(topic, None, event, Some(user_id), &payload.to_string());
    let posted = gateway.topics.post(&said);
    if posted { Ok(json!({})) } else { Err(Problem::unavailable()) }
}
