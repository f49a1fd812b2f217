use serde_json::Value;

use super::*;
use crate::kernel::entity::replay_golden;
use crate::kernel::entity::spec::{Given, given};
use crate::systems::devices::domain::operation::WatchPosition;

const NOW: &str = "2026-01-12T08:00:00Z";

fn device(n: u128) -> DeviceId {
    DeviceId::new(n)
}

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

/// So many milliseconds after now.
fn after(ms: i64) -> NTP64 {
    to_ntp(Timestamp::from_millisecond(now().as_millisecond() + ms).unwrap())
}

/// Alice, with so many devices.
fn alice(devices: u128) -> Given<SyncLog> {
    let joined = (1..=devices).map(|n| Event::Joined { device: device(n), at: now() });
    given::<SyncLog>(joined).at(now()).by_user("alice").key("alice")
}

fn operation(sequence: u64, time: NTP64, change: Change) -> DeviceOperation {
    DeviceOperation { sequence, operation_id: None, time, change }
}

fn add(sequence: u64, content_id: &str, tag: &str) -> DeviceOperation {
    let change = Change::WatchlistAdd { content_id: content_id.into(), tag: tag.into() };
    operation(sequence, after(sequence as i64), change)
}

fn remove(sequence: u64, content_id: &str, tag: &str) -> DeviceOperation {
    let change = Change::WatchlistRemove { content_id: content_id.into(), tags: vec![tag.into()] };
    operation(sequence, after(sequence as i64), change)
}

fn play(sequence: u64, time: NTP64, position_ms: u64) -> DeviceOperation {
    let position = WatchPosition { position_ms, duration_ms: None };
    operation(sequence, time, Change::PlaybackUpdate { content_id: "c".into(), position })
}

fn update(n: u128, seen: i64, operations: Vec<DeviceOperation>) -> Command {
    Command::Update { device: device(n), seen, operations, limits: SyncLimits::default() }
}

fn updated(decision: Decision<SyncLog>) -> (SyncStatus, Vec<Restamped>, Vec<Refused>) {
    match decision.reply {
        Some(Reply::Updated { standing, restamped, refused }) => (standing, restamped, refused),
        other => panic!("{other:?}"),
    }
}

fn delta(decision: &Decision<SyncLog>) -> Option<Value> {
    match &decision.effects[..] {
        [] => None,
        [Effect::Publish { publication, durable: true }] => Some(publication.data.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn operations_are_taken_once_and_in_their_order() {
    let mut alice = alice(1);
    let decision = alice.when(update(1, 0, vec![add(1, "a", "x"), add(2, "b", "y")])).decision();
    let delta = delta(&decision).unwrap();
    assert_eq!(delta["operations"][1]["payload"]["content_id"], "b");
    assert_eq!(delta["device_id"], device(1).to_string());
    let (standing, ..) = updated(decision);
    assert_eq!((standing.sequence, standing.offset), (2, 1));
    // Sent again with a new one: only that is new.
    let decision = alice.when(update(1, 0, vec![add(2, "b", "y"), add(3, "c", "z")])).decision();
    let Event::Merged { operations, .. } = &decision.events[0] else { panic!() };
    assert_eq!(operations.len(), 1);
    assert_eq!(updated(decision).0.sequence, 3);
    // After a hole nothing is taken, and the answer says where it begins.
    for ahead in [vec![add(5, "d", "w")], vec![]] {
        let decision = alice.when(update(1, 0, ahead)).decision();
        assert!(decision.events.is_empty() && decision.effects.is_empty());
        assert_eq!(updated(decision).0.sequence, 3);
    }
    let decision = alice.when(update(1, 0, vec![add(4, "d", "w"), add(6, "e", "v")])).decision();
    assert_eq!(updated(decision).0.sequence, 4);
}

#[test]
fn the_latest_write_wins_whoever_comes_last() {
    let mut alice = alice(2);
    alice.when(update(1, 0, vec![play(1, after(20), 20)])).decision();
    alice.when(update(2, 0, vec![play(1, after(10), 10)])).decision();
    let register = &alice.state.replica.positions["c"];
    assert_eq!(register.wins.value.position_ms, 20);
    assert_eq!(register.beaten.as_ref().unwrap().value.position_ms, 10);
}

#[test]
fn a_clock_of_the_future_is_not_believed_and_nothing_is_dropped() {
    let mut alice = alice(2);
    alice.when(update(1, 0, vec![play(1, after(4_000), 1)])).decision();
    let (_, restamped, _) = updated(
        alice
            .when(update(2, 0, vec![play(1, after(60_000), 2), play(2, after(61_000), 3)]))
            .decision(),
    );
    assert_eq!(restamped.iter().map(|r| r.sequence).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(restamped[0].claimed, after(60_000));
    // As written when they came: after what was there, in their order.
    assert!(after(4_000) < restamped[0].time && restamped[0].time < restamped[1].time);
    assert!(restamped[1].time < after(4_100));
    assert_eq!(alice.state.replica.positions["c"].wins.value.position_ms, 3);
    // A clock that went back.
    let (_, restamped, _) =
        updated(alice.when(update(1, 0, vec![play(2, after(-9_000), 4)])).decision());
    assert_eq!(restamped.len(), 1);
    assert_eq!(alice.state.replica.positions["c"].wins.value.position_ms, 4);
}

#[test]
fn what_every_device_has_seen_is_forgotten() {
    let mut alice = alice(2);
    alice.when(update(1, 0, vec![add(1, "a", "x"), remove(2, "a", "x")])).decision();
    assert_eq!(alice.state.replica.watchlist.tombstones(), 1);
    alice.when(update(1, 1, vec![])).then([Event::Saw { device: device(1), seen: 1 }]);
    assert_eq!((alice.state.stable, alice.state.replica.watchlist.tombstones()), (0, 1));
    // Further than there is anything is as far as there is.
    alice.when(update(2, 99, vec![])).then([Event::Saw { device: device(2), seen: 1 }]);
    assert_eq!((alice.state.stable, alice.state.replica.watchlist.tombstones()), (1, 0));
    // Back is not possible.
    alice.when(update(2, 0, vec![])).then([]);
}

#[test]
fn an_addition_that_was_removed_before_it_came_stays_out() {
    let mut alice = alice(2);
    // Another device heard of it on another way.
    alice.when(update(2, 0, vec![remove(1, "a", "x")])).decision();
    alice.when(update(2, 1, vec![])).decision();
    alice.when(update(1, 0, vec![add(1, "a", "x")])).decision();
    assert!(alice.state.replica.watchlist.is_empty());
}

#[test]
fn who_stays_behind_is_not_waited_for_and_loses_nothing() {
    let limits = SyncLimits { max_tombstones: 3, ..SyncLimits::default() };
    let update =
        |n, seen, operations| Command::Update { device: device(n), seen, operations, limits };
    let mut alice = alice(2);
    for n in 0..4 {
        let tag = n.to_string();
        let operations = vec![add(2 * n + 1, "a", &tag), remove(2 * n + 2, "a", &tag)];
        alice.when(update(1, n as i64, operations)).decision();
    }
    let decision = alice.when(update(1, 4, vec![])).decision();
    assert!(decision.events.contains(&Event::LeftBehind { device: device(2) }));
    assert_eq!((alice.state.stable, alice.state.replica.watchlist.tombstones()), (4, 0));
    let (standing, ..) = updated(alice.when(update(2, 0, vec![add(1, "b", "mine")])).decision());
    assert!(standing.must_resync);
    assert_eq!(alice.state.replica.watchlist.additions_of("b").len(), 1);
    let (standing, ..) = updated(alice.when(update(2, 5, vec![])).decision());
    assert!(!standing.must_resync && !alice.state.devices[&device(2)].must_resync);
}

#[test]
fn there_is_room_for_so_much() {
    let limits = SyncLimits { max_entries: 1, ..SyncLimits::default() };
    let mut alice = alice(1);
    let update = |operations| Command::Update { device: device(1), seen: 0, operations, limits };
    alice.when(update(vec![add(1, "a", "x")])).decision();
    let (standing, _, refused) =
        updated(alice.when(update(vec![add(2, "b", "y"), play(3, after(3), 1)])).decision());
    assert_eq!(standing.sequence, 3);
    assert_eq!(refused, [Refused { sequence: 2, reason: "too_many_entries".into() }]);
    assert_eq!(alice.state.replica.watchlist.len(), 1);
    // What is there can still be changed.
    let (_, _, refused) =
        updated(alice.when(update(vec![remove(4, "a", "x"), play(5, after(5), 2)])).decision());
    assert!(refused.is_empty());
    assert!(alice.state.replica.watchlist.is_empty());
}

#[test]
fn devices_come_and_go() {
    let mut alice = alice(1);
    let join = |n| Command::Join { device: device(n), max_devices: 2 };
    alice.when(join(2)).then([Event::Joined { device: device(2), at: now() }]);
    alice.when(join(2)).then([]);
    alice.when(join(3)).then_rejected("too_many_devices");
    alice.when(Command::Leave { device: device(2) }).then([Event::Left { device: device(2) }]);
    alice.when(Command::Leave { device: device(2) }).then([]);
    alice.when(join(2)).then_rejected("device_removed");
    alice.when(update(2, 0, vec![])).then_rejected("device_removed");
    alice.when(update(9, 0, vec![])).then_rejected("unknown_device");
    alice.when(Command::Leave { device: device(9) }).then_rejected("unknown_device");
    // Who gets a new device every day has room for it in ten years.
    for n in 10..10 + MAX_LEFT as u128 {
        alice.when(join(n)).then([Event::Joined { device: device(n), at: now() }]);
        alice.when(Command::Leave { device: device(n) }).then([Event::Left { device: device(n) }]);
    }
    assert_eq!(alice.state.left.len(), MAX_LEFT);
    alice.when(join(10)).then_rejected("device_removed");
    let mut mallory = alice.by_user("mallory");
    mallory.when(update(1, 0, vec![])).then_rejected("not_yours");
    mallory.when(Command::Read { after: None }).then_rejected("not_yours");
}

/// Everything, and the bytes of each page as JSON.
fn read(alice: &mut Given<SyncLog>) -> (Vec<Entry>, Vec<usize>) {
    let (mut after, mut read, mut pages) = (None, Vec::new(), Vec::new());
    loop {
        let reply = alice.when(Command::Read { after }).then([]).reply;
        let Some(Reply::Page { entries, next, .. }) = reply else { panic!("{reply:?}") };
        pages.push(serde_json::to_string(&entries).unwrap().len());
        read.extend(entries);
        after = next;
        if after.is_none() {
            return (read, pages);
        }
    }
}

fn put_together(entries: Vec<Entry>) -> Replica {
    let mut replica = Replica::default();
    for (n, entry) in entries.into_iter().enumerate() {
        let operation = operation(n as u64 + 1, entry.by.time, entry.change);
        replica.apply(entry.by.device, &operation, 1);
    }
    replica
}

#[test]
fn one_content_may_have_more_parts_than_a_page() {
    let mut alice = alice(1);
    let long = |n: u64| format!("{n:0>128}").replace('0', "\\");
    let mut operations: Vec<DeviceOperation> =
        (1..=1_000).map(|n| add(n, &long(7), &long(n))).collect();
    operations.push(add(1_001, "zzz", "t"));
    alice.when(update(1, 0, operations)).decision();
    // Devices that were there once.
    for n in 0..1_000 {
        let count = Change::CounterUpdate { content_id: long(7), count: n };
        let device = DeviceId::new(u128::from(n) << 64);
        alice.state.replica.apply(device, &operation(1, NTP64(0), count), 1);
    }
    let (entries, pages) = read(&mut alice);
    assert_eq!(entries.len(), 2_001);
    assert!(pages.len() > 4 && pages.iter().all(|bytes| *bytes <= 256 * 1024), "{pages:?}");
    assert_eq!(put_together(entries), alice.state.replica);

    let explain = Command::Explain { content_id: long(7) };
    let reply = alice.when(explain).then([]).reply;
    assert!(serde_json::to_string(&reply).unwrap().len() <= 256 * 1024);
    let Some(Reply::Explained { explanation, .. }) = reply else { panic!("{reply:?}") };
    assert_eq!((explanation.additions.len(), explanation.additions_total), (EXPLAINED, 1_000));
    let counter = explanation.counter.unwrap();
    assert_eq!((counter.shares.len(), counter.shares_total), (EXPLAINED, 1_000));
    assert_eq!(counter.value, 499_500);
}

#[test]
fn a_mark_of_an_older_release_is_after_its_whole_content() {
    let mut alice = alice(1);
    let added = [("a", "1"), ("a", "2"), ("b", "1")];
    let operations = (1..).zip(added).map(|(n, (id, tag))| add(n, id, tag)).collect();
    alice.when(update(1, 0, operations)).decision();
    let old: Mark = serde_json::from_str(r#"{"section":"watchlist","content_id":"a"}"#).unwrap();
    let reply = alice.when(Command::Read { after: Some(old) }).then([]).reply;
    let Some(Reply::Page { entries, next: None, .. }) = reply else { panic!("{reply:?}") };
    assert_eq!(entries.len(), 1);
}

#[test]
fn the_state_is_read_in_pages() {
    let mut alice = alice(1);
    let mut operations: Vec<DeviceOperation> =
        (1..=500).map(|n| add(n, &format!("c{n:03}"), "t")).collect();
    operations.push(play(501, after(501), 7));
    let count = Change::CounterUpdate { content_id: "c".into(), count: 3 };
    operations.push(operation(502, after(502), count));
    alice.when(update(1, 0, operations)).decision();
    let (entries, pages) = read(&mut alice);
    assert_eq!((entries.len(), pages.len()), (502, 2));
    assert_eq!(put_together(entries), alice.state.replica);
}

#[test]
fn old_releases_are_read() {
    let state = replay_golden::<SyncLog>().unwrap();
    assert_eq!((state.offset, state.devices.len(), state.left.len()), (2, 2, 1));
    assert_eq!(state.replica.watchlist.len(), 1);
    assert_eq!(state.replica.positions["tt0133093"].wins.value.position_ms, 90_000);
    assert_eq!(state.replica.counters["tt0133093"].value(), 3);
}
