//! Several nodes: real processes on one database, killed, frozen and drained for real.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::ConnectOptions;

use crate::edges::{Http, connect, hairdresser, text, try_connect};
use crate::process::{Folder, Served, Starting, run, text as utf8};
use crate::support::{database, eventually};

#[path = "../../examples/chaos/suite.rs"]
#[allow(dead_code)]
mod chaos;

pub struct Nodes {
    folder: Folder,
    database: String,
    /// By number; `None`: gone.
    pub nodes: Vec<Option<Served>>,
    tls: bool,
    settings: Vec<(&'static str, &'static str)>,
}

impl Nodes {
    async fn start(name: &str, n: usize) -> Self {
        Self::with(name, n, false, &[]).await
    }

    pub async fn with(
        name: &str,
        n: usize,
        tls: bool,
        settings: &[(&'static str, &'static str)],
    ) -> Self {
        let database = database().await.to_url_lossy().to_string();
        Self::on(name, n, database, tls, settings).await
    }

    /// On this database.
    pub async fn on(
        name: &str,
        n: usize,
        database: String,
        tls: bool,
        settings: &[(&'static str, &'static str)],
    ) -> Self {
        let folder = Folder::new(name);
        let config = "[[topics.grants]]\ntopic = \"app:room\"\npublish = [\"consumer\"]\nsubscribe = [\"consumer\"]\n\
            [[topics.grants]]\ntopic = \"app:log\"\ndurable = true\npublish = [\"consumer\"]\nsubscribe = [\"consumer\"]\n";
        std::fs::write(folder.0.join("config.toml"), config).unwrap();
        let mut nodes =
            Self { folder, database, nodes: Vec::new(), tls, settings: settings.into() };
        if tls {
            let made = run(
                &nodes.folder,
                &["cluster", "certificates", "--folder", "tls", "node-0", "node-1", "node-2"],
                &[],
            );
            assert!(made.status.success(), "{}", utf8(&made.stderr));
        }
        for n in 0..n {
            let node = nodes.launch(n, &[]);
            nodes.nodes.push(Some(node));
        }
        nodes
    }

    pub fn environment(&self, n: usize) -> Vec<(String, String)> {
        let mut environment = vec![
            ("DATABASE_URL", self.database.clone()),
            ("PROXIE__CLUSTER__ENABLED", "true".into()),
            ("PROXIE__CLUSTER__COOKIE", "secret".into()),
            ("PROXIE__CLUSTER__LISTEN", free_address()),
            ("PROXIE__NODE__NAME", format!("node-{n}")),
            ("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0".into()),
            ("PROXIE__GATEWAY__DRAIN_MS", "300".into()),
            ("PROXIE__GATEWAY__DRAIN_GRACE_MS", "500".into()),
            ("PROXIE__AUTH__DEV_TOKENS", "true".into()),
            ("PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF", "true".into()),
            ("PROXIE__PERSISTENCE__MAX_CONNECTIONS", "10".into()),
        ];
        if self.tls {
            environment.extend([
                ("PROXIE__CLUSTER__TLS_CERT", format!("tls/node-{n}.pem")),
                ("PROXIE__CLUSTER__TLS_KEY", format!("tls/node-{n}-key.pem")),
                ("PROXIE__CLUSTER__TLS_CA", "tls/ca.pem".into()),
            ]);
        }
        environment.extend(self.settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        environment.into_iter().map(|(name, value)| (name.into(), value)).collect()
    }

    pub fn launch(&self, n: usize, more: &[(&str, &str)]) -> Served {
        self.spawn(n, more).ready()
    }

    /// Not ready yet.
    pub fn spawn(&self, n: usize, more: &[(&str, &str)]) -> Starting {
        let environment = self.environment(n);
        let mut environment: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        environment.extend(more);
        Served::spawn(&self.folder, &environment)
    }

    pub fn address(&self, n: usize) -> SocketAddr {
        self.nodes[n].as_ref().unwrap().address
    }

    pub fn command(&self, arguments: &[&str]) -> String {
        let output = run(&self.folder, arguments, &self.operators());
        assert!(output.status.success(), "{arguments:?}: {}", utf8(&output.stderr));
        utf8(&output.stdout)
    }

    /// A command that fails, and why.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = run(&self.folder, arguments, &self.operators());
        assert!(!output.status.success(), "{arguments:?}: {}", utf8(&output.stdout));
        utf8(&output.stderr)
    }

    fn operators(&self) -> [(&str, &str); 3] {
        [
            ("DATABASE_URL", self.database.as_str()),
            ("PROXIE__AUTH__DEV_TOKENS", "true"),
            ("PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF", "true"),
        ]
    }

    pub fn token(&self, user: &str, role: &str) -> String {
        self.command(&["token", "--user", user, "--role", role]).lines().last().unwrap().to_owned()
    }

    fn status(&self) -> Vec<Value> {
        let status = self.command(&["cluster", "status", "--json"]);
        let all =
            serde_json::from_str::<Value>(&status).unwrap()["nodes"].as_array().unwrap().clone();
        all.into_iter().filter(|node| node["state"] != "drained").collect()
    }

    /// Active nodes that own every slot between them.
    pub async fn settled(&self, n: usize) {
        eventually("the cluster settles", || async {
            let nodes = self.status();
            let slots: i64 = nodes.iter().map(|node| node["slots"].as_i64().unwrap()).sum();
            nodes.len() == n && slots == 4_096 && nodes.iter().all(|node| node["state"] == "active")
        })
        .await;
    }

    /// Which node an entity lives on.
    fn owner(&self, kind: &str, key: &str) -> usize {
        let shown = self.command(&["entity", "show", kind, key]);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        text(&shown["owner_node"]).strip_prefix("node-").unwrap().parse().unwrap()
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// A connection to their database.
    pub async fn store(&self) -> sqlx::PgConnection {
        let database: sqlx::postgres::PgConnectOptions = self.database.parse().unwrap();
        crate::support::observer(database).connect().await.unwrap()
    }

    pub fn kill(&mut self, n: usize) {
        self.nodes[n] = None;
    }

    pub fn signal(&self, n: usize, signal: Signal) {
        self.nodes[n].as_ref().unwrap().signal(signal);
    }
}

pub fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn offsets(events: &[Value]) -> Vec<i64> {
    events.iter().map(|event| event["offset"].as_i64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_are_one_system() {
    let nodes = Nodes::with("three", 3, true, &[]).await;
    let (pat, alice) = (nodes.token("pat", "provider"), nodes.token("alice", "consumer"));
    let provider = Http { address: nodes.address(0), token: Some(pat) };
    assert_eq!(provider.post("/v1/providers", &hairdresser()).await.status, 201);
    // Two devices of one user, on two nodes, in one session.
    let mut phone = connect(nodes.address(1), &alice).await;
    let mut laptop = connect(nodes.address(2), &alice).await;
    let open = json!({"session_id": null, "time_zone": "Europe/Berlin", "locale": "en"});
    let session = text(&phone.ok("session:open", open).await["session_id"]);
    let position = json!({"session_id": session, "position": null});
    laptop.ok("session:resume", position).await;
    let content = "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros";
    phone.ok("chat:message", json!({"session_id": session, "content": content})).await;
    let topic = format!("session:{session}");
    let (there, here) = (phone.durable(&topic, 2).await, laptop.durable(&topic, 2).await);
    assert_eq!(offsets(&there), [1, 2]);
    assert_eq!(there, here);
    // The offer reaches both; one accepts; all nodes know the booking.
    let offer = laptop.event_named("offer:new").await;
    let accept = json!({"offer_id": offer["data"]["offer"]["id"]});
    let booking = text(&laptop.ok("offer:accept", accept).await["booking_id"]);
    phone.event_named("booking:confirmed").await;
    for n in 0..3 {
        let http = Http { address: nodes.address(n), token: Some(alice.clone()) };
        let answer = http.get(&format!("/v1/bookings/{booking}")).await;
        assert_eq!(answer.json()["status"], "confirmed", "node {n}: {}", answer.text);
    }
    // Topics that are no entity's, and who may not listen.
    phone.ok("topic:subscribe", json!({"topic": "app:room"})).await;
    laptop.ok("topic:subscribe", json!({"topic": "app:room"})).await;
    let mut bob = connect(nodes.address(0), &nodes.token("bob", "consumer")).await;
    assert_eq!(bob.refused("topic:subscribe", json!({"topic": topic})).await, "not_found");
    bob.ok("topic:publish", json!({"topic": "app:room", "event": "app:hi", "data": 7})).await;
    for device in [&mut phone, &mut laptop] {
        let heard = device.event_named("app:hi").await;
        assert_eq!((&heard["data"], &heard["from"]), (&json!(7), &json!("bob")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_loses_nothing_and_its_sessions_go_on_elsewhere() {
    let mut nodes = Nodes::start("dies", 3).await;
    nodes.settled(3).await;
    let alice = nodes.token("alice", "consumer");
    // A session that lives on another node than its socket.
    let mut socket = connect(nodes.address(0), &alice).await;
    let (session, owner) = loop {
        let open = json!({"session_id": null, "time_zone": "UTC", "locale": "en"});
        let session = text(&socket.ok("session:open", open).await["session_id"]);
        let owner = nodes.owner("session", &session);
        if owner != 0 {
            break (session, owner);
        }
    };
    let topic = format!("session:{session}");
    let say = |n: usize| json!({"session_id": session, "content": format!("hello {n}")});
    for n in 0..5 {
        socket.ok("chat:message", say(n)).await;
    }
    let before = socket.durable(&topic, 10).await;
    nodes.kill(owner);
    for n in 5..10 {
        socket.ok("chat:message", say(n)).await;
    }
    let after = socket.durable(&topic, 10).await;
    assert_eq!(offsets(&[before, after].concat()), (1..=20).collect::<Vec<_>>());
    nodes.settled(2).await;
    // It comes back, and gets its share.
    let back = nodes.launch(owner, &[]);
    nodes.nodes[owner] = Some(back);
    nodes.settled(3).await;
    eventually("it has its share", || async {
        nodes.status().iter().all(|node| node["slots"].as_i64().unwrap() >= 1_365)
    })
    .await;
}

/// A durable application topic outlives the node that owns it; its listeners on other nodes miss nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_durable_topic_goes_on_without_its_node() {
    let mut nodes = Nodes::start("durable", 3).await;
    nodes.settled(3).await;
    let (alice, bob) = (nodes.token("alice", "consumer"), nodes.token("bob", "consumer"));
    let mut any = connect(nodes.address(0), &alice).await;
    let publish = |n: usize| json!({"topic": "app:log", "event": "app:said", "data": n});
    any.ok("topic:publish", publish(0)).await;
    let owner = nodes.owner("app", "log");
    let (one, two) = ((owner + 1) % 3, (owner + 2) % 3);
    let mut says = connect(nodes.address(one), &alice).await;
    let mut hears = connect(nodes.address(two), &bob).await;
    let start = hears.ok("topic:subscribe", json!({"topic": "app:log"})).await;
    for n in 1..5 {
        says.ok("topic:publish", publish(n)).await;
    }
    nodes.kill(owner);
    for n in 5..10 {
        assert_eq!(says.ok("topic:publish", publish(n)).await, json!({"offset": n + 1}));
    }
    let heard = hears.durable("app:log", 9).await;
    assert_eq!(offsets(&heard), (2..=10).collect::<Vec<_>>());
    let mut late = connect(nodes.address(one), &bob).await;
    let resumed =
        late.ok("topic:subscribe", json!({"topic": "app:log", "position": start["position"]}));
    assert_eq!(resumed.await["recovered"], true);
    assert_eq!(late.durable("app:log", 9).await, heard);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_frozen_comes_back_as_another_incarnation() {
    let nodes = Nodes::start("frozen", 3).await;
    nodes.settled(3).await;
    let incarnation = |name: &str| {
        let status = nodes.status();
        let node = status.iter().find(|node| node["id"] == name);
        node.map(|node| node["incarnation"].as_i64().unwrap())
    };
    let before = incarnation("node-1").unwrap();
    let mut socket = connect(nodes.address(1), &nodes.token("alice", "consumer")).await;
    let frozen = nodes.nodes[1].as_ref().unwrap();
    frozen.signal(Signal::STOP);
    eventually("it is declared dead", || async { incarnation("node-1").is_none() }).await;
    nodes.settled(2).await;
    frozen.signal(Signal::CONT);
    let (code, reason) = socket.closed().await;
    assert_eq!((code, &reason["code"]), (3001, &json!("evicted")));
    nodes.settled(3).await;
    assert!(incarnation("node-1").unwrap() > before);
    // At the same address, in the same process, which opens its door once it takes part.
    let bearer = format!("Bearer {}", nodes.token("alice", "consumer"));
    let headers: [(&'static str, &str); 1] = [("authorization", &bearer)];
    eventually("it takes connections", || async {
        try_connect(nodes.address(1), &headers).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_drained_is_not_missed() {
    let mut nodes = Nodes::start("drained", 3).await;
    nodes.settled(3).await;
    let mut guest = connect(nodes.address(2), &nodes.token("bob", "consumer")).await;
    let alice = nodes.token("alice", "consumer");
    let mut socket = connect(nodes.address(0), &alice).await;
    let mut sessions = Vec::new();
    for _ in 0..12 {
        let open = json!({"session_id": null, "time_zone": "UTC", "locale": "en"});
        sessions.push(text(&socket.ok("session:open", open).await["session_id"]));
    }
    let drained = tokio::task::spawn_blocking({
        let folder = Folder::new("drain-command");
        let database = nodes.database.clone();
        move || {
            let environment = [
                ("DATABASE_URL", database.as_str()),
                ("PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF", "true"),
            ];
            run(&folder, &["cluster", "drain", "node-2"], &environment)
        }
    });
    // Not one of these fails: `ok` would panic.
    let mut said = 0;
    while !drained.is_finished() {
        for session in &sessions {
            socket.ok("chat:message", json!({"session_id": session, "content": "hello"})).await;
            said += 1;
        }
        // A quick node answers more than a connection may ask.
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let drained = drained.await.unwrap();
    assert!(drained.status.success(), "{}", utf8(&drained.stderr));
    assert!(said > sessions.len(), "commands were answered meanwhile");
    assert_eq!(guest.closed().await.0, 3000);
    assert_eq!(nodes.nodes[2].as_mut().unwrap().ended(), Some(0));
    nodes.settled(2).await;
    let gone = run(
        &nodes.folder,
        &["cluster", "drain", "node-2"],
        &[
            ("DATABASE_URL", nodes.database.as_str()),
            ("PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF", "true"),
        ],
    );
    assert_eq!(gone.status.code(), Some(1));
    assert!(utf8(&gone.stderr).contains("no living node node-2"), "{}", utf8(&gone.stderr));
}

/// Clients that do as the protocol says: closed with 3000, they reconnect elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_fails_no_call() {
    let mut nodes = Nodes::start("rolling", 3).await;
    nodes.settled(3).await;
    let (addresses, known) = tokio::sync::watch::channel(
        vec![0, 1, 2].into_iter().map(|n| nodes.address(n)).collect::<Vec<_>>(),
    );
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut clients = Vec::new();
    for n in 0..9_usize {
        let token = nodes.token(&format!("user-{n}"), "consumer");
        let (known, stopped) = (known.clone(), stopped.clone());
        clients.push(tokio::spawn(async move {
            let (mut calls, mut reconnects, mut at) = (0, 0, n);
            let somewhere = |at: usize| {
                let known = known.borrow();
                known[at % known.len()]
            };
            let mut socket = connect(somewhere(at), &token).await;
            let open = json!({"session_id": null, "time_zone": "UTC", "locale": "en"});
            let session = text(&socket.ok("session:open", open).await["session_id"]);
            while !*stopped.borrow() {
                let say = json!({"session_id": session, "content": "hello"});
                match socket.try_ask("chat:message", say).await {
                    Ok(reply) => {
                        assert_eq!(reply["ok"], true, "{reply}");
                        calls += 1;
                    }
                    // It was not taken any more: its reply would have come before the goodbye.
                    Err(3000) => {
                        reconnects += 1;
                        at += 1;
                        socket = connect(somewhere(at), &token).await;
                    }
                    Err(code) => panic!("closed with {code}"),
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            (calls, reconnects)
        }));
    }
    for n in 0..3 {
        // As a load balancer sees it: `readyz` turns red first, and newcomers go elsewhere.
        addresses.send_modify(|all| all.retain(|address| *address != nodes.address(n)));
        nodes.signal(n, Signal::TERM);
        assert_eq!(nodes.nodes[n].as_mut().unwrap().ended(), Some(0));
        let fresh = nodes.launch(n, &[]);
        nodes.nodes[n] = Some(fresh);
        addresses.send_modify(|all| all.push(nodes.address(n)));
        nodes.settled(3).await;
    }
    stop.send_replace(true);
    let (mut calls, mut reconnects) = (0, 0);
    for client in clients {
        let (called, reconnected) = client.await.unwrap();
        calls += called;
        reconnects += reconnected;
    }
    println!("{calls} calls, {reconnects} reconnects, none failed");
    assert!(calls > 100 && reconnects >= 9, "{calls} {reconnects}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_node_comes_back_by_itself_and_strangers_do_not_get_in() {
    let nodes = Nodes::start("evicted", 2).await;
    nodes.settled(2).await;
    let before: Vec<Value> = nodes.status();
    assert!(nodes.command(&["cluster", "evict", "node-1"]).contains("node-1"));
    eventually("it has rejoined", || async {
        let now = nodes.status();
        now.len() == 2 && now.iter().all(|node| node["state"] == "active") && now != before
    })
    .await;
    // Another cookie: it stays outside, and says so, and costs the others nothing.
    let environment = nodes.environment(7);
    let mut environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    environment.push(("PROXIE__CLUSTER__COOKIE", "wrong"));
    let mut stranger = crate::process::command(&nodes.folder, &["serve"], &environment)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("it tries", || async { nodes.status().len() == 3 }).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let outside = nodes.status().into_iter().find(|node| node["id"] == "node-7").unwrap();
    assert_eq!((&outside["state"], &outside["slots"]), (&json!("joining"), &json!(0)));
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    // A name that is taken is refused at once.
    let taken = nodes.environment(0);
    let taken: Vec<(&str, &str)> =
        taken.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let refused = run(&nodes.folder, &["serve"], &taken);
    assert_eq!(refused.status.code(), Some(1));
    assert!(utf8(&refused.stderr).contains("node-0"), "{}", utf8(&refused.stderr));
}

/// Presence is kept by nodes that may die, too: what they knew is told to the next one.
#[tokio::test(flavor = "multi_thread")]
async fn presence_heals_when_a_node_dies() {
    let mut nodes = Nodes::start("presence", 3).await;
    nodes.settled(3).await;
    // Enough users for some to be kept on each node. Listeners are on node 0, devices on nodes 1 and 2.
    let users: Vec<String> = (0..12).map(|n| format!("user-{n}")).collect();
    let mut people = Vec::new();
    for (n, user) in users.iter().enumerate() {
        let token = nodes.token(user, "consumer");
        let mut listener = connect(nodes.address(0), &token).await;
        listener.ok("topic:subscribe", json!({"topic": format!("presence:{user}")})).await;
        let mut device = connect(nodes.address(1 + n % 2), &token).await;
        device.ok("presence:online", json!({})).await;
        listener.presence(user, &["online"]).await;
        people.push((user, token, listener, Some(device)));
    }
    // Whoever comes back does so within the time that a user's absence is borne, however long connecting takes then.
    let mut others = Vec::new();
    for (_, token, ..) in people.iter().skip(1).step_by(4) {
        others.push(connect(nodes.address(1), token).await);
    }
    nodes.kill(2);
    let mut others = others.into_iter();
    for (n, (.., device)) in people.iter_mut().enumerate() {
        match n % 4 {
            // Comes back through another node.
            1 => {
                let mut again = others.next().unwrap();
                again.ok("presence:online", json!({"status": "back"})).await;
                *device = Some(again);
            }
            3 => *device = None,
            _ => {}
        }
    }
    nodes.settled(2).await;
    for (n, (user, token, listener, _)) in people.iter_mut().enumerate() {
        if n % 4 == 3 {
            let changed = listener.presence(user, &[]).await;
            assert_eq!(changed["data"]["status"], "offline", "{user}");
            continue;
        }
        // A newcomer is told how it stands, by whoever keeps it now.
        let status = if n % 4 == 1 { "back" } else { "online" };
        let mut newcomer = connect(nodes.address(0), token).await;
        newcomer.ok("topic:subscribe", json!({"topic": format!("presence:{user}")})).await;
        let told = newcomer.presence(user, &[status]).await;
        assert_eq!(told["data"]["status"], status);
        // And who listened all the time was never told that somebody was offline.
        newcomer.ok("presence:online", json!({"status": "new"})).await;
        loop {
            let event = listener.event_named("presence:changed").await;
            assert_ne!(event["data"]["status"], "offline", "{user}: {event}");
            if event["data"]["status"] == "new" {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_crosses_once_however_many_listen() {
    let nodes = Nodes::start("fanout", 3).await;
    nodes.settled(3).await;
    let alice = nodes.token("alice", "consumer");
    let mut sockets = Vec::new();
    for n in 0..12 {
        sockets.push(connect(nodes.address(n % 3), &alice).await);
    }
    let open = json!({"session_id": null, "time_zone": "UTC", "locale": "en"});
    let session = text(&sockets[0].ok("session:open", open).await["session_id"]);
    for socket in &mut sockets[1..] {
        socket.ok("session:resume", json!({"session_id": session, "position": null})).await;
    }
    let topic = format!("session:{session}");
    let say = json!({"session_id": session, "content": "hello"});
    // The first ones also tell that all are registered.
    sockets[0].ok("chat:message", say.clone()).await;
    for socket in &mut sockets {
        socket.durable(&topic, 2).await;
    }
    let sent = async || {
        let mut all = 0.0;
        for n in 0..3 {
            let page = Http { address: nodes.address(n), token: None }.get("/metrics").await.text;
            let line = page.lines().find(|line| line.starts_with("proxie_publications_sent_total"));
            all += line.map_or(0.0, |line| line.split(' ').nth(1).unwrap().parse().unwrap());
        }
        all
    };
    // Streams of earlier answers have ended by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before: f64 = sent().await;
    sockets[0].ok("chat:typing", json!({"session_id": session, "is_typing": true})).await;
    for socket in &mut sockets {
        socket.event_named("chat:typing").await;
    }
    assert_eq!(sent().await - before, 2.0, "one for each of the other two nodes");
}

/// The parts of the suite below run in processes of this binary.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a part of the suite, when it is told so"]
async fn a_part_of_the_world() {
    if let Some(done) = chaos::role().await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_lose_double_and_reorder_nothing() {
    const PART: [&str; 4] = ["cluster::a_part_of_the_world", "--exact", "--ignored", "--nocapture"];
    let _ = chaos::world::ARGUMENTS.set(&PART);
    let folder = Folder::new("chaos");
    chaos::faults(&folder.0, 12, rand::random()).await.unwrap();
}
