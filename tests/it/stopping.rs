//! How nodes stop: in order and unnoticed where they can, and in time where they cannot.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;
use serde_json::json;
use sqlx::ConnectOptions;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::cluster::{Nodes, free_address};
use crate::edges::outage::{Frozen, server};
use crate::edges::{Http, connect};
use crate::embedded::{Folder as Store, postmaster};
use crate::process::{Folder, Served};
use crate::support::eventually;

async fn ended(mut node: Served) -> (Option<i32>, String) {
    tokio::task::spawn_blocking(move || (node.ended(), node.log())).await.unwrap()
}

/// A node of its own, on a store of the test's own.
async fn node(name: &str) -> (Store, proxie::persistence::embedded::Embedded, Folder, Served) {
    let store = Store::new(&format!("{name}-store"));
    let server = server(&store).await;
    let database = server.create_database(name, None).await.unwrap();
    let folder = Folder::new(name);
    let url = database.to_url_lossy().to_string();
    let environment = [
        ("DATABASE_URL", url.as_str()),
        ("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0"),
        ("PROXIE__AUTH__DEV_TOKENS", "true"),
        ("PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF", "true"),
        ("PROXIE__NODE__STOP_S", "6"),
    ];
    let served = tokio::task::block_in_place(|| Served::start(&folder, &environment));
    (store, server, folder, served)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_stops_in_time_when_its_store_says_nothing() {
    let (store, server, _folder, node) = node("silent").await;
    let frozen = Frozen::new(postmaster(&store.data()).expect("it runs"));
    node.signal(Signal::TERM);
    let (code, log) = ended(node).await;
    assert!(log.contains("the lease could not be given back"), "{code:?} {log}");
    drop(frozen);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_stops_in_time_when_its_store_is_gone() {
    let (_store, server, _folder, node) = node("gone").await;
    server.stop().await.unwrap();
    node.signal(Signal::TERM);
    let (_, log) = ended(node).await;
    assert!(log.contains("the lease could not be given back"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_stops_in_time_when_its_own_store_is_frozen() {
    let folder = Store::new("frozen-inside");
    let data = folder.data();
    let home = Folder::new("frozen-inside-node");
    let environment = [
        ("PROXIE__NODE__DATA_DIR", data.to_str().unwrap()),
        ("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0"),
        ("PROXIE__PERSISTENCE__SHARED_BUFFERS", "16MB"),
        ("PROXIE__NODE__STOP_S", "6"),
    ];
    let node = tokio::task::block_in_place(|| Served::start(&home, &environment));
    let frozen = Frozen::new(postmaster(&data).expect("it runs"));
    node.signal(Signal::TERM);
    ended(node).await;
    drop(frozen);
    eventually("its server has gone, too", || async { postmaster(&data).is_none() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_is_not_argued_with() {
    let mut nodes = Nodes::with(
        "impatient",
        2,
        false,
        &[("PROXIE__GATEWAY__DRAIN_GRACE_MS", "3600000"), ("PROXIE__NODE__STOP_S", "3600")],
    )
    .await;
    nodes.settled(2).await;
    nodes.signal(1, Signal::TERM);
    let leaves = Http { address: nodes.address(1), token: None };
    eventually("it is about to leave", || async { leaves.get("/readyz").await.status == 503 })
        .await;
    // It still answers, and says that it will not for long.
    let answer = leaves.get("/healthz").await;
    assert_eq!((answer.status, answer.headers["connection"].as_str()), (200, "close"));
    nodes.signal(1, Signal::TERM);
    let (code, log) = ended(nodes.nodes[1].take().unwrap()).await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("a second signal"), "{log}");
}

/// A client that keeps its connection, until it is told that it ends.
struct Kept {
    address: SocketAddr,
    token: String,
    stream: Option<BufReader<TcpStream>>,
}

impl Kept {
    /// Asks at the node where it is, or at one that is ready. The status.
    async fn ask(
        &mut self,
        method: &str,
        path: &str,
        ready: &[SocketAddr],
    ) -> std::io::Result<(u16, String)> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                self.address = ready[rand::random_range(0..ready.len())];
                BufReader::new(TcpStream::connect(self.address).await?)
            }
        };
        let body = if method == "POST" { "{}" } else { "" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.address,
            self.token,
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        let (mut status, mut length, mut ends) = (0, 0, false);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim().to_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().unwrap();
            } else if let Some(rest) = line.strip_prefix("content-length: ") {
                length = rest.parse().unwrap();
            } else if line == "connection: close" {
                ends = true;
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        self.stream = (!ends).then_some(stream);
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// Behind a load balancer that looks at `/readyz`, nobody notices that nodes are drained, one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_drains_drop_no_call() {
    let settings = [
        ("PROXIE__GATEWAY__DRAIN_GRACE_MS", "8000"),
        ("PROXIE__GATEWAY__REQUESTS_PER_MINUTE", "1000000"),
    ];
    let mut nodes = Nodes::with("four-drains", 3, false, &settings).await;
    nodes.settled(3).await;
    let addresses: Vec<SocketAddr> = (0..3).map(|n| nodes.address(n)).collect();
    let (ready, known) = watch::channel(addresses.clone());
    let (all, watched) = watch::channel(addresses);
    let balancer = tokio::spawn(async move {
        loop {
            let addresses = watched.borrow().clone();
            let green = join_all(addresses.into_iter().map(async |address| {
                let mut kept = Kept { address, token: "-".into(), stream: None };
                let here = [address];
                let asking = kept.ask("GET", "/readyz", &here);
                let answer = tokio::time::timeout(Duration::from_secs(1), asking).await;
                matches!(answer, Ok(Ok((200, _)))).then_some(address)
            }));
            let green: Vec<SocketAddr> = green.await.into_iter().flatten().collect();
            if !green.is_empty() {
                ready.send_replace(green);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let (stop, stopped) = watch::channel(false);
    let stopped = Arc::new(stopped);
    let mut clients = Vec::new();
    for n in 0..6 {
        let token = nodes.token(&format!("user-{n}"), "consumer");
        let (known, stopped) = (known.clone(), stopped.clone());
        clients.push(tokio::spawn(async move {
            let mut kept = Kept { address: ([0; 4], 0).into(), token, stream: None };
            let (mut calls, mut failed) = (0, Vec::new());
            while !*stopped.borrow() {
                let ready = known.borrow().clone();
                let (method, path) =
                    if calls % 4 == 0 { ("POST", "/v1/sessions") } else { ("GET", "/v1/bookings") };
                let at = kept.address;
                match kept.ask(method, path, &ready).await {
                    Ok((200 | 201, _)) => {}
                    other => {
                        failed.push(format!("{method} {path} {at} -> {}: {other:?}", kept.address))
                    }
                }
                calls += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            (calls, failed)
        }));
    }
    for n in [0, 1, 2, 0] {
        nodes.signal(n, Signal::TERM);
        let (code, log) = ended(nodes.nodes[n].take().unwrap()).await;
        assert_eq!(code, Some(0), "{log}");
        let starting = nodes.spawn(n, &[]);
        let fresh = tokio::task::block_in_place(|| starting.ready());
        all.send_modify(|all| all[n] = fresh.address);
        nodes.nodes[n] = Some(fresh);
        nodes.settled(3).await;
    }
    stop.send_replace(true);
    let mut calls = 0;
    for client in clients {
        let (called, failed) = client.await.unwrap();
        assert!(failed.is_empty(), "{failed:#?}");
        calls += called;
    }
    balancer.abort();
    println!("{calls} calls, none failed");
    assert!(calls > 100, "{calls}");
}

/// Whoever looks at a node that starts is answered, and told what it waits for. Whoever is refused is told why, on both
/// sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_says_what_it_waits_for() {
    let nodes = Nodes::with("strangers", 1, false, &[]).await;
    nodes.settled(1).await;
    let address = free_address();
    let other = [("PROXIE__CLUSTER__COOKIE", "wrong"), ("PROXIE__GATEWAY__LISTEN", &address)];
    let stranger = nodes.spawn(7, &other).served;
    let http = Http { address: address.parse().unwrap(), token: Some("t".into()) };
    eventually("its port is open", || async { TcpStream::connect(&address).await.is_ok() }).await;
    eventually("it says what it waits for", || async {
        let ready = http.get("/readyz").await;
        assert_eq!((ready.status, ready.headers["retry-after"].as_str()), (503, "1"));
        let said = ready.json();
        assert_eq!(said["checks"]["started"], "failed", "{said}");
        said["details"]["started"]
            .as_str()
            .is_some_and(|what| what.contains("a link to node-0 at 127.0.0.1:"))
    })
    .await;
    assert_eq!(http.get("/healthz").await.status, 200);
    let metrics = http.get("/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.text.contains("proxie_"), "{}", metrics.text);
    let early = http.get("/v1/bookings").await;
    assert_eq!((early.status, early.json()["code"].clone()), (503, json!("unavailable")));
    assert!(early.headers.contains_key("retry-after"));
    let first = nodes.nodes[0].as_ref().unwrap();
    eventually("both sides name the cookie", || async {
        first.log().contains("hung up on this node's proof of the cookie")
            && stranger.log().contains("it does not know this node's cookie")
    })
    .await;
    drop(stranger);
    let other = [("PROXIE__CLUSTER__TRANSPORT", "ractor_cluster")];
    let stranger = nodes.spawn(8, &other).served;
    eventually("both sides name the transport", || async {
        first.log().contains("it uses cluster.transport = \\\"ractor_cluster\\\"")
            && stranger.log().contains("it uses cluster.transport = \\\"framed\\\"")
    })
    .await;
    drop(stranger);
    let made = crate::process::run(
        nodes.folder(),
        &["cluster", "certificates", "--folder", "tls", "node-9"],
        &[],
    );
    assert!(made.status.success());
    let other = [
        ("PROXIE__CLUSTER__TLS_CERT", "tls/node-9.pem"),
        ("PROXIE__CLUSTER__TLS_KEY", "tls/node-9-key.pem"),
        ("PROXIE__CLUSTER__TLS_CA", "tls/ca.pem"),
    ];
    let stranger = nodes.spawn(9, &other).served;
    eventually("both sides name TLS", || async {
        let log = first.log();
        (log.contains("it wants TLS and this node has none")
            || log.contains("if it has TLS, this node needs"))
            && stranger.log().contains("there is no TLS with it")
    })
    .await;
    drop(stranger);
    // A name that is taken.
    let (code, log) = ended(nodes.spawn(0, &[]).served).await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("this cluster has a living node node-0 already"), "{log}");
}

/// All of them died, somewhere where nobody can look at their processes, and come back at once under their names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_died_as_a_whole_comes_back_by_itself() {
    let mut nodes = Nodes::with("containers", 3, false, &[]).await;
    nodes.settled(3).await;
    let alice = nodes.token("alice", "consumer");
    let mut ws = connect(nodes.address(0), &alice).await;
    let session = crate::edges::text(&ws.ok("session:open", json!({})).await["session_id"]);
    (0..3).for_each(|n| nodes.kill(n));
    let mut store = nodes.store().await;
    sqlx::query("update nodes set host = 'another container', pid = 1")
        .execute(&mut store)
        .await
        .unwrap();
    let again: Vec<_> = (0..3).map(|n| nodes.spawn(n, &[])).collect();
    nodes.nodes =
        tokio::task::block_in_place(|| again.into_iter().map(|node| Some(node.ready())).collect());
    nodes.settled(3).await;
    let log = nodes.nodes[1].as_ref().unwrap().log();
    assert!(log.contains("waiting for the lease of node-1 (incarnation 2, at 127.0.0.1:"), "{log}");
    let mut ws = connect(nodes.address(2), &alice).await;
    let say = json!({"session_id": session, "content": "hello"});
    ws.ok("chat:message", say).await;
    // Drained, it is still shown, for a while.
    nodes.signal(2, Signal::TERM);
    let (code, log) = ended(nodes.nodes[2].take().unwrap()).await;
    assert_eq!(code, Some(0), "{log}");
    let status = nodes.command(&["cluster", "status"]);
    let line = status.lines().find(|line| line.starts_with("node-2 "));
    assert!(line.is_some_and(|line| line.contains(" drained ")), "{status}");
    // Back, it is shown once.
    let fresh = tokio::task::block_in_place(|| nodes.launch(2, &[]));
    nodes.nodes[2] = Some(fresh);
    nodes.settled(3).await;
    let status = nodes.command(&["cluster", "status"]);
    assert_eq!(status.matches("node-2 ").count(), 1, "{status}");
}
