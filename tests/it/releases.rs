//! Two releases on one database: what each must take from the other.

use std::path::Path;
use std::time::Duration;

use proxie::actors::Options;
use proxie::app::core::Core;
use proxie::cluster::CommandMeta;
use proxie::kernel::entity::{DecideCx, Decided, Decision, Entity};
use proxie::kernel::ids::slot_of;
use proxie::persistence::outbox;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use crate::counter::{Command, Counter, Reply};
use crate::process::Folder;
use crate::support::{Setup, core, database, eventually, known_as, pool, try_prepare};

#[path = "../../examples/releases/suite.rs"]
#[allow(dead_code)]
mod harness;

/// With this binary twice, or an older one that `PROXIE_OLDER` names. `./dev releases` does it with two commits.
#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_are_rolled_forward_and_back_under_load() {
    let folder = Folder::new("releases");
    let database = database().await.to_url_lossy().to_string();
    let newer = Path::new(env!("CARGO_BIN_EXE_proxie"));
    let older = std::env::var_os("PROXIE_OLDER");
    let older = older.as_deref().map_or(newer, Path::new);
    harness::run(&[older, newer], &folder.0, &database, 1).await.unwrap();
}

/// For what is over in a moment where nothing else goes on.
const PATIENCE: Duration = Duration::from_secs(120);

/// A kind that the older release does not know.
struct Note;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("no")]
struct No;

impl proxie::kernel::entity::Rejection for No {
    fn reason(&self) -> &'static str {
        "no"
    }
}

impl Entity for Note {
    const KIND: &'static str = "note";
    const GOLDEN: &'static str = r#"{"version":1,"event":1}"#;

    type State = u32;
    /// True writes one; false asks how many there are.
    type Command = bool;
    type Event = u32;
    type Reply = u32;
    type Rejection = No;

    fn is_query(command: &bool) -> bool {
        !*command
    }

    fn decide(state: &u32, command: bool, _: &DecideCx<'_>) -> Decided<Self> {
        let written = state + u32::from(command);
        let decision = Decision::reply(written);
        Ok(if command { decision.event(written) } else { decision })
    }

    fn evolve(state: &mut u32, event: &u32) {
        *state = *event;
    }
}

/// A node of a cluster that knows [`Counter`], and [`Note`] where it is of the newer release.
async fn member(database: &PgConnectOptions, name: &'static str, newer: bool) -> Core {
    let setup = Setup { name, clustered: true, data_lock_held: false, ..Setup::default() };
    let mut prepared = try_prepare(database.clone(), setup).await.unwrap();
    prepared.registry.register::<Counter>().await.unwrap();
    if newer {
        prepared.registry.register::<Note>().await.unwrap();
    }
    let core = prepared.run().await.unwrap();
    core.standing().wait_for(|standing| standing.active && standing.settled).await.unwrap();
    core
}

/// Moving thousands of slots takes its time on a busy machine.
async fn until(holds: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "the slots do not come to where they belong");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn patient() -> CommandMeta {
    CommandMeta::runtime().timeout(PATIENCE)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_owner_does_not_know_comes_to_a_node_that_does() {
    let database = database().await;
    let older = member(&database, "older", false).await;
    let newer = member(&database, "newer", true).await;
    until(|| {
        newer.runtime.slots.count_mine() == 2_048 && older.runtime.slots.count_mine() == 2_048
    })
    .await;
    let keys: Vec<String> = (0..40).map(|n| format!("note-{n}")).collect();
    let slots: std::collections::HashSet<u16> =
        keys.iter().map(|key| slot_of("note", key)).collect();
    let theirs = slots
        .iter()
        .filter(|slot| older.runtime.slots.owned(**slot).owner == Some(older.runtime.slots.me()));
    let theirs = theirs.count();
    assert!(theirs > 5, "most of them live with the newer node");
    let asked = keys.iter().enumerate().map(|(n, key)| {
        let (entities, key, meta) = (newer.entities.clone(), key.clone(), patient());
        async move {
            if n % 2 == 0 {
                return entities.of::<Note>(key).ask(true, meta).await.unwrap().unwrap();
            }
            // As a delivery does.
            let meta = meta.id(format!("eff_{n}"));
            let answer = entities.ask_json("note", &key, "true", meta).await.unwrap();
            assert_eq!(answer, Ok(json!(1)));
            1
        }
    });
    assert_eq!(futures_util::future::join_all(asked).await, [1; 40]);
    // What was asked for has moved, and nothing else; nothing comes back.
    assert_eq!(older.runtime.slots.count_mine(), 2_048 - theirs);
    newer.stop().await;
    // The older release owns them all. It says that it cannot, and loses nothing.
    until(|| older.runtime.slots.count_mine() == 4_096).await;
    let answer = older.entities.ask_json("note", &keys[0], "false", CommandMeta::runtime()).await;
    assert!(answer.is_err(), "{answer:?}");
    let newer = member(&database, "newer again", true).await;
    let asked = keys.iter().map(|key| newer.entities.of::<Note>(key).ask(false, patient()));
    for answer in futures_util::future::join_all(asked).await {
        assert_eq!(answer.unwrap(), Ok(1));
    }
    newer.stop().await;
    older.stop().await;
}

/// As the release before and the one after write into the same tables.
#[tokio::test]
async fn a_row_touches_only_the_columns_that_it_gives() {
    let pool = pool(database().await).await;
    // The newer release widens two views, one of them with a function before its upsert.
    sqlx::raw_sql(
        "alter table messages add column mood text not null default 'calm', add column pinned_at timestamptz;
         call make_view('messages');
         alter table providers add column motto text not null default 'none';
         call make_view('providers')",
    )
    .execute(&pool)
    .await
    .unwrap();
    let write = async |view: &str, rows: serde_json::Value| {
        let sql = format!("select view_{view}($1::jsonb)");
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(rows.to_string()).execute(&pool).await.unwrap();
    };
    let shown = async |sql: &'static str| {
        let text: String = sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let message = |id: &str, content: &str| {
        json!({
            "id": id, "session_id": "ses_1", "role": "user", "content": content,
            "media": [], "created_at": "2027-01-01T00:00:00Z",
        })
    };
    let mut newer = message("msg_1", "first");
    newer["mood"] = json!("merry");
    newer["pinned_at"] = json!("2027-02-02T00:00:00Z");
    write("messages", json!([newer])).await;
    // The older one writes the same message, and one of its own, twice in one batch.
    let older = [message("msg_1", "again"), message("msg_2", "x"), message("msg_2", "y")];
    write("messages", json!(older)).await;
    let all = "select jsonb_agg(jsonb_build_array(id, content, mood, pinned_at is not null) order by id)::text from messages";
    assert_eq!(
        shown(all).await,
        json!([["msg_1", "again", "merry", true], ["msg_2", "y", "calm", false]])
    );
    // Rows of one batch that give different columns are one; null is given where it is said.
    write("messages", json!([{"id": "msg_2", "mood": "loud"}, {"id": "msg_2", "content": "z"}]))
        .await;
    write("messages", json!([{"id": "msg_1", "pinned_at": null}])).await;
    assert_eq!(
        shown(all).await,
        json!([["msg_1", "again", "merry", false], ["msg_2", "z", "loud", false]])
    );
    let provider = json!({
        "id": "pro_1", "owner_id": "pat", "name": "Salon", "services": ["haircut"], "city": "Berlin",
        "country": "DE", "latitude": 52.5, "longitude": 13.4, "radius_km": 5, "profile": {},
        "version": 1, "updated_at": "2027-01-01T00:00:00Z",
    });
    let sql = "select jsonb_build_array(motto, (select count(*) from provider_services))::text from providers";
    write("providers", json!([provider])).await;
    assert_eq!(shown(sql).await, json!(["none", 1]));
}

/// An older release met events that it does not know, and parked their entities; then the newer one is back.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_release_has_parked_starts_here() {
    let database = database().await;
    let pool = pool(database.clone()).await;
    let park = async |key: &str, known_as: Option<String>| {
        sqlx::query("insert into parked (kind, key, reason, failures, known_as) values ('counter', $1, 'it was', 5, $2)")
            .bind(key)
            .bind(known_as)
            .execute(&pool)
            .await
            .unwrap();
    };
    // Before this one no release said what it knew.
    park("by-the-first", None).await;
    park("by-another", Some("0.0.1 0123456789abcdef".into())).await;
    park("by-this", Some(known_as())).await;
    park("broken-here-too", None).await;
    sqlx::query("insert into journal values ('counter', 'broken-here-too', 1, 2, 0, '{\"Unheard\": 1}', 'test', null, now())")
        .execute(&pool)
        .await
        .unwrap();
    let entities = Options { park_after: 2, ..Options::default() };
    let node = core(database, Setup { entities, ..Setup::default() }).await;
    let get = async |key: &str| {
        node.entities.of::<Counter>(key).ask(Command::Get, CommandMeta::runtime()).await
    };
    for key in ["by-the-first", "by-another"] {
        assert_eq!(get(key).await, Ok(Ok(Reply::Total(0))), "{key}");
    }
    assert!(get("by-this").await.unwrap_err().to_string().contains("parked"));
    eventually("this release parks what it cannot start either", || async {
        get("broken-here-too").await.is_err_and(|error| error.to_string().contains("parked"))
    })
    .await;
    eventually("the store knows", || async {
        let parked = outbox::parked(&pool, ("", ""), 10).await.unwrap();
        let here = |parked: &outbox::Parked| parked.known_as == Some(known_as());
        parked.len() == 2 && parked.iter().all(here)
    })
    .await;
    node.stop().await;
}
