//! Photos of the caller: sent, listed, shown, deleted.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::api::{self, KIND};
use super::views::{self, PhotoRow, Reserved};
use crate::contract::bytes::over_http;
use crate::contract::call::known_id;
use crate::contract::list::{ListOf, Page, Paging};
use crate::contract::operation::Nothing;
use crate::contract::{Call, Meta, Operation, Outcome, Problem};
use crate::kernel::clock::Timestamp;
use crate::kernel::error::ErrorCode;
use crate::kernel::image::{ImageHead, NoImage};
use crate::kernel::private::{EncryptionContext, Trouble};
use crate::persistence::views::RowPage;

/// A photo, without its bytes.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Photo")]
pub struct PhotoView {
    pub id: String,
    /// What its own bytes say: `image/png`, `image/jpeg`, `image/webp` or `image/gif`.
    pub media_type: String,
    pub bytes: u64,
    /// In pixels.
    pub width: u32,
    pub height: u32,
    pub created_at: Timestamp,
}

impl From<&PhotoRow> for PhotoView {
    fn from(row: &PhotoRow) -> Self {
        Self {
            id: row.id.clone(),
            media_type: row.media_type.clone(),
            bytes: row.bytes.unsigned_abs(),
            width: row.width.unsigned_abs(),
            height: row.height.unsigned_abs(),
            created_at: row.created_at,
        }
    }
}

fn vault_away(trouble: Trouble) -> Problem {
    tracing::warn!(%trouble, "the vault does not serve a photo");
    Problem::unavailable()
}

/// Stores the body of a request as a photo of the caller's. The same command id gives the same photo.
pub struct Upload;

impl Operation for Upload {
    const META: Meta = Meta::command("photo.upload", "Send a photo")
        .post("/v1/photos")
        .takes_bytes()
        .creates("/v1/photos/");
    type Input = Nothing;
    type Answer = PhotoView;

    async fn run(call: &Call, _: Nothing) -> Outcome<PhotoView> {
        let services = &*call.services;
        let settings = &api::limits(services).settings;
        let upload = call.upload.as_ref();
        let upload = upload.ok_or_else(|| over_http(Self::META.bytes_path()))?;
        if let Some(why) = services.objects.refusal() {
            return Err(Problem::rejected("no_object_store", why));
        }
        let announced = upload.announced.and_then(|bytes| usize::try_from(bytes).ok());
        let most = announced.unwrap_or(usize::MAX).min(settings.max_bytes);
        // Read, and sealed.
        let _room = api::room(services, 2 * most).await?;
        let no_photo = |why: String| {
            let problem = Problem::rejected("no_photo", format!("the body {why}"));
            problem.status(415)
        };
        let body = upload.read(settings.max_bytes, |so_far| {
            // Whatever else is not read to its end.
            let is_known = so_far.len() < 32 || ImageHead::media_type(so_far).is_some();
            if is_known { Ok(()) } else { Err(no_photo(NoImage::Unknown.to_string())) }
        });
        let body = body.await?;
        let head = api::checked(services, &body).map_err(no_photo)?;
        let (views, owner) = (call.views()?, &call.user_id);
        let vault = views.vault()?;
        let blind = async |what: &[u8], of: &[u8]| {
            vault.blind(owner, &[what, of].concat()).await.map_err(vault_away)
        };
        let digest = blind(b"photo ", &Sha256::digest(&body)).await?.to_vec();
        // Nobody else can make it, also who knows the command's id.
        let id = blind(b"photo of ", call.id.as_bytes()).await?;
        let mut bits = [0; 16];
        bits.copy_from_slice(&id[..16]);
        let id = format!("pho_{}", ulid::Ulid::from(u128::from_be_bytes(bits)));
        if let Some(row) = views::of(views, owner, &[&id]).await?.pop() {
            return again(&row, &digest);
        }
        let object = format!("photos/{}", ulid::Ulid::generate());
        let place = EncryptionContext::new(KIND, &object);
        let (key, sealed) = vault.seal_bytes(owner, &place, &body).await.map_err(vault_away)?;
        let row = PhotoRow {
            id,
            owner_id: owner.to_string(),
            key,
            object,
            media_type: head.media_type.into(),
            width: i32::try_from(head.width).unwrap_or(i32::MAX),
            height: i32::try_from(head.height).unwrap_or(i32::MAX),
            bytes: body.len() as i64,
            digest,
            created_at: call.now(),
        };
        drop(body);
        match views::reserve(views, &row, settings.max, settings.max_total_bytes).await? {
            Reserved::Yes => {}
            Reserved::Full => {
                let why = format!(
                    "{} photos of {} bytes in all are kept: delete some first",
                    settings.max, settings.max_total_bytes
                );
                return Err(Problem::rejected("too_many_photos", why));
            }
            Reserved::Exists => {
                let found = views::of(views, owner, &[&row.id]).await?.pop();
                return again(&found.ok_or_else(Problem::unavailable)?, &row.digest);
            }
            Reserved::KeyGone => return Err(Problem::unavailable()),
        }
        if let Err(error) = services.objects.put(&row.object, sealed).await {
            tracing::warn!(%error, "a photo is not stored");
            // What may be there of it is swept.
            views::delete(views, owner, &row.id).await?;
            let detail = "the photo cannot be stored right now";
            return Err(Problem::new(ErrorCode::Unavailable, detail));
        }
        if !views::stored(views, &row).await? {
            // Its name is nobody's any more, and swept.
            return Err(Problem::unavailable());
        }
        Ok(PhotoView::from(&row))
    }
}

/// What is there under the id of this command, if it is what the command sends.
fn again(row: &PhotoRow, digest: &[u8]) -> Outcome<PhotoView> {
    if row.digest != digest {
        return Err(Problem::new(ErrorCode::IdReused, "this id was used for another photo"));
    }
    Ok(PhotoView::from(row))
}

/// The caller's photos.
pub struct List;

impl Operation for List {
    const META: Meta = Meta::query("photo.list", "Your photos, newest first").get("/v1/photos");
    type Input = Paging;
    type Answer = Page<PhotoView>;

    async fn run(call: &Call, paging: Paging) -> Outcome<Page<PhotoView>> {
        let list = ListOf::new(&[Self::META.name, &call.user_id]);
        let limit = paging.limit.unwrap_or_default().0;
        let from = list.down(paging.cursor)?;
        let page = views::page(call.views()?, &call.user_id, &from, limit).await?;
        let RowPage { items, omitted, next } = page;
        let items = items.iter().map(PhotoView::from).collect();
        Ok(list.page(RowPage { items, omitted, next }))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct PhotoId {
    photo_id: String,
}

/// What is known of a photo of the caller's.
pub struct Get;

impl Operation for Get {
    const META: Meta =
        Meta::query("photo.get", "What is known of a photo").get("/v1/photos/{photo_id}");
    type Input = PhotoId;
    type Answer = PhotoView;

    async fn run(call: &Call, PhotoId { photo_id }: PhotoId) -> Outcome<PhotoView> {
        let id = known_id(&photo_id, KIND)?;
        let row = views::of(call.views()?, &call.user_id, &[id]).await?.pop();
        row.as_ref().map(PhotoView::from).ok_or_else(|| Problem::not_found(KIND))
    }
}

/// A photo of the caller's, as it was sent.
pub struct Content;

impl Operation for Content {
    const META: Meta = Meta::query("photo.content", "A photo itself")
        .get("/v1/photos/{photo_id}/content")
        .answers_bytes();
    type Input = PhotoId;
    type Answer = PhotoView;

    async fn run(call: &Call, PhotoId { photo_id }: PhotoId) -> Outcome<PhotoView> {
        let id = known_id(&photo_id, KIND)?;
        api::answer(call, &call.user_id, id, Self::META).await
    }
}

/// Deletes a photo of the caller's.
pub struct Delete;

impl Operation for Delete {
    const META: Meta =
        Meta::command("photo.delete", "Delete a photo for good").delete("/v1/photos/{photo_id}");
    type Input = PhotoId;
    type Answer = PhotoDeleted;

    async fn run(call: &Call, PhotoId { photo_id }: PhotoId) -> Outcome<PhotoDeleted> {
        let id = known_id(&photo_id, KIND)?;
        let was_there = views::delete(call.views()?, &call.user_id, id).await?;
        Ok(PhotoDeleted { was_there })
    }
}

/// Whether there was something to delete.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct PhotoDeleted {
    /// False: it was gone already, or never yours.
    pub was_there: bool,
}
