//! Members and slots in the store: what two nodes may do to each other, and what neither may.

use proxie::persistence::commit::{self, Resolution};
use proxie::persistence::members::{self, Evidence, Member, MemberState, SlotRow};
use proxie::persistence::membership::{self, NodeInfo, process_exists, process_start};
use proxie::persistence::sweep::{self, RowRetention};
use sqlx::postgres::PgPool;

use crate::support::{database, pool};

fn node(name: &str, lease_s: f64) -> NodeInfo {
    NodeInfo {
        name: name.into(),
        address: String::new(),
        version: "1".into(),
        host: format!("host of {name}"),
        pid: std::process::id() as i32,
        process_start: 0,
        lease_s,
        lanes: 2,
        seals: true,
    }
}

async fn active(pool: &PgPool, name: &str, lease_s: f64) -> i64 {
    let incarnation =
        members::join(pool, &node(name, lease_s), "127.0.0.1:1", 1, &|_| {}).await.unwrap();
    assert!(members::set_state(pool, incarnation, MemberState::Active).await.unwrap());
    incarnation
}

async fn member(pool: &PgPool, me: i64, of: i64) -> Option<Member> {
    let mut connection = pool.acquire().await.unwrap();
    let beat = members::beat(&mut connection, me, 5.0, &serde_json::json!({})).await.unwrap();
    let (beat, _) = beat?;
    beat.members.into_iter().find(|member| member.incarnation == of)
}

async fn owner(pool: &PgPool, slot: u16) -> SlotRow {
    members::slots(pool).await.unwrap().1[usize::from(slot)]
}

#[tokio::test]
async fn slots_are_claimed_once_and_handed_over_by_their_owner() {
    let pool = pool(database().await).await;
    let (a, b) = (active(&pool, "a", 5.0).await, active(&pool, "b", 5.0).await);
    let (version, slots) = members::slots(&pool).await.unwrap();
    assert_eq!((slots.len(), slots[7]), (4096, SlotRow { owner: None, epoch: 0, claimed: false }));
    // Both want it: one gets it.
    let (one, two) = tokio::join!(
        members::claim(&pool, a, &[(7, 0), (8, 0)]),
        members::claim(&pool, b, &[(7, 0), (9, 0)])
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.len() + two.len(), 3, "{one:?} {two:?}");
    assert!(one.contains(&(8, 1)) && two.contains(&(9, 1)));
    assert!(members::slots(&pool).await.unwrap().0 > version, "others see that it changed");
    // What lives is not claimed, and nobody hands over what is another's.
    assert!(members::claim(&pool, b, &[(8, 1)]).await.unwrap().is_empty());
    assert!(members::hand_over(&pool, b, b, &[(8, 1)]).await.unwrap().is_empty());
    assert!(members::hand_over(&pool, a, b, &[(8, 0)]).await.unwrap().is_empty(), "old epoch");
    assert_eq!(members::hand_over(&pool, a, b, &[(8, 1)]).await.unwrap(), [(8, 2)]);
    assert_eq!(owner(&pool, 8).await, SlotRow { owner: Some(b), epoch: 2, claimed: false });
}

#[tokio::test]
async fn a_hand_over_waits_for_the_batch_that_is_being_written() {
    let pool = pool(database().await).await;
    let (a, b) = (active(&pool, "a", 5.0).await, active(&pool, "b", 5.0).await);
    members::claim(&pool, a, &[(7, 0)]).await.unwrap();
    let mut batch = pool.begin().await.unwrap();
    sqlx::query("update lanes set batch = 1 where incarnation = $1 and lane = 1")
        .bind(a)
        .execute(&mut *batch)
        .await
        .unwrap();
    let mut handing = Box::pin(members::hand_over(&pool, a, b, &[(7, 1)]));
    let patience = std::time::Duration::from_millis(300);
    assert!(tokio::time::timeout(patience, &mut handing).await.is_err(), "it does not wait");
    batch.commit().await.unwrap();
    assert_eq!(handing.await.unwrap(), [(7, 2)]);
}

#[tokio::test]
async fn a_dead_member_stays_dead_and_loses_its_slots() {
    let pool = pool(database().await).await;
    let (a, b) = (active(&pool, "a", 5.0).await, active(&pool, "b", 5.0).await);
    members::claim(&pool, a, &[(7, 0)]).await.unwrap();
    // Its lease holds, and nobody suspects it.
    assert!(!members::evict(&pool, Some(b), a, Evidence::Lease).await.unwrap());
    assert!(!members::evict(&pool, Some(b), a, Evidence::Suspected { by: 1 }).await.unwrap());
    members::suspect(&pool, b, a).await.unwrap();
    assert_eq!(member(&pool, b, a).await.unwrap().suspected_by, 1);
    assert!(!members::evict(&pool, Some(b), a, Evidence::Suspected { by: 2 }).await.unwrap());
    assert!(members::evict(&pool, Some(b), a, Evidence::Suspected { by: 1 }).await.unwrap());
    assert!(!members::evict(&pool, Some(b), a, Evidence::Refused).await.unwrap(), "only once");
    // It learns of it with its next renewal, and gets nothing any more.
    assert_eq!(member(&pool, a, a).await, None);
    assert!(!members::set_state(&pool, a, MemberState::Active).await.unwrap());
    assert!(members::claim(&pool, a, &[(8, 0)]).await.unwrap().is_empty());
    let live: bool = sqlx::query_scalar("select bool_or(live) from lanes where incarnation = $1")
        .bind(a)
        .fetch_one(&pool)
        .await
        .unwrap();
    assert!(!live, "its lanes are fenced");
    assert_eq!(owner(&pool, 7).await, SlotRow { owner: None, epoch: 1, claimed: true });
    assert_eq!(members::claim(&pool, b, &[(7, 1)]).await.unwrap(), [(7, 2)]);
    // The same name again is another incarnation.
    assert!(active(&pool, "a", 5.0).await > b);
}

#[tokio::test]
async fn two_that_hold_each_other_for_dead_do_not_both_win() {
    for _ in 0..10 {
        let pool = pool(database().await).await;
        let (a, b) = (active(&pool, "a", 5.0).await, active(&pool, "b", 5.0).await);
        let (one, two) = tokio::join!(
            members::evict(&pool, Some(a), b, Evidence::Refused),
            members::evict(&pool, Some(b), a, Evidence::Refused)
        );
        assert!(one.unwrap() ^ two.unwrap());
    }
}

#[tokio::test]
async fn who_has_no_lease_or_is_not_active_evicts_nobody() {
    let pool = pool(database().await).await;
    let (late, b) = (active(&pool, "late", 0.0).await, active(&pool, "b", 5.0).await);
    assert!(!members::evict(&pool, Some(late), b, Evidence::Refused).await.unwrap());
    let joining = members::join(&pool, &node("c", 5.0), "127.0.0.1:9", 1, &|_| {}).await.unwrap();
    assert!(!members::evict(&pool, Some(joining), b, Evidence::Refused).await.unwrap());
    assert!(members::claim(&pool, late, &[(7, 0)]).await.unwrap().is_empty());
    assert!(members::evict(&pool, Some(b), late, Evidence::Lease).await.unwrap());
}

#[tokio::test]
async fn a_live_member_of_the_same_name_keeps_it() {
    let pool = pool(database().await).await;
    let first = active(&pool, "a", 5.0).await;
    let renewing = async {
        loop {
            member(&pool, first, first).await.expect("it lives");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let twin = node("a", 5.0);
    let refused = tokio::select! {
        joined = members::join(&pool, &twin, "", 1, &|_| {}) => joined.unwrap_err(),
        () = renewing => unreachable!(),
    };
    let said = refused.to_string();
    assert!(said.contains("this cluster has a living node a already (incarnation 1"), "{said}");
    // It is gone, and its lease is waited for.
    let waits = std::sync::Mutex::new(Vec::new());
    let note = |what: String| waits.lock().unwrap().push(what);
    let second = members::join(&pool, &twin, "127.0.0.1:2", 1, &note).await.unwrap();
    assert!(
        waits.lock().unwrap()[0].contains("the lease of a (incarnation 1, at 127.0.0.1:1, pid ")
    );
    assert_eq!(member(&pool, second, first).await, None);
    // Of two that come at the same moment one gets it; the other one waits for its lease.
    for n in 0..5 {
        let other = node(&format!("b{n}"), 60.0);
        let join = async |address: &'static str| {
            let joining = members::join(&pool, &other, address, 1, &|_| {});
            tokio::time::timeout(std::time::Duration::from_secs(2), joining).await
        };
        let (one, two) = tokio::join!(join("127.0.0.1:3"), join("127.0.0.1:4"));
        let got = [&one, &two].into_iter().filter(|joined| matches!(joined, Ok(Ok(_)))).count();
        assert_eq!(got, 1, "{one:?} {two:?}");
    }
}

#[tokio::test]
async fn a_process_is_gone_where_that_can_be_seen_only() {
    let pool = pool(database().await).await;
    let me = std::process::id() as i32;
    let started = process_start(me).expect("there is /proc");
    let here = |name: &str, pid, process_start| NodeInfo {
        host: "here".into(),
        pid,
        process_start,
        ..node(name, 60.0)
    };
    let join = async |node: NodeInfo| {
        members::join(&pool, &node, "127.0.0.1:1", 1, &|_| {}).await.unwrap()
    };
    let alive = join(here("alive", me, started)).await;
    let unknown = join(here("unknown", me, 0)).await;
    let reused = join(here("reused", me, started + 1)).await;
    // No pid is as large as that.
    let dead = join(here("dead", i32::MAX, 1)).await;
    let elsewhere =
        join(NodeInfo { host: "elsewhere".into(), ..here("elsewhere", i32::MAX, 1) }).await;
    let newcomer = join(here("newcomer", me, started)).await;
    for (of, lives) in
        [(alive, true), (unknown, true), (reused, false), (dead, false), (elsewhere, true)]
    {
        assert_eq!(member(&pool, newcomer, of).await.is_some(), lives, "{of}");
    }
}

/// Whoever may not signal a process knows all the same that it is there.
#[test]
fn a_process_of_another_user_exists() {
    if !rustix::process::geteuid().is_root() {
        // Then the first process is another user's.
        assert!(process_exists(1, 0));
        return;
    }
    use std::os::unix::process::CommandExt;
    let looks = |pid: u32| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "members::looks_at_a_process", "--ignored", "--nocapture"]);
        command.env("PROXIE_TEST_PID", pid.to_string()).uid(65_534).gid(65_534);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    };
    looks(std::process::id());
}

/// As another user.
#[test]
#[ignore = "a part of the test above"]
fn looks_at_a_process() {
    if let Ok(pid) = std::env::var("PROXIE_TEST_PID") {
        let pid = pid.parse().unwrap();
        assert!(process_exists(pid, 0));
        assert!(process_exists(pid, process_start(pid).unwrap()));
        assert!(!process_exists(pid, 1));
    }
}

#[tokio::test]
async fn nodes_that_left_are_shown_for_a_while_and_all_that_are_dead_are_forgotten() {
    let pool = pool(database().await).await;
    let (a, b, c) = (
        active(&pool, "a", 5.0).await,
        active(&pool, "b", 5.0).await,
        active(&pool, "c", 5.0).await,
    );
    membership::leave(&pool, a).await.unwrap();
    members::evict(&pool, None, b, Evidence::Operator).await.unwrap();
    let shown = async || {
        let nodes = membership::nodes(&pool).await.unwrap();
        nodes.into_iter().map(|node| (node.incarnation, node.state)).collect::<Vec<_>>()
    };
    let active_c = (c, "active".to_owned());
    assert_eq!(shown().await, [(a, "drained".to_owned()), active_c.clone()]);
    let kept = RowRetention { dedupe_s: 86_400, publications_s: 86_400 };
    let long_ago = async |interval: &str| {
        let sql = format!("update nodes set ended_at = ended_at - interval '{interval}'");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
        sweep::sweep(&pool, None, kept).await.unwrap()
    };
    assert_eq!(long_ago("11 minutes").await, 0, "not yet");
    assert_eq!(shown().await, [active_c]);
    assert_eq!(long_ago("1 day").await, 2);
    for table in ["nodes", "leases", "lanes"] {
        let left: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "select count(distinct incarnation) from {table}"
        )))
        .fetch_one(&pool)
        .await
        .unwrap();
        assert_eq!(left, 1, "{table}");
    }
    // One of them wakes up.
    assert_eq!(member(&pool, a, c).await, None);
    let mut connection = pool.acquire().await.unwrap();
    let resolved = commit::resolve(&mut connection, b, 0, 1, 1).await.unwrap();
    assert_eq!(resolved, Resolution::Fenced);
}

#[tokio::test]
async fn a_frozen_writer_does_not_hold_up_its_takeover() {
    let options = database().await;
    let pool = pool(options.clone()).await;
    let (a, b) = (active(&pool, "a", 5.0).await, active(&pool, "b", 5.0).await);
    let name = format!("proxie lane {a}/0");
    let frozen = crate::support::pool(options.application_name(&name)).await;
    let mut batch = frozen.begin().await.unwrap();
    sqlx::query("update lanes set batch = 1 where incarnation = $1 and lane = 0")
        .bind(a)
        .execute(&mut *batch)
        .await
        .unwrap();
    assert!(members::evict(&pool, Some(b), a, Evidence::Refused).await.unwrap());
    assert!(batch.commit().await.is_err(), "what it was writing never commits");
    let batch: i64 =
        sqlx::query_scalar("select batch from lanes where incarnation = $1 and lane = 0")
            .bind(a)
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!(batch, 0);
}

#[tokio::test]
async fn a_batch_that_was_never_written_is_not_taken_for_one_that_was() {
    let pool = pool(database().await).await;
    let a = active(&pool, "a", 5.0).await;
    let mut connection = pool.acquire().await.unwrap();
    // The answer to the first may be lost, too.
    for _ in 0..2 {
        let ended = commit::resolve(&mut connection, a, 0, 1, 3).await.unwrap();
        assert_eq!(ended, Resolution::Burned);
    }
    assert_eq!(commit::resolve(&mut connection, a, 0, 2, 3).await.unwrap(), Resolution::Burned);
    assert_eq!(commit::resolve(&mut connection, a, 0, 1, 3).await.unwrap(), Resolution::Fenced);
}
