//! Photos of requests: the providers who were asked see them, and nobody else.

use std::time::Duration;

use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use serde_json::json;

use super::{Photographed, jpeg, png, send, upload};
use crate::edges::{hairdresser, text};

#[tokio::test(flavor = "multi_thread")]
async fn providers_who_are_asked_see_the_photos_of_a_request() {
    let photographed = Photographed::new("photos-shown", |_| {}).await;
    let node = &photographed.node;
    node.hairdresser().await;
    let (alice, bob) = (node.user("alice"), node.user("bob"));
    let (pat, mallory) =
        (node.user_as("pat", Role::Provider), node.user_as("mallory", Role::Provider));
    let mut elsewhere = hairdresser();
    elsewhere["base"]["latitude"] = json!(48.1);
    assert_eq!(mallory.post("/v1/providers", &elsewhere).await.status, 201);
    let photo = upload(&alice, &png(640, 480, 50_000)).await;
    let (hidden, his) = (upload(&alice, &jpeg()).await, upload(&bob, &jpeg()).await);
    let at = Clock::System.now() + Duration::from_secs(48 * 3_600);
    let at = jiff::Timestamp::from_second(at.as_second()).unwrap().to_string();
    let asked = |photos: &[&str]| json!({"service": "haircut", "place": "Alexanderplatz, Berlin", "starts_at": at, "photos": photos});
    for wrong in [[&*photo, &*his], [&*photo, "pho_unknown"]] {
        let refused = alice.post("/v1/requests", &asked(&wrong)).await.problem(400, "bad_request");
        assert_eq!(refused["errors"][0]["pointer"], "/photos/1", "{refused}");
    }
    let refused =
        alice.post("/v1/requests", &asked(&[&*photo; 6])).await.problem(400, "bad_request");
    assert_eq!(refused["errors"][0]["pointer"], "/photos", "{refused}");
    let created = alice.post_as("r1", "/v1/requests", &asked(&[&photo])).await;
    assert_eq!(created.status, 201, "{}", created.text);
    assert_eq!(created.json()["photos"], json!([photo]));
    let request = text(&created.json()["id"]);
    alice.offer(&request).await;
    let path = |photo: &str| format!("/v1/requests/{request}/photos/{photo}");
    for (who, expected) in [(&alice, 200), (&pat, 200), (&mallory, 404), (&bob, 404)] {
        let shown = send(who, "GET", &path(&photo), &[], "").await;
        assert_eq!(shown.status, expected);
        if expected == 200 {
            assert!(shown.body == png(640, 480, 50_000));
            assert_eq!(shown.headers["content-type"], "image/png");
        }
    }
    // Not by another way, and no other photo of hers.
    assert_eq!(super::content(&pat, &photo).await.status, 404);
    assert_eq!(send(&pat, "GET", &path(&hidden), &[], "").await.status, 404);
    assert_eq!(send(&pat, "GET", "/v1/requests/req_1/photos/pho_1", &[], "").await.status, 404);
    // Deleted, it is gone for all; the request is what it was, and so is its retry.
    let deleted = alice.send("DELETE", &format!("/v1/photos/{photo}"), &[], b"").await;
    assert_eq!(deleted.status, 204);
    assert_eq!(send(&pat, "GET", &path(&photo), &[], "").await.status, 404);
    let again = alice.post_as("r1", "/v1/requests", &asked(&[&photo])).await;
    assert_eq!((again.status, &again.json()["id"]), (201, &json!(request)));
    // A sentence can have some too.
    let said = json!({"text": "a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros", "photos": [hidden]});
    let created = alice.post("/v1/requests", &said).await;
    assert_eq!(
        (created.status, &created.json()["photos"]),
        (201, &json!([hidden])),
        "{}",
        created.text
    );
    photographed.node.node.stop().await;
}
