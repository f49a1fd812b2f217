//! Answers to questions that mean the same: to whom, for how long, and what else has to be equal.

use proxie::ai::Options;
use proxie::ai::options::{EmbedderOptions, SemanticOptions};
use proxie::kernel::entity::Role;
use proxie::persistence::vault;
use proxie::persistence::views::Views;
use proxie::systems::agents::settings::AiSection;
use proxie::systems::agents::views;
use serde_json::{Value, json};

use super::fake::{Does, Embeds, Fake};
use super::routing;
use crate::edges::{Http, TestNode};
use crate::support::eventually;

const ASKED: &str = "where can I get a haircut near the river";
/// The same words, which is what the fake's vectors know of meaning.
const AGAIN: &str = "near the river where can I get a haircut";
const OTHER: &str = "what does a plumber cost on a Sunday";

fn options(fake: &Fake, semantic: SemanticOptions) -> Options {
    let mut options = Options { daily_limit: String::new(), ..routing::options(fake) };
    options.route = "gpt".into();
    options.embedder = "small".into();
    let small = EmbedderOptions {
        provider: "gpt".into(),
        id: "embed-64".into(),
        dimensions: 64,
        input: "0.02".into(),
        batch: 32,
        is_shortened: false,
    };
    options.embedders.insert("small".into(), small);
    Options { semantic_cache: semantic, ..options }
}

fn on() -> SemanticOptions {
    SemanticOptions { enabled: true, threshold: 0.9, ..SemanticOptions::default() }
}

async fn node(fake: &Fake, semantic: SemanticOptions) -> TestNode {
    let ai = options(fake, semantic);
    TestNode::with(|config| config.systems.set(AiSection(ai))).await
}

fn question(words: &str) -> Value {
    let message = json!({"role": "user", "parts": [{"type": "text", "text": words}]});
    json!({"prompt": {"messages": [message], "max_tokens": 100, "temperature": 0}})
}

/// How the answer was found.
async fn ask(http: &Http, question: &Value) -> Value {
    let answer = http.post("/v1/ai/complete", question).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["cached"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_means_the_same_is_answered_again_to_the_same_person() {
    let fake = Fake::start().await;
    let node = node(&fake, on()).await;
    let (alice, bob) = (node.user("alice"), node.user("bob"));
    fake.script([Does::say("at Mirela's"), Does::say("bob's own")]);
    assert_eq!(ask(&alice, &question(ASKED)).await, json!(null));
    for _ in 0..2 {
        let answer = alice.post("/v1/ai/complete", &question(AGAIN)).await.json();
        assert_eq!(
            (&answer["cached"], &answer["text"]),
            (&json!("semantic"), &json!("at Mirela's"))
        );
        assert_eq!((&answer["cost"], &answer["calls_made"]), (&json!(0), &json!(0)));
    }
    assert_eq!(ask(&alice, &question(ASKED)).await, json!("exact"), "to the letter");
    let answer = bob.post("/v1/ai/complete", &question(AGAIN)).await.json();
    assert_eq!((&answer["cached"], &answer["text"]), (&json!(null), &json!("bob's own")));
    // Whatever else is different is another question.
    let change = |change: fn(&mut Value)| {
        let mut other = question(AGAIN);
        change(&mut other);
        other
    };
    let before = |words: &str| {
        let mut other = question(AGAIN);
        let messages = other["prompt"]["messages"].as_array_mut().unwrap();
        messages.insert(0, json!({"role": "assistant", "text": words}));
        other
    };
    for (what, other) in [
        ("system", change(|one| one["prompt"]["system"] = json!("be brief"))),
        ("parameters", change(|one| one["prompt"]["max_tokens"] = json!(99))),
        ("schema", change(|one| one["prompt"]["schema"] = json!({"type": "object"}))),
        (
            "tools",
            change(|one| {
                one["prompt"]["tools"] =
                    json!([{"name": "look", "description": "", "parameters": {}}]);
            }),
        ),
        ("model", change(|one| one["route"] = json!("claude"))),
        ("before", before("hello")),
        ("numbers", question(&format!("{AGAIN} 7"))),
        ("meaning", question(OTHER)),
        ("temperature", change(|one| one["prompt"]["temperature"] = json!(0.7))),
        ("reuse", change(|one| one["reuse"] = json!(false))),
    ] {
        let asked = fake.asked().len();
        assert_eq!(ask(&alice, &other).await, json!(null), "{what}");
        assert_eq!(fake.asked().len(), asked + 1, "{what}");
    }
    // What was said before is compared to the letter, and found with it.
    let mut again = before("hello");
    again["prompt"]["messages"][1]["parts"][0]["text"] = json!(ASKED);
    assert_eq!(ask(&alice, &again).await, json!("semantic"));
    // Nothing of it can be read in the store, and of whoever is erased nothing is left.
    let pool = &node.node.core.pool;
    let rows = "select string_agg(to_jsonb(t)::text, ' ') from similar_answers t";
    let rows: String = sqlx::query_scalar(rows).fetch_one(pool).await.unwrap();
    assert!(!rows.contains("Mirela") && !rows.contains("haircut"), "{rows}");
    vault::erase(pool, "alice").await.unwrap();
    let owners = "select distinct owner_id from similar_answers";
    let owners: Vec<String> = sqlx::query_scalar(owners).fetch_all(pool).await.unwrap();
    assert_eq!(owners, ["bob"]);
    eventually("it is asked anew", async || ask(&alice, &question(AGAIN)).await == json!(null))
        .await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_whole_answers_to_words_are_kept() {
    let fake = Fake::start().await;
    let node = node(&fake, on()).await;
    let alice = node.user("alice");
    let mut drawn = question(ASKED);
    let picture =
        json!({"type": "image", "media_type": "image/gif", "data": "R0lGODlhCgAUAAAAAA=="});
    drawn["prompt"]["messages"][0]["parts"].as_array_mut().unwrap().push(picture);
    let mut looked = question(ASKED);
    looked["prompt"]["messages"] = json!([
        {"role": "assistant", "calls": [{"id": "1", "name": "look", "arguments": {}}]},
        {"role": "tool", "call_id": "1", "name": "look", "content": "a cat"},
        looked["prompt"]["messages"][0],
    ]);
    for (asked, does) in [
        (question(ASKED), Does::Calls("look", json!({}))),
        (question(ASKED), Does::Cuts("at Mir")),
        (looked, Does::say("yes")),
        (drawn, Does::say("yes")),
    ] {
        fake.script([does]);
        assert_eq!(ask(&alice, &asked).await, json!(null));
    }
    for does in [Does::Refuses(400, "unknown", None), Does::Filters] {
        fake.script([does]);
        assert_ne!(alice.post("/v1/ai/complete", &question(ASKED)).await.status, 200);
    }
    let count = async || {
        let count = sqlx::query_scalar::<_, i64>("select count(*) from similar_answers");
        count.fetch_one(&node.node.core.pool).await.unwrap()
    };
    assert_eq!(count().await, 0);
    // Where nobody makes vectors, the model is asked.
    fake.embeds(Embeds { refuses: Some(400), ..Embeds::default() });
    assert_eq!(ask(&alice, &question(ASKED)).await, json!(null));
    assert_eq!(count().await, 0);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_off_until_it_is_turned_on_and_as_near_as_is_said() {
    let fake = Fake::start().await;
    let off = node(&fake, SemanticOptions::default()).await;
    let alice = off.user("alice");
    for asked in [ASKED, AGAIN] {
        assert_eq!(ask(&alice, &question(asked)).await, json!(null));
    }
    assert!(fake.embedded().is_empty(), "nothing is compared");
    off.node.stop().await;
    // Half of the words are the same.
    let (near, nearly) = ("cut my hair in Berlin today", "cut my lawn in Berlin please");
    for (threshold, found) in [(0.99, json!(null)), (0.3, json!("semantic"))] {
        let node = node(&fake, SemanticOptions { threshold, ..on() }).await;
        let alice = node.user("alice");
        assert_eq!(ask(&alice, &question(near)).await, json!(null));
        assert_eq!(ask(&alice, &question(nearly)).await, found, "{threshold}");
        node.node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_ends_and_is_never_too_much() {
    let fake = Fake::start().await;
    let semantic = SemanticOptions { max_per_person: 3, ttl_s: 600, ..on() };
    let node = node(&fake, semantic).await;
    let (alice, bob) = (node.user("alice"), node.user_as("bob", Role::Consumer));
    let words = ["apples", "bananas", "cherries", "dates", "elderberries"];
    for word in words {
        ask(&alice, &question(&format!("{word} {word}"))).await;
    }
    ask(&bob, &question("apples apples")).await;
    let pool = node.node.core.pool.clone();
    let count = async |who: &str| {
        let count = "select count(*) from similar_answers where owner_id = $1";
        sqlx::query_scalar::<_, i64>(count).bind(who).fetch_one(&pool).await.unwrap()
    };
    assert_eq!((count("alice").await, count("bob").await), (3, 1));
    assert_eq!(ask(&alice, &question("apples, apples")).await, json!(null), "the oldest has gone");
    assert_eq!(ask(&alice, &question("elderberries, elderberries")).await, json!("semantic"));
    // What has expired is not found any more, and deleted.
    let late = "update similar_answers set expires_at = now() - interval '1 second' where owner_id = 'alice'";
    sqlx::query(late).execute(&pool).await.unwrap();
    assert_eq!(ask(&alice, &question("elderberries; elderberries")).await, json!(null));
    let views = Views::new(pool.clone());
    assert!(!views::sweep_similar(&views, 100).await.unwrap(), "there is no more");
    assert_eq!((count("alice").await, count("bob").await), (1, 1));
    // Of all together the oldest go.
    views::sweep_similar(&views, 1).await.unwrap();
    assert_eq!((count("alice").await, count("bob").await), (1, 0));
    node.node.stop().await;
}
