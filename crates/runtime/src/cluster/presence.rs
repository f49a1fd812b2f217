//! Presence of users, over all of their devices and all nodes.
//!
//! Each node knows its own connections, and reports all of a user's to the node that owns the slot of
//! `presence:<user>`. The owner merges the reports and publishes changes. Nothing is stored: when the slot gets a new
//! owner, every node reports to it, and listeners ask it for the current state. An owner that knows no devices waits
//! [`GRACE_MS`] before it reports the user offline: until then, users whose node is gone may reconnect through another.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Notify;

use crate::cluster::fanout::topic_slot;
use crate::cluster::lease::boottime_ms;
use crate::cluster::router::{Router, control};
use crate::cluster::slots::{SlotLocation, Slots};
use crate::cluster::topics::{Published, Topics};
use crate::kernel::codec;
use crate::kernel::ids::SLOTS;

/// Grace for reconnects: a device that returns within this time was never away.
pub const GRACE_MS: i64 = 5_000;
/// Most devices of one user that are told apart; further ones are ignored.
const MAX_DEVICES: usize = 256;
/// Most users in one message.
const CHUNK: usize = 64;
/// Most questions that wait for an answer. Further ones are dropped: the next change is published all the same.
const MAX_ASKED: usize = 65_536;
const TICK: Duration = Duration::from_millis(100);
/// Interval at which unacknowledged reports are repeated.
const RETRY_MS: i64 = 500;

/// A connection, and the status that its user has set there.
pub type PresenceDevice = (Arc<str>, Arc<str>);
/// A report about a user: the user, its version, and the user's devices.
type News = (Arc<str>, u64, Vec<PresenceDevice>);

#[derive(Debug, Serialize, Deserialize)]
enum Message {
    /// To the owner: the devices that these users have on this node.
    Here(Vec<News>),
    /// From the owner: it has received these versions.
    Noted(Vec<(Arc<str>, u64)>),
    /// To the owner: publish the user's current presence.
    Ask(Arc<str>),
}

/// One user's presence, as its owner keeps it.
#[derive(Debug, Default)]
struct UserPresence {
    devices: Vec<KnownDevice>,
    /// Counts announcements: the latest one determines the user's status.
    turn: u64,
}

#[derive(Debug)]
struct KnownDevice {
    /// The id that clients know the device by. A reconnect keeps it.
    id: Arc<str>,
    node: i64,
    connection: Arc<str>,
    status: Arc<str>,
    turn: u64,
    gone_at_ms: Option<i64>,
}

/// The changes that listeners get in addition to the current state.
#[derive(Debug, Default, PartialEq, Eq)]
struct Change {
    joins: Vec<Arc<str>>,
    leaves: Vec<Arc<str>>,
    updates: Vec<Arc<str>>,
}

impl Change {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl UserPresence {
    /// Takes over a node's report, which lists all of the user's devices there.
    fn hear(&mut self, node: i64, devices: &[PresenceDevice], now_ms: i64) -> Change {
        let mut change = Change::default();
        for known in self.devices.iter_mut().filter(|known| known.node == node) {
            if !devices.iter().any(|(connection, _)| *connection == known.connection) {
                known.gone_at_ms.get_or_insert(now_ms);
            }
        }
        for (connection, status) in devices {
            self.turn += 1;
            let at = self.devices.iter().position(|known| known.connection == *connection);
            let at = at.or_else(|| {
                let gone = self.devices.iter().enumerate();
                let gone = gone.filter_map(|(at, known)| Some((known.gone_at_ms?, at)));
                gone.min().map(|(_, at)| at)
            });
            let Some(known) = at.map(|at| &mut self.devices[at]) else {
                if self.devices.len() < MAX_DEVICES {
                    self.devices.push(KnownDevice {
                        id: connection.clone(),
                        node,
                        connection: connection.clone(),
                        status: status.clone(),
                        turn: self.turn,
                        gone_at_ms: None,
                    });
                    change.joins.push(connection.clone());
                }
                continue;
            };
            let new = known.connection != *connection;
            (known.node, known.gone_at_ms) = (node, None);
            known.connection = connection.clone();
            if known.status != *status {
                change.updates.push(known.id.clone());
                known.status = status.clone();
                known.turn = self.turn;
            } else if new {
                known.turn = self.turn;
            }
        }
        change
    }

    /// The node is dead.
    fn lost(&mut self, node: i64, now_ms: i64) -> bool {
        let theirs = self.devices.iter_mut().filter(|known| known.node == node);
        theirs.map(|known| known.gone_at_ms.get_or_insert(now_ms)).count() > 0
    }

    /// Removes the devices that have not come back in time.
    fn tick(&mut self, now_ms: i64) -> Change {
        let gone =
            |known: &mut KnownDevice| known.gone_at_ms.is_some_and(|at| at + GRACE_MS <= now_ms);
        let leaves = self.devices.extract_if(.., gone).map(|known| known.id).collect();
        Change { leaves, ..Change::default() }
    }

    fn waits(&self) -> bool {
        self.devices.iter().any(|known| known.gone_at_ms.is_some())
    }

    fn status(&self) -> &str {
        self.devices.iter().max_by_key(|known| known.turn).map_or("offline", |known| &known.status)
    }

    fn publication(&self, user: &str, change: &Change) -> Arc<Published> {
        let devices = self.devices.iter().map(|d| json!({"id": d.id, "status": d.status}));
        let data = json!({
            "user_id": user,
            "status": self.status(),
            "devices": devices.collect::<Vec<_>>(),
            "joins": change.joins,
            "leaves": change.leaves,
        });
        Published::new(&topic_of(user), None, "presence:changed", &data.to_string())
    }
}

/// A user who has devices on this node, or had some a moment ago.
#[derive(Default)]
struct Mine {
    devices: Vec<PresenceDevice>,
    version: u64,
    /// The last report: the owner that got this version, the slot's epoch, and the time.
    told: Option<(i64, i64, i64)>,
}

/// The users of this node, and the reports about them.
#[derive(Default)]
struct LocalReports {
    users: HashMap<Arc<str>, Mine>,
    /// Users whose owner may not have the newest version.
    open: HashSet<Arc<str>>,
    version: u64,
}

impl LocalReports {
    fn change(&mut self, user: &str, change: impl FnOnce(&mut Vec<PresenceDevice>)) {
        self.version += 1;
        let user: Arc<str> = user.into();
        let entry = self.users.entry(user.clone()).or_default();
        change(&mut entry.devices);
        (entry.version, entry.told) = (self.version, None);
        self.open.insert(user);
    }

    /// Records that the owner has received this version.
    fn noted(&mut self, user: &Arc<str>, version: u64) {
        if let Some(entry) = self.users.get(user)
            && entry.version == version
        {
            self.open.remove(user);
            if entry.devices.is_empty() {
                self.users.remove(user);
            }
        }
    }

    fn users_moved(&mut self, slots: &Slots) {
        let Self { users, open, .. } = self;
        for (user, entry) in users.iter() {
            let owned = slots.owned(topic_slot(&topic_of(user)));
            if entry.told.is_none_or(|(by, at, _)| (Some(by), at) != (owned.owner, owned.epoch)) {
                open.insert(user.clone());
            }
        }
    }

    fn open_all(&mut self, of: impl Fn(&Mine) -> bool) {
        let Self { users, open, .. } = self;
        for (user, entry) in users.iter_mut().filter(|(_, entry)| of(entry)) {
            entry.told = None;
            open.insert(user.clone());
        }
    }
}

#[derive(Default)]
struct Kept {
    users: HashMap<Arc<str>, UserPresence>,
    /// Users with devices that may still come back.
    waiting: HashSet<Arc<str>>,
    /// Users whose listeners asked for the current state.
    asked: HashSet<Arc<str>>,
    /// For each slot: its epoch, and the time since when it has been owned here.
    since: Vec<(i64, i64)>,
}

/// This node's part in the presence of the cluster's users.
pub struct Presence {
    router: Router,
    slots: Slots,
    topics: Topics,
    mine: Mutex<LocalReports>,
    kept: Mutex<Kept>,
    wake: Notify,
}

fn topic_of(user: &str) -> String {
    format!("presence:{user}")
}

impl Presence {
    pub fn new(router: Router, slots: Slots, topics: Topics) -> Arc<Self> {
        let kept = Kept { since: vec![(0, 0); usize::from(SLOTS)], ..Kept::default() };
        Arc::new(Self {
            router,
            slots,
            topics,
            mine: Mutex::default(),
            kept: Mutex::new(kept),
            wake: Notify::new(),
        })
    }

    /// Marks the user as present on this connection of this node.
    pub fn set(&self, user: &str, connection: &str, status: &str) {
        self.mine.lock().change(user, |devices| {
            devices.retain(|(known, _)| **known != *connection);
            // The latest announcement comes last.
            devices.push((connection.into(), status.into()));
        });
        self.wake.notify_one();
    }

    /// Removes a connection that is gone.
    pub fn clear(&self, user: &str, connection: &str) {
        self.mine.lock().change(user, |devices| {
            devices.retain(|(known, _)| **known != *connection);
        });
        self.wake.notify_one();
    }

    /// Asks for the user's presence to be published to its listeners.
    pub fn ask(&self, user: &str) {
        match self.slots.locate(topic_slot(&topic_of(user))) {
            // If it cannot be sent, there will be a new link or a new owner, and the listener asks again.
            SlotLocation::There { incarnation, .. } => {
                self.send(incarnation, &Message::Ask(user.into()))
            }
            SlotLocation::Here { .. } | SlotLocation::Nowhere => self.asked(user.into()),
        }
    }

    fn asked(&self, user: Arc<str>) {
        let mut kept = self.kept.lock();
        if kept.asked.len() < MAX_ASKED {
            kept.asked.insert(user);
            self.wake.notify_one();
        }
    }

    fn send(&self, peer: i64, message: &Message) {
        let mut bytes = vec![control::PRESENCE];
        bytes.extend(codec::encode(message));
        let _ = self.router.announce(peer, bytes);
    }

    /// The node is dead.
    pub fn forget(&self, node: i64) {
        let kept = &mut *self.kept.lock();
        for (user, shown) in &mut kept.users {
            if shown.lost(node, boottime_ms()) {
                kept.waiting.insert(user.clone());
            }
        }
        self.wake.notify_one();
    }

    /// Handles a new link: reports sent over the old one may have been lost.
    pub fn link_up(&self, peer: i64) {
        self.mine.lock().open_all(|mine| mine.told.is_some_and(|(owner, ..)| owner == peer));
        self.wake.notify_one();
    }

    /// Handles a message from another node, without its first byte.
    pub fn receive(&self, from: i64, bytes: &[u8]) {
        let Some(message) = codec::decode::<Message>(bytes) else { return };
        match message {
            Message::Here(users) => {
                let mut noted = Vec::new();
                for (user, version, devices) in users {
                    if self.hear(from, &user, &devices) {
                        noted.push((user, version));
                    }
                }
                if !noted.is_empty() {
                    self.send(from, &Message::Noted(noted));
                }
            }
            Message::Noted(users) => {
                let mut mine = self.mine.lock();
                users.iter().for_each(|(user, version)| mine.noted(user, *version));
            }
            Message::Ask(user) => self.asked(user),
        }
    }

    /// Takes over a node's report about one user. False: this node does not own the user's presence.
    fn hear(&self, node: i64, user: &Arc<str>, devices: &[PresenceDevice]) -> bool {
        if !self.is_kept_here(user) {
            return false;
        }
        let mut kept = self.kept.lock();
        let shown = kept.users.entry(user.clone()).or_default();
        let change = shown.hear(node, devices, boottime_ms());
        self.publish(user, shown, &change);
        let (waits, empty) = (shown.waits(), shown.devices.is_empty());
        if waits {
            kept.waiting.insert(user.clone());
            self.wake.notify_one();
        } else if empty {
            kept.users.remove(user);
        }
        true
    }

    fn is_kept_here(&self, user: &str) -> bool {
        matches!(self.slots.locate(topic_slot(&topic_of(user))), SlotLocation::Here { .. })
    }

    fn publish(&self, user: &str, shown: &UserPresence, change: &Change) {
        if !change.is_none() && self.topics.has_subscribers(&topic_of(user)) {
            self.topics.publish(&shown.publication(user, change));
        }
    }

    /// Reports to owners, and publishes changes to listeners.
    pub async fn run(self: Arc<Self>) {
        let mut moved = self.slots.changes();
        self.look_at_slots();
        loop {
            let pending = self.tell() | self.settle();
            tokio::select! {
                () = self.wake.notified() => {}
                changed = moved.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.look_at_slots();
                }
                () = tokio::time::sleep(TICK), if pending => {}
            }
        }
    }

    /// Forgets users whose slots have moved to other nodes.
    fn look_at_slots(&self) {
        let (kept, now) = (&mut *self.kept.lock(), boottime_ms());
        for slot in 0..SLOTS {
            let owned = self.slots.owned(slot);
            let since = &mut kept.since[usize::from(slot)];
            if owned.owner == Some(self.slots.me()) && since.0 != owned.epoch {
                *since = (owned.epoch, now);
            }
        }
        let elsewhere = |user: &Arc<str>| {
            matches!(self.slots.locate(topic_slot(&topic_of(user))), SlotLocation::There { .. })
        };
        kept.users.retain(|user, _| !elsewhere(user));
        kept.waiting.retain(|user| !elsewhere(user));
        kept.asked.retain(|user| !elsewhere(user));
        // The new owner does not know of reports to the old one.
        self.mine.lock().users_moved(&self.slots);
    }

    /// Sends outstanding reports to the owners. True: some are not acknowledged yet.
    fn tell(&self) -> bool {
        let now = boottime_ms();
        let mut by_owner: HashMap<i64, Vec<News>> = HashMap::new();
        {
            let LocalReports { users, open, .. } = &mut *self.mine.lock();
            for user in open.iter() {
                let Some(entry) = users.get_mut(user) else { continue };
                let (owner, epoch) = match self.slots.locate(topic_slot(&topic_of(user))) {
                    SlotLocation::Here { epoch } => (self.slots.me(), epoch),
                    SlotLocation::There { incarnation, epoch } => (incarnation, epoch),
                    SlotLocation::Nowhere => continue,
                };
                let told = |(by, at, ms): (i64, i64, i64)| {
                    (by, at) == (owner, epoch) && ms + RETRY_MS > now
                };
                if !entry.told.is_some_and(told) {
                    entry.told = Some((owner, epoch, now));
                    let told = (user.clone(), entry.version, entry.devices.clone());
                    by_owner.entry(owner).or_default().push(told);
                }
            }
        }
        for (owner, users) in by_owner {
            if owner == self.slots.me() {
                for (user, version, devices) in users {
                    if self.hear(owner, &user, &devices) {
                        self.mine.lock().noted(&user, version);
                    }
                }
                continue;
            }
            for chunk in users.chunks(CHUNK) {
                self.send(owner, &Message::Here(chunk.to_vec()));
            }
        }
        !self.mine.lock().open.is_empty()
    }

    /// Removes devices whose grace is over, and answers questions. True: some are still waiting.
    fn settle(&self) -> bool {
        let (kept, now) = (&mut *self.kept.lock(), boottime_ms());
        let Kept { users, waiting, asked, since } = kept;
        waiting.retain(|user| {
            let Some(shown) = users.get_mut(user) else { return false };
            let change = shown.tick(now);
            self.publish(user, shown, &change);
            let (waits, empty) = (shown.waits(), shown.devices.is_empty());
            if empty {
                users.remove(user);
            }
            waits
        });
        let nobody = UserPresence::default();
        asked.retain(|user| {
            let slot = topic_slot(&topic_of(user));
            match self.slots.locate(slot) {
                SlotLocation::Here { .. } => {}
                SlotLocation::There { .. } => return false,
                SlotLocation::Nowhere => return true,
            }
            let shown = users.get(user);
            if shown.is_none() && since[usize::from(slot)].1 + GRACE_MS > now {
                return true;
            }
            self.topics.publish(&shown.unwrap_or(&nobody).publication(user, &Change::default()));
            false
        });
        !waiting.is_empty() || !asked.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn devices(of: &[(&str, &str)]) -> Vec<PresenceDevice> {
        of.iter().map(|(connection, status)| ((*connection).into(), (*status).into())).collect()
    }

    fn joined(ids: &[&str]) -> Change {
        Change { joins: ids.iter().map(|id| (*id).into()).collect(), ..Change::default() }
    }

    #[test]
    fn who_comes_back_in_time_was_never_away() {
        let mut shown = UserPresence::default();
        assert_eq!(shown.hear(1, &devices(&[("a", "online")]), 0), joined(&["a"]));
        assert!(shown.hear(1, &[], 1_000).is_none());
        assert!(shown.tick(5_999).is_none());
        // Over another node, with another connection.
        assert!(shown.hear(2, &devices(&[("b", "online")]), 5_999).is_none());
        assert!(shown.tick(60_000).is_none());
        assert_eq!((shown.status(), &*shown.devices[0].id), ("online", "a"));
        // And who does not is gone.
        shown.hear(2, &[], 60_000);
        let change = shown.tick(65_000);
        assert_eq!((change.leaves, shown.status()), (vec!["a".into()], "offline"));
    }

    #[test]
    fn the_latest_announcement_speaks_for_the_user() {
        let mut shown = UserPresence::default();
        let both = [("a", "online"), ("b", "away")];
        assert_eq!(shown.hear(1, &devices(&both), 0), joined(&["a", "b"]));
        assert_eq!(shown.status(), "away");
        let change = shown.hear(1, &devices(&[("b", "away"), ("a", "busy")]), 0);
        assert_eq!((change.updates, shown.status()), (vec!["a".into()], "busy"));
        // Telling the same again, as after a new link, changes nothing.
        assert!(shown.hear(1, &devices(&[("b", "away"), ("a", "busy")]), 0).is_none());
        assert_eq!(shown.status(), "busy");
    }

    #[test]
    fn a_dead_node_takes_its_devices_along_and_no_others() {
        let mut shown = UserPresence::default();
        shown.hear(1, &devices(&[("a", "online")]), 0);
        shown.hear(2, &devices(&[("b", "online")]), 0);
        assert!(shown.lost(1, 100) && !shown.lost(3, 100));
        assert_eq!(shown.tick(100 + GRACE_MS).leaves, [Arc::from("a")]);
        assert_eq!((shown.devices.len(), shown.waits()), (1, false));
    }

    proptest! {
        /// Whatever happens, a listener that applies joins and leaves knows the devices, and in the end these are the
        /// ones that nodes have.
        #[test]
        fn joins_and_leaves_add_up(steps in prop::collection::vec((0..3i64, 0..5usize, 0..3_000i64, any::<bool>()), 1..60)) {
            let mut shown = UserPresence::default();
            let mut nodes: HashMap<i64, Vec<PresenceDevice>> = HashMap::new();
            let (mut known, mut now, mut next) = (HashSet::new(), 0, 0);
            let apply = |change: Change, known: &mut HashSet<Arc<str>>| {
                for id in change.joins { assert!(known.insert(id)); }
                for id in change.leaves { assert!(known.remove(&id)); }
            };
            for (node, which, wait, add) in steps {
                now += wait;
                apply(shown.tick(now), &mut known);
                let mine = nodes.entry(node).or_default();
                if add {
                    next += 1;
                    mine.push((format!("c{next}").into(), "online".into()));
                } else if which < mine.len() {
                    mine.remove(which);
                }
                let mine = mine.clone();
                apply(shown.hear(node, &mine, now), &mut known);
                let ids: HashSet<_> = shown.devices.iter().map(|device| device.id.clone()).collect();
                prop_assert_eq!(&ids, &known);
            }
            apply(shown.tick(now + GRACE_MS), &mut known);
            let there: HashSet<_> = nodes.values().flatten().map(|(id, _)| id.clone()).collect();
            let kept: HashSet<_> = shown.devices.iter().map(|device| device.connection.clone()).collect();
            prop_assert_eq!(there, kept);
        }
    }
}
