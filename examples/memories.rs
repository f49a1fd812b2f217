//! What recalling costs and finds: `./dev memories`. 100,000 memories on the embedded store, of 90 people with 1,000 each and
//! one with 10,000; what is found is held against comparing all vectors in the plain.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, ensure};
use proxie::ai::{ModelRouter, Options, Purse, words};
use proxie::app::node::Node;
use proxie::config::Config;
use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use proxie::persistence::views::Views;
use proxie::systems::agents::embedding::House;
use proxie::systems::agents::memories::{Memories, RecallQuestion};
use proxie::systems::agents::settings::MemorySettings;
use proxie::systems::agents::views::{self, AddedMemory, MemoryRow, Nearest, NewMemory};
use serde_json::{Value, json};

const PEOPLE: usize = 90;
const EACH: usize = 1_000;
const BIG: usize = 10_000;
const QUESTIONS: usize = 400;
const K: usize = 10;
/// Vectors are stored with halves of the digits: what differs by less is as near.
const AS_NEAR: f32 = 5e-4;

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }
}

/// A memory's id, its vector in the plain, and its words.
type Known<'a> = (String, Vec<f32>, &'a str);

/// A made-up language whose words are as unequally frequent as those of real ones.
struct Language(Vec<String>);

impl Language {
    fn new(random: &mut Random) -> Self {
        const PARTS: [&str; 20] = [
            "ba", "ke", "lo", "mi", "tu", "ran", "sel", "vor", "dim", "gap", "chi", "pre", "sta",
            "nou", "wil", "fre", "zon", "hal", "jec", "qui",
        ];
        let word = |_| (0..1 + random.below(4)).map(|_| PARTS[random.below(20)]).collect();
        Self((0..6_000).map(word).collect())
    }

    fn word(&self, random: &mut Random) -> &str {
        // Frequent ones first: the place is the product of two draws.
        let place = random.below(self.0.len()) * random.below(self.0.len()) / self.0.len();
        &self.0[place]
    }

    fn sentence(&self, random: &mut Random) -> String {
        let words: Vec<&str> = (0..6 + random.below(10)).map(|_| self.word(random)).collect();
        words.join(" ")
    }
}

fn at(times: &mut [f64], part: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[((times.len() - 1) as f64 * part) as usize] * 1e3
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo")?;
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("?");
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!("machine: {} × {cpu}, load {}", std::thread::available_parallelism()?, load.trim());
    let folder = std::env::temp_dir().join(format!("proxie-memories-{}", std::process::id()));
    let mut config = Config::default();
    config.node.data_dir = folder.clone();
    config.gateway.listen = "127.0.0.1:0".into();
    config.gateway.requests_per_minute = 1_000_000;
    config.persistence.shared_buffers = "512MB".into();
    config.systems.set(MemorySettings { max: BIG as i64, ..MemorySettings::default() });
    let node = Node::start(&config).await?;
    let measured = measure(&node).await;
    node.stop().await;
    let _ = std::fs::remove_dir_all(folder);
    measured
}

async fn measure(node: &Node) -> anyhow::Result<()> {
    let views = Views::new(node.core.pool.clone()).opened_by(node.core.runtime.vault.clone());
    let router = ModelRouter::new(&Options::default()).map_err(anyhow::Error::msg)?;
    let exact_below = MemorySettings::default().exact_below;
    let memories = Memories { views: &views, router: &router, exact_below };
    let embedder = router.embedder();
    let chosen = views::choose(&views, &embedder.identity, embedder.dimensions).await?;
    let purse: Arc<dyn Purse> = Arc::new(House);

    let mut random = Random(7);
    let language = Language::new(&mut random);
    let mut all: Vec<(Arc<str>, String)> = Vec::new();
    for n in 0..PEOPLE {
        let owner: Arc<str> = format!("person-{n}").into();
        all.extend((0..EACH).map(|_| (owner.clone(), language.sentence(&mut random))));
    }
    all.extend((0..BIG).map(|_| (Arc::from("big"), language.sentence(&mut random))));
    // As they come, and not one owner's after the other.
    for last in (1..all.len()).rev() {
        let other = random.below(last + 1);
        all.swap(last, other);
    }
    let (begin, next) = (Instant::now(), AtomicUsize::new(0));
    let write = async || {
        loop {
            let n = next.fetch_add(1, Ordering::SeqCst);
            let Some((owner, text)) = all.get(n) else { return anyhow::Ok(()) };
            let id = format!("mem_{n}");
            let made = memories.embed(owner, embedder, &[text], &purse).await;
            let vector = made.map_err(|e| anyhow::anyhow!("{e}"))?.remove(0);
            let sealed = memories.seal(owner, &id, text).await;
            let (words, key) = sealed.map_err(|e| anyhow::anyhow!("{e}"))?;
            let row = MemoryRow {
                id,
                owner_id: owner.to_string(),
                agent: String::new(),
                words,
                digest: vec![0; 32],
                embedder: 0,
                created_at: Clock::System.now(),
            };
            let vector = Some((embedder.identity.as_str(), vector.as_slice()));
            let new = NewMemory { row: &row, key, bytes: text.len(), vector, limit: BIG as i64 };
            ensure!(views::add(&views, &new).await? == AddedMemory::Yes, "a memory was not added");
        }
    };
    futures_util::future::try_join_all((0..8).map(|_| write())).await?;
    let took = begin.elapsed().as_secs_f64();
    println!(
        "{} memories of {} people written, with their vectors of {} dimensions, 8 at a time: {:.0}/s",
        all.len(),
        PEOPLE + 1,
        embedder.dimensions,
        all.len() as f64 / took
    );

    let mut of_owner: HashMap<&str, Vec<Known<'_>>> = HashMap::new();
    for (n, (owner, text)) in all.iter().enumerate() {
        let entry = (format!("mem_{n}"), words::vector(text), text.as_str());
        of_owner.entry(owner).or_default().push(entry);
    }
    for (name, is_exact, is_big) in [
        ("1,000 of theirs, each compared (as by default)", true, false),
        ("1,000 of theirs, by the index", false, false),
        ("10,000 of theirs, each compared", true, true),
        ("10,000 of theirs, by the index (as by default)", false, true),
    ] {
        let (mut times, mut right, mut leaks) = (Vec::new(), 0, 0);
        for n in 0..QUESTIONS {
            let owner: Arc<str> = match is_big {
                true => "big".into(),
                false => format!("person-{}", n % PEOPLE).into(),
            };
            let theirs = &of_owner[&*owner];
            let text = theirs[random.below(theirs.len())].2;
            let some: Vec<&str> = text.split(' ').step_by(2).collect();
            let asked = format!("{} {}", some.join(" "), language.word(&mut random));
            let plain = words::vector(&asked);
            let near = |vector: &[f32]| vector.iter().zip(&plain).map(|(a, b)| a * b).sum::<f32>();
            let known: HashMap<&str, f32> =
                theirs.iter().map(|(id, vector, _)| (id.as_str(), near(vector))).collect();
            let mut best: Vec<f32> = known.values().copied().collect();
            best.sort_by(|a, b| b.total_cmp(a));
            let started = Instant::now();
            let made = memories.embed(&owner, embedder, &[&asked], &purse).await;
            let vector = made.map_err(|e| anyhow::anyhow!("{e}"))?.remove(0);
            let question = Nearest {
                owner: &owner,
                agent: None,
                embedder: &chosen,
                vector: &vector,
                limit: K,
            };
            let found = views::nearest(&views, &question, is_exact).await?;
            times.push(started.elapsed().as_secs_f64());
            leaks += found.iter().filter(|(row, _)| row.owner_id != *owner).count();
            let is_right = |row: &MemoryRow| {
                known.get(row.id.as_str()).is_some_and(|near| *near >= best[K - 1] - AS_NEAR)
            };
            right += found.iter().filter(|(row, _)| is_right(row)).count();
        }
        println!(
            "{name}: recall@{K} {:.3} of exact, p50 {:.2} ms, p95 {:.2} ms, {leaks} leaks in {QUESTIONS} questions",
            right as f64 / (QUESTIONS * K) as f64,
            at(&mut times, 0.5),
            at(&mut times, 0.95)
        );
    }

    // The whole of it, from a client's question to its answer, the words compared too.
    let client = reqwest::Client::builder().no_proxy().build()?;
    for is_big in [false, true] {
        let (mut times, mut leaks, mut found_it) = (Vec::new(), 0, 0);
        for n in 0..QUESTIONS {
            let owner = if is_big { "big".to_owned() } else { format!("person-{}", n % PEOPLE) };
            let theirs = &of_owner[owner.as_str()];
            let (id, _, text) = &theirs[random.below(theirs.len())];
            let some: Vec<&str> = text.split(' ').step_by(2).collect();
            let token = node.gateway().auth.mint(&owner, Role::Consumer, Clock::System.now(), 600);
            let started = Instant::now();
            let answer = client
                .post(format!("http://{}/v1/memories/recall", node.address))
                .bearer_auth(token)
                .header("content-type", "application/json")
                .body(json!({"about": some.join(" "), "limit": K}).to_string());
            let answer: Value = serde_json::from_str(&answer.send().await?.text().await?)?;
            times.push(started.elapsed().as_secs_f64());
            let items = answer["items"].as_array().with_context(|| answer.to_string())?;
            ensure!(items.len() == K, "{answer}");
            let id_of = |item: &Value| item["memory"]["id"].as_str().unwrap_or_default().to_owned();
            leaks += items
                .iter()
                .filter(|item| !theirs.iter().any(|(id, ..)| *id == id_of(item)))
                .count();
            found_it += usize::from(items.iter().any(|item| id_of(item) == *id));
        }
        println!(
            "over HTTP, {} of theirs: p50 {:.2} ms, p95 {:.2} ms, {leaks} leaks; the memory meant was among the {K} in {:.1} %",
            if is_big { "10,000" } else { "1,000" },
            at(&mut times, 0.5),
            at(&mut times, 0.95),
            100.0 * found_it as f64 / QUESTIONS as f64
        );
    }
    let question = RecallQuestion { owner: "nobody", agent: None, text: "anything", limit: K };
    let none = memories.recall(&question, || purse.clone()).await;
    ensure!(none.is_ok_and(|found| found.memories.is_empty()), "who has nothing finds nothing");
    Ok(())
}
