//! Tasks in the words of A2A 1.0.

use chrono::{DateTime, Utc};

use crate::kernel::clock::Timestamp;
use crate::kernel::task::{
    TaskArtifact, TaskAuthor, TaskBody, TaskMessage, TaskPart, TaskRow, TaskState,
};

pub fn state(state: TaskState) -> a2a::TaskState {
    match state {
        TaskState::Submitted => a2a::TaskState::Submitted,
        TaskState::Working => a2a::TaskState::Working,
        TaskState::InputRequired => a2a::TaskState::InputRequired,
        TaskState::Completed => a2a::TaskState::Completed,
        TaskState::Failed => a2a::TaskState::Failed,
        TaskState::Canceled => a2a::TaskState::Canceled,
        TaskState::Rejected => a2a::TaskState::Rejected,
    }
}

/// A task, with so many of its last messages. `None`: with all that are kept.
pub fn task(row: &TaskRow, history: Option<usize>, artifacts: bool) -> a2a::Task {
    let none = TaskBody::default();
    let body = row.body.reveal().unwrap_or(&none);
    let from = body.history.len().saturating_sub(history.unwrap_or(usize::MAX));
    let shown = body.history[from..].iter().map(|one| message(row, one)).collect();
    let artifacts = artifacts.then(|| body.artifacts.iter().map(artifact).collect());
    a2a::Task {
        id: row.id.clone(),
        context_id: row.context_id.clone(),
        status: status(row),
        artifacts,
        history: (history != Some(0)).then_some(shown),
        metadata: None,
    }
}

pub fn status(row: &TaskRow) -> a2a::TaskStatus {
    let said = row.body.reveal().and_then(|body| body.said.as_ref());
    a2a::TaskStatus {
        state: state(row.state),
        message: said.map(|said| message(row, said)),
        timestamp: time(row.updated_at),
    }
}

/// What has changed since a version, in the order in which it changed.
pub fn changes(row: &TaskRow, since: u64) -> Vec<a2a::StreamResponse> {
    let (task_id, context_id) = (row.id.clone(), row.context_id.clone());
    let artifacts = row.body.reveal().map_or(&[][..], |body| &body.artifacts);
    let new = artifacts.iter().filter(|one| one.version > since).map(|one| {
        a2a::StreamResponse::ArtifactUpdate(a2a::TaskArtifactUpdateEvent {
            task_id: task_id.clone(),
            context_id: context_id.clone(),
            artifact: artifact(one),
            append: Some(false),
            last_chunk: Some(true),
            metadata: None,
        })
    });
    let mut changes: Vec<_> = new.collect();
    if row.said_at_version > since {
        changes.push(a2a::StreamResponse::StatusUpdate(a2a::TaskStatusUpdateEvent {
            task_id: task_id.clone(),
            context_id: context_id.clone(),
            status: status(row),
            metadata: None,
        }));
    }
    changes
}

fn message(row: &TaskRow, said: &TaskMessage) -> a2a::Message {
    a2a::Message {
        message_id: said.id.clone(),
        context_id: Some(row.context_id.clone()),
        task_id: Some(row.id.clone()),
        role: match said.by {
            TaskAuthor::Client => a2a::Role::User,
            TaskAuthor::Agent => a2a::Role::Agent,
        },
        parts: said.parts.iter().map(part).collect(),
        metadata: None,
        extensions: None,
        reference_task_ids: None,
    }
}

fn artifact(of: &TaskArtifact) -> a2a::Artifact {
    a2a::Artifact {
        artifact_id: of.id.clone(),
        name: Some(of.name.clone()),
        description: None,
        parts: of.parts.iter().map(part).collect(),
        metadata: None,
        extensions: None,
    }
}

fn part(of: &TaskPart) -> a2a::Part {
    match of {
        TaskPart::Text(text) => a2a::Part::text(text).with_media_type("text/plain"),
        TaskPart::Data(data) => a2a::Part::data(data.clone()).with_media_type("application/json"),
    }
}

fn time(at: Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(at.as_millisecond())
}
