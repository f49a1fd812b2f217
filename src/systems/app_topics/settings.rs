//! What configuration grants of application topics.

use std::collections::HashMap;

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;

use crate::contract::bucket::Bucket;
use crate::kernel::entity::Role;

/// What clients may do with one application topic (`app:…`); those that are not named do not exist.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    pub topic: String,
    pub publish: Vec<Role>,
    pub subscribe: Vec<Role>,
    /// An entity owns it: publications are committed, have offsets, and are kept like those of other durable topics.
    #[serde(default)]
    pub durable: bool,
    /// Of what waits for a slow subscriber, only the last publication is kept. Not for durable ones.
    #[serde(default)]
    pub latest_only: bool,
    /// Publications through this node; 0: no limit.
    #[serde(default)]
    pub max_per_s: u32,
}

#[derive(Default)]
pub struct Settings {
    grants: Vec<Grant>,
    /// Of the grants that have one, by topic.
    rates: HashMap<String, Mutex<Bucket>>,
}

impl Settings {
    pub fn new(grants: Vec<Grant>) -> Self {
        let now = Instant::now();
        let limited = grants.iter().filter(|grant| grant.max_per_s > 0);
        let rate = |Grant { topic, max_per_s, .. }: &Grant| {
            (topic.clone(), Bucket::new(*max_per_s, *max_per_s, now).into())
        };
        Self { rates: limited.map(rate).collect(), grants }
    }

    pub fn grant(&self, topic: &str) -> Option<&Grant> {
        self.grants.iter().find(|grant| grant.topic == topic)
    }

    /// Counts a publication of a client. False: too many.
    pub fn may_publish_now(&self, topic: &str) -> bool {
        self.rates.get(topic).is_none_or(|rate| {
            let mut rate = rate.lock();
            rate.take(Instant::now())
        })
    }
}
