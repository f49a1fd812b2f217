//! Answers that are given again: to whom, which ones, and what becomes of equal questions at the same time.

use std::time::Duration;

use futures_util::future::join_all;
use proxie::ai::options::AnswerOptions;
use proxie::ai::{AnswerDelta, FailureKind, Keep, ModelAsk, Options, SharedAnswers};
use proxie::kernel::chat::{
    AnswerEnd, Completion, Cost, Kept, Prompt, PromptMessage, ToolCall, ToolSpec, Usage,
};
use proxie::persistence::shared::SealedCache;
use proxie::persistence::vault;
use proxie::systems::agents::answers::PersonsAnswers;
use proxie::systems::agents::settings::AiSection;
use redis::AsyncCommands;
use serde_json::json;
use tokio::sync::mpsc;

use super::fake::{Does, Fake, OUTPUT};
use super::money;
use super::routing::{Asking, hello, options, until};
use crate::edges::TestNode;
use crate::edges::limits::Redis;
use crate::support;

fn keep(person: &str) -> Option<Keep<'_>> {
    Some(Keep { person, any_temperature: false, shared: None, similar: None })
}

fn steady() -> Prompt {
    Prompt { temperature: Some(0.0), ..hello() }
}

async fn ask(asking: &Asking, person: &str, prompt: &Prompt) -> Completion {
    let ask = ModelAsk { route: Some("gpt"), keep: keep(person), ..ModelAsk::new(prompt) };
    asking.ask(ask).await.unwrap()
}

#[tokio::test]
async fn an_answer_is_given_again_for_the_same_question_of_the_same_person() {
    let fake = Fake::start().await;
    let asking = Asking::new(&options(&fake));
    let first = ask(&asking, "alice", &steady()).await;
    assert_eq!((first.cached, first.calls_made), (None, 1));
    let again = ask(&asking, "alice", &steady()).await;
    assert_eq!((again.text, again.model), (first.text, first.model));
    assert_eq!((again.cached, again.calls_made), (Some(Kept::Exact), 0));
    assert_eq!((again.usage, again.cost), (Usage::default(), Cost(0)));
    assert_eq!((fake.asked().len(), asking.bills().len()), (1, 1), "it costs nothing");
    // Who listens hears it too.
    let (sink, mut heard) = mpsc::channel(8);
    let prompt = steady();
    let asked = ModelAsk { route: Some("gpt"), keep: keep("alice"), ..ModelAsk::new(&prompt) };
    asking.router.complete(&asked, &asking.purse, Some(&sink)).await.unwrap();
    assert_eq!(heard.recv().await, Some(AnswerDelta::Text("yes".into())));
    // Whatever is different is another question.
    let tool = ToolSpec { name: "look".into(), description: "".into(), parameters: json!({}) };
    let others = [
        Prompt { system: Some("be brief".into()), ..steady() },
        Prompt { messages: vec![PromptMessage::user("hello ")], ..steady() },
        Prompt { max_tokens: 101, ..steady() },
        Prompt { tools: vec![tool], ..steady() },
        Prompt { schema: Some(json!({"type": "object"})), ..steady() },
    ];
    for (n, other) in others.iter().enumerate() {
        assert_eq!(ask(&asking, "alice", other).await.cached, None, "{other:?}");
        assert_eq!(fake.asked().len(), 2 + n);
    }
    assert_eq!(ask(&asking, "bob", &steady()).await.cached, None, "another's answer is theirs");
    let claude = ModelAsk { route: Some("claude"), keep: keep("alice"), ..ModelAsk::new(&prompt) };
    assert_eq!(asking.ask(claude).await.unwrap().cached, None, "another model");
    let without = ModelAsk { route: Some("gpt"), ..ModelAsk::new(&prompt) };
    assert_eq!(asking.ask(without).await.unwrap().cached, None, "nobody has asked for it");
}

#[tokio::test]
async fn only_whole_steady_answers_are_kept() {
    let fake = Fake::start().await;
    let cache = AnswerOptions { max_answer_bytes: 8, ..AnswerOptions::default() };
    let asking = Asking::new(&Options { cache, ..options(&fake) });
    let call =
        ToolCall { id: "1".into(), name: "look".into(), arguments: json!({}), signatures: vec![] };
    let mut looked = steady();
    looked.messages.push(PromptMessage::Assistant { text: String::new(), calls: vec![call] });
    looked.messages.push(PromptMessage::Tool {
        call_id: "1".into(),
        name: "look".into(),
        content: "a cat".into(),
    });
    let warm = Prompt { temperature: Some(0.7), ..hello() };
    for (prompt, does) in [
        (hello(), Does::say("yes")),
        (warm.clone(), Does::say("yes")),
        (looked, Does::say("yes")),
        (steady(), Does::Calls("look", json!({}))),
        (steady(), Does::Cuts("ye")),
        (steady(), Does::say("longer than it may be")),
    ] {
        for _ in 0..2 {
            let before = fake.asked().len();
            fake.script([does.clone()]);
            let answer = ask(&asking, "alice", &prompt).await;
            assert_eq!((answer.cached, fake.asked().len()), (None, before + 1), "{does:?}");
            let is_cut = matches!(does, Does::Cuts(_));
            assert_eq!(answer.stop == AnswerEnd::MaxTokens, is_cut, "{does:?}");
        }
    }
    for does in [Does::Refuses(400, "unknown", None), Does::Filters, Does::BreaksOff("par")] {
        fake.script([does.clone()]);
        let prompt = steady();
        let asked = ModelAsk { route: Some("gpt"), keep: keep("alice"), ..ModelAsk::new(&prompt) };
        asking.ask(asked).await.unwrap_err();
    }
    assert_eq!(ask(&asking, "alice", &steady()).await.cached, None, "a failure is no answer");
    // Who wants it gets any answer again.
    let any = || Some(Keep { person: "alice", any_temperature: true, shared: None, similar: None });
    for cached in [None, Some(Kept::Exact)] {
        let asked = ModelAsk { route: Some("gpt"), keep: any(), ..ModelAsk::new(&warm) };
        assert_eq!(asking.ask(asked).await.unwrap().cached, cached);
    }
}

#[tokio::test]
async fn what_is_kept_ends_and_can_be_turned_off() {
    let fake = Fake::start().await;
    let cache = AnswerOptions { ttl_s: 1, ..AnswerOptions::default() };
    let asking = Asking::new(&Options { cache, ..options(&fake) });
    ask(&asking, "alice", &steady()).await;
    for _ in 0..1_000 {
        if ask(&asking, "alice", &steady()).await.cached.is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(fake.asked().len() >= 2, "it ends");
    let cache = AnswerOptions { ttl_s: 0, ..AnswerOptions::default() };
    let asking = Asking::new(&Options { cache, ..options(&fake) });
    for _ in 0..2 {
        assert_eq!(ask(&asking, "alice", &steady()).await.cached, None);
    }
}

#[tokio::test]
async fn of_equal_questions_at_once_one_reaches_the_provider() {
    let fake = Fake::start().await;
    let asking = Asking::new(&options(&fake));
    fake.script([Does::Says(vec!["y", "es"], Duration::from_millis(300))]);
    let prompt = steady();
    let answers = join_all((0..50).map(|_| ask(&asking, "alice", &prompt))).await;
    assert!(answers.iter().all(|answer| answer.text == "yes"));
    assert_eq!(answers.iter().filter(|answer| answer.cached.is_none()).count(), 1);
    assert_eq!((fake.asked().len(), asking.bills().len()), (1, 1));
}

#[tokio::test]
async fn a_question_that_fails_fails_nobody_elses() {
    let fake = Fake::start().await;
    let asking = Asking::new(&Options { between_ms: 400, ..options(&fake) });
    fake.script([Does::Stalls("par")]);
    let prompt = steady();
    let asked = || ModelAsk { route: Some("gpt"), keep: keep("alice"), ..ModelAsk::new(&prompt) };
    let answers = join_all((0..10).map(|_| asking.ask(asked()))).await;
    let failed: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].failure.kind, FailureKind::Uncertain);
    assert!(answers.iter().flatten().all(|answer| answer.text == "yes"));
    // One that goes away hands over.
    let prompt = Prompt { max_tokens: 99, ..steady() };
    let asked = || ModelAsk { route: Some("gpt"), keep: keep("alice"), ..ModelAsk::new(&prompt) };
    let before = fake.asked().len();
    fake.script([Does::Stalls("par")]);
    let (sink, mut heard) = mpsc::channel(8);
    let second = async {
        until(|| fake.asked().len() == before + 1).await;
        asking.ask(asked()).await
    };
    let (asking, first) = (&asking, asked());
    let first = async {
        tokio::select! {
            _ = asking.router.complete(&first, &asking.purse, Some(&sink)) => panic!("it stalls"),
            _ = heard.recv() => {}
        }
    };
    let (answer, ()) = tokio::join!(second, first);
    assert_eq!(answer.unwrap().text, "yes");
    assert_eq!(fake.asked().len(), before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_share_answers_in_redis_which_shows_nothing_of_them() {
    let mut redis = Redis::start("redis-answers").await;
    let pool = support::pool(support::database().await).await;
    // More patient than a node, so that a busy machine is not taken for a lost Redis.
    let shared = SealedCache::new(support::vault(pool.clone()).await);
    let shared = shared.connect(&redis.url(), Duration::from_secs(10)).await.unwrap();
    let shared = PersonsAnswers(&shared);
    let fake = Fake::start().await;
    fake.otherwise(Does::say("forty-two"));
    let nodes = [Asking::new(&options(&fake)), Asking::new(&options(&fake))];
    let prompt = Prompt { messages: vec![PromptMessage::user("my diagnosis")], ..steady() };
    let ask = async |node: usize, person: &str| {
        let keep =
            Some(Keep { person, any_temperature: false, shared: Some(&shared), similar: None });
        let ask = ModelAsk { route: Some("gpt"), keep, ..ModelAsk::new(&prompt) };
        let answer = nodes[node].ask(ask).await.unwrap();
        assert_eq!(answer.text, "forty-two");
        answer.cached
    };
    assert_eq!(ask(0, "alice").await, None);
    assert_eq!(ask(1, "alice").await, Some(Kept::Exact));
    assert_eq!((ask(0, "bob").await, fake.asked().len()), (None, 2));
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let keys: Vec<String> = connection.keys("*").await.unwrap();
    assert_eq!(keys.len(), 2, "{keys:?}");
    for key in &keys {
        let value: String = connection.get(key).await.unwrap();
        let left: i64 = connection.ttl(key).await.unwrap();
        assert!(left > 0, "it ends: {left}");
        for word in ["alice", "bob", "diagnosis", "forty", "gpt"] {
            assert!(!key.contains(word) && !value.contains(word), "{key} {value}");
        }
    }
    // One that was put under another's key is none.
    let [one, other] = &keys[..] else { panic!() };
    let (mine, theirs): (String, String) =
        (connection.get(one).await.unwrap(), connection.get(other).await.unwrap());
    let _: () = connection.set(one, theirs).await.unwrap();
    let _: () = connection.set(other, mine).await.unwrap();
    let fresh = Asking::new(&options(&fake));
    let keep = Some(Keep {
        person: "alice",
        any_temperature: false,
        shared: Some(&shared),
        similar: None,
    });
    let asked = ModelAsk { route: Some("gpt"), keep, ..ModelAsk::new(&prompt) };
    assert_eq!(fresh.ask(asked).await.unwrap().cached, None, "it was moved");
    // Whoever is erased has no answers any more, here or there.
    assert_eq!(ask(0, "alice").await, Some(Kept::Exact));
    vault::erase(&pool, "alice").await.unwrap();
    support::eventually("the erasure is known", async || shared.erasures() > 0).await;
    assert_eq!((ask(0, "alice").await, ask(1, "alice").await), (None, Some(Kept::Exact)));
    // Without Redis each node is by itself.
    redis.stop();
    let prompt = Prompt { max_tokens: 7, ..steady() };
    for cached in [None, Some(Kept::Exact)] {
        let keep = Some(Keep {
            person: "alice",
            any_temperature: false,
            shared: Some(&shared),
            similar: None,
        });
        let ask = ModelAsk { route: Some("gpt"), keep, ..ModelAsk::new(&prompt) };
        assert_eq!(nodes[0].ask(ask).await.unwrap().cached, cached);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_before_costs_nothing_and_says_so() {
    let fake = Fake::start().await;
    let ai = money::options(&fake);
    let node = TestNode::with(|config| config.systems.set(AiSection(ai))).await;
    let alice = node.user("alice");
    let mut question = money::question();
    question["prompt"]["temperature"] = json!(0);
    let call = OUTPUT * 10_000;
    for (cached, cost) in [(json!(null), call), (json!("exact"), 0)] {
        let answer = alice.post("/v1/ai/complete", &question).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let answer = answer.json();
        assert_eq!((&answer["cached"], &answer["cost"]), (&cached, &json!(cost)));
    }
    let budget = alice.get("/v1/budget").await.json();
    assert_eq!((&budget["spent"], &budget["reserved"]), (&json!(call), &json!(0)));
    assert_eq!(alice.get("/v1/usage").await.json()["items"][0]["calls"], json!(1));
    // Who wants a new one gets it.
    question["reuse"] = json!(false);
    let answer = alice.post("/v1/ai/complete", &question).await.json();
    assert_eq!((&answer["cached"], fake.asked().len()), (&json!(null), 2));
    let counted = node.anonymous().get("/metrics").await.text;
    let hit = r#"proxie_model_answers_total{from="cache"} "#;
    assert!(counted.contains(hit), "{counted}");
    node.node.stop().await;
}
