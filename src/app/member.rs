//! A node's part in its cluster: links to the others, finding out who is gone, and moving slots.
//!
//! There is no coordinator. Every node reads the same members and the same slots, computes the same plan
//! (`cluster::placement`), and carries out its own share of it: it claims what nobody who lives owns, and hands over
//! what should be another's. The store decides every race.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use sqlx::postgres::PgPool;
use tokio::net::TcpListener;
use tokio::sync::mpsc::Receiver;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::actors::Runtime;
use crate::actors::registry::Registry;
use crate::app::cluster_view::{ClusterView, Verdict};
use crate::app::pulses::{self, Pulses};
use crate::cluster::fanout::Fanout;
use crate::cluster::lease::boottime_ms;
use crate::cluster::router::{Control, control};
use crate::cluster::slots::SlotOwnership;
use crate::cluster::transport::tls::Tls;
use crate::cluster::transport::{self, LinkEvent, Peer, Transport};
use crate::cluster::{Presence, Router};
use crate::kernel::ids::SLOTS;
use crate::kernel::secret::Secret;
use crate::persistence::members::{self, Beat, MemberState};

/// Beyond the time for which a dead node may still answer reads: the drift of clocks.
const MARGIN_MS: i64 = 100;
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
    pub listener: TcpListener,
    /// Where the others reach it.
    pub advertise: String,
    pub cookie: Secret<String>,
    /// Of this node, for links that nobody else can read or join.
    pub tls: Option<Tls>,
    pub weight: u32,
    pub pipe: Pipe,
    pub limits: transport::TransportLimits,
}

/// What others on this node want to know of its part in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    pub active: bool,
    /// An operator wants it to leave.
    pub draining: bool,
    /// Every slot has an owner who lives.
    pub settled: bool,
    /// It has slots that another should have.
    pub owes_slots: bool,
    /// All nodes, by incarnation.
    pub living: Vec<i64>,
    /// What it needs before it takes part, for people.
    pub waits_for: Option<String>,
}

impl ClusterStatus {
    /// Of a node without a cluster.
    pub fn alone(incarnation: i64) -> Self {
        Self {
            active: true,
            draining: false,
            settled: true,
            owes_slots: false,
            living: vec![incarnation],
            waits_for: None,
        }
    }

    /// Of a node that has not yet looked around in its cluster.
    pub fn joining() -> Self {
        Self {
            active: false,
            draining: false,
            settled: false,
            owes_slots: false,
            living: Vec::new(),
            waits_for: Some("its first look at the cluster".into()),
        }
    }
}

pub struct Membership {
    pub pool: PgPool,
    pub runtime: Arc<Runtime>,
    pub registry: Arc<Registry>,
    pub router: Router,
    pub presence: Arc<Presence>,
    pub read_ttl: Duration,
    pub beats: watch::Receiver<Beat>,
    /// Asks for a beat now.
    pub beat_now: Arc<Notify>,
    pub leaving: watch::Receiver<bool>,
    pub standing: watch::Sender<ClusterStatus>,
}

/// What the loop remembers between two rounds.
struct RoundMemory {
    view: ClusterView,
    transport: Arc<dyn Transport>,
    pulses: Arc<Pulses>,
    fanout: Arc<Fanout>,
    slots_version: i64,
    /// Versions of slots and members that the last plan was made from.
    planned: (i64, i64),
    /// When this node learned of the last death.
    death_ms: i64,
    /// Sealed here, and perhaps another's by now: what became of them was not heard.
    unsure: Vec<(u16, i64)>,
}

/// What comes from other nodes besides asks.
struct Controls {
    pulses: Arc<Pulses>,
    fanout: Arc<Fanout>,
    presence: Arc<Presence>,
}

impl Control for Controls {
    fn receive(&self, from: i64, message: Vec<u8>) {
        match message.split_first() {
            Some((&control::PING, _)) => self.pulses.heard(from, boottime_ms()),
            Some((&control::TOPICS, rest)) => self.fanout.receive(from, rest),
            Some((&control::PRESENCE, rest)) => self.presence.receive(from, rest),
            // Of a later release.
            _ => {}
        }
    }
}

impl Drop for RoundMemory {
    fn drop(&mut self) {
        for member in self.view.members() {
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
        let ours = transport::Options {
            incarnation: self.me(),
            name,
            listener: options.listener,
            cookie: options.cookie,
            tls: options.tls,
            limits: options.limits,
        };
        let inbox = Arc::new(self.router.clone());
        let started = match options.pipe {
            Pipe::Framed => transport::framed::start(ours, inbox).await,
            Pipe::RactorCluster => transport::clustered::start(ours, inbox).await,
        };
        let started = started.context("cannot take part in the cluster")?;
        let pulses = Arc::new(Pulses::default());
        let topics = self.runtime.topics.clone();
        let fanout = Fanout::new(self.router.clone(), self.runtime.slots.clone(), topics.clone());
        topics.connect(fanout.clone());
        let controls = Controls {
            pulses: pulses.clone(),
            fanout: fanout.clone(),
            presence: self.presence.clone(),
        };
        self.router.connect(started.transport.clone(), Arc::new(controls));
        // Nobody is told of the table's state before this node has seen it.
        self.beats.mark_changed();
        let known = RoundMemory {
            view: ClusterView::new(self.me(), boottime_ms()),
            transport: started.transport,
            pulses: pulses.clone(),
            fanout: fanout.clone(),
            slots_version: -1,
            planned: (-1, -1),
            death_ms: boottime_ms(),
            unsure: Vec::new(),
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

    async fn run(mut self, mut known: RoundMemory, mut events: Receiver<LinkEvent>) {
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

    fn link(&self, known: &mut RoundMemory, event: LinkEvent) {
        known.view.link(&event);
        match event {
            LinkEvent::Up { peer } => {
                known.pulses.up(peer, boottime_ms());
                known.fanout.link_up(peer);
                self.presence.link_up(peer);
            }
            LinkEvent::Down { peer, .. } => self.router.link_down(peer),
            LinkEvent::Refused { .. } => {}
        }
    }

    /// True: there is more to do at once.
    async fn round(&mut self, known: &mut RoundMemory) -> Result<bool, sqlx::Error> {
        self.hear(known);
        if known.view.members().is_empty() {
            return Ok(false);
        }
        if !known.unsure.is_empty() {
            self.resolve(known).await?;
        }
        if known.view.version() != known.slots_version {
            self.learn(known).await?;
        }
        let leaving = *self.leaving.borrow();
        if let Some(state) = known.view.next_state(leaving) {
            members::set_state(&self.pool, self.me(), state).await?;
            self.beat_now.notify_one();
        }
        self.bury(known).await?;
        let more = self.place(known).await?;
        self.tell(known);
        Ok(more)
    }

    /// Takes over the newest beat.
    fn hear(&mut self, known: &mut RoundMemory) {
        if !self.beats.has_changed().unwrap_or(false) {
            return;
        }
        let beat = self.beats.borrow_and_update().clone();
        if beat.members.is_empty() {
            return;
        }
        for dead in known.view.hear(beat, boottime_ms()) {
            known.death_ms = boottime_ms();
            known.transport.forget(dead);
            known.pulses.forget(dead);
            known.fanout.forget(dead);
            self.presence.forget(dead);
            self.router.link_down(dead);
        }
        for member in known.view.others() {
            known.transport.link(Peer {
                incarnation: member.incarnation,
                name: member.name.clone(),
                address: member.peer_address.clone(),
            });
        }
    }

    /// Takes over what the store says of the slots.
    async fn learn(&self, known: &mut RoundMemory) -> Result<(), sqlx::Error> {
        let (version, rows) = members::slots(&self.pool).await?;
        for (slot, row) in rows.iter().enumerate() {
            // Claimed by this node, which has not heard of it: the connection broke at that moment.
            let wait_ms = if row.claimed { self.wait_ms() } else { 0 };
            let owned = SlotOwnership { owner: row.owner, epoch: row.epoch };
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

    /// Declares dead who is.
    async fn bury(&self, known: &RoundMemory) -> Result<(), sqlx::Error> {
        let now = boottime_ms();
        let silent_ms = |peer| known.pulses.silent_ms(peer, now);
        for verdict in known.view.verdicts(silent_ms, known.pulses.is_awake(now), now) {
            let Verdict { peer, evidence, suspect } = verdict;
            if suspect {
                metrics::counter!("proxie_suspicions_total").increment(1);
                members::suspect(&self.pool, self.me(), peer).await?;
            }
            if members::evict(&self.pool, Some(self.me()), peer, evidence).await? {
                tracing::warn!(incarnation = peer, ?evidence, "a node is dead");
                metrics::counter!("proxie_evictions_total").increment(1);
                self.beat_now.notify_one();
            }
        }
        Ok(())
    }

    /// Carries out this node's share of the plan. True: there is more of it.
    async fn place(&self, known: &mut RoundMemory) -> Result<bool, sqlx::Error> {
        let versions = (known.slots_version, known.view.version());
        let slots = &self.runtime.slots;
        let wanted = slots.take_wanted();
        if known.planned == versions && wanted.is_empty() {
            return Ok(false);
        }
        let owned: Vec<SlotOwnership> = (0..SLOTS).map(|slot| slots.owned(slot)).collect();
        let share = known.view.share(&owned, &wanted);
        let mut done = true;
        if !share.claims.is_empty() {
            let taken = members::claim(&self.pool, self.me(), &share.claims).await?;
            // Somebody was quicker, or the store has not heard of this node for too long: then it tries again.
            done &= taken.len() == share.claims.len();
            for (slot, epoch) in &taken {
                // Whoever had it before may be dead, and believe for a while that it is not. Nobody had the first epoch.
                let wait_ms = if *epoch == 1 { 0 } else { self.wait_ms() };
                slots.learn(
                    *slot,
                    SlotOwnership { owner: Some(self.me()), epoch: *epoch },
                    wait_ms,
                );
            }
            slots.announce();
            if taken.iter().any(|(_, epoch)| *epoch > 1) {
                let took_ms = boottime_ms() - known.death_ms + self.wait_ms();
                metrics::histogram!("proxie_takeover_seconds").record(took_ms as f64 / 1_000.0);
            }
        }
        let mut more = share.more;
        for (to, leaving) in share.moves {
            let wanted = leaving.len();
            // What waits is handed over once it serves.
            let sealed: Vec<_> =
                leaving.into_iter().filter(|(slot, _)| slots.seal(*slot)).collect();
            more |= sealed.len() < wanted;
            if sealed.is_empty() {
                tokio::time::sleep(PACE).await;
                continue;
            }
            self.hand_over(known, to, sealed).await?;
            known.view.gave(to);
        }
        if done && !more {
            known.planned = versions;
        }
        Ok(more)
    }

    /// Finish, flush, release what is sealed: the next owner starts the entities with their first commands.
    async fn hand_over(
        &self,
        known: &mut RoundMemory,
        to: i64,
        sealed: Vec<(u16, i64)>,
    ) -> Result<(), sqlx::Error> {
        let began = Instant::now();
        let slots = &self.runtime.slots;
        let set: HashSet<u16> = sealed.iter().map(|(slot, _)| *slot).collect();
        known.unsure = sealed;
        let finished = async {
            let mut pause = Duration::from_millis(2);
            while self.registry.retire(&set) > 0 {
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
            slots.learn(*slot, SlotOwnership { owner: Some(to), epoch: *epoch }, 0);
        }
        // Those that could not be released stay here.
        set.iter().for_each(|slot| slots.unseal(*slot));
        known.unsure.clear();
        slots.announce();
        metrics::counter!("proxie_slot_moves_total").increment(moved.len() as u64);
        metrics::histogram!("proxie_hand_over_seconds").record(began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Finds out what became of a hand-over whose answer was lost.
    async fn resolve(&self, known: &mut RoundMemory) -> Result<(), sqlx::Error> {
        let mine = members::still_owned(&self.pool, self.me(), &known.unsure).await?;
        // What is another's by now is learned next; until then it stays sealed.
        known.slots_version = -1;
        mine.iter().for_each(|slot| self.runtime.slots.unseal(*slot));
        known.unsure.clear();
        self.runtime.slots.announce();
        Ok(())
    }

    fn tell(&self, known: &RoundMemory) {
        let (view, slots) = (&known.view, &self.runtime.slots);
        let settled =
            (0..SLOTS).all(|slot| slots.owned(slot).owner.is_some_and(|o| view.is_living(o)));
        let mine = slots.count_mine();
        let state = view.state();
        metrics::gauge!("proxie_slots").set(mine as f64);
        metrics::gauge!("proxie_nodes").set(view.members().len() as f64);
        self.standing.send_if_modified(|standing| {
            let now = ClusterStatus {
                active: state == Some(MemberState::Active),
                draining: state == Some(MemberState::Draining),
                settled,
                owes_slots: state == Some(MemberState::Active)
                    || (state == Some(MemberState::Draining) && mine > 0 && view.has_takers()),
                living: view.members().iter().map(|member| member.incarnation).collect(),
                waits_for: view
                    .waits_for()
                    .or_else(|| (!settled).then(|| "every slot to have an owner".to_owned())),
            };
            let changed = *standing != now;
            *standing = now;
            changed
        });
    }
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
