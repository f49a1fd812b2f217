//! What connections cost a server: echo, fan-out, memory. Proxie beside what one would pick instead, in one run.
//!
//! `cargo run --release --example load [-- PART…] [--against NAME,…]`; parts: see `PARTS`; `storm` alone. The server runs on
//! one core, the clients and PostgreSQL on the other. Peers that are not installed are left out, and said to be.

#[path = "load/storm.rs"]
mod storm;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use axum::extract::State;
use axum::extract::ws::{Message as AxumMessage, Utf8Bytes, WebSocketUpgrade};
use futures_util::{FutureExt, SinkExt, StreamExt, TryStreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SERVER_CORE: &str = "0";
const CLIENT_CORE: &str = "1";
const RUNS: usize = 5;
const WINDOW: Duration = Duration::from_secs(3);
const ECHO_CONNECTIONS: usize = 32;
const IDLE: usize = 4_000;
const MOST_KEPT: usize = 8_000;
/// Connections that are being made at the same time.
const AT_ONCE: usize = 32;
/// 100 bytes or so of what applications say.
const PAYLOAD: &str = "a sentence that is about as long as what people and programs say to each other, all in all 100 B";

const PARTS: [&str; 9] = [
    "echo",
    "fanout-1",
    "fanout-4",
    "topics",
    "topics-paced",
    "memory",
    "connections",
    "slow",
    "storm",
];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if args.first().map(String::as_str) == Some("axum") {
        return runtime.block_on(bare_axum());
    }
    if args.first().map(String::as_str) == Some("storm") {
        // Nothing is pinned here: two nodes share the machine with their clients.
        return tokio::task::LocalSet::new().block_on(&runtime, storm::run());
    }
    if std::env::var_os("LOAD_PINNED").is_none() {
        // Again, on its own core.
        let status = Command::new("taskset")
            .args(["-c", CLIENT_CORE])
            .arg(std::env::current_exe()?)
            .args(&args)
            .env("LOAD_PINNED", "1")
            .status()
            .context("taskset, of util-linux")?;
        std::process::exit(status.code().unwrap_or(1));
    }
    let (mut parts, mut against) = (Vec::new(), None);
    let mut args = args.iter().map(String::as_str);
    while let Some(arg) = args.next() {
        match arg {
            "--against" => against = Some(args.next().context("--against NAME,…")?),
            part if PARTS.contains(&part) => parts.push(arg),
            other => bail!("usage: load [{}]… [--against NAME,…], not {other}", PARTS.join("|")),
        }
    }
    let folder = std::env::temp_dir().join(format!("proxie-load-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let local = tokio::task::LocalSet::new();
    let done = runtime.block_on(local.run_until(compare(&folder, &parts, against)));
    let _ = std::fs::remove_dir_all(&folder);
    done
}

/// How a server is spoken to.
#[derive(Clone)]
enum Wire {
    Proxie {
        token: String,
    },
    /// `{"sub":topic}`, `{"pub":topic,"data":…}`; anything else is echoed.
    Plain,
    Nats,
}

struct Server {
    name: &'static str,
    version: String,
    child: Child,
    address: String,
    wire: Wire,
}

/// Where clients connect to.
#[derive(Clone)]
struct Target {
    address: String,
    wire: Wire,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Waits for the line that says where it listens.
    fn start(
        name: &'static str,
        program: &str,
        with: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Self> {
        let mut command = Command::new("taskset");
        command.args(["-c", SERVER_CORE, program]);
        with(&mut command);
        Self::spawned(name, command)
    }

    fn spawned(name: &'static str, mut command: Command) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("piped")?).lines();
        let ready = |line: String| {
            let at = line.strip_prefix("ready ").or(line.strip_prefix("proxie ready on http://"));
            at.map(|at| at.trim().to_owned())
        };
        let address = lines.map_while(Result::ok).find_map(ready);
        let address = address.with_context(|| format!("{name} did not start"))?;
        Ok(Self { name, version: String::new(), child, address, wire: Wire::Plain })
    }

    /// CPU so far, without that of its children: PostgreSQL is apart.
    fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(self.child.id())
    }

    fn resident_kib(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    fn at(&self) -> Target {
        Target { address: self.address.clone(), wire: self.wire.clone() }
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        self.at().connect().await
    }
}

impl Target {
    async fn connect(&self) -> anyhow::Result<Client> {
        let mut client = self.open().await?;
        match client.wire {
            Wire::Proxie { .. } => drop(client.ask("auth", json!({})).await?),
            Wire::Nats => {
                client.send("CONNECT {\"verbose\":false}\r\nPING\r\n".into()).await?;
                while !client.next().await?.contains("PONG") {}
            }
            Wire::Plain => {}
        }
        Ok(client)
    }

    async fn open(&self) -> anyhow::Result<Client> {
        let path = if let Wire::Proxie { .. } = self.wire { "/v1/ws" } else { "/" };
        let mut request = format!("ws://{}{path}", self.address).into_client_request()?;
        if let Wire::Proxie { token } = &self.wire {
            request.headers_mut().insert("authorization", format!("Bearer {token}").parse()?);
        }
        // From many addresses: the kernel looks long for a free port where thousands are taken.
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let from = [127, 0, 1, NEXT.fetch_add(1, Ordering::Relaxed)];
        let stream = TcpSocket::new_v4()?;
        stream.bind((from, 0).into())?;
        let stream = stream.connect(self.address.parse()?).await?;
        stream.set_nodelay(true)?;
        let config = WebSocketConfig::default().read_buffer_size(8_192).write_buffer_size(0);
        let (socket, _) =
            tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await?;
        Ok(Client { socket, wire: self.wire.clone(), next: 0 })
    }
}

fn cpu_of(process: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second()))
}

struct Client {
    socket: WebSocketStream<TcpStream>,
    wire: Wire,
    next: u64,
}

impl Client {
    async fn send(&mut self, text: String) -> anyhow::Result<()> {
        let message =
            if let Wire::Nats = self.wire { Message::binary(text) } else { Message::text(text) };
        Ok(self.socket.send(message).await?)
    }

    async fn next(&mut self) -> anyhow::Result<String> {
        loop {
            match self.socket.next().await.context("closed")?? {
                Message::Text(text) => return Ok(text.as_str().to_owned()),
                Message::Close(frame) => bail!("closed: {frame:?}"),
                Message::Binary(bytes) => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
                _ => {}
            }
        }
    }

    fn id(&mut self) -> String {
        self.next += 1;
        format!("{:026}", self.next)
    }

    async fn ask(&mut self, event: &str, data: Value) -> anyhow::Result<Value> {
        let id = self.id();
        self.send(json!({"id": id, "event": event, "data": data}).to_string()).await?;
        loop {
            let frame: Value = serde_json::from_str(&self.next().await?)?;
            if frame["id"] == id.as_str() {
                ensure!(frame["ok"] == true, "{event}: {frame}");
                return Ok(frame["data"].clone());
            }
        }
    }

    async fn subscribe(&mut self, topic: &str) -> anyhow::Result<()> {
        match self.wire {
            Wire::Proxie { .. } => {
                self.ask("topic:subscribe", json!({"topic": topic})).await.map(drop)
            }
            Wire::Plain => {
                self.send(json!({"sub": topic}).to_string()).await?;
                // It comes back after the subscription was read.
                self.send("{}".into()).await?;
                self.next().await.map(drop)
            }
            Wire::Nats => {
                self.send(format!("SUB {topic} 1\r\nPING\r\n")).await?;
                while !self.next().await?.contains("PONG") {}
                Ok(())
            }
        }
    }

    async fn publish(&mut self, topic: &str, at_us: u64) -> anyhow::Result<()> {
        let data = format!("{{\"t\":\"{at_us:016}\",\"text\":\"{PAYLOAD}\"}}");
        let text = match self.wire {
            Wire::Proxie { .. } => format!(
                "{{\"id\":\"{}\",\"event\":\"topic:publish\",\"data\":{{\"topic\":\"{topic}\",\"event\":\"app:x\",\"data\":{data}}}}}",
                self.id()
            ),
            Wire::Plain => format!("{{\"pub\":\"{topic}\",\"data\":{data}}}"),
            Wire::Nats => format!("PUB {topic} {}\r\n{data}\r\n", data.len()),
        };
        self.send(text).await
    }
}

/// Deliveries in a message, and when the last of them was published.
fn deliveries(message: &Message) -> (u64, Option<u64>) {
    let bytes = match message {
        Message::Text(text) => text.as_bytes(),
        Message::Binary(bytes) => bytes,
        _ => return (0, None),
    };
    let mark = b"\"t\":\"";
    let (mut count, mut last) = (0, None);
    for at in memchr_all(bytes, mark) {
        count += 1;
        last = bytes.get(at + mark.len()..at + mark.len() + 16);
    }
    (count, last.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()))
}

fn memchr_all<'a>(bytes: &'a [u8], mark: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    bytes.windows(mark.len()).enumerate().filter_map(move |(at, w)| (w == mark).then_some(at))
}

/// Echo and topics as small as axum makes them, with the buffers a server would choose, and publications that wait in
/// one write.
async fn bare_axum() -> anyhow::Result<()> {
    type Topics = Arc<Mutex<HashMap<String, Vec<mpsc::UnboundedSender<Utf8Bytes>>>>>;
    #[derive(serde::Deserialize)]
    struct Frame<'a> {
        #[serde(borrow)]
        sub: Option<&'a str>,
        #[serde(borrow, rename = "pub")]
        publish: Option<&'a str>,
        #[serde(borrow)]
        data: Option<&'a serde_json::value::RawValue>,
    }
    let serve = |upgrade: WebSocketUpgrade, State(topics): State<Topics>| async move {
        upgrade.read_buffer_size(4_096).write_buffer_size(4_096).on_upgrade(|mut socket| async move {
            let (send, mut publications) = mpsc::unbounded_channel::<Utf8Bytes>();
            loop {
                tokio::select! {
                    message = socket.recv() => {
                        let Some(Ok(AxumMessage::Text(text))) = message else { return };
                        match serde_json::from_str(&text) {
                            Ok(Frame { sub: Some(topic), .. }) => {
                                topics.lock().unwrap().entry(topic.into()).or_default().push(send.clone());
                            }
                            Ok(Frame { publish: Some(topic), data: Some(data), .. }) => {
                                let out: Utf8Bytes = format!(
                                    "{{\"event\":\"app:x\",\"topic\":\"{topic}\",\"data\":{data}}}"
                                ).into();
                                for other in topics.lock().unwrap().get(topic).into_iter().flatten() {
                                    let _ = other.send(out.clone());
                                }
                            }
                            _ => if socket.send(AxumMessage::Text(text)).await.is_err() { return },
                        }
                    }
                    Some(first) = publications.recv() => {
                        let mut next = Some(first);
                        while let Some(out) = next {
                            if socket.feed(AxumMessage::Text(out)).await.is_err() {
                                return;
                            }
                            next = publications.try_recv().ok();
                        }
                        if socket.flush().await.is_err() {
                            return;
                        }
                    }
                }
            }
        })
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("ready {}", listener.local_addr()?);
    let router = axum::Router::new().route("/", axum::routing::any(serve));
    axum::serve(listener, router.with_state(Topics::default())).await?;
    Ok(())
}

async fn compare(folder: &Path, parts: &[&str], against: Option<&str>) -> anyhow::Result<()> {
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);
    let servers = start(folder, against)?;
    println!(
        "# server on core {SERVER_CORE}, clients on core {CLIENT_CORE}; medians of {RUNS} interleaved runs of {} s (least to most)",
        WINDOW.as_secs()
    );
    let model = std::fs::read_to_string("/proc/cpuinfo")?;
    let model =
        model.lines().find_map(|l| l.strip_prefix("model name\t: ")).unwrap_or("?").to_owned();
    println!("# {model}, load before: {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    for server in &servers {
        println!("# {}: {}", server.name, server.version);
    }
    if wanted("echo") {
        echo(&servers).await?;
    }
    for (part, title, topics, subscribers, in_flight, per_s) in [
        ("fanout-1", "fan-out 1 x 1,000, 1 publication in flight", 1, 1_000, 1, None),
        ("fanout-4", "fan-out 1 x 1,000, 4 publications in flight", 1, 1_000, 4, None),
        ("topics", "fan-out 100 x 100, 1 in flight a topic", 100, 100, 1, None),
        ("topics-paced", "fan-out 100 x 100, 10,000 deliveries/s", 100, 100, 1, Some(100)),
    ] {
        if wanted(part) {
            fan_out(&servers, title, topics, subscribers, in_flight, per_s).await?;
        }
    }
    if wanted("memory") {
        memory(&servers).await?;
    }
    if wanted("connections") {
        connections(&servers[0]).await?;
    }
    if wanted("slow") {
        slow(&servers[0]).await?;
    }
    Ok(())
}

fn start(folder: &Path, against: Option<&str>) -> anyhow::Result<Vec<Server>> {
    let me = std::env::current_exe()?;
    let binary = me.parent().and_then(Path::parent).context("target folder")?.join("proxie");
    ensure!(binary.exists(), "build the node first: cargo build --release");
    let root = me.ancestors().nth(4).context("target folder")?;
    let peers = root.join("target/peers");
    let wanted = |name: &str| against.is_none_or(|names| names.split(',').any(|n| n == name));
    let grant = |n: usize| {
        format!(
            "[[topics.grants]]\ntopic = \"app:t{n}\"\npublish = [\"consumer\"]\nsubscribe = [\"consumer\"]\n"
        )
    };
    let config: String = (0..100).map(grant).collect();
    std::fs::write(folder.join("config.toml"), config)?;
    let settings = |command: &mut Command| {
        command
            .env_remove("DATABASE_URL")
            .env_remove("REDIS_URL")
            .env("PROXIE__NODE__DATA_DIR", folder.join("data"))
            .env("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0")
            .env("PROXIE__GATEWAY__REQUESTS_PER_MINUTE", "100000000")
            .env("PROXIE__SEED__DEMO", "false")
            .env("PROXIE__WEBSOCKET__FRAMES_PER_S", "1000000")
            .env("PROXIE__WEBSOCKET__FRAME_BURST", "1000000")
            .env("PROXIE__WEBSOCKET__MAX_CONNECTIONS_PER_USER", "100000")
            .env("PROXIE__LOG__LEVEL", "warn")
            .current_dir(folder);
    };
    let mut node = Server::start("proxie", binary.to_str().context("path")?, |command| {
        command.arg("serve");
        settings(command);
    })?;
    let mut token = Command::new(&binary);
    settings(&mut token);
    let token = token.args(["token", "--user", "bench", "--role", "consumer"]).output()?;
    let token = String::from_utf8(token.stdout)?.lines().last().context("a token")?.to_owned();
    node.wire = Wire::Proxie { token };
    node.version = env!("CARGO_PKG_VERSION").into();
    // Its PostgreSQL goes to the clients' core, with all it starts from now on.
    for child in children(node.child.id()) {
        for process in children(child).into_iter().chain([child]) {
            Command::new("taskset")
                .args(["-apc", CLIENT_CORE, &process.to_string()])
                .stdout(Stdio::null())
                .status()?;
        }
    }
    let mut servers = vec![node];
    if wanted("axum") {
        let mut axum = Server::start("axum", me.to_str().context("path")?, |c| {
            c.arg("axum");
        })?;
        axum.version = "0.8, 4 KiB buffers, current_thread".into();
        servers.push(axum);
    }
    let source = |file: &str| root.join("examples/peers").join(file);
    if wanted("ws") && peers.join("node_modules/ws").exists() {
        // Modules are looked for from where the file is.
        std::fs::copy(source("ws.mjs"), peers.join("ws.mjs"))?;
        let mut ws = Server::start("ws", "node", |c| {
            c.arg(peers.join("ws.mjs"));
        })?;
        let package: Value =
            serde_json::from_slice(&std::fs::read(peers.join("node_modules/ws/package.json"))?)?;
        ws.version = format!("{}, Node {}", package["version"], printed("node", &["--version"])?);
        servers.push(ws);
    } else if wanted("ws") {
        println!("# ws: left out (npm install --prefix target/peers ws@8)");
    }
    let plugins: Vec<PathBuf> = plugins();
    if wanted("cowboy") && !plugins.is_empty() {
        std::fs::copy(source("cowboy.erl"), folder.join("cowboy_peer.erl"))?;
        let compiled = Command::new("erlc")
            .current_dir(folder)
            .args(plugins.iter().flat_map(|p| ["-pa".into(), p.clone()]))
            .arg("cowboy_peer.erl")
            .status()?;
        ensure!(compiled.success(), "erlc");
        let mut cowboy = Server::start("cowboy", "erl", |c| {
            c.current_dir(folder).args(["+S", "1", "-noshell", "-pa", "."]);
            for plugin in &plugins {
                c.arg("-pa").arg(plugin);
            }
            c.args(["-eval", "cowboy_peer:main()."]);
        })?;
        cowboy.version = plugins
            .iter()
            .filter_map(|p| p.parent()?.file_name()?.to_str())
            .collect::<Vec<_>>()
            .join(" ");
        servers.push(cowboy);
    } else if wanted("cowboy") {
        println!("# cowboy: left out (apt-get install rabbitmq-server)");
    }
    if wanted("nats") && printed("nats-server", &["--version"]).is_ok() {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = folder.join("nats.conf");
        std::fs::write(
            &config,
            format!(
                "port: -1\nhost: 127.0.0.1\nmax_connections: 65536\nwebsocket {{ port: {port}, host: 127.0.0.1, no_tls: true }}\n"
            ),
        )?;
        let child = Command::new("taskset")
            .args(["-c", SERVER_CORE, "nats-server", "-c"])
            .arg(&config)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let nats = Server {
            name: "nats",
            version: printed("nats-server", &["--version"])?,
            child,
            address: format!("127.0.0.1:{port}"),
            wire: Wire::Nats,
        };
        while std::net::TcpStream::connect(&nats.address).is_err() {
            std::thread::sleep(Duration::from_millis(50));
        }
        servers.push(nats);
    } else if wanted("nats") {
        println!("# nats: left out (apt-get install nats-server)");
    }
    Ok(servers)
}

fn printed(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(args).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Cowboy, as Debian's RabbitMQ brings it.
fn plugins() -> Vec<PathBuf> {
    let Ok(versions) = std::fs::read_dir("/usr/lib/rabbitmq/lib") else { return Vec::new() };
    let plugins = versions.flatten().map(|version| version.path().join("plugins"));
    let plugins = plugins.filter_map(|plugins| std::fs::read_dir(plugins).ok()).flatten().flatten();
    let used = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        ["cowboy-", "cowlib-", "ranch-"].iter().any(|plugin| name.starts_with(plugin))
    };
    plugins.map(|plugin| plugin.path()).filter(used).map(|plugin| plugin.join("ebin")).collect()
}

fn children(process: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let children =
        tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    children
        .flat_map(|line| {
            line.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>()
        })
        .collect()
}

/// Median, least and most.
fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    format!("{:.2} ({:.2}-{:.2})", values[values.len() / 2], values[0], values[values.len() - 1])
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One message in flight a connection; with Proxie through the entity of its session.
async fn echo(servers: &[Server]) -> anyhow::Result<()> {
    println!(
        "\necho with ack, {ECHO_CONNECTIONS} connections: server CPU a message, messages a second"
    );
    let mut figures: Vec<Vec<(f64, f64)>> = vec![Vec::new(); servers.len()];
    for _ in 0..RUNS {
        for (at, server) in
            servers.iter().enumerate().filter(|(_, s)| !matches!(s.wire, Wire::Nats))
        {
            let mut clients = Vec::new();
            for _ in 0..ECHO_CONNECTIONS {
                let mut client = server.connect().await?;
                let mut session = format!("ses_{:026}", 0);
                if let Wire::Proxie { .. } = client.wire {
                    // Live, and not listened to: only the answers come back.
                    let open = json!({"session_id": null, "time_zone": "UTC", "locale": "en"});
                    session = client.ask("session:open", open).await?["session_id"]
                        .as_str()
                        .context("id")?
                        .to_owned();
                    client.ask("session:close", json!({"session_id": session})).await?;
                }
                clients.push((client, session));
            }
            let (before, began) = (server.cpu()?, Instant::now());
            let tasks: Vec<_> = clients
                .into_iter()
                .map(|(mut client, session)| {
                    tokio::task::spawn_local(async move {
                        let mut sent = 0_u64;
                        while began.elapsed() < WINDOW {
                            let id = client.id();
                            client.send(format!("{{\"id\":\"{id}\",\"event\":\"chat:typing\",\"data\":{{\"session_id\":\"{session}\",\"is_typing\":true}}}}")).await?;
                            let answer = client.next().await?;
                            ensure!(!answer.contains("\"ok\":false"), "{answer}");
                            sent += 1;
                        }
                        anyhow::Ok(sent)
                    })
                })
                .collect();
            let mut messages = 0;
            for task in tasks {
                messages += task.await??;
            }
            let cpu = (server.cpu()? - before).as_secs_f64() * 1e6 / messages as f64;
            figures[at].push((cpu, messages as f64 / began.elapsed().as_secs_f64()));
        }
    }
    let axum = servers.iter().position(|s| s.name == "axum").filter(|at| !figures[*at].is_empty());
    let axum = axum.map(|at| median(figures[at].iter().map(|f| f.0).collect()));
    for (server, figures) in servers.iter().zip(&figures).filter(|(_, f)| !f.is_empty()) {
        let cpu: Vec<f64> = figures.iter().map(|f| f.0).collect();
        let ratio = axum
            .map(|axum| format!("{:.2} x axum", median(cpu.clone()) / axum))
            .unwrap_or_default();
        println!(
            "  {:<8} {:>22} us  {:>8.0}/s  {ratio}",
            server.name,
            spread(cpu),
            median(figures.iter().map(|f| f.1).collect())
        );
    }
    Ok(())
}

/// What the subscribers of one topic have received.
#[derive(Default)]
struct Heard {
    deliveries: Cell<u64>,
    more: Notify,
}

/// The subscribers of one server, over all runs.
struct Room {
    heard: Vec<Rc<Heard>>,
    delays: Rc<RefCell<Vec<u64>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Room {
    async fn open(
        server: &Server,
        topics: usize,
        subscribers: usize,
        now_us: impl Fn() -> u64 + Copy + 'static,
    ) -> anyhow::Result<Self> {
        let heard: Vec<Rc<Heard>> = (0..topics).map(|_| Rc::default()).collect();
        let delays: Rc<RefCell<Vec<u64>>> = Rc::default();
        let mut tasks = Vec::new();
        for (n, heard) in heard.iter().enumerate() {
            let topic = format!("app:t{n}");
            let subscribed = futures_util::stream::iter(0..subscribers)
                .map(|_| async {
                    let mut client = server.connect().await?;
                    client.subscribe(&topic).await?;
                    anyhow::Ok(client)
                })
                .buffer_unordered(AT_ONCE)
                .try_collect::<Vec<Client>>();
            for (subscriber, mut client) in subscribed.await?.into_iter().enumerate() {
                let (heard, delays) = (heard.clone(), delays.clone());
                tasks.push(tokio::task::spawn_local(async move {
                    while let Some(Ok(message)) = client.socket.next().await {
                        let mut next = Some(message);
                        let mut count = 0;
                        while let Some(message) = next {
                            let (more, at) = deliveries(&message);
                            count += more;
                            if subscriber % 10 == 0
                                && let Some(at) = at
                            {
                                delays.borrow_mut().push(now_us().saturating_sub(at));
                            }
                            next =
                                client.socket.next().now_or_never().flatten().and_then(Result::ok);
                        }
                        heard.deliveries.set(heard.deliveries.get() + count);
                        heard.more.notify_one();
                    }
                }));
            }
        }
        Ok(Self { heard, delays, tasks })
    }
}

async fn fan_out(
    servers: &[Server],
    title: &str,
    topics: usize,
    subscribers: usize,
    in_flight: u64,
    per_s: Option<u64>,
) -> anyhow::Result<()> {
    println!("\n{title}: server CPU a delivery, deliveries a second, delay");
    let mut figures: Vec<Vec<[f64; 4]>> = vec![Vec::new(); servers.len()];
    let clock = Instant::now();
    let now_us = move || clock.elapsed().as_micros() as u64;
    // Connecting takes the longest. All of them at once are more files than a process may have, though.
    let keep = topics * subscribers * servers.len() < MOST_KEPT;
    let mut rooms: HashMap<usize, Room> = HashMap::new();
    for (at_server, server) in (0..RUNS).flat_map(|_| servers.iter().enumerate()) {
        if !keep {
            rooms.clear();
        }
        if let Entry::Vacant(room) = rooms.entry(at_server) {
            room.insert(Room::open(server, topics, subscribers, now_us).await?);
        }
        let Room { heard, delays, .. } = &rooms[&at_server];
        let measuring = Rc::new(Cell::new(true));
        let mut publishers = Vec::new();
        for (n, heard) in heard.iter().enumerate() {
            let mut client = server.connect().await?;
            let (heard, measuring) = (heard.clone(), measuring.clone());
            let before = heard.deliveries.get();
            publishers.push(tokio::task::spawn_local(async move {
                let topic = format!("app:t{n}");
                let (mut published, subscribers) = (0_u64, subscribers as u64);
                let mut ticks = tokio::time::interval(
                    Duration::from_secs(1).mul_f64(topics as f64 / per_s.unwrap_or(1) as f64),
                );
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                while measuring.get() {
                    if per_s.is_some() {
                        ticks.tick().await;
                    }
                    while heard.deliveries.get() - before + (in_flight - 1) * subscribers
                        < published * subscribers
                    {
                        heard.more.notified().await;
                    }
                    // Replies, where there are some.
                    while client.socket.next().now_or_never().is_some() {}
                    client.publish(&topic, now_us()).await?;
                    published += 1;
                }
                // What is on its way belongs to this run.
                while heard.deliveries.get() - before < published * subscribers {
                    heard.more.notified().await;
                }
                anyhow::Ok(())
            }));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        delays.borrow_mut().clear();
        let total = || heard.iter().map(|heard| heard.deliveries.get()).sum::<u64>();
        let (before, cpu_before, began) = (total(), server.cpu()?, Instant::now());
        tokio::time::sleep(WINDOW).await;
        let count = total() - before;
        let cpu = (server.cpu()? - cpu_before).as_secs_f64() * 1e6 / count.max(1) as f64;
        let mut delays = std::mem::take(&mut *delays.borrow_mut());
        ensure!(!delays.is_empty(), "{}: nothing arrives", server.name);
        delays.sort_unstable();
        let at = |share: f64| delays[(delays.len() as f64 * share) as usize] as f64 / 1e3;
        let rate = count as f64 / began.elapsed().as_secs_f64();
        figures[at_server].push([cpu, rate, at(0.5), at(0.99)]);
        measuring.set(false);
        for publisher in publishers {
            tokio::time::timeout(Duration::from_secs(10), publisher)
                .await
                .with_context(|| format!("{}: deliveries are missing", server.name))???;
        }
    }
    drop(rooms);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let axum = servers.iter().position(|s| s.name == "axum");
    let axum = axum.map(|at| median(figures[at].iter().map(|f| f[0]).collect()));
    for (server, figures) in servers.iter().zip(&figures) {
        let of = |n: usize| figures.iter().map(|f| f[n]).collect::<Vec<f64>>();
        let ratio =
            axum.map(|axum| format!("{:.2} x axum", median(of(0)) / axum)).unwrap_or_default();
        println!(
            "  {:<8} {:>22} us  {:>8.0}/s  p50 {:>6.2} ms  p99 {:>6.2} ms  {ratio}",
            server.name,
            spread(of(0)),
            median(of(1)),
            median(of(2)),
            median(of(3))
        );
    }
    Ok(())
}

/// As many connections as a process may have files: how fast they come, and how long a delivery takes with all of them.
async fn connections(server: &Server) -> anyhow::Result<()> {
    let count = (open_files()? - 500).min(20_000);
    let (topics, deliveries_per_s) = (100, 10_000);
    let began = Instant::now();
    let mut clients: Vec<Client> = futures_util::stream::iter(0..count)
        .map(|_| server.connect())
        .buffer_unordered(4 * AT_ONCE)
        .try_collect()
        .await?;
    let rate = count as f64 / began.elapsed().as_secs_f64();
    println!("\n{count} connections: {rate:.0} authenticated a second");
    let clock = Instant::now();
    let now_us = move || clock.elapsed().as_micros() as u64;
    let mut publisher = clients.pop().context("a client")?;
    let mut rooms: Vec<Vec<Client>> = (0..topics).map(|_| Vec::new()).collect();
    for (n, client) in clients.into_iter().enumerate() {
        rooms[n % topics].push(client);
    }
    let delays: Rc<RefCell<Vec<u64>>> = Rc::default();
    let mut tasks = Vec::new();
    for (n, room) in rooms.into_iter().enumerate() {
        for mut client in room {
            client.subscribe(&format!("app:t{n}")).await?;
            let delays = delays.clone();
            tasks.push(tokio::task::spawn_local(async move {
                while let Some(Ok(message)) = client.socket.next().await {
                    if let (1.., Some(at)) = deliveries(&message) {
                        delays.borrow_mut().push(now_us().saturating_sub(at));
                    }
                }
            }));
        }
    }
    let pause =
        Duration::from_secs(1).mul_f64(count as f64 / topics as f64 / f64::from(deliveries_per_s));
    let mut ticks = tokio::time::interval(pause);
    let (began, cpu) = (Instant::now(), server.cpu()?);
    let mut n = 0;
    while began.elapsed() < 5 * WINDOW {
        ticks.tick().await;
        while publisher.socket.next().now_or_never().is_some() {}
        publisher.publish(&format!("app:t{}", n % topics), now_us()).await?;
        n += 1;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let share = (server.cpu()? - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
    let lost = tasks.iter().filter(|task| task.is_finished()).count();
    let mut delays = std::mem::take(&mut *delays.borrow_mut());
    delays.sort_unstable();
    let at = |share: f64| delays[(delays.len() as f64 * share) as usize] as f64 / 1e3;
    println!(
        "  {:.0} deliveries a second: p50 {:.2} ms  p99 {:.2} ms  p99.9 {:.2} ms, {:.0} % of a core, {lost} connections lost, {:.1} KiB each",
        delays.len() as f64 / (5 * WINDOW).as_secs_f64(),
        at(0.5),
        at(0.99),
        at(0.999),
        share * 100.0,
        server.resident_kib()? / count as f64,
    );
    tasks.iter().for_each(|task| task.abort());
    Ok(())
}

fn open_files() -> anyhow::Result<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find(|line| line.starts_with("Max open files")).context("limits")?;
    Ok(line.split_whitespace().nth(3).context("a number")?.parse()?)
}

/// A tenth of the subscribers stop reading: what that costs the others, and the server.
async fn slow(server: &Server) -> anyhow::Result<()> {
    const SUBSCRIBERS: usize = 1_000;
    let clock = Instant::now();
    let now_us = move || clock.elapsed().as_micros() as u64;
    let delays: Rc<RefCell<Vec<u64>>> = Rc::default();
    let stopped = Rc::new(Cell::new(false));
    let mut tasks = Vec::new();
    for n in 0..SUBSCRIBERS {
        let mut client = server.connect().await?;
        client.subscribe("app:t0").await?;
        let (delays, stopped) = (delays.clone(), stopped.clone());
        tasks.push(tokio::task::spawn_local(async move {
            while let Some(Ok(message)) = client.socket.next().await {
                if let (1.., Some(at)) = deliveries(&message) {
                    delays.borrow_mut().push(now_us().saturating_sub(at));
                }
                if n % 10 == 0 && stopped.get() {
                    std::future::pending::<()>().await;
                }
            }
        }));
    }
    let mut publisher = server.connect().await?;
    let text = PAYLOAD.repeat(80);
    let before_kib = server.resident_kib()?;
    println!("\n100 of 1,000 subscribers stop reading; 25 publications of 8 KiB a second");
    let mut most = 0.0_f64;
    let mut p99 = Vec::new();
    for (what, seconds) in [("all read", 15), ("900 read", 60)] {
        stopped.set(what != "all read");
        delays.borrow_mut().clear();
        let began = Instant::now();
        let mut ticks = tokio::time::interval(Duration::from_millis(40));
        while began.elapsed() < Duration::from_secs(seconds) {
            ticks.tick().await;
            while publisher.socket.next().now_or_never().is_some() {}
            let id = publisher.id();
            let at = now_us();
            let frame = format!(
                "{{\"id\":\"{id}\",\"event\":\"topic:publish\",\"data\":{{\"topic\":\"app:t0\",\"event\":\"app:x\",\"data\":{{\"t\":\"{at:016}\",\"text\":\"{text}\"}}}}}}"
            );
            publisher.send(frame).await?;
            most = most.max(server.resident_kib()?);
        }
        let mut all = std::mem::take(&mut *delays.borrow_mut());
        all.sort_unstable();
        let at = |share: f64| all[(all.len() as f64 * share) as usize] as f64 / 1e3;
        println!(
            "  {what}: p50 {:.2} ms  p99 {:.2} ms  ({:.0} deliveries a second)",
            at(0.5),
            at(0.99),
            all.len() as f64 / seconds as f64
        );
        p99.push(at(0.99));
    }
    let metrics = http_get(&server.address, "/metrics").await?;
    let cut =
        metrics.lines().find(|line| line.starts_with("proxie_ws_closed_total{code=\"3008\"}"));
    println!(
        "  p99 {:.2} x; memory at most {:.0} MiB above {:.0} MiB; {}",
        p99[1] / p99[0],
        (most - before_kib) / 1024.0,
        before_kib / 1024.0,
        cut.unwrap_or("nobody was cut off"),
    );
    tasks.iter().for_each(|task| task.abort());
    Ok(())
}

async fn http_get(address: &str, path: &str) -> anyhow::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(
            format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")
                .as_bytes(),
        )
        .await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

async fn memory(servers: &[Server]) -> anyhow::Result<()> {
    println!("\nmemory of an idle authenticated connection, of {IDLE}");
    for server in servers {
        let before = server.resident_kib()?;
        let mut clients = Vec::new();
        let began = Instant::now();
        for _ in 0..IDLE {
            clients.push(server.connect().await?);
        }
        let took = began.elapsed().as_secs_f64();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let kib = (server.resident_kib()? - before) / IDLE as f64;
        println!(
            "  {:<8} {kib:>6.1} KiB   {:.0} connections a second, one after the other",
            server.name,
            IDLE as f64 / took
        );
    }
    Ok(())
}
