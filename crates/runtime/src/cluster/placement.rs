//! Which node should own which slot. Pure: the same members and the same ownership lead every node to the same plan,
//! so nobody has to be asked.

use std::collections::BTreeMap;

use crate::kernel::ids::stable_hash;

/// A node that may own slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementCandidate {
    pub incarnation: i64,
    /// Its share relative to the others; 0 owns nothing.
    pub weight: u32,
    /// False for a release that is older than another active one, or knows fewer kinds: it keeps what it has and gets
    /// nothing new.
    pub may_gain: bool,
}

/// Who should own each slot, given who does (`None`: nobody who lives). Shares follow the weights as closely as whole
/// slots allow, and no slot moves that does not have to: only what is above its owner's share, or has no owner.
/// `None` in the answer where no candidate may take the slot.
pub fn solve(candidates: &[PlacementCandidate], owners: &[Option<i64>]) -> Vec<Option<i64>> {
    let nodes: BTreeMap<i64, PlacementCandidate> =
        candidates.iter().map(|c| (c.incarnation, *c)).collect();
    let mut owned: BTreeMap<i64, Vec<u16>> = nodes.keys().map(|n| (*n, Vec::new())).collect();
    let mut homeless = Vec::new();
    for (slot, owner) in owners.iter().enumerate() {
        match owner.and_then(|owner| owned.get_mut(&owner)) {
            Some(slots) => slots.push(slot as u16),
            None => homeless.push(slot as u16),
        }
    }
    let shares = shares(&nodes, &owned, owners.len());
    let mut plan: Vec<Option<i64>> = owners.to_vec();
    for (incarnation, slots) in &mut owned {
        let share = shares[incarnation];
        if slots.len() > share {
            // What it has the least affinity to goes first: then a node that comes back gets its own slots again.
            slots.sort_by_key(|slot| std::cmp::Reverse(affinity(*incarnation, *slot)));
            homeless.extend(slots.drain(share..));
        }
    }
    homeless.sort_unstable();
    for slot in homeless {
        let gainer = nodes
            .values()
            .filter(|node| {
                node.may_gain && owned[&node.incarnation].len() < shares[&node.incarnation]
            })
            .max_by_key(|node| affinity(node.incarnation, slot));
        plan[usize::from(slot)] = gainer.map(|node| node.incarnation);
        if let Some(node) = gainer {
            owned.get_mut(&node.incarnation).expect("it is a candidate").push(slot);
        } else if let Some(owner) = owners[usize::from(slot)].filter(|o| nodes.contains_key(o)) {
            plan[usize::from(slot)] = Some(owner);
        }
    }
    plan
}

fn affinity(incarnation: i64, slot: u16) -> u64 {
    stable_hash(&[&incarnation.to_le_bytes(), &slot.to_le_bytes()])
}

/// How many slots each should have. They add up to all of them where somebody may gain.
fn shares(
    nodes: &BTreeMap<i64, PlacementCandidate>,
    owned: &BTreeMap<i64, Vec<u16>>,
    slots: usize,
) -> BTreeMap<i64, usize> {
    // Those that may not gain keep what they have, but no more than is fair; the others share the rest. Who has less
    // than is fair comes first, because what it leaves is more for everybody else. Rounding down, a share once given
    // is below what is fair ever after, and so the plan, carried out, leads to itself.
    let mut shares = BTreeMap::new();
    let mut left = slots;
    let mut open: Vec<&PlacementCandidate> = nodes.values().collect();
    loop {
        let weights: u64 = open.iter().map(|c| u64::from(c.weight)).sum();
        let fair = |c: &PlacementCandidate| {
            (left as u64 * u64::from(c.weight)).checked_div(weights).unwrap_or(0) as usize
        };
        let below = open.iter().position(|c| !c.may_gain && owned[&c.incarnation].len() <= fair(c));
        let Some(at) = below.or_else(|| open.iter().position(|c| !c.may_gain)) else { break };
        let node = open[at];
        let share = owned[&node.incarnation].len().min(fair(node));
        shares.insert(node.incarnation, share);
        open.remove(at);
        left -= share;
    }
    let weights: u64 = open.iter().map(|c| u64::from(c.weight)).sum();
    let mut rest = if weights == 0 { 0 } else { left };
    for node in &open {
        let share = (left as u64 * u64::from(node.weight)).checked_div(weights).unwrap_or(0);
        shares.insert(node.incarnation, share as usize);
        rest -= share as usize;
    }
    // The remainder goes where it moves the least: to those that own more than their share, then by incarnation.
    open.retain(|c| c.weight > 0);
    open.sort_by_key(|c| {
        let surplus = owned[&c.incarnation].len() as i64 - shares[&c.incarnation] as i64;
        (std::cmp::Reverse(surplus), c.incarnation)
    });
    for node in open.iter().take(rest) {
        *shares.get_mut(&node.incarnation).expect("it has a share") += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::kernel::ids::SLOTS;

    fn candidates() -> impl Strategy<Value = Vec<PlacementCandidate>> {
        prop::collection::btree_map(1_i64..40, (0_u32..5, prop::bool::weighted(0.8)), 0..9)
            .prop_map(|nodes| {
                nodes
                    .into_iter()
                    .map(|(incarnation, (weight, may_gain))| PlacementCandidate {
                        incarnation,
                        weight,
                        may_gain,
                    })
                    .collect()
            })
    }

    /// Somebody, nobody, or a dead one; in runs, as real tables are.
    fn owners() -> impl Strategy<Value = Vec<Option<i64>>> {
        prop::collection::vec((prop::option::weighted(0.9, 1_i64..40), 1_usize..900), 5..40)
            .prop_map(|runs| {
                let slots = runs.into_iter().flat_map(|(owner, n)| std::iter::repeat_n(owner, n));
                slots.chain(std::iter::repeat(None)).take(usize::from(SLOTS)).collect()
            })
    }

    fn count(plan: &[Option<i64>], incarnation: i64) -> usize {
        plan.iter().filter(|owner| **owner == Some(incarnation)).count()
    }

    fn moves(before: &[Option<i64>], after: &[Option<i64>]) -> usize {
        before.iter().zip(after).filter(|(b, a)| b.is_some() && b != a).count()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..Default::default() })]

        #[test]
        fn shares_follow_weights_and_nothing_moves_without_need(nodes in candidates(), before in owners()) {
            let plan = solve(&nodes, &before);
            let known: BTreeSet<i64> = nodes.iter().map(|c| c.incarnation).collect();
            prop_assert!(plan.iter().flatten().all(|owner| known.contains(owner)));
            let gainers: Vec<_> = nodes.iter().filter(|c| c.may_gain && c.weight > 0).collect();
            if !gainers.is_empty() {
                prop_assert!(plan.iter().all(Option::is_some), "every slot has an owner");
            }
            // Among those that may gain, shares differ by the rounding alone.
            for pair in gainers.windows(2) {
                let [a, b] = pair else { continue };
                let (a_has, b_has) = (count(&plan, a.incarnation), count(&plan, b.incarnation));
                let per_weight = |has: usize, c: &PlacementCandidate| has as f64 / f64::from(c.weight);
                prop_assert!((per_weight(a_has, a) - per_weight(b_has, b)).abs() <= 2.0, "{a_has} {b_has}");
            }
            for node in &nodes {
                let (had, has) = (count(&before, node.incarnation), count(&plan, node.incarnation));
                if !node.may_gain || node.weight == 0 {
                    prop_assert!(has <= had, "an old release, or one without weight, gains nothing");
                }
                // A node gives away or takes, never both.
                let gave = before.iter().zip(&plan).filter(|(b, p)| **b == Some(node.incarnation) && b != p).count();
                let took = before.iter().zip(&plan).filter(|(b, p)| **p == Some(node.incarnation) && b != p).count();
                prop_assert!(gave == 0 || took == 0);
            }
            // It is a fixed point: carrying the plan out leads to no further move.
            prop_assert_eq!(&solve(&nodes, &plan), &plan);
            // And it does not depend on the order in which members are listed.
            let mut reversed = nodes.clone();
            reversed.reverse();
            prop_assert_eq!(solve(&reversed, &before), plan);
        }
    }

    fn plain(incarnations: &[i64]) -> Vec<PlacementCandidate> {
        let node = |incarnation: &i64| PlacementCandidate {
            incarnation: *incarnation,
            weight: 1,
            may_gain: true,
        };
        incarnations.iter().map(node).collect()
    }

    #[test]
    fn a_node_that_joins_or_leaves_moves_its_share_and_no_more() {
        let none = vec![None; usize::from(SLOTS)];
        let three = solve(&plain(&[1, 2, 3]), &none);
        assert_eq!([1, 2, 3].map(|n| count(&three, n)), [1366, 1365, 1365]);
        let four = solve(&plain(&[1, 2, 3, 4]), &three);
        assert_eq!([1, 2, 3, 4].map(|n| count(&four, n)), [1024; 4]);
        assert_eq!(moves(&three, &four), 1024);
        let left: Vec<_> = four.iter().map(|owner| owner.filter(|o| *o != 2)).collect();
        let again = solve(&plain(&[1, 3, 4]), &left);
        assert_eq!(moves(&left, &again), 0);
        assert_eq!([1, 3, 4].map(|n| count(&again, n)).iter().sum::<usize>(), 4096);
    }

    #[test]
    fn an_older_release_keeps_and_gains_nothing() {
        let all = solve(&plain(&[1]), &vec![None; usize::from(SLOTS)]);
        let old = |incarnation| PlacementCandidate { incarnation, weight: 1, may_gain: false };
        let mixed = [old(1), old(2), plain(&[3])[0]];
        let plan = solve(&mixed, &all);
        assert_eq!([1, 2, 3].map(|n| count(&plan, n)), [2048, 0, 2048]);
        // The newer one is gone: nobody may take its slots but those that are newest then.
        let lost: Vec<_> = plan.iter().map(|owner| owner.filter(|o| *o != 3)).collect();
        assert_eq!(solve(&[old(1)], &lost), lost);
    }

    #[test]
    fn what_an_older_release_gives_up_moves_once() {
        // Its fair share is no whole number of slots, nor is anybody else's.
        let weights = [(1, 2, true), (2, 4, true), (15, 1, false), (16, 2, true), (25, 3, true)];
        let nodes = weights.map(|(incarnation, weight, may_gain)| PlacementCandidate {
            incarnation,
            weight,
            may_gain,
        });
        let before: Vec<_> =
            (0..SLOTS).map(|slot| Some(if slot < 2000 { 15 } else { 25 })).collect();
        let plan = solve(&nodes, &before);
        assert_eq!(moves(&plan, &solve(&nodes, &plan)), 0);
    }
}
