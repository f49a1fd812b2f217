//! The runtime that all activations of a node share, and its settings.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::actors::runs::Runners;
use crate::cluster::skew::Skew;
use crate::cluster::{Lease, Slots, Topics, WeakEntities};
use crate::kernel::clock::Clock;
use crate::persistence::loader::Loader;
use crate::persistence::vault::Vault;
use crate::persistence::writer::Lanes;

/// An observer of every activation and its commits, for tests that must not rely on what entities report about themselves.
pub trait Witness: Send + Sync {
    /// An activation has read a journal of `head` events.
    fn loaded(&self, activation: Witnessed<'_>, head: i64);
    /// An activation has learned that a command is committed, with which the journal has `head` events.
    fn committed(&self, activation: Witnessed<'_>, head: i64);
}

/// An activation as a [`Witness`] sees it.
#[derive(Clone, Copy, Debug)]
pub struct Witnessed<'a> {
    pub kind: &'static str,
    pub key: &'a str,
    pub incarnation: i64,
    pub epoch: i64,
}

#[derive(Clone, Debug)]
pub struct Options {
    /// The most commands of an entity in flight; beyond it callers hear `overloaded` at once.
    pub max_in_flight: u32,
    pub snapshot_every: i64,
    pub idle_s: u32,
    /// The most live entities of this node; beyond it the idlest are made passive early.
    pub max_live: usize,
    /// Resident memory at which entities are made passive early, in bytes.
    pub memory_limit: u64,
    /// Failed starts in a row after which an entity is parked.
    pub park_after: u32,
    /// The time for which a delivery, a run or a timer is retried before it is a dead letter.
    pub give_up_after: Duration,
    /// The most deliveries of one entity at the same time.
    pub max_deliveries: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_in_flight: 2_048,
            snapshot_every: 100,
            idle_s: 300,
            max_live: 500_000,
            memory_limit: 6 << 30,
            park_after: 5,
            give_up_after: Duration::from_secs(24 * 3_600),
            max_deliveries: 32,
        }
    }
}

/// The services and settings that all activations of this node share.
pub struct Runtime {
    pub lanes: Lanes,
    pub loader: Loader,
    pub lease: Lease,
    pub slots: Slots,
    pub clock: Clock,
    /// The difference of that clock from the database's.
    pub skew: Skew,
    pub topics: Topics,
    pub vault: Vault,
    pub runners: Runners,
    pub options: Options,
    pub witness: Option<Arc<dyn Witness>>,
    /// Set once, right after the registry that needs this runtime exists.
    pub entities: OnceLock<WeakEntities>,
}

/// A notice that an entity was parked or has started again, which a service writes to the store for operators.
pub struct ParkNotice {
    pub kind: &'static str,
    pub key: Arc<str>,
    /// The reason, and how often it failed. `None`: it has started, and another release had parked it.
    pub failed: Option<(String, u32)>,
}
