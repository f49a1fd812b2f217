use std::collections::BTreeSet;

use crdts::{CmRDT, CvRDT};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::systems::devices::domain::clock::NTP64;
use crate::systems::devices::domain::operation::{Change, DeviceOperation, WatchPosition};
use crate::systems::devices::domain::replica::Replica;

fn device(n: u8) -> DeviceId {
    DeviceId::new(u128::from(n))
}

fn content(n: u8) -> String {
    format!("c{n}")
}

/// Few of everything, so that they meet.
fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (0..4_u8, 0..6_u8).prop_map(|(c, t)| Change::WatchlistAdd {
            content_id: content(c),
            tag: format!("t{t}"),
        }),
        (0..4_u8, vec(0..6_u8, 1..4)).prop_map(|(c, tags)| Change::WatchlistRemove {
            content_id: content(c),
            tags: tags.into_iter().map(|t| format!("t{t}")).collect(),
        }),
        (0..4_u8, 0..5_u64).prop_map(|(c, ms)| Change::PlaybackUpdate {
            content_id: content(c),
            position: WatchPosition { position_ms: ms, duration_ms: None },
        }),
        (0..4_u8, 0..5_u64)
            .prop_map(|(c, count)| Change::CounterUpdate { content_id: content(c), count }),
    ]
}

/// A device, an operation of it, and where it is in the log.
fn written() -> impl Strategy<Value = (DeviceId, DeviceOperation, i64)> {
    (0..4_u8, 1..20_u64, change(), 1..50_i64).prop_map(|(by, time, change, at)| {
        (
            device(by),
            DeviceOperation { sequence: 1, operation_id: None, time: NTP64(time), change },
            at,
        )
    })
}

fn replica(written: &[(DeviceId, DeviceOperation, i64)]) -> Replica {
    let mut replica = Replica::default();
    for (device, operation, at) in written {
        replica.apply(*device, operation, *at);
    }
    replica
}

fn merged(mut a: Replica, b: &Replica) -> Replica {
    a.merge(b.clone());
    a
}

proptest! {
    #[test]
    fn merging_has_no_order_and_no_twice(
        a in vec(written(), 0..20), b in vec(written(), 0..20), c in vec(written(), 0..20),
    ) {
        let (a, b, c) = (replica(&a), replica(&b), replica(&c));
        prop_assert_eq!(merged(a.clone(), &b), merged(b.clone(), &a));
        prop_assert_eq!(
            merged(merged(a.clone(), &b), &c),
            merged(a.clone(), &merged(b.clone(), &c))
        );
        prop_assert_eq!(merged(a.clone(), &a), a.clone());
        prop_assert_eq!(merged(a.clone(), &Replica::default()), a);
    }

    #[test]
    fn operations_have_no_order_and_no_twice(
        all in vec(written(), 0..30).prop_shuffle(), again in vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let mut others = all.clone();
        others.reverse();
        if !all.is_empty() {
            others.extend(again.into_iter().map(|index| index.get(&all).clone()));
        }
        prop_assert_eq!(replica(&all), replica(&others));
    }

    /// Two replicas that each saw some, merged, are one that saw all.
    #[test]
    fn merging_is_applying(all in vec(written(), 0..30), cut in 0..30_usize) {
        let (a, b) = all.split_at(cut.min(all.len()));
        prop_assert_eq!(merged(replica(a), &replica(b)), replica(&all));
    }

    /// What is forgotten makes no difference to whoever knew it.
    #[test]
    fn forgetting_changes_no_item(all in vec(written(), 0..30), through in 0..50_i64) {
        let whole = replica(&all);
        let mut forgetful = whole.clone();
        forgetful.watchlist.forget_removed(through);
        prop_assert!(whole.watchlist.items().eq(forgetful.watchlist.items()));
        let kept = whole.watchlist.removed.values().flat_map(BTreeMap::values);
        let kept = kept.filter(|removed| removed.at > through).count();
        prop_assert_eq!(forgetful.watchlist.tombstones(), kept);
    }

    #[test]
    fn counters_are_those_of_crdts(
        a in vec((0..4_u8, 0..9_u64), 0..20), b in vec((0..4_u8, 0..9_u64), 0..20),
    ) {
        let both = |raises: &[(u8, u64)]| {
            let (mut ours, mut theirs) = (Counter::default(), crdts::VClock::<u8>::default());
            for (by, count) in raises {
                ours.raise(device(*by), *count);
                theirs.apply(crdts::Dot::new(*by, *count));
            }
            (ours, theirs)
        };
        let ((mut ours, mut theirs), (ours_b, theirs_b)) = (both(&a), both(&b));
        ours.merge(ours_b);
        theirs.merge(theirs_b);
        let sum: u64 = theirs.iter().map(|dot| dot.counter).sum();
        prop_assert_eq!(ours.value(), sum);
    }

    #[test]
    fn registers_are_those_of_crdts(all in vec((1..20_u64, 0..4_u8), 1..20)) {
        // In crdts a marker belongs to one value, as ours does where devices keep to their own stamps.
        let written = |(time, by): &(u64, u8)| Stamped {
            stamp: Stamp { time: NTP64(*time), device: device(*by) },
            value: (*time, *by),
        };
        let mut ours = Register::new(written(&all[0]));
        let mut theirs = crdts::LWWReg { val: all[0], marker: all[0] };
        for one in &all[1..] {
            ours.write(written(one));
            theirs.merge(crdts::LWWReg { val: *one, marker: *one });
        }
        prop_assert_eq!(ours.wins.value, theirs.val);
        let lost = all.iter().filter(|one| **one != theirs.val).max();
        prop_assert_eq!(ours.beaten.map(|beaten| beaten.value), lost.copied());
    }

    /// With a tag for each addition, and removals of what was seen, ours is the `Orswot` of crdts.
    #[test]
    fn sets_are_those_of_crdts(
        steps in vec((0..3_usize, 0..3_u8, 0..3_u8), 0..40),
    ) {
        let mut theirs = vec![crdts::Orswot::<u8, usize>::new(); 3];
        let mut ours = vec![ObservedSet::default(); 3];
        for (n, (at, step, item)) in steps.iter().enumerate() {
            let stamp = Stamp { time: NTP64(n as u64), device: device(*at as u8) };
            let name = content(*item);
            match step {
                0 => {
                    let add = theirs[*at].read_ctx().derive_add_ctx(*at);
                    let op = theirs[*at].add(*item, add);
                    theirs[*at].apply(op);
                    ours[*at].add(&name, Added { tag: n.to_string(), stamp });
                }
                1 => {
                    let remove = theirs[*at].contains(item).derive_rm_ctx();
                    let op = theirs[*at].rm(*item, remove);
                    theirs[*at].apply(op);
                    let tags: Vec<String> =
                        ours[*at].additions_of(&name).iter().map(|a| a.tag.clone()).collect();
                    for tag in tags {
                        ours[*at].remove(&name, &tag, Removed { at: 1, stamp });
                    }
                }
                _ => {
                    let from = (*at + 1) % 3;
                    let (their, our) = (theirs[from].clone(), ours[from].clone());
                    theirs[*at].merge(their);
                    ours[*at].merge(our);
                }
            }
            let their: BTreeSet<String> =
                theirs[*at].read().val.into_iter().map(content).collect();
            let our: BTreeSet<String> =
                ours[*at].items().map(|(item, _)| item.to_owned()).collect();
            prop_assert_eq!(our, their);
        }
    }
}

#[test]
fn an_addition_wins_over_a_removal_that_did_not_see_it() {
    let stamp = |time| Stamp { time: NTP64(time), device: device(1) };
    let mut set = ObservedSet::default();
    set.add("c", Added { tag: "a".into(), stamp: stamp(1) });
    set.remove("c", "b", Removed { at: 1, stamp: stamp(2) });
    assert_eq!(set.additions_of("c").len(), 1);
    // The addition that was removed before it came.
    set.add("c", Added { tag: "b".into(), stamp: stamp(3) });
    set.remove("c", "a", Removed { at: 2, stamp: stamp(4) });
    assert!(set.is_empty());
    assert_eq!(set.tombstones(), 2);
}

#[test]
fn of_the_same_time_the_higher_device_wins() {
    let written =
        |by, value| Stamped { stamp: Stamp { time: NTP64(5), device: device(by) }, value };
    let mut register = Register::new(written(2, "tv"));
    register.write(written(1, "phone"));
    assert_eq!(register.wins.value, "tv");
    assert_eq!(register.beaten.unwrap().value, "phone");
}

/// What `clients/typescript` computes too. `PROXIE_WRITE_VECTORS=1` writes the file anew.
#[test]
fn the_shared_vectors_hold() {
    const PATH: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/clients/typescript/test/sync-vectors.json");
    let mut seed = 7_u64;
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut replicas = Vec::new();
    for _ in 0..40 {
        let (mut replica, mut steps) = (Replica::default(), Vec::new());
        for sequence in 1..=next(40) {
            if next(12) == 0 {
                let through = next(30) as i64;
                replica.watchlist.forget_removed(through);
                steps.push(serde_json::json!({"forget": through}));
                continue;
            }
            let content_id = content(next(3) as u8);
            let change = match next(4) {
                0 => Change::WatchlistAdd { content_id, tag: format!("t{}", next(5)) },
                1 => {
                    let tags = (0..=next(2)).map(|_| format!("t{}", next(5))).collect();
                    Change::WatchlistRemove { content_id, tags }
                }
                2 => {
                    let duration_ms = (next(2) == 0).then_some(9);
                    let position = WatchPosition { position_ms: next(4), duration_ms };
                    Change::PlaybackUpdate { content_id, position }
                }
                _ => Change::CounterUpdate { content_id, count: next(6) },
            };
            // Also such that a number of JavaScript could not tell apart.
            let time = NTP64(next(3) * 7_594_451_700_000_000_000 + next(6));
            let (device, at) = (device(next(3) as u8), next(30) as i64);
            let operation = DeviceOperation { sequence, operation_id: None, time, change };
            replica.apply(device, &operation, at);
            steps.push(serde_json::json!({"device": device, "at": at, "operation": operation}));
        }
        replicas.push(serde_json::json!({"steps": steps, "replica": replica}));
    }
    let ticks: Vec<_> = (0..60)
        .map(|_| {
            let base = 7_594_451_700_000_000_000;
            let (last, now) = (NTP64(base + next(64)), NTP64(base + next(64)));
            let tick = crate::systems::devices::domain::clock::tick(last, now);
            serde_json::json!([last.0.to_string(), now.0.to_string(), tick.0.to_string()])
        })
        .collect();
    let vectors = serde_json::json!({"replicas": replicas, "ticks": ticks});
    if std::env::var_os("PROXIE_WRITE_VECTORS").is_some() {
        std::fs::write(PATH, format!("{vectors}\n")).unwrap();
    }
    let kept: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(PATH).unwrap()).unwrap();
    assert!(kept == vectors, "the vectors have changed");
}
