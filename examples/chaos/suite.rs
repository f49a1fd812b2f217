//! The suite as the example and the tests run it.

#[path = "faults.rs"]
mod fault;
#[path = "figures.rs"]
pub mod figures;
#[path = "load.rs"]
mod load;
#[path = "node.rs"]
mod node;
#[path = "recorder.rs"]
mod recorder;
#[path = "world.rs"]
pub mod world;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use tokio::sync::watch;

use load::{Load, Tally};
use recorder::Recorder;
use world::{Clients, ROLE, World};

/// `Some`: this process is a part of the world, and that is how it ended.
pub async fn role() -> Option<anyhow::Result<()>> {
    let role = std::env::var(ROLE).ok()?;
    Some(match role.split_once(' ') {
        Some(("node", start)) => match serde_json::from_str(start) {
            Ok(start) => node::run(start).await,
            Err(error) => Err(error.into()),
        },
        _ => recorder::run().await,
    })
}

/// So many faults under load; then everything heals, and the oracle judges.
pub async fn faults(folder: &Path, faults: u64, seed: u64) -> anyhow::Result<()> {
    println!("seed {seed}");
    let started = Instant::now();
    let mut world = World::new(folder, 3, true).await?;
    world.settled(3, Duration::from_secs(30)).await?;
    let mut recorder = Recorder::connect(world.recorder).await?;
    let (stop, stopped) = watch::channel(false);
    let load = Arc::new(Load {
        clients: Clients::new(&world),
        tally: Arc::new(Tally::default()),
        clock: started,
        sees: Some(recorder.sees()),
        keys: 200,
        spread_one_in: 20,
        pause: Duration::from_millis(20),
    });
    let clients = load.start(24, &stopped);
    let mut random = fault::Faults::new(seed);
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    for n in 1..=faults {
        let fault = random.one(&mut world).await?;
        *counts.entry(format!("{fault:?}")).or_default() += 1;
        random.pause().await;
        if n.is_multiple_of(10) || n == faults {
            // Everything comes back by itself, however the faults overlapped.
            world.settled(world.running().len(), Duration::from_secs(60)).await?;
            println!(
                "{n:>5} faults, {:>7} commands answered, {:>6} attempts repeated, {:>5.0} s",
                load.tally.answered.load(Ordering::Relaxed),
                load.tally.repeated.load(Ordering::Relaxed),
                started.elapsed().as_secs_f64()
            );
            ensure!(!clients.iter().any(|client| client.is_finished()), "a client gave up");
        }
    }
    stop.send_replace(true);
    for client in clients {
        client.await??;
    }
    figures::delivered(&world).await?;
    // What nodes have reported is on its way.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let judgement = recorder.judge(&world.store.url()).await?;
    println!("{counts:?}");
    println!(
        "{faults} faults: {} commands acknowledged, {} reads, {} sends to other entities, {} activations, {} commits reported; {} violations",
        judgement.acknowledged,
        judgement.reads,
        judgement.spreads,
        judgement.activations,
        judgement.commits,
        judgement.violations.len()
    );
    if !judgement.violations.is_empty() {
        judgement.violations.iter().take(20).for_each(|violation| println!("  {violation}"));
        bail!("the oracle found violations; seed {seed}");
    }
    world.stop().await
}
