//! What the tests stand on: one embedded PostgreSQL for the whole run, and a fresh database for each test.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proxie::actors::{AnyRunner, Options};
use proxie::app::core::migrate;
use proxie::app::core::{self, Core, CoreSettings, Prepared};
use proxie::app::member::{self, Pipe};
use proxie::cluster::{CommandMeta, skew, transport};
use proxie::kernel::clock::Clock;
use proxie::persistence::codec::SnapshotCodec;
use proxie::persistence::embedded::{DataLock, Embedded, Options as ServerOptions};
use proxie::persistence::membership::NodeInfo;
use proxie::persistence::{session, store, vault, writer};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor, SqlSafeStr};
use tokio::sync::OnceCell;

use crate::counter::Counter;

static SERVER: OnceCell<Embedded> = OnceCell::const_new();

/// A folder that everybody may enter, since the server does not run as root. Those of runs that are over go.
fn folder() -> PathBuf {
    let base = std::env::temp_dir();
    for old in std::fs::read_dir(&base).into_iter().flatten().flatten() {
        let name = old.file_name().to_string_lossy().into_owned();
        if let Some(pid) = name.strip_prefix("proxie-tests-")
            && !PathBuf::from(format!("/proc/{pid}")).exists()
        {
            let _ = std::fs::remove_dir_all(old.path());
        }
    }
    base.join(format!("proxie-tests-{}", std::process::id()))
}

/// The server has a runtime of its own: each test's runtime ends with the test.
pub async fn server() -> &'static Embedded {
    SERVER
        .get_or_init(|| async {
            let (tx, rx) = tokio::sync::oneshot::channel();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let data = folder();
                    let lock = DataLock::acquire(&data).unwrap();
                    // Another PostgreSQL than the embedded one, with its own defaults.
                    let installed = std::env::var_os("PROXIE_TEST_POSTGRES_BIN").map(PathBuf::from);
                    let theirs = installed.is_some();
                    let mut options = ServerOptions {
                        installed,
                        max_connections: 200,
                        shared_buffers: "64MB".into(),
                        ..ServerOptions::new(&data).without_durability()
                    };
                    if theirs {
                        options.settings.push(("jit".into(), "on".into()));
                    }
                    let server = Embedded::start(options, lock).await.unwrap();
                    let template = server.create_database("template_proxie", None).await.unwrap();
                    let pool = PgPool::connect_with(template).await.unwrap();
                    migrate(&pool, proxie::systems::ALL).await.unwrap();
                    pool.close().await;
                    let _ = tx.send(server);
                    std::future::pending::<()>().await
                });
            });
            rx.await.expect("the test server starts")
        })
        .await
}

/// A fresh, migrated database.
pub async fn database() -> PgConnectOptions {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::SeqCst));
    // The template can be copied by one at a time.
    static COPYING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _one = COPYING.lock().await;
    let database = server().await.create_database(&name, Some("template_proxie")).await.unwrap();
    if std::env::var_os("PROXIE_TEST_HOSTILE").is_some() {
        make_hostile(&pool(database.clone()).await, &name).await;
    }
    database
}

/// For what a test itself asks the database, whatever that one's defaults are.
pub fn observer(options: PgConnectOptions) -> PgConnectOptions {
    options.options([
        ("search_path", "public"),
        ("default_transaction_isolation", "read committed"),
        ("statement_timeout", "0"),
        ("lock_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        ("idle_session_timeout", "0"),
        ("enable_indexscan", "on"),
        ("enable_nestloop", "on"),
        ("jit", "off"),
    ])
}

pub async fn pool(options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(12)
        .test_before_acquire(false)
        .acquire_timeout(Duration::from_secs(5))
        .connect_with(observer(options))
        .await
        .unwrap()
}

pub struct Setup {
    pub clock: Clock,
    pub entities: Options,
    pub writer: writer::Options,
    pub runners: Vec<AnyRunner>,
    pub data_lock_held: bool,
    pub clock_limits: skew::SkewLimits,
    pub name: &'static str,
    /// With others on its database.
    pub clustered: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            clock: Clock::System,
            entities: Options::default(),
            writer: writer::Options::default(),
            runners: Vec::new(),
            data_lock_held: true,
            name: "test",
            clustered: false,
            // Tests move clocks by hand.
            clock_limits: skew::SkewLimits { limit_ms: i64::MAX, ..Default::default() },
        }
    }
}

/// Defaults of a database that its administrator may have had reasons for.
pub async fn make_hostile(pool: &PgPool, database: &str) {
    for setting in [
        "synchronous_commit = off",
        "jit = on",
        "jit_above_cost = 0",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_read_only = off",
        "search_path = pg_catalog",
        "statement_timeout = '1s'",
        "idle_in_transaction_session_timeout = '100ms'",
        "idle_session_timeout = '3s'",
        "lock_timeout = '10ms'",
        "enable_indexscan = off",
        "enable_indexonlyscan = off",
        "enable_nestloop = off",
        "enable_sort = off",
        "plan_cache_mode = force_custom_plan",
        "row_security = off",
        "timezone = 'Asia/Kathmandu'",
        "datestyle = 'German, DMY'",
        "intervalstyle = 'iso_8601'",
        "bytea_output = 'escape'",
        "standard_conforming_strings = off",
        "extra_float_digits = -15",
        "work_mem = '64kB'",
    ] {
        let sql = format!("alter database {database} set {setting}");
        pool.execute(AssertSqlSafe(sql).into_sql_str()).await.unwrap();
    }
}

/// A node without edges that knows [`Counter`], with the settings and the pool of a real one.
pub async fn core_through(database: &PgConnectOptions, setup: Setup) -> Core {
    let options = store::Options { max_connections: 12, allow_fsync_off: true };
    let pool = store::connect(database.clone(), &options).await.unwrap();
    let mut prepared = prepare_on(pool, setup).await.unwrap();
    prepared.registry.register::<Counter>().await.unwrap();
    prepared.run().await.unwrap()
}

pub async fn ask_counter(core: &Core, key: &str, command: crate::counter::Command) {
    let asked = core.entities.of::<Counter>(key).ask(command, CommandMeta::runtime()).await;
    asked.unwrap().expect("not rejected");
}

/// How a node of this release knows [`Counter`].
pub fn known_as() -> String {
    SnapshotCodec::of::<Counter>().unwrap().known_as::<Counter>()
}

/// A node without edges that knows [`Counter`].
pub async fn core(database: PgConnectOptions, setup: Setup) -> Core {
    try_core(database, setup).await.unwrap()
}

pub async fn try_core(database: PgConnectOptions, setup: Setup) -> anyhow::Result<Core> {
    let mut prepared = try_prepare(database, setup).await?;
    prepared.registry.register::<Counter>().await?;
    prepared.run().await
}

/// A node whose kinds are still to be registered.
pub async fn try_prepare(database: PgConnectOptions, setup: Setup) -> anyhow::Result<Prepared> {
    let pool = session::pool_options(12).connect_with(session::plain(database)).await?;
    prepare_on(pool, setup).await
}

/// The vault that these nodes have.
pub async fn vault(pool: PgPool) -> vault::Vault {
    vault::Vault::start(pool, vault::Options::derived_from("of tests")).await.unwrap()
}

async fn prepare_on(pool: PgPool, setup: Setup) -> anyhow::Result<Prepared> {
    let cluster = match setup.clustered {
        false => None,
        true => {
            let listener = transport::bind("127.0.0.1:0").await?;
            Some(member::Options {
                advertise: listener.local_addr()?.to_string(),
                listener,
                cookie: "test".into(),
                tls: None,
                weight: 1,
                pipe: Pipe::Framed,
                limits: transport::TransportLimits::default(),
            })
        }
    };
    let settings = CoreSettings {
        systems: proxie::systems::ALL,
        node: NodeInfo {
            name: setup.name.into(),
            address: String::new(),
            version: "0".into(),
            host: "test".into(),
            pid: std::process::id() as i32,
            process_start: 0,
            lease_s: 3.0,
            lanes: setup.writer.lanes,
            seals: true,
        },
        data_lock_held: setup.data_lock_held,
        read_ttl: Duration::from_millis(1_000),
        clock: setup.clock,
        clock_limits: setup.clock_limits,
        writer: setup.writer,
        entities: setup.entities,
        runners: setup.runners,
        vault: vault::Options::derived_from("of tests"),
        dedupe_s: 86_400,
        history_s: 86_400,
        witness: None,
        waits: Arc::new(|_| {}),
        cluster,
    };
    core::prepare(pool, settings).await
}

/// Tries until it holds; a test that waits for ever says what for.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn socket(database: &PgConnectOptions) -> String {
    let folder = database.get_socket().expect("a local server");
    format!("{}/.s.PGSQL.{}", folder.display(), database.get_port())
}

/// A cable between a node and its database that can be muted (what the server says is lost) and cut.
pub struct Cable {
    pub options: PgConnectOptions,
    /// The socket at its other end.
    leads_to: Arc<Mutex<String>>,
    /// Connections before this one say nothing more.
    muted: tokio::sync::watch::Sender<u64>,
    made: Arc<AtomicU64>,
    cut: tokio::sync::broadcast::Sender<()>,
}

impl Cable {
    pub async fn to(database: &PgConnectOptions) -> Self {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use tokio::net::{TcpListener, UnixStream};
        let leads_to = Arc::new(Mutex::new(socket(database)));
        let there = leads_to.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (muted, is_muted) = tokio::sync::watch::channel(0);
        let made = Arc::new(AtomicU64::new(0));
        let count = made.clone();
        let (cut, _) = tokio::sync::broadcast::channel(1);
        let ends = cut.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let socket = there.lock().unwrap().clone();
                let Ok(server) = UnixStream::connect(&socket).await else { continue };
                let (mut end, is_muted) = (ends.subscribe(), is_muted.clone());
                let this = count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let there = tokio::io::copy(&mut from_client, &mut to_server);
                    let back = async {
                        let mut buffer = vec![0; 65_536];
                        while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                            if this >= *is_muted.borrow() {
                                let _ = to_client.write_all(&buffer[..n]).await;
                            }
                        }
                    };
                    tokio::select! { _ = there => {}, () = back => {}, _ = end.recv() => {} }
                });
            }
        });
        let options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(port)
            .username(database.get_username())
            .database(database.get_database().unwrap());
        Self { options, leads_to, muted, made, cut }
    }

    /// Leads to another server from now on; what was connected is cut.
    pub fn switch(&self, database: &PgConnectOptions) {
        *self.leads_to.lock().unwrap() = socket(database);
        self.cut();
    }

    /// From now on nothing that the server says arrives.
    pub fn mute(&self) {
        self.muted.send_replace(u64::MAX);
    }

    /// From now on nothing arrives over the connections that there are. New ones work.
    pub fn mute_present(&self) {
        self.muted.send_replace(self.made.load(Ordering::SeqCst));
    }

    /// What the server says arrives again; what it said meanwhile is lost.
    pub fn unmute(&self) {
        self.muted.send_replace(0);
    }

    /// Ends every connection. New ones work.
    pub fn cut(&self) {
        self.muted.send_replace(0);
        let _ = self.cut.send(());
    }
}
