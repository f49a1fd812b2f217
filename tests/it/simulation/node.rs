//! One process: the shell of `app::member`, `app::core` and `app::pulses` around the decisions, which are the real ones.
//! The order of steps is theirs, and every `await` is a point at which the process may be stopped, killed or cut off.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use proxie::app::cluster_view::{ClusterView, Verdict};
use proxie::app::pulses::Pulses;
use proxie::cluster::slots::SlotOwnership;
use proxie::cluster::transport::LinkEvent;
use proxie::cluster::{Lease, Slots};
use proxie::persistence::members::{Beat, MemberState};

use super::entity::{Activation, Item};
use super::exec::{
    self, Bell, Queue, WORLD, between, clock_ms, clock_of, now, sleep, spawn, timeout,
};
use super::store::SLOTS;
use super::world::{Lost, World};

const READ_TTL_MS: i64 = 1_000;
const MARGIN_MS: i64 = 100;
const PACE_MS: i64 = 20;
const FINISH_MS: i64 = 1_000;

pub struct Life {
    pub name: usize,
    pub me: i64,
    pub process: usize,
    pub slots: Slots,
    pub lease: Lease,
    pub pulses: Pulses,
    /// Peers that a link is kept to, and those to which there is one.
    pub peers: RefCell<BTreeSet<i64>>,
    pub up: RefCell<BTreeSet<i64>>,
    pub events: RefCell<Vec<LinkEvent>>,
    pub news: Bell,
    pub beat_now: Bell,
    beat: RefCell<(Beat, bool)>,
    pub leaving: Cell<bool>,
    pub state: Cell<Option<MemberState>>,
    owes_slots: Cell<bool>,
    pub activations: RefCell<BTreeMap<u16, Rc<Activation>>>,
    pub lane: Queue<Item>,
    pub lane_is_up: Cell<bool>,
    pub lane_is_idle: Cell<bool>,
}

struct Known {
    view: ClusterView,
    slots_version: i64,
    planned: (i64, i64),
    unsure: Vec<(u16, i64)>,
}

impl Life {
    /// Starts a process of this name, as soon as the store lets it.
    pub async fn start(world: Rc<World>, name: usize) {
        let release = u32::from(exec::one_in(6));
        let process = exec::new_process();
        let (incarnation, sent) = loop {
            let sent = clock_of(process);
            match timeout(5_000, world.join(name, release)).await {
                Some(Ok(Some(incarnation))) => break (incarnation, sent),
                _ => sleep(between(200, 1_000)).await,
            }
        };
        let lease = Lease::on_clock(incarnation, READ_TTL_MS, clock_ms);
        lease.renewed(sent);
        let life = Rc::new(Self {
            name,
            me: incarnation,
            process,
            slots: Slots::on_clock(incarnation, SLOTS, clock_ms),
            lease,
            pulses: Pulses::default(),
            peers: RefCell::default(),
            up: RefCell::default(),
            events: RefCell::default(),
            news: Bell::default(),
            beat_now: Bell::default(),
            beat: RefCell::default(),
            leaving: Cell::new(false),
            state: Cell::new(None),
            owes_slots: Cell::new(true),
            activations: RefCell::default(),
            lane: Queue::default(),
            lane_is_up: Cell::new(true),
            lane_is_idle: Cell::new(true),
        });
        world.note(|| format!("{incarnation} (node {name}) starts"));
        world.lives.borrow_mut().insert(name, life.clone());
        spawn(process, life.clone().renew(world.clone()));
        spawn(process, life.clone().ping(world.clone()));
        spawn(process, life.clone().write(world.clone()));
        spawn(process, life.member(world));
    }

    async fn renew(self: Rc<Self>, world: Rc<World>) {
        loop {
            let sent = clock_ms();
            match timeout(2_000, world.beat(self.name, self.me)).await {
                Some(Ok(Some(beat))) => {
                    let late = world.breaks("lease counted from the answer");
                    self.lease.renewed(if late { clock_ms() } else { sent });
                    *self.beat.borrow_mut() = (beat, true);
                    self.news.ring();
                }
                Some(Ok(None)) => return self.evicted(&world),
                Some(Err(Lost)) | None => {}
            }
            timeout(300 - (clock_ms() - sent).clamp(0, 299), self.beat_now.rung()).await;
        }
    }

    /// The process ends; its supervisor starts another one. It takes a moment, in which it goes on.
    pub fn evicted(self: &Rc<Self>, world: &Rc<World>) {
        let (life, world) = (self.clone(), world.clone());
        spawn(self.process, async move {
            sleep(between(0, 300)).await;
            world.kill(&life, between(200, 2_000));
        });
    }

    async fn ping(self: Rc<Self>, world: Rc<World>) {
        loop {
            self.pulses.tick(clock_ms());
            let peers: Vec<i64> = self.up.borrow().iter().copied().collect();
            for peer in peers {
                let Some(other) = world.reaches(&self, peer) else { continue };
                let stopped = exec::stopped_until(other.process);
                if stopped <= now() && !exec::one_in(100) {
                    other.pulses.heard(self.me, clock_of(other.process));
                    continue;
                }
                // Later, in any order with what else the other finds when it wakes up.
                let (me, delay) = (self.me, (stopped - now()).max(0) + between(0, 400));
                spawn(other.process, async move {
                    sleep(delay).await;
                    other.pulses.heard(me, clock_ms());
                });
            }
            sleep(300).await;
        }
    }

    async fn member(self: Rc<Self>, world: Rc<World>) {
        let mut known = Known {
            view: ClusterView::new(self.me, clock_ms()),
            slots_version: -1,
            planned: (-1, -1),
            unsure: Vec::new(),
        };
        let mut more = false;
        loop {
            match more {
                true if self.leaving.get() => sleep(1).await,
                true => drop(timeout(PACE_MS, self.news.rung()).await),
                false => self.news.rung().await,
            }
            for event in self.events.take() {
                known.view.link(&event);
                if let LinkEvent::Up { peer } = event {
                    self.pulses.up(peer, clock_ms());
                }
            }
            let round = timeout(5_000, self.round(&world, &mut known)).await;
            more = matches!(round, Some(Ok(true)));
        }
    }

    async fn round(self: &Rc<Self>, world: &Rc<World>, known: &mut Known) -> Result<bool, Lost> {
        self.hear(world, known);
        if known.view.members().is_empty() {
            return Ok(false);
        }
        if !known.unsure.is_empty() {
            self.resolve(world, known).await?;
        }
        if known.view.version() != known.slots_version {
            self.learn(world, known).await?;
        }
        if let Some(state) = known.view.next_state(self.leaving.get()) {
            world.set_state(self.name, self.me, state).await?;
            self.beat_now.ring();
        }
        self.bury(world, known).await?;
        let more = self.place(world, known).await?;
        let state = known.view.state();
        self.state.set(state);
        if state == Some(MemberState::Draining) && !self.leaving.get() {
            // An operator wants it to.
            self.clone().drain(world, between(100, 3_000));
        }
        let drains = state == Some(MemberState::Draining) && known.view.has_takers();
        self.owes_slots
            .set(state == Some(MemberState::Active) || (drains && self.slots.count_mine() > 0));
        Ok(more)
    }

    fn hear(self: &Rc<Self>, world: &Rc<World>, known: &mut Known) {
        let (beat, fresh) = self.beat.take();
        if !fresh || beat.members.is_empty() {
            return;
        }
        for dead in known.view.hear(beat, clock_ms()) {
            self.pulses.forget(dead);
            self.peers.borrow_mut().remove(&dead);
            self.up.borrow_mut().remove(&dead);
            if let Some(other) = world.running().into_iter().find(|life| life.me == dead) {
                other.link_down(world, self.me);
            }
        }
        for member in known.view.others() {
            if self.peers.borrow_mut().insert(member.incarnation) {
                self.clone().keep_link(world, member.incarnation);
            }
        }
    }

    async fn learn(&self, world: &Rc<World>, known: &mut Known) -> Result<(), Lost> {
        let (version, rows) = world.slots(self.name).await?;
        for (slot, row) in rows.iter().enumerate() {
            let wait_ms = if row.claimed { self.wait_ms(world) } else { 0 };
            let owned = SlotOwnership { owner: row.owner, epoch: row.epoch };
            self.slots.learn(slot as u16, owned, wait_ms);
        }
        known.slots_version = version;
        Ok(())
    }

    fn wait_ms(&self, world: &World) -> i64 {
        if world.breaks("no wait after a claim") { 0 } else { READ_TTL_MS + MARGIN_MS }
    }

    async fn bury(&self, world: &Rc<World>, known: &Known) -> Result<(), Lost> {
        let now = clock_ms();
        let silent_ms = |peer| self.pulses.silent_ms(peer, now);
        for verdict in known.view.verdicts(silent_ms, self.pulses.is_awake(now), now) {
            let Verdict { peer, evidence, suspect } = verdict;
            if suspect {
                world.suspect(self.name, self.me, peer).await?;
            }
            if world.evict(self.name, Some(self.me), peer, evidence).await? {
                self.beat_now.ring();
            }
        }
        Ok(())
    }

    async fn place(&self, world: &Rc<World>, known: &mut Known) -> Result<bool, Lost> {
        let versions = (known.slots_version, known.view.version());
        if known.planned == versions {
            return Ok(false);
        }
        let owned: Vec<SlotOwnership> = (0..SLOTS).map(|slot| self.slots.owned(slot)).collect();
        let share = known.view.share(&owned, &Default::default());
        let mut done = true;
        if !share.claims.is_empty() {
            let wanted = share.claims.len();
            let claimed = world.claim(self.name, self.me, share.claims).await?;
            done &= claimed.len() == wanted || world.breaks("a refused claim is not tried again");
            for (slot, epoch) in claimed {
                let wait_ms = if epoch == 1 { 0 } else { self.wait_ms(world) };
                self.slots.learn(slot, SlotOwnership { owner: Some(self.me), epoch }, wait_ms);
            }
        }
        let mut more = share.more;
        for (to, leaving) in share.moves {
            let wanted = leaving.len();
            let waits = |slot| !self.slots.seal(slot) && !world.breaks("hand-over while it waits");
            let sealed: Vec<_> = leaving.into_iter().filter(|(slot, _)| !waits(*slot)).collect();
            more |= sealed.len() < wanted;
            if sealed.is_empty() {
                sleep(PACE_MS).await;
                continue;
            }
            self.hand_over(world, known, to, sealed).await?;
            known.view.gave(to);
        }
        if done && !more {
            known.planned = versions;
        }
        Ok(more)
    }

    async fn hand_over(
        &self,
        world: &Rc<World>,
        known: &mut Known,
        to: i64,
        sealed: Vec<(u16, i64)>,
    ) -> Result<(), Lost> {
        let set: BTreeSet<u16> = sealed.iter().map(|(slot, _)| *slot).collect();
        known.unsure = sealed;
        world.note(|| format!("{} hands {:?} over to {to}", self.me, known.unsure));
        let finished = async {
            let mut pause = 2;
            while !world.breaks("hand-over without retiring") && self.retire(&set) > 0 {
                sleep(pause).await;
                pause = (pause * 2).min(20);
            }
        };
        timeout(FINISH_MS, finished).await;
        while !self.is_flushed() && !world.breaks("hand-over without flush") {
            sleep(5).await;
        }
        let moved = world.hand_over(self.name, self.me, to, known.unsure.clone()).await;
        if world.breaks("unsealed when the answer of a hand-over is lost") && moved.is_err() {
            set.iter().for_each(|slot| self.slots.unseal(*slot));
            known.unsure.clear();
        }
        for (slot, epoch) in moved? {
            self.slots.learn(slot, SlotOwnership { owner: Some(to), epoch }, 0);
        }
        set.iter().for_each(|slot| self.slots.unseal(*slot));
        known.unsure.clear();
        Ok(())
    }

    fn is_flushed(&self) -> bool {
        self.lane_is_idle.get() && self.lane.is_empty()
    }

    async fn resolve(&self, world: &Rc<World>, known: &mut Known) -> Result<(), Lost> {
        let mine = world.still_owned(self.name, self.me, known.unsure.clone()).await?;
        world.note(|| format!("{} still has {mine:?}", self.me));
        known.slots_version = -1;
        mine.iter().for_each(|slot| self.slots.unseal(*slot));
        known.unsure.clear();
        Ok(())
    }

    /// An orderly end: gives everything away, as far as somebody takes it, and leaves.
    pub fn drain(self: Rc<Self>, world: &Rc<World>, restart_ms: i64) {
        world.note(|| format!("{} drains", self.me));
        let world = world.clone();
        self.leaving.set(true);
        self.news.ring();
        let process = self.process;
        spawn(process, async move {
            let patience = now() + 10_000;
            while self.owes_slots.get() && now() < patience {
                sleep(50).await;
            }
            let flushed = async {
                while !self.is_flushed() {
                    sleep(20).await;
                }
            };
            timeout(5_000, flushed).await;
            let (life, w) = (self.clone(), world.clone());
            // Renewals and rounds end before it leaves; activations may still be there.
            timeout(2_000, w.leave(life.name, life.me)).await;
            spawn(WORLD, async move { world.kill(&self, restart_ms) });
        });
    }
}
