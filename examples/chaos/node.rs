//! A node as `proxie serve` makes it, without edges: clients ask its counters over a line protocol. It tells the
//! recorder of every activation and every commit.

use std::collections::HashMap;
use std::io::Write;
use std::net::{SocketAddr, TcpStream as Socket};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::counter::{Command, Counter, Reply};
use anyhow::Context;
use proxie::actors::{Options, Witness, Witnessed};
use proxie::app::core::{self, Core, CoreSettings, Fate};
use proxie::app::member::{self, Pipe};
use proxie::cluster::slots::SlotLocation;
use proxie::cluster::{CommandMeta, transport};
use proxie::kernel::clock::Clock;
use proxie::kernel::error::AskError;
use proxie::kernel::ids::slot_of;
use proxie::persistence::membership::{NodeInfo, host_id};
use proxie::persistence::{store, vault, writer};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// How a node is started: JSON in its environment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    pub name: String,
    pub database: String,
    pub listen: String,
    pub advertise: String,
    pub version: String,
    pub recorder: Option<SocketAddr>,
    pub snapshot_every: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Op {
    Add,
    Get,
    Echo(String),
    /// Adds to another counter, through the outbox.
    Spread(String),
    /// Asks counters of other nodes for an echo of 100 bytes, so many at once, for so long.
    Drive {
        in_flight: usize,
        ms: u64,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    pub n: u64,
    pub key: String,
    pub op: Op,
    pub id: Option<String>,
    pub timeout_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    Total(i64),
    Done,
    Measured {
        per_s: f64,
        p50_us: f64,
        p99_us: f64,
    },
    /// Ask again.
    Failed(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Response {
    pub n: u64,
    pub outcome: Outcome,
}

/// A line to the recorder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Report {
    Loaded { incarnation: i64, key: String, epoch: i64, head: i64 },
    Committed { incarnation: i64, key: String, epoch: i64, head: i64 },
}

struct Reporter(mpsc::Sender<Report>);

impl Reporter {
    fn new(recorder: SocketAddr) -> Self {
        let (lines, reports) = mpsc::channel::<Report>();
        std::thread::spawn(move || {
            let Ok(mut socket) = Socket::connect(recorder) else { return };
            for report in reports {
                let mut line = serde_json::to_vec(&report).expect("plain data");
                line.push(b'\n');
                if socket.write_all(&line).is_err() {
                    return;
                }
            }
        });
        Self(lines)
    }
}

impl Witness for Reporter {
    fn loaded(&self, activation: Witnessed<'_>, head: i64) {
        let Witnessed { incarnation, key, epoch, .. } = activation;
        let _ = self.0.send(Report::Loaded { incarnation, key: key.into(), epoch, head });
    }

    fn committed(&self, activation: Witnessed<'_>, head: i64) {
        let Witnessed { incarnation, key, epoch, .. } = activation;
        let _ = self.0.send(Report::Committed { incarnation, key: key.into(), epoch, head });
    }
}

/// Until it is stopped: by SIGTERM in order, or as it comes. Comes back after an eviction, as `proxie serve` does.
pub async fn run(start: Start) -> anyhow::Result<()> {
    // Logs of a node are its standard error.
    proxie::telemetry::init_logs(&proxie::config::Log {
        level: "warn".into(),
        format: Some(proxie::config::LogFormat::Pretty),
    });
    let options = store::Options { max_connections: 16, allow_fsync_off: true };
    let pool = store::connect(start.database.parse()?, &options).await?;
    let settings = CoreSettings {
        systems: proxie::systems::ALL,
        node: NodeInfo {
            name: start.name.clone(),
            address: String::new(),
            version: start.version.clone(),
            host: host_id(),
            pid: std::process::id() as i32,
            process_start: 0,
            lease_s: 4.0,
            lanes: 2,
            seals: true,
        },
        data_lock_held: false,
        read_ttl: Duration::from_secs(1),
        clock: Clock::System,
        clock_limits: Default::default(),
        writer: writer::Options { lanes: 2, ..Default::default() },
        entities: Options { snapshot_every: start.snapshot_every, ..Options::default() },
        runners: Vec::new(),
        vault: vault::Options::derived_from("of tests"),
        dedupe_s: 86_400,
        history_s: 86_400,
        witness: start.recorder.map(|at| Arc::new(Reporter::new(at)) as Arc<dyn Witness>),
        waits: Arc::new(|_| {}),
        cluster: Some(member::Options {
            listener: transport::bind(&start.listen).await?,
            tls: None,
            advertise: start.advertise.clone(),
            cookie: "chaos".into(),
            weight: 1,
            pipe: Pipe::Framed,
            limits: transport::TransportLimits::default(),
        }),
    };
    let mut prepared = core::prepare(pool, settings).await?;
    prepared.registry.register::<Counter>().await?;
    let core = prepared.run().await?;
    let mut standing = core.standing();
    standing.wait_for(|standing| standing.active && standing.settled).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("ready {}", listener.local_addr()?);
    let core = Arc::new(core);
    let accepting = tokio::spawn({
        let core = core.clone();
        async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(core.clone(), socket));
            }
        }
    });
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut fate = core.fate();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = fate.wait_for(|fate| *fate != Fate::Living) => {
            use std::os::unix::process::CommandExt;
            return Err(std::process::Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).exec().into());
        }
    }
    core.hand_over(Duration::from_secs(30)).await;
    println!("left");
    // Whoever asks here is still answered for a moment, by others.
    tokio::time::sleep(Duration::from_millis(500)).await;
    accepting.abort();
    std::process::exit(0);
}

async fn serve(core: Arc<Core>, socket: TcpStream) {
    let _ = socket.set_nodelay(true);
    let (read, mut write) = socket.into_split();
    let (answers, mut waiting) = tokio::sync::mpsc::channel::<Response>(4_096);
    tokio::spawn(async move {
        let mut out = Vec::new();
        while let Some(response) = waiting.recv().await {
            out.clear();
            let mut next = Some(response);
            while let Some(response) = next {
                serde_json::to_writer(&mut out, &response).expect("plain data");
                out.push(b'\n');
                next = waiting.try_recv().ok();
            }
            if write.write_all(&out).await.is_err() {
                return;
            }
        }
    });
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(request) = serde_json::from_str::<Request>(&line) else { return };
        let (core, answers) = (core.clone(), answers.clone());
        tokio::spawn(async move {
            let n = request.n;
            let outcome = ask(&core, request).await;
            let _ = answers.send(Response { n, outcome }).await;
        });
    }
}

async fn ask(core: &Core, request: Request) -> Outcome {
    let mut meta = CommandMeta::runtime().timeout(Duration::from_millis(request.timeout_ms));
    if let Some(id) = request.id {
        meta = meta.id(id);
    }
    let command = match request.op {
        Op::Add => Command::Add(1),
        Op::Get => Command::Get,
        Op::Echo(text) => Command::Echo(text),
        Op::Spread(to) => Command::Spread { to: vec![to], n: 1 },
        Op::Drive { in_flight, ms } => {
            return drive(core, in_flight, Duration::from_millis(ms)).await;
        }
    };
    match core.entities.of::<Counter>(&request.key).ask(command, meta).await {
        Ok(Ok(Reply::Total(total))) => Outcome::Total(total),
        Ok(Ok(_)) => Outcome::Done,
        Ok(Err(rejection)) => Outcome::Failed(rejection.to_string()),
        Err(error) => Outcome::Failed(match error {
            AskError::Unavailable { reason, .. } => format!("unavailable: {reason}"),
            other => format!("{other:?}"),
        }),
    }
}

async fn drive(core: &Core, in_flight: usize, window: Duration) -> Outcome {
    let slots = &core.runtime.slots;
    let is_elsewhere =
        |key: &String| matches!(slots.locate(slot_of("counter", key)), SlotLocation::There { .. });
    let keys: Arc<Vec<String>> = Arc::new(
        (0..4_000).map(|n| format!("echo-{n}")).filter(is_elsewhere).take(1_000).collect(),
    );
    if keys.is_empty() {
        return Outcome::Failed("everything is here".into());
    }
    let began = Instant::now();
    let askers: Vec<_> = (0..in_flight)
        .map(|asker| {
            let (entities, keys) = (core.entities.clone(), keys.clone());
            tokio::spawn(async move {
                let mut waits = Vec::new();
                let mut n = asker * 7;
                while began.elapsed() < window {
                    n += 1;
                    let key = &keys[n % keys.len()];
                    let asked = Instant::now();
                    let echo = Command::Echo("x".repeat(100));
                    let answer =
                        entities.of::<Counter>(key).ask(echo, CommandMeta::runtime()).await;
                    if !matches!(answer, Ok(Ok(Reply::Echo(_)))) {
                        break;
                    }
                    waits.push(asked.elapsed().as_nanos() as u64);
                }
                waits
            })
        })
        .collect();
    let mut waits = Vec::new();
    for asker in askers {
        waits.extend(asker.await.unwrap_or_default());
    }
    let per_s = waits.len() as f64 / began.elapsed().as_secs_f64();
    waits.sort_unstable();
    let at = |share: f64| waits[(waits.len() as f64 * share) as usize] as f64 / 1e3;
    Outcome::Measured { per_s, p50_us: at(0.5), p99_us: at(0.99) }
}

/// A client's connection to a node. Many requests at once.
pub struct Client {
    requests: tokio::sync::mpsc::Sender<(Request, tokio::sync::oneshot::Sender<Outcome>)>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let (read, mut write) = socket.into_split();
        type Waiting = HashMap<u64, tokio::sync::oneshot::Sender<Outcome>>;
        let (requests, mut queue) =
            tokio::sync::mpsc::channel::<(Request, tokio::sync::oneshot::Sender<Outcome>)>(4_096);
        tokio::spawn(async move {
            let mut waiting = Waiting::new();
            let mut lines = BufReader::new(read).lines();
            let mut next = 0;
            loop {
                tokio::select! {
                    request = queue.recv() => {
                        let Some((mut request, answer)) = request else { return };
                        next += 1;
                        request.n = next;
                        waiting.insert(next, answer);
                        let mut line = serde_json::to_vec(&request).expect("plain data");
                        line.push(b'\n');
                        if write.write_all(&line).await.is_err() {
                            return;
                        }
                    }
                    line = lines.next_line() => {
                        let Ok(Some(line)) = line else { return };
                        let Ok(response) = serde_json::from_str::<Response>(&line) else { return };
                        if let Some(answer) = waiting.remove(&response.n) {
                            let _ = answer.send(response.outcome);
                        }
                    }
                }
            }
        });
        Ok(Self { requests })
    }

    /// `Err`: the connection is gone, or nothing came in time; what became of the command is unknown.
    pub async fn ask(
        &self,
        key: &str,
        op: Op,
        id: Option<&str>,
        timeout: Duration,
    ) -> anyhow::Result<Outcome> {
        let request = Request {
            n: 0,
            key: key.into(),
            op,
            id: id.map(str::to_owned),
            timeout_ms: timeout.as_millis() as u64,
        };
        let (answer, answered) = tokio::sync::oneshot::channel();
        let asked = async {
            self.requests.send((request, answer)).await.ok().context("gone")?;
            answered.await.context("gone")
        };
        tokio::time::timeout(timeout + Duration::from_millis(500), asked).await.context("silent")?
    }
}
