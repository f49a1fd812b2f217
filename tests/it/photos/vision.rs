//! Photos before models: the bytes that were sent are the bytes that a provider gets, over each wire.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use proxie::ai::Options;
use proxie::systems::agents::definitions::{AgentOptions, AgentSection};
use proxie::systems::agents::settings::AiSection;
use serde_json::{Value, json};

use super::{Photographed, jpeg, png, upload};
use crate::agents::until;
use crate::models::fake::{Fake, OUTPUT};
use crate::models::routing::{WIRES, options};

/// The pictures in what a provider was asked: types and bytes.
fn seen(body: &Value) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    search(body, &mut found);
    found
}

fn search(value: &Value, found: &mut Vec<(String, Vec<u8>)>) {
    let decode = |data: &str| BASE64.decode(data).unwrap();
    if let Some(url) = value["image_url"]["url"].as_str() {
        let (media_type, data) = url.strip_prefix("data:").unwrap().split_once(";base64,").unwrap();
        found.push((media_type.into(), decode(data)));
    } else if value["type"] == "image" {
        let source = &value["source"];
        let media_type = source["media_type"].as_str().unwrap();
        found.push((media_type.into(), decode(source["data"].as_str().unwrap())));
    } else if let Some(data) = value["inline_data"]["data"].as_str() {
        let media_type = value["inline_data"]["mime_type"].as_str().unwrap();
        found.push((media_type.into(), decode(data)));
    } else if let Some(data) = value["inlineData"]["data"].as_str() {
        let media_type = value["inlineData"]["mimeType"].as_str().unwrap();
        found.push((media_type.into(), decode(data)));
    } else {
        let inside: Vec<&Value> = match value {
            Value::Array(items) => items.iter().collect(),
            Value::Object(fields) => fields.values().collect(),
            _ => Vec::new(),
        };
        inside.into_iter().for_each(|one| search(one, found));
    }
}

fn question(parts: Value) -> Value {
    json!({"prompt": {"messages": [{"role": "user", "parts": parts}], "max_tokens": OUTPUT}})
}

fn unlimited(fake: &Fake) -> Options {
    Options { daily_limit: String::new(), ..options(fake) }
}

#[tokio::test(flavor = "multi_thread")]
async fn models_get_the_bytes_that_were_sent_over_each_wire() {
    let fake = Fake::start().await;
    let ai = unlimited(&fake);
    let photographed =
        Photographed::new("vision-wires", |config| config.systems.set(AiSection(ai))).await;
    let (alice, bob) = (photographed.node.user("alice"), photographed.node.user("bob"));
    let photos = [("image/png", png(800, 600, 300_000)), ("image/jpeg", jpeg())];
    let mut parts = vec![json!({"type": "text", "text": "what is this?"})];
    for (_, bytes) in &photos {
        parts.push(json!({"type": "photo", "id": upload(&alice, bytes).await}));
    }
    for (model, ..) in WIRES {
        let mut asked = question(json!(parts));
        asked["route"] = json!(model);
        let answer = alice.post("/v1/ai/complete", &asked).await;
        assert_eq!(answer.status, 200, "{model}: {}", answer.text);
        let got = seen(&fake.journal().pop().unwrap().body);
        let expected = photos.clone().map(|(media_type, bytes)| (media_type.to_owned(), bytes));
        assert!(got == expected, "{model}: {} pictures", got.len());
        // Nobody else can show it to a model.
        let refused = bob.post("/v1/ai/complete", &asked).await.problem(422, "rejected");
        assert_eq!(refused["reason"], "no_such_photo", "{refused}");
    }
    assert_eq!(fake.asked().len(), WIRES.len());
    photographed.node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_sees_nothing_is_asked_nothing_about_photos() {
    let fake = Fake::start().await;
    let mut ai = unlimited(&fake);
    ai.models.get_mut("gpt").unwrap().vision = false;
    ai.models.get_mut("claude").unwrap().vision = false;
    let photographed =
        Photographed::new("vision-blind", |config| config.systems.set(AiSection(ai))).await;
    let alice = photographed.node.user("alice");
    let photo = upload(&alice, &jpeg()).await;
    let mut asked = question(json!([{"type": "photo", "id": photo}]));
    let answer = alice.post("/v1/ai/complete", &asked).await;
    assert_eq!((answer.status, &answer.json()["model"]), (200, &json!("gemini")));
    asked["route"] = json!("gpt");
    let refused = alice.post("/v1/ai/complete", &asked).await.problem(422, "rejected");
    assert_eq!(refused["detail"], "no model of the route sees pictures");
    assert_eq!(fake.asked(), ["gemini"]);
    photographed.node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_in_a_question_is_what_its_bytes_say() {
    let fake = Fake::start().await;
    let ai = unlimited(&fake);
    let photographed =
        Photographed::new("vision-inline", |config| config.systems.set(AiSection(ai))).await;
    let alice = photographed.node.user("alice");
    let shows = |bytes: &[u8]| {
        let data = BASE64.encode(bytes);
        question(json!([{"type": "image", "media_type": "text/html", "data": data}]))
    };
    let answer = alice.post("/v1/ai/complete", &shows(&jpeg())).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(seen(&fake.journal()[0].body) == [("image/jpeg".to_owned(), jpeg())]);
    for wrong in [shows(b"<svg/>"), shows(&png(50_000, 50_000, 100)), {
        let mut wrong = shows(b"");
        wrong["prompt"]["messages"][0]["parts"][0]["data"] = json!("no base64!");
        wrong
    }] {
        let refused = alice.post("/v1/ai/complete", &wrong).await.problem(400, "bad_request");
        assert_eq!(refused["errors"][0]["pointer"], "/prompt/messages/0/parts/0/data");
    }
    assert_eq!(fake.asked().len(), 1);
    // An answer of before is for the same picture only.
    let mut steady = shows(&jpeg());
    steady["prompt"]["temperature"] = json!(0);
    for cached in [json!(null), json!("exact")] {
        assert_eq!(alice.post("/v1/ai/complete", &steady).await.json()["cached"], cached);
    }
    let mut other = jpeg();
    *other.last_mut().unwrap() += 1;
    steady["prompt"]["messages"] = shows(&other)["prompt"]["messages"].clone();
    assert_eq!(alice.post("/v1/ai/complete", &steady).await.json()["cached"], json!(null));
    photographed.node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_sees_the_photos_of_its_person() {
    let fake = Fake::start().await;
    let ai = unlimited(&fake);
    let looker = AgentOptions {
        instructions: Some("You look at photos.".into()),
        route: Some("claude".into()),
        ..AgentOptions::default()
    };
    let photographed = Photographed::new("vision-runs", |config| {
        config.systems.set(AiSection(ai));
        config.systems.set(AgentSection([("looker".to_owned(), looker)].into()));
    })
    .await;
    let (alice, bob) = (photographed.node.user("alice"), photographed.node.user("bob"));
    let (first, second) = (png(640, 480, 200_000), jpeg());
    let (one, two) = (upload(&alice, &first).await, upload(&alice, &second).await);
    let start = json!({"agent": "looker", "text": "what is broken?", "photos": [one]});
    let refused = bob.post("/v1/runs", &start).await.problem(400, "bad_request");
    assert_eq!(refused["errors"][0]["pointer"], "/photos/0");
    let run = alice.post("/v1/runs", &start).await;
    assert_eq!(run.status, 201, "{}", run.text);
    let run = run.json()["id"].as_str().unwrap().to_owned();
    let shown = until(&alice, &run, "answered").await;
    assert_eq!(shown["messages"][0]["images"], 1, "{shown}");
    assert!(seen(&fake.journal()[0].body) == [("image/png".to_owned(), first.clone())]);
    // What the run keeps of it is its id.
    let sizes = "select max(length(event::text)) from journal where kind = 'agent_run'";
    let pool = &photographed.node.node.core.pool;
    let longest: i32 = sqlx::query_scalar(sizes).fetch_one(pool).await.unwrap();
    assert!(longest < 10_000, "{longest}");
    let messages = format!("/v1/runs/{run}/messages");
    let say = json!({"text": "and here?", "photos": [two]});
    assert_eq!(bob.post(&messages, &say).await.status, 400);
    // One that was deleted is not shown any more, and the conversation goes on.
    assert_eq!(alice.send("DELETE", &format!("/v1/photos/{one}"), &[], b"").await.status, 204);
    assert_eq!(alice.post(&messages, &say).await.status, 200);
    until(&alice, &run, "answered").await;
    let asked = fake.journal().pop().unwrap().body;
    assert!(seen(&asked) == [("image/jpeg".to_owned(), second)]);
    assert!(asked.to_string().contains("not shown any more"), "{asked}");
    let refused = alice.post(&messages, &say_of(&one)).await.problem(400, "bad_request");
    assert_eq!(refused["errors"][0]["pointer"], "/photos/0");
    photographed.node.node.stop().await;
}

fn say_of(photo: &str) -> Value {
    json!({"text": "again", "photos": [photo]})
}
