//! Members and slots in the store: what two nodes may do to each other, and what neither may.

use proxie::persistence::commit::{self, Resolution};
use proxie::persistence::members::{self, Evidence, Member, SlotRow, State};
use proxie::persistence::membership::NodeInfo;
use sqlx::postgres::PgPool;

use crate::support::{database, pool};

fn node(name: &str, lease_s: f64) -> NodeInfo {
    NodeInfo {
        name: name.into(),
        address: String::new(),
        version: "1".into(),
        host: format!("host of {name}"),
        pid: std::process::id() as i32,
        lease_s,
        lanes: 2,
    }
}

async fn active(pool: &PgPool, name: &str, lease_s: f64) -> i64 {
    let incarnation = members::join(pool, &node(name, lease_s), "127.0.0.1:1", 1).await.unwrap();
    assert!(members::set_state(pool, incarnation, State::Active).await.unwrap());
    incarnation
}

async fn member(pool: &PgPool, me: i64, of: i64) -> Option<Member> {
    let mut connection = pool.acquire().await.unwrap();
    let beat = members::beat(&mut connection, me, 5.0, &serde_json::json!({})).await.unwrap()?;
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
    assert!(!members::set_state(&pool, a, State::Active).await.unwrap());
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
    let joining = members::join(&pool, &node("c", 5.0), "", 1).await.unwrap();
    assert!(!members::evict(&pool, Some(joining), b, Evidence::Refused).await.unwrap());
    assert!(members::claim(&pool, late, &[(7, 0)]).await.unwrap().is_empty());
    assert!(members::evict(&pool, Some(b), late, Evidence::Lease).await.unwrap());
}

#[tokio::test]
async fn a_live_member_of_the_same_name_keeps_it() {
    let pool = pool(database().await).await;
    let first = active(&pool, "a", 5.0).await;
    let refused = members::join(&pool, &node("a", 5.0), "", 1).await.unwrap_err();
    assert!(refused.to_string().contains("is live"), "{refused}");
    sqlx::query("update leases set lease_until = now()").execute(&pool).await.unwrap();
    let second = members::join(&pool, &node("a", 5.0), "", 1).await.unwrap();
    assert_eq!(member(&pool, second, first).await, None);
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
