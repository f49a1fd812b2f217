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
use crate::kernel::error::ErrorCode;
use crate::kernel::text::{must_not_contain, wrong_in_name};

/// Whether [`run`] knows this event.
pub fn is_command(event: &str) -> bool {
    matches!(
        event,
        "chat:message"
            | "chat:typing"
            | "request:create"
            | "request:cancel"
            | "offer:accept"
            | "offer:decline"
            | "booking:cancel"
            | "booking:review"
            | "booking:no_show"
            | "topic:publish"
    )
}

/// Whether what it leads to is kept, so that its user has to have something left for it.
fn is_kept(gateway: &Gateway, frame: &Frame) -> bool {
    match frame.event.as_str() {
        "chat:typing" => false,
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
        "chat:message" => commands::send_message(call, text(data, "session_id")?, data).await,
        "chat:typing" => {
            call.check_user(data)?;
            let typing = data.get("is_typing").and_then(Value::as_bool);
            let typing = typing.ok_or_else(|| {
                Problem::field("/is_typing", "is required and must be true or false")
            })?;
            commands::typing(&call, text(data, "session_id")?, typing).await
        }
        // Boxed, so that a frame of a chat is not as large as the largest of these.
        "request:create" => Box::pin(commands::create_request(call, data)).await,
        "request:cancel" => {
            Box::pin(commands::cancel_request(call, text(data, "request_id")?, data)).await
        }
        "offer:accept" => {
            Box::pin(commands::accept_offer(call, text(data, "offer_id")?, data)).await
        }
        "offer:decline" => {
            Box::pin(commands::decline_offer(call, text(data, "offer_id")?, data)).await
        }
        "booking:cancel" => {
            Box::pin(commands::cancel_booking(call, text(data, "booking_id")?, data)).await
        }
        "booking:review" => {
            Box::pin(commands::review_booking(call, text(data, "booking_id")?, data)).await
        }
        "booking:no_show" => {
            Box::pin(commands::mark_no_show(call, text(data, "booking_id")?, data)).await
        }
        "topic:publish" => publish(call, data).await,
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
