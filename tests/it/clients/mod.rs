//! Other people's clients and our own, in their own languages, against a node as a user runs it.

mod middlebox;
mod package;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, Once, PoisonError};

use crate::cluster::Nodes;
use crate::process::{Folder, Served, run, text};

const EMBEDDED: [(&str, &str); 2] =
    [("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0"), ("PROXIE__PERSISTENCE__ALLOW_FSYNC_OFF", "true")];

/// A folder with its packages, which are installed once.
pub fn installed(name: &'static str) -> PathBuf {
    static INSTALLED: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if installed.insert(name) {
        must(npm(&folder, &["ci", "--no-audit", "--no-fund"]));
    }
    folder
}

fn npm(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("npm");
    command.args(arguments).current_dir(folder);
    command
}

pub fn must(mut command: Command) -> String {
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
    let token = run(folder, &["token", "--user", "clara", "--tier", "premium"], &EMBEDDED);
    assert!(token.status.success(), "{}", text(&token.stderr));
    (node, text(&token.stdout).lines().last().unwrap().to_owned())
}

/// Our client and its tests, built once.
fn typescript() -> PathBuf {
    static BUILT: Once = Once::new();
    let client = installed("clients/typescript");
    BUILT.call_once(|| {
        must(npm(&client, &["run", "build"]));
        must(npm(&client, &["exec", "tsc"]));
    });
    client
}

/// Packages of Python, for `PYTHONPATH`.
pub fn pip(folder: &Path, wanted: &[&str]) -> PathBuf {
    let packages = folder.join("packages");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
        .arg(&packages)
        .args(wanted);
    must(pip);
    packages
}

fn websockets(folder: &Path) -> PathBuf {
    pip(folder, &["websockets==15.0.1"])
}

#[test]
fn the_typescript_client() {
    let client = typescript();
    let folder = Folder::new("typescript");
    let (node, token) = served(&folder);
    let mut tests = Command::new("sh");
    tests
        .args([
            "-c",
            "node --test --test-reporter=tap dist/test/unit/*.test.js dist/test/*.test.js",
        ])
        .current_dir(client)
        .env("PROXIE_URL", format!("http://{}", node.address))
        .env("PROXIE_TOKEN_CONSUMER", token)
        .env("PROXIE_REQUIRED", "1");
    let shown = must(tests);
    assert!(shown.contains("# fail 0") && shown.contains("ok 1 - a real node\n"), "{shown}");
}

/// What a user reaches several nodes through: the first one that takes the connection gets it.
async fn balancer(nodes: Vec<SocketAddr>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let nodes = nodes.clone();
            tokio::spawn(async move {
                for node in nodes {
                    if let Ok(mut node) = tokio::net::TcpStream::connect(node).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut node).await;
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_in_a_browser_with_a_node_killed_under_it() {
    let console = installed("clients/console");
    let wishes = ["kill"];
    beside_two_nodes("console", &console, "test/console.mjs", &[], &wishes, |nodes, _| {
        nodes.kill(0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_socket_io() {
    let client = installed("tests/it/clients/socketio");
    let wishes = ["drain", "revoke"];
    beside_two_nodes(
        "socketio",
        &client,
        "conversation.mjs",
        &[],
        &wishes,
        |nodes, wish| match wish {
            "drain" => nodes.signal(0, rustix::process::Signal::TERM),
            _ => drop(nodes.command(&["token", "revoke", "--user", "clara"])),
        },
    )
    .await;
}

/// A phone in Node.js, a laptop in Chromium and a tablet in Python.
#[tokio::test(flavor = "multi_thread")]
async fn three_devices_with_a_node_killed_under_them() {
    typescript();
    installed("clients/console");
    let packages = Folder::new("three-devices");
    let packages = websockets(&packages.0);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clients/devices");
    let environment = [("PYTHONPATH", packages.as_path())];
    beside_two_nodes("devices", &folder, "devices.mjs", &environment, &["kill"], |nodes, _| {
        nodes.kill(0)
    })
    .await;
}

/// Runs a script for `clara` against two nodes behind a balancer. It says what it wishes to happen to them, and "ok" when
/// all was as it should be.
async fn beside_two_nodes(
    name: &str,
    folder: &Path,
    script: &str,
    environment: &[(&str, &Path)],
    wishes: &[&str],
    grant: impl Fn(&mut Nodes, &str),
) {
    let mut nodes = Nodes::with(name, 2, false, &[("PROXIE__SEED__DEMO", "true")]).await;
    nodes.settled(2).await;
    let token = nodes.token("clara", "consumer");
    let address = balancer(vec![nodes.address(0), nodes.address(1)]).await;
    let mut script = Command::new("node")
        .args([script, &format!("http://{address}")])
        .env("PROXIE_TOKEN", token)
        .envs(environment.iter().copied())
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = script.stdin.take().unwrap();
    let mut said = Vec::new();
    for line in BufReader::new(script.stdout.take().unwrap()).lines().map_while(Result::ok) {
        if wishes.contains(&line.as_str()) {
            grant(&mut nodes, &line);
            writeln!(input, "done").unwrap();
        }
        said.push(line);
    }
    let output = script.wait_with_output().unwrap();
    assert!(output.status.success(), "{said:?}\n{}", text(&output.stderr));
    assert_eq!(said, [wishes, &["ok"]].concat());
}

/// A node embeds what `./dev console` built, and the browser's test below is one of that.
#[test]
fn the_console_is_built_from_its_sources() {
    let console = installed("clients/console");
    must(npm(&console, &["run", "check"]));
    let built = console.join("dist/console.js");
    let before = std::fs::read_to_string(&built).unwrap_or_default();
    must(npm(&console, &["run", "build"]));
    let fresh = std::fs::read_to_string(&built).unwrap();
    assert!(before == fresh, "the console was built from other sources: run the tests again");
}

#[test]
fn the_websockets_of_python() {
    let folder = Folder::new("websockets");
    let packages = websockets(&folder.0);
    let (node, token) = served(&folder);
    let mut script = Command::new("python3");
    script
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/clients/conversation.py"))
        .arg(format!("ws://{}/v1/ws", node.address))
        .env("PROXIE_TOKEN", token)
        .env("PYTHONPATH", &packages);
    assert!(must(script).contains("ok"));
}
