//! Several nodes on this machine, on a fresh PostgreSQL: `./dev cluster 3`. Ctrl-C ends all of it.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use proxie::persistence::embedded::{DataLock, Embedded, Options};
use sqlx::ConnectOptions;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let nodes: u16 = std::env::args().nth(1).map_or(Ok(3), |n| n.parse()).context("how many?")?;
    ensure!((1..=9).contains(&nodes), "1 to 9 nodes");
    let folder = std::env::temp_dir().join(format!("proxie-cluster-{}", std::process::id()));
    let lock = DataLock::acquire(&folder)?;
    let options = Options { max_connections: 40 * nodes as u32 + 20, ..Options::new(&folder) };
    let server = Embedded::start(options, lock).await?;
    let database = server.connect_options().to_url_lossy().to_string();
    let done = run(nodes, &folder, &database).await;
    server.stop().await?;
    let _ = std::fs::remove_dir_all(folder);
    done
}

async fn run(nodes: u16, folder: &Path, database: &str) -> anyhow::Result<()> {
    let me = std::env::current_exe()?;
    let binary = me.parent().and_then(Path::parent).context("target folder")?.join("proxie");
    ensure!(binary.exists(), "build the node first: cargo build --release");
    let mut running = Vec::new();
    for n in 1..=nodes {
        running.push(Node::start(&binary, folder, database, n)?);
        println!(
            "node-{n}: http://127.0.0.1:{}   log: {}",
            8_080 + n,
            folder.join(format!("node-{n}.log")).display()
        );
    }
    println!(
        "\nexport DATABASE_URL='{database}' PROXIE__AUTH__DEV_TOKENS=true\n\
         proxie cluster status\n\
         proxie demo --at http://127.0.0.1:8081 --at http://127.0.0.1:{}\n\
         kill -9 {}      # node-{nodes}\n\n\
         Ctrl-C ends all of it.",
        8_080 + nodes,
        running.last().context("a node")?.0.id(),
    );
    tokio::signal::ctrl_c().await?;
    println!();
    // One after the other: each hands over to those that are left.
    running.into_iter().for_each(Node::stop);
    Ok(())
}

struct Node(Child);

impl Node {
    fn start(binary: &Path, folder: &Path, database: &str, n: u16) -> anyhow::Result<Self> {
        let log = std::fs::File::create(folder.join(format!("node-{n}.log")))?;
        let mut child = Command::new(binary)
            .arg("serve")
            .current_dir(folder)
            .env("DATABASE_URL", database)
            .env("PROXIE__CLUSTER__ENABLED", "true")
            .env("PROXIE__CLUSTER__COOKIE", "development")
            .env("PROXIE__CLUSTER__LISTEN", format!("127.0.0.1:{}", 9_090 + n))
            .env("PROXIE__GATEWAY__LISTEN", format!("127.0.0.1:{}", 8_080 + n))
            .env("PROXIE__NODE__NAME", format!("node-{n}"))
            .env("PROXIE__AUTH__DEV_TOKENS", "true")
            .env("PROXIE__SEED__DEMO", "true")
            // In a group of its own: Ctrl-C is for this process, which then ends them in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let ready = lines.map_while(Result::ok).any(|line| line.starts_with("proxie ready on"));
        ensure!(
            ready,
            "node-{n} did not start: see {}",
            folder.join(format!("node-{n}.log")).display()
        );
        Ok(Self(child))
    }

    fn stop(mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
