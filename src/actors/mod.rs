//! Activations: one ractor actor for each live entity, all driven by the one shell in [`entity`].
//!
//! **Architecture invariant:** nothing here knows a domain; kinds are handed in by `app`.

pub mod delivery;
pub mod entity;
pub mod firing;
pub mod registry;
pub mod runs;
pub mod services;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::actors::runs::Runners;
use crate::cluster::skew::Skew;
use crate::cluster::{Lease, Slots, Topics, WeakEntities};
use crate::kernel::clock::Clock;
use crate::persistence::loader::Loader;
use crate::persistence::writer::Lanes;

/// Work outside of any entity (`Effect::Run`): a query over read models, a call to another service.
pub trait Runner: Send + Sync {
    /// `id` is the effect's id: the idempotency key for whatever is called. `Err` is retried with backoff. The future is
    /// dropped when it exceeds its limits, and when its entity's activation ends.
    fn run(&self, id: &str, input: Value) -> BoxFuture<'static, Result<Value, RunError>>;

    fn limits(&self) -> RunLimits {
        RunLimits::default()
    }
}

/// What runs of one runner may take.
#[derive(Clone, Copy, Debug)]
pub struct RunLimits {
    /// A run without an outcome for so long is dropped, and made again later.
    pub timeout: Duration,
    /// Runs on one node at the same time; more wait.
    pub concurrent: usize,
    /// A larger outcome, as JSON, is an error and final.
    pub max_outcome_bytes: usize,
}

impl Default for RunLimits {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(60), concurrent: 64, max_outcome_bytes: 256 << 10 }
    }
}

pub enum RunError {
    /// Trying again may help.
    Retry(String),
    /// It will not; the entity learns of it.
    Final(String),
}

/// Is told of every activation and its commits: for tests that do not believe what entities say of themselves.
pub trait Witness: Send + Sync {
    /// It has read a journal of `head` events.
    fn loaded(&self, activation: Witnessed<'_>, head: i64);
    /// It has heard that a command is committed, with which the journal has `head` events.
    fn committed(&self, activation: Witnessed<'_>, head: i64);
}

/// An activation, as a [`Witness`] is told of it.
#[derive(Clone, Copy, Debug)]
pub struct Witnessed<'a> {
    pub kind: &'static str,
    pub key: &'a str,
    pub incarnation: i64,
    pub epoch: i64,
}

#[derive(Clone, Debug)]
pub struct Options {
    /// Commands an entity may have in flight; beyond it callers hear `overloaded` at once.
    pub max_in_flight: u32,
    pub snapshot_every: i64,
    pub idle_s: u32,
    /// Live entities of this node; beyond it the idlest are made passive early.
    pub max_live: usize,
    /// Resident memory at which entities are made passive early, in bytes.
    pub memory_limit: u64,
    /// Failed starts in a row after which an entity is parked.
    pub park_after: u32,
    /// For how long a delivery, a run or a timer is tried before it is a dead letter.
    pub give_up_after: Duration,
    /// Deliveries of one entity at the same time.
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

/// What every activation of this node shares.
pub struct Runtime {
    pub lanes: Lanes,
    pub loader: Loader,
    pub lease: Lease,
    pub slots: Slots,
    pub clock: Clock,
    /// How far that is from the database's.
    pub skew: Skew,
    pub topics: Topics,
    pub runners: Runners,
    pub options: Options,
    pub witness: Option<Arc<dyn Witness>>,
    /// Set once, right after the registry that needs this runtime exists.
    pub entities: OnceLock<WeakEntities>,
}
