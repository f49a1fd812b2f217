//! Ten thousand clients come back within five seconds, after the node that they were all connected to was killed.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt};
use proxie::gateway::auth::{Auth, fresh_key};
use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use proxie::persistence::embedded::{DataLock, Embedded, Options};
use proxie::persistence::keys;
use serde_json::{Value, json};
use sqlx::ConnectOptions;
use sqlx::postgres::PgPool;

use super::servers::Server;
use super::wire::{Client, Target, Wire};
use super::{AT_ONCE, open_files};

const CLIENTS: usize = 10_000;
/// A sentence that is not answered within this time never will be.
const ANSWER: Duration = Duration::from_secs(15);
const WITHIN: Duration = Duration::from_secs(5);

/// A client, and what it will have missed when it comes back.
struct Missing {
    token: String,
    session: String,
    epoch: String,
    /// The last offset of the session's topic; the client says that it has none of it.
    head: i64,
}

pub async fn run() -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("proxie-storm-{}", std::process::id()));
    let lock = DataLock::acquire(&folder)?;
    let options = Options { max_connections: 100, ..Options::new(&folder) };
    let server = Embedded::start(options, lock).await?;
    let done = storm(&folder, &server).await;
    server.stop().await?;
    let _ = std::fs::remove_dir_all(folder);
    done
}

async fn storm(folder: &std::path::Path, server: &Embedded) -> anyhow::Result<()> {
    ensure!(open_files()? > CLIENTS + 500, "ulimit -n {}", CLIENTS + 500);
    let database = server.connect_options();
    let mut first = node(folder, database.to_url_lossy().as_str(), 1)?;
    let second = node(folder, database.to_url_lossy().as_str(), 2)?;
    let pool = PgPool::connect_with(database).await?;
    let auth = Auth::new(&keys::signing_key(&pool, fresh_key()).await?);
    let now = Clock::System.now();
    let began = Instant::now();
    let clients: Vec<(Client, Missing)> = futures_util::stream::iter(0..CLIENTS)
        .map(|n| prepare(&first, auth.mint(&format!("user-{n}"), Role::Consumer, now, 3_600)))
        .buffer_unordered(4 * AT_ONCE)
        .try_collect()
        .await?;
    println!(
        "# {CLIENTS} clients on node 1, each with a session that was spoken in: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before_kib = second.resident_kib()?;
    let (sockets, missing): (Vec<Client>, Vec<Missing>) = clients.into_iter().unzip();
    first.child.kill()?;
    first.child.wait()?;
    drop(sockets);

    let (told, again) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let tasks: Vec<_> = missing
        .into_iter()
        .enumerate()
        .map(|(n, missing)| {
            let mut target = second.at();
            target.wire = Wire::Proxie { token: missing.token.clone() };
            let (told, again) = (told.clone(), again.clone());
            tokio::task::spawn_local(async move {
                tokio::time::sleep(WITHIN.mul_f64(n as f64 / CLIENTS as f64)).await;
                let began = Instant::now();
                while let Err(error) = come_back(&target, &missing, &told).await {
                    again.set(again.get() + 1);
                    ensure!(began.elapsed() < Duration::from_secs(60), "for a minute: {error:#}");
                    tokio::time::sleep(Duration::from_millis(100 + n as u64 % 200)).await;
                }
                anyhow::Ok(began.elapsed())
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.push(task.await??);
    }
    times.sort_unstable();
    let at = |share: f64| times[(times.len() as f64 * share) as usize].as_secs_f64();
    let status = std::fs::read_to_string(format!("/proc/{}/status", second.child.id()))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    let peak: f64 = peak.trim().trim_end_matches(" kB").parse()?;
    let after = second.resident_kib()?;
    println!(
        "resume storm, {CLIENTS} clients within {} s: {} recovered, {} told that they missed something, {} tries again\n\
         \x20 first attempt to last replayed publication: p50 {:.2} s  p99 {:.2} s  max {:.2} s\n\
         \x20 memory of the node that is left: {:.0} MiB before, {:.0} MiB at most, {:.0} MiB with all of them ({:.2} x)",
        WITHIN.as_secs(),
        times.len() - told.get(),
        told.get(),
        again.get(),
        at(0.5),
        at(0.99),
        times[times.len() - 1].as_secs_f64(),
        before_kib / 1024.0,
        peak / 1024.0,
        after / 1024.0,
        peak / after,
    );
    Ok(())
}

pub fn node(folder: &std::path::Path, database: &str, n: usize) -> anyhow::Result<Server> {
    let me = std::env::current_exe()?;
    let binary =
        me.parent().and_then(std::path::Path::parent).context("target folder")?.join("proxie");
    let free = || -> anyhow::Result<String> {
        Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
    };
    let listen = free()?;
    let log = std::fs::File::create(folder.join(format!("node-{n}.log")))?;
    let mut command = std::process::Command::new(binary);
    command
        .arg("serve")
        .current_dir(folder)
        .env("DATABASE_URL", database)
        .env("PROXIE__CLUSTER__ENABLED", "true")
        .env("PROXIE__CLUSTER__COOKIE", "load")
        .env("PROXIE__CLUSTER__LISTEN", listen)
        .env("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0")
        .env("PROXIE__NODE__NAME", format!("node-{n}"))
        .env("PROXIE__AUTH__DEV_TOKENS", "true")
        .env("PROXIE__GATEWAY__REQUESTS_PER_MINUTE", "100000000")
        // Clients that are not being driven do not answer.
        .env("PROXIE__WEBSOCKET__PING_MS", "600000")
        .env("PROXIE__WEBSOCKET__FRAMES_PER_S", "1000000")
        .env("PROXIE__WEBSOCKET__FRAME_BURST", "1000000")
        .env("PROXIE__WEBSOCKET__COMMANDS_PER_MINUTE_PER_USER", "1000000000")
        .env("PROXIE__LOG__LEVEL", "warn")
        .stderr(log);
    Server::spawned("proxie", command)
}

/// One sentence in a session of its own, answered.
async fn prepare(server: &Server, token: String) -> anyhow::Result<(Client, Missing)> {
    let mut target = server.at();
    target.wire = Wire::Proxie { token: token.clone() };
    let mut client = target.connect().await?;
    let opened = client.ask("session:open", json!({"time_zone": "Europe/Berlin"})).await?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a string");
    let (session, epoch) = (text(&opened["session_id"])?, text(&opened["position"]["epoch"])?);
    let id = client.id();
    let said = json!({"id": id, "event": "chat:message", "data": {"session_id": session, "content": "hello"}});
    client.send(said.to_string()).await?;
    let mut heard = Vec::new();
    loop {
        let next = tokio::time::timeout(ANSWER, client.next()).await;
        let next = next.with_context(|| format!("no answer in {session}, but {heard:?}"))?;
        let frame: Value = serde_json::from_str(&next?)?;
        ensure!(frame["ok"] != false, "{frame}");
        if frame["event"] == "chat:response" {
            let head = frame["offset"].as_i64().context("an offset")?;
            return Ok((client, Missing { token, session, epoch, head }));
        }
        heard.push(frame.to_string());
    }
}

/// Until the last publication that it had missed is there.
async fn come_back(target: &Target, missing: &Missing, told: &Cell<usize>) -> anyhow::Result<()> {
    let mut client = target.open().await?;
    let topic = format!("session:{}", missing.session);
    let id = client.id();
    let positions = json!({&topic: {"epoch": missing.epoch, "offset": 0}});
    let auth = json!({"id": id, "event": "auth", "data": {"positions": positions}});
    client.send(auth.to_string()).await?;
    let mut next = 1;
    loop {
        let frame: Value = serde_json::from_str(&client.next().await?)?;
        if frame["id"] == id.as_str() {
            ensure!(frame["ok"] == true, "{frame}");
            let shown = &frame["data"]["topics"][&topic];
            ensure!(shown["error"].is_null(), "{shown}");
            if shown["recovered"] == false {
                told.set(told.get() + 1);
                break;
            }
        }
        if frame["topic"] == topic.as_str()
            && let Some(offset) = frame["offset"].as_i64()
        {
            ensure!(offset == next, "{offset} instead of {next}");
            next += 1;
            if offset == missing.head {
                break;
            }
        }
    }
    // It stays.
    tokio::task::spawn_local(async move { while client.next().await.is_ok() {} });
    Ok(())
}
