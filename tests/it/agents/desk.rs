//! Agents that answer leads for providers, within what the profile allows, and what comes where they do not.

use proxie::kernel::entity::Role;
use proxie::systems::agents::settings::AiSection;
use serde_json::{Value, json};

use super::{model, results};
use crate::edges::{Http, TestNode, hairdresser, text};
use crate::models::fake::{Does, Fake};
use crate::support::eventually;

async fn node(fake: &Fake) -> TestNode {
    let ai = model(fake.url("v1"));
    TestNode::with(|config| config.systems.set(AiSection(ai))).await
}

/// A salon whose leads go to this one, and which gives a fifth at most. Its owner, and its id.
async fn salon(node: &TestNode, answerer: &str) -> (Http, String) {
    let mut profile = hairdresser();
    profile["answers_leads"] = json!(answerer);
    profile["max_discount_percent"] = json!(20);
    let owner = node.user_as("pat", Role::Provider);
    let made = owner.post("/v1/providers", &profile).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let id = text(&made.json()["id"]);
    (owner, id)
}

async fn ask(http: &Http) -> String {
    let wish = json!({"text": "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros"});
    let made = http.post("/v1/requests", &wish).await;
    assert_eq!(made.status, 201, "{}", made.text);
    text(&made.json()["id"])
}

/// The lead that the run was started with.
fn lead(body: &Value) -> Value {
    let said = body["messages"][1]["content"].clone();
    let said = said.as_str().or(said[0]["text"].as_str()).unwrap();
    let lead = said.split_once("A lead waits for an answer: ").unwrap().1;
    let lead: Value = serde_json::from_str(lead).unwrap();
    json!({"provider_id": lead["provider_id"], "request_id": lead["request_id"]})
}

/// Reads, and offers for this much.
fn offers(body: &Value, amount: i64) -> Does {
    let mut lead = lead(body);
    match results(body) {
        0 => Does::Calls("get_lead_details", lead),
        1 => {
            lead["price"] = json!({"amount_minor": amount, "currency": "EUR"});
            lead["message"] = json!("We look forward to you!");
            Does::Calls("submit_offer", lead)
        }
        _ => Does::say("Done."),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_answers_a_lead_within_the_profile_and_else_the_policy_does() {
    let fake = Fake::start().await;
    let node = node(&fake).await;
    let (_, _) = salon(&node, "agent").await;
    let clara = node.user("clara");
    fake.otherwise(Does::Decides(|body| offers(body, 4_000)));
    let offer = clara.offer(&ask(&clara).await).await;
    assert_eq!(
        (&offer["price"]["amount_minor"], &offer["message"]),
        (&json!(4_000), &json!("We look forward to you!"))
    );
    let read = fake.journal()[1].body["messages"].as_array().unwrap().last().unwrap().to_string();
    assert!(read.contains("up to 60 euros") && !read.contains("clara"), "{read}");
    let tools = fake.journal()[0].body["tools"].as_array().unwrap().len();
    assert_eq!(tools, 4, "what reads consumers' words has no other tools");
    // Talked into a present for the consumer, it gets nowhere.
    fake.otherwise(Does::Decides(|body| offers(body, 100)));
    let offer = clara.offer(&ask(&clara).await).await;
    assert_eq!(offer["price"]["amount_minor"], 4_500);
    let refused = fake.journal().pop().unwrap().body.to_string();
    assert!(refused.contains("not_within_profile"), "{refused}");
    // Without a model that answers, it is as if there were none.
    fake.otherwise(Does::Refuses(503, "{}", None));
    let offer = clara.offer(&ask(&clara).await).await;
    assert_eq!(offer["price"]["amount_minor"], 4_500);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_answers_leads_by_the_same_operations_and_nobody_else_does() {
    let node = TestNode::start().await;
    let (owner, id) = salon(&node, "owner").await;
    let (clara, mallory) = (node.user("clara"), node.user_as("mallory", Role::Provider));
    let request = ask(&clara).await;
    let leads = format!("/v1/providers/{id}/leads");
    eventually("the lead waits", async || {
        owner.get(&leads).await.json()["items"][0]["request_id"] == *request
    })
    .await;
    let one = format!("{leads}/{request}");
    let shown = owner.get(&one).await;
    assert_eq!(shown.status, 200, "{}", shown.text);
    assert!(shown.json()["details"].as_str().unwrap().contains("haircut"), "{}", shown.text);
    assert!(!shown.text.contains("clara"), "{}", shown.text);
    let suggested = owner.get(&format!("{one}/suggestion")).await.json();
    assert_eq!(
        (&suggested["offers"], &suggested["price"]["amount_minor"]),
        (&json!(true), &json!(4_500))
    );
    for http in [&mallory, &clara] {
        for path in [&leads, &one, &format!("{one}/suggestion")] {
            http.get(path).await.problem(403, "forbidden");
        }
        http.post(&format!("{one}/offer"), &json!({})).await.problem(403, "forbidden");
        http.post(&format!("{one}/decline"), &json!({})).await.problem(403, "forbidden");
    }
    let offer = async |fields: Value| owner.post(&format!("{one}/offer"), &fields).await;
    for beyond in [
        json!({"price": {"amount_minor": 3_599, "currency": "EUR"}}),
        json!({"price": {"amount_minor": 4_501, "currency": "EUR"}}),
        json!({"price": {"amount_minor": 4_000, "currency": "USD"}}),
        json!({"starts_at": "2040-01-01T10:00:00Z"}),
    ] {
        let answer = offer(beyond.clone()).await;
        assert_eq!(answer.status, 422, "{beyond}: {}", answer.text);
    }
    let made = offer(json!({"price": {"amount_minor": 3_600, "currency": "EUR"}})).await;
    assert_eq!(made.status, 200, "{}", made.text);
    let received = clara.offer(&request).await;
    assert_eq!(
        (&received["id"], &received["price"]["amount_minor"]),
        (&made.json()["offer_id"], &json!(3_600))
    );
    // It is answered once.
    offer(json!({})).await.problem(404, "not_found");
    assert_eq!(owner.get(&leads).await.json()["items"], json!([]));
    let request = ask(&clara).await;
    let one = format!("{leads}/{request}");
    eventually("the next waits", async || owner.get(&one).await.status == 200).await;
    let declined = owner.post(&format!("{one}/decline"), &json!({})).await;
    assert_eq!(declined.status, 200, "{}", declined.text);
    eventually("nobody is left", async || {
        clara.get(&format!("/v1/requests/{request}")).await.json()["status"] == "unmatched"
    })
    .await;
    node.node.stop().await;
}
