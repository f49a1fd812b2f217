//! Nodes for the protocol's conformance suite: `./dev suites mcp`. They are the product's, with one system more.
//!
//! `conformance nodes 2` starts two on one database, says where they are, and stops them when its input ends.

mod system;

use std::io::Read;
use std::net::TcpListener;
use std::process::Stdio;

use anyhow::{Context, bail};
use proxie::app::node::Node;
use proxie::config::Config;
use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use proxie::persistence::embedded::{DataLock, Embedded, Options};
use sqlx::ConnectOptions;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["node"] => runtime.block_on(node()),
        ["nodes", count] => runtime.block_on(nodes(count.parse()?)),
        _ => bail!("usage: conformance nodes N"),
    }
}

/// One node, as its environment says, until its input ends.
async fn node() -> anyhow::Result<()> {
    let config = Config::load(None).map_err(anyhow::Error::msg)?;
    proxie::telemetry::init_logs(&config.log);
    proxie::telemetry::metrics();
    let node = Node::start_systems(&config, Clock::System, system::all()).await?;
    println!("node http://{}", node.address);
    let auth = &node.gateway().auth;
    let token = auth.mint("clara", Role::Consumer, Clock::System.now(), 86_400);
    println!("token {token}");
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    node.stop().await;
    Ok(())
}

async fn nodes(count: usize) -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("proxie-conformance-{}", std::process::id()));
    let lock = DataLock::acquire(&folder)?;
    let server = Embedded::start(Options::new(&folder).without_durability(), lock).await?;
    let database = server.create_database("conformance", None).await?;
    let database = database.to_url_lossy().to_string();
    let mut children = Vec::new();
    for n in 0..count {
        // One after the other: the first one makes the tables.
        let (child, lines) = start(&database, n).await?;
        lines.iter().for_each(|line| println!("{line}"));
        children.push(child);
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    for mut child in children {
        drop(child.stdin.take());
        child.wait().await?;
    }
    server.stop().await?;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

/// A node in a process of its own, and what it says when it is ready.
async fn start(database: &str, n: usize) -> anyhow::Result<(Child, Vec<String>)> {
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let mut child = Command::new(std::env::current_exe()?)
        .arg("node")
        // Without this folder's configuration.
        .current_dir(std::env::temp_dir())
        .env("DATABASE_URL", database)
        .env("PROXIE__CLUSTER__ENABLED", "true")
        .env("PROXIE__CLUSTER__COOKIE", "secret")
        .env("PROXIE__CLUSTER__LISTEN", free)
        .env("PROXIE__NODE__NAME", format!("node-{n}"))
        .env("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0")
        .env("PROXIE__GATEWAY__DRAIN_GRACE_MS", "0")
        .env("PROXIE__GATEWAY__REQUESTS_PER_MINUTE", "100000")
        .env("PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF", "true")
        .env("PROXIE__PERSISTENCE__MAX_CONNECTIONS", "10")
        .env("PROXIE__LOG__LEVEL", "warn")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let said = child.stdout.take().context("no output")?;
    let mut lines = BufReader::new(said).lines();
    let mut heard = Vec::new();
    while let Some(line) = lines.next_line().await? {
        let is_last = line.starts_with("token ");
        heard.push(line);
        if is_last {
            return Ok((child, heard));
        }
    }
    bail!("node {n} did not start")
}
