//! What is around the nodes: the network between them and to the store, the processes, and whoever watches that no
//! promise is broken.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, pending};
use std::rc::Rc;

use proxie::cluster::transport::{DownCause, LinkEvent};

use super::exec::{self, WORLD, between, now, one_in, pick, sleep, spawn, spawn_later};
use super::node::Life;
use super::store::{SLOTS, Store};

/// Nobody knows what became of it.
#[derive(Clone, Copy, Debug)]
pub struct Lost;

/// One whom no fault cuts off: the operator's terminal.
pub const OPERATOR: usize = usize::MAX;

/// What is wrong at the moment. Nodes are meant by their names.
#[derive(Default)]
pub struct Faults {
    /// Everything is well from now on.
    pub healed: bool,
    /// Nothing happens by itself: there is one failure.
    pub single: bool,
    /// Between two nodes nothing gets through; `true`: dials are answered with a refusal all the same.
    pub apart: BTreeMap<(usize, usize), bool>,
    /// From a node to the store: requests, answers.
    pub store: BTreeMap<usize, (bool, bool)>,
    /// The store answers nobody, or refuses all, until then.
    pub hangs_until: i64,
    pub refuses_until: i64,
    /// Everything takes up to this long.
    pub slow_ms: i64,
    /// Connections to the store break all the time.
    pub flaky: bool,
    /// Many loads take seconds.
    pub slow_loads: bool,
}

impl Faults {
    pub fn cut(&self, name: usize) -> bool {
        self.store.contains_key(&name)
    }

    pub fn apart(&self, a: usize, b: usize) -> Option<bool> {
        self.apart.get(&(a.min(b), a.max(b))).copied()
    }
}

pub struct World {
    pub store: RefCell<Store>,
    pub faults: RefCell<Faults>,
    /// The running process of each name.
    pub lives: RefCell<BTreeMap<usize, Rc<Life>>>,
    /// Of each entity: the newest state that somebody outside knows of.
    seen: RefCell<Vec<usize>>,
    pub answered: Cell<(u64, u64)>,
    next_id: Cell<u64>,
    hot: Cell<(u16, i64)>,
    wrong: RefCell<Option<String>>,
    /// Whom the single failure hit.
    pub lost: Cell<Option<i64>>,
    /// The rules that are broken on purpose.
    broken: &'static str,
    log: Option<RefCell<Vec<String>>>,
}

impl World {
    pub fn new(broken: &'static str, logs: bool) -> Rc<Self> {
        Rc::new(Self {
            store: RefCell::default(),
            faults: RefCell::default(),
            lives: RefCell::default(),
            seen: RefCell::new(vec![0; usize::from(SLOTS)]),
            answered: Cell::default(),
            next_id: Cell::new(1),
            hot: Cell::default(),
            lost: Cell::default(),
            wrong: RefCell::default(),
            broken,
            log: logs.then(RefCell::default),
        })
    }

    pub fn breaks(&self, rule: &str) -> bool {
        !self.broken.is_empty() && self.broken.split(" + ").any(|broken| broken == rule)
    }

    /// Commands go where something changes hands.
    pub fn heat(&self, slot: u16) {
        self.hot.set((slot, now() + 1_500));
    }

    pub fn hot_slot(&self) -> Option<u16> {
        let (slot, until) = self.hot.get();
        (now() < until).then_some(slot)
    }

    pub fn note(&self, what: impl FnOnce() -> String) {
        if let Some(log) = &self.log {
            log.borrow_mut().push(format!("{:>7} {}", now(), what()));
        }
    }

    pub fn log(&self) -> Vec<String> {
        self.log.as_ref().map(|log| log.borrow().clone()).unwrap_or_default()
    }

    /// A promise is broken. The first one counts.
    pub fn wrong(&self, what: String) {
        self.note(|| format!("WRONG: {what}"));
        self.wrong.borrow_mut().get_or_insert(format!("at {} ms: {what}", now()));
    }

    pub fn went_wrong(&self) -> Option<String> {
        self.wrong.borrow().clone()
    }

    pub fn running(&self) -> Vec<Rc<Life>> {
        self.lives.borrow().values().cloned().collect()
    }

    pub fn latency(&self) -> i64 {
        let faults = self.faults.borrow();
        match faults.healed {
            true => between(0, 2),
            false if !faults.single && one_in(200) => between(0, 5_000),
            false => between(0, 3.max(faults.slow_ms)),
        }
    }

    /// One request to the store and its answer. The work is the server's: it does not end with who asked for it.
    pub async fn trip<T: 'static>(
        self: &Rc<Self>,
        from: usize,
        work: impl Future<Output = T> + 'static,
    ) -> Result<T, Lost> {
        let answer = exec::Queue::default();
        let (world, asked) = (self.clone(), answer.clone());
        spawn_later(self.latency(), WORLD, async move {
            let answer = match world.arrives(from, |(requests, _)| requests).await {
                false => Err(Lost),
                true => {
                    let value = work.await;
                    let arrives = world.arrives(from, |(_, answers)| answers).await;
                    arrives.then_some(value).ok_or(Lost)
                }
            };
            if answer.is_ok() || one_in(2) {
                asked.push_later(world.latency(), answer);
            } else {
                // The connection is dead, and nothing says so.
                pending::<()>().await;
            }
        });
        answer.pop().await
    }

    /// Connections break now and then.
    fn loses(&self) -> bool {
        let Faults { healed, flaky, single, .. } = *self.faults.borrow();
        !healed && !single && one_in(if flaky { 25 } else { 300 })
    }

    /// Waits out what only delays.
    async fn arrives(&self, from: usize, cut: impl Fn((bool, bool)) -> bool) -> bool {
        let kept = one_in(3);
        loop {
            let (is_cut, hangs, refuses) = {
                let faults = self.faults.borrow();
                let is_cut = faults.store.get(&from).is_some_and(|store| cut(*store));
                (is_cut, faults.hangs_until > now(), faults.refuses_until > now())
            };
            let resets = self.loses();
            if refuses || resets || (is_cut && !kept) {
                return false;
            }
            if !is_cut && !hangs {
                return true;
            }
            sleep(between(50, 400)).await;
        }
    }

    pub fn new_id(&self) -> u64 {
        self.next_id.set(self.next_id.get() + 1);
        self.next_id.get()
    }

    /// A command that begins now must not miss what is known now.
    pub fn known(&self, slot: u16) -> usize {
        self.seen.borrow()[usize::from(slot)]
    }

    /// An answer leaves: event `seq` of the entity, counted from 1, is the newest, and has this id.
    pub fn answer(&self, slot: u16, seq: usize, id: u64, known_before: usize, who: i64) {
        let journal = &self.store.borrow().journal[usize::from(slot)];
        let there = if seq == 0 { 0 } else { journal.get(seq - 1).copied().unwrap_or(u64::MAX) };
        if there != id {
            self.wrong(format!("{who} answered for slot {slot} what is not in its journal"));
        }
        if seq < known_before {
            self.wrong(format!(
                "{who} answered for slot {slot} with event {seq}, and {known_before} was known before"
            ));
        }
        let seen = &mut self.seen.borrow_mut()[usize::from(slot)];
        *seen = seq.max(*seen);
    }

    /// Both ends of a link hear that it is gone.
    pub fn reset_link(self: &Rc<Self>, a: usize, b: usize) {
        let lives = self.lives.borrow();
        if let (Some(a), Some(b)) = (lives.get(&a), lives.get(&b)) {
            a.clone().link_down(self, b.me);
            b.clone().link_down(self, a.me);
        }
    }

    /// Nothing gets through from now on.
    pub fn part(self: &Rc<Self>, a: usize, b: usize, resets: bool, refuses: bool) {
        self.note(|| format!("{a} and {b} are apart, reset {resets}, refusing {refuses}"));
        self.faults.borrow_mut().apart.insert((a.min(b), a.max(b)), refuses);
        if resets {
            self.reset_link(a, b);
        }
    }

    pub fn reunite(self: &Rc<Self>, a: usize, b: usize) {
        self.faults.borrow_mut().apart.remove(&(a.min(b), a.max(b)));
        // Links to processes that died meanwhile turn out to be dead.
        let running: BTreeSet<i64> = self.running().iter().map(|life| life.me).collect();
        for life in self.running() {
            let half: Vec<i64> = life.up.borrow().difference(&running).copied().collect();
            half.into_iter().for_each(|peer| life.clone().link_down(self, peer));
        }
    }

    pub fn stop(self: &Rc<Self>, life: &Rc<Life>, ms: i64) {
        let until = now() + ms;
        self.note(|| format!("{} is stopped until {until}", life.me));
        exec::stop_until(life.process, until);
    }

    /// The process ends, and another one of its name starts later.
    pub fn kill(self: &Rc<Self>, life: &Rc<Life>, restart_ms: i64) {
        {
            let mut lives = self.lives.borrow_mut();
            if lives.get(&life.name).is_none_or(|running| running.me != life.me) {
                return;
            }
            lives.remove(&life.name);
        }
        self.note(|| format!("{} (node {}) ends", life.me, life.name));
        for other in self.running() {
            let apart = self.faults.borrow().apart(life.name, other.name).is_some();
            if !apart && other.up.borrow().contains(&life.me) {
                other.link_down(self, life.me);
            }
        }
        let (world, name, process) = (self.clone(), life.name, life.process);
        spawn(WORLD, async move {
            // Not under the feet of a task that ends its own process.
            exec::kill(process);
            let until = now() + restart_ms;
            while now() < until && !world.faults.borrow().healed {
                sleep((until - now()).min(500)).await;
            }
            Life::start(world, name).await;
        });
    }

    /// A change of slots or members begins: a good moment for trouble.
    pub fn aim(self: &Rc<Self>, name: usize) {
        let (healed, single) = (self.faults.borrow().healed, self.faults.borrow().single);
        if healed || single || name == OPERATOR || !one_in(25) {
            return;
        }
        let (world, delay, for_ms) = (self.clone(), between(0, 12), between(100, 3_000));
        let (stops, requests) = (one_in(3), one_in(2));
        spawn(WORLD, async move {
            sleep(delay).await;
            let Some(life) = world.lives.borrow().get(&name).cloned() else { return };
            if stops {
                return world.stop(&life, for_ms * if one_in(4) { 5 } else { 1 });
            }
            world.note(|| format!("node {name} and the store: cut, {requests}, {for_ms} ms"));
            world.faults.borrow_mut().store.insert(name, (requests, true));
            sleep(for_ms).await;
            world.faults.borrow_mut().store.remove(&name);
        });
    }

    /// What a dial meets.
    pub fn dial(&self, from: &Life, peer: i64) -> Dial {
        let name = self.store.borrow().nodes[&peer].name;
        match self.faults.borrow().apart(from.name, name) {
            Some(true) => return Dial::Refused,
            Some(false) => return Dial::Silence,
            None => {}
        }
        match self.lives.borrow().get(&name) {
            Some(life) if life.me == peer && exec::stopped_until(life.process) > now() => {
                Dial::Silence
            }
            Some(life) if life.me == peer => Dial::Met(life.clone()),
            // Nobody listens there, or another incarnation does.
            _ => Dial::Refused,
        }
    }

    /// Whether a message gets from one node to another, which may be stopped.
    pub fn reaches(&self, from: &Life, peer: i64) -> Option<Rc<Life>> {
        if !from.up.borrow().contains(&peer) {
            return None;
        }
        let life = self.running().into_iter().find(|life| life.me == peer)?;
        self.faults.borrow().apart(from.name, life.name).is_none().then_some(life)
    }

    pub fn any_running(&self) -> Option<Rc<Life>> {
        let names: Vec<usize> = self.lives.borrow().keys().copied().collect();
        pick(&names).map(|name| self.lives.borrow()[&name].clone())
    }
}

pub enum Dial {
    Met(Rc<Life>),
    Refused,
    Silence,
}

impl Life {
    pub fn link_down(self: Rc<Self>, world: &Rc<World>, peer: i64) {
        if self.up.borrow_mut().remove(&peer) {
            self.tell(LinkEvent::Down { peer, cause: DownCause::Reset });
            self.keep_link(world, peer);
        }
    }

    pub fn link_up(&self, peer: i64) {
        if self.up.borrow_mut().insert(peer) {
            self.tell(LinkEvent::Up { peer });
        }
    }

    fn tell(&self, event: LinkEvent) {
        self.events.borrow_mut().push(event);
        self.news.ring();
    }

    /// Dials until there is a link, or the peer is forgotten. Ended with the link, and begun again when it goes down.
    pub fn keep_link(self: Rc<Self>, world: &Rc<World>, peer: i64) {
        let world = world.clone();
        spawn(self.process, async move {
            let mut backoff = between(20, 50);
            loop {
                if !self.peers.borrow().contains(&peer) || self.up.borrow().contains(&peer) {
                    return;
                }
                match world.dial(&self, peer) {
                    // The lower incarnation dials; the other one only looks whether somebody is there.
                    Dial::Met(other) if self.me < peer => {
                        if other.peers.borrow().contains(&self.me) {
                            self.link_up(peer);
                            other.link_up(self.me);
                            return;
                        }
                    }
                    Dial::Refused => self.tell(LinkEvent::Refused { peer }),
                    Dial::Met(_) | Dial::Silence => {}
                }
                sleep(backoff).await;
                backoff = (backoff * 2).min(2_000);
            }
        });
    }
}
