//! The binary as a user runs it: real processes, killed for real.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use sqlx::ConnectOptions;

#[path = "../../examples/crash.rs"]
#[allow(dead_code)]
mod crash;

fn proxie() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_proxie"))
}

/// A folder that goes with the test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("proxie-it-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn command(folder: &Folder, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(proxie());
    command
        .args(arguments)
        .current_dir(&folder.0)
        .env_remove("DATABASE_URL")
        .env_remove("REDIS_URL");
    command.envs(environment.iter().copied());
    command
}

pub fn run(folder: &Folder, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    command(folder, arguments, environment).output().unwrap()
}

/// `proxie serve`, killed at the end.
pub struct Served {
    child: Child,
    pub address: SocketAddr,
    log: PathBuf,
}

impl Served {
    pub fn start(folder: &Folder, environment: &[(&str, &str)]) -> Self {
        Self::spawn(folder, environment).ready()
    }

    pub fn spawn(folder: &Folder, environment: &[(&str, &str)]) -> Starting {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log = folder.0.join(format!("node-{n}.log"));
        let mut child = command(folder, &["serve"], environment)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let said = child.stdout.take().unwrap();
        Starting { served: Self { child, address: ([0; 4], 0).into(), log }, said }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Its exit code, once it has ended by itself. One that never ends fails the test.
    pub fn ended(&mut self) -> Option<i32> {
        let began = std::time::Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(began.elapsed().as_secs() < 120, "it does not end: {}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

/// `proxie serve` that may not be ready yet.
pub struct Starting {
    pub served: Served,
    said: std::process::ChildStdout,
}

impl Starting {
    /// Waits until it says so.
    pub fn ready(mut self) -> Served {
        let lines = BufReader::new(self.said).lines().map_while(Result::ok);
        let address = lines.into_iter().find_map(|line| {
            Some(line.strip_prefix("proxie ready on http://")?.trim().parse().unwrap())
        });
        self.served.address = address.unwrap_or_else(|| panic!("not ready: {}", self.served.log()));
        self.served
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_demonstration_ends_well() {
    let folder = Folder::new("demo");
    let output = run(&folder, &["demo"], &[]);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}\n{}", text(&output.stderr));
    assert!(shown.contains("SIGKILL") && shown.contains("the booking is there"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_under_load_lose_and_double_nothing() {
    let folder = Folder::new("crash");
    crash::run(proxie(), &folder.0, 12).await.unwrap();
}

const UNREADABLE: &[(&str, &str)] = &[
    ("PROXIE__CLUSTER__ENABLED", "true"),
    ("PROXIE__CLUSTER__COOKIE", "c"),
    ("DATABASE_URL", "postgres://localhost/x"),
    ("PROXIE__CLUSTER__TLS_CERT", "missing.pem"),
    ("PROXIE__CLUSTER__TLS_KEY", "missing.pem"),
    ("PROXIE__CLUSTER__TLS_CA", "missing.pem"),
];

#[test]
fn usage_and_configuration_errors_exit_2_in_one_line() {
    let folder = Folder::new("usage");
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 16] = [
        (&["fly"], &[], "unrecognized"),
        (&["check-config"], &[("PROXIE__GATEWAY__LISTEN", "nowhere")], "gateway.listen"),
        (&["check-config"], &[("PROXIE__GATEWAY__LISSEN", "127.0.0.1:1")], "lissen"),
        (
            &["serve"],
            &[("PROXIE__CLUSTER__ENABLED", "true"), ("DATABASE_URL", "postgres://localhost/x")],
            "cookie",
        ),
        (
            &["serve"],
            &[("PROXIE__CLUSTER__ENABLED", "true"), ("PROXIE__CLUSTER__COOKIE", "c")],
            "DATABASE_URL",
        ),
        (&["--config", "missing.toml", "check-config"], &[], "missing.toml"),
        (&["check-config"], &[("DATABASE_URL", "mysql://localhost/x")], "DATABASE_URL"),
        (&["check-config"], &[("REDIS_URL", "nowhere")], "REDIS_URL"),
        (&["check-config"], &[("PROXIE__LOG__LEVEL", "proxie=loud")], "log.level"),
        (
            &["check-config"],
            &[("PROXIE__GATEWAY__TRUSTED_PROXIES", "10.0.0.0/40")],
            "trusted_proxies",
        ),
        (&["check-config"], &[("PROXIE__PLAYBACK__PLATFORMS", "missing.json")], "missing.json"),
        (&["check-config"], &[("PROXIE__TOPICS__GRANTS", "[{]")], "PROXIE__TOPICS__GRANTS"),
        (
            &["check-config"],
            &[(
                "PROXIE__TOPICS__GRANTS",
                r#"[{"topic": "lobby", "publish": [], "subscribe": []}]"#,
            )],
            "app:lobby",
        ),
        (
            &["check-config"],
            &[("PROXIE__PERSISTENCE__POSTGRES_BIN_DIR", "/nowhere")],
            "postgres_bin_dir",
        ),
        (&["check-config"], UNREADABLE, "missing.pem"),
        (&["serve"], UNREADABLE, "missing.pem"),
    ];
    for (arguments, environment, expected) in cases {
        let output = run(&folder, arguments, environment);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {error}");
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
    assert_eq!(run(&folder, &["check-config"], &[]).status.code(), Some(0));
    assert_eq!(
        run(&folder, &["entity", "show", "booking", "x"], &[]).status.code(),
        Some(1),
        "no store yet"
    );
    // No command but `serve`, `demo` and `migrate` makes a store.
    for arguments in [
        &["token", "--user", "a"][..],
        &["token", "revoke", "--user", "a"],
        &["cluster", "status"],
        &["entity", "parked"],
        &["dead-letter", "list"],
    ] {
        let none = run(&folder, arguments, &[]);
        assert_eq!(none.status.code(), Some(1), "{arguments:?}");
        assert!(text(&none.stderr).contains("there is no store under"), "{}", text(&none.stderr));
        assert!(!folder.0.join("data").exists(), "{arguments:?} made one");
    }
    let off = run(&folder, &["token", "--user", "a"], &[("PROXIE__AUTH__DEV_TOKENS", "false")]);
    assert_eq!(off.status.code(), Some(1));
    assert!(text(&off.stderr).contains("dev_tokens"), "{}", text(&off.stderr));
}

#[tokio::test]
async fn a_token_is_no_reason_to_make_tables() {
    let folder = Folder::new("token");
    let database = crate::support::server().await.create_database("no_tables", None).await.unwrap();
    let url = database.to_url_lossy().to_string();
    let environment = [
        ("DATABASE_URL", url.as_str()),
        ("PROXIE__AUTH__DEV_TOKENS", "true"),
        ("PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF", "true"),
    ];
    for arguments in [&["token", "--user", "a"][..], &["demo", "--at", "http://127.0.0.1:1"]] {
        let output = run(&folder, arguments, &environment);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?} {error}");
        assert!(error.contains("proxie migrate"), "{arguments:?} {error}");
    }
    let pool = crate::support::pool(database).await;
    let tables = "select count(*) from pg_tables where schemaname = 'public'";
    assert_eq!(sqlx::query_scalar::<_, i64>(tables).fetch_one(&pool).await.unwrap(), 0);
    // Once they are there it is handed out.
    let migrated = run(&folder, &["migrate"], &environment);
    assert!(migrated.status.success(), "{}", text(&migrated.stderr));
    assert!(run(&folder, &["token", "--user", "a"], &environment).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_output_shows_a_secret() {
    let folder = Folder::new("secrets");
    let database = crate::support::database().await;
    let url = database.clone().password("hunter2").to_url_lossy().to_string();
    assert!(url.contains("hunter2"), "{url}");
    let (key, links) = ("5ec2e7".repeat(10) + "5ec2", crate::cluster::free_address());
    let environment = [
        ("DATABASE_URL", url.as_str()),
        ("PROXIE__CLUSTER__ENABLED", "true"),
        ("PROXIE__CLUSTER__COOKIE", "hunter-cookie"),
        ("PROXIE__CLUSTER__LISTEN", links.as_str()),
        ("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0"),
        ("PROXIE__GATEWAY__DRAIN_GRACE_MS", "0"),
        ("PROXIE__VAULT__KEY", key.as_str()),
        ("PROXIE__AUTH__DEV_TOKENS", "true"),
        ("PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF", "true"),
        ("PROXIE__PERSISTENCE__MAX_CONNECTIONS", "10"),
        ("PROXIE__LOG__LEVEL", "trace"),
    ];
    let is_quiet = |what: &str, shown: &str| {
        assert!(!shown.contains("hunter") && !shown.contains("5ec2e7"), "{what}: {shown}");
    };
    let checked = run(&folder, &["check-config"], &environment);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    is_quiet("check-config", &(text(&checked.stdout) + &text(&checked.stderr)));

    let mut served = Served::start(&folder, &environment);
    let pool = crate::support::pool(database).await;
    let signing = "select encode(secret, 'hex') from signing_keys";
    let signing: String = sqlx::query_scalar(signing).fetch_one(&pool).await.unwrap();
    assert!(run(&folder, &["token", "--user", "a"], &environment).status.success());
    served.signal(rustix::process::Signal::TERM);
    assert_eq!(served.ended(), Some(0));
    let log = served.log();
    assert!(log.contains("TRACE"), "{log}");
    is_quiet("serve", &log);
    assert!(!log.contains(&signing), "{log}");

    // What is wrong is named, and not shown.
    let wrong = [
        ("DATABASE_URL", "postgres://proxie:hunter@localhost:port/x"),
        ("DATABASE_URL", "hunter"),
        ("REDIS_URL", "redis://:hunter@localhost:port"),
        ("REDIS_URL", "hunter"),
        ("REDIS_URL", "redis://:hunter@127.0.0.1:1"),
        ("PROXIE__REDIS", "redis://:hunter@localhost"),
        ("PROXIE__CLUSTER__COOKIE", " hunter"),
        ("PROXIE__VAULT__KEY", "hunter"),
    ];
    for one in wrong {
        let environment: Vec<_> =
            environment.iter().filter(|(name, _)| *name != one.0).copied().chain([one]).collect();
        let reaches = one.1.ends_with("127.0.0.1:1");
        let command = if reaches { "serve" } else { "check-config" };
        let output = run(&folder, &[command], &environment);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(!output.status.success() && said.contains("proxie: "), "{one:?}: {said}");
        is_quiet(&format!("{one:?}"), &said);
    }
}
