//! Photos for the other systems: whose they are, and their bytes.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

pub use super::operations::PhotoView;
use super::settings::{MAX_SHOWN_BYTES, PhotoLimits};
use super::views::{self, PhotoRow};
use crate::contract::bytes::{Download, over_http};
use crate::contract::call::Services;
use crate::contract::{Call, FieldError, Meta, Outcome, Problem};
use crate::kernel::chat::{Part, Prompt, PromptMessage};
use crate::kernel::error::ErrorCode;
use crate::kernel::image::ImageHead;
use crate::kernel::private::EncryptionContext;

/// The place that bytes are bound to, besides their owner and their object.
pub(super) const KIND: &str = "photo";
/// What waits for room in memory longer is refused.
const PATIENCE: Duration = Duration::from_secs(5);

/// Room in memory for photos, which is given back when this is dropped.
pub struct PhotoRoom {
    _permit: Option<OwnedSemaphorePermit>,
}

pub(super) fn limits(services: &Services) -> &PhotoLimits {
    services.settings.get().expect("`app` sets the section of every system")
}

pub(super) async fn room(services: &Services, bytes: usize) -> Outcome<PhotoRoom> {
    let kilobytes = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX);
    let wanted = limits(services).room.clone().acquire_many_owned(kilobytes);
    match tokio::time::timeout(PATIENCE, wanted).await {
        Ok(Ok(permit)) => Ok(PhotoRoom { _permit: Some(permit) }),
        _ => Err(Problem::new(ErrorCode::Overloaded, "too many photos are under way here")),
    }
}

/// Checks that each of these is a photo of this person. `at` is the field that names them.
pub async fn check(services: &Services, owner: &str, ids: &[String], at: &str) -> Outcome<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let asked: Vec<&str> = ids.iter().map(String::as_str).collect();
    let found = views::of(services.views()?, owner, &asked).await?;
    let is_there = |id: &String| found.iter().any(|row| row.id == *id);
    let unknown = ids.iter().enumerate().filter(|(_, id)| !is_there(id));
    // Another's photo is none.
    let why = "there is no such photo of yours";
    let errors: Vec<_> = unknown.map(|(n, _)| FieldError::new(format!("{at}/{n}"), why)).collect();
    if errors.is_empty() { Ok(()) } else { Err(Problem::fields(errors)) }
}

/// The bytes of a photo as they were sent. `None`: its owner was erased, or somebody has deleted it just now.
pub(super) async fn bytes(services: &Services, row: &PhotoRow) -> Outcome<Option<Vec<u8>>> {
    let away = |error: &dyn std::fmt::Display| {
        tracing::warn!(%error, "a photo cannot be read");
        Problem::new(ErrorCode::Unavailable, "the photo cannot be read right now")
    };
    let found = services.objects.get(&row.object).await.map_err(|error| away(&error))?;
    let Some(sealed) = found else { return Ok(None) };
    let owner: Arc<str> = row.owner_id.as_str().into();
    let place = EncryptionContext::new(KIND, &row.object);
    let vault = services.views()?.vault()?;
    vault.open_bytes(&owner, row.key, &place, sealed).await.map_err(|error| away(&error))
}

/// Answers a photo of this owner, to whoever may see it.
pub async fn answer(call: &Call, owner: &str, id: &str, meta: Meta) -> Outcome<PhotoView> {
    let slot = call.download.as_ref().ok_or_else(|| over_http(meta.bytes_path()))?;
    let found = photo(&call.services, owner, id).await?;
    let (row, bytes, room) = found.ok_or_else(|| Problem::not_found(KIND))?;
    let view = PhotoView::from(&row);
    let format = row.media_type.strip_prefix("image/").unwrap_or("bin");
    slot.put(Download {
        media_type: row.media_type.clone(),
        name: format!("{id}.{format}"),
        bytes: Bytes::from_owner(Held { bytes, _room: room }),
    });
    Ok(view)
}

/// Bytes on their way to a client, with the room that they take.
struct Held {
    bytes: Vec<u8>,
    _room: PhotoRoom,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A photo of this owner with its bytes, and the room that they take. `None`: there is none.
async fn photo(
    services: &Services,
    owner: &str,
    id: &str,
) -> Outcome<Option<(PhotoRow, Vec<u8>, PhotoRoom)>> {
    let Some(row) = views::of(services.views()?, owner, &[id]).await?.pop() else {
        return Ok(None);
    };
    // Sealed and opened.
    let room = room(services, row.bytes as usize).await?;
    Ok(bytes(services, &row).await?.map(|bytes| (row, bytes, room)))
}

/// What becomes of a photo that cannot be shown.
pub enum Missing {
    /// The question is refused.
    Refuse,
    /// The model reads that there was one.
    Say,
}

/// Puts the bytes of photos into a question, exactly as they were sent. What is not this person's is not there. Of a long
/// conversation the newest photos are shown, as many as a provider takes.
pub async fn show(
    services: &Services,
    owner: &str,
    prompt: &mut Prompt,
    missing: Missing,
) -> Outcome<PhotoRoom> {
    let messages = prompt.messages.iter().rev();
    let parts = messages.flat_map(|message| message.parts().iter().rev());
    let ids: Vec<&str> = parts.filter_map(Part::photo_id).collect();
    if ids.is_empty() {
        return Ok(PhotoRoom { _permit: None });
    }
    let found = views::of(services.views()?, owner, &ids).await?;
    let mut shown: Vec<(PhotoRow, Arc<str>)> = Vec::new();
    let mut left = MAX_SHOWN_BYTES;
    let mut wanted: Vec<&PhotoRow> = Vec::new();
    for id in &ids {
        let Some(row) = found.iter().find(|row| row.id == *id) else { continue };
        if wanted.iter().any(|one| one.id == row.id) {
            continue;
        }
        match left.checked_sub(row.bytes as usize) {
            Some(rest) => left = rest,
            None if matches!(missing, Missing::Refuse) => {
                let detail = format!("a model is shown {MAX_SHOWN_BYTES} bytes of photos at most");
                return Err(Problem::rejected("too_many_photos", detail));
            }
            None => break,
        }
        wanted.push(row);
    }
    let room = room(services, 3 * (MAX_SHOWN_BYTES - left)).await?;
    for row in wanted {
        if let Some(bytes) = bytes(services, row).await? {
            shown.push((row.clone(), BASE64.encode(bytes).into()));
        }
    }
    let mut unknown = None;
    for part in prompt.messages.iter_mut().flat_map(PromptMessage::parts_mut) {
        let Part::Photo { id } = &*part else { continue };
        *part = match shown.iter().find(|(row, _)| row.id == *id) {
            Some((row, data)) => {
                Part::Image { media_type: row.media_type.clone(), data: data.clone() }
            }
            None => {
                unknown.get_or_insert_with(|| id.clone());
                Part::Text { text: "[A photo that is not shown any more.]".into() }
            }
        };
    }
    match (unknown, missing) {
        (Some(id), Missing::Refuse) => {
            Err(Problem::rejected("no_such_photo", format!("there is no photo {id} of yours")))
        }
        _ => Ok(room),
    }
}

/// Checks the pictures that a question brings with it: each is what its own bytes say, whatever is claimed.
pub fn check_pictures(services: &Services, prompt: &mut Prompt) -> Outcome<()> {
    for (n, message) in prompt.messages.iter_mut().enumerate() {
        for (m, part) in message.parts_mut().iter_mut().enumerate() {
            let Part::Image { media_type, data } = part else { continue };
            let at = format!("/prompt/messages/{n}/parts/{m}/data");
            let bytes = BASE64.decode(data.as_bytes());
            let bytes = bytes.map_err(|_| Problem::field(&at, "must be base64"))?;
            let head = checked(services, &bytes).map_err(|why| Problem::field(&at, why))?;
            *media_type = head.media_type.to_owned();
        }
    }
    Ok(())
}

/// The picture's head, if it is one and within the limits.
pub(super) fn checked(services: &Services, bytes: &[u8]) -> Result<ImageHead, String> {
    let head = ImageHead::read(bytes).map_err(|error| error.to_string())?;
    let most = limits(services).settings.max_side;
    if head.side() > most {
        let ImageHead { width, height, .. } = head;
        return Err(format!("is {width} × {height} pixels: {most} on a side at most"));
    }
    Ok(head)
}
