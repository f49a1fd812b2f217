//! Links inside TLS: who is let in, and who is not. The rest of the contract runs inside TLS as it does outside.

use std::sync::Arc;
use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::authority::{Folder, Issued, OTHER, OURS, load};
use super::*;
use crate::cluster::transport::frame::Terms;
use crate::cluster::transport::handshake::{self, Identity, Met, Refusal};
use crate::cluster::transport::wire::Versions;

async fn node(start: Start, incarnation: i64, tls: Option<Tls>) -> Running {
    Running::start_with(start, Options { tls, ..options(incarnation).await }).await
}

async fn certified(start: Start, incarnation: i64) -> Running {
    node(start, incarnation, Some(OURS.tls(&format!("node-{incarnation}")))).await
}

/// A listening node that waits for incarnation 1 of `node-1`.
async fn waiting(start: Start) -> Running {
    let b = certified(start, 2).await;
    b.transport.link(Peer { incarnation: 1, name: "node-1".into(), address: "127.0.0.1:1".into() });
    b
}

/// Some dials more; a link that came up would be there by then.
async fn never_link(a: &mut Running, b: &mut Running) {
    sleep(Duration::from_millis(400)).await;
    assert!(!a.transport.is_up(b.incarnation) && !b.transport.is_up(a.incarnation));
    never_linked(a);
    never_linked(b);
}

/// That nobody listens at an address is no news of a link.
fn never_linked(node: &mut Running) {
    while let Ok(event) = node.events.try_recv() {
        assert!(matches!(event, LinkEvent::Refused { .. }), "{event:?}");
    }
}

/// Says that it is incarnation 1, knows the cookie, and carries frames as the other side does.
async fn introduce<S>(start: Start, stream: S, name: &str) -> Result<Met, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let me = Peer { incarnation: 1, name: name.into(), address: "127.0.0.1:1".into() };
    let mailbox = u64::from(std::ptr::fn_addr_eq(start, over_clustered as Start));
    let identity = Identity {
        me,
        cookie: COOKIE.into(),
        terms: Terms::of(&limits()),
        mailbox,
        speaks: Versions::OURS,
    };
    let (mut read, mut write) = split(stream);
    let met = handshake::dial((&mut read, &mut write), &identity, 2);
    timeout(PATIENCE, met).await.expect("an answer")
}

async fn connect(to: &Running, tls: &Tls) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(&to.address).await.unwrap();
    tls.connect(stream, "node-2").await.unwrap()
}

/// Trusts the cluster, and has the certificate or none.
async fn by_hand(
    to: &Running,
    mine: Option<Issued>,
    version: &'static SupportedProtocolVersion,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(OURS.pem().as_bytes()).unwrap()).unwrap();
    let config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
    let config = match mine {
        None => config.with_no_client_auth(),
        Some(Issued { cert, key }) => {
            let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
            let key = PemObject::from_pem_slice(key.as_bytes()).unwrap();
            config.with_client_auth_cert(vec![cert], key).unwrap()
        }
    };
    let stream = TcpStream::connect(&to.address).await.unwrap();
    let name = ServerName::try_from("node-2").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

pub async fn certified_nodes_link_and_their_asks_flow(start: Start) {
    let mut a = certified(start, 1).await;
    let mut b = certified(start, 2).await;
    a.link(&b);
    b.link(&a);
    a.up(&b).await;
    b.up(&a).await;
    a.transport.send(2, ask(7, 1_000)).unwrap();
    let (from, envelope, _) = b.received().await;
    assert_eq!((from, envelope), (1, ask(7, 1_000)));
    b.transport.send(1, answer(7)).unwrap();
    let (from, envelope, _) = a.received().await;
    assert_eq!((from, envelope), (2, answer(7)));
}

pub async fn nobody_is_linked_without_a_certificate(start: Start) {
    let mut b = waiting(start).await;
    // Its own handshake is over before the other side has judged it, so it is the first answer that does not come.
    let stream = by_hand(&b, None, &TLS13).await.unwrap();
    assert!(introduce(start, stream, "node-1").await.is_err());
    assert!(!b.transport.is_up(1));
    never_linked(&mut b);
    let older = by_hand(&b, Some(OURS.issue("node-1")), &TLS12).await;
    assert!(older.is_err(), "an older TLS is spoken");
    // The same with a certificate.
    let stream = by_hand(&b, Some(OURS.issue("node-1")), &TLS13).await.unwrap();
    introduce(start, stream, "node-1").await.unwrap();
}

pub async fn another_authority_is_not_enough(start: Start) {
    let mut b = certified(start, 2).await;
    // They trust the cluster, so it is the cluster that does not trust them: one dials, the other is dialled.
    for incarnation in [1, 3] {
        let foreign = OTHER.issue(&format!("node-{incarnation}")).trusting(&[&OTHER, &OURS]);
        let mut stranger = node(start, incarnation, Some(foreign)).await;
        stranger.link(&b);
        b.link(&stranger);
        never_link(&mut stranger, &mut b).await;
    }
}

pub async fn a_node_is_not_another_by_its_incarnation(start: Start) {
    let mut b = waiting(start).await;
    // It says honestly that it is node-3, and dishonestly that it is incarnation 1.
    let tls = Some(OURS.tls("node-3"));
    let name = String::from("node-3");
    let mut c = Running::start_with(start, Options { name, tls, ..options(1).await }).await;
    c.link(&b);
    never_link(&mut c, &mut b).await;
    let stream = connect(&b, &OURS.tls("node-3")).await;
    assert!(introduce(start, stream, "node-3").await.is_err());
    // It says that it is node-1, which its certificate does not.
    let stream = connect(&b, &OURS.tls("node-3")).await;
    assert!(introduce(start, stream, "node-1").await.is_err());
    assert!(!b.transport.is_up(1));
    never_linked(&mut b);
    let stream = connect(&b, &OURS.tls("node-1")).await;
    introduce(start, stream, "node-1").await.unwrap();
}

pub async fn a_server_of_another_name_is_not_the_one_that_was_meant(start: Start) {
    let mut a = certified(start, 1).await;
    let mut c = certified(start, 3).await;
    c.link(&a);
    // All of it is right but the name.
    a.transport.link(Peer { name: "node-2".into(), ..c.peer() });
    never_link(&mut a, &mut c).await;
    a.transport.forget(3);
    a.link(&c);
    a.up(&c).await;
    c.up(&a).await;
}

pub async fn the_cookie_is_asked_for_inside(start: Start) {
    let tls = Some(OURS.tls("node-1"));
    let cookie = Secret::from("guess");
    let mut a = Running::start_with(start, Options { cookie, tls, ..options(1).await }).await;
    let mut b = certified(start, 2).await;
    a.link(&b);
    b.link(&a);
    never_link(&mut a, &mut b).await;
}

pub async fn tls_and_plaintext_do_not_link(start: Start) {
    let mut b = certified(start, 2).await;
    for incarnation in [1, 3] {
        let mut plain = node(start, incarnation, None).await;
        plain.link(&b);
        b.link(&plain);
        never_link(&mut plain, &mut b).await;
    }
}

pub async fn silence_ends_at_the_deadline(start: Start) {
    let limits = TransportLimits { handshake_timeout_ms: 500, max_handshakes: 2, ..limits() };
    let tls = Some(OURS.tls("node-2"));
    let mut b = Running::start_with(start, Options { limits, tls, ..options(2).await }).await;
    let hung_up = async |mut stream: Box<dyn AsyncRead + Unpin + Send>| {
        let read = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
        assert!(read.is_ok(), "it did not hang up");
    };
    // Before TLS, in the midst of its handshake, and after it. Two fill all the places.
    for _ in 0..2 {
        let nothing = TcpStream::connect(&b.address).await.unwrap();
        let mut half = TcpStream::connect(&b.address).await.unwrap();
        half.write_all(&[0x16, 3, 1, 0, 200, 1]).await.unwrap();
        hung_up(Box::new(nothing)).await;
        hung_up(Box::new(half)).await;
        let after = connect(&b, &OURS.tls("node-1")).await;
        hung_up(Box::new(after)).await;
    }
    let mut a = certified(start, 1).await;
    a.link(&b);
    b.link(&a);
    a.up(&b).await;
    b.up(&a).await;
}

/// Each with a part of what is said about it.
#[test]
fn what_cannot_work_is_said_when_it_is_loaded() {
    let refused = |cert: &str, key: &str, ca: &str, parts: [&str; 2]| {
        let error = load(cert, key, ca).err().expect("it is refused").to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    let Issued { cert, key } = OURS.issue("node-1");
    let ca = OURS.pem();
    refused("", &key, &ca, ["/cert: ", "no certificate"]);
    refused("nonsense", &key, &ca, ["/cert: ", "no certificate"]);
    refused(&cert, &key, "", ["/ca: ", "no certificate"]);
    refused(&cert, "", &ca, ["/key: ", ""]);
    refused(&cert, &OURS.issue("node-1").key, &ca, ["/key: ", "no key for"]);
    refused(&cert, &key, &OTHER.pem(), ["/cert: ", "no node of the cluster"]);
    let past =
        OURS.issue_with("node-1", |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    refused(&past.cert, &past.key, &ca, ["/cert: ", "expired"]);
    for usage in [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth] {
        let one = OURS.issue_with("node-1", |params| params.extended_key_usages = vec![usage]);
        refused(&one.cert, &one.key, &ca, ["/cert: ", "no node of the cluster"]);
    }
    let folder = Folder::new();
    let missing = folder.path().join("missing.pem");
    let error = Tls::load(&missing, &missing, &missing).err().expect("it is refused");
    assert!(error.to_string().contains("missing.pem: "), "{error}");
}

#[tokio::test]
async fn a_node_does_not_start_with_the_certificate_of_another() {
    for (name, part) in [
        ("node-3", "not the certificate of node-3"),
        ("-3", "cannot be called \"-3\""),
        ("3", "cannot be called \"3\""),
        ("node.3", "cannot be called \"node.3\""),
    ] {
        let tls = Some(OURS.tls("node-1"));
        let options = Options { name: name.into(), tls, ..options(1).await };
        struct Nothing;
        impl Inbox for Nothing {
            fn receive(&self, _: i64, _: Envelope, _: Credit) {}
        }
        let error = over_framed(options, Arc::new(Nothing)).await.err().expect("it is refused");
        assert!(error.to_string().contains(part), "{error}");
    }
}
