//! What the cluster reaches: how long a death, a freeze, a cut and a drain are felt.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use proxie::kernel::ids::slot_of;
use rustix::process::Signal;
use sqlx::Row;
use tokio::sync::watch;

use super::load::{Load, Tally, insist};
use super::node::{Client, Op, Outcome};
use super::world::{Clients, World};

/// Until no entity owes another one anything.
pub async fn delivered(world: &World) -> anyhow::Result<()> {
    let pool = world.store.pool().await?;
    let started = Instant::now();
    loop {
        let owed: i64 = sqlx::query_scalar("select count(*) from outbox").fetch_one(&pool).await?;
        if owed == 0 {
            pool.close().await;
            return Ok(());
        }
        ensure!(started.elapsed() < Duration::from_secs(60), "{owed} deliveries do not arrive");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn load(world: &World, keys: usize, pause: Duration) -> Arc<Load> {
    Arc::new(Load {
        clients: Clients::new(world),
        tally: Arc::new(Tally::default()),
        clock: Instant::now(),
        sees: None,
        keys,
        spread_one_in: 0,
        pause,
    })
}

/// One command for each entity, so that all of them live.
async fn wake(load: &Arc<Load>, keys: usize) -> anyhow::Result<()> {
    let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let workers: Vec<_> = (0..256)
        .map(|_| {
            let (load, next) = (load.clone(), next.clone());
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= keys {
                        return anyhow::Ok(());
                    }
                    let key = format!("key-{n}");
                    let id = format!("wake-{n}");
                    insist(&load.clients, &load.tally, &key, || Op::Add, Some(&id)).await?;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await??;
    }
    Ok(())
}

/// The keys that a node owns.
async fn owned(world: &World, n: usize, keys: usize) -> anyhow::Result<Vec<String>> {
    let pool = world.store.pool().await?;
    let rows = sqlx::query(
        "select s.slot from slots s join nodes n using (incarnation) where n.name = $1 and n.state = 'active'",
    )
    .bind(format!("node-{n}"))
    .fetch_all(&pool)
    .await?;
    pool.close().await;
    let slots: std::collections::HashSet<i32> = rows.iter().map(|row| row.get(0)).collect();
    let all = (0..keys).map(|n| format!("key-{n}"));
    Ok(all.filter(|key| slots.contains(&i32::from(slot_of("counter", key)))).collect())
}

fn percentile(sorted: &[Duration], p: f64) -> f64 {
    let at = ((sorted.len() as f64 * p) as usize).min(sorted.len() - 1);
    sorted[at].as_secs_f64()
}

/// A node dies, freezes, or is cut off, with `keys` live entities under load: how long until each answers again.
pub async fn failover(folder: &Path, keys: usize) -> anyhow::Result<()> {
    println!(
        "{keys} live entities on 3 nodes, 16 clients; the times of all that were on the victim"
    );
    for (what, p99, max) in [
        ("kill -9", 2.0, 4.0),
        ("SIGSTOP", 6.0, f64::MAX),
        ("cut off", 6.0, f64::MAX),
        ("cut from the store", 6.0, f64::MAX),
    ] {
        let folder = folder.join(what.replace(' ', "-"));
        let mut world = World::new(&folder, 3, what == "cut off").await?;
        world.settled(3, Duration::from_secs(30)).await?;
        let load = load(&world, keys, Duration::from_millis(2));
        wake(&load, keys).await?;
        let (stop, stopped) = watch::channel(false);
        let clients = load.start(16, &stopped);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let victims = owned(&world, 2, keys).await?;
        let direct = Client::connect(world.addresses.borrow()[&2]).await?;
        let began = Instant::now();
        match what {
            "kill -9" => world.kill(2),
            "SIGSTOP" => world.process(2).signal(Signal::STOP),
            "cut off" => [0, 1].iter().for_each(|other| world.cut(2, *other, true)),
            _ => world.cut_store(2, true),
        }
        world.addresses.send_modify(|addresses| {
            addresses.remove(&2);
        });
        let asked: Vec<_> = victims
            .iter()
            .map(|key| {
                let (load, key) = (load.clone(), key.clone());
                tokio::spawn(async move {
                    let id = format!("after-{key}");
                    insist(&load.clients, &load.tally, &key, || Op::Add, Some(&id)).await?;
                    anyhow::Ok(began.elapsed())
                })
            })
            .collect();
        let mut times = Vec::new();
        for asked in asked {
            times.push(asked.await??);
        }
        times.sort_unstable();
        println!(
            "{what:<20} {:>5} entities   p50 {:>5.2} s   p99 {:>5.2} s   max {:>5.2} s   (at most {p99} s{})",
            times.len(),
            percentile(&times, 0.5),
            percentile(&times, 0.99),
            percentile(&times, 1.0),
            if max < f64::MAX { format!(", {max} s") } else { String::new() }
        );
        if what == "SIGSTOP" {
            thaw(&mut world, direct, &victims).await?;
        }
        stop.send_replace(true);
        for client in clients {
            client.await??;
        }
        world.stop().await?;
        let _ = std::fs::remove_dir_all(&folder);
    }
    Ok(())
}

/// Reads and writes wait in the sockets of a frozen node whose entities live elsewhere by now; it wakes up.
async fn thaw(world: &mut World, direct: Client, victims: &[String]) -> anyhow::Result<()> {
    let direct = Arc::new(direct);
    let asked: Vec<_> = victims
        .iter()
        .take(1_000)
        .enumerate()
        .map(|(n, key)| {
            let (direct, key) = (direct.clone(), key.clone());
            tokio::spawn(async move {
                let (op, id) =
                    if n % 2 == 0 { (Op::Get, None) } else { (Op::Add, Some(format!("late-{n}"))) };
                direct.ask(&key, op, id.as_deref(), Duration::from_secs(5)).await
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.process(2).signal(Signal::CONT);
    let (mut reads, mut writes, mut refused) = (0, 0, 0);
    for (n, asked) in asked.into_iter().enumerate() {
        match asked.await? {
            Ok(Outcome::Total(_)) if n % 2 == 0 => reads += 1,
            Ok(Outcome::Total(_)) => writes += 1,
            _ => refused += 1,
        }
    }
    println!(
        "  on SIGCONT: {writes} writes accepted, {reads} reads answered, {refused} refused (0, 0)"
    );
    if reads + writes > 0 {
        bail!("a frozen node answered");
    }
    Ok(())
}

/// A node leaves in order, with `keys` live entities under load.
pub async fn drain(folder: &Path, keys: usize) -> anyhow::Result<()> {
    let mut world = World::new(folder, 3, false).await?;
    world.settled(3, Duration::from_secs(30)).await?;
    let load = load(&world, keys, Duration::ZERO);
    wake(&load, keys).await?;
    println!("{keys} live entities on 3 nodes, 64 clients without a pause");
    let (stop, stopped) = watch::channel(false);
    let clients = load.start(64, &stopped);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let tally = &load.tally;
    let reset = || {
        tally.longest_us.store(0, Ordering::Relaxed);
        (tally.answered.load(Ordering::Relaxed), tally.repeated.load(Ordering::Relaxed))
    };
    let (before, _) = reset();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let longest_before = tally.longest_us.load(Ordering::Relaxed);
    let (calm, repeated_before) = reset();
    let began = Instant::now();
    world.drain(2).await?;
    let took = began.elapsed();
    let answered = tally.answered.load(Ordering::Relaxed) - calm;
    let repeated = tally.repeated.load(Ordering::Relaxed) - repeated_before;
    let longest = tally.longest_us.load(Ordering::Relaxed);
    println!(
        "before: {:.0} commands/s, longest {:.0} ms",
        (calm - before) as f64 / 3.0,
        longest_before as f64 / 1e3
    );
    println!(
        "drain: {:.1} s, {:.0} commands/s, {repeated} calls failed (0), longest pause of an entity {:.0} ms (at most 1000)",
        took.as_secs_f64(),
        answered as f64 / took.as_secs_f64(),
        longest as f64 / 1e3
    );
    stop.send_replace(true);
    for client in clients {
        client.await??;
    }
    world.stop().await
}

/// Asks between two nodes, beside calls over bare ractor_cluster in the same run.
pub async fn remote(folder: &Path) -> anyhow::Result<()> {
    const RUNS: usize = 5;
    let bare = std::env::current_exe()?.with_file_name("transport");
    ensure!(bare.exists(), "build it first: cargo build --release --examples");
    let world = World::new(folder, 2, false).await?;
    world.settled(2, Duration::from_secs(30)).await?;
    let client = Client::connect(world.addresses.borrow()[&0]).await?;
    for in_flight in [512, 1] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for run in 0..=RUNS {
            let output = std::process::Command::new(&bare)
                .args(["drive", "bare", &in_flight.to_string(), "3"])
                .output()?;
            let line = String::from_utf8(output.stdout)?;
            let figures: Vec<f64> =
                line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
            ensure!(figures.len() == 3, "bare ractor_cluster: {line}");
            let op = Op::Drive { in_flight, ms: 3_000 };
            let outcome = client.ask("", op, None, Duration::from_secs(30)).await?;
            let Outcome::Measured { per_s, p50_us, p99_us } = outcome else { bail!("{outcome:?}") };
            // The first one warms up.
            if run > 0 {
                theirs.push([figures[0], figures[1], figures[2]]);
                ours.push([per_s, p50_us, p99_us]);
            }
        }
        let median = |runs: &[[f64; 3]], at: usize| {
            let mut all: Vec<f64> = runs.iter().map(|run| run[at]).collect();
            all.sort_by(f64::total_cmp);
            (all[all.len() / 2], all[0], all[all.len() - 1])
        };
        println!(
            "{in_flight} in flight, 100 bytes, medians of {RUNS} interleaved runs (least to most)"
        );
        for (name, runs) in [("ractor_cluster, bare", &theirs), ("entities", &ours)] {
            let [rate, p50, p99] = [0, 1, 2].map(|at| median(runs, at));
            println!(
                "  {name:<22} {:>8.0}/s ({:.0} to {:.0})   p50 {:>6.0} µs   p99 {:>6.0} µs",
                rate.0, rate.1, rate.2, p50.0, p99.0
            );
        }
        let ratio = median(&ours, 0).0 / median(&theirs, 0).0;
        println!("  {ratio:.2} × (at least {})", if in_flight == 1 { "1/1.3" } else { "2" });
    }
    world.stop().await
}

/// Six nodes with nothing to do.
pub async fn idle(folder: &Path) -> anyhow::Result<()> {
    let mut world = World::new(folder, 6, false).await?;
    world.settled(6, Duration::from_secs(30)).await?;
    // PostgreSQL counts what a backend has done ten seconds late.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let pool = world.store.pool().await?;
    let writes = async || -> anyhow::Result<i64> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(sqlx::query_scalar("select (tup_inserted + tup_updated + tup_deleted)::bigint from pg_stat_database where datname = current_database()")
            .fetch_one(&pool)
            .await?)
    };
    let ids: Vec<u32> = (0..6).map(|n| world.process(n).id()).collect();
    let (before, cpu_before) = (writes().await?, ids.iter().map(|id| cpu(*id)).collect::<Vec<_>>());
    let window = Duration::from_secs(20);
    let began = Instant::now();
    tokio::time::sleep(window).await;
    let cpu_after: Vec<Duration> = ids.iter().map(|id| cpu(*id)).collect();
    let took = began.elapsed().as_secs_f64();
    let after = writes().await?;
    let shares: Vec<String> = cpu_before
        .iter()
        .zip(&cpu_after)
        .map(|(before, after)| format!("{:.2} %", (*after - *before).as_secs_f64() / took * 100.0))
        .collect();
    println!(
        "6 nodes, 4,096 slots, idle for {took:.0} s: {} of a core (at most 2 %)",
        shares.join(", ")
    );
    println!(
        "rows written: {:.1}/s, {:.1}/s a node",
        (after - before) as f64 / took,
        (after - before) as f64 / took / 6.0
    );
    pool.close().await;
    world.stop().await
}

fn cpu(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
    let ticks: u64 = [11, 12].iter().filter_map(|n| fields.get(*n)?.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second())
}
