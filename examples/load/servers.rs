//! The servers that are compared: a node, and what one would pick instead. Those that are not installed are left out.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use axum::extract::State;
use axum::extract::ws::{Message as AxumMessage, Utf8Bytes, WebSocketUpgrade};
use futures_util::SinkExt;
use serde_json::Value;
use tokio::sync::mpsc;

use super::wire::{Client, Target, Wire};
use super::{CLIENT_CORE, SERVER_CORE};

pub struct Server {
    pub name: &'static str,
    pub version: String,
    pub child: Child,
    pub address: String,
    pub wire: Wire,
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

    pub fn spawned(name: &'static str, mut command: Command) -> anyhow::Result<Self> {
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

    /// One that takes a file with its port, and is there when the port answers.
    fn configured(
        name: &'static str,
        program: &str,
        folder: &Path,
        config: &str,
        port: u16,
    ) -> anyhow::Result<Self> {
        let file = folder.join(format!("{name}.conf"));
        std::fs::write(&file, config)?;
        let mut command = Command::new("taskset");
        command.args(["-c", SERVER_CORE, program, "-c"]).arg(&file);
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let address = format!("127.0.0.1:{port}");
        let server = Self { name, version: String::new(), child, address, wire: Wire::Plain };
        while std::net::TcpStream::connect(&server.address).is_err() {
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// CPU so far, without that of its children: PostgreSQL is apart.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(self.child.id())
    }

    pub fn resident_kib(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    pub fn at(&self) -> Target {
        Target { address: self.address.clone(), wire: self.wire.clone() }
    }

    pub async fn connect(&self) -> anyhow::Result<Client> {
        self.at().connect().await
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn cpu_of(process: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second()))
}

pub fn start(folder: &Path, against: Option<&str>) -> anyhow::Result<Vec<Server>> {
    let me = std::env::current_exe()?;
    let binary = me.parent().and_then(Path::parent).context("target folder")?.join("proxie");
    ensure!(binary.exists(), "build the node first: cargo build --release");
    let root = me.ancestors().nth(4).context("target folder")?;
    let peers = root.join("target/peers");
    let wanted = |name: &str| against.is_none_or(|names| names.split(',').any(|n| n == name));
    let mut servers = vec![node(folder, &binary, "proxie")?];
    if wanted("proxie-sio") {
        // The same over Socket.IO, on a node of its own.
        let mut node = node(folder, &binary, "proxie-sio")?;
        if let Wire::Proxie { token } = &node.wire {
            node.wire = Wire::SocketIo { token: Some(token.clone()) };
        }
        servers.push(node);
    }
    if wanted("axum") {
        let mut axum = Server::start("axum", me.to_str().context("path")?, |c| {
            c.arg("axum");
        })?;
        axum.version = "0.8, 4 KiB buffers, current_thread".into();
        servers.push(axum);
    }
    let source = |file: &str| root.join("examples/peers").join(file);
    for (name, package, file, wire, install) in [
        ("ws", "ws", "ws.mjs", Wire::Plain, "ws@8"),
        ("socket.io", "socket.io", "socketio.mjs", Wire::SocketIo { token: None }, "socket.io@4"),
    ] {
        let package = peers.join("node_modules").join(package).join("package.json");
        if wanted(name) && package.exists() {
            // Modules are looked for from where the file is.
            std::fs::copy(source(file), peers.join(file))?;
            let mut peer = Server::start(name, "node", |c| {
                c.arg(peers.join(file));
            })?;
            let package: Value = serde_json::from_slice(&std::fs::read(package)?)?;
            let node = printed("node", &["--version"])?;
            peer.version = format!("{}, Node {node}", package["version"]);
            peer.wire = wire;
            servers.push(peer);
        } else if wanted(name) {
            println!("# {name}: left out (npm install --prefix target/peers {install})");
        }
    }
    if wanted("fastapi") && peers.join("python/fastapi").exists() {
        let mut peer = Server::start("fastapi", "python3", |c| {
            c.arg(source("fastapi_peer.py")).env("PYTHONPATH", peers.join("python"));
        })?;
        let mut versions = Command::new("python3");
        versions.env("PYTHONPATH", peers.join("python")).args([
            "-c",
            "import fastapi,uvicorn,uvloop,sys;print(fastapi.__version__,'uvicorn',uvicorn.__version__,'uvloop',uvloop.__version__,'Python',sys.version.split()[0])",
        ]);
        peer.version = String::from_utf8(versions.output()?.stdout)?.trim().into();
        servers.push(peer);
    } else if wanted("fastapi") {
        println!(
            "# fastapi: left out (python3 -m pip install --target target/peers/python fastapi uvicorn uvloop websockets)"
        );
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
        let port = free_port()?;
        let config = format!(
            "port: -1\nhost: 127.0.0.1\nmax_connections: 65536\nwebsocket {{ port: {port}, host: 127.0.0.1, no_tls: true }}\n"
        );
        let mut nats = Server::configured("nats", "nats-server", folder, &config, port)?;
        nats.version = printed("nats-server", &["--version"])?;
        nats.wire = Wire::Nats;
        servers.push(nats);
    } else if wanted("nats") {
        println!("# nats: left out (apt-get install nats-server)");
    }
    if wanted("mosquitto") && printed("mosquitto", &["-h"]).is_ok() {
        let (plain, port) = (free_port()?, free_port()?);
        // It does not start with WebSocket alone, nor does it bind that to an address.
        let config = format!(
            "listener {plain} 127.0.0.1\nlistener {port}\nprotocol websockets\nallow_anonymous true\nset_tcp_nodelay true\n"
        );
        let mut mosquitto = Server::configured("mosquitto", "mosquitto", folder, &config, port)?;
        let version = printed("mosquitto", &["-h"])?;
        mosquitto.version = version.lines().next().unwrap_or_default().into();
        mosquitto.wire = Wire::Mqtt;
        servers.push(mosquitto);
    } else if wanted("mosquitto") {
        println!("# mosquitto: left out (apt-get install mosquitto)");
    }
    Ok(servers)
}

/// Entities that nobody asks leave memory within this time.
pub const ASLEEP_AFTER: Duration = Duration::from_secs(40);

/// A node with a hundred application topics, its PostgreSQL on the clients' core.
fn node(folder: &Path, binary: &Path, name: &'static str) -> anyhow::Result<Server> {
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
            .env("PROXIE__NODE__DATA_DIR", folder.join(name))
            .env("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0")
            .env("PROXIE__GATEWAY__REQUESTS_PER_MINUTE", "100000000")
            .env("PROXIE__SEED__DEMO", "false")
            .env("PROXIE__WEBSOCKET__FRAMES_PER_S", "1000000")
            .env("PROXIE__WEBSOCKET__FRAME_BURST", "1000000")
            .env("PROXIE__WEBSOCKET__FRAMES_PER_MINUTE_PER_USER", "1000000000")
            .env("PROXIE__WEBSOCKET__COMMANDS_PER_MINUTE_PER_USER", "1000000000")
            .env("PROXIE__WEBSOCKET__MAX_CONNECTIONS_PER_USER", "100000")
            .env("PROXIE__ENTITIES__IDLE_S", "20")
            .env("PROXIE__LOG__LEVEL", "warn")
            .current_dir(folder);
    };
    let mut node = Server::start(name, binary.to_str().context("path")?, |command| {
        command.arg("serve");
        settings(command);
    })?;
    let mut token = Command::new(binary);
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
    Ok(node)
}

/// Echo and topics as small as axum makes them, with the buffers a server would choose, and publications that wait in
/// one write.
pub async fn bare_axum() -> anyhow::Result<()> {
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
