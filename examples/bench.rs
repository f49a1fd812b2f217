//! The tables of `docs/benchmarks.md`. Every part prints its comparison side by side, medians of interleaved runs.
//!
//! `cargo run --release --example bench [forms|commit|hot|memory|activation]`

#[path = "../tests/it/counter.rs"]
#[allow(dead_code)]
mod counter;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use counter::{Command, Counter};
use proxie::actors::{Options, services::resident_bytes};
use proxie::app::core::{self, Core, CoreSettings};
use proxie::cluster::CommandMeta;
use proxie::kernel::clock::Clock;
use proxie::kernel::entity::{Caller, Entity, Role};
use proxie::persistence::embedded::{DataLock, Embedded, Options as ServerOptions};
use proxie::persistence::membership::NodeInfo;
use proxie::persistence::{store, vault, writer};
use proxie::systems::marketplace::domain::booking::{self, Booking};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use sqlx::postgres::{PgConnectOptions, PgPool};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Odd, so that there is a median.
fn runs() -> usize {
    std::env::var("BENCH_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(5)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let part = std::env::args().nth(1);
    let all = part.is_none();
    let wants = |name: &str| all || part.as_deref() == Some(name);
    machine();
    if wants("forms") {
        forms();
    }
    let folder = std::env::temp_dir().join(format!("proxie-bench-{}", std::process::id()));
    let server = serve(&folder).await?;
    if wants("commit") {
        commit(&server, &folder).await?;
    }
    if wants("hot") {
        hot(&server).await?;
    }
    if wants("activation") {
        activation(&server).await?;
    }
    if wants("memory") {
        memory(&server).await?;
    }
    server.stop().await?;
    let _ = std::fs::remove_dir_all(folder);
    Ok(())
}

fn machine() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .unwrap_or("?")
        .trim_start_matches([' ', '\t', ':']);
    let memory = read("/proc/meminfo");
    let cores = std::thread::available_parallelism().map_or(0, |n| n.get());
    println!(
        "machine: {cores} × {cpu}, {}, kernel {}",
        memory.lines().next().unwrap_or("?").split_whitespace().collect::<Vec<_>>().join(" "),
        read("/proc/sys/kernel/osrelease").trim()
    );
    println!(
        "proxie {}, ractor 0.16.5 with `cluster`, embedded PostgreSQL with fsync on; load before: {}",
        env!("CARGO_PKG_VERSION"),
        read("/proc/loadavg").trim()
    );
}

async fn serve(folder: &PathBuf) -> anyhow::Result<Embedded> {
    let lock = DataLock::acquire(folder)?;
    let options = ServerOptions {
        max_connections: 200,
        shared_buffers: "512MB".into(),
        ..ServerOptions::new(folder)
    };
    Ok(Embedded::start(options, lock).await?)
}

async fn start(database: PgConnectOptions, entities: Options, lanes: u16) -> anyhow::Result<Core> {
    let options = store::Options { max_connections: 24, allow_fsync_off: false };
    let pool = store::connect(database, &options).await?;
    let settings = CoreSettings {
        systems: proxie::systems::ALL,
        node: NodeInfo {
            name: "bench".into(),
            address: String::new(),
            version: "0".into(),
            host: "bench".into(),
            pid: std::process::id() as i32,
            process_start: 0,
            lease_s: 5.0,
            lanes,
            seals: true,
        },
        data_lock_held: true,
        read_ttl: Duration::from_secs(1),
        clock: Clock::System,
        clock_limits: Default::default(),
        writer: writer::Options { lanes, ..Default::default() },
        entities,
        runners: Vec::new(),
        vault: vault::Options::derived_from("of tests"),
        dedupe_s: 86_400,
        history_s: 86_400,
        witness: None,
        waits: Arc::new(|_| {}),
        cluster: None,
    };
    let mut prepared = core::prepare(pool, settings).await?;
    prepared.registry.register::<Counter>().await?;
    prepared.registry.register::<Booking>().await?;
    prepared.run().await
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn spread(values: &[f64]) -> String {
    let (low, high) = values.iter().fold((f64::MAX, 0.0_f64), |(l, h), v| (l.min(*v), h.max(*v)));
    format!("{low:.0}–{high:.0}")
}

fn user_meta(n: u64) -> CommandMeta {
    CommandMeta::new(Caller::user("bench", Role::Consumer))
        .id(format!("c{n:016}"))
        .timeout(Duration::from_secs(60))
}

struct Load {
    per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// `callers` ask one after the other for `window`; at a fixed rate in all if one is given.
async fn load<F, Fut>(callers: u64, window: Duration, rate: Option<f64>, ask: F) -> Load
where
    F: Fn(u64) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    let ask = Arc::new(ask);
    let next = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (ask, next, stop) = (ask.clone(), next.clone(), stop.clone());
            tokio::spawn(async move {
                let mut took = Vec::new();
                let pace = rate.map(|rate| Duration::from_secs_f64(callers as f64 / rate));
                let mut due =
                    started + pace.unwrap_or_default().mul_f64(caller as f64 / callers as f64);
                while !stop.load(Ordering::Relaxed) {
                    if let Some(pace) = pace {
                        tokio::time::sleep_until(due.into()).await;
                        due += pace;
                    }
                    let begun = Instant::now();
                    ask(next.fetch_add(1, Ordering::Relaxed)).await;
                    took.push(begun.elapsed());
                }
                took
            })
        })
        .collect();
    tokio::time::sleep(window).await;
    stop.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.expect("a caller ends"));
    }
    let elapsed = started.elapsed();
    took.sort();
    let at =
        |q: f64| took.get((took.len() as f64 * q) as usize).map_or(0.0, |d| d.as_secs_f64() * 1e3);
    Load { per_s: took.len() as f64 / elapsed.as_secs_f64(), p50_ms: at(0.5), p99_ms: at(0.99) }
}

const WINDOW: Duration = Duration::from_secs(4);
const ENTITIES: u64 = 2_000;

/// Durable commands a second: group commit against a transaction a command over the same kind of pool, and pgbench.
async fn commit(server: &Embedded, folder: &std::path::Path) -> anyhow::Result<()> {
    println!(
        "\n# durable commands/s: {ENTITIES} entities, 256 callers, each command a journal row and a dedupe row"
    );
    let core = Arc::new(
        start(server.create_database("commit", None).await?, Options::default(), 2).await?,
    );
    let single = server.create_database("single", None).await?;
    let pool =
        store::connect(single, &store::Options { max_connections: 24, allow_fsync_off: false })
            .await?;
    sqlx::raw_sql(TABLES).execute(&pool).await?;
    let keys: Arc<Vec<String>> = Arc::new((0..ENTITIES).map(|n| format!("e{n}")).collect());
    let pgbench = pgbench(server, folder).await?;

    let proxie = |base: u64, rate: Option<f64>| {
        let (core, keys) = (core.clone(), keys.clone());
        load(256, WINDOW, rate, move |n| {
            let counter = core.entities.of::<Counter>(keys[(n % ENTITIES) as usize].clone());
            async move {
                drop(
                    counter
                        .ask(Command::Add(1), user_meta(base + n))
                        .await
                        .expect("answered")
                        .expect("accepted"),
                )
            }
        })
    };
    let transactions = |base: u64| {
        let pool = pool.clone();
        load(256, WINDOW, None, move |n| {
            let pool = pool.clone();
            async move { one_transaction(&pool, base + n).await.expect("committed") }
        })
    };
    proxie(0, None).await;
    let (mut a, mut b, mut c, mut full) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 1..=runs() as u64 {
        let base = run * 1_000_000_000;
        let load = proxie(base, None).await;
        a.push(load.per_s);
        full.push((load.p50_ms, load.p99_ms));
        b.push(transactions(base).await.per_s);
        if let Some(pgbench) = &pgbench {
            c.push(pgbench.best().await?);
        }
    }
    let (ours, theirs) = (median(a.clone()), median(b.clone()));
    println!("proxie, group commit                  {ours:>9.0}/s   ({})", spread(&a));
    println!(
        "one transaction a command, same pool  {theirs:>9.0}/s   ({})   proxie is {:.1} ×   (at least 4)",
        spread(&b),
        ours / theirs
    );
    if c.is_empty() {
        println!("pgbench: not found (Debian: postgresql-contrib, or set PGBENCH)");
    } else {
        let bench = median(c.clone());
        println!(
            "pgbench -M prepared, best of 8/16/32  {bench:>9.0}/s   ({})   proxie is {:.1} ×   (at least 1.5)",
            spread(&c),
            ours / bench
        );
    }
    println!(
        "acknowledgement at full load: p50 {:.1} ms, p99 {:.1} ms",
        median(full.iter().map(|f| f.0).collect()),
        median(full.iter().map(|f| f.1).collect())
    );
    let half = proxie(9_000_000_000, Some(ours / 2.0)).await;
    println!(
        "acknowledgement at half load ({:.0}/s): p50 {:.1} ms, p99 {:.1} ms",
        half.per_s, half.p50_ms, half.p99_ms
    );
    pool.close().await;
    Arc::into_inner(core).expect("nobody else holds it").stop().await;
    Ok(())
}

const TABLES: &str = "
    create table journal (kind text collate \"C\", key text collate \"C\", seq bigint, version smallint not null, topic_head bigint not null,
        event jsonb not null, caller text not null, command_id text, at timestamptz not null, primary key (kind, key, seq));
    create table dedupe (user_id text collate \"C\", id text collate \"C\", fingerprint bigint not null, outcome text not null,
        at timestamptz not null, primary key (user_id, id));";

async fn one_transaction(pool: &PgPool, n: u64) -> Result<(), sqlx::Error> {
    let mut tx = pool.begin().await?;
    sqlx::query("insert into journal values ('counter', $1, $2, 2, 0, '{\"Added\": 1}', 'user:bench', $3, now())")
        .bind(format!("e{}", n % ENTITIES))
        .bind(n as i64)
        .bind(format!("c{n:016}"))
        .execute(&mut *tx)
        .await?;
    sqlx::query("insert into dedupe values ('bench', $1, 42, '{\"Ok\":{\"Total\":1}}', now())")
        .bind(format!("c{n:016}"))
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}

struct PgBench {
    program: PathBuf,
    script: PathBuf,
    socket: PathBuf,
    port: u16,
}

/// The same two inserts in one transaction, by PostgreSQL's own tool.
async fn pgbench(server: &Embedded, folder: &std::path::Path) -> anyhow::Result<Option<PgBench>> {
    let named = std::env::var_os("PGBENCH").map(PathBuf::from);
    let installed =
        (14..20).rev().map(|v| PathBuf::from(format!("/usr/lib/postgresql/{v}/bin/pgbench")));
    let Some(program) = named.into_iter().chain(installed).find(|path| path.exists()) else {
        return Ok(None);
    };
    let database = server.create_database("pgbench", None).await?;
    let pool = PgPool::connect_with(database.clone()).await?;
    sqlx::raw_sql(TABLES).execute(&pool).await?;
    sqlx::raw_sql("create sequence n").execute(&pool).await?;
    pool.close().await;
    let script = folder.join("two-inserts.sql");
    std::fs::write(
        &script,
        "\\set k random(0, 1999)\n\\set a random(0, 9000000000000000)\n\\set b random(0, 9000000000000000)\nbegin;
insert into journal values ('counter', 'e' || :k::int, :a::bigint, 2, 0, '{\"Added\": 1}', 'user-bench', 'c' || :b::bigint, now());
insert into dedupe values ('bench', 'c' || :a::bigint || '-' || :b::bigint, 42, '{\"Ok\":{\"Total\": 1}}', now());
commit;\n",
    )?;
    let socket = database.get_socket().expect("the embedded server has a socket").clone();
    Ok(Some(PgBench { program, script, socket, port: database.get_port() }))
}

impl PgBench {
    async fn best(&self) -> anyhow::Result<f64> {
        let mut best = 0.0_f64;
        for clients in ["8", "16", "32"] {
            let output = tokio::process::Command::new(&self.program)
                .args([
                    "-n", "-M", "prepared", "-T", "3", "-j", "2", "-c", clients, "-U", "postgres",
                    "-h",
                ])
                .arg(&self.socket)
                .args(["-p", &self.port.to_string(), "-f"])
                .arg(&self.script)
                .arg("pgbench")
                .output()
                .await?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let tps = text.lines().find_map(|l| {
                l.strip_prefix("tps = ")?.split_whitespace().next()?.parse::<f64>().ok()
            });
            best = best.max(tps.ok_or_else(|| {
                anyhow::anyhow!("pgbench: {}", String::from_utf8_lossy(&output.stderr))
            })?);
        }
        Ok(best)
    }
}

/// One entity, pipelined, against what one commit at a time would give.
/// What an operation of a device costs as JSON, and what it would in a binary form.
fn forms() {
    use proxie::kernel::codec;
    use proxie::systems::devices::domain::operation::DeviceOperation;

    const OPERATIONS: u64 = 250;
    const ROUNDS: u32 = 200;
    println!(
        "\n# an operation of a device, as JSON and in binary: reading a message and writing it for one listener"
    );
    let (mut json_us, mut binary_us, mut bytes) = (Vec::new(), Vec::new(), (0, 0));
    let operations: Vec<DeviceOperation> = (1..=OPERATIONS)
        .map(|n| {
            let operation = serde_json::json!({
                "sequence": n, "timestamp": (7_594_451_700_000_000_000 + n).to_string(),
                "operation_type": "PlaybackUpdate",
                "payload": {"content_id": format!("tt{n:07}"), "position_ms": n * 1_000},
            });
            serde_json::from_value(operation).expect("it is one")
        })
        .collect();
    // The derived form of a change has a tag and a content, which bincode does not take: the same fields as a tuple.
    type Plain = (u64, u64, u8, String, u64, Option<u64>);
    let plain: Vec<Plain> = (1..=OPERATIONS)
        .map(|n| (n, 7_594_451_700_000_000_000 + n, 2, format!("tt{n:07}"), n * 1_000, None))
        .collect();
    for _ in 0..runs() {
        let text = serde_json::to_string(&operations).expect("it is plain data");
        let began = Instant::now();
        for _ in 0..ROUNDS {
            // As an edge does: the frame first, then what is in it.
            let frame: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
            let read: Vec<DeviceOperation> =
                serde_json::from_value(frame).expect("they are operations");
            bytes.0 =
                std::hint::black_box(serde_json::to_string(&read)).map_or(0, |text| text.len());
        }
        json_us.push(began.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS) / OPERATIONS as f64);
        let message = codec::encode(&plain);
        let began = Instant::now();
        for _ in 0..ROUNDS {
            let read: Vec<Plain> = codec::decode(&message).expect("they are operations");
            bytes.1 = std::hint::black_box(codec::encode(&read)).len();
        }
        binary_us.push(began.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS) / OPERATIONS as f64);
    }
    let each = |bytes: usize| bytes / OPERATIONS as usize;
    println!("JSON    {:.2} us  {} bytes", median(json_us), each(bytes.0));
    println!("binary  {:.2} us  {} bytes", median(binary_us), each(bytes.1));
}

async fn hot(server: &Embedded) -> anyhow::Result<()> {
    println!("\n# durable commands/s on one hot entity");
    let core =
        Arc::new(start(server.create_database("hot", None).await?, Options::default(), 2).await?);
    let (mut latencies, mut rates) = (Vec::new(), Vec::new());
    for run in 1..=runs() as u64 {
        let one = |callers: u64, base: u64| {
            let core = core.clone();
            load(callers, Duration::from_secs(3), None, move |n| {
                let counter = core.entities.of::<Counter>("hot");
                async move {
                    drop(
                        counter
                            .ask(Command::Add(1), user_meta(base + n))
                            .await
                            .expect("answered")
                            .expect("accepted"),
                    )
                }
            })
        };
        latencies.push(one(1, run * 1_000_000_000).await.p50_ms);
        rates.push(one(2000, run * 1_000_000_000 + 500_000_000).await.per_s);
    }
    let (latency, rate) = (median(latencies), median(rates.clone()));
    println!(
        "one at a time: {latency:.2} ms a commit = {:.0}/s; pipelined, 2000 callers: {rate:.0}/s ({}) = {:.0} × (at least 50)",
        1e3 / latency,
        spread(&rates),
        rate * latency / 1e3
    );
    Arc::into_inner(core).expect("nobody else holds it").stop().await;
    Ok(())
}

/// Cold starts from a snapshot and ten events.
async fn activation(server: &Embedded) -> anyhow::Result<()> {
    println!("\n# activations/s, cold: snapshot and 10 events each");
    const N: u64 = 20_000;
    let database = server.create_database("activation", None).await?;
    let first = start(database.clone(), Options::default(), 2).await?;
    let codec =
        proxie::persistence::codec::SnapshotCodec::of::<Counter>().map_err(anyhow::Error::msg)?;
    let snapshot = codec.encode(&counter::State { total: 5, ..Default::default() });
    let snapshot = snapshot.map_err(anyhow::Error::msg)?;
    sqlx::query("insert into snapshots select 'counter', 'a' || n, 5, 0, $1 from generate_series(1, $2::bigint) n").bind(&snapshot).bind(N as i64).execute(&first.pool).await?;
    sqlx::query(
        "insert into journal select 'counter', 'a' || n, s, 2, 0, '{\"Added\": 1}', 'bench', null, now()
         from generate_series(1, $1::bigint) n, generate_series(1, 15) s",
    )
    .bind(N as i64)
    .execute(&first.pool)
    .await?;
    sqlx::query("analyze").execute(&first.pool).await?;
    first.stop().await;
    let mut rates = Vec::new();
    for _ in 0..runs() {
        let core = start(database.clone(), Options::default(), 2).await?;
        let started = Instant::now();
        let asks = (1..=N).map(|n| {
            core.entities
                .of::<Counter>(format!("a{n}"))
                .ask(Command::Get, CommandMeta::runtime().timeout(Duration::from_secs(60)))
        });
        let totals = futures_util::future::join_all(asks).await;
        rates.push(N as f64 / started.elapsed().as_secs_f64());
        for total in totals {
            anyhow::ensure!(matches!(total, Ok(Ok(counter::Reply::Total(15)))), "{total:?}");
        }
        core.stop().await;
    }
    println!("{:.0}/s ({}), {N} entities (at least 5000)", median(rates.clone()), spread(&rates));
    Ok(())
}

/// What idle live bookings cost, beside bare actors with the same message and state sizes' worth of nothing.
async fn memory(server: &Embedded) -> anyhow::Result<()> {
    println!("\n# memory of an idle live entity (a booking with its state)");
    let database = server.create_database("memory", None).await?;
    let n: u64 = std::env::var("BENCH_LIVE").ok().and_then(|n| n.parse().ok()).unwrap_or(400_000);
    // Bare actors first: what the allocator keeps afterwards counts against us, not for us.
    let bare = 100_000_u64;
    let before = resident_bytes();
    let mut actors = Vec::with_capacity(bare as usize);
    for _ in 0..bare {
        actors.push(Actor::spawn(None, Bare, ()).await?.0);
    }
    let per_bare = (resident_bytes() - before) as f64 / bare as f64;
    for actor in &actors {
        actor.stop(None);
    }
    drop(actors);
    tokio::time::sleep(Duration::from_secs(3)).await;

    let core = start(
        database,
        Options {
            idle_s: 86_400,
            max_live: 10_000_000,
            memory_limit: u64::MAX,
            ..Default::default()
        },
        2,
    )
    .await?;
    let events: Vec<&str> =
        Booking::GOLDEN.lines().filter(|line| !line.trim().is_empty()).take(2).collect();
    for (seq, line) in events.iter().enumerate() {
        let line: serde_json::Value = serde_json::from_str(line)?;
        sqlx::query(
            "insert into journal select 'booking', 'bkg_' || lpad(n::text, 26, '0'), $1, 1, 0, $2::jsonb, 'bench', null, now() from generate_series(1, $3::bigint) n",
        )
        .bind(seq as i64 + 1)
        .bind(line["event"].to_string())
        .bind(n as i64)
        .execute(&core.pool)
        .await?;
    }
    let fresh = resident_bytes();
    let mut at = 1;
    while at <= n {
        let end = (at + 9_999).min(n);
        let asks = (at..=end).map(|n| {
            core.entities
                .of::<Booking>(format!("bkg_{n:026}"))
                .ask(booking::Command::Get, CommandMeta::runtime().timeout(Duration::from_secs(60)))
        });
        for answer in futures_util::future::join_all(asks).await {
            anyhow::ensure!(matches!(answer, Ok(Ok(booking::Reply::Booking(_)))), "{answer:?}");
        }
        at = end + 1;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let live = core.registry.live() as u64;
    let rss = resident_bytes();
    let per_live = rss.saturating_sub(fresh) as f64 / live as f64;
    println!(
        "bare ractor actor, same features: {per_bare:.0} B; live booking: {per_live:.0} B = {:.2} × (at most 1.3)",
        per_live / per_bare
    );
    println!(
        "{live} live in this process: resident {:.2} GiB in all, {:.2} GiB before them (at most 5)",
        rss as f64 / (1_u64 << 30) as f64,
        fresh as f64 / (1_u64 << 30) as f64
    );
    core.stop().await;
    Ok(())
}

struct Bare;

enum Never {}

impl ractor::Message for Never {}

impl Actor for Bare {
    type Msg = Never;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Never>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}
