//! The registry of this node's activations. It finds or starts them, bounds the commands in flight, and parks entities
//! that cannot start.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use futures_util::FutureExt;
use parking_lot::Mutex;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::actors::ask::{ActivationMessage, Ask, Origin, Slip};
use crate::actors::firing::Firing;
use crate::actors::runtime::{ParkNotice, Runtime};
use crate::cluster::ask::{Answering, EntityAnswer};
use crate::cluster::slots::SlotLocation;
use crate::cluster::{CommandMeta, LocalEntities};
use crate::kernel::clock::doubled;
use crate::kernel::entity::{Entity, Publication, Rejection};
use crate::kernel::error::AskError;
use crate::kernel::ids::slot_of;
use crate::persistence::codec::SnapshotCodec;
use crate::persistence::outbox::Parked;

/// The first delay after an entity could not start; it doubles with each failure.
const FIRST_RESTART: Duration = Duration::from_millis(100);

/// Whole seconds, for "last used".
fn seconds_since(start: Instant, now: Instant) -> u32 {
    now.duration_since(start).as_secs() as u32
}

struct Live<E: Entity> {
    actor: ActorRef<ActivationMessage<E>>,
    in_flight: Arc<AtomicU32>,
    last_used_s: AtomicU32,
}

struct Failure {
    count: u32,
    retry_at: Instant,
    reason: String,
    parked: bool,
    /// Whether another release has parked it: it starts here, and its row in the store is deleted then.
    parked_elsewhere: bool,
}

/// A function that starts an activation under a supervisor, for a key and the current epoch of its slot.
pub type Start<E> = fn(
    Arc<KindTable<E>>,
    Arc<str>,
    i64,
    ActorCell,
) -> Result<ActorRef<ActivationMessage<E>>, SpawnErr>;

/// All activations of one kind.
pub struct KindTable<E: Entity> {
    pub runtime: Arc<Runtime>,
    pub codec: SnapshotCodec,
    known_as: String,
    live: DashMap<Arc<str>, Live<E>>,
    /// The keys of `live`, changed under its locks.
    by_slot: DashMap<u16, HashSet<Arc<str>>>,
    failures: Mutex<HashMap<Arc<str>, Failure>>,
    /// The size of `failures`: it is almost always 0, and then the lock is not taken.
    failing: AtomicUsize,
    start: Start<E>,
    supervisor: ActorCell,
    started: Instant,
    parked: tokio::sync::mpsc::UnboundedSender<ParkNotice>,
}

impl<E: Entity> KindTable<E> {
    /// The handle of a live entity, which is started if needed. Its slip is taken under the map's lock, so that it
    /// cannot retire in between.
    fn take_slip(
        self: &Arc<Self>,
        slot: u16,
        key: &str,
        now: Instant,
    ) -> Result<(ActorRef<ActivationMessage<E>>, Slip<E>), AskError> {
        if self.failing.load(Ordering::Acquire) > 0 {
            self.check_failure(key)?;
        }
        let SlotLocation::Here { epoch } = self.runtime.slots.locate(slot) else {
            return Err(AskError::NotHere);
        };
        let max = self.runtime.options.max_in_flight;
        let slip = |live: &Live<E>| {
            live.last_used_s.store(seconds_since(self.started, now), Ordering::Relaxed);
            let slip = Slip::take(&live.in_flight, max).ok_or(AskError::Overloaded)?;
            Ok((live.actor.clone(), slip))
        };
        if let Some(live) = self.live.get(key) {
            return slip(&live);
        }
        match self.live.entry(key.into()) {
            Entry::Occupied(live) => slip(live.get()),
            Entry::Vacant(vacant) => {
                let key = vacant.key().clone();
                let actor = (self.start)(self.clone(), key, epoch, self.supervisor.clone())
                    .map_err(|e| AskError::unavailable(format!("the entity did not start: {e}")))?;
                let live = Live {
                    actor,
                    in_flight: Arc::new(AtomicU32::new(0)),
                    last_used_s: AtomicU32::new(0),
                };
                let taken = slip(&live);
                self.by_slot.entry(slot).or_default().insert(vacant.key().clone());
                vacant.insert(live);
                taken
            }
        }
    }

    fn check_failure(&self, key: &str) -> Result<(), AskError> {
        let failures = self.failures.lock();
        match failures.get(key) {
            Some(f) if f.parked => Err(AskError::Unavailable {
                reason: format!(
                    "the entity is parked after {} failed starts: {}",
                    f.count, f.reason
                ),
                retry_after_ms: 30_000,
            }),
            Some(f) if f.retry_at > Instant::now() => Err(AskError::Unavailable {
                reason: "the entity failed to start and is retried soon".into(),
                retry_after_ms: f.retry_at.duration_since(Instant::now()).as_millis() as u64 + 1,
            }),
            _ => Ok(()),
        }
    }

    /// Removes an activation that has ended: the next command starts a new one.
    pub fn ended(&self, key: &Arc<str>, actor: ActorId) {
        self.remove(key, |live| live.actor.get_id() == actor);
    }

    /// Takes an idle activation out, unless a command has just been sent to it.
    pub fn retire(&self, key: &Arc<str>, actor: ActorId) -> bool {
        let idle = |live: &Live<E>| live.in_flight.load(Ordering::Acquire) == 0;
        self.remove(key, |live| live.actor.get_id() == actor && idle(live))
    }

    fn remove(&self, key: &Arc<str>, which: impl FnOnce(&Live<E>) -> bool) -> bool {
        let Entry::Occupied(live) = self.live.entry(key.clone()) else { return false };
        if !which(live.get()) {
            return false;
        }
        let slot = slot_of(E::KIND, key);
        if let Entry::Occupied(mut keys) = self.by_slot.entry(slot) {
            keys.get_mut().remove(key);
            if keys.get().is_empty() {
                keys.remove();
            }
        }
        live.remove();
        true
    }

    pub fn start_failed(&self, key: &Arc<str>, reason: &str) {
        let mut failures = self.failures.lock();
        let failure = failures.entry(key.clone()).or_insert_with(|| Failure {
            count: 0,
            retry_at: Instant::now(),
            reason: String::new(),
            parked: false,
            parked_elsewhere: false,
        });
        failure.count += 1;
        failure.reason = reason.into();
        failure.retry_at =
            Instant::now() + doubled(FIRST_RESTART, failure.count - 1, Duration::from_secs(10));
        if failure.count >= self.runtime.options.park_after && !failure.parked {
            failure.parked = true;
            metrics::counter!("proxie_entities_parked_total", "kind" => E::KIND).increment(1);
            let failed = Some((reason.into(), failure.count));
            let _ = self.parked.send(ParkNotice { kind: E::KIND, key: key.clone(), failed });
        }
        self.failing.store(failures.len(), Ordering::Release);
    }

    pub fn started(&self, key: &str) {
        if self.failing.load(Ordering::Acquire) > 0 {
            let mut failures = self.failures.lock();
            let before = failures.remove_entry(key).filter(|(_, f)| f.parked_elsewhere);
            if let Some((key, _)) = before {
                let _ = self.parked.send(ParkNotice { kind: E::KIND, key, failed: None });
            }
            self.failing.store(failures.len(), Ordering::Release);
        }
    }

    /// Sends a command. It is in the mailbox when this returns; the future waits for the answer.
    fn ask(
        self: &Arc<Self>,
        key: &str,
        command: E::Command,
        meta: CommandMeta,
    ) -> impl Future<Output = Result<Result<E::Reply, E::Rejection>, AskError>> + Send + use<E>
    {
        let deadline = meta.deadline;
        let sent = self.send(key, command, meta);
        async move {
            match tokio::time::timeout_at(deadline.into(), sent?).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(AskError::Unavailable {
                    reason: "the entity restarts".into(),
                    retry_after_ms: 50,
                }),
                Err(_) => Err(AskError::DeadlineExceeded),
            }
        }
    }

    fn send(
        self: &Arc<Self>,
        key: &str,
        command: E::Command,
        meta: CommandMeta,
    ) -> Result<oneshot::Receiver<EntityAnswer<E>>, AskError> {
        let now = Instant::now();
        if meta.deadline <= now {
            return Err(AskError::DeadlineExceeded);
        }
        let slot = slot_of(E::KIND, key);
        if !self.runtime.lanes.is_up(slot) {
            return Err(AskError::unavailable("the store is away"));
        }
        let (actor, slip) = self.take_slip(slot, key, now)?;
        let (reply, answer) = oneshot::channel();
        let ask = Ask {
            command,
            caller: meta.caller,
            command_id: meta.command_id,
            deadline: Some(meta.deadline),
            origin: Origin::Caller { reply, slip: Some(slip) },
        };
        if actor.cast(ActivationMessage::Ask(Box::new(ask))).is_err() {
            self.ended(&key.into(), actor.get_id());
            return Err(AskError::NotHere);
        }
        Ok(answer)
    }

    fn cast(self: &Arc<Self>, key: &str, message: ActivationMessage<E>) -> Result<(), AskError> {
        let (actor, _slip) = self.take_slip(slot_of(E::KIND, key), key, Instant::now())?;
        actor.cast(message).map_err(|_| AskError::unavailable("the entity has just stopped"))
    }
}

/// A kind as the rest of the node uses it, without knowing its types.
pub trait AnyKind: Send + Sync {
    fn ask_any(
        &self,
        key: &str,
        command: Box<dyn Any + Send>,
        meta: CommandMeta,
    ) -> Answering<Box<dyn Any + Send>>;
    fn ask_json(
        &self,
        key: &str,
        command: &str,
        meta: CommandMeta,
    ) -> Answering<Result<Value, String>>;
    fn ask_outcome(&self, key: &str, command: &str, meta: CommandMeta) -> Answering<String>;
    fn outcome_json(&self, outcome: &str) -> Option<Result<Value, String>>;
    /// Tells every live entity of the leaving slots to end, when it has finished what it has. Returns how many there are.
    fn retire(&self, leaving: &HashSet<u16>) -> usize;
    /// A due timer. `firing` is dropped when the fire has ended.
    fn fire(
        &self,
        key: &str,
        name: String,
        id: String,
        command: &str,
        firing: Firing,
    ) -> Result<(), AskError>;
    /// Makes an entity look for due deliveries. False: it cannot start.
    fn wake(&self, key: &str) -> bool;
    fn live(&self) -> usize;
    /// Makes entities passive that were idle for `idle_s`, at most `limit` of them.
    fn sweep(&self, idle_s: u32, limit: usize);
    /// The version of the kind that this release knows: it may start an entity that another release could not.
    fn known_as(&self) -> &str;
    /// Keeps exactly these entities parked, as far as this release has parked them. False: others were parked a moment
    /// ago, and stay parked until the store is sure to list them.
    fn set_parked(&self, parked: &HashMap<String, Parked>) -> bool;
}

struct Kind<E: Entity>(Arc<KindTable<E>>);

impl<E: Entity> AnyKind for Kind<E> {
    fn ask_any(
        &self,
        key: &str,
        command: Box<dyn Any + Send>,
        meta: CommandMeta,
    ) -> Answering<Box<dyn Any + Send>> {
        let Ok(command) = command.downcast::<E::Command>() else {
            return std::future::ready(Err(AskError::BadCommand("another kind's command".into())))
                .boxed();
        };
        let ask = self.0.ask(key, *command, meta);
        async move { ask.await.map(|answer| Box::new(answer) as Box<dyn Any + Send>) }.boxed()
    }

    fn ask_json(
        &self,
        key: &str,
        command: &str,
        meta: CommandMeta,
    ) -> Answering<Result<Value, String>> {
        let ask = decode_command::<E>(command).map(|command| self.0.ask(key, command, meta));
        async move { Ok(as_json::<E>(ask?.await?)) }.boxed()
    }

    fn ask_outcome(&self, key: &str, command: &str, meta: CommandMeta) -> Answering<String> {
        let ask = decode_command::<E>(command).map(|command| self.0.ask(key, command, meta));
        async move { Ok(serde_json::to_string(&ask?.await?).expect("replies are plain data")) }
            .boxed()
    }

    fn outcome_json(&self, outcome: &str) -> Option<Result<Value, String>> {
        serde_json::from_str(outcome).ok().map(as_json::<E>)
    }

    fn retire(&self, leaving: &HashSet<u16>) -> usize {
        let keys_of = |slot| self.0.by_slot.get(slot).map(|keys| keys.iter().cloned().collect());
        let keys = leaving.iter().filter_map(keys_of).flat_map(|keys: Vec<_>| keys);
        let tell =
            |key: Arc<str>| self.0.live.get(&key)?.actor.cast(ActivationMessage::Retire).ok();
        keys.filter_map(tell).count()
    }

    fn fire(
        &self,
        key: &str,
        name: String,
        id: String,
        command: &str,
        firing: Firing,
    ) -> Result<(), AskError> {
        let command = decode_command::<E>(command)?;
        let origin = Origin::Timer { name, id, firing };
        let ask = Ask {
            command,
            caller: crate::kernel::entity::Caller::Runtime,
            command_id: None,
            deadline: None,
            origin,
        };
        self.0.cast(key, ActivationMessage::Ask(Box::new(ask)))
    }

    fn wake(&self, key: &str) -> bool {
        self.0.cast(key, ActivationMessage::Owed).is_ok()
    }

    fn live(&self) -> usize {
        self.0.live.len()
    }

    fn sweep(&self, idle_s: u32, limit: usize) {
        let now = seconds_since(self.0.started, Instant::now());
        self.0
            .live
            .iter()
            .filter(|live| now.saturating_sub(live.last_used_s.load(Ordering::Relaxed)) >= idle_s)
            .take(limit)
            .for_each(|live| drop(live.actor.cast(ActivationMessage::Passivate)));
    }

    fn known_as(&self) -> &str {
        &self.0.known_as
    }

    fn set_parked(&self, parked: &HashMap<String, Parked>) -> bool {
        let mut failures = self.0.failures.lock();
        let mut settled = true;
        failures.retain(|key, f| {
            if !(f.parked || f.parked_elsewhere) || parked.contains_key(&**key) {
                return true;
            }
            // It was parked here a moment ago and may not be in the store yet: `retry_at` is in the future.
            let new = f.retry_at + Duration::from_secs(5) > Instant::now();
            settled &= !new;
            new
        });
        for (key, Parked { reason, failures: count, known_as, .. }) in parked {
            let here = known_as.as_deref() == Some(self.known_as());
            let failure = || Failure {
                count: if here { *count as u32 } else { 0 },
                retry_at: Instant::now(),
                reason: reason.clone(),
                parked: here,
                parked_elsewhere: !here,
            };
            let known = failures.entry(key.as_str().into()).or_insert_with(failure);
            if here && known.parked_elsewhere {
                *known = failure();
            }
        }
        self.0.failing.store(failures.len(), Ordering::Release);
        settled
    }
}

fn as_json<E: Entity>(answer: Result<E::Reply, E::Rejection>) -> Result<Value, String> {
    match answer {
        Ok(reply) => Ok(serde_json::to_value(reply).expect("replies are plain data")),
        Err(rejection) => Err(rejection.reason().to_owned()),
    }
}

fn decode_command<E: Entity>(command: &str) -> Result<E::Command, AskError> {
    #[derive(serde::Deserialize)]
    struct Published {
        #[serde(rename = "@publication")]
        publication: Publication,
    }
    let unreadable = |error: serde_json::Error| AskError::BadCommand(error.to_string());
    if command.starts_with("{\"@publication\"") {
        let published: Published = serde_json::from_str(command).map_err(unreadable)?;
        return E::publication(published.publication)
            .ok_or_else(|| AskError::BadCommand(format!("{} has no topic", E::KIND)));
    }
    serde_json::from_str(command).map_err(unreadable)
}

/// All kinds of this node.
pub struct Registry {
    kinds: HashMap<&'static str, Arc<dyn AnyKind>>,
    runtime: Arc<Runtime>,
    parked: tokio::sync::mpsc::UnboundedSender<ParkNotice>,
}

impl Registry {
    pub fn new(runtime: Arc<Runtime>) -> (Self, tokio::sync::mpsc::UnboundedReceiver<ParkNotice>) {
        // Bounded by the number of entities that can fail; each is told once.
        let (parked, notices) = tokio::sync::mpsc::unbounded_channel();
        (Self { kinds: HashMap::new(), runtime, parked }, notices)
    }

    pub(super) async fn add<E: Entity>(&mut self, start: Start<E>) -> anyhow::Result<()> {
        let codec = SnapshotCodec::of::<E>().map_err(anyhow::Error::msg)?;
        let (supervisor, _) = Actor::spawn(None, Supervisor(E::KIND), ()).await?;
        let table = KindTable::<E> {
            runtime: self.runtime.clone(),
            known_as: codec.known_as::<E>(),
            codec,
            live: DashMap::new(),
            by_slot: DashMap::new(),
            failures: Mutex::default(),
            failing: AtomicUsize::new(0),
            start,
            supervisor: supervisor.get_cell(),
            started: Instant::now(),
            parked: self.parked.clone(),
        };
        self.kinds.insert(E::KIND, Arc::new(Kind(Arc::new(table))));
        Ok(())
    }

    pub fn kind(&self, kind: &str) -> Option<&Arc<dyn AnyKind>> {
        self.kinds.get(kind)
    }

    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, &Arc<dyn AnyKind>)> {
        self.kinds.iter().map(|(name, kind)| (*name, kind))
    }

    /// See [`AnyKind::retire`].
    pub fn retire(&self, leaving: &HashSet<u16>) -> usize {
        self.kinds.values().map(|kind| kind.retire(leaving)).sum()
    }

    pub fn live(&self) -> usize {
        self.kinds.values().map(|kind| kind.live()).sum()
    }
}

impl LocalEntities for Registry {
    fn ask(
        &self,
        kind: &'static str,
        key: &str,
        command: Box<dyn Any + Send>,
        meta: CommandMeta,
    ) -> Answering<Box<dyn Any + Send>> {
        match self.kinds.get(kind) {
            Some(table) => table.ask_any(key, command, meta),
            None => unknown_kind(kind),
        }
    }

    fn ask_json(
        &self,
        kind: &str,
        key: &str,
        command: &str,
        meta: CommandMeta,
    ) -> Answering<Result<Value, String>> {
        match self.kinds.get(kind) {
            Some(table) => table.ask_json(key, command, meta),
            None => unknown_kind(kind),
        }
    }

    fn ask_outcome(
        &self,
        kind: &str,
        key: &str,
        command: &str,
        meta: CommandMeta,
    ) -> Answering<String> {
        match self.kinds.get(kind) {
            Some(table) => table.ask_outcome(key, command, meta),
            None => unknown_kind(kind),
        }
    }

    fn outcome_json(&self, kind: &str, outcome: &str) -> Option<Result<Value, String>> {
        self.kinds.get(kind)?.outcome_json(outcome)
    }
}

fn unknown_kind<T: Send + 'static>(kind: &str) -> Answering<T> {
    std::future::ready(Err(AskError::BadCommand(format!("no kind {kind}")))).boxed()
}

/// The supervisor of a kind's activations, which outlives them: it logs an entity that fails, which starts again with its
/// next command.
struct Supervisor(&'static str);

impl Actor for Supervisor {
    type Msg = Nothing;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Nothing>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Nothing>,
        event: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, error) = event {
            metrics::counter!("proxie_entity_failures_total", "kind" => self.0).increment(1);
            tracing::error!(kind = self.0, %error, "an entity failed; its next command restarts it");
        }
        Ok(())
    }
}

/// Supervisors get no messages.
struct Nothing;

impl ractor::Message for Nothing {}
