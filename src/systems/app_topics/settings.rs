//! The configuration of application topics: who may publish and listen.

use std::collections::HashMap;
use std::time::Instant;

use parking_lot::Mutex;
use serde::Deserialize;

use crate::contract::section::Section;
use crate::contract::topic::split_topic;
use crate::kernel::bucket::Bucket;
use crate::kernel::entity::Role;

/// A grant of one application topic (`app:…`) to clients. Topics without a grant do not exist.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    pub topic: String,
    pub publish: Vec<Role>,
    pub subscribe: Vec<Role>,
    /// Whether an entity owns it: publications are then committed, have offsets, and are kept like those of other durable
    /// topics.
    #[serde(default)]
    pub durable: bool,
    /// Whether a slow subscriber gets only the latest of the publications that wait for it. Not for durable topics.
    #[serde(default)]
    pub latest_only: bool,
    /// The limit of publications a second through this node; 0: no limit.
    #[serde(default)]
    pub max_per_s: u32,
}

/// The grants, as they are configured.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Grants(pub Vec<Grant>);

impl Section for Grants {
    const NAME: &'static str = "topics.grants";
    type Ready = TopicGrants;

    fn prepare(&self) -> Result<TopicGrants, String> {
        let Self(grants) = self;
        if let Some(why) = grants.iter().find_map(wrong_grant) {
            return Err(why.into());
        }
        let twice = |n: &usize| grants[..*n].iter().any(|grant| grant.topic == grants[*n].topic);
        match (1..grants.len()).find(twice) {
            Some(_) => Err("topics.grants: a topic has two grants: make them one".into()),
            None => Ok(TopicGrants::new(grants.clone())),
        }
    }
}

fn wrong_grant(grant: &Grant) -> Option<&'static str> {
    match split_topic(&grant.topic) {
        Ok(("app", _)) if grant.durable && grant.latest_only => {
            Some("topics.grants: durable and latest_only exclude each other")
        }
        Ok(("app", _)) => None,
        _ => Some("topics.grants: a topic must look like app:lobby, in visible characters"),
    }
}

#[derive(Default)]
pub struct TopicGrants {
    grants: Vec<Grant>,
    /// The rate limits, by topic, of grants that have one.
    rates: HashMap<String, Mutex<Bucket>>,
}

impl TopicGrants {
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

    /// Counts a publication of a client, and returns whether it is within the rate limit.
    pub fn may_publish_now(&self, topic: &str) -> bool {
        self.rates.get(topic).is_none_or(|rate| {
            let mut rate = rate.lock();
            rate.take(Instant::now())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_checked() {
        let grant = |topic: &str, durable: bool, latest_only: bool| Grant {
            topic: topic.into(),
            publish: Vec::new(),
            subscribe: Vec::new(),
            durable,
            latest_only,
            max_per_s: 0,
        };
        for (grant, good) in [
            (grant("app:lobby", false, true), true),
            (grant("app:lobby:7", true, false), true),
            (grant("app:lobby", true, true), false),
            (grant("app:", false, false), false),
            (grant("lobby", false, false), false),
            (grant("user:alice", false, false), false),
            (grant("app:two words", false, false), false),
        ] {
            assert_eq!(Grants(vec![grant.clone()]).prepare().is_ok(), good, "{}", grant.topic);
            let twice = Grants(vec![grant.clone(), grant]);
            assert!(twice.prepare().is_err(), "the same topic twice");
        }
    }
}
