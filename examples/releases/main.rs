//! Two releases side by side: two nodes on one database are rolled forward from the older release to the newer one, and
//! back, under load.
//!
//! `./dev releases A B`, or `releases OLDER-BINARY NEWER-BINARY [ROUNDS]`
//!
//! `NEWER_SETTINGS` are settings that only the newer release knows, as `NAME=VALUE` with blanks between them.
//!
//! A round restarts both nodes as the newer release, one after the other, and both as the older one again. Meanwhile
//! clients do what people do, over the nodes that say they are ready. A call whose connection ended is sent again under
//! its id, as clients do; every other answer than a good one is a failure. In the end nothing may be undelivered, given
//! up, parked, lost or doubled.

mod suite;

use std::path::PathBuf;

use anyhow::Context;
use proxie::persistence::embedded::{DataLock, Embedded, Options};
use sqlx::ConnectOptions;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut binary = || arguments.next().map(PathBuf::from).context("which binaries?");
    let (older, newer) = (binary()?, binary()?);
    let rounds = arguments.next().map_or(Ok(20), |n| n.parse()).context("how many rounds?")?;
    let folder = std::env::temp_dir().join(format!("proxie-releases-{}", std::process::id()));
    let lock = DataLock::acquire(&folder.join("store"))?;
    let options = Options { max_connections: 200, ..Options::new(folder.join("store")) };
    let server = Embedded::start(options, lock).await?;
    let database = server.connect_options().to_url_lossy().to_string();
    let done = suite::run(&[&older, &newer], &folder, &database, rounds).await;
    server.stop().await?;
    match &done {
        Ok(()) => drop(std::fs::remove_dir_all(&folder)),
        Err(_) => println!("the nodes' logs are in {}", folder.display()),
    }
    done
}
