use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::sleep;

use super::wire::{Wire, shout};
use super::*;
use crate::cluster::transport::wire::{Versions, pack};

pub async fn order_is_kept_in_both_directions(start: Start) {
    const COUNT: u32 = 3_000;
    let (mut a, mut b) = pair(start).await;
    let sending = |from: &Running, to: i64| {
        let transport = from.transport.clone();
        tokio::spawn(async move {
            for n in 0..COUNT {
                let envelope = control(n, (n as usize * 37) % 2_000);
                until(|| transport.send(to, envelope.clone()).is_ok()).await;
            }
        })
    };
    let sends = [sending(&a, 2), sending(&b, 1)];
    for n in 0..COUNT {
        let (from, envelope, _) = b.received().await;
        assert_eq!((from, number(&envelope)), (1, n));
        assert_eq!(envelope, control(n, (n as usize * 37) % 2_000));
        let (from, envelope, _) = a.received().await;
        assert_eq!((from, number(&envelope)), (2, n));
    }
    for sent in sends {
        sent.await.unwrap();
    }
}

fn weight(envelope: Envelope) -> usize {
    pack(envelope, Versions::OURS.newest).weight
}

pub async fn a_large_batch_and_the_largest_envelope_arrive(start: Start) {
    let (a, mut b) = pair(start).await;
    for n in 0..500 {
        a.transport.send(2, control(n, 50)).expect("it fits into the window");
    }
    let overhead = weight(control(0, 1_000)) - 1_000;
    let largest = limits().max_envelope_bytes - overhead;
    a.transport.send(2, control(500, largest)).expect("it fits into the window");
    assert_eq!(a.transport.send(2, control(501, largest + 1)), Err(SendError::TooLarge));
    for n in 0..501 {
        assert_eq!(number(&b.received().await.1), n);
    }
    a.send(2, &control(501, 0)).await;
    assert_eq!(number(&b.received().await.1), 501);
}

async fn guessing(incarnation: i64) -> Options {
    Options { cookie: "guess".into(), ..options(incarnation).await }
}

pub async fn nobody_without_the_cookie_gets_in(start: Start) {
    let mut a = Running::start_with(start, guessing(1).await).await;
    let mut b = Running::start(start, 2).await;
    let mut c = Running::start_with(start, guessing(3).await).await;
    for (one, other) in [(&a, &b), (&b, &a), (&b, &c), (&c, &b), (&a, &c), (&c, &a)] {
        one.link(other);
    }
    a.up(&c).await;
    c.up(&a).await;
    // Some dials more; a link that came up would be there by then.
    sleep(Duration::from_millis(300)).await;
    assert!(!a.transport.is_up(2) && !b.transport.is_up(1));
    assert!(!b.transport.is_up(3) && !c.transport.is_up(2));
    assert_eq!(a.transport.send(2, control(0, 0)), Err(SendError::Unreachable));
    assert!(a.events.try_recv().is_err() && b.events.try_recv().is_err());
}

pub async fn another_incarnation_is_not_the_one_that_was_meant(start: Start) {
    let mut a = Running::start(start, 1).await;
    let mut b = Running::start(start, 7).await;
    b.link(&a);
    let old = Peer { incarnation: 5, ..b.peer() };
    a.transport.link(old);
    a.told(LinkEvent::Refused { peer: 5 }).await;
    a.told(LinkEvent::Refused { peer: 5 }).await;
    assert!(!a.transport.is_up(5) && !b.transport.is_up(1));
    a.link(&b);
    a.up(&b).await;
    b.up(&a).await;
    assert!(!a.transport.is_up(5));
}

/// Asks until there is no more room; what was accepted weighs no more than the window.
fn fill(a: &Running, to: i64) -> usize {
    let mut sent = 0;
    loop {
        match a.transport.send(to, ask(sent as u64, 1_000)) {
            Ok(()) => sent += 1,
            Err(error) => {
                assert_eq!(error, SendError::Overloaded);
                break;
            }
        }
        assert!(sent * weight(ask(0, 1_000)) <= limits().window_bytes);
    }
    sent
}

pub async fn a_receiver_that_keeps_its_credits_blocks_only_itself(start: Start) {
    let (mut a, mut b) = pair(start).await;
    let mut c = Running::start(start, 3).await;
    a.link(&c);
    c.link(&a);
    a.up(&c).await;
    let sent = fill(&a, 2);
    assert!(sent > 50);
    let mut kept = Vec::new();
    for n in 0..sent {
        let (_, envelope, credit) = b.received().await;
        assert!(matches!(envelope, Envelope::Ask { correlation, .. } if correlation == n as u64));
        kept.push(credit);
    }
    assert_eq!(a.transport.send(2, ask(0, 1_000)), Err(SendError::Overloaded));
    assert!(a.transport.is_up(2));
    a.transport.send(3, ask(0, 1_000)).expect("the other peer is not concerned");
    c.received().await;
    // Several windows more, as the credits come back.
    drop(kept);
    for _ in 0..5 * sent {
        a.send(2, &ask(0, 1_000)).await;
        drop(b.received().await);
    }
    assert!(a.transport.is_up(2));
}

pub async fn answers_and_control_get_through_while_the_window_is_full_of_asks(start: Start) {
    let (mut a, mut b) = pair(start).await;
    let (asked, asked_back) = (fill(&a, 2), fill(&b, 1));
    for n in 0..20 {
        a.transport.send(2, control(n, 0)).expect("control has room of its own");
        a.transport.send(2, answer(n.into())).expect("answers have room of their own");
        b.transport.send(1, answer(n.into())).expect("in both directions");
    }
    let mut kept = Vec::new();
    for _ in 0..asked + 40 {
        kept.push(b.received().await);
    }
    for _ in 0..asked_back + 20 {
        kept.push(a.received().await);
    }
    let answers = kept.iter().filter(|(_, e, _)| matches!(e, Envelope::Answer { .. })).count();
    assert_eq!(answers, 40);
}

pub async fn the_death_of_a_peer_shows_on_both_sides_of_the_dial(start: Start) {
    for dying in [1, 2] {
        let (a, b) = pair(start).await;
        let (gone, mut left) = if dying == 1 { (a, b) } else { (b, a) };
        drop(gone);
        let down = LinkEvent::Down { peer: dying, cause: DownCause::Reset };
        assert_eq!(left.event().await, down);
        assert_eq!(left.event().await, LinkEvent::Refused { peer: dying });
        assert!(!left.transport.is_up(dying));
        let sent = left.transport.send(dying, control(0, 0));
        assert_eq!(sent, Err(SendError::Unreachable));
    }
}

pub async fn a_broken_link_is_made_again(start: Start) {
    let mut a = Running::start(start, 1).await;
    let mut b = Running::start(start, 2).await;
    let wire = Wire::to(&b.address).await;
    a.transport.link(b.peer_at(&wire.address));
    b.link(&a);
    for round in 0..3 {
        assert_eq!(a.event().await, LinkEvent::Up { peer: 2 });
        b.up(&a).await;
        a.send(2, &control(round, 0)).await;
        assert_eq!(number(&b.received().await.1), round);
        b.send(1, &control(round, 0)).await;
        assert_eq!(number(&a.received().await.1), round);
        wire.cut();
        assert_eq!(a.event().await, LinkEvent::Down { peer: 2, cause: DownCause::Reset });
    }
}

pub async fn a_half_open_link_does_not_lock_the_newcomer_out(start: Start) {
    let mut a = Running::start(start, 1).await;
    let mut b = Running::start(start, 2).await;
    let wire = Wire::to(&b.address).await;
    a.transport.link(b.peer_at(&wire.address));
    b.link(&a);
    a.up(&b).await;
    b.up(&a).await;
    for round in 1..4 {
        wire.cut_half();
        assert_eq!(a.event().await, LinkEvent::Down { peer: 2, cause: DownCause::Reset });
        a.up(&b).await;
        assert_eq!(b.event().await, LinkEvent::Down { peer: 1, cause: DownCause::Reset });
        b.up(&a).await;
        assert!(wire.half_open() >= round as usize, "b was never told of the end");
        b.send(1, &control(round, 0)).await;
        assert_eq!(number(&a.received().await.1), round);
        a.send(2, &control(round, 0)).await;
        assert_eq!(number(&b.received().await.1), round);
    }
}

pub async fn silent_and_garbled_clients_do_no_harm(start: Start) {
    let mut b = Running::start(start, 2).await;
    let mut silent = Vec::new();
    for _ in 0..limits().max_handshakes - 1 {
        silent.push(TcpStream::connect(&b.address).await.unwrap());
    }
    let mut a = Running::start(start, 1).await;
    a.link(&b);
    b.link(&a);
    a.up(&b).await;
    b.up(&a).await;
    // More of them than may be in their handshake at once.
    for garbage in [
        &b""[..],
        b"no",
        b"no",
        b"no",
        b"no",
        b"no",
        b"GET / HTTP/1.1\r\n\r\n",
        &[0; 100],
        &[255; 100_000],
    ] {
        shout(&b.address, garbage).await;
        shout(&a.address, garbage).await;
    }
    a.transport.send(2, control(9, 0)).expect("the link is still there");
    assert_eq!(number(&b.received().await.1), 9);
    assert!(a.events.try_recv().is_err() && b.events.try_recv().is_err());
    let mut c = Running::start(start, 0).await;
    c.link(&b);
    b.link(&c);
    c.up(&b).await;
    drop(silent);
}

pub async fn forgetting_ends_and_refuses(start: Start) {
    let (mut a, mut b) = pair(start).await;
    b.transport.forget(1);
    assert_eq!(b.event().await, LinkEvent::Down { peer: 1, cause: DownCause::Forgotten });
    assert_eq!(b.transport.send(1, control(0, 0)), Err(SendError::Unreachable));
    assert_eq!(a.event().await, LinkEvent::Down { peer: 2, cause: DownCause::Reset });
    // The other side dials on, and in vain.
    sleep(Duration::from_millis(300)).await;
    assert!(!a.transport.is_up(2) && !b.transport.is_up(1));
    assert!(a.events.try_recv().is_err() && b.events.try_recv().is_err());
    b.link(&a);
    a.up(&b).await;
    b.up(&a).await;
    a.transport.forget(2);
    assert_eq!(a.event().await, LinkEvent::Down { peer: 2, cause: DownCause::Forgotten });
    assert_eq!(b.event().await, LinkEvent::Down { peer: 1, cause: DownCause::Reset });
    assert!(!a.transport.is_up(2) && !b.transport.is_up(1));
}

pub async fn it_waits_for_the_other_side_to_link(start: Start) {
    let mut a = Running::start(start, 1).await;
    let mut b = Running::start(start, 2).await;
    a.link(&b);
    a.link(&b);
    sleep(Duration::from_millis(50)).await;
    assert!(!a.transport.is_up(2));
    b.link(&a);
    b.link(&b);
    a.up(&b).await;
    b.up(&a).await;
    assert!(!b.transport.is_up(2), "a node has no link to itself");
}

struct Nothing;

impl Inbox for Nothing {
    fn receive(&self, _: i64, _: Envelope, _: Credit) {}
}

pub async fn everything_ends_with_the_transport(start: Start) {
    let inbox: Arc<dyn Inbox> = Arc::new(Nothing);
    let held: Weak<dyn Inbox> = Arc::downgrade(&inbox);
    let mut started = start(options(1).await, inbox).await.unwrap();
    let mut b = Running::start(start, 2).await;
    let mut c = Running::start(start, 0).await;
    for other in [&b, &c] {
        started.transport.link(other.peer());
        let address = started.address.clone();
        other.transport.link(Peer { incarnation: 1, name: "node-1".into(), address });
    }
    b.told(LinkEvent::Up { peer: 1 }).await;
    c.told(LinkEvent::Up { peer: 1 }).await;
    let unreachable = Peer { incarnation: 9, name: "gone".into(), address: "127.0.0.1:1".into() };
    started.transport.link(unreachable);
    drop(started.transport);
    // The tasks hold the inbox, and the news ends with the last of them.
    until(|| held.upgrade().is_none()).await;
    while started.events.recv().await.is_some() {}
    assert!(TcpStream::connect(&started.address).await.is_err());
}
