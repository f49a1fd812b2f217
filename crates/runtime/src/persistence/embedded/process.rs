//! Processes of PostgreSQL: starting programs as the right user with a death signal, and finding the processes that use
//! a store.

use std::{
    fs, io,
    os::unix::{
        fs::MetadataExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use super::{Error, io_error};

/// How long a fast shutdown (disconnect all clients, checkpoint) may take before it becomes an immediate one.
pub(super) const FAST_STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long an immediate shutdown, and after it a SIGKILL, may take.
pub(super) const HARD_STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long backends may outlive their postmaster. They notice its death by themselves, at the latest when their
/// statement checks for interrupts.
const STRAGGLER_LIMIT: Duration = Duration::from_secs(2);

/// The user that runs the server and owns its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub uid: u32,
    pub gid: u32,
}

impl Owner {
    pub fn current() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// The owner of a new store: PostgreSQL refuses to run as root, so root gives the store to `nobody`.
    pub fn of_new_store() -> Self {
        let current = Self::current();
        if current.uid == 0 {
            Self::nobody(&fs::read_to_string("/etc/passwd").unwrap_or_default())
        } else {
            current
        }
    }

    /// The owner of an existing folder.
    pub fn of(metadata: &fs::Metadata) -> Self {
        Self { uid: metadata.uid(), gid: metadata.gid() }
    }

    fn nobody(passwd: &str) -> Self {
        let ids = passwd.lines().find_map(|line| {
            let mut fields = line.strip_prefix("nobody:")?.split(':').skip(1);
            Some(Self { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
        });
        ids.filter(|owner| owner.uid != 0).unwrap_or(Self { uid: 65534, gid: 65534 })
    }

    /// The first folder on the way to `path` (itself included) that this user cannot pass; `None` if it gets there.
    pub fn blocked_at(self, path: &Path) -> Option<PathBuf> {
        let blocks = |metadata: fs::Metadata| {
            let shift = match (metadata.uid() == self.uid, metadata.gid() == self.gid) {
                (true, _) => 6,
                (false, true) => 3,
                (false, false) => 0,
            };
            metadata.is_dir() && metadata.mode() >> shift & 1 == 0
        };
        let mut way: Vec<&Path> = path.ancestors().collect();
        way.reverse();
        way.into_iter().find(|step| fs::metadata(step).is_ok_and(blocks)).map(Path::to_path_buf)
    }
}

/// Starts programs as the store's owner. They get none of this process's environment, which holds secrets, and their
/// own process group, so that Ctrl-C at a terminal reaches only this process, which then stops the server in order.
#[derive(Clone, Debug)]
pub(super) struct Launcher {
    owner: Owner,
    switch_user: bool,
    setpriv: Option<PathBuf>,
}

impl Launcher {
    pub fn new(owner: Owner) -> Self {
        let setpriv = find_setpriv();
        if setpriv.is_none() {
            tracing::debug!(
                "no setpriv with --pdeathsig: a server orphaned by kill -9 lives until the next start"
            );
        }
        Self {
            owner,
            switch_user: owner != Owner::current() && rustix::process::geteuid().is_root(),
            setpriv,
        }
    }

    /// A command that runs `program`. `death_signal` is sent to it when the *thread* that spawns it ends. The signal
    /// has to be set after the change of user, which clears it: hence setpriv, which does both in this order.
    pub fn command(&self, program: &Path, death_signal: &str) -> Command {
        let Owner { uid, gid } = self.owner;
        let mut command = match &self.setpriv {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                if self.switch_user {
                    command
                        .arg(format!("--reuid={uid}"))
                        .arg(format!("--regid={gid}"))
                        .arg("--clear-groups");
                }
                command.args(["--pdeathsig", death_signal, "--"]).arg(program);
                command
            }
            None => {
                let mut command = Command::new(program);
                if self.switch_user {
                    command.uid(uid).gid(gid);
                }
                command
            }
        };
        command.env_clear().process_group(0).current_dir("/").stdin(Stdio::null());
        command.env("HOME", "/tmp").env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
        // Each batch needs some MiB: a backend that returned them to the system would have to fault them in again.
        command.env("MALLOC_TRIM_THRESHOLD_", "33554432").env("MALLOC_MMAP_THRESHOLD_", "16777216");
        for kept in ["PATH", "LD_LIBRARY_PATH"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        command
    }
}

fn find_setpriv() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/bin".into(), "/bin".into()]);
    let candidate = folders.map(|folder| folder.join("setpriv")).find(|file| file.is_file())?;
    // BusyBox has a setpriv too, but without `--pdeathsig`.
    let help = output(Command::new(&candidate).arg("--help"), Duration::from_secs(5)).ok()?;
    String::from_utf8_lossy(&help.stdout).contains("--pdeathsig").then_some(candidate)
}

/// Runs a short program to its end, at most for `limit`; then it is killed with its children, and that is an
/// error. What it prints must fit into a pipe (64 KiB).
pub(super) fn output(command: &mut Command, limit: Duration) -> io::Result<Output> {
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let deadline = Instant::now() + limit;
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
            child.wait()?;
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("gave up after {} s", limit.as_secs()),
            ));
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output()
}

/// The error of a failed program in one line: its last lines of output, or how it ended.
pub(super) fn complaint(output: &Output) -> String {
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let said = last_lines(&String::from_utf8_lossy(said), 3);
    match (said.is_empty(), output.status.signal()) {
        (false, _) => said,
        (true, Some(signal)) => format!("killed by signal {signal}"),
        (true, None) => output.status.to_string(),
    }
}

pub(super) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let joined = lines[lines.len().saturating_sub(count)..].join(" | ");
    joined.chars().take(600).collect()
}

/// The server processes that work in `cluster` (postmaster and backends). Compared by the folder's identity, not by
/// a pid file, because pids are reused; by name too, because an operator's shell may stand in that folder.
/// Always empty where there is no /proc.
pub(super) fn servers_in(cluster: &Path) -> Vec<Pid> {
    let Ok(wanted) = fs::metadata(cluster) else { return Vec::new() };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pid_of = |entry: fs::DirEntry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        let folder = fs::metadata(entry.path().join("cwd")).ok()?;
        let works_here = name.trim_end() == "postgres"
            && (folder.dev(), folder.ino()) == (wanted.dev(), wanted.ino());
        works_here.then_some(pid)
    };
    processes.flatten().filter_map(pid_of).collect()
}

/// Makes sure that no process works in `cluster`, and removes stale pid files: their pids may already belong to other
/// processes, and PostgreSQL would refuse to start. Only the holder of the data lock may call this.
pub(super) fn clear_orphans(cluster: &Path, socket_dir: &Path) -> Result<(), Error> {
    if !cfg!(target_os = "linux") {
        return Ok(()); // without /proc nobody can tell: PostgreSQL's own check of its pid file decides
    }
    let orphans = servers_in(cluster);
    if !orphans.is_empty() {
        let postmaster = postmaster_pid(cluster).filter(|pid| orphans.contains(pid));
        tracing::warn!(
            ?postmaster,
            processes = orphans.len(),
            "stopping the PostgreSQL that an earlier proxie left behind"
        );
        let steps = match postmaster {
            Some(pid) => vec![
                (Some(pid), Signal::INT, FAST_STOP_LIMIT),
                (Some(pid), Signal::QUIT, HARD_STOP_LIMIT),
            ],
            None => vec![(None, Signal::QUIT, STRAGGLER_LIMIT)],
        };
        let gone = steps.into_iter().any(|(pid, signal, limit)| {
            if let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, signal);
            }
            wait_until_gone(cluster, limit)
        });
        if !gone && !kill_all(cluster) {
            let pids: Vec<_> = servers_in(cluster).into_iter().map(Pid::as_raw_nonzero).collect();
            return Err(Error::OrphanWillNotStop {
                cluster: cluster.into(),
                pids: format!("{pids:?}"),
            });
        }
    }
    for stale in
        [cluster.join("postmaster.pid"), socket_dir.join(format!(".s.PGSQL.{}.lock", super::PORT))]
    {
        match fs::remove_file(&stale) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("cannot remove", &stale, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Deletes the remains of a killed initdb. Its children may still write for a moment. Files that cannot be deleted do
/// no harm; the next start tries again.
pub(super) fn discard_cluster(unfinished: &Path) {
    let deadline = Instant::now() + STRAGGLER_LIMIT;
    while unfinished.exists() && Instant::now() < deadline {
        kill_all(unfinished);
        if fs::remove_dir_all(unfinished).is_err() {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn kill_all(cluster: &Path) -> bool {
    for pid in servers_in(cluster) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    wait_until_gone(cluster, HARD_STOP_LIMIT)
}

fn wait_until_gone(cluster: &Path, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while !servers_in(cluster).is_empty() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

/// The postmaster's pid from its pid file, dead or alive.
pub(super) fn postmaster_pid(cluster: &Path) -> Option<Pid> {
    Pid::from_raw(
        fs::read_to_string(cluster.join("postmaster.pid"))
            .ok()?
            .lines()
            .next()?
            .trim()
            .parse()
            .ok()?,
    )
}

/// Whether the postmaster with this pid says that it accepts connections (`pg_ctl` looks at the same line).
pub(super) fn says_ready(cluster: &Path, pid: Pid) -> bool {
    let Ok(file) = fs::read_to_string(cluster.join("postmaster.pid")) else { return false };
    let mut lines = file.lines();
    let own =
        lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid.as_raw_nonzero().get());
    own && lines.nth(6).is_some_and(|status| status.trim() == "ready")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_looked_up_and_never_root() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:99:98:Nobody:/:/sbin/nologin\n";
        assert_eq!(Owner::nobody(passwd), Owner { uid: 99, gid: 98 });
        assert_eq!(Owner::nobody("nobody:x:0:0::/:/bin/sh"), Owner { uid: 65534, gid: 65534 });
        assert_eq!(Owner::nobody(""), Owner { uid: 65534, gid: 65534 });
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children() {
        let begin = Instant::now();
        let error = output(
            Command::new("sh").args(["-c", "sleep 60 & sleep 60"]),
            Duration::from_millis(100),
        )
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_complaint_is_one_short_line() {
        assert_eq!(last_lines("a\n\nb\nc\n d \n", 3), "b | c | d");
        assert_eq!(last_lines(&"x".repeat(5_000), 3).len(), 600);
        assert_eq!(last_lines("", 3), "");
    }
}
