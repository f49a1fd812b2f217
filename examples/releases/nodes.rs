//! The two nodes, as whichever release, and what they leave behind in their database.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use sqlx::Row;
use sqlx::postgres::PgPool;
use tokio::sync::watch;

use super::PATIENCE;
use super::people::request;

const GRANT: &str = "[[topics.grants]]\ntopic = \"app:log\"\ndurable = true\npublish = [\"consumer\"]\nsubscribe = [\"consumer\"]\n";

pub struct Cluster {
    folder: PathBuf,
    newer: PathBuf,
    database: String,
    listen: [String; 2],
    nodes: [Option<Node>; 2],
    /// Where clients go.
    rotation: watch::Sender<Vec<SocketAddr>>,
    pool: PgPool,
}

struct Node {
    child: Child,
    /// Ends with it.
    watched: tokio::task::JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.watched.abort();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What was left behind.
pub struct Found {
    owed: i64,
    dead: i64,
    parked: i64,
    /// Times that a node said it had parked an entity.
    parkings: usize,
}

impl Found {
    pub fn is_nothing(&self) -> bool {
        self.owed == 0 && self.dead == 0 && self.parked == 0 && self.parkings == 0
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { owed, dead, parked, parkings } = self;
        write!(
            f,
            "{owed} undelivered, {dead} dead letters, {parked} parked ({parkings} at some time)"
        )
    }
}

impl Cluster {
    /// None of its nodes runs yet. Also where those will be that are ready.
    pub async fn new(
        folder: &Path,
        newer: &Path,
        database: &str,
    ) -> anyhow::Result<(Self, watch::Receiver<Vec<SocketAddr>>)> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("config.toml"), GRANT)?;
        let (ready, rotation) = watch::channel(Vec::new());
        let cluster = Self {
            folder: folder.into(),
            newer: newer.into(),
            database: database.into(),
            listen: [free_address()?, free_address()?],
            nodes: [None, None],
            rotation: ready,
            pool: PgPool::connect(database).await?,
        };
        Ok((cluster, rotation))
    }

    pub fn command(&self, binary: &Path) -> Command {
        let mut command = Command::new(binary);
        command
            .current_dir(&self.folder)
            .env_remove("REDIS_URL")
            .env("DATABASE_URL", &self.database)
            .env("PROXIE__AUTH__DEV_TOKENS", "true")
            .env("PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF", "true")
            .stdin(Stdio::null());
        if binary == self.newer {
            let settings = std::env::var("NEWER_SETTINGS").unwrap_or_default();
            command.envs(settings.split_whitespace().filter_map(|one| one.split_once('=')));
        }
        command
    }

    /// Returns when it is ready.
    pub fn start(&mut self, n: usize, binary: &Path) -> anyhow::Result<()> {
        let path = self.folder.join(format!("node-{n}.log"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&path)?;
        let mut child = self
            .command(binary)
            .arg("serve")
            .env("PROXIE__CLUSTER__ENABLED", "true")
            .env("PROXIE__CLUSTER__COOKIE", "releases")
            .env("PROXIE__CLUSTER__LISTEN", &self.listen[n])
            .env("PROXIE__NODE__NAME", format!("node-{n}"))
            .env("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0")
            .env("PROXIE__GATEWAY__REQUESTS_PER_MINUTE", "1000000")
            .env("PROXIE__GATEWAY__DRAIN_MS", "300")
            .env("PROXIE__GATEWAY__DRAIN_GRACE_MS", "500")
            .env("PROXIE__PERSISTENCE__MAX_CONNECTIONS", "10")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("piped")?).lines();
        let address = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("proxie ready on http://")?.trim().parse().ok());
        let Some(address) = address else {
            let _ = child.wait();
            bail!("node {n} did not start: see {}", path.display());
        };
        self.rotation.send_modify(|ready| ready.push(address));
        let watched = tokio::spawn(watch(address, self.rotation.clone()));
        self.nodes[n] = Some(Node { child, watched });
        Ok(())
    }

    pub async fn stop(&mut self, n: usize) -> anyhow::Result<()> {
        let Some(mut node) = self.nodes[n].take() else { return Ok(()) };
        let pid = rustix::process::Pid::from_raw(node.child.id() as i32).context("a pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let began = Instant::now();
        while node.child.try_wait()?.is_none() {
            ensure!(began.elapsed() < PATIENCE, "node {n} does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Two nodes take part and own every slot between them.
    pub async fn settled(&self) -> anyhow::Result<()> {
        let sql = "select count(*), count(*) filter (where state = 'active'),
                (select count(*) from slots s join nodes o using (incarnation) where o.state = 'active')
             from nodes where state <> 'dead'";
        let began = Instant::now();
        loop {
            let row = sqlx::query(sql).fetch_one(&self.pool).await?;
            let (all, active, owned): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
            if (all, active, owned) == (2, 2, 4_096) {
                return Ok(());
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "the cluster does not settle: {active} of {all} nodes active, {owned} slots owned"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Once nothing is on its way any more.
    pub async fn found(&self) -> anyhow::Result<Found> {
        let sql = "select (select count(*) from outbox where dead_at is null),
                (select count(*) from outbox where dead_at is not null)
                    + (select count(*) from timers where dead_at is not null and tried_id = id),
                (select count(*) from parked)";
        let began = Instant::now();
        loop {
            let row = sqlx::query(sql).fetch_one(&self.pool).await?;
            if row.get::<i64, _>(0) == 0 || began.elapsed() > PATIENCE {
                let mut parkings = 0;
                for n in 0..2 {
                    let log = std::fs::read_to_string(self.folder.join(format!("node-{n}.log")))?;
                    parkings += log.matches("an entity is parked").count();
                }
                let (owed, dead, parked) = (row.get(0), row.get(1), row.get(2));
                return Ok(Found { owed, dead, parked, parkings });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Takes a node out of the rotation when it is not ready any more, as a load balancer does.
async fn watch(address: SocketAddr, rotation: watch::Sender<Vec<SocketAddr>>) {
    let is_ready = async || {
        let answer = request(address, "GET", "/readyz", "", "", None);
        let answer = tokio::time::timeout(Duration::from_secs(2), answer).await;
        matches!(answer, Ok(Ok((200, _))))
    };
    loop {
        let ready = is_ready().await;
        rotation.send_if_modified(|all| {
            let there = all.contains(&address);
            all.retain(|one| *one != address || ready);
            if ready && !there {
                all.push(address);
            }
            ready != there
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn free_address() -> anyhow::Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
