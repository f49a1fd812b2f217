//! Placement: which node should own which slot. It is pure: from the same members and owners every node computes the same
//! plan, so the nodes need not agree on one.

use std::collections::BTreeMap;

use crate::kernel::ids::stable_hash;

/// A node that may own slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementCandidate {
    pub incarnation: i64,
    /// The node's share relative to the others; a node of weight 0 owns nothing.
    pub weight: u32,
    /// Whether the node may gain slots. False for a release that is older than another active one, or knows fewer kinds:
    /// it keeps its slots and gets no new ones.
    pub may_gain: bool,
}

/// The planned owner of each slot, given the present ones (`None`: no live node). Shares follow the weights as closely as
/// whole slots allow. Only slots above their owner's share, or without an owner, move. The plan has `None` where no
/// candidate may take the slot.
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
            // The slots with the least affinity to their owner go first, so that a returning node gets its own slots
            // again.
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

/// The number of slots that each candidate should have. The numbers add up to all slots if any candidate may gain.
fn shares(
    nodes: &BTreeMap<i64, PlacementCandidate>,
    owned: &BTreeMap<i64, Vec<u16>>,
    slots: usize,
) -> BTreeMap<i64, usize> {
    // Candidates that may not gain keep their slots up to their fair share; the others divide the rest. Candidates below
    // their fair share come first, because they leave more for the others. As shares are rounded down, a share once given
    // stays below the fair one, so the plan, carried out, is a fixed point.
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
    // The remainder goes where it moves the fewest slots: to owners above their share, then by incarnation.
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

    /// Owners that live, are dead or are missing, in runs as in real tables.
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
            // Shares of candidates that may gain differ only by rounding.
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
                // A node either gives slots away or takes some, never both.
                let gave = before.iter().zip(&plan).filter(|(b, p)| **b == Some(node.incarnation) && b != p).count();
                let took = before.iter().zip(&plan).filter(|(b, p)| **p == Some(node.incarnation) && b != p).count();
                prop_assert!(gave == 0 || took == 0);
            }
            // The plan is a fixed point: after it is carried out, no slot moves.
            prop_assert_eq!(&solve(&nodes, &plan), &plan);
            // The plan does not depend on the order of the members.
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
        // The newer node is gone: only the nodes of the newest remaining release may take its slots.
        let lost: Vec<_> = plan.iter().map(|owner| owner.filter(|o| *o != 3)).collect();
        assert_eq!(solve(&[old(1)], &lost), lost);
    }

    #[test]
    fn what_an_older_release_gives_up_moves_once() {
        // No node's fair share is a whole number of slots.
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
