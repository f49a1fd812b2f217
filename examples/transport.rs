//! What carries messages between nodes: ractor_cluster's own calls, and the transport over each of its two pipes.
//! Two processes on loopback, fresh ones for each figure, the three interleaved.
//!
//! `cargo run --release --example transport [-- --quick | -- stopped SECONDS]`

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use dashmap::DashMap;
use proxie::cluster::transport::{
    Credit, Envelope, Inbox, Options, Peer, RemoteAnswer, RemoteAsk, StartedTransport, Transport,
    TransportLimits, bind, clustered, framed,
};
use proxie::kernel::entity::Caller;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::{NodeServer, NodeServerMessage, RactorClusterMessage};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::oneshot;
use tokio::time::sleep;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PIPES: [&str; 3] = ["bare", "clustered", "framed"];
const WHAT: [&str; 3] = ["1", "512", "stopped"];
const PAYLOAD: usize = 100;
const COOKIE: &str = "measure";
const MIB: f64 = 1024.0 * 1024.0;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["answer", pipe, address] => answer(pipe, address).await,
        ["drive", pipe, what, seconds] => drive(pipe, what, seconds.parse()?).await,
        [] => compare(&WHAT, 5, 3, 5),
        ["--quick"] => compare(&WHAT, 1, 1, 1),
        ["stopped", seconds] => compare(&["stopped"], 1, 0, seconds.parse()?),
        _ => bail!("usage: transport [--quick | stopped SECONDS]"),
    }
}

fn compare(what: &[&str], rounds: usize, seconds: u64, stopped: u64) -> anyhow::Result<()> {
    print_machine()?;
    let mut figures: BTreeMap<(&str, &str), Vec<Vec<f64>>> = BTreeMap::new();
    for round in 0..rounds {
        for &what in what {
            for n in 0..PIPES.len() {
                // Another one begins each round.
                let pipe = PIPES[(n + round) % PIPES.len()];
                let seconds = if what == "stopped" { stopped } else { seconds };
                let mut driver = Process::start(&["drive", pipe, what, &seconds.to_string()])?;
                let line = driver.line().with_context(|| format!("{pipe} {what}"))?;
                let found = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
                figures.entry((what, pipe)).or_default().push(found);
            }
        }
    }
    for &what in what.iter().filter(|what| **what != "stopped") {
        println!("\n{what} in flight, {PAYLOAD} bytes: median of {rounds} (least to most)");
        for pipe in PIPES {
            let runs = &figures[&(what, pipe)];
            let [rate, p50, p99] = [0, 1, 2].map(|at| spread(runs, at));
            println!("{:<28} {rate} req/s   p50 {p50} µs   p99 {p99} µs", title(pipe));
        }
    }
    println!("\nCasts of 1,000 bytes to a stopped process for {stopped} s, up to 50,000/s offered");
    for pipe in PIPES {
        let runs = &figures[&("stopped", pipe)];
        let (growth, taken) = (spread(runs, 0), spread(runs, 1));
        println!("{:<28} grew by {growth} MiB   {taken} MiB were taken", title(pipe));
    }
    Ok(())
}

fn title(pipe: &str) -> &str {
    match pipe {
        "bare" => "ractor_cluster, bare",
        "clustered" => "transport, ractor_cluster",
        _ => "transport, framed TCP",
    }
}

fn spread(runs: &[Vec<f64>], at: usize) -> String {
    let mut values: Vec<f64> = runs.iter().map(|run| run[at]).collect();
    values.sort_by(f64::total_cmp);
    let show = |v: f64| if v < 100.0 { format!("{v:.1}") } else { format!("{v:.0}") };
    let (least, most) = (values[0], values[values.len() - 1]);
    format!("{} ({}–{})", show(values[values.len() / 2]), show(least), show(most))
}

fn print_machine() -> anyhow::Result<()> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|l| l.strip_prefix("model name\t: ")).unwrap_or("unknown");
    let cores = std::thread::available_parallelism()?;
    let system = rustix::system::uname();
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!("{cores} cores of {model}, Linux {}", system.release().to_string_lossy());
    println!("load before: {}", load.split(' ').take(3).collect::<Vec<_>>().join(" "));
    let lock = include_str!("../Cargo.lock");
    let version = |name: &str| {
        let from = lock.split(&format!("name = \"{name}\"\nversion = \"")).nth(1);
        from.and_then(|rest| rest.split('"').next()).unwrap_or("?")
    };
    let names = ["ractor", "ractor_cluster", "tokio"].map(|n| format!("{n} {}", version(n)));
    println!("{}", names.join(", "));
    Ok(())
}

/// This program again, in another role. Killed with its handle.
struct Process {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Process {
    fn start(args: &[&str]) -> anyhow::Result<Self> {
        let me = std::env::current_exe()?;
        let mut child = Command::new(me).args(args).stdout(Stdio::piped()).spawn()?;
        let out = BufReader::new(child.stdout.take().context("piped")?);
        Ok(Self { child, out })
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.out.read_line(&mut line)?;
        ensure!(!line.is_empty(), "it ended early");
        Ok(line.trim().to_owned())
    }

    fn stop(&self) -> anyhow::Result<()> {
        let pid = Pid::from_raw(self.child.id().try_into()?).context("a pid")?;
        Ok(kill_process(pid, Signal::STOP)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process that asks.
async fn drive(pipe: &str, what: &str, seconds: u64) -> anyhow::Result<()> {
    let (client, peer) = Client::start(pipe).await?;
    let window = Duration::from_secs(seconds);
    if what == "stopped" {
        let (growth, taken) = flood(&client, &peer, window).await?;
        println!("{growth:.2} {taken:.2}");
        return Ok(());
    }
    let in_flight: usize = what.parse()?;
    ask_for(&client, in_flight, Duration::from_millis(300)).await;
    let (rate, mut waits) = ask_for(&client, in_flight, window).await;
    ensure!(waits.len() > 100, "too few answers");
    waits.sort_unstable();
    let at = |share: f64| waits[(waits.len() as f64 * share) as usize] as f64 / 1_000.0;
    println!("{rate:.1} {:.1} {:.1}", at(0.5), at(0.99));
    Ok(())
}

/// Requests a second, and each one's time in nanoseconds.
async fn ask_for(client: &Client, in_flight: usize, window: Duration) -> (f64, Vec<u64>) {
    let began = Instant::now();
    let askers = (0..in_flight).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            let mut waits = Vec::new();
            while began.elapsed() < window {
                let asked = Instant::now();
                client.ask().await;
                waits.push(asked.elapsed().as_nanos() as u64);
            }
            waits
        })
    });
    let askers: Vec<_> = askers.collect();
    let mut waits = Vec::new();
    for asker in askers {
        waits.extend(asker.await.expect("it asks"));
    }
    (waits.len() as f64 / began.elapsed().as_secs_f64(), waits)
}

/// MiB of growth, and MiB that the pipe took.
async fn flood(client: &Client, peer: &Process, window: Duration) -> anyhow::Result<(f64, f64)> {
    ask_for(client, 8, Duration::from_millis(200)).await;
    peer.stop()?;
    let before = resident()?;
    let mut taken = 0;
    let began = Instant::now();
    while began.elapsed() < window {
        for _ in 0..50 {
            taken += client.cast(1_000);
        }
        sleep(Duration::from_millis(1)).await;
    }
    Ok(((resident()? - before) / MIB, taken as f64 / MIB))
}

fn resident() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(kib.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
}

#[derive(Clone)]
enum Client {
    Bare(ActorRef<Echo>),
    Transport(Arc<Asker>),
}

struct Asker {
    transport: Arc<dyn Transport>,
    waiting: Arc<DashMap<u64, oneshot::Sender<RemoteAnswer>>>,
    correlation: AtomicU64,
}

impl Client {
    async fn start(pipe: &str) -> anyhow::Result<(Self, Process)> {
        if pipe == "bare" {
            let mut peer = Process::start(&["answer", pipe, ""])?;
            let server = bare_node("asker").await?;
            ractor_cluster::client_connect(&server, peer.line()?).await?;
            let group = String::from("echo");
            loop {
                if let Some(found) = ractor::pg::get_members(&group).pop() {
                    return Ok((Self::Bare(found.into()), peer));
                }
                sleep(Duration::from_millis(5)).await;
            }
        }
        let waiting = Arc::new(DashMap::new());
        let started = open(pipe, 1, Arc::new(Answers(waiting.clone()))).await?;
        let mut peer = Process::start(&["answer", pipe, &started.address])?;
        started.transport.link(Peer {
            incarnation: 2,
            name: "node-2".into(),
            address: peer.line()?,
        });
        let transport = started.transport;
        while !transport.is_up(2) {
            sleep(Duration::from_millis(5)).await;
        }
        let correlation = AtomicU64::new(0);
        Ok((Self::Transport(Arc::new(Asker { transport, waiting, correlation })), peer))
    }

    async fn ask(&self) {
        match self {
            Self::Bare(echo) => {
                let body = "x".repeat(PAYLOAD);
                let answered = echo.call(|port| Echo::Ask(body, port), None).await;
                assert!(answered.is_ok_and(|a| a.is_success()));
            }
            Self::Transport(asker) => {
                let correlation = asker.correlation.fetch_add(1, Ordering::Relaxed);
                let (answer, answered) = oneshot::channel();
                asker.waiting.insert(correlation, answer);
                let ask = RemoteAsk {
                    kind: "booking".into(),
                    key: "01J00000".into(),
                    command: "x".repeat(PAYLOAD),
                    caller: Caller::Runtime,
                    command_id: None,
                    remaining_ms: 1_000,
                    epoch: 1,
                    traceparent: None,
                };
                asker.transport.send(2, Envelope::Ask { correlation, ask }).expect("there is room");
                answered.await.expect("an answer");
            }
        }
    }

    /// Bytes taken.
    fn cast(&self, size: usize) -> usize {
        let taken = match self {
            Self::Bare(echo) => echo.cast(Echo::Tell("x".repeat(size))).is_ok(),
            Self::Transport(asker) => {
                asker.transport.send(2, Envelope::Control(vec![b'x'; size])).is_ok()
            }
        };
        if taken { size } else { 0 }
    }
}

/// The process that answers.
async fn answer(pipe: &str, address: &str) -> anyhow::Result<()> {
    if pipe == "bare" {
        let (echo, _) = Actor::spawn(None, Echoing, ()).await?;
        ractor::pg::join("echo".into(), vec![echo.get_cell()]);
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let node = NodeServer::new(port, COOKIE.into(), "b".into(), "b".into(), None, None)
            .with_listen_addr([127, 0, 0, 1].into());
        let (_server, _) = Actor::spawn(None, node, ()).await?;
        println!("127.0.0.1:{port}");
        return std::future::pending().await;
    }
    let echo = Arc::new(Echoes::default());
    let started = open(pipe, 2, echo.clone()).await?;
    let _ = echo.0.set(started.transport.clone());
    started.transport.link(Peer { incarnation: 1, name: "node-1".into(), address: address.into() });
    println!("{}", started.address);
    std::future::pending().await
}

async fn open(
    pipe: &str,
    incarnation: i64,
    inbox: Arc<dyn Inbox>,
) -> std::io::Result<StartedTransport> {
    let options = Options {
        incarnation,
        name: format!("node-{incarnation}"),
        listener: bind("127.0.0.1:0").await?,
        cookie: COOKIE.into(),
        tls: None,
        limits: TransportLimits::default(),
    };
    match pipe {
        "clustered" => clustered::start(options, inbox).await,
        _ => framed::start(options, inbox).await,
    }
}

struct Answers(Arc<DashMap<u64, oneshot::Sender<RemoteAnswer>>>);

impl Inbox for Answers {
    fn receive(&self, _: i64, envelope: Envelope, _: Credit) {
        if let Envelope::Answer { correlation, answer } = envelope
            && let Some((_, waiting)) = self.0.remove(&correlation)
        {
            let _ = waiting.send(answer);
        }
    }
}

#[derive(Default)]
struct Echoes(OnceLock<Arc<dyn Transport>>);

impl Inbox for Echoes {
    fn receive(&self, from: i64, envelope: Envelope, _: Credit) {
        if let Envelope::Ask { correlation, ask } = envelope
            && let Some(transport) = self.0.get()
        {
            let answer = RemoteAnswer::Outcome(ask.command);
            let _ = transport.send(from, Envelope::Answer { correlation, answer });
        }
    }
}

#[derive(RactorClusterMessage)]
enum Echo {
    #[rpc]
    Ask(String, RpcReplyPort<String>),
    Tell(String),
}

struct Echoing;

impl Actor for Echoing {
    type Msg = Echo;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Echo>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Echo>,
        message: Echo,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        if let Echo::Ask(body, port) = message {
            let _ = port.send(body);
        }
        Ok(())
    }
}

async fn bare_node(name: &str) -> anyhow::Result<ActorRef<NodeServerMessage>> {
    let node = NodeServer::new(0, COOKIE.into(), name.into(), name.into(), None, None)
        .with_listen_addr([127, 0, 0, 1].into());
    Ok(Actor::spawn(None, node, ()).await?.0)
}
