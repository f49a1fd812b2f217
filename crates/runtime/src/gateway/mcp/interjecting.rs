//! Messages to the client while its request is being answered: then the response is a stream, and the answer its last event.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use axum::body::to_bytes;
use axum::response::Response;
use axum::response::sse::Event;
use futures_util::stream;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::gateway::http::event_stream;

/// Messages that the client has not read yet. Beyond that the operation waits.
pub const UNREAD: usize = 16;
const COMMENT_EVERY: Duration = Duration::from_secs(15);

type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

/// The response, with what is said meanwhile before it. Dropping it ends the work.
pub async fn interjected(mut answering: Answering, mut said: mpsc::Receiver<Value>) -> Response {
    let first = tokio::select! {
        biased;
        Some(message) = said.recv() => message,
        response = &mut answering => match said.try_recv() {
            Err(_) => return response,
            Ok(message) => {
                answering = Box::pin(async move { response });
                message
            }
        },
    };
    let state = (Some(first), Some(answering), said);
    let events = stream::unfold(state, |(first, answering, mut said)| async move {
        let mut answering = answering?;
        if let Some(message) = first {
            return Some((event(&message.to_string()), (None, Some(answering), said)));
        }
        let response = tokio::select! {
            biased;
            Some(message) = said.recv() => {
                return Some((event(&message.to_string()), (None, Some(answering), said)));
            }
            response = &mut answering => response,
        };
        // What was said before the answer comes before it.
        if let Ok(message) = said.try_recv() {
            let answering: Answering = Box::pin(async move { response });
            return Some((event(&message.to_string()), (None, Some(answering), said)));
        }
        let answer = to_bytes(response.into_body(), usize::MAX).await.ok()?;
        let answer = std::str::from_utf8(&answer).ok()?;
        Some((event(answer), (None, None, said)))
    });
    event_stream(events, COMMENT_EVERY)
}

fn event(message: &str) -> Result<Event, Infallible> {
    Ok(Event::default().event("message").data(message))
}
