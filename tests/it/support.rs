//! What the tests stand on: one embedded PostgreSQL for the whole run, and a fresh database for each test.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use proxie::actors::{Options, Runner};
use proxie::app::core::{self, Core, Prepared, Settings};
use proxie::kernel::clock::Clock;
use proxie::persistence::embedded::{DataLock, Embedded, Options as ServerOptions};
use proxie::persistence::membership::NodeInfo;
use proxie::persistence::{store, writer};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
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
                    let options = ServerOptions {
                        max_connections: 200,
                        shared_buffers: "64MB".into(),
                        ..ServerOptions::new(&data).without_durability()
                    };
                    let server = Embedded::start(options, lock).await.unwrap();
                    let template = server.create_database("template_proxie", None).await.unwrap();
                    let pool = PgPool::connect_with(template).await.unwrap();
                    store::migrate(&pool).await.unwrap();
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
    server().await.create_database(&name, Some("template_proxie")).await.unwrap()
}

pub async fn pool(options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(12)
        .test_before_acquire(false)
        .acquire_timeout(Duration::from_secs(5))
        .connect_with(options)
        .await
        .unwrap()
}

pub struct Setup {
    pub clock: Clock,
    pub entities: Options,
    pub writer: writer::Options,
    pub runners: HashMap<&'static str, Arc<dyn Runner>>,
    pub data_lock_held: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            clock: Clock::System,
            entities: Options::default(),
            writer: writer::Options::default(),
            runners: HashMap::new(),
            data_lock_held: true,
        }
    }
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
    let settings = Settings {
        node: NodeInfo {
            name: "test".into(),
            address: String::new(),
            version: "0".into(),
            host: "test".into(),
            pid: std::process::id() as i32,
            lease_s: 3.0,
            lanes: setup.writer.lanes,
        },
        data_lock_held: setup.data_lock_held,
        read_ttl: Duration::from_millis(1_000),
        clock: setup.clock,
        writer: setup.writer,
        entities: setup.entities,
        runners: setup.runners,
        dedupe_s: 86_400,
        history_s: 86_400,
        witness: None,
        cluster: None,
    };
    core::prepare(pool(database).await, settings).await
}

/// Tries until it holds; a test that waits for ever says what for.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A cable between a node and its database that can be muted (what the server says is lost) and cut.
pub struct Cable {
    pub options: PgConnectOptions,
    muted: tokio::sync::watch::Sender<bool>,
    cut: tokio::sync::broadcast::Sender<()>,
}

impl Cable {
    pub async fn to(database: &PgConnectOptions) -> Self {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use tokio::net::{TcpListener, UnixStream};
        let socket = format!(
            "{}/.s.PGSQL.{}",
            database.get_socket().expect("a local server").display(),
            database.get_port()
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (muted, is_muted) = tokio::sync::watch::channel(false);
        let (cut, _) = tokio::sync::broadcast::channel(1);
        let ends = cut.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = UnixStream::connect(&socket).await else { continue };
                let (mut end, is_muted) = (ends.subscribe(), is_muted.clone());
                tokio::spawn(async move {
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let there = tokio::io::copy(&mut from_client, &mut to_server);
                    let back = async {
                        let mut buffer = vec![0; 65_536];
                        while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                            if !*is_muted.borrow() {
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
        Self { options, muted, cut }
    }

    /// From now on nothing that the server says arrives.
    pub fn mute(&self) {
        self.muted.send_replace(true);
    }

    /// What the server says arrives again; what it said meanwhile is lost.
    pub fn unmute(&self) {
        self.muted.send_replace(false);
    }

    /// Ends every connection. New ones work.
    pub fn cut(&self) {
        self.muted.send_replace(false);
        let _ = self.cut.send(());
    }
}
