//! Who is counted, where, and what happens beyond the limit.

use proxie::systems::app_topics::settings::Grants;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use proxie::kernel::entity::Role;
use proxie::persistence::limits::{LocalLimiter, Policy, RateLimiter, RedisLimiter};
use serde_json::json;
use sqlx::ConnectOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use super::{Http, connect, try_connect};
use crate::cluster::Nodes;
use crate::process::{Folder, Served, command, run, text};
use crate::support::{self, eventually};

/// A `redis-server` of this test's own, which forgets everything when it stops.
pub struct Redis {
    folder: Folder,
    port: u16,
    child: Option<Child>,
}

impl Redis {
    pub async fn start(name: &str) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut redis = Self { folder: Folder::new(name), port, child: None };
        redis.start_again().await;
        redis
    }

    async fn start_again(&mut self) {
        let port = self.port.to_string();
        let deadline = tokio::time::Instant::now() + super::PATIENCE;
        while !self.answers().await {
            assert!(tokio::time::Instant::now() < deadline, "redis-server does not start");
            // Somebody may have taken the port for a moment.
            if self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some()) {
                let child = Command::new("redis-server")
                    .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--dir"])
                    .arg(&self.folder.0)
                    .stdout(Stdio::null())
                    .spawn();
                self.child = Some(child.expect("redis-server: `./dev test` installs it"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The beginning of the answer to one command.
    async fn ask(&self, command: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.write_all(format!("{command}\r\n").as_bytes()).await?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    async fn answers(&self) -> bool {
        self.ask("PING").await.is_ok_and(|answer| answer == "+P")
    }

    /// There is a counter of this key.
    async fn counts(&self, key: &str) -> bool {
        self.ask(&format!("KEYS *{key}*")).await.unwrap() != "*0"
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A node's limiter. More patient than a node, so that a busy machine is not taken for a lost Redis.
    async fn limiter(&self) -> RedisLimiter {
        let local = LocalLimiter::new(100, Duration::from_secs(3_600));
        RedisLimiter::connect(&self.url(), local, Duration::from_secs(1)).await.unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How many of `n` hits at once are allowed.
async fn allowed(limiter: &RedisLimiter, n: usize, key: &str) -> usize {
    let policy = Policy { quota: 10, window_s: 3_600 };
    let hits = join_all((0..n).map(|_| limiter.hit(key.into(), policy)));
    let verdicts = tokio::time::timeout(super::PATIENCE, hits).await.expect("a verdict");
    assert!(verdicts.iter().all(|v| v.allowed || (v.remaining == 0 && v.reset_s > 0)));
    verdicts.iter().filter(|verdict| verdict.allowed).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_count_together_in_redis_and_each_for_itself_without_it() {
    let mut redis = Redis::start("redis-shared").await;
    let (a, b) = (redis.limiter().await, redis.limiter().await);
    assert_eq!(allowed(&a, 6, "alice").await, 6);
    assert_eq!(allowed(&b, 6, "alice").await, 4, "what the other has counted counts");
    assert_eq!(allowed(&a, 1, "alice").await, 0);
    assert_eq!(allowed(&b, 1, "bob").await, 1, "others are not concerned");

    // Without Redis nobody is turned away for it, and there is still a limit.
    redis.stop();
    assert_eq!(allowed(&a, 12, "alice").await, 10);
    assert_eq!(allowed(&b, 12, "alice").await, 10);

    redis.start_again().await;
    // Each hit that Redis counts is one that the other node sees.
    eventually("both count in Redis again", || async {
        let key = format!("again-{}", super::id());
        allowed(&a, 10, &key).await == 10 && allowed(&b, 1, &key).await == 0
    })
    .await;
    let key = "the other way round";
    assert_eq!((allowed(&b, 10, key).await, allowed(&a, 1, key).await), (10, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_redis_answers_429_with_it_and_without_it() {
    let mut redis = Redis::start("redis-served").await;
    let folder = Folder::new("served-redis");
    let (database, url) = (support::database().await.to_url_lossy().to_string(), redis.url());
    let environment = [
        ("DATABASE_URL", database.as_str()),
        ("REDIS_URL", &url),
        ("PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF", "true"),
        ("PROXIE__PERSISTENCE__MAX_CONNECTIONS", "10"),
        ("PROXIE__AUTH__DEV_TOKENS", "true"),
        ("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0"),
        ("PROXIE__GATEWAY__REQUESTS_PER_MINUTE", "5"),
    ];
    let node = Served::start(&folder, &environment);
    let client = |user: &str| {
        let token = text(&run(&folder, &["token", "--user", user], &environment).stdout);
        Http { address: node.address, token: Some(token.trim().lines().last().unwrap().into()) }
    };
    let at_most = |client: Http, n: usize| async move {
        for _ in 0..n {
            let answer = client.get("/v1/bookings").await;
            if answer.status == 429 {
                answer.problem(429, "rate_limited");
                assert!((1..=60).contains(&answer.headers["retry-after"].parse::<u32>().unwrap()));
                assert_eq!(answer.headers["ratelimit-policy"], "\"default\";q=5;w=60");
                return;
            }
            assert_eq!(answer.status, 200, "{}", answer.text);
        }
        panic!("{n} requests, and no end");
    };
    // Five, and five more that a slow Redis may have left to the node itself.
    at_most(client("alice"), 11).await;
    assert!(redis.counts("user:alice").await);
    // The same of commands, whatever brings them.
    let dave = connect(node.address, &client("dave").token.unwrap()).await;
    let dave = tokio::sync::Mutex::new(dave);
    eventually("commands are counted there", || async {
        dave.lock().await.ok("session:open", json!({})).await;
        redis.counts("commands:dave").await
    })
    .await;

    redis.stop();
    at_most(client("bob"), 6).await;

    redis.start_again().await;
    let carol = client("carol");
    eventually("the node counts in Redis again", || async {
        let status = carol.get("/v1/bookings").await.status;
        assert!(matches!(status, 200 | 429), "{status}");
        redis.counts("user:carol").await
    })
    .await;
}

/// Two nodes count a user's connections together; one that dies takes its own with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_connections_are_counted_over_all_nodes() {
    let redis = Redis::start("redis-connections").await;
    let url: &'static str = redis.url().leak();
    let settings = [("REDIS_URL", url), ("PROXIE__WEBSOCKET__MAX_CONNECTIONS_PER_USER", "3")];
    let mut nodes = Nodes::with("connections", 2, false, &settings).await;
    nodes.settled(2).await;
    let alice = nodes.token("alice", "consumer");
    let here = connect(nodes.address(0), &alice).await;
    let _there = [connect(nodes.address(1), &alice).await, connect(nodes.address(1), &alice).await];
    // By the header it is refused before the upgrade, by the first frame after it.
    for n in 0..2 {
        let bearer = format!("Bearer {alice}");
        let refused = try_connect(nodes.address(n), &[("authorization", &bearer)]).await;
        assert_eq!(refused.err(), Some(429), "node {n}");
        let mut late = try_connect(nodes.address(n), &[]).await.unwrap();
        let reply = late.ask_as("a", "auth", json!({"token": alice})).await;
        assert_eq!(reply["error"]["code"], "rate_limited", "{reply}");
        let (code, reason) = late.closed().await;
        assert_eq!((code, &reason["code"]), (3009, &json!("too_many_connections")));
    }
    connect(nodes.address(0), &nodes.token("bob", "consumer")).await;
    // One goes, one may come.
    drop(here);
    let bearer = format!("Bearer {alice}");
    let again = |address| {
        let bearer = bearer.clone();
        async move {
            let came = try_connect(address, &[("authorization", &bearer)]).await;
            came.ok()
        }
    };
    let (one, at) = (tokio::sync::Mutex::new(Vec::new()), nodes.address(0));
    eventually("there is room again", || async {
        let came = again(at).await;
        let room = came.is_some();
        one.lock().await.extend(came);
        room
    })
    .await;
    assert!(again(at).await.is_none());
    nodes.kill(1);
    eventually("what a dead node had is free", || async {
        one.lock().await.extend(again(at).await);
        one.lock().await.len() == 3
    })
    .await;
    assert!(again(at).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_frames_are_counted_over_all_connections() {
    let node = super::TestNode::with(|config| {
        config.websocket.frames_per_s = 10_000;
        config.websocket.frame_burst = 10_000;
        config.websocket.frames_per_minute_per_user = 1_000;
    })
    .await;
    let mut devices = [node.ws("alice").await, node.ws("alice").await, node.ws("alice").await];
    let mut bob = node.ws("bob").await;
    for _ in 0..7 {
        for device in &mut devices {
            for _ in 0..64 {
                device.try_raw(Message::text(r#"{"id":"1","event":"ping"}"#)).await;
            }
        }
    }
    let mut ended = 0;
    for mut device in devices {
        if let Ok((code, reason)) =
            tokio::time::timeout(Duration::from_secs(3), device.closed()).await
        {
            assert_eq!((code, &reason["code"]), (3009, &json!("too_many_frames")));
            ended += 1;
        }
    }
    assert!(ended > 0, "1,344 frames of one user");
    bob.ok("ping", json!({})).await;
}

/// What stays for good is paid for from one account, over whatever connection it comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_commands_are_counted_over_all_connections() {
    let node = super::TestNode::with(|config| {
        config.websocket.commands_per_minute_per_user = 6;
        let durable = proxie::systems::app_topics::settings::Grant {
            durable: true,
            ..super::grant("app:kept")
        };
        config.systems.set(Grants(vec![super::grant("app:lossy"), durable]));
    })
    .await;
    let (mut one, mut two) = (node.ws("alice").await, node.ws("alice").await);
    let session = super::text(&one.ok("session:open", json!({})).await["session_id"]);
    let say = json!({"session_id": session, "content": "hello"});
    let publish = |topic: &str| json!({"topic": topic, "event": "app:x", "data": {}});
    for device in [&mut one, &mut two] {
        device.ok("chat:message", say.clone()).await;
        device.ok("topic:publish", publish("app:kept")).await;
    }
    one.ok("session:open", json!({"session_id": session})).await;
    for (event, data) in [
        ("chat:message", say.clone()),
        ("topic:publish", publish("app:kept")),
        ("session:open", json!({})),
        ("session:close", json!({"session_id": session, "end": true})),
        ("request:create", json!({})),
        ("device:connect", json!({"device_id": format!("dev_{}", super::id())})),
    ] {
        std::mem::swap(&mut one, &mut two);
        let reply = one.ask_as(&super::id(), event, data).await;
        assert_eq!(reply["error"]["code"], "rate_limited", "{event}: {reply}");
        let wait = reply["error"]["retry_after_ms"].as_u64().unwrap();
        assert!((1..=60_000).contains(&wait), "{event}: {wait}");
    }
    // What is not kept is not counted, and others have accounts of their own.
    one.ok("ping", json!({})).await;
    one.ok("topic:publish", publish("app:lossy")).await;
    one.ok("chat:typing", json!({"session_id": session, "is_typing": true})).await;
    one.ok("presence:online", json!({})).await;
    node.ws("bob").await.ok("session:open", json!({})).await;
}

/// `auth` may come again and again; what it names is counted with what is there, and as reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_are_limited_over_repeated_auth() {
    let topics: Vec<String> = (0..30).map(|n| format!("app:t{n}")).collect();
    let grants = topics.iter().map(|topic| super::grant(topic)).collect();
    let node = super::TestNode::with(|config| {
        config.websocket.max_subscriptions = 10;
        config.websocket.frames_per_s = 1;
        config.websocket.frame_burst = 1_000;
        config.systems.set(Grants(grants));
    })
    .await;
    let naming = |topics: &[String]| {
        let position = json!({"epoch": "e", "offset": 0});
        let positions: serde_json::Map<_, _> =
            topics.iter().map(|topic| (topic.clone(), position.clone())).collect();
        json!({"positions": positions})
    };
    let mut ws = node.ws_silent("alice").await;
    let reply = ws.ask_as(&super::id(), "auth", naming(&topics[..10])).await;
    assert_eq!(reply["error"]["reason"], "too_many_subscriptions", "with the user's own: {reply}");
    let shown = ws.ok("auth", naming(&topics[..6])).await;
    assert_eq!(shown["topics"].as_object().unwrap().len(), 7, "{shown}");
    let reply = ws.ask_as(&super::id(), "auth", naming(&topics[6..12])).await;
    assert_eq!(reply["error"]["reason"], "too_many_subscriptions", "{reply}");
    ws.ok("auth", naming(&topics[6..9])).await;
    let subscribe = json!({"topic": topics[9]});
    let reply = ws.ask_as(&super::id(), "topic:subscribe", subscribe).await;
    assert_eq!(reply["error"]["reason"], "too_many_subscriptions", "{reply}");
    // The same ones again are no more topics, and still that many reads.
    let deadline = tokio::time::Instant::now() + super::PATIENCE;
    loop {
        let reply = ws.ask_as(&super::id(), "auth", naming(&topics[..9])).await;
        if reply["ok"] == false {
            assert_eq!(reply["error"]["code"], "rate_limited", "{reply}");
            assert!(reply["error"]["retry_after_ms"].is_u64(), "{reply}");
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "never");
    }
    ws.ok("auth", json!({})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_may_have_a_listener_of_their_own() {
    let node =
        super::TestNode::with(|config| config.gateway.admin_listen = "127.0.0.1:0".into()).await;
    let public = node.anonymous();
    let operators = Http { address: node.node.operators.unwrap(), token: None };
    for path in ["/healthz", "/readyz"] {
        assert_eq!((public.get(path).await.status, operators.get(path).await.status), (200, 200));
    }
    public.get("/metrics").await.problem(404, "not_found");
    assert!(operators.get("/metrics").await.text.contains("proxie_http_requests_total"));
    operators.get("/v1/bookings").await.problem(404, "not_found");
    operators.get("/").await.problem(404, "not_found");
    let node = super::TestNode::start().await;
    assert!(node.node.operators.is_none());
    assert_eq!(node.anonymous().get("/metrics").await.status, 200);
}

/// Whatever clients invent, there are as many series as there are words of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_are_ours() {
    let node = super::TestNode::start().await;
    let client = node.anonymous();
    for n in 0..20 {
        client.send(&format!("INVENTED{n}"), &format!("/invented/{n}"), &[], b"").await;
    }
    let metrics = client.get("/metrics").await.text;
    assert!(!metrics.contains("INVENTED") && !metrics.contains("invented"), "{metrics}");
    assert!(metrics.contains("method=\"other\""), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_at_its_start_a_node_says_so_and_ends() {
    let folder = Folder::new("no-redis");
    let database = support::database().await.to_url_lossy().to_string();
    let environment = [
        ("DATABASE_URL", database.as_str()),
        // Reserved, and nobody listens there.
        ("REDIS_URL", "redis://127.0.0.1:1"),
        ("PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF", "true"),
        ("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0"),
    ];
    let mut node = tokio::process::Command::from(command(&folder, &["serve"], &environment));
    let ends = node.kill_on_drop(true).output();
    let output = tokio::time::timeout(super::PATIENCE, ends).await.expect("an end").unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("check REDIS_URL, or unset it"));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_limited_before_they_say_anything() {
    let node = super::TestNode::with(|config| {
        config.gateway.max_connections = 6;
        config.gateway.max_connections_per_address = 4;
        config.gateway.header_timeout_ms = 300;
    })
    .await;
    let address = node.node.address;
    let connect = async |from: &str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        socket.connect(address).await.unwrap()
    };
    let closed = async |socket: &mut TcpStream| {
        let mut byte = [0];
        let read = tokio::time::timeout(super::PATIENCE, socket.read(&mut byte)).await;
        matches!(read.expect("it is closed"), Ok(0) | Err(_))
    };
    let answered = async |from: &str| {
        let mut socket = connect(from).await;
        let request = b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let mut answer = String::new();
        socket.write_all(request).await.is_ok()
            && socket.read_to_string(&mut answer).await.is_ok()
            && answer.contains("200 OK")
    };
    // Sockets count for as long as they live, also as WebSockets.
    let token = format!("Bearer {}", node.token("alice", Role::Consumer, 3_600));
    let mut sockets = Vec::new();
    for from in ["127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.3"] {
        if sockets.len() == 4 {
            assert!(!answered("127.0.0.1").await, "the fifth of an address");
        }
        let stream = connect(from).await;
        sockets.push(node.try_ws_over(stream, &[("authorization", &token)]).await.unwrap());
    }
    assert!(!answered("127.0.0.4").await, "the seventh of all");
    drop(sockets);
    eventually("there is room again", || answered("127.0.0.1")).await;
    // Whoever takes too long with what he wants is cut off.
    let mut slow = connect("127.0.0.2").await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nx-slow: ").await.unwrap();
    assert!(closed(&mut slow).await);
    assert!(closed(&mut connect("127.0.0.3").await).await, "and whoever says nothing");
    // A connection that has been used may be idle for longer.
    let mut kept = connect("127.0.0.2").await;
    for _ in 0..2 {
        kept.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 2_048];
        let read = kept.read(&mut answer).await.unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
}
