//! The oracle: a process of its own, with its own connection to the store. It believes nobody. Nodes report every
//! activation and every commit, clients every command and its answer; in the end the journal is read, and
//!
//! - every acknowledged command is in it exactly once, and nothing is in it that nobody asked for;
//! - what two activations of an entity committed does not interleave, by their own word or by the journal's;
//! - the answers are those of a counter that carried the commands out one after the other, in an order that respects
//!   who had his answer before the other asked (linearizability; for a counter whose additions return the new total
//!   this can be decided exactly);
//! - what was sent from one entity to another arrived exactly once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::postgres::PgPool;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::node::Report;

/// What a client did: times in microseconds of the clients' one clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Seen {
    /// An addition was begun, perhaps for the second time: only the first counts.
    Began {
        id: String,
        key: String,
        at: u64,
    },
    Added {
        id: String,
        total: i64,
        at: u64,
    },
    Got {
        key: String,
        total: i64,
        began: u64,
        at: u64,
    },
    SpreadBegan {
        id: String,
        key: String,
        to: String,
    },
    Spread {
        id: String,
    },
    /// Everything is over: judge.
    Judge {
        database: String,
    },
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Judgement {
    pub violations: Vec<String>,
    pub acknowledged: usize,
    pub unknown: usize,
    pub reads: usize,
    pub spreads: usize,
    pub activations: usize,
    pub commits: usize,
}

#[derive(Default)]
struct Record {
    reports: Vec<Report>,
    adds: HashMap<String, Add>,
    gets: Vec<(String, i64, u64, u64)>,
    spreads: HashMap<String, Sent>,
}

struct Add {
    key: String,
    began: u64,
    /// Total and time.
    ended: Option<(i64, u64)>,
}

struct Sent {
    key: String,
    to: String,
    acknowledged: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Seen(Seen),
    Report(Report),
}

/// Listens for ever, on a port that it prints.
pub async fn run() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("ready {}", listener.local_addr()?);
    let record: Arc<Mutex<Record>> = Arc::default();
    loop {
        let (socket, _) = listener.accept().await?;
        tokio::spawn(take(record.clone(), socket));
    }
}

async fn take(record: Arc<Mutex<Record>>, socket: TcpStream) -> anyhow::Result<()> {
    let (read, mut write) = socket.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        let line: Line = serde_json::from_str(&line)?;
        let judge = {
            let mut record = record.lock().expect("never poisoned");
            match line {
                Line::Report(report) => {
                    record.reports.push(report);
                    None
                }
                Line::Seen(Seen::Judge { database }) => {
                    Some((std::mem::take(&mut *record), database))
                }
                Line::Seen(seen) => {
                    record.see(seen);
                    None
                }
            }
        };
        if let Some((record, database)) = judge {
            let mut answer = serde_json::to_vec(&record.judge(&database).await?)?;
            answer.push(b'\n');
            write.write_all(&answer).await?;
        }
    }
    Ok(())
}

impl Record {
    fn see(&mut self, seen: Seen) {
        match seen {
            Seen::Began { id, key, at } => {
                self.adds.entry(id).or_insert(Add { key, began: at, ended: None });
            }
            Seen::Added { id, total, at } => {
                if let Some(add) = self.adds.get_mut(&id) {
                    add.ended = Some((total, at));
                }
            }
            Seen::Got { key, total, began, at } => self.gets.push((key, total, began, at)),
            Seen::SpreadBegan { id, key, to } => {
                self.spreads.entry(id).or_insert(Sent { key, to, acknowledged: false });
            }
            Seen::Spread { id } => {
                if let Some(spread) = self.spreads.get_mut(&id) {
                    spread.acknowledged = true;
                }
            }
            Seen::Judge { .. } => {}
        }
    }

    async fn judge(self, database: &str) -> anyhow::Result<Judgement> {
        let pool = PgPool::connect(database).await?;
        let rows = sqlx::query("select key, seq, command_id, event::text from journal where kind = 'counter' order by key, seq")
            .fetch_all(&pool)
            .await?;
        let owed: i64 = sqlx::query_scalar("select count(*) from outbox").fetch_one(&pool).await?;
        pool.close().await;
        let mut judgement = Judgement {
            acknowledged: self.adds.values().filter(|add| add.ended.is_some()).count(),
            unknown: self.adds.values().filter(|add| add.ended.is_none()).count(),
            reads: self.gets.len(),
            spreads: self.spreads.len(),
            activations: self.reports.iter().filter(|r| matches!(r, Report::Loaded { .. })).count(),
            commits: self.reports.iter().filter(|r| matches!(r, Report::Committed { .. })).count(),
            ..Judgement::default()
        };
        let mut wrong = |what: String| judgement.violations.push(what);
        if owed > 0 {
            wrong(format!("{owed} deliveries never arrived"));
        }
        // The journal as counters: each addition by a client, with the total after it.
        let mut totals: HashMap<&str, i64> = HashMap::new();
        let mut found: HashMap<&str, (String, i64)> = HashMap::new();
        let mut sent: HashMap<&str, usize> = HashMap::new();
        let mut arrived: HashMap<String, i64> = HashMap::new();
        let mut last_seq: HashMap<String, i64> = HashMap::new();
        for row in &rows {
            let key: &str = row.get(0);
            let seq: i64 = row.get(1);
            let id: Option<&str> = row.get(2);
            let event: &str = row.get(3);
            let before = last_seq.insert(key.to_owned(), seq).unwrap_or(0);
            if seq != before + 1 {
                wrong(format!("{key}: event {seq} follows {before}"));
            }
            let total = totals.entry(key).or_default();
            if event.contains("Added") {
                *total += 1;
                match id {
                    Some(id) if self.adds.contains_key(id) => {
                        if found.insert(id, (key.to_owned(), *total)).is_some() {
                            wrong(format!("{key}: {id} was carried out twice"));
                        }
                    }
                    _ => *arrived.entry(key.to_owned()).or_default() += 1,
                }
            } else if let Some(id) = id {
                *sent.entry(id).or_default() += 1;
            }
        }
        for (id, add) in &self.adds {
            match (add.ended, found.get(id.as_str())) {
                (Some((total, _)), Some((key, at))) if *key != add.key || *at != total => {
                    wrong(format!("{key}: {id} was answered {total} and is {at}"));
                }
                (Some(_), None) => wrong(format!("{}: {id} was acknowledged and is lost", add.key)),
                _ => {}
            }
        }
        let mut expected: HashMap<String, i64> = HashMap::new();
        for (id, spread) in &self.spreads {
            let times = sent.get(id.as_str()).copied().unwrap_or(0);
            if times > 1 || (spread.acknowledged && times == 0) {
                wrong(format!("{}: the spread {id} was carried out {times} times", spread.key));
            }
            *expected.entry(spread.to.clone()).or_default() += times as i64;
        }
        for (to, n) in expected {
            let there = arrived.remove(&to).unwrap_or(0);
            if there != n {
                wrong(format!("{to}: {n} were sent and {there} arrived"));
            }
        }
        for (key, n) in arrived {
            wrong(format!("{key}: {n} additions that nobody asked for"));
        }
        self.interleaving(&mut wrong);
        self.linearizability(&found, &mut wrong);
        Ok(judgement)
    }

    /// Activations of an entity follow each other: what they committed are ranges that do not overlap.
    fn interleaving(&self, wrong: &mut impl FnMut(String)) {
        /// By (epoch, incarnation): the first and the last head.
        type Ranges = BTreeMap<(i64, i64), (i64, i64)>;
        let mut ranges: HashMap<&str, Ranges> = HashMap::new();
        for report in &self.reports {
            if let Report::Committed { incarnation, key, epoch, head } = report {
                let range = ranges.entry(key).or_default().entry((*epoch, *incarnation));
                range
                    .and_modify(|r| *r = (r.0.min(*head), r.1.max(*head)))
                    .or_insert((*head, *head));
            }
        }
        for (key, ranges) in ranges {
            let mut last = 0;
            let mut owners: HashSet<i64> = HashSet::new();
            for ((epoch, incarnation), (first, end)) in ranges {
                if first < last || !owners.insert(epoch) {
                    wrong(format!(
                        "{key}: the activation of {incarnation} in epoch {epoch} committed {first} to {end} after {last}"
                    ));
                }
                last = last.max(end);
            }
        }
    }

    fn linearizability(
        &self,
        found: &HashMap<&str, (String, i64)>,
        wrong: &mut impl FnMut(String),
    ) {
        // Of each key: (began, ended, total after it). One that was never answered may have ended at any time.
        let mut adds: HashMap<&str, Vec<(u64, u64, i64)>> = HashMap::new();
        for (id, add) in &self.adds {
            if let Some((_, total)) = found.get(id.as_str()) {
                let ended = add.ended.map_or(u64::MAX, |(_, at)| at);
                adds.entry(&add.key).or_default().push((add.began, ended, *total));
            }
        }
        let mut reads: HashMap<&str, Vec<(u64, u64, i64)>> = HashMap::new();
        for (key, total, began, at) in &self.gets {
            reads.entry(key).or_default().push((*began, *at, *total));
        }
        for (key, adds) in &adds {
            let reads = reads.remove(key).unwrap_or_default();
            // By when they began; `highest` is the greatest total that anybody had heard before.
            let mut ends: Vec<(u64, i64)> = adds.iter().chain(&reads).map(|o| (o.1, o.2)).collect();
            ends.sort_unstable();
            let mut begins: Vec<(u64, i64, bool)> = adds
                .iter()
                .map(|o| (o.0, o.2, true))
                .chain(reads.iter().map(|o| (o.0, o.2, false)))
                .collect();
            begins.sort_unstable();
            let (mut heard, mut highest) = (0, 0);
            for (began, total, adds) in begins {
                while heard < ends.len() && ends[heard].0 < began {
                    highest = highest.max(ends[heard].1);
                    heard += 1;
                }
                if total < highest + i64::from(adds) {
                    wrong(format!(
                        "{key}: {total} was answered after somebody had heard {highest}"
                    ));
                }
            }
            // Nobody hears of what was not yet begun: the additions up to a total are all begun before it is answered.
            let mut by_total: Vec<(i64, u64)> = adds.iter().map(|o| (o.2, o.0)).collect();
            by_total.sort_unstable();
            for n in 1..by_total.len() {
                by_total[n].1 = by_total[n].1.max(by_total[n - 1].1);
            }
            for (_, ended, total) in reads.iter().chain(adds) {
                let upto = by_total.partition_point(|(t, _)| t <= total);
                let exists = upto > 0 && by_total[upto - 1].0 == *total || *total == 0;
                let begun = by_total[..upto].last().is_none_or(|(_, began)| began <= ended);
                if !exists || !begun {
                    wrong(format!("{key}: {total} was answered before anybody had asked for it"));
                }
            }
        }
        for (key, reads) in reads {
            if reads.iter().any(|read| read.2 != 0) {
                wrong(format!("{key}: a total without an addition"));
            }
        }
    }
}

/// The driver's side.
pub struct Recorder {
    lines: tokio::sync::mpsc::UnboundedSender<Seen>,
    judged: tokio::sync::mpsc::Receiver<Judgement>,
}

impl Recorder {
    pub async fn connect(address: std::net::SocketAddr) -> anyhow::Result<Self> {
        let (read, mut write) = TcpStream::connect(address).await?.into_split();
        let (lines, mut waiting) = tokio::sync::mpsc::unbounded_channel::<Seen>();
        tokio::spawn(async move {
            while let Some(seen) = waiting.recv().await {
                let mut line = serde_json::to_vec(&seen).expect("plain data");
                line.push(b'\n');
                if write.write_all(&line).await.is_err() {
                    return;
                }
            }
        });
        let (answers, judged) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(judgement) = serde_json::from_str(&line) {
                    let _ = answers.send(judgement).await;
                }
            }
        });
        Ok(Self { lines, judged })
    }

    pub fn sees(&self) -> tokio::sync::mpsc::UnboundedSender<Seen> {
        self.lines.clone()
    }

    pub async fn judge(&mut self, database: &str) -> anyhow::Result<Judgement> {
        self.lines.send(Seen::Judge { database: database.into() })?;
        self.judged.recv().await.context("the recorder has died")
    }
}
