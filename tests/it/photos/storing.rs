//! Photos in their store: what is taken, who sees them, and what is left of them in the end.

use proxie::persistence::vault;
use proxie::systems::photos::settings::PhotoSettings;
use serde_json::{Value, json};
use sqlx::Executor;

use super::{Photographed, content, jpeg, png, send, upload};
use crate::edges::text;
use crate::support::eventually;

fn problem(raw: &super::Raw) -> (u16, Value, Value) {
    let body = raw.json();
    (raw.status, body["code"].clone(), body["reason"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_photo_is_what_its_bytes_say_and_its_owners_alone() {
    let photographed = Photographed::new("photos-own", |_| {}).await;
    let (alice, bob) = (photographed.node.user("alice"), photographed.node.user("bob"));
    let bytes = png(800, 600, 300_000);
    // Whatever is claimed of it.
    let headers = [("content-type", "text/html"), ("idempotency-key", "one")];
    let sent = send(&alice, "POST", "/v1/photos", &headers, bytes.clone()).await;
    assert_eq!(sent.status, 201, "{}", String::from_utf8_lossy(&sent.body));
    let photo = sent.json();
    let id = text(&photo["id"]);
    assert_eq!(sent.headers["location"], format!("/v1/photos/{id}"));
    assert_eq!(
        (&photo["media_type"], &photo["width"], &photo["height"], &photo["bytes"]),
        (&json!("image/png"), &json!(800), &json!(600), &json!(300_000))
    );
    let shown = content(&alice, &id).await;
    assert!(shown.body == bytes, "{} bytes", shown.body.len());
    for (name, value) in [
        ("content-type", "image/png"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "default-src 'none'; sandbox"),
        ("cache-control", "private, no-store"),
    ] {
        assert_eq!(shown.headers[name], value, "{name}");
    }
    let disposition = format!("attachment; filename=\"{id}.png\"");
    assert_eq!(shown.headers["content-disposition"], disposition);
    // The same again is the same; other bytes under its id are refused.
    let again = send(&alice, "POST", "/v1/photos", &headers, bytes.clone()).await;
    assert_eq!((again.status, &again.json()), (201, &photo));
    let other = send(&alice, "POST", "/v1/photos", &headers, jpeg()).await;
    assert_eq!(problem(&other).1, "id_reused");
    // Somebody else's id of the same name makes another photo.
    let theirs = send(&bob, "POST", "/v1/photos", &headers, bytes.clone()).await;
    assert_ne!(theirs.json()["id"], photo["id"]);
    let path = format!("/v1/photos/{id}");
    assert_eq!(bob.get(&path).await.status, 404);
    assert_eq!(content(&bob, &id).await.status, 404);
    assert_eq!(bob.send("DELETE", &path, &[], b"").await.status, 204);
    assert_eq!(alice.get(&path).await.json(), photo);
    assert_eq!(alice.get("/v1/photos").await.json()["items"], json!([photo]));
    // Nothing of it is in the folder in the plain.
    let files = photographed.files();
    assert_eq!(files.len(), 2, "{files:?}");
    for file in &files {
        let stored = std::fs::read(file).unwrap();
        assert!(!stored.windows(4).any(|part| part == b"\x89PNG"), "it is sealed");
        assert!(!file.to_string_lossy().contains(&id), "its name says nothing");
    }
    // One that was changed or exchanged is none.
    let (one, two) = (std::fs::read(&files[0]).unwrap(), std::fs::read(&files[1]).unwrap());
    std::fs::write(&files[0], &two).unwrap();
    std::fs::write(&files[1], &one).unwrap();
    assert_eq!(content(&alice, &id).await.status, 503);
    std::fs::write(&files[0], &one).unwrap();
    std::fs::write(&files[1], &two).unwrap();
    assert_eq!(content(&alice, &id).await.status, 200);
    // Other doors say where it goes.
    let mut ws = photographed.node.ws("alice").await;
    let refused = ws.ask_as("u1", "photo:upload", json!({})).await;
    assert_eq!(refused["error"]["reason"], "over_http", "{refused}");
    let refused = ws.ask_as("u2", "photo:content", json!({"photo_id": id})).await;
    assert_eq!(refused["error"]["reason"], "over_http", "{refused}");
    // Deleted, it is gone, with its bytes.
    assert_eq!(alice.send("DELETE", &path, &[], b"").await.status, 204);
    assert_eq!(content(&alice, &id).await.status, 404);
    eventually("its file goes", async || photographed.files().len() == 1).await;
    photographed.node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_photo_or_too_much_is_refused() {
    let settings = PhotoSettings {
        max_bytes: 100_000,
        max: 3,
        max_total_bytes: 120_000,
        ..PhotoSettings::default()
    };
    let photographed =
        Photographed::new("photos-limits", |config| config.systems.set(settings)).await;
    let alice = photographed.node.user("alice");
    let claims = [("content-type", "image/png")];
    for no_photo in [
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>".to_vec(),
        b"GIF89a\0\0\0\0".to_vec(),
        png(50_000, 50_000, 1_000),
        png(8_001, 1, 1_000),
        Vec::new(),
    ] {
        let refused = send(&alice, "POST", "/v1/photos", &claims, no_photo).await;
        assert_eq!(problem(&refused), (415, json!("rejected"), json!("no_photo")));
    }
    let large = png(10, 10, 100_001);
    let refused = send(&alice, "POST", "/v1/photos", &claims, large.clone()).await;
    assert_eq!(problem(&refused).0, 413);
    // Also where it does not say how long it is.
    let pieces: Vec<_> = large.chunks(9_000).map(|piece| Ok::<_, String>(piece.to_vec())).collect();
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let refused = send(&alice, "POST", "/v1/photos", &claims, body).await;
    assert_eq!(problem(&refused).0, 413);
    assert!(photographed.files().is_empty(), "nothing of it was stored");
    // So many photos, and so many bytes.
    for _ in 0..2 {
        upload(&alice, &png(10, 10, 50_000)).await;
    }
    let refused = send(&alice, "POST", "/v1/photos", &[], png(10, 10, 50_000)).await;
    assert_eq!(problem(&refused), (422, json!("rejected"), json!("too_many_photos")));
    upload(&alice, &png(10, 10, 100)).await;
    let refused = send(&alice, "POST", "/v1/photos", &[], png(10, 10, 100)).await;
    assert_eq!(problem(&refused), (422, json!("rejected"), json!("too_many_photos")));
    upload(&photographed.node.user("bob"), &png(10, 10, 100)).await;
    assert_eq!(photographed.files().len(), 4);
    photographed.node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_whoever_is_erased_no_photo_is_left() {
    let photographed = Photographed::new("photos-erased", |_| {}).await;
    let (alice, bob) = (photographed.node.user("alice"), photographed.node.user("bob"));
    let hers = upload(&alice, &png(10, 10, 5_000)).await;
    let his = upload(&bob, &jpeg()).await;
    vault::erase(&photographed.node.node.core.pool, "alice").await.unwrap();
    assert_eq!(content(&alice, &hers).await.status, 404);
    assert_eq!(alice.get("/v1/photos").await.json()["items"], json!([]));
    eventually("her file goes", async || photographed.files().len() == 1).await;
    assert!(content(&bob, &his).await.body == jpeg());
    photographed.node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_upload_has_left_is_swept() {
    let photographed = Photographed::new("photos-swept", |_| {}).await;
    let alice = photographed.node.user("alice");
    let kept = upload(&alice, &png(10, 10, 5_000)).await;
    let lost = upload(&alice, &jpeg()).await;
    // Its node died before it could say that the bytes are there.
    let mut store = photographed.node.store().await;
    let old = format!(
        "update photos set stored_at = null, created_at = now() - interval '599 seconds' where id = '{lost}'"
    );
    store.execute(sqlx::AssertSqlSafe(old)).await.unwrap();
    assert_eq!(alice.get(&format!("/v1/photos/{lost}")).await.status, 404, "it is not there yet");
    assert_eq!(photographed.files().len(), 2, "it may still come");
    eventually("it is given up", async || photographed.files().len() == 1).await;
    assert!(content(&alice, &kept).await.body == png(10, 10, 5_000));
    // An upload that was slower than that leaves nothing either: its name is looked at once more.
    let left: Vec<String> = sqlx::query_scalar("select object from photo_leftovers")
        .fetch_all(&mut store)
        .await
        .unwrap();
    let [object] = &left[..] else { panic!("{left:?}") };
    let file = photographed.folder.0.join(object);
    std::fs::write(&file, b"late").unwrap();
    let later = "update photo_leftovers set gone_at = now() - interval '601 seconds', due = now()";
    store.execute(later).await.unwrap();
    eventually("it goes too", async || !file.exists()).await;
    eventually("and is forgotten", async || {
        let left = sqlx::query_scalar::<_, i64>("select count(*) from photo_leftovers");
        left.fetch_one(&photographed.node.node.core.pool).await.unwrap() == 0
    })
    .await;
    photographed.node.node.stop().await;
}
