//! What the suite does things to: a PostgreSQL, nodes in processes of their own, and the cables between them.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use proxie::persistence::embedded::{DataLock, Embedded, Options};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{ConnectOptions, Row};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;

use super::node::{Client, Start};

/// How this executable is told to be a part of the world: by the environment, so that a test binary can be one, too.
pub const ROLE: &str = "PROXIE_CHAOS";
/// Arguments with which this executable looks at its role.
pub static ARGUMENTS: std::sync::OnceLock<&'static [&'static str]> = std::sync::OnceLock::new();

pub struct Store {
    folder: PathBuf,
    server: Option<Embedded>,
    pub database: PgConnectOptions,
}

impl Store {
    pub async fn start(folder: &Path) -> anyhow::Result<Self> {
        let server = Self::serve(folder).await?;
        let database = server.create_database("chaos", None).await?;
        Ok(Self { folder: folder.into(), server: Some(server), database })
    }

    async fn serve(folder: &Path) -> anyhow::Result<Embedded> {
        let lock = DataLock::acquire(folder)?;
        let options = Options {
            max_connections: 300,
            shared_buffers: "256MB".into(),
            ..Options::new(folder)
        };
        Ok(Embedded::start(options, lock).await?)
    }

    /// Off and on again.
    pub async fn restart(&mut self, pause: Duration) -> anyhow::Result<()> {
        if let Some(server) = self.server.take() {
            server.stop().await?;
        }
        tokio::time::sleep(pause).await;
        self.server = Some(Self::serve(&self.folder).await?);
        Ok(())
    }

    pub async fn stop(mut self) -> anyhow::Result<()> {
        match self.server.take() {
            Some(server) => Ok(server.stop().await?),
            None => Ok(()),
        }
    }

    pub fn url(&self) -> String {
        self.database.to_url_lossy().to_string()
    }

    pub async fn pool(&self) -> anyhow::Result<PgPool> {
        Ok(PgPool::connect_with(self.database.clone()).await?)
    }
}

/// A process that prints `ready ADDRESS`, again when it has begun anew.
pub struct Process {
    child: Child,
}

impl Process {
    /// Returns when it is ready for the first time.
    pub fn start(
        role: &str,
        log: &Path,
        on_ready: impl Fn(SocketAddr) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(ARGUMENTS.get().copied().unwrap_or_default())
            .env(ROLE, role)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (first, ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let address = line.split_once("ready ").and_then(|(_, at)| at.trim().parse().ok());
                if let Some(address) = address {
                    on_ready(address);
                    let _ = first.send(());
                }
            }
        });
        if ready.recv_timeout(Duration::from_secs(60)).is_err() {
            let _ = child.kill();
            let _ = child.wait();
            bail!("a process did not start: see its log");
        }
        Ok(Self { child })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("it has one");
        let _ = kill_process(pid, signal);
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub async fn ended(&mut self, limit: Duration) -> bool {
        let started = Instant::now();
        while self.is_running() {
            if started.elapsed() > limit {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connections through it go to one place, as long as those who make them may.
#[derive(Clone)]
pub struct Cable {
    pub address: SocketAddr,
    /// Who gets nothing through, by the address it comes from; and a count of changes.
    cut: watch::Sender<HashSet<IpAddr>>,
}

#[derive(Clone)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Cable {
    async fn to(place: Place) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let cut = watch::Sender::new(HashSet::new());
        let ends = cut.clone();
        tokio::spawn(async move {
            while let Ok((client, from)) = listener.accept().await {
                let (place, mut cut) = (place.clone(), ends.subscribe());
                tokio::spawn(async move {
                    let _ = client.set_nodelay(true);
                    let (read, write) = client.into_split();
                    // A cut cable is silent: nothing is refused, nothing arrives.
                    let is_cut = |cut: &mut watch::Receiver<HashSet<IpAddr>>| {
                        cut.borrow_and_update().contains(&from.ip())
                    };
                    while is_cut(&mut cut) {
                        if cut.changed().await.is_err() {
                            return;
                        }
                    }
                    let piped = match place {
                        Place::Tcp(place) => match tokio::net::TcpStream::connect(place).await {
                            Ok(server) => {
                                let _ = server.set_nodelay(true);
                                let (there, back) = server.into_split();
                                Box::pin(pipe(read, write, there, back, cut, from.ip()))
                                    as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
                            }
                            Err(_) => return,
                        },
                        Place::Unix(place) => match UnixStream::connect(place).await {
                            Ok(server) => {
                                let (there, back) = server.into_split();
                                Box::pin(pipe(read, write, there, back, cut, from.ip()))
                            }
                            Err(_) => return,
                        },
                    };
                    piped.await;
                });
            }
        });
        Ok(Self { address, cut })
    }

    pub fn cut(&self, from: IpAddr, is_cut: bool) {
        self.cut.send_modify(|cut| {
            if is_cut {
                cut.insert(from)
            } else {
                cut.remove(&from)
            };
        });
    }
}

/// Both ways until either end is gone. While it is cut, bytes stay where they are.
async fn pipe(
    read: impl AsyncRead + Unpin,
    write: impl AsyncWrite + Unpin,
    there: impl AsyncRead + Unpin,
    back: impl AsyncWrite + Unpin,
    cut: watch::Receiver<HashSet<IpAddr>>,
    from: IpAddr,
) {
    async fn copy(
        mut read: impl AsyncRead + Unpin,
        mut write: impl AsyncWrite + Unpin,
        mut cut: watch::Receiver<HashSet<IpAddr>>,
        from: IpAddr,
    ) {
        let mut buffer = vec![0; 65_536];
        while let Ok(n @ 1..) = read.read(&mut buffer).await {
            while cut.borrow_and_update().contains(&from) {
                if cut.changed().await.is_err() {
                    return;
                }
            }
            if write.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
    }
    tokio::select! {
        () = copy(read, back, cut.clone(), from) => {}
        () = copy(there, write, cut, from) => {}
    }
}

/// Where clients find the nodes.
pub type Addresses = watch::Sender<HashMap<usize, SocketAddr>>;

/// A node by its number, whatever process it is at the moment.
pub struct Node {
    pub start: Start,
    /// What it dials from.
    pub ip: IpAddr,
    /// To where it listens.
    pub peers: Cable,
    /// From it to the store.
    pub store: Cable,
    pub process: Option<Process>,
    log: PathBuf,
}

impl Node {
    pub fn launch(&mut self, addresses: &Addresses, n: usize) -> anyhow::Result<()> {
        let role = format!("node {}", serde_json::to_string(&self.start)?);
        let addresses = addresses.clone();
        let ready = move |address| {
            addresses.send_modify(|addresses| {
                addresses.insert(n, address);
            });
        };
        let process = Process::start(&role, &self.log, ready)
            .with_context(|| format!("{}: {}", self.start.name, self.log.display()))?;
        self.process = Some(process);
        Ok(())
    }
}

pub struct World {
    pub store: Store,
    _recorder: Process,
    pub recorder: SocketAddr,
    pub nodes: Vec<Node>,
    pub addresses: Addresses,
    /// Nodes reach each other through cables. Who dials a cable is never refused, as by a machine that is off.
    cables: bool,
    folder: PathBuf,
}

impl World {
    pub async fn new(folder: &Path, nodes: usize, cables: bool) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let store = Store::start(&folder.join("store")).await?;
        let (listens, recorder) = std::sync::mpsc::channel();
        let process = Process::start("recorder", &folder.join("recorder.log"), move |address| {
            let _ = listens.send(address);
        })?;
        let mut world = Self {
            store,
            _recorder: process,
            recorder: recorder.recv()?,
            nodes: Vec::new(),
            addresses: watch::Sender::default(),
            cables,
            folder: folder.into(),
        };
        for n in 0..nodes {
            world.add().await.with_context(|| format!("node {n}"))?;
        }
        Ok(world)
    }

    /// One node more.
    pub async fn add(&mut self) -> anyhow::Result<usize> {
        let n = self.nodes.len();
        let ip = IpAddr::V4(Ipv4Addr::new(127, 0, 1, n as u8 + 1));
        let listen = std::net::TcpListener::bind((ip, 0))?.local_addr()?;
        let peers = Cable::to(Place::Tcp(listen)).await?;
        let socket = self
            .store
            .database
            .get_socket()
            .context("a socket")?
            .join(format!(".s.PGSQL.{}", self.store.database.get_port()));
        let store = Cable::to(Place::Unix(socket)).await?;
        let database = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(store.address.port())
            .username(self.store.database.get_username())
            .database(self.store.database.get_database().context("a database")?);
        let start = Start {
            name: format!("node-{n}"),
            database: database.to_url_lossy().to_string(),
            listen: listen.to_string(),
            advertise: if self.cables { peers.address } else { listen }.to_string(),
            version: "1.0.0".into(),
            recorder: Some(self.recorder),
            snapshot_every: 20,
        };
        let log = self.folder.join(format!("node-{n}.log"));
        let mut node = Node { start, ip, peers, store, process: None, log };
        node.launch(&self.addresses, n)?;
        self.nodes.push(node);
        Ok(n)
    }

    pub fn launch(&mut self, n: usize) -> anyhow::Result<()> {
        let addresses = self.addresses.clone();
        self.nodes[n].launch(&addresses, n)
    }

    pub fn process(&mut self, n: usize) -> &mut Process {
        self.nodes[n].process.as_mut().expect("it runs")
    }

    /// SIGKILL.
    pub fn kill(&mut self, n: usize) {
        self.nodes[n].process = None;
        self.addresses.send_modify(|addresses| {
            addresses.remove(&n);
        });
    }

    /// SIGTERM, and what follows.
    pub async fn drain(&mut self, n: usize) -> anyhow::Result<()> {
        self.addresses.send_modify(|addresses| {
            addresses.remove(&n);
        });
        let process = self.process(n);
        process.signal(Signal::TERM);
        if !process.ended(Duration::from_secs(60)).await {
            bail!("node {n} does not end");
        }
        self.nodes[n].process = None;
        Ok(())
    }

    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| self.nodes[*n].process.is_some()).collect()
    }

    /// Links from one node to another, and back.
    pub fn cut(&self, a: usize, b: usize, is_cut: bool) {
        self.nodes[b].peers.cut(self.nodes[a].ip, is_cut);
        self.nodes[a].peers.cut(self.nodes[b].ip, is_cut);
    }

    pub fn cut_store(&self, n: usize, is_cut: bool) {
        self.nodes[n].store.cut(IpAddr::V4(Ipv4Addr::LOCALHOST), is_cut);
    }

    /// Until every slot has a living owner and nobody joins or leaves.
    pub async fn settled(&self, nodes: usize, limit: Duration) -> anyhow::Result<()> {
        let pool = self.store.pool().await?;
        let started = Instant::now();
        loop {
            let row = sqlx::query(
                "select (select count(*) from nodes where state = 'active'), (select count(*) from nodes where state in ('joining', 'draining')),
                        (select count(*) from slots s join nodes n using (incarnation) where n.state = 'active'),
                        (select max(c) - min(c) from (select count(s.slot) c from nodes n left join slots s using (incarnation) where n.state = 'active' group by n.incarnation) x)",
            )
            .fetch_one(&pool)
            .await?;
            let active: i64 = row.get(0);
            let moving: i64 = row.get(1);
            let owned: i64 = row.get(2);
            let spread: Option<i64> = row.get(3);
            if active == nodes as i64 && moving == 0 && owned == 4_096 && spread.unwrap_or(0) <= 1 {
                pool.close().await;
                return Ok(());
            }
            if started.elapsed() > limit {
                bail!(
                    "the cluster did not settle: {active} of {nodes} nodes active, {moving} on their way, {owned} slots owned"
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.nodes.clear();
        self.store.stop().await
    }
}

/// Connections to the nodes, made when they are needed.
pub struct Clients {
    addresses: watch::Receiver<HashMap<usize, SocketAddr>>,
    open: Mutex<HashMap<SocketAddr, Arc<Client>>>,
}

impl Clients {
    pub fn new(world: &World) -> Arc<Self> {
        Arc::new(Self { addresses: world.addresses.subscribe(), open: Mutex::default() })
    }

    /// Some node, by a number that the caller likes.
    pub async fn some(&self, n: usize) -> anyhow::Result<(SocketAddr, Arc<Client>)> {
        let address = {
            let addresses = self.addresses.borrow();
            let mut all: Vec<_> = addresses.values().copied().collect();
            all.sort();
            *all.get(n % all.len().max(1)).context("there is no node")?
        };
        let open = self.open.lock().expect("never poisoned").get(&address).cloned();
        if let Some(client) = open {
            return Ok((address, client));
        }
        let client = Arc::new(Client::connect(address).await?);
        self.open.lock().expect("never poisoned").insert(address, client.clone());
        Ok((address, client))
    }

    pub fn forget(&self, address: SocketAddr) {
        self.open.lock().expect("never poisoned").remove(&address);
    }
}
