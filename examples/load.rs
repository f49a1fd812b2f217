//! What connections cost a server: echo, fan-out, memory. Proxie beside what one would pick instead, in one run.
//!
//! `cargo run --release --example load [-- PART…] [--against NAME,…]`; parts: see `PARTS`; `storm` and `sync` alone. The server runs on
//! one core, the clients and PostgreSQL on the other. Peers that are not installed are left out, and said to be.

#[path = "load/servers.rs"]
mod servers;
#[path = "load/storm.rs"]
mod storm;
#[path = "load/sync.rs"]
mod sync;
#[path = "load/wire.rs"]
mod wire;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures_util::{StreamExt, TryStreamExt};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use servers::Server;
use wire::{Client, deliveries};

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
const PARTS: [&str; 10] = [
    "echo",
    "fanout-1",
    "fanout-4",
    "topics",
    "topics-paced",
    "memory",
    "connections",
    "slow",
    "storm",
    "sync",
];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if args.first().map(String::as_str) == Some("axum") {
        return runtime.block_on(servers::bare_axum());
    }
    if args.first().map(String::as_str) == Some("storm") {
        // Nothing is pinned here: two nodes share the machine with their clients.
        return tokio::task::LocalSet::new().block_on(&runtime, storm::run());
    }
    if args.first().map(String::as_str) == Some("sync") {
        return tokio::task::LocalSet::new().block_on(&runtime, sync::run());
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

async fn compare(folder: &Path, parts: &[&str], against: Option<&str>) -> anyhow::Result<()> {
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);
    let servers = servers::start(folder, against)?;
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
        for (at, server) in servers.iter().enumerate().filter(|(_, s)| s.wire.echoes()) {
            let mut clients = Vec::new();
            for _ in 0..ECHO_CONNECTIONS {
                let mut client = server.connect().await?;
                let mut session = format!("ses_{:026}", 0);
                if server.wire.is_proxie() {
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
                            client.echo(&session).await?;
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
            "  {:<10} {:>22} us  {:>8.0}/s  {ratio}",
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
                .buffer_unordered(server.wire.at_once())
                .try_collect::<Vec<Client>>();
            for (subscriber, mut client) in subscribed.await?.into_iter().enumerate() {
                let (heard, delays) = (heard.clone(), delays.clone());
                tasks.push(tokio::task::spawn_local(async move {
                    while let Some(message) = client.message().await {
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
                            next = client.waiting();
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
                    while client.waiting().is_some() {}
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
            "  {:<10} {:>22} us  {:>8.0}/s  p50 {:>6.2} ms  p99 {:>6.2} ms  {ratio}",
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
                while let Some(message) = client.message().await {
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
        while publisher.waiting().is_some() {}
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
            while let Some(message) = client.message().await {
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
    let text = wire::PAYLOAD.repeat(80);
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
            while publisher.waiting().is_some() {}
            publisher.publish_text("app:t0", now_us(), &text).await?;
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
        let began = Instant::now();
        let clients: Vec<Client> = futures_util::stream::iter(0..IDLE)
            .map(|_| server.connect())
            .buffer_unordered(server.wire.at_once())
            .try_collect()
            .await?;
        let took = began.elapsed().as_secs_f64();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let each = |kib: f64| (kib - before) / IDLE as f64;
        println!(
            "  {:<10} {:>6.1} KiB   {:.0} connections a second",
            server.name,
            each(server.resident_kib()?),
            IDLE as f64 / took
        );
        if server.wire.is_proxie() {
            sessions(server, clients, each).await?;
        }
    }
    Ok(())
}

/// The same when each has a session, first live, then asleep.
async fn sessions(
    server: &Server,
    mut clients: Vec<Client>,
    each: impl Fn(f64) -> f64,
) -> anyhow::Result<()> {
    for client in &mut clients {
        let open = json!({"session_id": null, "time_zone": "UTC", "locale": "en"});
        client.ask("session:open", open).await?;
    }
    let live = server.resident_kib()?;
    tokio::time::sleep(servers::ASLEEP_AFTER).await;
    let asleep = server.resident_kib()?;
    println!(
        "  {:<10} {:>6.1} KiB   with its session live, {:.1} KiB asleep",
        "",
        each(live),
        each(asleep)
    );
    Ok(())
}
