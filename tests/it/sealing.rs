//! When what concerns people is sealed: not while a release without a vault is there, nor as long as somebody may go
//! back to one.

use std::cell::Cell;

use proxie::kernel::clock::Clock;
use serde_json::json;
use sqlx::PgConnection;

use crate::cluster::Nodes;
use crate::edges::{TestNode, connect};
use crate::support::eventually;
use crate::vault::{ALICES, dump, holds, register};

/// A node of a release without a vault comes, and says nothing about what it reads.
async fn an_older_node(store: &mut PgConnection, state: &str) {
    let sql = "with n as (insert into nodes (incarnation, name, address, version, state, host, pid)
                  values (nextval('incarnations'), 'older', '', '0.0.9', $1, 'another', 1) returning incarnation)
        insert into leases (incarnation, lease_until) select incarnation, now() + interval '1 hour' from n";
    sqlx::query(sql).bind(state).execute(store).await.unwrap();
}

/// The database's time goes on, as the store's rows see it.
async fn passes(store: &mut PgConnection, hours: i32) {
    let sql = "update sealing set since = since - $1 * interval '1 hour', began = began - $1 * interval '1 hour'";
    sqlx::query(sql).bind(hours).execute(store).await.unwrap();
}

/// Push tokens of a device, each sealed or not.
struct Tokens {
    user: &'static str,
    made: Cell<usize>,
}

impl Tokens {
    async fn is_sealed(&self, node: &TestNode) -> bool {
        self.made.set(self.made.get() + 1);
        let token = format!("{}s-push-token-{}", self.user, self.made.get());
        let registered = register(&node.user(self.user), ALICES, &token).await;
        assert_eq!(registered["has_push_token"], true);
        !holds(&dump(&mut node.store().await).await, &token)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_release_may_come_back_to_is_sealed_when_it_has_been_gone_long_enough() {
    // As after an upgrade: the migration finds that there were nodes.
    let node = TestNode::start().await;
    let tokens = Tokens { user: "alice", made: Cell::new(0) };
    assert!(tokens.is_sealed(&node).await, "a fresh store is sealed from the first row");
    let (config, mut store) = (node.config.clone(), node.store().await);
    node.node.stop().await;
    an_older_node(&mut store, "dead").await;

    let node = TestNode::of(config, Clock::System).await;
    assert!(!tokens.is_sealed(&node).await, "it was here a moment ago");
    passes(&mut store, 23).await;
    let node = node.restart().await;
    assert!(!tokens.is_sealed(&node).await, "a restart does not make it longer ago");
    passes(&mut store, 2).await;
    eventually("it seals", async || tokens.is_sealed(&node).await).await;
    let node = node.restart().await;
    assert!(tokens.is_sealed(&node).await, "and goes on");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sealed_while_a_node_that_cannot_read_it_is_there() {
    let node = TestNode::with(|config| config.vault.seal_after_s = 3_600).await;
    let tokens = Tokens { user: "bob", made: Cell::new(0) };
    assert!(tokens.is_sealed(&node).await);
    let mut store = node.store().await;
    an_older_node(&mut store, "active").await;
    eventually("it writes in the plain", async || !tokens.is_sealed(&node).await).await;
    // Whatever is noted: as long as it is there, no time passes.
    let noted = "update sealing set since = now() - interval '2 hours'";
    sqlx::query(noted).execute(&mut store).await.unwrap();
    let alone = "select since is not null from sealing";
    let is_alone = async |node: &TestNode| -> bool {
        sqlx::query_scalar(alone).fetch_one(&mut node.store().await).await.unwrap()
    };
    eventually("the node has looked", async || !is_alone(&node).await).await;
    assert!(!tokens.is_sealed(&node).await, "it is still there");
    sqlx::query("update nodes set state = 'dead' where name = 'older'")
        .execute(&mut store)
        .await
        .unwrap();
    // The time counts from when a node has found that it is gone.
    eventually("the time begins", async || is_alone(&node).await).await;
    assert!(!tokens.is_sealed(&node).await);
    passes(&mut store, 2).await;
    eventually("it seals again", async || tokens.is_sealed(&node).await).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_that_is_not_to_seal_keeps_all_from_it_until_an_operator_says_so() {
    let nodes = Nodes::with("sealing", 1, false, &[]).await;
    assert!(nodes.command(&["vault", "status"]).contains("ever since this store was made"));
    let other = nodes.launch(1, &[("PROXIE__VAULT__SEAL", "false")]);
    nodes.settled(2).await;
    let status = nodes.command(&["vault", "status"]);
    assert!(status.contains("is not sealed") && status.contains("node-1 ("), "{status}");
    let refused = nodes.refused(&["vault", "seal"]);
    assert!(refused.contains("node-1 ("), "{refused}");
    let says = async |nodes: &Nodes, words: &str| {
        let mut ws = connect(nodes.address(0), &nodes.token("clara", "consumer")).await;
        let opened = json!({"session_id": null, "time_zone": "UTC", "locale": "en"});
        let session = ws.ok("session:open", opened).await["session_id"].clone();
        let message = json!({"session_id": session, "content": words});
        ws.ok("chat:message", message).await;
        holds(&dump(&mut nodes.store().await).await, words)
    };
    eventually("both write in the plain", async || says(&nodes, "hello, plain-zebra").await).await;
    let erased = nodes.refused(&["person", "erase", "clara"]);
    assert!(erased.contains("in the plain stays"), "{erased}");
    drop(other);
    nodes.settled(1).await;
    eventually("the time begins", async || {
        nodes.command(&["vault", "status"]).contains("it begins at")
    })
    .await;
    nodes.command(&["vault", "seal"]);
    let n = Cell::new(0);
    eventually("it seals", async || {
        n.set(n.get() + 1);
        !says(&nodes, &format!("hello, {}-zebra", "x".repeat(n.get()))).await
    })
    .await;
    let erased = nodes.command(&["person", "erase", "clara"]);
    assert!(erased.contains("clara is erased") && erased.contains("before 2"), "{erased}");
}
