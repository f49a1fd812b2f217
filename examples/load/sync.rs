//! What a thousand people with three devices each write, until all three devices of each have heard it. Beside Yjs with
//! y-websocket, which keeps nothing on disk. Nothing is pinned: the nodes and PostgreSQL share the machine with the clients.

#![expect(clippy::await_holding_refcell_ref, reason = "one task drives a person")]

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures_util::{StreamExt, TryStreamExt};
use proxie::gateway::auth::{Auth, fresh_key};
use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use proxie::persistence::embedded::{DataLock, Embedded, Options};
use proxie::persistence::keys;
use proxie::systems::devices::domain::clock::{DeviceId, to_ntp};
use serde_json::{Value, json};
use sqlx::ConnectOptions;
use sqlx::postgres::PgPool;
use tokio_tungstenite::tungstenite::Message;

use super::servers::Server;
use super::wire::{Client, Target, Wire};
use super::{AT_ONCE, RUNS, median, spread, storm};

const PEOPLE: usize = 1_000;
const DEVICES: usize = 3;
const WINDOW: Duration = Duration::from_secs(5);
/// Operations of Yjs, made before, for each device.
const UPDATES: usize = 5_000;
/// A second, of all devices together: more than either server keeps up with.
const OFFERED: f64 = 30_000.0;
const QUEUED: u64 = 10_000;
/// In one message: what fits into a frame of 64 KiB.
const BATCH: usize = 250;

pub async fn run() -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("proxie-sync-{}", std::process::id()));
    let lock = DataLock::acquire(&folder)?;
    let options = Options { max_connections: 100, ..Options::new(&folder) };
    let server = Embedded::start(options, lock).await?;
    let done = all(&folder, &server).await;
    server.stop().await?;
    let _ = std::fs::remove_dir_all(folder);
    done
}

async fn all(folder: &Path, server: &Embedded) -> anyhow::Result<()> {
    let database = server.connect_options();
    let first = storm::node(folder, database.to_url_lossy().as_str(), 1)?;
    let pool = PgPool::connect_with(database.clone()).await?;
    let auth = Auth::new(&keys::signing_keys(&pool, fresh_key(), 86_400).await?[0]);
    let token = |user: &str| auth.mint(user, Role::Consumer, Clock::System.now(), 3_600);
    println!(
        "# {PEOPLE} people with {DEVICES} devices; medians of {RUNS} interleaved runs of {} s (least to most)",
        WINDOW.as_secs()
    );
    println!("# load before: {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    let yjs = Yjs::start()?;

    let people = people(&[&first], &token, "p").await?;
    let others = match &yjs {
        Some(yjs) => yjs.people().await?,
        None => Vec::new(),
    };
    paced("the same node", people.clone()).await?;
    for pace in [Pace::OneAtATime, Pace::Offered(OFFERED)] {
        written(pace, &first, &people, yjs.as_ref(), &others).await?;
    }
    drop((people, others));
    let second = storm::node(folder, database.to_url_lossy().as_str(), 2)?;
    // Half of the slots are handed over.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let apart = self::people(&[&first, &second], &token, "q").await?;
    paced("another node", apart).await?;
    for n in 0..RUNS {
        offline(&first, &second, &token(&format!("offline-{n}"))).await?;
    }
    bounded(&first, &pool, "bounded", &token("bounded")).await
}

fn now() -> u64 {
    to_ntp(Clock::System.now()).0
}

fn position(n: u64) -> Value {
    json!({
        "sequence": n, "timestamp": now().to_string(), "operation_type": "PlaybackUpdate",
        "payload": {"content_id": format!("tt{:07}", n % 20), "position_ms": n * 1_000},
    })
}

/// `sync:update`, as cheap as a client can make it.
fn frame(id: &str, device: &str, sequences: std::ops::Range<u64>) -> String {
    let time = now();
    let operation = |n: u64| {
        let (content, position_ms) = (n % 20, n * 1_000);
        format!(
            "{{\"sequence\":{n},\"timestamp\":\"{}\",\"operation_type\":\"PlaybackUpdate\",\"payload\":{{\"content_id\":\"tt{content:07}\",\"position_ms\":{position_ms}}}}}",
            time + n
        )
    };
    let operations: Vec<String> = sequences.map(operation).collect();
    format!(
        "{{\"id\":\"{id}\",\"event\":\"sync:update\",\"data\":{{\"device_id\":\"{device}\",\"operations\":[{}]}}}}",
        operations.join(",")
    )
}

/// A person's devices, and how many operations each has written.
struct Person {
    devices: Vec<(String, Client, u64)>,
}

type People = Vec<Rc<RefCell<Person>>>;

async fn device(at: &Target, token: &str, id: u128) -> anyhow::Result<(String, Client, u64)> {
    let mut target = at.clone();
    target.wire = Wire::Proxie { token: token.into() };
    let mut client = target.connect().await?;
    let id = DeviceId::new(id).to_string();
    let body = json!({"device_id": id, "name": "load", "device_type": "web"});
    client.ask("device:register", body).await?;
    Ok((id, client, 0))
}

/// The first device on the first node, the others on the last.
async fn people(
    nodes: &[&Server],
    token: &impl Fn(&str) -> String,
    prefix: &str,
) -> anyhow::Result<People> {
    let users: Vec<(usize, String, String)> = (0..PEOPLE)
        .map(|n| format!("{prefix}{n}"))
        .enumerate()
        .map(|(n, user)| (n, token(&user), user))
        .collect();
    futures_util::stream::iter(users)
        .map(|(n, token, user)| async move {
            let mut devices = Vec::new();
            for d in 0..DEVICES {
                let node = nodes[(nodes.len() - 1) * d.min(1)];
                let id = (u128::from(prefix.as_bytes()[0]) << 64) | (n * DEVICES + d) as u128;
                let mut device = device(&node.at(), &token, id).await?;
                device.1.subscribe(&format!("sync:{user}")).await?;
                devices.push(device);
            }
            anyhow::Ok(Rc::new(RefCell::new(Person { devices })))
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

impl Person {
    /// One operation: until it is acknowledged, and all devices have heard it. How long the others took.
    async fn write(&mut self, by: usize) -> anyhow::Result<Duration> {
        let (id, client, sequence) = &mut self.devices[by];
        *sequence += 1;
        let frame = frame(&client.id(), id, *sequence..*sequence + 1);
        let began = Instant::now();
        client.send(frame).await?;
        let mut heard = Duration::ZERO;
        for other in (0..DEVICES).filter(|other| *other != by) {
            until_delta(&mut self.devices[other].1).await?;
            heard = began.elapsed();
        }
        let client = &mut self.devices[by].1;
        let (mut acknowledged, mut delta) = (false, false);
        while !acknowledged || !delta {
            let text = client.next().await?;
            ensure!(!text.contains("\"ok\":false"), "{text}");
            acknowledged |= text.contains("\"ok\":true");
            delta |= text.contains("\"sync:delta\"");
        }
        Ok(heard)
    }
}

async fn until_delta(client: &mut Client) -> anyhow::Result<()> {
    while !client.next().await?.contains("\"sync:delta\"") {}
    Ok(())
}

fn percentile(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1_000.0
}

/// How devices write.
#[derive(Clone, Copy, PartialEq)]
enum Pace {
    /// The next operation when the last one was acknowledged.
    OneAtATime,
    /// So many a second of all devices together, whatever becomes of them. Where an acknowledgement is waited for, what has
    /// come meanwhile is the next message, as with our client; where not, each is one.
    Offered(f64),
}

async fn written(
    pace: Pace,
    node: &Server,
    people: &People,
    yjs: Option<&Yjs>,
    others: &[Rc<RefCell<YPerson>>],
) -> anyhow::Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let (mut cpu, mut their_cpu) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let before = node.cpu()?;
        let writing = people.iter().map(|person| {
            let person = person.clone();
            async move { person.borrow_mut().write_on(pace).await }
        });
        let (n, took) = everybody(writing).await?;
        ours.push(n / took.as_secs_f64());
        cpu.push((node.cpu()? - before).as_secs_f64() * 1e6 / n);
        if let Some(yjs) = yjs {
            let before = yjs.server.cpu()?;
            let writing = others.iter().map(|person| {
                let person = person.clone();
                async move { person.borrow_mut().write_on(yjs, pace).await }
            });
            let (n, took) = everybody(writing).await?;
            theirs.push(n / took.as_secs_f64());
            their_cpu.push((yjs.server.cpu()? - before).as_secs_f64() * 1e6 / n);
        }
    }
    let how = match pace {
        Pace::OneAtATime => "each device one at a time".into(),
        Pace::Offered(rate) => format!("{rate:.0} offered"),
    };
    println!(
        "operations a second that all {DEVICES} devices have heard, {how}; CPU of the server an operation"
    );
    println!("  proxie, durable   {}/s  {:.1} us, without PostgreSQL", spread(ours), median(cpu));
    if !theirs.is_empty() {
        println!(
            "  y-websocket       {}/s  {:.1} us, in memory",
            spread(theirs),
            median(their_cpu)
        );
    }
    Ok(())
}

/// What all write within the window, and how long it took until all of it was heard.
async fn everybody(
    writing: impl Iterator<Item = impl Future<Output = anyhow::Result<u64>>>,
) -> anyhow::Result<(f64, Duration)> {
    let began = Instant::now();
    let writing = futures_util::stream::iter(writing).buffer_unordered(PEOPLE);
    let written: Vec<u64> = writing.try_collect().await?;
    Ok((written.into_iter().sum::<u64>() as f64, began.elapsed()))
}

/// What one person's devices have written so far, and how many of them still do.
#[derive(Default)]
struct Tally {
    written: Cell<u64>,
    writing: Cell<usize>,
}

/// Drives one device. `message` makes one of so many operations; `heard` says of one that comes whether it acknowledges,
/// and how many operations are in it.
async fn drive(
    client: &mut Client,
    tally: &Tally,
    pace: Pace,
    waits: bool,
    mut message: impl FnMut(&mut Client, u64) -> anyhow::Result<Message>,
    heard: impl Fn(&Message) -> anyhow::Result<(bool, u64)>,
) -> anyhow::Result<()> {
    tally.writing.set(tally.writing.get() + 1);
    let began = Instant::now();
    let phase = rand::random::<f64>();
    // Operations that should have been written by now.
    let due = |sent: u64| match pace {
        _ if began.elapsed() >= WINDOW && pace == Pace::OneAtATime => sent,
        Pace::OneAtATime => sent + 1,
        Pace::Offered(rate) => {
            let share = rate / (PEOPLE * DEVICES) as f64;
            (began.elapsed().min(WINDOW).as_secs_f64() * share + phase) as u64
        }
    };
    let (mut sent, mut count, mut silent, mut waiting, mut writing) = (0, 0, 0, false, true);
    loop {
        let next = due(sent).saturating_sub(sent);
        if next > 0 && !(waits && waiting) {
            let n = if waits { next.min(BATCH as u64) } else { 1 };
            let message = message(client, n)?;
            client.send_message(message).await?;
            sent += n;
            tally.written.set(tally.written.get() + n);
            waiting = true;
            continue;
        }
        if writing && next == 0 && !(waits && waiting) && began.elapsed() >= WINDOW {
            writing = false;
            tally.writing.set(tally.writing.get() - 1);
        }
        if !writing && tally.writing.get() == 0 && count >= tally.written.get() {
            break;
        }
        let message = tokio::time::timeout(Duration::from_millis(50), client.message()).await;
        let Ok(message) = message else {
            silent += 1;
            let still = tally.writing.get();
            ensure!(silent < 400, "{count} heard of {}, {still} write", tally.written.get());
            continue;
        };
        silent = 0;
        let message = message.context("closed")?;
        if let Message::Close(reason) = &message {
            bail!("closed: {reason:?}");
        }
        let (acknowledged, operations) = heard(&message)?;
        count += operations;
        waiting &= !acknowledged;
    }
    ensure!(count == tally.written.get(), "{count} heard of {}", tally.written.get());
    Ok(())
}

impl Person {
    async fn write_on(&mut self, pace: Pace) -> anyhow::Result<u64> {
        let tally = Tally::default();
        let driven = self.devices.iter_mut().map(|(id, client, sequence)| {
            let message = move |client: &mut Client, n: u64| {
                let from = *sequence + 1;
                *sequence += n;
                Ok(Message::text(frame(&client.id(), id, from..from + n)))
            };
            let heard = |message: &Message| {
                let Message::Text(text) = message else { return Ok((false, 0)) };
                if text.starts_with("{\"event\":\"sync:delta\"") {
                    return Ok((false, text.matches("operation_type").count() as u64));
                }
                let reply = text.starts_with("{\"id\"");
                ensure!(!reply || text.contains("\"ok\":true"), "{text}");
                Ok((reply, 0))
            };
            drive(client, &tally, pace, true, message, heard)
        });
        futures_util::future::try_join_all(driven).await?;
        Ok(tally.written.get())
    }
}

/// A thousand operations a second: each person writes once a second.
async fn paced(title: &str, people: People) -> anyhow::Result<()> {
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        let driven = people.iter().enumerate().map(|(n, person)| async move {
            let mut times = Vec::new();
            let mut next = tokio::time::Instant::now()
                + Duration::from_secs(1).mul_f64(n as f64 / PEOPLE as f64);
            for _ in 0..WINDOW.as_secs() {
                tokio::time::sleep_until(next).await;
                next += Duration::from_secs(1);
                times.push(person.borrow_mut().write(0).await?);
            }
            anyhow::Ok(times)
        });
        let all: Vec<Vec<Duration>> =
            futures_util::stream::iter(driven).buffer_unordered(PEOPLE).try_collect().await?;
        runs.push(all.into_iter().flatten().collect::<Vec<_>>());
    }
    let p50 = runs.iter_mut().map(|times| percentile(times, 0.5)).collect();
    let p99 = runs.iter_mut().map(|times| percentile(times, 0.99)).collect();
    println!(
        "device to device over {title}, {PEOPLE} operations/s: p50 {} ms  p99 {} ms",
        spread(p50),
        spread(p99)
    );
    Ok(())
}

/// One device was offline for ten thousand operations; another one is there.
async fn offline(first: &Server, second: &Server, token: &str) -> anyhow::Result<()> {
    let seed = u128::from(rand::random::<u64>());
    let (id, mut phone, _) = device(&first.at(), token, seed << 32).await?;
    let (_, mut tv, _) = device(&second.at(), token, (seed << 32) + 1).await?;
    let state = phone.ask("sync:device", json!({"device_id": id})).await?;
    ensure!(state["sequence"] == 0, "{state}");
    let user = phone.ask("auth", json!({})).await?["user_id"].as_str().context("me")?.to_owned();
    tv.subscribe(&format!("sync:{user}")).await?;
    let operations: Vec<Value> = (1..=QUEUED).map(position).collect();
    let began = Instant::now();
    let sending = async {
        for batch in operations.chunks(BATCH) {
            phone.ask("sync:update", json!({"device_id": id, "operations": batch})).await?;
        }
        anyhow::Ok(began.elapsed())
    };
    let hearing = async {
        let mut heard = 0;
        while heard < QUEUED {
            heard += tv.next().await?.matches("\"PlaybackUpdate\"").count() as u64;
        }
        anyhow::Ok(began.elapsed())
    };
    let (sent, heard) = tokio::try_join!(sending, hearing)?;
    println!(
        "{QUEUED} operations queued offline: durable after {:.2} s, heard on another node after {:.2} s",
        sent.as_secs_f64(),
        heard.as_secs_f64()
    );
    Ok(())
}

/// A watchlist of ten thousand items after a hundred thousand additions and removals.
async fn bounded(node: &Server, pool: &PgPool, user: &str, token: &str) -> anyhow::Result<()> {
    const ITEMS: u64 = 10_000;
    let (id, mut client, _) = device(&node.at(), token, u128::from(rand::random::<u64>())).await?;
    let name = |n: u64| (format!("tt{n:07}"), format!("01KENGYJ0000000000{n:08}"));
    let operation = |sequence: u64, kind: &str, n: u64| {
        let (content_id, tag) = name(n);
        json!({
            "sequence": sequence, "timestamp": now().to_string(), "operation_type": kind,
            "payload": {"content_id": content_id, "tag": tag},
        })
    };
    let mut operations = Vec::new();
    for n in 0..55_000 {
        operations.push(operation(operations.len() as u64 + 1, "WatchlistAdd", n));
        if n >= ITEMS {
            operations.push(operation(operations.len() as u64 + 1, "WatchlistRemove", n - ITEMS));
        }
    }
    let mut position = Value::Null;
    for batch in operations.chunks(BATCH) {
        let data = json!({"device_id": id, "operations": batch, "position": position});
        position = client.ask("sync:update", data).await?["position"].take();
    }
    // The device has seen it all, and enough is said after it for a snapshot.
    for n in 0..120 {
        let sequence = operations.len() as u64 + n + 1;
        let nothing = json!({"sequence": sequence, "timestamp": now().to_string(), "operation_type": "Nothing", "payload": {}});
        let data = json!({"device_id": id, "operations": [nothing], "position": position});
        position = client.ask("sync:update", data).await?["position"].take();
    }
    let state: i64 = sqlx::query_scalar(
        "select length(data)::bigint from snapshots where kind = 'sync' and key = $1",
    )
    .bind(user)
    .fetch_one(pool)
    .await?;
    let live: usize = (45_000..55_000).map(name).map(|(item, tag)| item.len() + tag.len()).sum();
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..2 * RUNS {
        let began = Instant::now();
        let answer = get(&node.address, "/v1/sync/state/me", token).await?;
        times.push(began.elapsed().as_secs_f64() * 1_000.0);
        bytes = answer.len();
        ensure!(answer.matches("\"content_id\"").count() == ITEMS as usize, "not all are there");
    }
    println!(
        "watchlist of {ITEMS} after {} additions and removals: {state} bytes kept for {live} bytes that live ({:.2} x)",
        operations.len(),
        state as f64 / live as f64
    );
    println!("  the whole of it over HTTP: {} ms, {} KiB", spread(times), bytes / 1_024);
    Ok(())
}

async fn get(address: &str, path: &str, token: &str) -> anyhow::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer:.200}");
    Ok(answer)
}

/// y-websocket, and what its clients say.
struct Yjs {
    server: Server,
    /// By device, in order.
    updates: Vec<Vec<Vec<u8>>>,
}

struct YPerson {
    devices: Vec<(Client, usize)>,
}

impl Yjs {
    fn start() -> anyhow::Result<Option<Self>> {
        let me = std::env::current_exe()?;
        let root = me.ancestors().nth(4).context("target folder")?;
        let peers = root.join("target/peers");
        if !peers.join("node_modules/y-websocket").exists() {
            println!(
                "# y-websocket: left out (npm install --prefix target/peers y-websocket@2 yjs@13 ws@8)"
            );
            return Ok(None);
        }
        std::fs::copy(root.join("examples/peers/yjs.cjs"), peers.join("yjs.cjs"))?;
        let made =
            Command::new("node").arg(peers.join("yjs.cjs")).arg(UPDATES.to_string()).output()?;
        let lines: Vec<String> =
            String::from_utf8(made.stdout)?.lines().map(str::to_owned).collect();
        ensure!(lines.len() == DEVICES * UPDATES, "{}", String::from_utf8_lossy(&made.stderr));
        let update = |line: &String| {
            let update = base64(line);
            let mut message = vec![0, 2];
            let mut left = update.len();
            while left > 127 {
                message.push((left % 128) as u8 | 128);
                left /= 128;
            }
            message.push(left as u8);
            message.extend(update);
            message
        };
        let updates = lines.chunks(UPDATES).map(|of| of.iter().map(update).collect()).collect();
        let mut command = Command::new("node");
        command.arg(peers.join("yjs.cjs"));
        Ok(Some(Self { server: Server::spawned("y-websocket", command)?, updates }))
    }

    async fn people(&self) -> anyhow::Result<Vec<Rc<RefCell<YPerson>>>> {
        futures_util::stream::iter(0..PEOPLE)
            .map(|n| async move {
                let mut devices = Vec::new();
                for _ in 0..DEVICES {
                    devices.push((self.server.at().open_at(&format!("/person-{n}")).await?, 0));
                }
                anyhow::Ok(Rc::new(RefCell::new(YPerson { devices })))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }
}

impl YPerson {
    /// y-websocket says an operation to its writer too: that is its acknowledgement.
    async fn write_on(&mut self, yjs: &Yjs, pace: Pace) -> anyhow::Result<u64> {
        let tally = Tally::default();
        let updates = yjs.updates.iter();
        let devices = self.devices.iter_mut().zip(updates).zip(1..);
        let driven = devices.map(|(((client, sequence), updates), me)| {
            let message = move |_: &mut Client, _: u64| {
                let update = updates.get(*sequence).context("more updates are needed")?;
                *sequence += 1;
                Ok(Message::binary(update.clone()))
            };
            let heard = move |message: &Message| match message {
                Message::Binary(bytes) if bytes.starts_with(&[0, 2]) => {
                    Ok((author(&bytes[2..]) == Some(me), 1))
                }
                _ => Ok((false, 0)),
            };
            drive(client, &tally, pace, pace == Pace::OneAtATime, message, heard)
        });
        futures_util::future::try_join_all(driven).await?;
        Ok(tally.written.get())
    }
}

/// The client of an update: its length, how many clients (one), how many structs, and that.
fn author(update: &[u8]) -> Option<u8> {
    let mut numbers = update.split_inclusive(|byte| byte & 128 == 0);
    let (_, clients) = (numbers.next()?, numbers.next()?);
    let (_, client) = (numbers.next()?, numbers.next()?);
    (clients == [1]).then(|| client[0])
}

fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<u32> = text
        .bytes()
        .filter_map(|b| ALPHABET.iter().position(|a| *a == b).map(|at| at as u32))
        .collect();
    let mut bytes = Vec::new();
    for group in digits.chunks(4) {
        let whole =
            group.iter().fold(0, |sum, digit| (sum << 6) | digit) << (6 * (4 - group.len()));
        bytes.extend(&whole.to_be_bytes()[1..group.len()]);
    }
    bytes
}
