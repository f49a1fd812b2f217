//! Peers that know the cookie and break the rules, over framed TCP; the rules themselves are the same for all.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::cluster::transport::frame::Terms;
use crate::cluster::transport::handshake::{self, Identity};
use crate::cluster::transport::link::Link;
use crate::cluster::transport::wire::{Versions, pack, unpack};
use crate::kernel::codec;

const NEWEST: u8 = Versions::OURS.newest;

/// A listening node, and the connection of a peer that has just introduced itself.
async fn rogue(speaks: Versions) -> (Running, TcpStream) {
    let mut node = Running::start(over_framed, 2).await;
    let me = Peer { incarnation: 1, name: "rogue".into(), address: "127.0.0.1:1".into() };
    node.transport.link(me.clone());
    let identity =
        Identity { me, cookie: COOKIE.into(), terms: Terms::of(&limits()), mailbox: 0, speaks };
    let mut stream = TcpStream::connect(&node.address).await.unwrap();
    let (mut read, mut write) = stream.split();
    handshake::dial((&mut read, &mut write), &identity, 2).await.unwrap();
    node.told(LinkEvent::Up { peer: 1 }).await;
    (node, stream)
}

async fn refuses(frames: impl IntoIterator<Item = (usize, Vec<u8>)>) {
    let (mut node, mut stream) = rogue(Versions::OURS).await;
    for (length, body) in frames {
        stream.write_all(&(length as u32).to_be_bytes()).await.unwrap();
        let _ = stream.write_all(&body).await;
    }
    node.told(LinkEvent::Down { peer: 1, cause: DownCause::Protocol }).await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
}

fn frame(credits: u64, envelopes: Vec<Envelope>) -> (usize, Vec<u8>) {
    let mut body = codec::encode(&(credits, envelopes.len() as u64));
    let packed = envelopes.into_iter().flat_map(|envelope| pack(envelope, NEWEST).bytes);
    body.extend(packed);
    (body.len(), body)
}

#[tokio::test]
async fn a_frame_that_is_too_large_is_not_read() {
    refuses([(100 << 20, Vec::new())]).await;
}

#[tokio::test]
async fn an_undecodable_frame_ends_the_link() {
    refuses([(10, vec![0xff; 10])]).await;
}

#[tokio::test]
async fn a_frame_of_too_many_envelopes_ends_the_link() {
    refuses([frame(0, vec![Envelope::Control(Vec::new()); 65])]).await;
}

#[tokio::test]
async fn an_envelope_that_is_too_large_ends_the_link() {
    // As short a frame as may be: the weight is what counts.
    refuses([frame(0, vec![control(0, (16 << 10) - 200)])]).await;
}

#[tokio::test]
async fn more_than_the_window_ends_the_link() {
    refuses((0..40).map(|n| frame(0, vec![control(n, 8_000)]))).await;
}

#[tokio::test]
async fn credit_for_nothing_ends_the_link() {
    refuses([frame(1, Vec::new())]).await;
}

#[test]
fn nothing_is_taken_after_the_link_was_closed() {
    struct Never;
    impl Inbox for Never {
        fn receive(&self, _: i64, _: Envelope, _: Credit) {
            panic!("it was closed");
        }
    }
    let link: Arc<Link> = Link::new(1, Terms::of(&limits()), NEWEST);
    link.close();
    let (_, bytes) = frame(0, vec![control(0, 0)]);
    link.receive(&bytes, &Never).unwrap();
}

#[test]
fn both_sides_keep_to_the_smaller_limits() {
    let small = Terms { window: 80_000, envelope: 50_000, frame: 9_000, frame_envelopes: 5 };
    let large = Terms::of(&TransportLimits::default());
    assert_eq!(small.agreed(large), large.agreed(small));
    assert_eq!(small.agreed(large).envelope, 10_000);
}

/// An older node, and one whose callers this release does not know: both get an answer.
#[tokio::test]
async fn nodes_of_other_releases_are_understood_or_told_so() {
    let (mut node, mut stream) = rogue(Versions::FIRST).await;
    let asked = ask(7, 3);
    let mut body = codec::encode(&(0_u64, 1_u64));
    body.extend(pack(asked.clone(), 1).bytes);
    stream.write_all(&(body.len() as u32).to_be_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    let (from, received, _) = node.received().await;
    assert_eq!((from, received), (1, asked.clone()));

    let (mut node, mut stream) = rogue(Versions::OURS).await;
    // Who asks is another word of the same length.
    let text = |bytes: &[u8], from: &[u8], to: &[u8]| {
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        [&bytes[..at], to, &bytes[at + from.len()..]].concat()
    };
    let mut body = codec::encode(&(0_u64, 2_u64));
    body.extend(text(&pack(asked, NEWEST).bytes, b"runtime", b"auditor"));
    body.extend(pack(control(5, 8), NEWEST).bytes);
    stream.write_all(&(body.len() as u32).to_be_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    let (_, received, _) = node.received().await;
    assert_eq!(number(&received), 5, "the link goes on");
    let length = stream.read_u32().await.unwrap();
    let mut frame = vec![0; length as usize];
    stream.read_exact(&mut frame).await.unwrap();
    let ((_, count), at): ((u64, u64), usize) = codec::decode_first(&frame).unwrap();
    assert_eq!(count, 1);
    let (answer, _) = unpack(&frame[at..], NEWEST).unwrap();
    let Ok(Envelope::Answer { correlation: 7, answer: RemoteAnswer::Failed(error) }) =
        answer.envelope
    else {
        panic!("{:?}", answer.envelope)
    };
    assert!(error.code().retryable(), "{error:?}");
}
