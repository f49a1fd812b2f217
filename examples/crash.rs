//! Kills a real node with SIGKILL, again and again, under load, and checks every acknowledged command afterwards.
//!
//! `cargo run --release --example crash [kills]`
//!
//! Clients send messages into sessions over WebSockets, each with an id of its own. The record of what was acknowledged
//! is kept here, apart from the node. A message without an answer is sent again, with its id, to the next life of the
//! node, until it is acknowledged. In the end every session must hold each acknowledged message exactly once.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use rand::Rng;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

const CLIENTS: usize = 16;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let kills: u32 = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(200);
    let binary =
        std::env::var_os("PROXIE_BIN").map_or_else(next_to_me, |path| Ok(PathBuf::from(path)))?;
    let folder = std::env::temp_dir().join(format!("proxie-crash-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let done = run(&binary, &folder, kills).await;
    if let Ok(elsewhere) = std::fs::read_to_string(folder.join("data/postgres.location"))
        && elsewhere.trim().starts_with("/var/lib/proxie/")
    {
        let _ = std::fs::remove_dir_all(elsewhere.trim());
    }
    let _ = std::fs::remove_dir_all(&folder);
    done
}

fn next_to_me() -> anyhow::Result<PathBuf> {
    let me = std::env::current_exe()?;
    let binary = me.parent().and_then(Path::parent).context("target folder")?.join("proxie");
    ensure!(binary.exists(), "build the node first: cargo build --release");
    Ok(binary)
}

pub async fn run(binary: &Path, folder: &Path, kills: u32) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut node = Node::start(binary, folder)?;
    let (address, addresses) = watch::channel(Some(node.url.clone()));
    let (stop, stopped) = watch::channel(false);
    let acknowledged = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let token = token(binary, folder, n)?;
            Ok(tokio::spawn(client(
                n,
                token,
                addresses.clone(),
                stopped.clone(),
                acknowledged.clone(),
            )))
        })
        .collect::<anyhow::Result<_>>()?;

    let mut downtime = Vec::new();
    for kill in 1..=kills {
        let wait = Duration::from_millis(rand::rng().random_range(5..400));
        tokio::time::sleep(wait).await;
        node.kill();
        address.send_replace(None);
        let begun = Instant::now();
        node = Node::start(binary, folder)?;
        downtime.push(begun.elapsed());
        address.send_replace(Some(node.url.clone()));
        if kill % 20 == 0 {
            println!(
                "{kill} kills, {} commands acknowledged, {:.0} s",
                acknowledged.load(Ordering::Relaxed),
                started.elapsed().as_secs_f64()
            );
        }
    }
    stop.send_replace(true);
    let (mut lost, mut doubled, mut foreign, mut total) = (0, 0, 0, 0_usize);
    for client in clients {
        let record = client.await??;
        let mut stored: HashMap<String, usize> = HashMap::new();
        for content in messages(&node.url, &record).await? {
            *stored.entry(content).or_default() += 1;
        }
        total += record.acknowledged.len();
        lost += record.acknowledged.iter().filter(|m| !stored.contains_key(*m)).count();
        doubled += stored.values().filter(|n| **n > 1).count();
        foreign += stored.keys().filter(|m| !record.acknowledged.contains(*m)).count();
    }
    downtime.sort();
    println!(
        "{kills} kills under load of {CLIENTS} clients: {total} acknowledged commands, {lost} lost, {doubled} doubled, {foreign} unexplained; \
         restart p50 {} ms, max {} ms",
        downtime[downtime.len() / 2].as_millis(),
        downtime[downtime.len() - 1].as_millis()
    );
    node.stop();
    ensure!(
        total > 0 && lost == 0 && doubled == 0 && foreign == 0,
        "the record and the store differ"
    );
    Ok(())
}

fn command(binary: &Path, folder: &Path) -> Command {
    let mut command = Command::new(binary);
    command
        .env_remove("DATABASE_URL")
        .env_remove("REDIS_URL")
        .env("PROXIE__NODE__DATA_DIR", folder.join("data"))
        .env("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0")
        .env("PROXIE__GATEWAY__DRAIN_MS", "0")
        .env("PROXIE__SEED__DEMO", "false")
        .env("PROXIE__LOG__FORMAT", "json")
        .current_dir(folder)
        .stdin(Stdio::null());
    command
}

fn token(binary: &Path, folder: &Path, n: usize) -> anyhow::Result<String> {
    let output = command(binary, folder)
        .args(["token", "--user", &format!("user{n}"), "--role", "consumer"])
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().last().unwrap_or_default().to_owned())
}

struct Node {
    child: Child,
    url: String,
}

impl Node {
    fn start(binary: &Path, folder: &Path) -> anyhow::Result<Self> {
        let log = std::fs::File::create(folder.join("node.log"))?;
        let mut child =
            command(binary, folder).arg("serve").stdout(Stdio::piped()).stderr(log).spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        while stdout.read_line(&mut line)? > 0 {
            if let Some(url) = line.trim().strip_prefix("proxie ready on ") {
                return Ok(Self { child, url: url.into() });
            }
            line.clear();
        }
        let _ = child.wait();
        bail!("the node did not start: {}", std::fs::read_to_string(folder.join("node.log"))?)
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn stop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What one client knows, independently of the node.
struct Record {
    token: String,
    session: String,
    acknowledged: Vec<String>,
}

async fn client(
    n: usize,
    token: String,
    mut address: watch::Receiver<Option<String>>,
    stopped: watch::Receiver<bool>,
    count: Arc<AtomicU64>,
) -> anyhow::Result<Record> {
    let mut record = Record { token, session: String::new(), acknowledged: Vec::new() };
    // The message on its way, which the next connection sends again, and the id of the session's opening.
    let mut pending: Option<(String, String)> = None;
    let opening = ulid::Ulid::generate().to_string();
    let mut next = 0_u64;
    loop {
        let Some(url) = address.wait_for(Option::is_some).await?.clone() else { continue };
        let _ = converse(n, &url, &opening, &mut record, &mut pending, &mut next, &stopped, &count)
            .await;
        if *stopped.borrow() && pending.is_none() && !record.session.is_empty() {
            return Ok(record);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[allow(clippy::too_many_arguments, reason = "the client's own variables, over many connections")]
async fn converse(
    n: usize,
    url: &str,
    opening: &str,
    record: &mut Record,
    pending: &mut Option<(String, String)>,
    next: &mut u64,
    stopped: &watch::Receiver<bool>,
    count: &AtomicU64,
) -> anyhow::Result<()> {
    let mut request = format!("{}/v1/ws", url.replacen("http", "ws", 1)).into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {}", record.token).parse()?);
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await?;
    let mut ask = async |id: &str, event: &str, data: Value| -> anyhow::Result<Value> {
        socket
            .send(Message::text(json!({ "id": id, "event": event, "data": data }).to_string()))
            .await?;
        loop {
            let frame = tokio::time::timeout(Duration::from_secs(15), socket.next())
                .await?
                .context("closed")??;
            let Message::Text(text) = frame else { continue };
            let frame: Value = serde_json::from_str(text.as_str())?;
            if frame["id"] == id {
                return Ok(frame);
            }
        }
    };
    ask(&ulid::Ulid::generate().to_string(), "auth", json!({})).await?;
    let open = json!({ "session_id": null, "time_zone": "UTC", "locale": "en" });
    let opened = ask(opening, "session:open", open).await?;
    record.session = opened["data"]["session_id"].as_str().context("no session")?.to_owned();
    while pending.is_some() || !*stopped.borrow() {
        let (id, content) = pending
            .get_or_insert_with(|| {
                *next += 1;
                (ulid::Ulid::generate().to_string(), format!("client {n} message {next}"))
            })
            .clone();
        let data = json!({ "session_id": record.session, "content": content, "media": [] });
        let reply = ask(&id, "chat:message", data).await?;
        if reply["ok"] == true {
            record.acknowledged.push(content);
            count.fetch_add(1, Ordering::Relaxed);
            *pending = None;
        } else {
            // Not acknowledged: the same id again, a little later.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

/// The user's own messages of the session, as the API lists them.
async fn messages(url: &str, record: &Record) -> anyhow::Result<Vec<String>> {
    let mut contents = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/v1/sessions/{}/messages?limit=100{cursor}", record.session);
        let page = get(url, &record.token, &path).await?;
        for message in page["items"].as_array().context("no items")? {
            if message["role"] == "user" {
                contents.push(message["content"].as_str().unwrap_or_default().to_owned());
            }
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(contents),
        }
    }
}

async fn get(url: &str, token: &str, path: &str) -> anyhow::Result<Value> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for _ in 0..600 {
        let host = url.trim_start_matches("http://");
        let mut stream = tokio::net::TcpStream::connect(host).await?;
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        if head.starts_with("HTTP/1.1 429") {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        }
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}\n{body}");
        return Ok(serde_json::from_str(body)?);
    }
    bail!("rate limited for ever")
}
