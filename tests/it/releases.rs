//! Two releases on one database: what each must take from the other.

use std::path::Path;

use sqlx::ConnectOptions;

use crate::process::Folder;
use crate::support::database;

#[path = "../../examples/releases/suite.rs"]
#[allow(dead_code)]
mod harness;

/// With this binary twice, or an older one that `PROXIE_OLDER` names. `./dev releases` does it with two commits.
#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_are_rolled_forward_and_back_under_load() {
    let folder = Folder::new("releases");
    let database = database().await.to_url_lossy().to_string();
    let newer = Path::new(env!("CARGO_BIN_EXE_proxie"));
    let older = std::env::var_os("PROXIE_OLDER");
    let older = older.as_deref().map_or(newer, Path::new);
    harness::run(&[older, newer], &folder.0, &database, 1).await.unwrap();
}
