//! A node's view of its cluster, and the decisions that follow from it: which nodes to declare dead, which slots to claim
//! and to hand over. It is pure, without clock or I/O, so that it can be tested under thousands of schedules.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::cluster::placement::{PlacementCandidate, solve};
use crate::cluster::slots::SlotOwnership;
use crate::cluster::transport::{DownCause, LinkEvent};
use crate::persistence::members::{Beat, Evidence, Member, MemberState};

/// The time that a node which missed heartbeats of its own (the store was away) gives the others to be heard there again.
pub const STEADY_MS: i64 = 2_000;
/// The time after which one of two nodes that cannot reach each other, but that all others reach, has to leave.
pub const CUT_OFF_MS: i64 = 6_000;
/// The most slots that are handed over at once: their entities pause meanwhile. A newcomer gets fewer at first.
const MOVES: usize = 64;
const FIRST_MOVES: usize = 8;

/// A node's view of its cluster. Times are milliseconds on the clock of the lease.
pub struct ClusterView {
    me: i64,
    beat: Beat,
    beat_at_ms: i64,
    /// The time since which this node's heartbeats have reached the store without a pause.
    steady_since_ms: i64,
    up: HashSet<i64>,
    /// Links that were reset, and whose redial was refused.
    reset: HashSet<i64>,
    refused: HashSet<i64>,
    /// The number of batches that each newcomer has got.
    given: HashMap<i64, u32>,
}

/// A node that should be declared dead. The store checks the evidence once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub peer: i64,
    pub evidence: Evidence,
    /// Whether the others should know of the suspicion first.
    pub suspect: bool,
}

/// This node's share of the plan.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Slots that no live node owns, with their epochs.
    pub claims: Vec<(u16, i64)>,
    /// Slots for other nodes, at most one batch for each.
    pub moves: BTreeMap<i64, Vec<(u16, i64)>>,
    /// Whether there is more to hand over after these batches.
    pub more: bool,
}

impl ClusterView {
    pub fn new(me: i64, now_ms: i64) -> Self {
        Self {
            me,
            beat: Beat::default(),
            beat_at_ms: now_ms,
            steady_since_ms: now_ms,
            up: HashSet::new(),
            reset: HashSet::new(),
            refused: HashSet::new(),
            given: HashMap::new(),
        }
    }

    pub fn version(&self) -> i64 {
        self.beat.version
    }

    pub fn members(&self) -> &[Member] {
        &self.beat.members
    }

    pub fn others(&self) -> impl Iterator<Item = &Member> {
        self.beat.members.iter().filter(|member| member.incarnation != self.me)
    }

    pub fn is_living(&self, incarnation: i64) -> bool {
        self.beat.members.iter().any(|member| member.incarnation == incarnation)
    }

    /// This node's own.
    pub fn state(&self) -> Option<MemberState> {
        self.beat.members.iter().find(|member| member.incarnation == self.me).map(|me| me.state)
    }

    /// Takes over a beat. Returns the nodes that have died since the last one.
    pub fn hear(&mut self, beat: Beat, now_ms: i64) -> Vec<i64> {
        if now_ms - self.beat_at_ms > STEADY_MS {
            self.steady_since_ms = now_ms;
        }
        self.beat_at_ms = now_ms;
        let before = std::mem::replace(&mut self.beat, beat).members;
        let dead = before.iter().map(|member| member.incarnation);
        let dead: Vec<i64> = dead.filter(|old| *old != self.me && !self.is_living(*old)).collect();
        for old in &dead {
            for set in [&mut self.up, &mut self.reset, &mut self.refused] {
                set.remove(old);
            }
            self.given.remove(old);
        }
        dead
    }

    pub fn link(&mut self, event: &LinkEvent) {
        match *event {
            LinkEvent::Up { peer } => {
                self.up.insert(peer);
                self.reset.remove(&peer);
                self.refused.remove(&peer);
            }
            LinkEvent::Down { peer, cause } => {
                self.up.remove(&peer);
                if cause == DownCause::Reset {
                    self.reset.insert(peer);
                }
            }
            LinkEvent::Refused { peer } => {
                self.refused.insert(peer);
            }
        }
    }

    /// The state that this node should change to. A node that becomes active can reach all active ones, and be reached by
    /// them.
    pub fn next_state(&self, leaving: bool) -> Option<MemberState> {
        let linked = || {
            self.others()
                .filter(|member| member.state == MemberState::Active)
                .all(|member| self.up.contains(&member.incarnation))
        };
        match self.state()? {
            MemberState::Joining if linked() => Some(MemberState::Active),
            MemberState::Active if leaving => Some(MemberState::Draining),
            _ => None,
        }
    }

    /// The reason that keeps this node from becoming active, for operators.
    pub fn waits_for(&self) -> Option<String> {
        if self.state()? != MemberState::Joining {
            return None;
        }
        let unlinked = self.others().filter(|member| {
            member.state == MemberState::Active && !self.up.contains(&member.incarnation)
        });
        let words = unlinked.map(|member| {
            let Member { name, peer_address, lease_left_ms, .. } = member;
            match *lease_left_ms {
                left if left > 0 => format!(
                    "a link to {name} at {peer_address}, or the end of its lease ({:.1} s)",
                    left as f64 / 1_000.0
                ),
                _ => format!("{name} to be declared dead (its lease has run out)"),
            }
        });
        let words: Vec<String> = words.collect();
        (!words.is_empty()).then(|| words.join("; "))
    }

    /// The nodes that are gone, provably or by the word of enough others. `silent_ms`: the time for which a peer has not been
    /// heard. `awake`: this node's own heart beats; a node that was stopped or starved itself accuses nobody.
    pub fn verdicts(
        &self,
        silent_ms: impl Fn(i64) -> Option<i64>,
        awake: bool,
        now_ms: i64,
    ) -> Vec<Verdict> {
        let active = self.beat.members.iter().filter(|m| m.state == MemberState::Active).count();
        let needed = if active >= 3 { 2 } else { 1 };
        let steady = now_ms - self.steady_since_ms > STEADY_MS;
        let may_accuse = self.state() == Some(MemberState::Active) && awake;
        let verdict = |member: &Member| {
            let peer = member.incarnation;
            if member.lease_left_ms < 0 && steady {
                return Some(Verdict { peer, evidence: Evidence::Lease, suspect: false });
            }
            if !may_accuse || member.state == MemberState::Joining {
                return None;
            }
            if self.reset.contains(&peer) && self.refused.contains(&peer) {
                return Some(Verdict { peer, evidence: Evidence::Refused, suspect: false });
            }
            let silent_ms = silent_ms(peer)?;
            // No other node finds it silent: the two cannot reach each other, and the older one stays.
            let cut_off = silent_ms > CUT_OFF_MS && self.me < peer;
            let by = if cut_off { 1 } else { needed };
            Some(Verdict { peer, evidence: Evidence::Suspected { by }, suspect: true })
        };
        self.others().filter_map(verdict).collect()
    }

    /// The slots that this node has to claim and to hand over. `owned`: every slot's owner and epoch as this node knows them.
    /// `wanted`: slots of this node, and the nodes that have asked there for kinds or commands that this one does not know.
    /// The slots go to those nodes if their releases are the newest and this one is not; until then, and otherwise, the
    /// commands wait.
    pub fn share(&self, owned: &[SlotOwnership], wanted: &BTreeMap<u16, i64>) -> Share {
        let active = || self.beat.members.iter().filter(|m| m.state == MemberState::Active);
        // There is always one node that may gain, even where each of two nodes knows kinds that the other does not.
        let release = |m: &Member| (release(&m.version), m.kinds.len());
        let newest = active().map(release).max();
        let candidates: Vec<PlacementCandidate> = active()
            .map(|m| PlacementCandidate {
                incarnation: m.incarnation,
                weight: m.weight,
                may_gain: Some(release(m)) == newest,
            })
            .collect();
        let owners: Vec<Option<i64>> =
            owned.iter().map(|slot| slot.owner.filter(|owner| self.is_living(*owner))).collect();
        let plan = solve(&candidates, &owners);
        let me = Some(self.me);
        let mut share = Share::default();
        for (slot, (owner, target)) in owners.iter().zip(&plan).enumerate() {
            let entry = (slot as u16, owned[slot].epoch);
            match (*owner, *target) {
                (None, target) if target == me => share.claims.push(entry),
                (owner, Some(target)) if owner == me && Some(target) != me => {
                    let given = self.given.get(&target).copied().unwrap_or(0);
                    let batch = share.moves.entry(target).or_default();
                    if batch.len() < (FIRST_MOVES << given.min(8)).min(MOVES) {
                        batch.push(entry);
                    } else {
                        share.more = true;
                    }
                }
                _ => {}
            }
        }
        let candidate = |n: i64| candidates.iter().find(|candidate| candidate.incarnation == n);
        if candidate(self.me).is_some_and(|me| !me.may_gain) {
            for (slot, by) in wanted {
                let at = usize::from(*slot);
                let stays = owners[at] == me && plan[at] == me;
                if stays && candidate(*by).is_some_and(|by| by.may_gain && by.weight > 0) {
                    let batch = share.moves.entry(*by).or_default();
                    if batch.len() < MOVES {
                        batch.push((*slot, owned[at].epoch));
                    }
                }
            }
        }
        if self.state() != Some(MemberState::Active) {
            share.claims.clear();
        }
        share
    }

    pub fn gave(&mut self, to: i64) {
        *self.given.entry(to).or_default() += 1;
    }

    /// Whether another node could take this node's slots.
    pub fn has_takers(&self) -> bool {
        self.others().any(|member| member.state == MemberState::Active && member.weight > 0)
    }
}

/// Releases in their order: numbers by value.
fn release(version: &str) -> Vec<u64> {
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::ids::SLOTS;

    const NONE: BTreeMap<u16, i64> = BTreeMap::new();

    fn member(incarnation: i64, state: MemberState) -> Member {
        Member {
            incarnation,
            name: format!("n{incarnation}"),
            peer_address: String::new(),
            version: "1.2.0".into(),
            kinds: Vec::new(),
            weight: 1,
            state,
            lease_left_ms: 4_000,
            suspected_by: 0,
        }
    }

    fn view(me: i64, members: Vec<Member>) -> ClusterView {
        let mut view = ClusterView::new(me, 0);
        view.hear(Beat { version: 1, members }, 0);
        view
    }

    fn evidence(view: &ClusterView, silent_ms: Option<i64>) -> Vec<(i64, Evidence)> {
        let verdicts = view.verdicts(|_| silent_ms, true, 10);
        verdicts.iter().map(|verdict| (verdict.peer, verdict.evidence)).collect()
    }

    #[test]
    fn a_silent_node_is_judged_by_two_and_one_of_a_pair_that_is_cut_off_goes() {
        use MemberState::Active;
        let three = view(2, [1, 2, 3].map(|n| member(n, Active)).to_vec());
        assert_eq!(evidence(&three, None), []);
        let by = |by| Evidence::Suspected { by };
        assert_eq!(evidence(&three, Some(2_000)), [(1, by(2)), (3, by(2))]);
        assert_eq!(evidence(&three, Some(6_001)), [(1, by(2)), (3, by(1))], "the older one stays");
        let two = view(2, vec![member(1, Active), member(2, Active)]);
        assert_eq!(evidence(&two, Some(2_000)), [(1, by(1))]);
        // Who joins, drains, or was stopped itself accuses nobody, and nobody accuses who joins.
        for state in [MemberState::Joining, MemberState::Draining] {
            assert_eq!(
                evidence(&view(2, vec![member(1, Active), member(2, state)]), Some(9_000)),
                []
            );
        }
        assert_eq!(two.verdicts(|_| Some(9_000), false, 10), []);
        let joins = view(2, vec![member(1, MemberState::Joining), member(2, Active)]);
        assert_eq!(evidence(&joins, Some(9_000)), []);
    }

    #[test]
    fn a_reset_and_a_refusal_are_enough_and_each_alone_is_not() {
        let mut view = view(2, [1, 2, 3].map(|n| member(n, MemberState::Active)).to_vec());
        view.link(&LinkEvent::Up { peer: 3 });
        view.link(&LinkEvent::Refused { peer: 3 });
        assert_eq!(evidence(&view, None), []);
        view.link(&LinkEvent::Down { peer: 3, cause: DownCause::Reset });
        assert_eq!(evidence(&view, None), [(3, Evidence::Refused)]);
        view.link(&LinkEvent::Up { peer: 3 });
        view.link(&LinkEvent::Down { peer: 3, cause: DownCause::Reset });
        assert_eq!(evidence(&view, None), []);
    }

    #[test]
    fn a_lease_counts_for_who_has_reached_the_store_all_the_time() {
        let silent = Member { lease_left_ms: -1, ..member(1, MemberState::Active) };
        let members = vec![silent, member(2, MemberState::Joining)];
        let mut view = ClusterView::new(2, 0);
        let mut at = |now| {
            view.hear(Beat { version: 1, members: members.clone() }, now);
            !view.verdicts(|_| None, false, now).is_empty()
        };
        assert!(!at(300), "the store may have been away");
        assert!(!at(1_900) && at(2_300));
        assert!(!at(9_000), "it was: the others renew in a moment, too");
        assert!(!at(10_900) && at(11_100));
    }

    #[test]
    fn nodes_claim_what_is_nobodys_and_hand_over_what_is_anothers() {
        use MemberState::Active;
        let mut one = view(1, vec![member(1, Active)]);
        let nobody = vec![SlotOwnership { owner: Some(7), epoch: 3 }; usize::from(SLOTS)];
        let share = one.share(&nobody, &NONE);
        assert_eq!((share.claims.len(), share.claims[9]), (4_096, (9, 3)), "7 does not live");
        let mine = vec![SlotOwnership { owner: Some(1), epoch: 4 }; usize::from(SLOTS)];
        assert_eq!(one.share(&mine, &NONE), Share::default());
        one.hear(Beat { version: 2, members: vec![member(1, Active), member(2, Active)] }, 0);
        for expected in [8, 16, 32, 64, 64] {
            let share = one.share(&mine, &NONE);
            assert_eq!((share.moves[&2].len(), share.more), (expected, true), "slowly at first");
            one.gave(2);
        }
        // A newer release takes everything over in time; an older one gets nothing from it.
        let old = Member { version: "1.1.9".into(), ..member(2, Active) };
        one.hear(Beat { version: 3, members: vec![member(1, Active), old] }, 0);
        assert_eq!(one.share(&mine, &NONE), Share::default());
        one.hear(Beat { version: 4, members: vec![member(1, MemberState::Draining)] }, 0);
        assert_eq!(one.share(&nobody, &NONE), Share::default(), "who drains takes nothing");
    }

    #[test]
    fn slots_go_to_those_who_know_more_kinds_and_not_back() {
        use MemberState::Active;
        let knows = |n: i64, kinds: &[&str]| Member {
            kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            ..member(n, Active)
        };
        let owned = |by: fn(u16) -> i64| -> Vec<SlotOwnership> {
            (0..SLOTS).map(|slot| SlotOwnership { owner: Some(by(slot)), epoch: 4 }).collect()
        };
        let halves = owned(|slot| if slot % 2 == 0 { 1 } else { 2 });
        // The first does not say what it knows; the second knows more than nothing.
        for (older, newer) in
            [(knows(1, &[]), knows(2, &["a"])), (knows(1, &["a"]), knows(2, &["a", "b"]))]
        {
            let older_view = view(1, vec![older.clone(), newer.clone()]);
            assert_eq!(older_view.share(&halves, &NONE), Share::default(), "it keeps its half");
            let wanted = BTreeMap::from([(6, 2), (7, 2), (8, 3)]);
            let share = older_view.share(&halves, &wanted);
            assert_eq!(share.moves, BTreeMap::from([(2, vec![(6, 4)])]), "its own, to who knows");
            // Then they stay there, whatever is asked for.
            let newer_view = view(2, vec![older, newer]);
            let all = owned(|_| 2);
            let wanted = BTreeMap::from([(6, 1)]);
            assert_eq!(newer_view.share(&all, &wanted), Share::default());
        }
        // Each knows what the other does not: slots move all the same when one of them is gone.
        let two = view(1, vec![knows(1, &["a"]), knows(2, &["b"])]);
        let lost = vec![SlotOwnership { owner: Some(7), epoch: 3 }; usize::from(SLOTS)];
        assert_eq!(two.share(&lost, &NONE).claims.len(), 2_048);
    }

    #[test]
    fn a_node_is_active_once_it_is_linked_to_all_who_are() {
        let mut view =
            view(3, vec![member(1, MemberState::Active), member(3, MemberState::Joining)]);
        assert_eq!(view.next_state(false), None);
        view.link(&LinkEvent::Up { peer: 1 });
        assert_eq!(view.next_state(false), Some(MemberState::Active));
        view.hear(Beat { version: 2, members: vec![member(3, MemberState::Active)] }, 0);
        assert_eq!(view.next_state(true), Some(MemberState::Draining));
    }

    #[test]
    fn releases_are_compared_by_number() {
        assert!(release("0.10.0") > release("0.9.9") && release("1.0.0") > release("0.99.0"));
    }
}
