use std::path::Path;

use proxie::app::core;
use proxie::gateway::http::{asyncapi, openapi};
use serde_json::json;
use sqlx::Executor;

use super::ALL;
use crate::edges::TestNode;
use crate::support::{database, pool};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_system_is_served_by_every_door() {
    let node = TestNode::with_systems(ALL).await;
    let alice = node.user("alice");
    let issued = alice.post("/v1/vouchers", &json!({"gift": "a haircut"})).await;
    assert_eq!(issued.status, 201, "{}", issued.text);
    let id = issued.json()["id"].as_str().unwrap().to_owned();
    // Over a socket, with its topic.
    let mut ws = node.ws("alice").await;
    ws.ok("topic:subscribe", json!({"topic": format!("voucher:{id}")})).await;
    let redeemed = ws.ok("voucher:redeem", json!({"voucher_id": id})).await;
    assert!(redeemed["redeemed_at"].is_string(), "{redeemed}");
    let heard = ws.event_named("voucher:redeemed").await;
    assert_eq!((&heard["data"], heard["offset"].as_i64()), (&redeemed, Some(1)));
    let list = alice.get("/v1/vouchers").await.json();
    assert_eq!(list["items"], json!([redeemed]));
    // Another person's is none.
    let bob = node.user("bob");
    assert_eq!(bob.post(&format!("/v1/vouchers/{id}/redeem"), &json!({})).await.status, 404);
    assert_eq!(bob.get("/v1/vouchers").await.json()["items"], json!([]));
    let mut bobs = node.ws("bob").await;
    let refused =
        bobs.ask_as("1", "topic:subscribe", json!({"topic": format!("voucher:{id}")})).await;
    assert_eq!(refused["error"]["code"], "not_found");
    // What is wrong is said with its place, and a rejection has a name.
    let wrong = alice.post("/v1/vouchers", &json!({"gift": 7})).await;
    assert_eq!(wrong.json()["errors"][0]["pointer"], "/gift");
    let again = alice.post(&format!("/v1/vouchers/{id}/redeem"), &json!({})).await;
    assert_eq!(again.json()["reason"], "already_redeemed");
    // The documents.
    let (http, events) = (openapi::document(ALL), asyncapi::document(ALL));
    assert!(http["paths"]["/v1/vouchers/{id}/redeem"]["post"].is_object());
    assert!(events["channels"]["ws"]["messages"]["server.voucher:redeemed"].is_object());
    node.node.stop().await;
}

#[tokio::test]
async fn a_table_follows_its_type() {
    let pool = pool(database().await).await;
    let column =
        "select string_agg(column_name || ' ' || data_type, ', ' order by ordinal_position)
                    from information_schema.columns where table_name = 'vouchers'";
    core::migrate(&pool, ALL).await.unwrap();
    let made: String = sqlx::query_scalar(column).fetch_one(&pool).await.unwrap();
    for expected in ["id text", "owner_id text", "issued_at timestamp with time zone"] {
        assert!(made.contains(expected), "{made}");
    }
    let indexes = "select count(*) from pg_indexes where tablename = 'vouchers'";
    assert_eq!(sqlx::query_scalar::<_, i64>(indexes).fetch_one(&pool).await.unwrap(), 2);
    // A field is new: its column comes, and what is there stays.
    pool.execute("alter table vouchers drop column redeemed_at").await.unwrap();
    pool.execute(
        "insert into vouchers (id, owner_id, gift, issued_at) values ('v', 'alice', 'g', now())",
    )
    .await
    .unwrap();
    core::migrate(&pool, ALL).await.unwrap();
    core::migrate(&pool, ALL).await.unwrap();
    let again: String = sqlx::query_scalar(column).fetch_one(&pool).await.unwrap();
    assert!(again.contains("redeemed_at timestamp with time zone"), "{again}");
    assert_eq!(sqlx::query_scalar::<_, i64>(indexes).fetch_one(&pool).await.unwrap(), 2);
    let rows = "select count(*) from vouchers where redeemed_at is null";
    assert_eq!(sqlx::query_scalar::<_, i64>(rows).fetch_one(&pool).await.unwrap(), 1);
}

#[test]
fn the_golden_journal_has_every_event() {
    (super::SYSTEM.entities[0].check_golden)().unwrap();
}

/// Whatever Rust the page shows stands here, line by line.
#[test]
fn the_page_shows_this_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let here = ["voucher.rs", "operations.rs", "mod.rs", "golden/voucher.jsonl"];
    let code: String = here.map(|file| read(&format!("tests/it/vouchers/{file}"))).join("\n");
    let work = ["runners.rs", "domain/matching.rs", "domain/request.rs"];
    let work = work.map(|file| read(&format!("src/systems/marketplace/{file}"))).join("\n");
    let code = code.replace("proxie::", "crate::") + &work;
    let page = read("docs/adding-a-system.md");
    let mut blocks = 0;
    for block in page.split("```").skip(1).step_by(2) {
        let Some(shown) = block.strip_prefix("rust\n").or(block.strip_prefix("json\n")) else {
            continue;
        };
        blocks += 1;
        // `…` stands for what is left out.
        for part in shown.split("…\n").map(str::trim_end).filter(|part| !part.trim().is_empty()) {
            assert!(code.contains(part), "docs/adding-a-system.md shows another code:\n{part}");
        }
    }
    assert!(blocks >= 5, "the page shows the system");
}
