//! What stands between an offer and a booking: the provider as they are now, the calendar in the database, and names that
//! are what they look like.

use std::time::Duration;

use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use serde_json::{Value, json};
use sqlx::Connection;

use super::{Http, TestNode, hairdresser, text};

async fn patch(client: &Http, provider: &str, body: &Value) -> Value {
    let headers = [("content-type", "application/json"), ("if-match", "*")];
    let path = format!("/v1/providers/{provider}");
    let answer = client.send("PATCH", &path, &headers, body.to_string().as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

/// A request for this time, and the first offer to it.
async fn offered(client: &Http, hours: u64) -> (String, Value) {
    let at = Clock::System.now() + Duration::from_secs(hours * 3_600);
    let at = jiff::Timestamp::from_second(at.as_second()).unwrap().to_string();
    let body = json!({"service": "haircut", "place": "Alexanderplatz, Berlin", "starts_at": at});
    let answer = client.post("/v1/requests", &body).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    let request = text(&answer.json()["id"]);
    let offer = client.offer(&request).await;
    (request, offer)
}

#[track_caller]
fn wrong(answer: &super::Answer, pointer: &str) {
    let errors = answer.json()["errors"].clone();
    let named = errors.as_array().is_some_and(|all| all.iter().any(|e| e["pointer"] == pointer));
    assert!((400..500).contains(&answer.status) && named, "{pointer}: {}", answer.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_dies_with_the_providers_hours() {
    let node = TestNode::start().await;
    let provider = node.hairdresser().await;
    let (pat, alice) = (node.user_as("pat", Role::Provider), node.user("alice"));
    let mut ws = node.ws("alice").await;
    let (request, offer) = offered(&alice, 48).await;
    patch(&pat, &provider, &json!({"weekly": {}})).await;
    let heard =
        ws.event_where("offer:updated", |data| data["offer"]["status"] == "unavailable").await;
    assert_eq!(heard["offer"]["id"], offer["id"]);
    let accept = format!("/v1/offers/{}/accept", text(&offer["id"]));
    let answer = alice.post(&accept, &json!({})).await;
    answer.problem(409, "conflict");
    assert_eq!(answer.json()["reason"], "offer_withdrawn");
    let shown = alice.get(&format!("/v1/requests/{request}")).await.json();
    assert_eq!((&shown["status"], &shown["reason"]), (&json!("unmatched"), &json!("all_declined")));
    assert_eq!(alice.get("/v1/bookings").await.json()["items"], json!([]));
}

/// The provider's entity believes that the time is free; the database knows better. It is a no like any other, at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_calendar_in_the_database_has_the_last_word() {
    let node = TestNode::start().await;
    let provider = node.hairdresser().await;
    let alice = node.user("alice");
    let (request, offer) = offered(&alice, 72).await;
    let mut store = node.store().await;
    sqlx::query(
        "insert into calendar (booking_id, provider_id, during)
         values ('bkg_other', $1, tstzrange($2::timestamptz, $3::timestamptz))",
    )
    .bind(&provider)
    .bind(text(&offer["starts_at"]))
    .bind(text(&offer["ends_at"]))
    .execute(&mut store)
    .await
    .unwrap();
    let accept = format!("/v1/offers/{}/accept", text(&offer["id"]));
    let answer = alice.post(&accept, &json!({})).await;
    answer.problem(409, "conflict");
    assert_eq!(answer.json()["reason"], "slot_taken");
    let shown = alice.get(&format!("/v1/requests/{request}")).await.json();
    assert_eq!((&shown["status"], &shown["reason"]), (&json!("unmatched"), &json!("slot_taken")));
    // Refused once, and not asked twelve times.
    let open = "select count(*) from outbox where body like '%HoldSlot%'";
    let open: i64 = sqlx::query_scalar(open).fetch_one(&mut store).await.unwrap();
    assert_eq!(open, 0);
    // The provider goes on, with other times.
    let (_, offer) = offered(&alice, 96).await;
    let accept = format!("/v1/offers/{}/accept", text(&offer["id"]));
    assert_eq!(alice.post(&accept, &json!({})).await.status, 200);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_finds_themselves() {
    let node = TestNode::start().await;
    node.hairdresser().await;
    let pat = node.user("pat");
    let at = Clock::System.now() + Duration::from_secs(48 * 3_600);
    let body = json!({"service": "haircut", "place": "Alexanderplatz, Berlin", "starts_at": at});
    let mut ws = node.ws("pat").await;
    let request = pat.post("/v1/requests", &body).await.json();
    let over = ws.event_where("request:updated", |data| data["status"] == "unmatched").await;
    assert_eq!((&over["id"], &over["reason"]), (&request["id"], &json!("no_providers")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_what_they_look_like_and_zones_fit_their_place() {
    let node = TestNode::start().await;
    let (pat, alice) = (node.user_as("pat", Role::Provider), node.user("alice"));
    let mut ws = node.ws("alice").await;
    for trick in [
        "\n", "\r", "\t", "\u{7f}", "\u{85}", "\u{200B}", "\u{200F}", "\u{2028}", "\u{202E}",
        "\u{2066}", "\u{FEFF}",
    ] {
        let mut provider = hairdresser();
        provider["name"] = json!(format!("Salon {trick}Alex"));
        wrong(&pat.post("/v1/providers", &provider).await, "/name");
        let device = json!({"name": format!("TV{trick}x"), "device_type": "web"});
        wrong(&alice.post("/v1/devices/register", &device).await, "/name");
        let status = json!({"status": format!("on{trick}line")});
        assert_eq!(ws.refused("presence:online", status).await, "bad_request");
        let place = json!({"latitude": 52.5, "longitude": 13.4, "name": format!("Alex{trick}x")});
        let at = Clock::System.now() + Duration::from_secs(48 * 3_600);
        let request = json!({"service": "haircut", "place": place, "starts_at": at});
        wrong(&alice.post("/v1/requests", &request).await, "/place/name");
    }
    let mut provider = hairdresser();
    provider["bio"] = json!("Two\nlines.");
    provider["base"]["time_zone"] = json!("America/New_York");
    wrong(&pat.post("/v1/providers", &provider).await, "/base/time_zone");
    provider["base"]["time_zone"] = json!("Europe/Vienna");
    assert_eq!(pat.post("/v1/providers", &provider).await.status, 201);
}
