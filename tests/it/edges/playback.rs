//! What people watch: on the best platform for a device, no more than the plan allows, told and controlled from afar.

use proxie::systems::devices::settings::PlaybackSettings;
use std::time::Duration;

use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use proxie::systems::devices::domain::clock::DeviceId;
use serde_json::{Value, json};

use super::{Http, TestNode, Ws, id, text};

const FILM: &str = "tt0133093";

async fn available(node: &TestNode, content: &str, ways: Value) -> Value {
    let operator = node.user_as("ops", Role::Operator);
    let body = json!({"availability": ways}).to_string();
    let path = format!("/v1/content/{content}/availability");
    let json = [("content-type", "application/json")];
    let answer = operator.send("PUT", &path, &json, body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

async fn register(client: &Http, n: u128, device_type: &str, platforms: &[&str]) -> String {
    let body = json!({
        "device_id": DeviceId::new(n).to_string(), "name": device_type, "device_type": device_type,
        "capabilities": {"supported_platforms": platforms, "remote_control": true},
    });
    let answer = client.post("/v1/devices/register", &body).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    text(&answer.json()["id"])
}

/// A connection that speaks for the device and hears what it is told.
async fn connect(node: &TestNode, device: &str) -> Ws {
    let mut ws = node.ws("alice").await;
    ws.ok("topic:subscribe", json!({"topic": format!("device:{device}")})).await;
    ws.ok("device:connect", json!({"device_id": device})).await;
    ws
}

/// As the user's other connections hear it.
async fn changed(ws: &mut Ws, session: &Value, status: &str) -> Value {
    let wanted = |data: &Value| data["id"] == *session && data["status"] == status;
    ws.event_where("playback:changed", wanted).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_film_starts_on_the_tv_and_is_paused_from_the_phone() {
    let node = TestNode::start().await;
    let alice = node.user("alice");
    let phone = register(&alice, 1, "ios", &[]).await;
    let tv = register(&alice, 2, "android_tv", &["netflix", "youtube"]).await;
    let set = available(
        &node,
        FILM,
        json!([
            {"platform": "max", "platform_content_id": "9", "access": "subscription"},
            {"platform": "youtube", "platform_content_id": "m8e", "access": "rent"},
            {"platform": "netflix", "platform_content_id": "20557937", "access": "subscription"},
        ]),
    )
    .await;
    assert_eq!(set["version"], 1);
    let path = format!("/v1/content/{FILM}/availability");
    assert_eq!(alice.get(&path).await.json(), set);

    let (mut on_phone, mut on_tv) = (node.ws("alice").await, connect(&node, &tv).await);
    // On the phone it was seen up to here.
    let seen = json!({"device_id": phone, "operations": [{
        "sequence": 1, "timestamp": "2026-01-12T08:00:00Z", "operation_type": "PlaybackUpdate",
        "payload": {"content_id": FILM, "position_ms": 90_000, "duration_ms": 8_160_000},
    }]});
    on_phone.ok("sync:update", seen).await;
    let initiate = json!({"content_id": FILM, "device_id": tv});
    let once = id();
    let answer = on_phone.ask_as(&once, "playback:initiate", initiate.clone()).await;
    let session = &answer["data"];
    assert_eq!(
        (&session["platform"], &session["resume_position_ms"], &session["device_status"]),
        (&json!("netflix"), &json!(90_000), &json!("online")),
        "{answer}"
    );
    let link = text(&session["deep_link"]);
    assert!(link.contains("20557937") && link.contains("com.netflix.ninja"), "{link}");
    assert_eq!(session["web_fallback"], "https://www.netflix.com/title/20557937");
    let session_id = session["session_id"].clone();
    let heard = on_tv.event_named("playback:start").await;
    assert_eq!(
        (&heard["data"]["session_id"], &heard["data"]["deep_link"]),
        (&session_id, &json!(link))
    );
    changed(&mut on_phone, &session_id, "starting").await;
    // The same command again is the same session, though another way would be better by now.
    let free = json!([{"platform": "netflix", "platform_content_id": "1", "access": "free"}]);
    available(&node, FILM, free).await;
    let again = on_phone.ask_as(&once, "playback:initiate", initiate.clone()).await;
    assert_eq!((&again["data"]["id"], &again["data"]["deep_link"]), (&session_id, &json!(link)));

    let report = json!({"session_id": session_id, "status": "playing", "position_ms": 91_000});
    on_tv.ok("playback:report", report).await;
    changed(&mut on_phone, &session_id, "playing").await;
    let path = format!("/v1/playback/session/{}", text(&session_id));
    let shown = alice.get(&path).await.json();
    assert_eq!(
        (&shown["status"], &shown["position_ms"], &shown["content_id"]),
        (&json!("playing"), &json!(91_000), &json!(FILM))
    );
    assert_eq!(alice.get(&format!("/v1/devices/{tv}")).await.json()["status"], "watching");

    let pause = json!({"session_id": session_id, "action": "pause", "from_device_id": phone});
    let told = alice.post("/v1/playback/control", &pause).await.json();
    let heard = on_tv.event_named("device:command").await;
    assert_eq!(told["delivered"], true);
    assert_eq!(
        (&heard["data"]["command_id"], &heard["data"]["action"]),
        (&told["command_id"], &json!("pause"))
    );
    assert_eq!(heard["data"]["playback_session_id"], session_id);

    // A node dies. What is watched goes on, and can be stopped.
    drop((on_phone, on_tv));
    let node = node.restart().await;
    let alice = node.user("alice");
    assert_eq!(alice.get(&path).await.json()["status"], "playing");
    let stop = json!({"session_id": session_id, "action": "stop"});
    let mallory = json!({"session_id": session_id, "action": "stop", "user_id": "bob"});
    alice.post("/v1/playback/control", &mallory).await.problem(403, "forbidden");
    let mut on_tv = connect(&node, &tv).await;
    let path_of_control = "/v1/playback/control";
    let stopped = alice.post_as("stop-1", path_of_control, &stop).await.json();
    assert_eq!((&stopped["status"], &stopped["delivered"]), (&json!("ended"), &json!(true)));
    assert_eq!(on_tv.event_named("device:command").await["data"]["action"], "stop");
    assert_eq!(alice.post_as("stop-1", path_of_control, &stop).await.json(), stopped);
    let shown = alice.get(&path).await.json();
    assert_eq!((&shown["status"], &shown["end_reason"]), (&json!("ended"), &json!("stopped")));
    assert_eq!(alice.post("/v1/playback/control", &stop).await.status, 200);
    // The first command once more, also now: it does not start anything.
    let again = node.ws("alice").await.ask_as(&once, "playback:initiate", initiate).await;
    assert_eq!((&again["data"]["id"], &again["data"]["status"]), (&session_id, &json!("ended")));
    let answer = alice.post("/v1/playback/control", &pause).await;
    answer.problem(422, "rejected");
    assert_eq!(answer.json()["reason"], "session_ended");
    let listed = alice.get("/v1/playback/session").await.json();
    assert_eq!(listed["items"], json!([shown]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_allows_so_many_and_a_session_ends_with_its_device() {
    let node = TestNode::start().await;
    let alice = node.user("alice");
    let phone = register(&alice, 1, "ios", &[]).await;
    let tv = register(&alice, 2, "roku", &[]).await;
    let way = json!({"platform": "tubi", "platform_content_id": "1", "access": "ads"});
    available(&node, FILM, json!([way])).await;
    let initiate = async |changes: Value| {
        let mut body = json!({"content_id": FILM, "device_id": phone, "resume": false});
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        alice.post("/v1/playback/initiate", &body).await
    };
    let answer = initiate(json!({})).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    let first = text(&answer.json()["id"]);
    assert_eq!(answer.headers["location"], format!("/v1/playback/session/{first}"));
    // `free` has one stream.
    let answer = initiate(json!({"device_id": tv})).await;
    answer.problem(422, "rejected");
    assert_eq!(answer.json()["reason"], "too_many_streams");
    assert!(answer.text.contains(&first), "it says which one could be stopped: {}", answer.text);
    let moved = initiate(json!({"device_id": tv, "replaces": first})).await;
    assert_eq!(moved.status, 201, "{}", moved.text);
    let moved = text(&moved.json()["id"]);
    let session = async |id: &str| alice.get(&format!("/v1/playback/session/{id}")).await.json();
    assert_eq!(session(&first).await["end_reason"], "replaced");
    assert_eq!(session(&moved).await["status"], "starting");

    // A device that was away hears of it when it is there, until it has said something.
    for _ in 0..2 {
        let mut on_tv = connect(&node, &tv).await;
        let heard = on_tv.event_named("playback:start").await;
        assert_eq!(heard["data"]["session_id"], moved);
        assert!(heard["data"]["expires_at"].is_string());
        drop(on_tv);
        let mut other = node.ws("alice").await;
        other.event_where("device:changed", |data| data["change"] == "offline").await;
    }

    let mut ws = node.ws("alice").await;
    let removed = alice.send("DELETE", &format!("/v1/devices/{tv}"), &[], b"").await;
    assert_eq!(removed.status, 204);
    let ended = changed(&mut ws, &json!(moved), "ended").await;
    assert_eq!(ended["end_reason"], "device_removed");
    // So there is room again.
    assert_eq!(initiate(json!({})).await.status, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_seen_to_its_end_begins_anew() {
    let node = TestNode::start().await;
    let alice = node.user("alice");
    let phone = register(&alice, 1, "ios", &[]).await;
    let tv = register(&alice, 2, "roku", &[]).await;
    let way = json!([{"platform": "tubi", "platform_content_id": "1", "access": "ads"}]);
    let mut ws = node.ws("alice").await;
    let mut sequence = 0;
    let seen = async |ws: &mut Ws, device: &str, sequence: u64, time: &str, payload: Value| {
        let operation = json!({
            "sequence": sequence, "timestamp": time, "operation_type": "PlaybackUpdate",
            "payload": payload,
        });
        ws.ok("sync:update", json!({"device_id": device, "operations": [operation]})).await;
    };
    let resumes = async |content: &str| {
        let body = json!({"content_id": content, "device_id": tv});
        let answer = alice.post("/v1/playback/initiate", &body).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        answer.json()
    };
    // The one who wrote last did not say how long it is; the one before did.
    for content in ["tt1", "tt2", "tt3"] {
        available(&node, content, way.clone()).await;
    }
    for (content, last) in [("tt1", 100_000), ("tt2", 50_000)] {
        sequence += 1;
        let payload = json!({"content_id": content, "position_ms": 7, "duration_ms": 100_000});
        seen(&mut ws, &phone, sequence, &format!("2026-01-12T08:0{sequence}:00Z"), payload).await;
        let payload = json!({"content_id": content, "position_ms": last});
        seen(&mut ws, &tv, sequence, &format!("2026-01-12T09:0{sequence}:00Z"), payload).await;
    }
    assert_eq!(resumes("tt1").await["resume_position_ms"], Value::Null);
    assert_eq!(resumes("tt2").await["resume_position_ms"], 50_000);
    // Only the session said how long it is.
    let session = resumes("tt3").await["session_id"].clone();
    let report = json!({
        "session_id": session, "status": "ended", "position_ms": 100_000, "duration_ms": 100_000,
    });
    assert_eq!(alice.post("/v1/playback/report", &report).await.status, 200);
    let payload = json!({"content_id": "tt3", "position_ms": 100_000});
    seen(&mut ws, &phone, 3, "2026-01-12T10:00:00Z", payload).await;
    assert_eq!(resumes("tt3").await["resume_position_ms"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_watches_for_ever() {
    let clock = Clock::manual("2026-01-12T08:00:00Z".parse().unwrap());
    let node = TestNode::with_clock(clock.clone(), |config| {
        config.systems.set(PlaybackSettings { idle_s: 1_800, ..PlaybackSettings::default() });
        // A device that is connected does not go offline because this clock jumps.
        config.websocket.ping_ms = 600_000;
    })
    .await;
    let alice = node.user("alice");
    let phone = register(&alice, 1, "ios", &[]).await;
    let tv = register(&alice, 2, "roku", &[]).await;
    let way = json!({"platform": "tubi", "platform_content_id": "1", "access": "ads"});
    available(&node, FILM, json!([way])).await;
    let mut ws = node.ws("alice").await;
    let watch = async |ws: &mut Ws, device: &str| {
        let body = json!({"content_id": FILM, "device_id": device});
        ws.ok("playback:initiate", body).await["id"].clone()
    };
    let status = async |path: String| {
        let answer = alice.get(&path).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        text(&answer.json()["status"])
    };
    // The node hears of the end of the connection when it does.
    let goes = async |ws: &mut Ws, on_tv: Ws| {
        drop(on_tv);
        while status(format!("/v1/devices/{tv}")).await != "offline" {
            clock.advance_ms(6_000);
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        ws.event_where("device:changed", |data| data["change"] == "offline").await;
    };

    // The TV is back in time, and goes on; but nobody hears of the film any more.
    let on_tv = connect(&node, &tv).await;
    let session = watch(&mut ws, &tv).await;
    goes(&mut ws, on_tv).await;
    let mut on_tv = connect(&node, &tv).await;
    on_tv.event_named("playback:start").await;
    clock.advance_ms(1_801_000);
    let ended = changed(&mut ws, &session, "ended").await;
    assert_eq!(ended["end_reason"], "timed_out");

    // The TV stays away.
    let session = watch(&mut ws, &tv).await;
    let playing = json!({"session_id": session, "status": "playing", "position_ms": 1});
    on_tv.ok("playback:report", playing).await;
    goes(&mut ws, on_tv).await;
    while status(format!("/v1/playback/session/{}", text(&session))).await != "ended" {
        clock.advance_ms(121_000);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let ended = changed(&mut ws, &session, "ended").await;
    assert_eq!(ended["end_reason"], "device_offline");
    // So there is room for another, on a plan of one.
    watch(&mut ws, &phone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_played_is_said_and_nobody_plays_for_another() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.user("alice"), node.user("bob"));
    let tv = register(&alice, 1, "android_tv", &["netflix"]).await;
    let in_germany = json!([
        {"platform": "hulu", "platform_content_id": "1", "access": "subscription", "region": "US"},
        {"platform": "netflix", "platform_content_id": "2", "access": "subscription", "region": "DE"},
    ]);
    available(&node, FILM, in_germany).await;
    let path = "/v1/playback/initiate";
    for (changes, reason) in [
        (json!({"content_id": "tt9"}), "availability_unknown"),
        (json!({"region": "FR"}), "not_available"),
        (json!({"region": "US"}), "not_on_device"),
    ] {
        let mut body = json!({"content_id": FILM, "device_id": tv});
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let answer = alice.post(path, &body).await;
        answer.problem(422, "rejected");
        assert_eq!(answer.json()["reason"], reason);
    }
    for (body, pointers) in [
        (json!({}), vec!["/content_id", "/device_id"]),
        (json!({"content_id": FILM, "device_id": "tv"}), vec!["/device_id"]),
        (
            json!({"content_id": FILM, "device_id": tv, "quality_preference": "8k"}),
            vec!["/quality_preference"],
        ),
    ] {
        let answer = alice.post(path, &body).await;
        answer.problem(400, "bad_request");
        let errors = answer.json()["errors"].clone();
        let found: Vec<_> =
            errors.as_array().unwrap().iter().map(|error| text(&error["pointer"])).collect();
        assert_eq!(found, pointers, "{}", answer.text);
    }
    let body = json!({"content_id": FILM, "device_id": tv});
    bob.post(path, &body).await.problem(404, "not_found");
    let session = text(&alice.post(path, &body).await.json()["session_id"]);
    bob.get(&format!("/v1/playback/session/{session}")).await.problem(404, "not_found");
    let stop = json!({"session_id": session, "action": "stop"});
    bob.post("/v1/playback/control", &stop).await.problem(404, "not_found");
    let report = json!({"session_id": session, "status": "ended"});
    bob.post("/v1/playback/report", &report).await.problem(404, "not_found");
    // A report that was taken is not taken again, late.
    for (key, status) in [("r-1", "paused"), ("r-2", "playing"), ("r-1", "paused")] {
        let report = json!({"session_id": session, "status": status});
        let answer = alice.post_as(key, "/v1/playback/report", &report).await.json();
        assert_eq!(answer["status"], status);
    }
    let path = format!("/v1/playback/session/{session}");
    assert_eq!(alice.get(&path).await.json()["status"], "playing");
    // Nobody speaks for the TV.
    let pause = json!({"session_id": session, "action": "pause"});
    let answer = alice.post("/v1/playback/control", &pause).await;
    assert_eq!(answer.json()["reason"], "device_offline");
    for report in [
        json!({"session_id": session}),
        json!({"session_id": session, "status": "starting"}),
        json!({"session_id": session, "status": "playing", "position_ms": -1}),
    ] {
        alice.post("/v1/playback/report", &report).await.problem(400, "bad_request");
    }
    // Where things can be watched is the operator's word.
    let json = [("content-type", "application/json")];
    let path = format!("/v1/content/{FILM}/availability");
    let put =
        async |client: &Http, body: &str| client.send("PUT", &path, &json, body.as_bytes()).await;
    put(&alice, r#"{"availability":[]}"#).await.problem(403, "forbidden");
    let operator = node.user_as("ops", Role::Operator);
    for (body, pointer) in [
        (r#"{}"#, "/availability"),
        (r#"{"availability":[{}]}"#, "/availability/0"),
        (
            r#"{"availability":[{"platform":"x","access":"free"}]}"#,
            "/availability/0/platform_content_id",
        ),
        (
            r#"{"availability":[{"platform":"x","access":"free","web_url":"http://x.example"}]}"#,
            "/availability/0/web_url",
        ),
        // No device could be sent there.
        (
            r#"{"availability":[{"platform":"netflix","platform_content_id":"1","access":"free"},
                {"platform":"x","platform_content_id":"1","access":"free"}]}"#,
            "/availability/1/platform",
        ),
    ] {
        let answer = put(&operator, body).await;
        answer.problem(400, "bad_request");
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{}", answer.text);
    }
    alice.get("/v1/content/tt9/availability").await.problem(404, "not_found");
    alice.get("/v1/content/%00/availability").await.problem(404, "not_found");
    let platforms = alice.get("/v1/playback/platforms").await.json();
    assert!(platforms["items"].as_array().unwrap().len() >= 10);
}
