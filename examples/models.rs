//! What the router of language models costs: `./dev models`, beside calls without it in the same run, and beside the
//! gateways that are installed (Portkey by npm, LiteLLM by pip; `PORTKEY` and `LITELLM` name their programs).
//!
//! The provider is a process of its own, which answers after a fixed time.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use axum::body::Bytes;
use axum::extract::Path as UrlPath;
use axum::http::header::CONTENT_TYPE;
use axum::routing::{get, post};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use proxie::ai::options::{ModelOptions, ProviderOptions, WireFormat};
use proxie::ai::{Bill, Failure, Keep, ModelAsk, ModelRouter, Options, Purse};
use proxie::kernel::chat::{Cost, Prompt, PromptMessage};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const RATE: u64 = 500;
const SECONDS: u64 = 4;
const ROUNDS: usize = 5;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["provider", ms] => runtime.block_on(provide(Duration::from_millis(ms.parse()?))),
        [] => runtime.block_on(measure()),
        ["cache"] => runtime.block_on(async {
            machine()?;
            cache().await
        }),
        _ => bail!("usage: models [cache]"),
    }
}

/// A provider with OpenAI's wire, streamed or not as it is asked.
async fn provide(after: Duration) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("ready {}", listener.local_addr()?);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let answer = async move |body: Bytes| {
        count.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(after).await;
        let usage = json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15});
        let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
        if asked["stream"] == true {
            let piece = |delta: Value, finish: Value| {
                json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "fake",
                       "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
            };
            let said = piece(json!({"role": "assistant", "content": "hello there"}), Value::Null);
            let end = piece(json!({}), json!("stop"));
            let counted = json!({"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": usage});
            let text =
                format!("data: {said}\n\ndata: {end}\n\ndata: {counted}\n\ndata: [DONE]\n\n");
            return ([(CONTENT_TYPE, "text/event-stream")], text);
        }
        let message = json!({"role": "assistant", "content": "hello there"});
        let choices = json!([{"index": 0, "message": message, "finish_reason": "stop"}]);
        let whole = json!({"id": "c", "object": "chat.completion", "created": 1, "model": "fake", "choices": choices, "usage": usage});
        ([(CONTENT_TYPE, "application/json")], whole.to_string())
    };
    let app = axum::Router::new()
        .route("/v1/chat/completions", post(answer))
        .route("/asked", get(async move || asked.load(Ordering::SeqCst).to_string()))
        .route("/{*any}", post(async |UrlPath(path): UrlPath<String>| path));
    axum::serve(listener, app).await?;
    Ok(())
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn provider(ms: u64) -> anyhow::Result<(Process, String)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["provider", &ms.to_string()]).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
    let address = line.trim().strip_prefix("ready ").context("the provider did not start")?;
    Ok((Process(child), address.to_owned()))
}

/// Nobody pays.
struct Free;

impl Purse for Free {
    fn reserve(&self, _: u32, _: &str, _: Cost) -> BoxFuture<'_, Result<(), Failure>> {
        async { Ok(()) }.boxed()
    }

    fn settle(&self, _: u32, _: Bill) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}

#[derive(Clone)]
enum Way {
    Direct(reqwest::Client, String),
    Routed(Arc<ModelRouter>),
    /// A gateway of somebody else's, by its URL and headers.
    Gateway(reqwest::Client, String, Vec<(&'static str, String)>),
}

fn prompt() -> Prompt {
    let messages = vec![PromptMessage::user("What does a haircut cost in Berlin?")];
    Prompt { messages, max_tokens: 50, ..Prompt::default() }
}

impl Way {
    async fn ask(&self) -> anyhow::Result<()> {
        let body = || json!({"model": "fake", "max_tokens": 50, "messages": [{"role": "user", "content": "What does a haircut cost in Berlin?"}]});
        match self {
            Self::Direct(client, url) => {
                let mut body = body();
                body["stream"] = true.into();
                body["stream_options"] = json!({"include_usage": true});
                let answer = client.post(url).body(body.to_string()).send().await?.text().await?;
                ensure!(answer.contains("[DONE]"), "{answer}");
            }
            Self::Routed(router) => {
                let purse: Arc<dyn Purse> = Arc::new(Free);
                let prompt = prompt();
                let answer = router.complete(&ModelAsk::new(&prompt), &purse, None).await;
                let answer = answer.map_err(|failed| anyhow::anyhow!("{failed:?}"))?;
                ensure!(answer.text == "hello there", "{answer:?}");
            }
            Self::Gateway(client, url, headers) => {
                let mut request = client.post(url).header(CONTENT_TYPE, "application/json");
                for (name, value) in headers {
                    request = request.header(*name, value);
                }
                let answer = request.body(body().to_string()).send().await?.text().await?;
                ensure!(answer.contains("hello there"), "{answer}");
            }
        }
        Ok(())
    }
}

fn routed(address: &str, concurrency: usize) -> anyhow::Result<Way> {
    Ok(Way::Routed(router(address, concurrency)?))
}

fn router(address: &str, concurrency: usize) -> anyhow::Result<Arc<ModelRouter>> {
    let mut options = Options { route: "fake".into(), ..Options::default() };
    let provider = ProviderOptions {
        wire: WireFormat::OpenAi,
        url: format!("http://{address}/v1"),
        key: "none".into(),
        concurrency,
        per_second: 1_000_000,
    };
    options.providers.insert("fake".into(), provider);
    let model = ModelOptions {
        provider: "fake".into(),
        id: String::new(),
        input: "1".into(),
        cached_input: String::new(),
        cache_writes: String::new(),
        output: "1".into(),
        context: 100_000,
        vision: false,
        image_tokens: None,
        tools: true,
    };
    options.models.insert("fake".into(), model);
    Ok(Arc::new(ModelRouter::new(&options).map_err(anyhow::Error::msg)?))
}

fn direct(address: &str) -> anyhow::Result<Way> {
    let client = reqwest::Client::builder().tcp_nodelay(true).no_proxy().build()?;
    Ok(Way::Direct(client, format!("http://{address}/v1/chat/completions")))
}

/// Requests that begin at a fixed rate, whatever becomes of those before. Their times, in seconds.
async fn open_loop(way: &Way) -> anyhow::Result<Vec<f64>> {
    let begin = Instant::now();
    let mut asking = Vec::new();
    for n in 0..RATE * SECONDS {
        tokio::time::sleep_until((begin + Duration::from_micros(n * 1_000_000 / RATE)).into())
            .await;
        let way = way.clone();
        asking.push(tokio::spawn(async move {
            let started = Instant::now();
            way.ask().await.map(|()| started.elapsed().as_secs_f64())
        }));
    }
    let mut times = Vec::new();
    for asked in asking {
        times.push(asked.await??);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn at(times: &[f64], part: f64) -> f64 {
    times[((times.len() - 1) as f64 * part) as usize] * 1e3
}

/// Of a process, in seconds; of this one without an id.
fn cpu(process: Option<u32>) -> anyhow::Result<f64> {
    let of = process.map_or("self".into(), |id| id.to_string());
    let stat = std::fs::read_to_string(format!("/proc/{of}/stat"))?;
    let after = stat.rsplit(") ").next().context("stat")?;
    let fields: Vec<&str> = after.split(' ').collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

fn rss_mib() -> anyhow::Result<f64> {
    let pages: f64 =
        std::fs::read_to_string("/proc/self/statm")?.split(' ').nth(1).context("statm")?.parse()?;
    Ok(pages * 4096.0 / 1_048_576.0)
}

/// So many at the same time, until so many have been made. CPU of the process, in milliseconds a request.
async fn closed_loop(
    way: &Way,
    process: Option<u32>,
    at_once: usize,
    requests: usize,
) -> anyhow::Result<(f64, f64)> {
    let left = Arc::new(AtomicUsize::new(requests));
    let (before, begin) = (cpu(process)?, Instant::now());
    let mut workers = Vec::new();
    for _ in 0..at_once {
        let (way, left) = (way.clone(), left.clone());
        workers.push(tokio::spawn(async move {
            while left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok()
            {
                way.ask().await?;
            }
            anyhow::Ok(())
        }));
    }
    for worker in workers {
        worker.await??;
    }
    let spent = cpu(process)? - before;
    Ok((spent * 1e3 / requests as f64, requests as f64 / begin.elapsed().as_secs_f64()))
}

fn median(mut of: Vec<f64>) -> (f64, f64, f64) {
    of.sort_by(f64::total_cmp);
    (of[of.len() / 2], of[0], of[of.len() - 1])
}

fn machine() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let name = std::fs::read_to_string("/proc/cpuinfo")?;
    let name = name.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("?");
    let cores = std::thread::available_parallelism()?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!("machine: {cores} × {name}, load {}", load.trim());
    Ok(())
}

/// Answers that are given again: what a hit takes, and what a trace of questions with repeats sends to the provider.
async fn cache() -> anyhow::Result<()> {
    const HITS: usize = 20_000;
    const QUESTIONS: usize = 5_000;
    let (_process, address) = provider(20)?;
    let router = router(&address, 4_096)?;
    let ask = async |router: &ModelRouter, n: usize| {
        let words = "and what does it cost in the evening, at my place, with a beard? ".repeat(8);
        let messages = vec![PromptMessage::user(format!("Question {n}: {words}"))];
        let prompt =
            Prompt { messages, max_tokens: 50, temperature: Some(0.0), ..Prompt::default() };
        let purse: Arc<dyn Purse> = Arc::new(Free);
        let keep =
            Some(Keep { person: "clara", any_temperature: false, shared: None, similar: None });
        let asked = ModelAsk { keep, ..ModelAsk::new(&prompt) };
        let started = Instant::now();
        let answer = router.complete(&asked, &purse, None).await;
        let answer = answer.map_err(|failed| anyhow::anyhow!("{failed:?}"))?;
        anyhow::Ok((started.elapsed().as_secs_f64(), answer.cached.is_some()))
    };
    ask(&router, 0).await?;
    let mut times = Vec::new();
    for _ in 0..HITS {
        let (took, is_hit) = ask(&router, 0).await?;
        ensure!(is_hit, "a miss");
        times.push(took);
    }
    times.sort_by(f64::total_cmp);
    println!(
        "answer from the cache of the process, {HITS} hits: p50 {:.3} ms, p99 {:.3} ms",
        at(&times, 0.5),
        at(&times, 0.99)
    );

    // Each question is new, or with a chance of 60 % one of those before; 32 are under way at a time.
    let mut state = 0x5eed_u64;
    let mut random = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize) % below
    };
    let mut trace = vec![1];
    while trace.len() < QUESTIONS {
        let is_repeat = random(100) < 60;
        let next = if is_repeat { trace[random(trace.len())] } else { trace.len() + 1 };
        trace.push(next);
    }
    let distinct = trace.iter().collect::<std::collections::HashSet<_>>().len();
    let asked = async || {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let text = client.get(format!("http://{address}/asked")).send().await?.text().await?;
        Ok::<usize, anyhow::Error>(text.parse()?)
    };
    let before = asked().await?;
    let (trace, next) = (Arc::new(trace), Arc::new(AtomicUsize::new(0)));
    let mut workers = Vec::new();
    for _ in 0..32 {
        let (router, trace, next) = (router.clone(), trace.clone(), next.clone());
        workers.push(async move {
            while let Some(n) = trace.get(next.fetch_add(1, Ordering::SeqCst)) {
                ask(&router, *n).await?;
            }
            anyhow::Ok(())
        });
    }
    futures_util::future::try_join_all(workers).await?;
    let reached = asked().await? - before;
    println!(
        "trace of {QUESTIONS} questions of which {:.1} % are repeats, 32 at a time: {reached} reached the provider, {:.1} %",
        100.0 - 100.0 * distinct as f64 / QUESTIONS as f64,
        100.0 * reached as f64 / QUESTIONS as f64
    );
    Ok(())
}

async fn measure() -> anyhow::Result<()> {
    machine()?;
    cache().await?;

    let (_process, address) = provider(20)?;
    let (plain, router) = (direct(&address)?, routed(&address, 4_096)?);
    for way in [&plain, &router] {
        closed_loop(way, None, 16, 500).await?;
    }
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    println!("open loop, {RATE}/s, the provider answers after 20 ms, {ROUNDS} rounds alternating:");
    for round in 0..ROUNDS {
        let (without, with) = (open_loop(&plain).await?, open_loop(&router).await?);
        let added = |part| at(&with, part) - at(&without, part);
        println!(
            "  {round}: without p50 {:.2} p99 {:.2} ms; with p50 {:.2} p99 {:.2} ms",
            at(&without, 0.5),
            at(&without, 0.99),
            at(&with, 0.5),
            at(&with, 0.99)
        );
        p50.push(added(0.5));
        p99.push(added(0.99));
    }
    let ((m50, a50, b50), (m99, a99, b99)) = (median(p50), median(p99));
    println!(
        "added p50 {m50:.2} ms ({a50:.2} to {b50:.2}), added p99 {m99:.2} ms ({a99:.2} to {b99:.2})"
    );

    println!(
        "CPU a request, 16 at a time, {ROUNDS} rounds alternating (the client's own included):"
    );
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(closed_loop(&plain, None, 16, 2_000).await?.0);
        with.push(closed_loop(&router, None, 16, 2_000).await?.0);
    }
    let ((without, ..), (with, low, high)) = (median(without), median(with));
    println!("  a bare call {without:.3} ms, routed {with:.3} ms ({low:.3} to {high:.3})");
    peers(&address).await?;

    let (_slow, address) = provider(500)?;
    let router = routed(&address, 4_096)?;
    closed_loop(&router, None, 8, 16).await?;
    let before = rss_mib()?;
    let (_, rate) = closed_loop(&router, None, 256, 2_560).await?;
    println!(
        "256 in flight, the provider takes 500 ms: 2560 answered, 0 errors, {rate:.0}/s, memory {before:.1} -> {:.1} MiB",
        rss_mib()?
    );
    Ok(())
}

/// Gateways that run already: `PORTKEY=http://…=PID`, `LITELLM=http://…=PID`.
async fn peers(address: &str) -> anyhow::Result<()> {
    for name in ["PORTKEY", "LITELLM"] {
        let Ok(given) = std::env::var(name) else { continue };
        let (url, process) = given.rsplit_once('=').context("URL=PID")?;
        let headers = match name {
            "PORTKEY" => vec![
                ("x-portkey-provider", "openai".to_owned()),
                ("x-portkey-custom-host", format!("http://{address}/v1")),
                ("authorization", "Bearer none".to_owned()),
            ],
            _ => vec![("authorization", "Bearer sk-1234-long-enough-for-it".to_owned())],
        };
        let client = reqwest::Client::builder().no_proxy().build()?;
        let way = Way::Gateway(client, format!("{url}/v1/chat/completions"), headers);
        closed_loop(&way, None, 4, 100).await.with_context(|| name.to_owned())?;
        let mut each = Vec::new();
        for _ in 0..ROUNDS {
            each.push(closed_loop(&way, Some(process.parse()?), 16, 500).await?.0);
        }
        let (median, low, high) = median(each);
        println!("  {name} {median:.3} ms of its process ({low:.3} to {high:.3})");
    }
    Ok(())
}
