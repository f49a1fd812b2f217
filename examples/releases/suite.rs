//! The rounds, as the example and the tests run them.

#[path = "nodes.rs"]
mod nodes;
#[path = "people.rs"]
mod people;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use tokio::sync::watch;

use nodes::Cluster;
use people::{FILM, Load, Person, Tally, hairdresser};

const PEOPLE: usize = 6;
/// Both nodes of a step under load, once the cluster has settled.
const TOGETHER: Duration = Duration::from_secs(1);
/// What a start, an end, a call with its repetitions, or what a call leads to may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// `releases`: the older and the newer binary.
pub async fn run(
    releases: &[&Path; 2],
    folder: &Path,
    database: &str,
    rounds: u32,
) -> anyhow::Result<()> {
    let (mut cluster, rotation) = Cluster::new(folder, releases[1], database).await?;
    for n in 0..2 {
        cluster.start(n, releases[0])?;
    }
    cluster.settled().await?;
    let load = Arc::new(Load { rotation, tally: Tally::default() });
    let (stop, stopped) = watch::channel(false);
    let salon = Person::new(&cluster, releases[0], &load, "pat", "provider")?;
    salon.http("POST", "/v1/providers", Some(&hairdresser())).await?;
    let operator = Person::new(&cluster, releases[0], &load, "ops", "operator")?;
    let ways = json!({"availability": [{"platform": "netflix", "platform_content_id": "1", "access": "free"}]});
    operator.http("PUT", &format!("/v1/content/{FILM}/availability"), Some(&ways)).await?;
    let people: Vec<_> = (0..PEOPLE)
        .map(|n| {
            let name = format!("person-{n}");
            let person = Person::new(&cluster, releases[0], &load, &name, "consumer")?;
            Ok(tokio::spawn(person.live(n, stopped.clone())))
        })
        .collect::<anyhow::Result<_>>()?;
    let began = Instant::now();
    for round in 1..=rounds {
        for release in [releases[1], releases[0]] {
            for n in 0..2 {
                cluster.stop(n).await?;
                cluster.start(n, release)?;
                cluster.settled().await?;
                tokio::time::sleep(TOGETHER).await;
            }
        }
        let Tally { calls, repeated, failed } = &load.tally;
        println!(
            "round {round}: {} calls, {} of them sent again, {} failed, {:.0} s",
            calls.load(Ordering::Relaxed),
            repeated.load(Ordering::Relaxed),
            failed.lock().expect("never poisoned").len(),
            began.elapsed().as_secs_f64()
        );
    }
    stop.send_replace(true);
    let mut lost = 0;
    for person in people {
        let person = person.await?;
        lost += person.lost().await?;
    }
    let found = cluster.found().await?;
    let failed = std::mem::take(&mut *load.tally.failed.lock().expect("never poisoned"));
    for (what, times) in failed.iter().fold(HashMap::<_, u32>::new(), |mut times, what| {
        *times.entry(what).or_default() += 1;
        times
    }) {
        println!("{times} × {what}");
    }
    println!(
        "{rounds} rounds in {:.0} s: {} calls, {} of them sent again, {} failed; {lost} messages lost or doubled; {found}",
        began.elapsed().as_secs_f64(),
        load.tally.calls.load(Ordering::Relaxed),
        load.tally.repeated.load(Ordering::Relaxed),
        failed.len(),
    );
    for n in 0..2 {
        cluster.stop(n).await?;
    }
    ensure!(
        failed.is_empty() && lost == 0 && found.is_nothing(),
        "the releases do not go together"
    );
    Ok(())
}
