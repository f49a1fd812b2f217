//! A node's part in its cluster: links to the others, finding out who is gone, and moving slots.
//!
//! There is no coordinator. Every node reads the same members and the same slots, computes the same plan
//! (`cluster::placement`), and carries out its own share of it: it claims what nobody who lives owns, and hands over
//! what should be another's. The store decides every race.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sqlx::postgres::PgPool;
use tokio::sync::mpsc::Receiver;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::actors::Runtime;
use crate::actors::registry::Registry;
use crate::app::pulses::{self, Pulses};
use crate::cluster::Router;
use crate::cluster::fanout::Fanout;
use crate::cluster::lease::boottime_ms;
use crate::cluster::placement::{Candidate, solve};
use crate::cluster::router::{Control, control};
use crate::cluster::slots::Owned;
use crate::cluster::transport::{self, DownCause, LinkEvent, Peer, Transport};
use crate::kernel::ids::SLOTS;
use crate::persistence::members::{self, Beat, Evidence, Member, State};

/// Beyond the time for which a dead node may still answer reads: the drift of clocks.
const MARGIN_MS: i64 = 100;
/// Who has missed heartbeats of its own (the store was away) gives the others this time to be heard there again.
const STEADY_MS: i64 = 2_000;
/// Two nodes that cannot reach each other, and that the others all reach, are one too many after this time.
const CUT_OFF_MS: i64 = 6_000;
/// Slots that are handed over at once: their entities pause for as long as that takes. A newcomer gets fewer at first.
const MOVES: usize = 64;
const FIRST_MOVES: usize = 8;
/// Between two batches, unless this node leaves.
const PACE: Duration = Duration::from_millis(20);
/// What entities of a batch may take to finish what they have begun.
const FINISH: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pipe {
    Framed,
    RactorCluster,
}

/// How this node takes part.
pub struct Options {
    pub listen: String,
    /// Where the others reach it.
    pub advertise: String,
    pub cookie: String,
    pub weight: u32,
    pub pipe: Pipe,
    pub limits: transport::Limits,
}

/// What others on this node want to know of its part in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub active: bool,
    /// An operator wants it to leave.
    pub draining: bool,
    /// Every slot has an owner who lives.
    pub settled: bool,
    /// It has slots that another should have.
    pub owes_slots: bool,
}

impl Standing {
    /// Of a node without a cluster.
    pub fn alone() -> Self {
        Self { active: true, draining: false, settled: true, owes_slots: false }
    }
}

pub struct Membership {
    pub pool: PgPool,
    pub runtime: Arc<Runtime>,
    pub registry: Arc<Registry>,
    pub router: Router,
    pub read_ttl: Duration,
    pub beats: watch::Receiver<Beat>,
    /// Asks for a beat now.
    pub beat_now: Arc<Notify>,
    pub leaving: watch::Receiver<bool>,
    pub standing: watch::Sender<Standing>,
}

/// What the loop remembers between two rounds.
struct Known {
    transport: Arc<dyn Transport>,
    pulses: Arc<Pulses>,
    fanout: Arc<Fanout>,
    beat: Beat,
    beat_at_ms: i64,
    /// Since when this node has been heard in the store without a pause.
    steady_since_ms: i64,
    slots_version: i64,
    /// Versions of slots and members that the last plan was made from.
    planned: (i64, i64),
    up: HashSet<i64>,
    /// Links that were reset, and whose redial was refused.
    reset: HashSet<i64>,
    refused: HashSet<i64>,
    /// Sealed here, and perhaps another's by now: what became of them was not heard.
    unsure: Vec<(u16, i64)>,
    /// Batches that each newcomer has had.
    given: HashMap<i64, u32>,
}

/// What comes from other nodes besides asks.
struct Controls {
    pulses: Arc<Pulses>,
    fanout: Arc<Fanout>,
}

impl Control for Controls {
    fn receive(&self, from: i64, message: Vec<u8>) {
        match message.split_first() {
            Some((&control::PING, _)) => self.pulses.heard(from),
            Some((&control::TOPICS, rest)) => self.fanout.receive(from, rest),
            // Of a later release.
            _ => {}
        }
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        for member in &self.beat.members {
            self.transport.forget(member.incarnation);
        }
    }
}

impl Membership {
    fn me(&self) -> i64 {
        self.runtime.slots.me()
    }

    /// Listens to other nodes and begins to take part.
    pub async fn start(
        mut self,
        name: String,
        options: Options,
    ) -> anyhow::Result<Vec<JoinHandle<()>>> {
        let listen = options.listen.clone();
        let ours = transport::Options {
            incarnation: self.me(),
            name,
            listen: options.listen,
            cookie: options.cookie,
            limits: options.limits,
        };
        let inbox = Arc::new(self.router.clone());
        let started = match options.pipe {
            Pipe::Framed => transport::framed::start(ours, inbox).await,
            Pipe::RactorCluster => transport::clustered::start(ours, inbox).await,
        };
        let started =
            started.with_context(|| format!("cannot listen for other nodes on {listen}"))?;
        let pulses = Arc::new(Pulses::default());
        let topics = self.runtime.topics.clone();
        let fanout = Fanout::new(self.router.clone(), self.runtime.slots.clone(), topics.clone());
        topics.connect(fanout.clone());
        let controls = Controls { pulses: pulses.clone(), fanout: fanout.clone() };
        self.router.connect(started.transport.clone(), Arc::new(controls));
        // Nobody is told of the table's state before this node has seen it.
        self.beats.mark_changed();
        let known = Known {
            transport: started.transport,
            pulses: pulses.clone(),
            fanout: fanout.clone(),
            beat: Beat::default(),
            beat_at_ms: boottime_ms(),
            steady_since_ms: boottime_ms(),
            slots_version: -1,
            planned: (-1, -1),
            up: HashSet::new(),
            reset: HashSet::new(),
            refused: HashSet::new(),
            unsure: Vec::new(),
            given: HashMap::new(),
        };
        let listening = listen_to_store(self.pool.clone(), self.beat_now.clone());
        let pinging = pulses::ping(self.router.clone(), pulses, self.beats.clone());
        Ok(vec![
            tokio::spawn(listening),
            tokio::spawn(pinging),
            tokio::spawn(fanout.run()),
            tokio::spawn(self.run(known, started.events)),
        ])
    }

    async fn run(mut self, mut known: Known, mut events: Receiver<LinkEvent>) {
        let mut more = false;
        loop {
            let pace = if *self.leaving.borrow() { Duration::ZERO } else { PACE };
            tokio::select! {
                changed = self.beats.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.beats.mark_changed();
                }
                event = events.recv() => {
                    let Some(event) = event else { return };
                    self.link(&mut known, event);
                }
                changed = self.leaving.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pace), if more => {}
            }
            while let Ok(event) = events.try_recv() {
                self.link(&mut known, event);
            }
            let round = tokio::time::timeout(Duration::from_secs(5), self.round(&mut known));
            more = match round.await {
                Ok(Ok(more)) => more,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the cluster's tables cannot be used");
                    false
                }
                Err(_) => {
                    tracing::warn!("the cluster's tables cannot be used: the store is silent");
                    false
                }
            };
        }
    }

    fn link(&self, known: &mut Known, event: LinkEvent) {
        match event {
            LinkEvent::Up { peer } => {
                known.up.insert(peer);
                known.reset.remove(&peer);
                known.refused.remove(&peer);
                known.pulses.up(peer);
                known.fanout.link_up(peer);
            }
            LinkEvent::Down { peer, cause } => {
                known.up.remove(&peer);
                if cause == DownCause::Reset {
                    known.reset.insert(peer);
                }
                self.router.link_down(peer);
            }
            LinkEvent::Refused { peer } => {
                known.refused.insert(peer);
            }
        }
    }

    /// True: there is more to do at once.
    async fn round(&mut self, known: &mut Known) -> Result<bool, sqlx::Error> {
        self.hear(known);
        if known.beat.members.is_empty() {
            return Ok(false);
        }
        if !known.unsure.is_empty() {
            self.resolve(known).await?;
        }
        if known.beat.version != known.slots_version {
            self.learn(known).await?;
        }
        let me = known.beat.members.iter().find(|member| member.incarnation == self.me());
        let state = me.map(|member| member.state);
        match state {
            Some(State::Joining) if self.is_linked_to_all(known) => {
                members::set_state(&self.pool, self.me(), State::Active).await?;
                self.beat_now.notify_one();
            }
            Some(State::Active) if *self.leaving.borrow() => {
                members::set_state(&self.pool, self.me(), State::Draining).await?;
                self.beat_now.notify_one();
            }
            _ => {}
        }
        self.bury(known, state).await?;
        let more = self.place(known, state).await?;
        self.tell(known, state);
        Ok(more)
    }

    /// Takes over the newest beat.
    fn hear(&mut self, known: &mut Known) {
        if !self.beats.has_changed().unwrap_or(false) {
            return;
        }
        let beat = self.beats.borrow_and_update().clone();
        if beat.members.is_empty() {
            return;
        }
        let now = boottime_ms();
        if now - known.beat_at_ms > STEADY_MS {
            known.steady_since_ms = now;
        }
        known.beat_at_ms = now;
        let me = self.me();
        for old in known.beat.members.iter().map(|member| member.incarnation) {
            if old != me && !beat.members.iter().any(|member| member.incarnation == old) {
                known.transport.forget(old);
                known.pulses.forget(old);
                known.fanout.forget(old);
                known.up.remove(&old);
                known.reset.remove(&old);
                known.refused.remove(&old);
                known.given.remove(&old);
                self.router.link_down(old);
            }
        }
        for member in beat.members.iter().filter(|member| member.incarnation != me) {
            known.transport.link(Peer {
                incarnation: member.incarnation,
                name: member.name.clone(),
                address: member.peer_address.clone(),
            });
        }
        known.beat = beat;
    }

    fn others<'a>(&self, known: &'a Known) -> impl Iterator<Item = &'a Member> + use<'a> {
        let me = self.me();
        known.beat.members.iter().filter(move |member| member.incarnation != me)
    }

    /// Whoever becomes active can reach all who are, and be reached by them.
    fn is_linked_to_all(&self, known: &Known) -> bool {
        self.others(known)
            .filter(|member| member.state == State::Active)
            .all(|member| known.up.contains(&member.incarnation))
    }

    /// Takes over what the store says of the slots.
    async fn learn(&self, known: &mut Known) -> Result<(), sqlx::Error> {
        let (version, rows) = members::slots(&self.pool).await?;
        for (slot, row) in rows.iter().enumerate() {
            // Claimed by this node, which has not heard of it: the connection broke at that moment.
            let wait_ms = if row.claimed { self.wait_ms() } else { 0 };
            let owned = Owned { owner: row.owner, epoch: row.epoch };
            self.runtime.slots.learn(slot as u16, owned, wait_ms);
        }
        known.slots_version = version;
        self.runtime.slots.announce();
        Ok(())
    }

    /// What a dead owner may believe for a while.
    fn wait_ms(&self) -> i64 {
        self.read_ttl.as_millis() as i64 + MARGIN_MS
    }

    /// Declares dead who provably, or by the word of enough, is gone.
    async fn bury(&self, known: &Known, state: Option<State>) -> Result<(), sqlx::Error> {
        let now = boottime_ms();
        let active = known.beat.members.iter().filter(|m| m.state == State::Active).count();
        let needed = if active >= 3 { 2 } else { 1 };
        // Who was away itself (stopped, starved) accuses nobody.
        let awake = known.pulses.is_awake(now);
        for member in self.others(known) {
            let peer = member.incarnation;
            let gone = known.reset.contains(&peer) && known.refused.contains(&peer);
            let evidence = if member.lease_left_ms < 0 && now - known.steady_since_ms > STEADY_MS {
                Evidence::Lease
            } else if state != Some(State::Active) || member.state == State::Joining || !awake {
                continue;
            } else if gone {
                Evidence::Refused
            } else if let Some(silent_ms) = known.pulses.silent_ms(peer, now) {
                metrics::counter!("proxie_suspicions_total").increment(1);
                members::suspect(&self.pool, self.me(), peer).await?;
                let cut_off = silent_ms > CUT_OFF_MS && self.me() < peer;
                Evidence::Suspected { by: if cut_off { 1 } else { needed } }
            } else {
                continue;
            };
            if members::evict(&self.pool, Some(self.me()), peer, evidence).await? {
                tracing::warn!(node = member.name, incarnation = peer, ?evidence, "a node is dead");
                metrics::counter!("proxie_evictions_total").increment(1);
                self.beat_now.notify_one();
            }
        }
        Ok(())
    }

    /// This node's share of the plan. True: there is more of it.
    async fn place(&self, known: &mut Known, state: Option<State>) -> Result<bool, sqlx::Error> {
        if known.planned == (known.slots_version, known.beat.version) {
            return Ok(false);
        }
        let members = &known.beat.members;
        let active = || members.iter().filter(|m| m.state == State::Active);
        let newest = active().map(|m| release(&m.version)).max();
        let candidates: Vec<Candidate> = active()
            .map(|m| Candidate {
                incarnation: m.incarnation,
                weight: m.weight,
                may_gain: Some(release(&m.version)) == newest,
            })
            .collect();
        let slots = &self.runtime.slots;
        let living: HashSet<i64> = members.iter().map(|m| m.incarnation).collect();
        let owners: Vec<Option<i64>> = (0..SLOTS)
            .map(|slot| slots.owned(slot).owner.filter(|owner| living.contains(owner)))
            .collect();
        let plan = solve(&candidates, &owners);
        let me = Some(self.me());
        let mut claims = Vec::new();
        let mut moves: HashMap<i64, Vec<(u16, i64)>> = HashMap::new();
        let mut more = false;
        for (slot, (owner, target)) in owners.iter().zip(&plan).enumerate() {
            let slot = slot as u16;
            let entry = (slot, slots.owned(slot).epoch);
            match (*owner, *target) {
                (None, target) if target == me => claims.push(entry),
                (owner, Some(target)) if owner == me && Some(target) != me => {
                    let given = known.given.get(&target).copied().unwrap_or(0);
                    let leaving = moves.entry(target).or_default();
                    if leaving.len() < (FIRST_MOVES << given.min(8)).min(MOVES) {
                        leaving.push(entry);
                    } else {
                        more = true;
                    }
                }
                _ => {}
            }
        }
        if !claims.is_empty() && state == Some(State::Active) {
            for (slot, epoch) in members::claim(&self.pool, self.me(), &claims).await? {
                // Whoever had it before may be dead, and believe for a while that it is not. Nobody had the first epoch.
                let wait_ms = if epoch == 1 { 0 } else { self.wait_ms() };
                slots.learn(slot, Owned { owner: me, epoch }, wait_ms);
            }
            slots.announce();
        }
        for (to, leaving) in moves {
            self.hand_over(known, to, leaving).await?;
            *known.given.entry(to).or_default() += 1;
        }
        if !more {
            known.planned = (known.slots_version, known.beat.version);
        }
        Ok(more)
    }

    /// Seal, finish, flush, release: the next owner starts the entities with their first commands.
    async fn hand_over(
        &self,
        known: &mut Known,
        to: i64,
        leaving: Vec<(u16, i64)>,
    ) -> Result<(), sqlx::Error> {
        let slots = &self.runtime.slots;
        let set: HashSet<u16> = leaving.iter().map(|(slot, _)| *slot).collect();
        known.unsure = leaving;
        set.iter().for_each(|slot| slots.seal(*slot));
        let finished = async {
            let mut pause = Duration::from_millis(2);
            while self.registry.retire(&|slot| set.contains(&slot)) > 0 {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(20));
            }
        };
        if tokio::time::timeout(FINISH, finished).await.is_err() {
            tracing::warn!("entities did not finish in time; what they still commit is refused");
        }
        self.runtime.lanes.flush().await;
        let moved = members::hand_over(&self.pool, self.me(), to, &known.unsure).await?;
        for (slot, epoch) in &moved {
            slots.learn(*slot, Owned { owner: Some(to), epoch: *epoch }, 0);
        }
        // Those that could not be released stay here.
        set.iter().for_each(|slot| slots.unseal(*slot));
        known.unsure.clear();
        slots.announce();
        metrics::counter!("proxie_slot_moves_total").increment(moved.len() as u64);
        Ok(())
    }

    /// Finds out what became of a hand-over whose answer was lost.
    async fn resolve(&self, known: &mut Known) -> Result<(), sqlx::Error> {
        let mine = members::still_owned(&self.pool, self.me(), &known.unsure).await?;
        // What is another's by now is learned next; until then it stays sealed.
        known.slots_version = -1;
        mine.iter().for_each(|slot| self.runtime.slots.unseal(*slot));
        known.unsure.clear();
        self.runtime.slots.announce();
        Ok(())
    }

    fn tell(&self, known: &Known, state: Option<State>) {
        let slots = &self.runtime.slots;
        let living: HashSet<i64> = known.beat.members.iter().map(|m| m.incarnation).collect();
        let settled = (0..SLOTS)
            .all(|slot| slots.owned(slot).owner.is_some_and(|owner| living.contains(&owner)));
        let mine = slots.count_mine();
        let takers =
            self.others(known).any(|member| member.state == State::Active && member.weight > 0);
        metrics::gauge!("proxie_slots").set(mine as f64);
        metrics::gauge!("proxie_nodes").set(living.len() as f64);
        self.standing.send_if_modified(|standing| {
            let now = Standing {
                active: state == Some(State::Active),
                draining: state == Some(State::Draining),
                settled,
                owes_slots: state == Some(State::Active)
                    || (state == Some(State::Draining) && mine > 0 && takers),
            };
            let changed = *standing != now;
            *standing = now;
            changed
        });
    }
}

/// Releases in their order: numbers by value.
fn release(version: &str) -> Vec<u64> {
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// Hears of changes that other nodes made, so that nobody has to wait for the next beat.
async fn listen_to_store(pool: PgPool, beat_now: Arc<Notify>) {
    loop {
        if let Ok(mut listener) = members::listen(&pool).await {
            while listener.recv().await.is_ok() {
                beat_now.notify_one();
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Where others are told to find this node, when it does not say so itself.
pub fn advertised(listen: &str) -> Option<String> {
    let address: SocketAddr = listen.parse().ok()?;
    (!address.ip().is_unspecified() && address.port() != 0).then(|| listen.to_owned())
}
