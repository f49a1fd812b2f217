//! Clients of Socket.IO behind what stands between them and a node, and a node that goes away: they come back, and do not
//! storm it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{EMBEDDED, installed, pip, served};
use crate::process::{Folder, Served};

/// What is done to a connection that has become a WebSocket.
#[derive(Clone, Copy)]
enum Does {
    Nothing,
    /// It is dropped at once.
    Drops,
    /// It is dropped after a while.
    Cuts,
    /// It stays, and nothing comes through it.
    Swallows,
}

const ALL: [(&str, Does); 4] = [
    ("plain", Does::Nothing),
    ("drops", Does::Drops),
    ("cuts", Does::Cuts),
    ("swallows", Does::Swallows),
];

#[derive(Clone)]
struct Middlebox {
    node: Arc<Mutex<SocketAddr>>,
    /// When they came.
    requests: Arc<Mutex<Vec<Instant>>>,
}

impl Middlebox {
    async fn start(does: Does, node: Arc<Mutex<SocketAddr>>) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let middlebox = Self { node, requests: Arc::default() };
        let this = middlebox.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let this = this.clone();
                tokio::spawn(async move { this.carry(does, client).await });
            }
        });
        (middlebox, address)
    }

    async fn carry(self, does: Does, mut client: TcpStream) -> Option<()> {
        let node = *self.node.lock().unwrap();
        let mut node = TcpStream::connect(node).await.ok()?;
        let (mut upgraded, mut up, mut down) = (false, vec![0; 16_384], vec![0; 16_384]);
        let mut cut = Box::pin(tokio::time::sleep(Duration::MAX));
        loop {
            tokio::select! {
                read = client.read(&mut up) => {
                    let bytes = &up[..read.ok().filter(|n| *n > 0)?];
                    if !upgraded {
                        let begins = |window: &&[u8]| *window == b" /socket.io/?";
                        let new = bytes.windows(13).filter(begins).map(|_| Instant::now());
                        self.requests.lock().unwrap().extend(new);
                    }
                    if !(upgraded && matches!(does, Does::Swallows)) {
                        node.write_all(bytes).await.ok()?;
                    }
                }
                read = node.read(&mut down) => {
                    let bytes = &down[..read.ok().filter(|n| *n > 0)?];
                    if upgraded && matches!(does, Does::Swallows) {
                        continue;
                    }
                    client.write_all(bytes).await.ok()?;
                    if !upgraded && bytes.starts_with(b"HTTP/1.1 101") {
                        upgraded = true;
                        match does {
                            Does::Drops => return None,
                            Does::Cuts => cut = Box::pin(tokio::time::sleep(Duration::from_secs(4))),
                            Does::Nothing | Does::Swallows => {}
                        }
                    }
                }
                () = &mut cut => return None,
            }
        }
    }

    /// The most that came within this time.
    fn most(&self, within: Duration) -> usize {
        let requests = self.requests.lock().unwrap();
        let since = |first: usize| {
            requests[first..].iter().take_while(|at| **at - requests[first] <= within).count()
        };
        (0..requests.len()).map(since).max().unwrap_or_default()
    }
}

/// Killed at the end.
struct Script(Child);

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(mut command: Command, log: &Path, said: Sender<String>) -> Script {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(log).unwrap())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    std::thread::spawn(move || lines.into_iter().try_for_each(|line| said.send(line)));
    Script(child)
}

/// Until each of these has been answered so often.
fn answered(said: &Receiver<String>, names: &[String], times: usize, what: &str, logs: &[&Path]) {
    let mut counts: BTreeMap<&str, usize> = names.iter().map(|name| (&**name, 0)).collect();
    let end = Instant::now() + Duration::from_secs(180);
    while counts.values().any(|n| *n < times) {
        let left = end.saturating_duration_since(Instant::now());
        let Ok(name) = said.recv_timeout(left) else {
            let logs: Vec<_> =
                logs.iter().map(|log| std::fs::read_to_string(log).unwrap()).collect();
            panic!("{what}: {counts:?}\n{}", logs.concat());
        };
        *counts.get_mut(name.as_str()).unwrap() += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_socket_io_come_back_and_do_not_storm() {
    let folder = Folder::new("middlebox");
    let scripts = installed("tests/it/clients/socketio");
    let packages = pip(&folder.0, &["python-socketio==5.18.1", "aiohttp==3.14.5"]);
    let (node, token) = served(&folder);
    let address = Arc::new(Mutex::new(node.address));
    let (mut boxes, mut urls) = (Vec::new(), BTreeMap::<&str, BTreeMap<String, String>>::new());
    for client in ["js3", "js4", "python"] {
        for (how, does) in ALL {
            let (middlebox, address) = Middlebox::start(does, address.clone()).await;
            let name = format!("{client}-{how}");
            let script = if client == "python" { "stays.py" } else { "stays.mjs" };
            urls.entry(script).or_default().insert(name.clone(), format!("http://{address}"));
            boxes.push((name, middlebox));
        }
    }
    let names: Vec<String> = boxes.iter().map(|(name, _)| name.clone()).collect();
    let logs = [folder.0.join("stays.mjs.log"), folder.0.join("stays.py.log")];
    let logs = [logs[0].as_path(), logs[1].as_path()];
    let (sender, said) = channel();
    let _scripts: Vec<Script> = [("node", "stays.mjs"), ("python3", "stays.py")]
        .into_iter()
        .zip(logs)
        .map(|((program, script), log)| {
            let mut command = Command::new(program);
            command
                .arg(script)
                .arg(serde_json::to_string(&urls[script]).unwrap())
                .current_dir(&scripts)
                .env("PROXIE_TOKEN", &token)
                .env("PYTHONPATH", &packages);
            start(command, log, sender.clone())
        })
        .collect();
    let waits = async |times, what: &str| {
        tokio::task::block_in_place(|| answered(&said, &names, times, what, &logs));
    };
    waits(8, "at first").await;
    let restart = |node: Served| {
        drop(node);
        let node = Served::start(&folder, &EMBEDDED);
        *address.lock().unwrap() = node.address;
        // What had been answered before.
        while said.try_recv().is_ok() {}
        node
    };
    let mut node = node;
    node.signal(Signal::TERM);
    assert_eq!(node.ended(), Some(0), "{}", node.log());
    let node = restart(node);
    waits(3, "after SIGTERM").await;
    let node = restart(node);
    waits(3, "after SIGKILL").await;
    drop(node);
    let within = Duration::from_secs(5);
    let most: Vec<_> = boxes.iter().map(|(name, one)| (name, one.most(within))).collect();
    println!("the most requests of a client within 5 s: {most:?}");
    assert!(most.iter().all(|(_, requests)| (1..=50).contains(requests)), "{most:?}");
}
