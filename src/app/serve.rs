//! The process of a node, from its start to its end, orderly or not.

use std::time::Duration;

use anyhow::bail;

use crate::app::node::{self, ExitReason};
use crate::config::Config;
use crate::telemetry;

/// Runs a node until it is asked to stop, or cannot go on.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    telemetry::init_logs(&config.log);
    telemetry::metrics();
    let mut signals = Signals::new()?;
    let node = tokio::select! {
        node = node::Node::start(config) => node?,
        () = signals.recv() => bail!("interrupted while starting"),
    };
    if std::env::var_os(REJOINING).is_none() {
        println!("proxie ready on http://{}", node.address);
    } else {
        tracing::info!(address = %node.address, "back in the cluster");
    }
    let end = tokio::select! {
        doom = node.doomed() => Err(match doom {
            ExitReason::Evicted if config.cluster.enabled => {
                node.abandon().await;
                return Err(rejoin(node.address));
            }
            ExitReason::Evicted => anyhow::anyhow!("another node has taken over this node's slots"),
            ExitReason::Other(reason) => anyhow::anyhow!(reason),
        }),
        () = node.asked_to_leave() => Ok(()),
        () = signals.recv() => Ok(()),
    };
    tracing::info!("draining");
    end_at_the_latest(Duration::from_secs(config.node.stop_s));
    tokio::select! {
        () = node.stop() => {}
        () = signals.recv() => {
            tracing::warn!("a second signal: ending at once");
            // No waiting, as a drop would: a server that this process started dies with it.
            std::process::exit(1);
        }
    }
    end
}

/// Ends the process after this limit, whatever hangs: its supervisor waits no longer.
fn end_at_the_latest(limit: Duration) {
    let spawned = std::thread::Builder::new().name("stop".into()).spawn(move || {
        // Parts that end in time do so a little earlier.
        std::thread::sleep(limit + Duration::from_millis(500));
        eprintln!("proxie: not everything stopped within node.stop_s ({} s)", limit.as_secs());
        std::process::exit(1);
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "nobody watches over how long the stop takes");
    }
}

/// Set in a process that has replaced itself. It was ready before, and prints that only once.
const REJOINING: &str = "PROXIE_REJOINING";

/// Restarts a node that was declared dead, under a new incarnation. The process replaces itself, so that no state of
/// its former life, which may be arbitrarily stale, is left. Returns only if that fails.
fn rejoin(address: std::net::SocketAddr) -> anyhow::Error {
    use std::os::unix::process::CommandExt;
    tracing::warn!("this node was declared dead by others; it comes back under a new incarnation");
    let mut arguments = std::env::args_os();
    // An upgrade may have replaced the file meanwhile; this path is the binary that is running.
    let mut command = std::process::Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // The configured port may have been 0 (any free one); clients know the actual one.
    command.env("PROXIE__GATEWAY__LISTEN", address.to_string());
    anyhow::Error::new(command.args(arguments).env(REJOINING, "1").exec())
        .context("this node was declared dead and cannot start again")
}

/// The signals SIGINT and SIGTERM.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
