//! Real nodes in processes of their own, on a real PostgreSQL, under load and under faults; an oracle in another
//! process judges.
//!
//! `cargo run --release --example chaos -- faults [N] [SEED]` · `… failover` · `… drain` · `… idle` · `… remote`

#[path = "../../tests/it/counter.rs"]
#[allow(dead_code)]
mod counter;
mod suite;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        if let Some(done) = suite::role().await {
            return done;
        }
        let args: Vec<String> = std::env::args().skip(1).collect();
        let number = |n: usize, or: u64| args.get(n).and_then(|n| n.parse().ok()).unwrap_or(or);
        let folder = std::env::temp_dir().join(format!("proxie-chaos-{}", std::process::id()));
        let done = match args.first().map(String::as_str) {
            Some("faults") => {
                suite::faults(&folder, number(1, 500), number(2, rand::random())).await
            }
            Some("failover") => suite::figures::failover(&folder, number(1, 5_000) as usize).await,
            Some("drain") => suite::figures::drain(&folder, number(1, 50_000) as usize).await,
            Some("idle") => suite::figures::idle(&folder).await,
            Some("remote") => suite::figures::remote(&folder).await,
            _ => anyhow::bail!(
                "usage: chaos faults [N] [SEED] | failover [N] | drain [N] | idle | remote"
            ),
        };
        match &done {
            Ok(()) => drop(std::fs::remove_dir_all(&folder)),
            Err(_) => eprintln!("the logs are in {}", folder.display()),
        }
        done
    })
}
