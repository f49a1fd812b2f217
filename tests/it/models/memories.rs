//! What people's agents remember: whose it is, how it is found, and how it goes.

use std::collections::BTreeSet;
use std::time::Duration;

use proxie::ai::options::EmbedderOptions;
use proxie::ai::words;
use proxie::kernel::entity::Role;
use proxie::persistence::vault;
use proxie::persistence::views::Views;
use proxie::systems::agents::settings::{AiSection, MemorySettings};
use proxie::systems::agents::views::{
    self, AddedMemory, MemoryRow, Nearest, NewMemory, choose, nearest,
};
use serde_json::{Value, json};
use sqlx::{PgConnection, Row};

use super::fake::{Embeds, Fake};
use super::money;
use crate::cluster::Nodes;
use crate::edges::{Http, TestNode};
use crate::support::{self, eventually};

async fn write(http: &Http, text: &str, agent: Option<&str>) -> Value {
    let answer = http.post("/v1/memories", &json!({"text": text, "agent": agent})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

async fn recall(http: &Http, about: &str, agent: Option<&str>) -> Value {
    let asked = json!({"about": about, "agent": agent, "limit": 5});
    let answer = http.post("/v1/memories/recall", &asked).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

fn texts(found: &Value) -> Vec<String> {
    let items = found["items"].as_array().unwrap().iter();
    let text = |item: &Value| {
        let memory = item.get("memory").unwrap_or(item);
        memory["text"].as_str().unwrap().to_owned()
    };
    items.map(text).collect()
}

async fn count(store: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(store).await.unwrap()
}

const HAIR: &str = "Mirela at Alexanderplatz cuts my hair best";
const FOOD: &str = "I am allergic to nuts";
const BIKE: &str = "My bicycle is a blue one with a basket";

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_is_found_by_its_owner_and_the_agent_that_has_it() {
    let limits = MemorySettings { max: 4, max_bytes: 100, ..MemorySettings::default() };
    let node = TestNode::with(|config| config.systems.set(limits)).await;
    let (alice, bob) = (node.user("alice"), node.user("bob"));
    let hair = write(&alice, HAIR, Some("shopper")).await;
    assert_eq!((&hair["agent"], &hair["text"]), (&json!("shopper"), &json!(HAIR)));
    write(&alice, FOOD, Some("cook")).await;
    write(&alice, BIKE, None).await;
    write(&bob, "Bob's hair is cut by nobody at Alexanderplatz", Some("shopper")).await;
    let found = recall(&alice, "who cuts my hair?", None).await;
    assert_eq!(texts(&found)[0], HAIR, "{found}");
    assert_eq!(found["is_partial"], false);
    // Everything of hers, and nothing of anybody else's, whatever is asked.
    for about in ["who cuts my hair?", "Bob's hair", "nobody", "x"] {
        let all: BTreeSet<_> = texts(&recall(&alice, about, None).await).into_iter().collect();
        assert_eq!(all, BTreeSet::from([HAIR, FOOD, BIKE].map(String::from)), "{about}");
    }
    let own: BTreeSet<_> = texts(&recall(&alice, "hair", Some("cook")).await).into_iter().collect();
    assert_eq!(
        own,
        BTreeSet::from([FOOD, BIKE].map(String::from)),
        "what another agent has is not found"
    );
    assert_eq!(texts(&recall(&alice, "hair", Some("nobody")).await), [BIKE]);
    let listed = alice.get("/v1/memories?agent=shopper").await.json();
    assert_eq!(texts(&listed), [BIKE, HAIR], "newest first");
    let page = alice.get("/v1/memories?limit=2").await.json();
    assert_eq!(texts(&page), [BIKE, FOOD]);
    let next = page["next_cursor"].as_str().unwrap();
    let rest = alice.get(&format!("/v1/memories?limit=2&cursor={next}")).await.json();
    assert_eq!((texts(&rest), &rest["next_cursor"]), (vec![HAIR.to_owned()], &Value::Null));
    // Nothing of it is readable in the store: neither the words nor their vector.
    let mut store = node.store().await;
    let rows =
        sqlx::query("select words, vector::text as vector from memories where owner_id = 'alice'")
            .fetch_all(&mut store)
            .await
            .unwrap();
    assert_eq!(rows.len(), 3);
    let plain = words::vector(HAIR);
    for row in rows {
        let (sealed, vector): (String, String) = (row.get("words"), row.get("vector"));
        assert!(sealed.starts_with("sealed:1:"), "{sealed}");
        let vector: Vec<f32> = serde_json::from_str(&vector).unwrap();
        let near: f32 = plain.iter().zip(&vector).map(|(a, b)| a * b).sum();
        assert!(near.abs() < 0.4, "{near}: the vector is turned");
    }
    // A command has one effect.
    let body = json!({"text": "one more"});
    let first = alice.post_as("k1", "/v1/memories", &body).await.json();
    assert_eq!(alice.post_as("k1", "/v1/memories", &body).await.json()["id"], first["id"]);
    let other = alice.post_as("k1", "/v1/memories", &json!({"text": "another"})).await;
    other.problem(422, "id_reused");
    // There is an end to it.
    let full = alice.post("/v1/memories", &body).await.problem(422, "rejected");
    assert_eq!(full["reason"], "too_many_memories");
    write(&bob, "he has room", None).await;
    for (wrong, pointer) in [
        (json!({"text": " "}), "/text"),
        (json!({"text": "x".repeat(101)}), "/text"),
        (json!({"text": "x", "agent": "no such name"}), "/agent"),
    ] {
        let problem = bob.post("/v1/memories", &wrong).await.problem(400, "bad_request");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    let blank = bob.post("/v1/memories/recall", &json!({"about": ""})).await;
    blank.problem(400, "bad_request");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forgotten_or_erased_is_gone_with_its_vector() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.user("alice"), node.user("bob"));
    let memory = write(&alice, FOOD, None).await;
    write(&alice, BIKE, None).await;
    write(&bob, HAIR, None).await;
    let path = format!("/v1/memories/{}", memory["id"].as_str().unwrap());
    assert_eq!(bob.send("DELETE", &path, &[], b"").await.status, 204, "it says nothing of hers");
    assert_eq!(texts(&recall(&alice, "nuts", None).await)[0], FOOD);
    assert_eq!(alice.send("DELETE", &path, &[], b"").await.status, 204);
    assert_eq!(texts(&recall(&alice, "nuts", None).await), [BIKE]);
    let mut store = node.store().await;
    assert_eq!(
        count(&mut store, "select count(*) from memories where owner_id = 'alice'").await,
        1
    );
    let mut ws = node.ws("alice").await;
    let again = ws.ok("memory:forget", json!({"memory_id": memory["id"]})).await;
    assert_eq!(again, json!({"was_there": false}));
    // Erased.
    let key = count(&mut store, "select key from vault_keys where person = 'alice'").await;
    vault::erase(&node.node.core.pool, "alice").await.unwrap();
    assert_eq!(
        count(&mut store, "select count(*) from memories where owner_id = 'alice'").await,
        0
    );
    assert_eq!(
        count(&mut store, "select count(*) from memory_owners where owner_id = 'alice'").await,
        0
    );
    assert_eq!(recall(&alice, "bicycle", None).await["items"], json!([]));
    assert_eq!(texts(&recall(&bob, "hair", None).await), [HAIR], "others keep theirs");
    // What was under way meanwhile is not written any more.
    let views = Views::new(node.node.core.pool.clone());
    let late = row("mem_late", "alice");
    let new = NewMemory { row: &late, key, bytes: 1, vector: None, limit: 10 };
    assert_eq!(views::add(&views, &new).await.unwrap(), AddedMemory::KeyGone);
    node.node.stop().await;
}

fn row(id: &str, owner: &str) -> MemoryRow {
    MemoryRow {
        id: id.into(),
        owner_id: owner.into(),
        agent: String::new(),
        words: "sealed:1:".into(),
        digest: vec![1],
        embedder: 0,
        created_at: "2026-01-31T12:00:00Z".parse().unwrap(),
    }
}

/// Numbers between -1 and 1.
fn random(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 40) as f32 / 8_388_608.0 - 1.0
}

async fn key_of(pool: &sqlx::PgPool, person: &str) -> i64 {
    let sql = "insert into vault_keys (person, master, wrapped) values ($1, '', '') returning key";
    sqlx::query_scalar(sql).bind(person).fetch_one(pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_finds_what_comparing_each_does_and_nothing_of_others() {
    const DIMENSIONS: usize = 48;
    let pool = support::pool(support::database().await).await;
    let views = Views::new(pool.clone());
    let embedder = choose(&views, "test 48", DIMENSIONS).await.unwrap();
    let mut state = 42;
    let mut vector = || -> Vec<f32> {
        let mut vector: Vec<f32> = (0..DIMENSIONS).map(|_| random(&mut state)).collect();
        let length = vector.iter().map(|part| part * part).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|part| *part /= length);
        vector
    };
    let owners = ["alice", "bob", "clara"];
    for owner in owners {
        let key = key_of(&pool, owner).await;
        for n in 0..300 {
            let agent = if n % 3 == 0 { "cook" } else { "" };
            let row = MemoryRow { agent: agent.into(), ..row(&format!("{owner}-{n}"), owner) };
            let vector = vector();
            let vector = Some(("test 48", vector.as_slice()));
            let new = NewMemory { row: &row, key, bytes: 1, vector, limit: 1_000 };
            assert_eq!(views::add(&views, &new).await.unwrap(), AddedMemory::Yes);
        }
    }
    let (mut agreed, mut asked) = (0, 0);
    for n in 0..30 {
        let vector = vector();
        let owner = owners[n % 3];
        let agent = if n % 2 == 0 { None } else { Some("other") };
        let question = Nearest { owner, agent, embedder: &embedder, vector: &vector, limit: 10 };
        let exact = nearest(&views, &question, true).await.unwrap();
        let indexed = nearest(&views, &question, false).await.unwrap();
        for (row, _) in exact.iter().chain(&indexed) {
            assert_eq!(row.owner_id, owner, "nothing of others");
            assert!(agent.is_none() || row.agent.is_empty(), "nothing of another agent");
        }
        assert!(exact.windows(2).all(|pair| pair[0].1 >= pair[1].1));
        assert_eq!((exact.len(), indexed.len()), (10, 10));
        let ids: BTreeSet<_> = exact.iter().map(|(row, _)| &row.id).collect();
        agreed += indexed.iter().filter(|(row, _)| ids.contains(&row.id)).count();
        asked += 10;
    }
    assert!(agreed * 100 >= asked * 95, "{agreed} of {asked}");
    let sql = "select idx_scan from pg_stat_user_indexes where indexrelname = $1";
    eventually("the index was used", async || {
        let scans: i64 = sqlx::query_scalar(sql)
            .bind(format!("memories_vector_{}", embedder.n))
            .fetch_one(&pool)
            .await
            .unwrap();
        scans >= 30
    })
    .await;
    // One who has fewer than is asked for gets all of theirs.
    let key = key_of(&pool, "dora").await;
    let vector = vector();
    let of_dora = row("dora-1", "dora");
    let new =
        NewMemory { row: &of_dora, key, bytes: 1, vector: Some(("test 48", &vector)), limit: 1 };
    assert_eq!(views::add(&views, &new).await.unwrap(), AddedMemory::Yes);
    let question =
        Nearest { owner: "dora", agent: None, embedder: &embedder, vector: &vector, limit: 10 };
    assert_eq!(nearest(&views, &question, false).await.unwrap().len(), 1);
    let one_more = row("dora-2", "dora");
    let more = NewMemory { row: &one_more, ..new };
    assert_eq!(views::add(&views, &more).await.unwrap(), AddedMemory::Full);
}

fn embedder(fake: &Fake) -> proxie::ai::Options {
    let mut ai = money::options(fake);
    ai.deadline_ms = 3_000;
    ai.daily_limit = "1000".into();
    let model = EmbedderOptions {
        provider: "fake".into(),
        id: "small-48".into(),
        dimensions: 48,
        input: "100".into(),
        batch: 4,
        is_shortened: false,
    };
    ai.embedders.insert("small".into(), model);
    ai.embedder = "small".into();
    ai
}

#[tokio::test(flavor = "multi_thread")]
async fn a_providers_vectors_are_paid_and_a_memory_without_one_gets_it_later() {
    let fake = Fake::start().await;
    let ai = embedder(&fake);
    let node = TestNode::with(|config| config.systems.set(AiSection(ai))).await;
    let alice = node.user("alice");
    assert_eq!(write(&alice, HAIR, None).await["is_findable"], true);
    write(&alice, BIKE, None).await;
    let found = recall(&alice, "who cuts my hair?", None).await;
    assert_eq!(texts(&found)[0], HAIR, "{found}");
    assert_eq!(found["embedder"], "small small-48 48");
    // Three texts of ten tokens at $100 for a million.
    let usage = alice.get("/v1/usage").await.json()["items"][0].clone();
    assert_eq!((&usage["model"], &usage["calls"]), (&json!("small"), &json!(3)), "{usage}");
    assert_eq!((&usage["input_tokens"], &usage["cost"]), (&json!(30), &json!(3_000_000)));
    // What the provider cannot do now is done later, at nobody's expense.
    fake.embeds(Embeds { refuses: Some(502), ..Embeds::default() });
    assert_eq!(write(&alice, FOOD, None).await["is_findable"], false);
    fake.embeds(Embeds::default());
    eventually("the memory can be found", async || {
        let found = alice.post("/v1/memories/recall", &json!({"about": "allergic to nuts"})).await;
        found.status == 200 && texts(&found.json()).first().is_some_and(|text| text == FOOD)
    })
    .await;
    // Without money nothing is kept: it would be for nothing.
    let operator = node.user_as("olga", Role::Operator);
    operator.send_json("PUT", "/v1/budgets/alice", &json!({"limit": 1})).await;
    let refused = alice.post("/v1/memories", &json!({"text": "more"})).await;
    assert_eq!(refused.problem(422, "rejected")["reason"], "budget_exceeded");
    operator.send_json("PUT", "/v1/budgets/alice", &json!({"limit": 1_000_000_000})).await;
    fake.embeds(Embeds { is_short: true, ..Embeds::default() });
    let problem = alice.post("/v1/memories/recall", &json!({"about": "nuts"})).await;
    assert_eq!(problem.problem(503, "unavailable")["reason"], "no_such_model");
    node.node.stop().await;
}

/// The embedder is another one after a restart, and the node that makes all vectors anew is killed among them.
#[tokio::test(flavor = "multi_thread")]
async fn another_embedder_makes_all_vectors_anew_over_a_kill_and_they_are_found_meanwhile() {
    const MEMORIES: usize = 80;
    let fake = Fake::start().await;
    let url: &'static str = fake.url("v1").leak();
    let before = [("PROXIE__AI__DAILY_LIMIT", "")];
    let after = [
        ("PROXIE__AI__DEADLINE_MS", "5000"),
        ("PROXIE__AI__PROVIDERS__FAKE__WIRE", "openai"),
        ("PROXIE__AI__PROVIDERS__FAKE__URL", url),
        ("PROXIE__AI__EMBEDDER", "small"),
        ("PROXIE__AI__EMBEDDERS__SMALL__PROVIDER", "fake"),
        ("PROXIE__AI__EMBEDDERS__SMALL__ID", "small-48"),
        ("PROXIE__AI__EMBEDDERS__SMALL__DIMENSIONS", "48"),
        ("PROXIE__AI__EMBEDDERS__SMALL__INPUT", "1"),
        ("PROXIE__AI__EMBEDDERS__SMALL__BATCH", "4"),
    ];
    let mut nodes = Nodes::with("embedders", 1, false, &before).await;
    nodes.settled(1).await;
    let token = nodes.token("alice", "consumer");
    let http = |address| Http { address, token: Some(token.clone()) };
    let first = http(nodes.address(0));
    for n in 0..MEMORIES - 1 {
        write(&first, &format!("The number of locker {n} is {}", n * 7), None).await;
    }
    write(&first, HAIR, None).await;
    nodes.kill(0);
    fake.embeds(Embeds { after: Duration::from_millis(100), ..Embeds::default() });
    let node = nodes.launch(0, &after);
    let second = http(node.address);
    let asked = json!({"about": "who cuts my hair at Alexanderplatz?"});
    let found = async |http: &Http| {
        let answer = http.post("/v1/memories/recall", &asked).await;
        answer.status == 200 && texts(&answer.json()).first().is_some_and(|text| text == HAIR)
    };
    eventually("it is found meanwhile", async || found(&second).await).await;
    let mut store = nodes.store().await;
    const OLD: &str = "select count(*) from memories m join embedders e on e.n = m.embedder where e.name = 'words 1'";
    assert!(count(&mut store, OLD).await > 0, "not all are made anew yet");
    eventually("some are made anew", async || fake.embedded().len() >= MEMORIES / 2).await;
    drop(node);
    let left = count(&mut store, OLD).await;
    let embedded = fake.embedded().len();
    fake.embeds(Embeds::default());
    let node = nodes.launch(0, &after);
    let third = http(node.address);
    let names = "select e.name from embedders e where e.n <> 0";
    // The lease of the node that was killed has to end first.
    let limit = tokio::time::Instant::now() + Duration::from_secs(300);
    while count(&mut store, "select count(*) from embedders").await > 2
        || count(&mut store, OLD).await > 0
    {
        assert!(tokio::time::Instant::now() < limit, "never: all vectors are made anew");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let names: Vec<String> = sqlx::query_scalar(names).fetch_all(&mut store).await.unwrap();
    assert_eq!(names, ["small small-48 48"], "and nothing is left of the one before");
    let more = fake.embedded().len() - embedded;
    assert!(more <= left as usize + 64, "it went on where it was: {more} for {left}");
    assert!(found(&third).await);
    let all = "select count(*) from memories where embedder <> 0 and vector_dims(vector) = 48";
    assert_eq!(count(&mut store, all).await, MEMORIES as i64);
    drop(node);
}
