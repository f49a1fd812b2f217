//! Other people's clients and our own, in their own languages, against a node as a user runs it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::process::{Folder, Served, run, text};

const EMBEDDED: [(&str, &str); 2] =
    [("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0"), ("PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF", "true")];

/// The folder of the TypeScript client, its packages installed and its sources compiled.
fn typescript() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/typescript");
        must(npm(&folder, &["ci", "--no-audit", "--no-fund"]));
        must(npm(&folder, &["run", "build"]));
        folder
    })
}

fn npm(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("npm");
    command.args(arguments).current_dir(folder);
    command
}

fn must(mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|e| {
        panic!("{}: {e}; ./dev test installs it", command.get_program().display())
    });
    let shown = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{shown}");
    shown
}

/// A node on a store of its own, with the demonstration's providers.
fn served(folder: &Folder) -> (Served, String) {
    let node = Served::start(folder, &EMBEDDED);
    let token = run(folder, &["token", "--user", "clara"], &EMBEDDED);
    assert!(token.status.success(), "{}", text(&token.stderr));
    (node, text(&token.stdout).lines().last().unwrap().to_owned())
}

#[test]
fn the_typescript_client() {
    let client = typescript();
    let folder = Folder::new("typescript");
    let (node, token) = served(&folder);
    let mut tests = Command::new("sh");
    tests
        .args(["-c", "node --test dist/test/unit/*.test.js dist/test/*.test.js"])
        .current_dir(client)
        .env("PROXIE_URL", format!("http://{}", node.address))
        .env("PROXIE_TOKEN_CONSUMER", token)
        .env("PROXIE_REQUIRED", "1");
    let shown = must(tests);
    assert!(shown.contains("# fail 0") && shown.contains("# skipped 0"), "{shown}");
}
