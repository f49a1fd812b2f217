//! Lists, read to their end while they grow.

use std::collections::HashSet;
use std::time::Duration;

use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::{Http, TestNode, text};
use crate::support::eventually;

/// One list, and how another row of it is made from the one that is there.
struct Listed {
    path: String,
    table: &'static str,
    id: String,
    /// What comes while it is read comes at its end.
    ends_last: bool,
}

impl Listed {
    fn path(&self, limit: usize, cursor: Option<&str>) -> String {
        let and = if self.path.contains('?') { '&' } else { '?' };
        let cursor = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        format!("{}{and}limit={limit}{cursor}", self.path)
    }

    /// As old as its number says; three of them are made at the same time.
    async fn copy(&self, store: &mut PgConnection, n: i32) {
        let prefix = self.id.split_once('_').unwrap().0;
        let id = format!("{prefix}_01ARZ3NDEKTSV4RRFFQ69G{n:04}");
        let sql = format!(
            "insert into {0} select (jsonb_populate_record(t, jsonb_build_object('id', $2::text)
                 || case '{0}' when 'providers' then '{{}}' when 'playback_sessions'
                    then jsonb_build_object('started_at', now() + $3 * interval '1 second')
                    else jsonb_build_object('created_at', now() + $3 * interval '1 second') end
                 || case '{0}' when 'bookings' then jsonb_build_object('detail', to_jsonb(t) -> 'detail' || jsonb_build_object('id', $2::text))
                    else '{{}}' end)).* from {0} t where id = $1",
            self.table
        );
        let copy = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&self.id).bind(&id).bind(n / 3);
        assert_eq!(copy.execute(&mut *store).await.unwrap().rows_affected(), 1, "{}", self.path);
        if self.table == "providers" {
            let list = sqlx::query("select list_services(array[$1])").bind(&id);
            list.execute(store).await.unwrap();
        }
    }
}

fn ids(page: &Value) -> Vec<String> {
    page["items"].as_array().unwrap().iter().map(|item| text(&item["id"])).collect()
}

async fn ok(client: &Http, path: &str, body: &Value) -> Value {
    let answer = client.post(path, body).await;
    assert!((200..300).contains(&answer.status), "{path}: {}", answer.text);
    answer.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_item_is_listed_once_while_the_list_grows() {
    let node = TestNode::with(|config| config.gateway.requests_per_minute = 1_000_000).await;
    let provider = node.hairdresser().await;
    let alice = node.user("alice");
    let at = Clock::System.now() + Duration::from_secs(48 * 3_600);
    let at = jiff::Timestamp::from_second(at.as_second()).unwrap().to_string();
    let haircut = json!({"service": "haircut", "place": "Alexanderplatz, Berlin", "starts_at": at});
    let request = text(&ok(&alice, "/v1/requests", &haircut).await["id"]);
    let offer = text(&alice.offer(&request).await["id"]);
    ok(&alice, &format!("/v1/offers/{offer}/accept"), &json!({})).await;
    let booked = async || alice.get("/v1/bookings").await.json()["items"][0]["id"].clone();
    eventually("it is booked", || async { booked().await.is_string() }).await;
    let booking = text(&booked().await);
    let session = text(&ok(&alice, "/v1/sessions", &json!({})).await["id"]);
    let messages = format!("/v1/sessions/{session}/messages");
    ok(&alice, &messages, &json!({"content": "hello"})).await;
    let mut store = node.store().await;
    let playback = "pbs_01ARZ3NDEKTSV4RRFFQ69G9999".to_owned();
    sqlx::query(
        "insert into playback_sessions values ($1, 'alice', 'tt0133093', 'dev_01ARZ3NDEKTSV4RRFFQ69G5FAV', 'netflix',
             'subscription', 'hd', 'nflx://1', 'https://example.org/1', null, 'ended', null, null, now(), now(), now(), 'stopped')",
    )
    .bind(&playback)
    .execute(&mut store)
    .await
    .unwrap();
    let message = text(&alice.get(&messages).await.json()["items"][0]["id"]);
    let listed = |path: &str, table, id: &String, ends_last| Listed {
        path: path.into(),
        table,
        id: id.clone(),
        ends_last,
    };
    let offers = format!("/v1/requests/{request}/offers");
    let lists = [
        listed("/v1/requests", "requests", &request, false),
        listed("/v1/bookings", "bookings", &booking, false),
        listed("/v1/sessions", "sessions", &session, false),
        listed("/v1/playback/session", "playback_sessions", &playback, false),
        listed(&format!("{messages}?order=desc"), "messages", &message, false),
        listed(&messages, "messages", &message, true),
        listed(&offers, "offers", &offer, true),
        listed("/v1/providers", "providers", &provider, true),
        listed("/v1/providers?service=haircut&city=Berlin", "providers", &provider, true),
        listed("/v1/providers?service=haircut", "providers", &provider, true),
        listed("/v1/providers?city=berlin", "providers", &provider, true),
    ];
    let (mut number, mut cursors) = (0, Vec::new());
    for list in &lists {
        for _ in 0..9 {
            number += 1;
            list.copy(&mut store, number).await;
        }
        for limit in [1, 2, 7] {
            let before = alice.get(&list.path(100, None)).await.json();
            assert_eq!(before["next_cursor"], Value::Null);
            let before = ids(&before);
            assert!(before.len() >= 10, "{}: {before:?}", list.path);
            let (mut seen, mut cursor, mut pages) = (Vec::new(), None, 0);
            loop {
                assert!(pages < 100, "{} has no end", list.path);
                let page = alice.get(&list.path(limit, cursor.as_deref())).await.json();
                let items = ids(&page);
                assert!(items.len() <= limit);
                seen.extend(items);
                let Some(next) = page["next_cursor"].as_str() else { break };
                cursor = Some(next.to_owned());
                pages += 1;
                if pages < 4 {
                    number += 1;
                    list.copy(&mut store, number).await;
                }
            }
            let once: HashSet<_> = seen.iter().collect();
            assert_eq!(once.len(), seen.len(), "{} by {limit}: {seen:?}", list.path);
            let known: Vec<_> = seen.iter().filter(|id| before.contains(id)).cloned().collect();
            assert_eq!(known, before, "{} by {limit}", list.path);
            if list.ends_last && list.table != "providers" {
                assert_eq!(ids(&alice.get(&list.path(100, None)).await.json()), seen);
            }
            cursors.push((list, cursor.unwrap()));
        }
    }
    let kind = |list: &Listed| list.path.split("?service").next().unwrap().to_owned();
    let kind = |list: &Listed| kind(list).split("?city").next().unwrap().to_owned();
    for (of, cursor) in cursors.iter().step_by(3) {
        for list in &lists {
            let answer = alice.get(&list.path(2, Some(cursor))).await;
            let expected = if kind(of) == kind(list) { 200 } else { 400 };
            assert_eq!(answer.status, expected, "{} with one of {}", list.path, of.path);
        }
        for broken in [&cursor[1..], &cursor[2..], &cursor[..cursor.len() / 3], "zz"] {
            let problem = alice.get(&of.path(2, Some(broken))).await;
            let problem = problem.problem(400, "bad_request");
            assert_eq!(problem["errors"][0]["pointer"], "/cursor");
        }
    }
    // Whose rows they are is not the cursor's to say.
    let bob = node.user_as("bob", Role::Consumer);
    let (_, cursor) = &cursors[0];
    let page = bob.get(&lists[0].path(2, Some(cursor))).await.json();
    assert_eq!(page, json!({"items": [], "next_cursor": null}));
}

/// As a node sees it that is older than the one which wrote the row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_of_a_newer_release_is_left_out_and_counted() {
    let node = TestNode::start().await;
    let alice = node.user("alice");
    let haircut = json!({"text": "a haircut tomorrow at 5 pm near Alexanderplatz in Berlin"});
    let known = text(&ok(&alice, "/v1/requests", &haircut).await["id"]);
    let newer = text(&ok(&alice, "/v1/requests", &haircut).await["id"]);
    let mut store = node.store().await;
    // Nobody is there to match them: from then on nothing writes them any more.
    eventually("both have ended", async || {
        let page = alice.get("/v1/requests").await.json();
        page["items"].as_array().unwrap().iter().all(|item| item["status"] == "unmatched")
    })
    .await;
    sqlx::query("update requests set status = 'postponed' where id = $1")
        .bind(&newer)
        .execute(&mut store)
        .await
        .unwrap();
    let page = alice.get("/v1/requests").await.json();
    assert_eq!((ids(&page), &page["omitted"]), (vec![known.clone()], &json!(1)), "{page}");
    // A page of nothing else goes on all the same.
    let page = alice.get("/v1/requests?limit=1").await.json();
    assert_eq!((ids(&page), &page["omitted"]), (vec![], &json!(1)), "{page}");
    let rest = format!("/v1/requests?limit=1&cursor={}", page["next_cursor"].as_str().unwrap());
    let page = alice.get(&rest).await.json();
    assert_eq!((ids(&page), page.get("omitted")), (vec![known], None), "{page}");
    let answer = alice.get(&format!("/v1/requests/{newer}")).await;
    answer.problem(503, "unavailable");
}
