//! What a durable step of an agent costs: `./dev agents`, beside LangGraph with its PostgreSQL checkpointer on the same
//! server in the same run, where `LANGGRAPH` names a Python that has it.
//!
//! A step here is a turn of the model, which is asked over HTTP in another process, or a call of a tool: an event that is
//! committed, and what follows from it dispatched. A step there is a node that does nothing, and once more with every second
//! node asking the same model.

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::routing::post;
use futures_util::future::try_join_all;
use futures_util::stream;
use proxie::ai::Options;
use proxie::ai::options::{ModelOptions, ProviderOptions, WireFormat};
use proxie::app::node::Node;
use proxie::cluster::CommandMeta;
use proxie::cluster::topics::{Published, Subscriber};
use proxie::config::Config;
use proxie::contract::declare::operation;
use proxie::contract::operation::ToolEffect;
use proxie::contract::{Call, Meta, Operation, Outcome, System};
use proxie::kernel::agent::MessagePolicy;
use proxie::kernel::clock::Clock;
use proxie::kernel::entity::{Caller, Role};
use proxie::kernel::secret::Secret;
use proxie::persistence::embedded::{DataLock, Embedded, Options as ServerOptions};
use proxie::systems::agents::definitions::{AgentOptions, AgentSection};
use proxie::systems::agents::domain::run::{self, AgentRun, Reply, RunStatus};
use proxie::systems::agents::settings::AiSection;
use proxie::systems::{agents, app_topics, devices, marketplace};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::ConnectOptions;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};

/// Calls of a tool in one run; each has a turn before it, and a last turn answers.
const CALLS: usize = 20;
const STEPS: usize = 2 * CALLS + 1;
const RUNS: usize = 64;
const ROUNDS: usize = 5;
const INTERRUPTS: usize = 100;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["provider"] => runtime.block_on(provide()),
        [] => runtime.block_on(measure()),
        ["interrupts"] => runtime.block_on(interrupts()),
        _ => bail!("usage: agents [interrupts]"),
    }
}

/// A model that asks for a tool until it has seen so many results.
async fn provide() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("ready {}", listener.local_addr()?);
    let answer = async move |body: Bytes| {
        let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
        let messages = asked["messages"].as_array().cloned().unwrap_or_default();
        let seen = messages.iter().filter(|message| message["role"] == "tool").count();
        let (delta, end) = if seen < CALLS {
            let arguments = json!({"n": seen + 1}).to_string();
            let function = json!({"name": "count", "arguments": arguments});
            let call = json!({"index": 0, "id": "c", "type": "function", "function": function});
            (json!({"tool_calls": [call]}), "tool_calls")
        } else {
            (json!({"content": "done"}), "stop")
        };
        let usage = json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15});
        let said = json!({"choices": [{"index": 0, "delta": delta}]});
        let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": end}]});
        let counted = json!({"choices": [], "usage": usage});
        let text = format!("data: {said}\n\ndata: {end}\n\ndata: {counted}\n\ndata: [DONE]\n\n");
        ([(CONTENT_TYPE, "text/event-stream")], text)
    };
    axum::serve(listener, axum::Router::new().route("/v1/chat/completions", post(answer))).await?;
    Ok(())
}

/// A model that thinks until nobody listens any more, and says when that was.
async fn dreamer() -> anyhow::Result<(String, mpsc::Receiver<Dream>)> {
    let (says, dreams) = mpsc::channel(16);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/v1/", listener.local_addr()?);
    let answer = async move || {
        let _ = says.send(Dream::Began).await;
        let word = json!({"choices": [{"index": 0, "delta": {"content": "and "}}]});
        let word = Bytes::from(format!("data: {word}\n\n"));
        let awake = Awake(says);
        let words = stream::unfold(awake, move |awake| {
            let word = word.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some((Ok::<_, Infallible>(word), awake))
            }
        });
        ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(words))
    };
    let doors = axum::Router::new().route("/v1/chat/completions", post(answer));
    tokio::spawn(async move { axum::serve(listener, doors).await });
    Ok((url, dreams))
}

enum Dream {
    Began,
    Ended(Instant),
}

/// Says when it is dropped, as the connection has been closed.
struct Awake(mpsc::Sender<Dream>);

impl Drop for Awake {
    fn drop(&mut self) {
        let _ = self.0.try_send(Dream::Ended(Instant::now()));
    }
}

/// From the moment a person says something until the connection to the model is closed.
async fn interrupts() -> anyhow::Result<()> {
    say_machine();
    let (server, folder) = server().await?;
    let ours = server.create_database("ours", None).await?.to_url_lossy().to_string();
    let (url, mut dreams) = dreamer().await?;
    let bench = Bench::start(config(ours, url)).await?;
    let run = bench.post("runs", json!({"agent": "bench", "text": "dream"})).await?;
    let say = format!("runs/{}/messages", run["id"].as_str().with_context(|| run.to_string())?);
    ensure!(matches!(dreams.recv().await, Some(Dream::Began)), "it does not think");
    let mut taken = Vec::new();
    for _ in 0..INTERRUPTS {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let said = Instant::now();
        bench.post(&say, json!({"text": "listen"})).await?;
        let (mut began, mut ended) = (false, None);
        while !began || ended.is_none() {
            match dreams.recv().await.context("the model is gone")? {
                Dream::Began => began = true,
                Dream::Ended(at) => ended = Some(at),
            }
        }
        let closed = ended.context("just seen")?.saturating_duration_since(said);
        taken.push(closed.as_secs_f64() * 1e3);
    }
    taken.sort_by(f64::total_cmp);
    let at = |share: usize| taken[(taken.len() - 1) * share / 100];
    println!(
        "{INTERRUPTS} interruptions: the model's connection is closed after {:.1} ms (median), {:.1} ms (p95), {:.1} ms (most)",
        at(50),
        at(95),
        at(100)
    );
    bench.node.stop().await;
    drop(server);
    let _ = std::fs::remove_dir_all(folder);
    Ok(())
}

/// A tool that does nothing, as the nodes that it is measured beside.
struct Count;

#[derive(Deserialize, JsonSchema)]
struct Number {
    n: u32,
}

#[derive(Serialize, JsonSchema)]
struct Counted {
    n: u32,
}

impl Operation for Count {
    const META: Meta =
        Meta::query("count", "Count").get("/v1/count").tool("count", ToolEffect::ReadOnly);
    type Input = Number;
    type Answer = Counted;

    async fn run(_: &Call, Number { n }: Number) -> Outcome<Counted> {
        Ok(Counted { n })
    }
}

const COUNTING: System = System { operations: &[operation::<Count>()], ..System::new("counting") };
const SYSTEMS: &[&System] =
    &[&marketplace::SYSTEM, &devices::SYSTEM, &app_topics::SYSTEM, &agents::SYSTEM, &COUNTING];

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn provider() -> anyhow::Result<(Process, String)> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child = command.arg("provider").stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
    let address = line.trim().strip_prefix("ready ").context("the provider did not start")?;
    Ok((Process(child), format!("http://{address}/v1/")))
}

fn config(database: String, url: String) -> Config {
    let mut config = Config::default();
    config.persistence.database_url = database.into();
    config.vault.key = Secret::new("5e".repeat(32));
    config.gateway.listen = "127.0.0.1:0".into();
    let mut ai = Options { route: "fake".into(), daily_limit: String::new(), ..Options::default() };
    let provider = ProviderOptions {
        wire: WireFormat::OpenAi,
        url,
        key: "k".into(),
        concurrency: 256,
        per_second: 1_000_000,
    };
    ai.providers.insert("fake".into(), provider);
    let model = ModelOptions {
        provider: "fake".into(),
        id: String::new(),
        input: "0".into(),
        cached_input: String::new(),
        cache_writes: String::new(),
        output: "1".into(),
        context: 100_000,
        vision: false,
        image_tokens: None,
        tools: true,
    };
    ai.models.insert("fake".into(), model);
    config.systems.set(AiSection(ai));
    let bench = AgentOptions {
        instructions: Some("Count.".into()),
        tools: Some(vec!["count".into()]),
        max_turns: Some(1_000),
        on_message: Some(MessagePolicy::Interrupt),
        ..AgentOptions::default()
    };
    config.systems.set(AgentSection([("bench".to_owned(), bench)].into()));
    config
}

/// The end of a run, as its topic says it.
#[derive(Default)]
struct Ended(Notify);

impl Subscriber for Ended {
    fn deliver(&self, _: u64, published: &Arc<Published>) {
        if &*published.event == "run:ended" {
            self.0.notify_one();
        }
    }

    fn resync(&self, _: u64) {
        self.0.notify_one();
    }
}

struct Bench {
    node: Node,
    client: reqwest::Client,
    url: String,
    token: String,
}

impl Bench {
    async fn start(config: Config) -> anyhow::Result<Self> {
        let node = Node::start_systems(&config, Clock::System, SYSTEMS).await?;
        let token = node.gateway().auth.mint("alice", Role::Consumer, Clock::System.now(), 86_400);
        let url = format!("http://{}", node.address);
        Ok(Self { node, client: reqwest::Client::new(), url, token })
    }

    async fn post(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        let request = self.client.post(format!("{}/v1/{path}", self.url)).bearer_auth(&self.token);
        let request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        let answer = request.send().await?;
        ensure!(answer.status().is_success(), "{}", answer.text().await?);
        Ok(serde_json::from_str(&answer.text().await?)?)
    }

    async fn run(&self) -> anyhow::Result<()> {
        let run = self.post("runs", json!({"agent": "bench", "text": "count"})).await?;
        let id = run["id"].as_str().with_context(|| run.to_string())?;
        let gateway = self.node.gateway();
        let watched = gateway.services.entities.of::<AgentRun>(id);
        let ended = Arc::new(Ended::default());
        let _heard = gateway.topics.subscribe(&format!("agent_run:{id}"), 0, ended.clone());
        loop {
            let meta = CommandMeta::new(Caller::user("alice", Role::Consumer));
            let Ok(Reply::Shown(shown)) = watched.ask(run::Command::Show, meta).await? else {
                bail!("no run")
            };
            match shown.run.status {
                RunStatus::Answered => {
                    ensure!(shown.run.turns == CALLS as i64 + 1, "{shown:?}");
                    return Ok(());
                }
                RunStatus::Running => ended.0.notified().await,
                _ => bail!("{shown:?}"),
            }
        }
    }

    /// Seconds of one run, and of many at once.
    async fn round(&self) -> anyhow::Result<(f64, f64)> {
        let at = Instant::now();
        self.run().await?;
        let alone = at.elapsed().as_secs_f64();
        let at = Instant::now();
        try_join_all((0..RUNS).map(|_| self.run())).await?;
        Ok((alone, at.elapsed().as_secs_f64()))
    }
}

fn langgraph(python: &str, database: &str, model: Option<&str>) -> anyhow::Result<(f64, f64)> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/peers/langgraph_steps.py");
    let mut command = Command::new(python);
    let output = command
        .args([script, database, &STEPS.to_string(), &RUNS.to_string()])
        .args(model)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let mut numbers = text.split_whitespace().map(str::parse);
    Ok((numbers.next().context("a number")??, numbers.next().context("a number")??))
}

fn median(mut all: Vec<f64>) -> (f64, f64, f64) {
    all.sort_by(f64::total_cmp);
    (all[all.len() / 2], all[0], all[all.len() - 1])
}

fn say(who: &str, rounds: &[(f64, f64)]) -> (f64, f64) {
    let steps = STEPS as f64;
    let (alone, least, most) = median(rounds.iter().map(|round| round.0 / steps * 1e3).collect());
    println!("{who}: one run: {alone:.2} ms a step ({least:.2}-{most:.2})");
    let many = rounds.iter().map(|round| steps * RUNS as f64 / round.1).collect();
    let (many, least, most) = median(many);
    println!("{who}: {RUNS} runs: {many:.0} steps/s ({least:.0}-{most:.0})");
    (alone, many)
}

fn say_machine() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("?");
    let cores = std::thread::available_parallelism().map_or(0, |n| n.get());
    let load = read("/proc/loadavg");
    println!(
        "machine: {cores} × {}, load before: {}",
        cpu.trim_start_matches(['\t', ' ', ':']),
        load.trim()
    );
}

async fn server() -> anyhow::Result<(Embedded, PathBuf)> {
    let folder: PathBuf =
        std::env::temp_dir().join(format!("proxie-agents-{}", std::process::id()));
    let lock = DataLock::acquire(&folder)?;
    let options = ServerOptions {
        max_connections: 200,
        shared_buffers: "256MB".into(),
        ..ServerOptions::new(&folder)
    };
    Ok((Embedded::start(options, lock).await?, folder))
}

async fn measure() -> anyhow::Result<()> {
    say_machine();
    let (server, folder) = server().await?;
    let ours = server.create_database("ours", None).await?.to_url_lossy().to_string();
    let theirs = server.create_database("theirs", None).await?;
    let socket = theirs.get_socket().context("the embedded server has a socket")?.clone();
    let (user, port) = (theirs.get_username(), theirs.get_port());
    let theirs = format!("host={} port={port} user={user} dbname=theirs", socket.display());
    let (_provider, model) = provider()?;
    let bench = Bench::start(config(ours, model.clone())).await?;
    bench.run().await?;
    let python = std::env::var("LANGGRAPH").ok();
    let (mut our_rounds, mut idle_rounds, mut asking_rounds) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        our_rounds.push(bench.round().await?);
        if let Some(python) = &python {
            idle_rounds.push(langgraph(python, &theirs, None)?);
            asking_rounds.push(langgraph(python, &theirs, Some(&model))?);
        }
    }
    let (alone, many) = say("proxie", &our_rounds);
    if python.is_some() {
        let all = [("nodes that do nothing", idle_rounds), ("the same model", asking_rounds)];
        for (nodes, rounds) in all {
            let (theirs_alone, theirs_many) = say(&format!("LangGraph, sync, {nodes}"), &rounds);
            let (alone, many) = (theirs_alone / alone, many / theirs_many);
            println!("one run: {alone:.1} ×; {RUNS} runs: {many:.1} ×");
        }
    }
    bench.node.stop().await;
    drop(server);
    let _ = std::fs::remove_dir_all(folder);
    Ok(())
}
