//! The systems: one folder each, with its entities in `domain/`.

pub mod agents;
pub mod app_topics;
pub mod devices;
pub mod marketplace;
pub mod photos;

use crate::contract::System;

/// The one list.
pub const ALL: &[&System] = &[
    &marketplace::SYSTEM,
    &devices::SYSTEM,
    &app_topics::SYSTEM,
    &agents::SYSTEM,
    &photos::SYSTEM,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::ALL;

    /// What old releases wrote, every release reads.
    #[test]
    fn the_golden_journals_have_every_event() {
        for kind in ALL.iter().flat_map(|system| system.entities) {
            (kind.check_golden)().unwrap();
        }
    }

    #[test]
    fn what_is_announced_comes_on_topics_that_are_declared() {
        let kinds: Vec<_> = ALL.iter().flat_map(|one| one.topics).map(|topic| topic.kind).collect();
        let once: BTreeSet<_> = kinds.iter().copied().collect();
        assert_eq!(once.len(), kinds.len(), "a kind of topic is declared once");
        for announced in ALL.iter().flat_map(|one| one.announcements) {
            let topics = announced.topics;
            assert!(!topics.is_empty(), "{} comes on no topic", announced.event);
            assert!(topics.iter().all(|kind| once.contains(kind)), "{}", announced.event);
        }
    }
}
