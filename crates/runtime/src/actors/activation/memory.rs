//! Ids of commands, so that a retry gets the first outcome.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::actors::ask::Ask;
use crate::cluster::ask::EntityAnswer;
use crate::kernel::entity::Entity;
use crate::kernel::error::AskError;

/// The number of outcomes kept in memory; older ones are in the store.
const RECENT: usize = 4;

/// The id under which a command's first outcome is remembered.
pub struct Claim {
    pub id_hash: u64,
    pub fingerprint: i64,
    pub outcome: Arc<str>,
}

impl Claim {
    /// The answer to a retry under this id with the fingerprint `asked`.
    pub fn recall<E: Entity>(&self, asked: i64) -> EntityAnswer<E> {
        if self.fingerprint != asked {
            return Err(AskError::IdReused);
        }
        serde_json::from_str(&self.outcome).map_err(|_| AskError::Internal)
    }
}

/// The command ids that an activation knows, with their outcomes.
pub struct Memory<E: Entity> {
    /// Ids in flight, so that a retry waits for the first outcome: id hash → ticket.
    ids: HashMap<u64, u64>,
    /// Outcomes of the last few ids, so that a quick retry costs no read.
    recent: VecDeque<Claim>,
    /// Retries of commands in flight: the ticket they wait for, and the fingerprint they ask with.
    followers: Vec<Follower<E>>,
}

pub type Follower<E> = (u64, i64, Box<Ask<E>>);

impl<E: Entity> Default for Memory<E> {
    fn default() -> Self {
        Self { ids: HashMap::new(), recent: VecDeque::new(), followers: Vec::new() }
    }
}

impl<E: Entity> Memory<E> {
    /// The ticket of the command in flight under this id.
    pub fn in_flight(&self, id_hash: u64) -> Option<u64> {
        self.ids.get(&id_hash).copied()
    }

    pub fn follow(&mut self, ticket: u64, fingerprint: i64, ask: Box<Ask<E>>) {
        self.followers.push((ticket, fingerprint, ask));
    }

    pub fn recall(&self, id_hash: u64, asked: i64) -> Option<EntityAnswer<E>> {
        let claim = self.recent.iter().find(|claim| claim.id_hash == id_hash);
        claim.map(|claim| claim.recall::<E>(asked))
    }

    pub fn begin(&mut self, id_hash: u64, ticket: u64) {
        self.ids.insert(id_hash, ticket);
    }

    /// Ends the command of this ticket, and returns the retries that wait for its outcome.
    pub fn end(&mut self, ticket: u64, claim: Option<&Claim>) -> Vec<Follower<E>> {
        if let Some(claim) = claim {
            self.ids.remove(&claim.id_hash);
        }
        self.followers.extract_if(.., |(t, _, _)| *t == ticket).collect()
    }

    pub fn remember(&mut self, claim: Claim) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(claim);
    }

    /// Forgets all commands in flight.
    pub fn forget_ids(&mut self) {
        self.ids.clear();
    }

    pub fn drain_followers(&mut self) -> impl Iterator<Item = Box<Ask<E>>> {
        self.followers.drain(..).map(|(_, _, ask)| ask)
    }
}
