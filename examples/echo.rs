//! Server CPU of a message through WebSocket → entity → ack, beside a bare axum echo, in one run.
//!
//! `cargo run --release --example echo` (build the node first: `cargo build --release`)

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use axum::extract::ws::{Message as AxumMessage, WebSocketUpgrade};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONNECTIONS: usize = 32;
const WINDOW: Duration = Duration::from_secs(4);
const RUNS: usize = 5;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("axum") {
        return bare_axum().await;
    }
    let me = std::env::current_exe()?;
    let binary = me.parent().and_then(Path::parent).context("target folder")?.join("proxie");
    ensure!(binary.exists(), "build the node first: cargo build --release");
    let folder = std::env::temp_dir().join(format!("proxie-echo-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let done = compare(&me, &binary, &folder).await;
    let _ = std::fs::remove_dir_all(&folder);
    done
}

/// Echo as small as axum makes it, with the buffers that a server would choose.
async fn bare_axum() -> anyhow::Result<()> {
    let echo = |upgrade: WebSocketUpgrade| async move {
        upgrade.read_buffer_size(4_096).write_buffer_size(4_096).on_upgrade(
            |mut socket| async move {
                while let Some(Ok(message)) = socket.recv().await {
                    if matches!(message, AxumMessage::Text(_))
                        && socket.send(message).await.is_err()
                    {
                        return;
                    }
                }
            },
        )
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("proxie ready on http://{}", listener.local_addr()?);
    axum::serve(listener, axum::Router::new().route("/v1/ws", axum::routing::any(echo))).await?;
    Ok(())
}

struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let url = line
            .trim()
            .strip_prefix("proxie ready on ")
            .context("the server did not start")?
            .to_owned();
        Ok(Self { child, url })
    }

    /// CPU of the process so far, its PostgreSQL apart.
    fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> =
            stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn compare(me: &Path, binary: &PathBuf, folder: &Path) -> anyhow::Result<()> {
    let proxie = || {
        let mut command = Command::new(binary);
        command
            .env_remove("DATABASE_URL")
            .env_remove("REDIS_URL")
            .env("PROXIE__NODE__DATA_DIR", folder.join("data"))
            .env("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0")
            .env("PROXIE__SEED__DEMO", "false")
            .env("PROXIE__WEBSOCKET__FRAMES_PER_S", "1000000")
            .env("PROXIE__WEBSOCKET__FRAME_BURST", "1000000")
            .env("PROXIE__LOG__LEVEL", "warn")
            .current_dir(folder);
        command
    };
    let node = Server::start({
        let mut command = proxie();
        command.arg("serve");
        command
    })?;
    let token = proxie().args(["token", "--user", "bench", "--role", "consumer"]).output()?;
    let token = String::from_utf8(token.stdout)?.lines().last().context("a token")?.to_owned();
    let bare = Server::start({
        let mut command = Command::new(me);
        command.arg("axum");
        command
    })?;
    println!(
        "# server CPU a message, {CONNECTIONS} connections, one message in flight each, {RUNS} interleaved runs of {} s",
        WINDOW.as_secs()
    );
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        theirs.push(measure(&bare, None).await?);
        ours.push(measure(&node, Some(&token)).await?);
    }
    let median = |runs: &[(f64, f64)]| {
        let mut cpu: Vec<f64> = runs.iter().map(|r| r.0).collect();
        let mut rate: Vec<f64> = runs.iter().map(|r| r.1).collect();
        cpu.sort_by(f64::total_cmp);
        rate.sort_by(f64::total_cmp);
        println!("   spread of CPU a message: {:.2}–{:.2} µs", cpu[0], cpu[cpu.len() - 1]);
        (cpu[cpu.len() / 2], rate[rate.len() / 2])
    };
    let (bare_cpu, bare_rate) = median(&theirs);
    let (our_cpu, our_rate) = median(&ours);
    println!("bare axum echo                 {bare_cpu:>6.2} µs   {bare_rate:>8.0}/s");
    println!(
        "proxie, through the entity     {our_cpu:>6.2} µs   {our_rate:>8.0}/s   {:.2} × (at most 2)",
        our_cpu / bare_cpu
    );
    Ok(())
}

/// CPU in microseconds a message, and messages a second.
async fn measure(server: &Server, token: Option<&str>) -> anyhow::Result<(f64, f64)> {
    let mut sockets = Vec::new();
    for _ in 0..CONNECTIONS {
        sockets.push(connect(&server.url, token).await?);
    }
    let before = server.cpu()?;
    let started = Instant::now();
    let tasks: Vec<_> = sockets
        .into_iter()
        .map(|(mut socket, session)| {
            tokio::spawn(async move {
                let mut sent = 0_u64;
                while started.elapsed() < WINDOW {
                    // 120 bytes or so, as in the other measurements.
                    let id = format!("{sent:026}");
                    let frame = json!({ "id": id, "event": "chat:typing", "data": { "session_id": session, "is_typing": true } });
                    socket.send(Message::text(frame.to_string())).await?;
                    let answer = socket.next().await.context("closed")??;
                    let Message::Text(answer) = answer else { continue };
                    ensure!(!answer.as_str().contains("\"ok\":false"), "refused: {answer}");
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
    let cpu = server.cpu()? - before;
    Ok((
        cpu.as_secs_f64() * 1e6 / messages as f64,
        messages as f64 / started.elapsed().as_secs_f64(),
    ))
}

type Socket =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn connect(url: &str, token: Option<&str>) -> anyhow::Result<(Socket, String)> {
    let mut request = format!("{}/v1/ws", url.replacen("http", "ws", 1)).into_client_request()?;
    let Some(token) = token else {
        let (socket, _) = tokio_tungstenite::connect_async(request).await?;
        return Ok((socket, format!("ses_{:026}", 0)));
    };
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await?;
    let mut session = String::new();
    // Opened for the session to be live, then closed here: only the answers come back, no publications.
    for (event, data) in [
        ("auth", json!({})),
        ("session:open", json!({ "session_id": null, "time_zone": "UTC", "locale": "en" })),
        ("session:close", Value::Null),
    ] {
        let id = ulid::Ulid::generate().to_string();
        let data = if event == "session:close" { json!({ "session_id": session }) } else { data };
        socket
            .send(Message::text(json!({ "id": id, "event": event, "data": data }).to_string()))
            .await?;
        loop {
            let Message::Text(text) = socket.next().await.context("closed")?? else { continue };
            let frame: Value = serde_json::from_str(text.as_str())?;
            if frame["id"] == id.as_str() {
                ensure!(frame["ok"] == true, "{event}: {frame}");
                if let Some(id) = frame["data"]["session_id"].as_str() {
                    session = id.to_owned();
                }
                break;
            }
        }
    }
    Ok((socket, session))
}
