//! The thread that owns the server process: starts it, restarts it when it dies, stops it.
//!
//! It is a thread and not a task because the server gets its parent-death signal when the *thread* that spawned it
//! ends. No other code signals or reaps the process, so no signal ever goes to a reused pid.

use std::{
    cell::Cell,
    collections::VecDeque,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::Child,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid},
};
use tokio::sync::watch;

use super::{
    DataLock, Error, io_error,
    place::{self, DataLayout},
    process::{self, FAST_STOP_LIMIT, HARD_STOP_LIMIT, Launcher},
};

/// Time limit of a start. A server that has neither accepted connections nor reported a recovery by then is broken.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Time limit of a recovery: it replays at most `max_wal_size` of the log, which takes minutes on a slow disk.
const RECOVERY_LIMIT: Duration = Duration::from_secs(600);
const RECOVERY_NOTICE_EVERY: Duration = Duration::from_secs(10);
const READY_POLL: Duration = Duration::from_millis(5);
/// This many unexpected deaths within [`FAILURE_WINDOW`] mean that a restart does not help.
const FAILURES_MAX: usize = 5;
const FAILURE_WINDOW: Duration = Duration::from_secs(60);
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LOG_MAX_BYTES: u64 = 10 << 20;
const LOG_CHECK_EVERY: Duration = Duration::from_secs(60);

/// The status of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerStatus {
    Starting,
    /// It accepts connections; `pid` is the postmaster's process id.
    Running {
        pid: u32,
    },
    /// It died unexpectedly and is being started again, on the same socket.
    Restarting {
        reason: String,
    },
    /// It was stopped in order, on request.
    Stopped,
    /// It has failed for good, and is not restarted.
    Failed {
        reason: String,
    },
}

impl ServerStatus {
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Stopped | Self::Failed { .. })
    }
}

/// Everything a start needs, so that a restart is the same start.
#[derive(Debug)]
pub(super) struct Plan {
    pub lock: DataLock,
    pub place: DataLayout,
    pub launcher: Launcher,
    pub postgres: PathBuf,
    pub arguments: Vec<OsString>,
}

enum Event {
    /// A process has exited. It is named because the next one may already run when this arrives.
    Exited(Pid),
    /// Stop, within this time.
    Stop(Duration),
}

#[derive(Debug)]
pub(super) struct Supervisor {
    events: Sender<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Starts the supervisor. The first start of the server is under way when this returns; the channel reports its
    /// outcome.
    pub fn spawn(plan: Plan) -> Result<(Self, watch::Receiver<ServerStatus>), Error> {
        let (events, inbox) = channel();
        let (status, seen) = watch::channel(ServerStatus::Starting);
        let worker = Worker {
            log: plan.lock.data_dir().join("postgres.log"),
            plan,
            events: events.clone(),
            inbox,
            status,
            patience: Cell::new(FAST_STOP_LIMIT + 2 * HARD_STOP_LIMIT),
        };
        let thread = thread::Builder::new().name("postgres".into()).spawn(move || worker.run());
        let thread = thread
            .map_err(|error| io_error("cannot start a thread for", Path::new("postgres"), error))?;
        Ok((Self { events, thread: Some(thread) }, seen))
    }

    pub fn request_stop(&self, patience: Duration) {
        let _ = self.events.send(Event::Stop(patience));
    }

    /// Waits for the thread. It blocks, but only for a moment once the status is final.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

struct Worker {
    plan: Plan,
    log: PathBuf,
    /// The sender for the threads that wait for a process to end.
    events: Sender<Event>,
    inbox: Receiver<Event>,
    status: watch::Sender<ServerStatus>,
    /// The patience of a requested stop.
    patience: Cell<Duration>,
}

/// Why a start or a wait ended.
enum End {
    /// The process is gone, or never came up, without a request.
    Died(String),
    StopRequested,
}

impl Worker {
    fn run(self) {
        let last = self.supervise();
        if last == ServerStatus::Stopped {
            place::retract_socket(self.plan.lock.data_dir(), &self.plan.place);
        }
        // Drop the lock first: a reader of the final status may take it at once.
        let Self { plan, status, .. } = self;
        drop(plan);
        status.send_replace(last);
    }

    fn supervise(&self) -> ServerStatus {
        let mut failures = VecDeque::new();
        let mut came_up_once = false;
        loop {
            let reason = match self.live_once(&mut came_up_once) {
                End::StopRequested => return ServerStatus::Stopped,
                End::Died(reason) => reason,
            };
            if !came_up_once {
                return ServerStatus::Failed { reason };
            }
            failures.push_back(Instant::now());
            while failures.front().is_some_and(|first| first.elapsed() > FAILURE_WINDOW) {
                failures.pop_front();
            }
            if failures.len() >= FAILURES_MAX {
                tracing::error!(%reason, "PostgreSQL died {FAILURES_MAX} times within a minute: giving up");
                let window = FAILURE_WINDOW.as_secs();
                return ServerStatus::Failed {
                    reason: format!(
                        "PostgreSQL died {FAILURES_MAX} times in {window} s; lastly: {reason}"
                    ),
                };
            }
            let backoff = FIRST_BACKOFF * 4_u32.pow(failures.len() as u32 - 1);
            tracing::warn!(%reason, ?backoff, "PostgreSQL died; starting it again");
            self.status.send_replace(ServerStatus::Restarting { reason });
            if self.stop_requested_within(backoff) {
                return ServerStatus::Stopped;
            }
        }
    }

    fn stop_requested_within(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        loop {
            match self.inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Exited(_)) => {} // of a process that is reaped already
                Ok(Event::Stop(_)) => return true,
                Err(_) => return false,
            }
        }
    }

    /// From spawn to death of one server process.
    fn live_once(&self, came_up_once: &mut bool) -> End {
        let DataLayout { cluster, socket_dir, .. } = &self.plan.place;
        if let Err(error) = process::clear_orphans(cluster, socket_dir) {
            return End::Died(error.to_string());
        }
        let (mut child, log_offset) = match self.spawn() {
            Ok(spawned) => spawned,
            Err(error) => return End::Died(error.to_string()),
        };
        let pid = Pid::from_child(&child);
        let end = self.wait_until_ready(pid).and_then(|()| {
            *came_up_once = true;
            self.status.send_replace(ServerStatus::Running { pid: child.id() });
            self.wait_for_end(pid)
        });
        let end = match end {
            Ok(never) => match never {},
            Err(end) => end,
        };
        let ended = self.shut_down(&mut child);
        match end {
            End::StopRequested => End::StopRequested,
            End::Died(reason) => {
                let said = self.fatal_lines(log_offset);
                let parts = [reason, ended, said]
                    .into_iter()
                    .filter(|part| !part.is_empty())
                    .collect::<Vec<_>>();
                End::Died(parts.join("; "))
            }
        }
    }

    fn spawn(&self) -> Result<(Child, u64), Error> {
        trim_log(&self.log);
        let failed = |error| io_error("cannot open", &self.log, error);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).map_err(failed)?;
        let offset = log.metadata().map_err(failed)?.len();
        let mut command = self.plan.launcher.command(&self.plan.postgres, "INT");
        command.args(&self.plan.arguments).stdout(log.try_clone().map_err(failed)?).stderr(log);
        let child =
            command.spawn().map_err(|error| io_error("cannot run", &self.plan.postgres, error))?;
        let (pid, events) = (Pid::from_child(&child), self.events.clone());
        // Waits without reaping: until this worker reaps the process, its pid is not reused.
        let waiter = move || {
            let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(WaitId::Pid(pid), ended), Err(Errno::INTR)) {}
            let _ = events.send(Event::Exited(pid));
        };
        if let Err(error) = thread::Builder::new().name("postgres-wait".into()).spawn(waiter) {
            let mut child = child;
            self.shut_down(&mut child);
            return Err(io_error("cannot start a thread for", &self.plan.postgres, error));
        }
        Ok((child, offset))
    }

    fn wait_until_ready(&self, pid: Pid) -> Result<(), End> {
        let begin = Instant::now();
        let mut next_notice = RECOVERY_NOTICE_EVERY;
        while !process::says_ready(&self.plan.place.cluster, pid) {
            match self.inbox.recv_timeout(READY_POLL) {
                Ok(Event::Exited(dead)) if dead == pid => {
                    return Err(End::Died("it did not start".into()));
                }
                Ok(Event::Stop(patience)) => {
                    self.patience.set(patience);
                    return Err(End::StopRequested);
                }
                Ok(Event::Exited(_)) | Err(_) => {}
            }
            let waited = begin.elapsed();
            let listens = process::postmaster_pid(&self.plan.place.cluster) == Some(pid);
            if waited > if listens { RECOVERY_LIMIT } else { START_LIMIT } {
                return Err(End::Died(format!(
                    "it accepted no connection within {} s",
                    waited.as_secs()
                )));
            }
            if waited > next_notice {
                next_notice += RECOVERY_NOTICE_EVERY;
                tracing::warn!(
                    "PostgreSQL is still recovering from a crash after {} s; see {}",
                    waited.as_secs(),
                    self.log.display()
                );
            }
        }
        Ok(())
    }

    fn wait_for_end(&self, pid: Pid) -> Result<std::convert::Infallible, End> {
        loop {
            match self.inbox.recv_timeout(LOG_CHECK_EVERY) {
                Ok(Event::Exited(dead)) if dead == pid => return Err(End::Died(String::new())),
                Ok(Event::Stop(patience)) => {
                    self.patience.set(patience);
                    return Err(End::StopRequested);
                }
                Err(RecvTimeoutError::Disconnected) => return Err(End::StopRequested),
                Ok(Event::Exited(_)) | Err(RecvTimeoutError::Timeout) => trim_log(&self.log),
            }
        }
    }

    /// Ends the process, at once if it is already dead. Returns how it ended if that was not orderly.
    fn shut_down(&self, child: &mut Child) -> String {
        let pid = Pid::from_child(child);
        // A server suspended by SIGSTOP reacts only to the last signal.
        let hard = (self.patience.get() / 5).min(HARD_STOP_LIMIT);
        let fast = self.patience.get().saturating_sub(hard).min(FAST_STOP_LIMIT);
        let steps = [(Signal::INT, fast), (Signal::QUIT, hard), (Signal::KILL, HARD_STOP_LIMIT)];
        for (signal, limit) in steps {
            if !matches!(child.try_wait(), Ok(None)) {
                break;
            }
            let _ = kill_process(pid, signal);
            let deadline = Instant::now() + limit;
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(2));
            }
        }
        match child.try_wait() {
            Ok(Some(status)) if status.success() => String::new(),
            Ok(Some(status)) => status.to_string(),
            Ok(None) => format!("process {} does not end", child.id()),
            Err(error) => error.to_string(),
        }
    }

    /// The log lines of this start that explain its end.
    fn fatal_lines(&self, offset: u64) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut log| {
            let end = log.metadata()?.len();
            log.seek(SeekFrom::Start(offset.max(end.saturating_sub(64 << 10))))?;
            log.read_to_end(&mut text)
        });
        let text = String::from_utf8_lossy(&text);
        let fatal: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("FATAL:") || line.contains("PANIC:"))
            .collect();
        match (read.is_ok(), fatal.is_empty()) {
            (false, _) => String::new(),
            (true, true) => process::last_lines(&text, 2),
            (true, false) => process::last_lines(&fatal.join("\n"), 2),
        }
    }
}

/// Truncates a large log. The server appends, so its next lines go to the file's new beginning.
fn trim_log(log: &Path) {
    if !fs::metadata(log).is_ok_and(|metadata| metadata.len() > LOG_MAX_BYTES) {
        return;
    }
    let kept = log.with_extension("log.1");
    let trimmed =
        fs::copy(log, kept).and_then(|_| OpenOptions::new().write(true).open(log)?.set_len(0));
    if let Err(error) = trimmed {
        tracing::warn!(%error, log = %log.display(), "cannot trim the log of PostgreSQL");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_trimmed_beyond_its_bound_and_its_tail_is_kept_aside() {
        let folder = std::env::temp_dir().join(format!("proxie-log-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let log = folder.join("postgres.log");
        fs::write(&log, vec![b'x'; LOG_MAX_BYTES as usize]).unwrap();
        trim_log(&log);
        assert_eq!(fs::metadata(&log).unwrap().len(), LOG_MAX_BYTES, "within the bound");
        fs::write(&log, vec![b'x'; LOG_MAX_BYTES as usize + 1]).unwrap();
        trim_log(&log);
        assert_eq!(fs::metadata(&log).unwrap().len(), 0);
        assert_eq!(fs::metadata(folder.join("postgres.log.1")).unwrap().len(), LOG_MAX_BYTES + 1);
        fs::remove_dir_all(&folder).unwrap();
    }
}
