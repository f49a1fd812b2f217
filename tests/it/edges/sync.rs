//! What a person's devices share, over HTTP and WebSocket.

use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::{Came, Http, TestNode, Ws, id, text};

const SECOND: u64 = 1 << 32;

fn device(n: u128) -> String {
    proxie::systems::devices::domain::clock::DeviceId::new(n).to_string()
}

/// Now and so many seconds, as uhlc counts.
fn at(seconds: i64) -> String {
    let now = Clock::System.now().as_second() + seconds;
    (now as u64 * SECOND).to_string()
}

fn operation(sequence: u64, timestamp: &str, kind: &str, payload: Value) -> Value {
    json!({"sequence": sequence, "timestamp": timestamp, "operation_type": kind, "payload": payload})
}

fn add(sequence: u64, content_id: &str, tag: &str) -> Value {
    let payload = json!({"content_id": content_id, "tag": tag});
    operation(sequence, &at(-3_600 + sequence as i64), "WatchlistAdd", payload)
}

fn remove(sequence: u64, content_id: &str, tag: &str) -> Value {
    let payload = json!({"content_id": content_id, "tag": tag});
    operation(sequence, &at(-3_600 + sequence as i64), "WatchlistRemove", payload)
}

fn play(sequence: u64, seconds: i64, position_ms: u64) -> Value {
    let payload = json!({"content_id": "tt0133093", "position_ms": position_ms});
    operation(sequence, &at(seconds), "PlaybackUpdate", payload)
}

fn update(device: &str, operations: Vec<Value>) -> Value {
    json!({"device_id": device, "operations": operations})
}

async fn register(client: &Http, n: u128, kind: &str) -> String {
    let body = json!({
        "device_id": device(n), "name": kind, "device_type": kind, "push_token": "a-push-token",
        "capabilities": {"supports_4k": true, "supported_platforms": ["netflix"], "remote_control": true},
    });
    let answer = client.post("/v1/devices/register", &body).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    assert!(!answer.text.contains("a-push-token"));
    text(&answer.json()["id"])
}

/// The next `sync:delta`, of whom, and its operations' types.
async fn delta(ws: &mut Ws) -> (String, Vec<String>) {
    let event = ws.event_named("sync:delta").await;
    let kinds = event["data"]["operations"].as_array().unwrap().iter();
    (text(&event["data"]["device_id"]), kinds.map(|o| text(&o["operation_type"])).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_device_writes_the_others_hear() {
    let node = TestNode::start().await;
    let alice = node.user("alice");
    let (phone, tv) = (register(&alice, 1, "ios").await, register(&alice, 2, "android_tv").await);
    let (mut on_phone, mut on_tv) = (node.ws("alice").await, node.ws("alice").await);
    let topic = json!({"topic": "sync:alice"});
    let start = on_tv.ok("topic:subscribe", topic.clone()).await;
    on_phone.ok("topic:subscribe", topic).await;
    let operations = vec![add(1, "tt1", "a"), play(2, -10, 60_000)];
    let answer = on_phone.ok("sync:update", update(&phone, operations.clone())).await;
    assert_eq!((&answer["sequence"], &answer["position"]["offset"]), (&json!(2), &json!(1)));
    let heard = (phone.clone(), vec!["WatchlistAdd".to_owned(), "PlaybackUpdate".to_owned()]);
    assert_eq!(delta(&mut on_tv).await, heard);
    assert_eq!(delta(&mut on_phone).await, heard);
    // The same again has no effect, whatever id it comes under.
    let again = on_phone.ok("sync:update", update(&phone, operations)).await;
    assert_eq!((&again["sequence"], &again["position"]["offset"]), (&json!(2), &json!(1)));
    // The TV's clock is an hour ahead. It is told, and its word counts as of now.
    let answer = on_tv.ok("sync:update", update(&tv, vec![play(1, 3_600, 90_000)])).await;
    assert_eq!(answer["restamped"][0]["sequence"], 1);
    assert_eq!(answer["sequence"], 1);
    delta(&mut on_phone).await;
    let state = alice.get("/v1/sync/state/me").await.json();
    assert_eq!(state["watchlist"][0]["content_id"], "tt1");
    let position = &state["playback_positions"]["tt0133093"];
    assert_eq!((&position["position_ms"], &position["device_id"]), (&json!(90_000), &json!(tv)));
    assert_eq!(state["position"]["offset"], 2);
    assert_eq!(alice.get("/v1/sync/state/alice").await.json(), state);
    let why = alice.get("/v1/sync/explain/tt0133093").await.json();
    assert_eq!(why["playback_position"]["wins"]["by"]["device_id"], tv.as_str());
    assert_eq!(why["playback_position"]["beaten"]["position_ms"], 60_000);
    assert_eq!(why["playback_position"]["why"], "it was written later than any other");

    // A node dies. Whoever was away hears what it missed, and nothing is lost or comes twice.
    drop((on_phone, on_tv));
    let node = node.restart().await;
    let alice = node.user("alice");
    let mut on_phone = node.ws("alice").await;
    on_phone.ok("sync:update", update(&phone, vec![remove(3, "tt1", "a")])).await;
    let mut on_tv = node.ws("alice").await;
    let resume = json!({"topic": "sync:alice", "position": start["position"]});
    assert_eq!(on_tv.ok("topic:subscribe", resume).await["recovered"], true);
    let missed = [delta(&mut on_tv).await, delta(&mut on_tv).await, delta(&mut on_tv).await];
    assert_eq!(missed.map(|(_, kinds)| kinds.len()), [2, 1, 1]);
    let standing = on_tv.ok("sync:device", json!({"device_id": tv})).await;
    assert_eq!((&standing["sequence"], &standing["stable"]), (&json!(1), &json!(0)));
    // What both have seen is stable.
    let position = json!({"epoch": start["position"]["epoch"], "offset": 3});
    for device in [&phone, &tv] {
        on_tv.ok("sync:update", json!({"device_id": device, "position": position})).await;
    }
    let why = alice.get("/v1/sync/explain/tt1").await.json();
    assert_eq!(
        (&why["watchlist"]["present"], &why["watchlist"]["stable"]),
        (&json!(false), &json!(3))
    );
    assert_eq!(why["watchlist"]["removals"], json!([]));

    // Over HTTP, with what it has not seen.
    let mut body = update(&tv, vec![add(2, "tt2", "b")]);
    body["position"] = json!({"epoch": start["position"]["epoch"], "offset": 1});
    let merged = alice.post("/v1/sync/merge", &body).await;
    assert_eq!(merged.status, 200, "{}", merged.text);
    let merged = merged.json();
    assert_eq!((&merged["sequence"], &merged["must_resync"]), (&json!(2), &json!(false)));
    assert_eq!(merged["deltas"].as_array().unwrap().len(), 3);
    assert_eq!(merged["position"]["offset"], 4);
    let unknown = json!({"device_id": tv, "position": {"epoch": "other", "offset": 1}});
    assert_eq!(alice.post("/v1/sync/merge", &unknown).await.json()["must_resync"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said_and_loses_nothing() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.user("alice"), node.user("bob"));
    let phone = register(&alice, 1, "ios").await;
    let mut ws = node.ws("alice").await;
    for (operations, pointer) in [
        (json!([{"sequence": 1}]), "/operations/0"),
        (json!([add(1, "", "t")]), "/operations/0/payload/content_id"),
        (json!([add(1, "c", "t"), add(1, "c", "u")]), "/operations"),
        (json!([add(2, "c", "t"), add(1, "c", "u")]), "/operations"),
        (json!("x"), "/operations"),
        (json!([add(0, "c", "t")]), "/operations/0/sequence"),
        // Times that no such number can say.
        (json!([operation(1, "2200-01-01T00:00:00Z", "Nothing", json!({}))]), "/operations/0"),
        (json!([operation(1, "9999-01-01T00:00:00Z", "Nothing", json!({}))]), "/operations/0"),
        (json!([operation(1, "-009999-01-02T00:00:00Z", "Nothing", json!({}))]), "/operations/0"),
    ] {
        let body = json!({"device_id": phone, "operations": operations});
        let answer = alice.post("/v1/sync/merge", &body).await;
        answer.problem(400, "bad_request");
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{}", answer.text);
        assert_eq!(ws.refused("sync:update", body).await, "bad_request");
    }
    // After a hole nothing is taken, and the answer says where it is.
    let answer = ws.ok("sync:update", update(&phone, vec![add(5, "c", "t")])).await;
    assert_eq!(answer["sequence"], 0);
    let stranger = ws.ask_as(&id(), "sync:update", update(&device(9), vec![])).await;
    assert_eq!(stranger["error"]["reason"], "unknown_device");
    // Nobody sees, hears or writes what is another's.
    bob.get("/v1/sync/state/alice").await.problem(404, "not_found");
    bob.get("/v1/sync/devices/alice").await.problem(404, "not_found");
    bob.get(&format!("/v1/devices/{phone}")).await.problem(404, "not_found");
    bob.send("DELETE", &format!("/v1/devices/{phone}"), &[], b"").await.problem(404, "not_found");
    let mut bobs = node.ws("bob").await;
    assert_eq!(bobs.refused("topic:subscribe", json!({"topic": "sync:alice"})).await, "forbidden");
    let topic = json!({"topic": format!("device:{phone}")});
    assert_eq!(bobs.refused("topic:subscribe", topic).await, "not_found");
    assert_eq!(bobs.refused("device:connect", json!({"device_id": phone})).await, "not_found");
    let answer = bobs.ask_as(&id(), "sync:update", update(&phone, vec![add(1, "c", "t")])).await;
    assert_eq!(answer["error"]["reason"], "unknown_device");
    let body = json!({"device_id": phone, "name": "Mine", "device_type": "web"});
    bob.post("/v1/devices/register", &body).await.problem(409, "conflict");
    // Nor does it take one of his places.
    let standing = bobs.ask_as(&id(), "sync:device", json!({"device_id": phone})).await;
    assert_eq!(standing["error"]["reason"], "unknown_device", "{standing}");
    assert_eq!(bob.get("/v1/devices").await.json()["items"], json!([]));
    for (body, pointer) in [
        (json!({}), "/name"),
        (json!({"name": "x", "device_type": "toaster"}), "/device_type"),
        (json!({"name": "x", "device_type": "web", "device_id": "dev_1"}), "/device_id"),
        (json!({"name": "x", "device_type": "web", "push_token": ""}), "/push_token"),
    ] {
        let answer = bob.post("/v1/devices/register", &body).await;
        answer.problem(400, "bad_request");
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_come_and_go_and_tell_each_other_what_to_do() {
    let node = TestNode::start().await;
    let alice = node.user("alice");
    let (phone, tv) = (register(&alice, 1, "ios").await, register(&alice, 2, "android_tv").await);
    let mut on_phone = node.ws("alice").await;
    let status = async |wanted: &str| {
        let shown = alice.get(&format!("/v1/devices/{tv}")).await.json();
        assert_eq!(shown["status"], wanted, "{shown}");
        shown
    };
    status("offline").await;
    let command =
        json!({"device_id": tv, "action": "seek", "position_ms": 5_000, "from_device_id": phone});
    let refused = on_phone.ask_as(&id(), "device:command", command.clone()).await;
    assert_eq!(refused["error"]["reason"], "device_offline");

    let mut on_tv = node.ws("alice").await;
    on_tv.ok("topic:subscribe", json!({"topic": format!("device:{tv}")})).await;
    on_tv.ok("device:connect", json!({"device_id": tv})).await;
    let changed = on_phone.event_where("device:changed", |data| data["change"] == "online").await;
    assert_eq!(
        (&changed["device_id"], &changed["device"]["status"]),
        (&json!(tv), &json!("online"))
    );
    status("online").await;
    // Said twice.
    on_tv.ok("device:connect", json!({"device_id": tv})).await;
    // Once, however often it is sent.
    let once = id();
    let sent = on_phone.ask_as(&once, "device:command", command.clone()).await;
    assert_eq!(on_phone.ask_as(&once, "device:command", command).await, sent);
    let next = json!({"action": "next"});
    let path = format!("/v1/devices/{tv}/commands");
    assert_eq!(alice.post(&path, &next).await.status, 200);
    let heard =
        [on_tv.event_named("device:command").await, on_tv.event_named("device:command").await];
    assert_eq!(heard[0]["data"]["command_id"], sent["data"]["command_id"]);
    assert_eq!(
        (&heard[0]["data"]["action"], &heard[0]["data"]["position_ms"]),
        (&json!("seek"), &json!(5_000))
    );
    assert_eq!(heard[0]["data"]["from_device_id"], phone.as_str());
    assert_eq!(heard[1]["data"]["action"], "next");
    for (body, pointer) in [
        (json!({}), "/action"),
        (json!({"action": "fly"}), "/action"),
        (json!({"action": "seek"}), "/position_ms"),
        (json!({"action": "next", "ttl_ms": 0}), "/ttl_ms"),
        (json!({"action": "next", "from_device_id": "x"}), "/from_device_id"),
    ] {
        let answer = alice.post(&path, &body).await;
        answer.problem(400, "bad_request");
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{}", answer.text);
    }
    let soon =
        "select count(*) from timers where kind = 'device' and due_at < now() + interval '30 s'";
    let mut store = node.store().await;
    let soon: i64 = sqlx::query_scalar(soon).fetch_one(&mut store).await.unwrap();
    assert_eq!(soon, 0, "its lease is not cut short by what was said twice");
    // Gone without a word; a moment later it is offline.
    drop(on_tv);
    on_phone.event_where("device:changed", |data| data["change"] == "offline").await;
    assert!(status("offline").await["last_seen"].is_string());

    // Five devices are free.
    for n in 3..=5 {
        register(&alice, n, "web").await;
    }
    let sixth = json!({"device_id": device(6), "name": "x", "device_type": "web"});
    let answer = alice.post("/v1/devices/register", &sixth).await;
    answer.problem(422, "rejected");
    assert_eq!(answer.json()["reason"], "too_many_devices");
    let auth = &node.node.gateway().auth;
    let now = node.node.gateway().clock.now();
    let mut premium = node.user_as("alice", Role::Consumer);
    premium.token = Some(auth.mint_for("alice", Role::Consumer, Some("premium"), None, now, 60));
    assert_eq!(premium.post("/v1/devices/register", &sixth).await.status, 201);
    let listed = alice.get("/v1/sync/devices").await.json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 6);
    assert_eq!(alice.send("DELETE", &format!("/v1/devices/{phone}"), &[], b"").await.status, 204);
    alice.get(&format!("/v1/devices/{phone}")).await.problem(404, "not_found");
    assert_eq!(alice.send("DELETE", &format!("/v1/devices/{phone}"), &[], b"").await.status, 204);
    assert_eq!(alice.get("/v1/devices").await.json()["items"].as_array().unwrap().len(), 5);
    let answer = on_phone.ask_as(&id(), "sync:update", update(&phone, vec![])).await;
    assert_eq!(answer["error"]["reason"], "device_removed");
}

/// A device on `/sync/ws`.
struct Synced(Ws);

impl Synced {
    async fn open(node: &TestNode, user: &str) -> Self {
        let bearer = format!("Bearer {}", node.token(user, Role::Consumer, 60));
        Self(node.try_ws_at("/sync/ws", &[("authorization", &bearer)]).await.unwrap())
    }

    async fn say(&mut self, message: Value) {
        self.0.raw(Message::text(message.to_string())).await;
    }

    /// The next of this type; others are skipped.
    async fn hear(&mut self, kind: &str) -> Value {
        loop {
            let message = self.0.event().await;
            if message["type"] == kind {
                return message;
            }
        }
    }

    /// Others come and go meanwhile, and it may hear of itself.
    async fn hear_of(&mut self, device: &str, event: &str) -> Value {
        loop {
            let heard = self.hear("DeviceEvent").await;
            if heard["device_id"] == device && heard["event"] == event {
                return heard;
            }
        }
    }

    async fn subscribe(&mut self, device: &str, position: Value) -> Value {
        self.say(json!({"type": "Subscribe", "user_id": "alice", "device_id": device, "position": position})).await;
        self.hear("Subscribed").await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_speak_the_messages_of_sync_ws() {
    let node = TestNode::start().await;
    let alice = node.user("alice");
    let (phone, tv) = (register(&alice, 1, "ios").await, register(&alice, 2, "android_tv").await);
    let mut on_phone = Synced::open(&node, "alice").await;
    let start = on_phone.subscribe(&phone, Value::Null).await;
    assert_eq!((&start["sequence"], &start["position"]["offset"]), (&json!(0), &json!(0)));
    let mut named = add(1, "tt1", "a");
    named["operation_id"] = json!("op-1");
    on_phone.say(json!({"type": "StateUpdate", "operations": [named, play(2, -5, 7)]})).await;
    let told = on_phone.hear("Acknowledge").await;
    assert_eq!((&told["sequence"], &told["operation_ids"]), (&json!(2), &json!(["op-1", null])));

    // A newcomer hears the state, then what is live.
    let mut on_tv = Synced::open(&node, "alice").await;
    on_tv.say(json!({"type": "Subscribe", "user_id": "alice", "device_id": tv})).await;
    let state = on_tv.hear("StateDelta").await;
    assert_eq!(
        (&state["reset"], &state["more"], &state["position"]["offset"]),
        (&json!(true), &json!(false), &json!(1))
    );
    let kinds: Vec<_> = state["operations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| text(&o["operation_type"]))
        .collect();
    assert_eq!(kinds, ["WatchlistAdd", "PlaybackUpdate"]);
    assert_eq!(state["operations"][0]["device_id"], phone.as_str());
    assert_eq!(on_tv.hear("Subscribed").await["recovered"], false);
    on_phone.hear_of(&tv, "online").await;
    on_tv.say(json!({"type": "StateUpdate", "operations": [remove(1, "tt1", "a")]})).await;
    on_tv.hear("Acknowledge").await;
    let delta = loop {
        let delta = on_phone.hear("StateDelta").await;
        if delta["operations"][0]["device_id"] == tv.as_str() {
            break delta;
        }
    };
    assert_eq!(
        (&delta["offset"], &delta["operations"][0]["payload"]["tags"]),
        (&json!(2), &json!(["a"]))
    );
    on_phone.say(json!({"type": "DeviceCommand", "device_id": tv, "action": "pause"})).await;
    assert!(on_phone.hear("Acknowledge").await["command_id"].is_string());
    let command = &on_tv.hear_of(&tv, "command").await["command"];
    assert_eq!((&command["action"], &command["from_device_id"]), (&json!("pause"), &json!(phone)));
    let seen = json!({"epoch": start["position"]["epoch"], "offset": 2});
    on_tv.say(json!({"type": "Heartbeat", "position": seen})).await;
    on_tv.hear("Heartbeat").await;
    on_phone.say(json!({"type": "Heartbeat"})).await;
    assert!(on_phone.hear("Heartbeat").await["now"].is_string());

    // Back after a node's death, from where it was.
    drop((on_phone, on_tv));
    let node = node.restart().await;
    let mut on_phone = Synced::open(&node, "alice").await;
    let from = json!({"epoch": start["position"]["epoch"], "offset": 1});
    on_phone
        .say(json!({"type": "Subscribe", "user_id": "alice", "device_id": phone, "position": from}))
        .await;
    let told = on_phone.hear("Subscribed").await;
    assert_eq!((&told["recovered"], &told["sequence"]), (&json!(true), &json!(2)));
    assert_eq!(on_phone.hear("StateDelta").await["offset"], 2);

    // What is wrong is said, and the connection lives.
    for (message, code) in [
        (json!({"type": "Fly"}), "bad_request"),
        (json!({"type": "Subscribe", "user_id": "bob", "device_id": phone}), "forbidden"),
        (json!({"type": "Subscribe", "user_id": "alice", "device_id": device(9)}), "rejected"),
        (json!({"type": "StateUpdate", "operations": [{}]}), "bad_request"),
        (json!({"type": "DeviceCommand", "device_id": tv, "action": "fly"}), "bad_request"),
    ] {
        on_phone.say(message.clone()).await;
        assert_eq!(on_phone.hear("Error").await["code"], code, "{message}");
    }
    // It authenticates and closes as /v1/ws does.
    let mut browser = Synced(node.try_ws_at("/sync/ws", &[]).await.unwrap());
    let token = node.token("alice", Role::Consumer, 60);
    browser.0.ok("auth", json!({"token": token})).await;
    browser.subscribe(&tv, Value::Null).await;
    on_phone.0.raw(Message::text("{")).await;
    assert_eq!(on_phone.0.closed().await.0, 3500);
    let mut silent = Synced(node.try_ws_at("/sync/ws", &[]).await.unwrap());
    assert_eq!(silent.0.refused("auth", json!({"token": "no"})).await, "unauthenticated");
    assert_eq!(silent.0.closed().await.0, 3501);
    assert_eq!(
        node.try_ws_at("/sync/ws", &[("origin", "https://evil.example")]).await.err(),
        Some(403)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_translation_answers_itself_counts_too() {
    let node = TestNode::with(|config| {
        config.websocket.frames_per_s = 10;
        config.websocket.frame_burst = 10;
    })
    .await;
    let mut device = Synced::open(&node, "alice").await;
    // Each is answered, so nothing is left that the socket could be reset for.
    loop {
        device.say(json!({"type": "Fly"})).await;
        match device.0.next().await {
            Came::Closed(code, _) => break assert_eq!(code, 3009),
            Came::Frame(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_for_longer_than_the_log_reads_everything() {
    let node = TestNode::with(|config| config.topics.history_limit = 10).await;
    let alice = node.user("alice");
    let (phone, tv) = (register(&alice, 1, "ios").await, register(&alice, 2, "android_tv").await);
    let mut on_phone = node.ws("alice").await;
    let topic = json!({"topic": "sync:alice"});
    let start = on_phone.ok("topic:subscribe", topic).await;
    // The history is looked at with every 64th.
    for sequence in 1..=150 {
        on_phone.ok("sync:update", update(&phone, vec![play(sequence, -1, sequence)])).await;
    }
    let early = json!({"epoch": start["position"]["epoch"], "offset": 1});
    let late = json!({"epoch": start["position"]["epoch"], "offset": 149});
    let merge = |position: &Value| json!({"device_id": tv, "position": position});
    let merged = alice.post("/v1/sync/merge", &merge(&early)).await.json();
    assert_eq!((&merged["must_resync"], &merged["deltas"]), (&json!(true), &json!([])));
    let merged = alice.post("/v1/sync/merge", &merge(&late)).await.json();
    assert_eq!(merged["must_resync"], false);
    assert_eq!(merged["deltas"].as_array().unwrap().len(), 1);
    // Over a socket the state comes by itself.
    let mut on_tv = Synced::open(&node, "alice").await;
    let subscribe =
        json!({"type": "Subscribe", "user_id": "alice", "device_id": tv, "position": early});
    on_tv.say(subscribe).await;
    let state = on_tv.hear("StateDelta").await;
    assert_eq!((&state["reset"], &state["position"]["offset"]), (&json!(true), &json!(150)));
    assert_eq!(state["operations"][0]["payload"]["position_ms"], 150);
    assert_eq!(on_tv.hear("Subscribed").await["recovered"], false);
}
