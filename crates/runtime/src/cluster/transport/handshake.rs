//! The handshake: two nodes prove to each other that they know the cookie, and then say who they are.
//!
//! Both sides send a magic number and a nonce, which ends with the versions that the side speaks; the newest common
//! version is spoken from then on. (Releases that know only version 1 compare the magic number alone.) The dialling
//! side proves first, so that a listener tells strangers nothing from which they could guess the cookie. Each proof
//! covers both nonces and its side's role, so it can be neither replayed nor reflected. Then the dialling side names
//! itself and the incarnation that it means; the other side names itself and says whether it takes the link; a last
//! byte confirms it.
//!
//! The cookie proves that the other side is a node, and not which one. Certificates prove that: inside TLS the dialling
//! side has checked the certificate before the handshake begins, and the answering side compares the certificate with
//! the claimed name, and with the name of the peer that it waits for.

use std::future::Future;
use std::io;

use hmac::{Hmac, Mac};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::cluster::transport::Peer;
use crate::cluster::transport::frame::Terms;
use crate::cluster::transport::wire::Versions;
use crate::kernel::codec;
use crate::kernel::secret::Secret;

/// The magic number at the start of every connection. It cannot change: releases that know only version 1 compare it.
const MAGIC: &[u8; 8] = b"proxie\0\x01";
const NONCE: usize = 32;
/// The random part of a nonce. The rest is a mark and the versions; without the mark, the side speaks version 1.
const RANDOM: usize = 24;
const MARK: &[u8; 6] = b"speaks";
const PROOF: usize = 32;
const MAX_HELLO: usize = 4 * 1024;
const CONFIRMED: u8 = 1;

/// The link's token, which is the same on both sides and secret to anyone without the cookie.
pub(super) type Token = [u8; 16];

pub(super) struct Identity {
    pub me: Peer,
    pub cookie: Secret<String>,
    pub terms: Terms,
    /// The address that the carrier needs on its frames; 0: it needs none.
    pub mailbox: u64,
    pub speaks: Versions,
}

#[derive(Serialize, Deserialize)]
struct Hello {
    me: Peer,
    /// The incarnation that the sender wants to talk to.
    you: i64,
    terms: Terms,
    mailbox: u64,
}

/// The other side, after its proof.
pub(super) struct Met {
    pub peer: i64,
    /// The agreed limits and version.
    pub terms: Terms,
    pub version: u8,
    pub mailbox: u64,
    pub token: Token,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it does not speak this protocol")]
    Foreign,
    #[error(
        "it speaks versions {theirs} of the protocol between nodes and this node {ours}: upgrade by way of a release that speaks one of both"
    )]
    Version { theirs: Versions, ours: Versions },
    #[error(
        "it wants TLS and this node has none: set cluster.tls_cert, tls_key and tls_ca on all nodes, or on none"
    )]
    WantsTls,
    #[error(
        "there is no TLS with it: {0}. Certificates must be signed by cluster.tls_ca, and all nodes have them, or none"
    )]
    Tls(io::Error),
    #[error(
        "it hung up before it said anything: if it has TLS, this node needs cluster.tls_cert, tls_key and tls_ca too"
    )]
    Unheard,
    #[error("it does not know this node's cookie: cluster.cookie must be the same on all nodes")]
    Cookie,
    #[error(
        "it hung up on this node's proof of the cookie: cluster.cookie must be the same on all nodes"
    )]
    MyCookie,
    #[error("it is incarnation {0}")]
    Other(i64),
    #[error("it asked for incarnation {0}")]
    Stale(i64),
    #[error("its certificate is not that of {0}, which it says it is")]
    Certificate(String),
    #[error(
        "it hung up when this node said its name: cluster.tls_cert must be the certificate of node.name"
    )]
    MyCertificate,
    #[error("the incarnation it says it is belongs to another node than {0}")]
    Name(String),
    #[error(
        "it uses cluster.transport = {theirs:?} and this node {ours:?}: all nodes must use the same"
    )]
    Transport { theirs: &'static str, ours: &'static str },
    #[error("it is not linked")]
    NotLinked,
    #[error("it dialled the wrong way")]
    Direction,
}

impl Refusal {
    /// Whether a person has to correct the fault: it does not pass by itself.
    pub fn is_misconfiguration(&self) -> bool {
        !matches!(
            self,
            Self::Io(_) | Self::Other(_) | Self::Stale(_) | Self::NotLinked | Self::Direction
        )
    }

    /// The meaning of a hang-up at this step.
    fn or(self, meaning: Self) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        let hung_up = [BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof];
        match self {
            Self::Io(error) if hung_up.contains(&error.kind()) => meaning,
            other => other,
        }
    }
}

pub(super) async fn dial<R, W>(
    (read, write): (&mut R, &mut W),
    mine: &Identity,
    expected: i64,
) -> Result<Met, Refusal>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let opened = exchange(read, write, true, mine.speaks).await;
    let nonces = opened.map_err(|refusal| refusal.or(Refusal::Unheard))?;
    let version = nonces.version(mine.speaks, &nonces.answering)?;
    send(write, &nonces.mac(mine.cookie.reveal(), b"dials").finalize().into_bytes()).await?;
    let proved = check(read, nonces.mac(mine.cookie.reveal(), b"answers")).await;
    proved.map_err(|refusal| refusal.or(Refusal::MyCookie))?;
    put(write, version, &mine.hello(expected)).await?;
    let theirs: Result<Hello, _> = get(read, version).await;
    let theirs = theirs.map_err(|refusal| refusal.or(Refusal::MyCertificate))?;
    if theirs.me.incarnation != expected {
        return Err(Refusal::Other(theirs.me.incarnation));
    }
    mine.fits(&theirs)?;
    if read.read_u8().await? != CONFIRMED {
        return Err(Refusal::NotLinked);
    }
    send(write, &[CONFIRMED]).await?;
    Ok(mine.met(&theirs, &nonces, version))
}

/// The answering side. `certified` tells whether the other side's certificate is that of the given node; without TLS it
/// always is. `expects` is the name of the node that the incarnation belongs to, if a link to it is wanted.
pub(super) async fn answer<R, W, F>(
    (read, write): (&mut R, &mut W),
    mine: &Identity,
    certified: impl FnOnce(&str) -> bool,
    expects: impl FnOnce(i64) -> F,
) -> Result<Met, Refusal>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    F: Future<Output = Option<String>>,
{
    let nonces = exchange(read, write, false, mine.speaks).await?;
    let version = nonces.version(mine.speaks, &nonces.dialling)?;
    check(read, nonces.mac(mine.cookie.reveal(), b"dials")).await?;
    send(write, &nonces.mac(mine.cookie.reveal(), b"answers").finalize().into_bytes()).await?;
    let theirs: Hello = get(read, version).await?;
    let peer = theirs.me.incarnation;
    if !certified(&theirs.me.name) {
        return Err(Refusal::Certificate(theirs.me.name));
    }
    // This is sent before anything else is judged, so that the dialling side learns which node it reached.
    put(write, version, &mine.hello(peer)).await?;
    if theirs.you != mine.me.incarnation {
        return Err(Refusal::Stale(theirs.you));
    }
    if peer >= mine.me.incarnation {
        return Err(Refusal::Direction);
    }
    match expects(peer).await {
        None => return Err(Refusal::NotLinked),
        // A node cannot pass for another one by naming that one's incarnation.
        Some(name) if name != theirs.me.name => return Err(Refusal::Name(theirs.me.name)),
        Some(_) => {}
    }
    mine.fits(&theirs)?;
    send(write, &[CONFIRMED]).await?;
    if read.read_u8().await? != CONFIRMED {
        return Err(Refusal::Foreign);
    }
    Ok(mine.met(&theirs, &nonces, version))
}

impl Identity {
    fn hello(&self, you: i64) -> Hello {
        Hello { me: self.me.clone(), you, terms: self.terms, mailbox: self.mailbox }
    }

    /// Whether both sides use the same carrier.
    fn fits(&self, theirs: &Hello) -> Result<(), Refusal> {
        let transport = |mailbox| if mailbox == 0 { "framed" } else { "ractor_cluster" };
        let (ours, theirs) = (transport(self.mailbox), transport(theirs.mailbox));
        if ours == theirs { Ok(()) } else { Err(Refusal::Transport { theirs, ours }) }
    }

    fn met(&self, theirs: &Hello, nonces: &Nonces, version: u8) -> Met {
        let whole = nonces.mac(self.cookie.reveal(), b"link").finalize().into_bytes();
        let mut token = Token::default();
        token.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
        Met {
            peer: theirs.me.incarnation,
            terms: self.terms.agreed(theirs.terms),
            version,
            mailbox: theirs.mailbox,
            token,
        }
    }
}

struct Nonces {
    dialling: [u8; NONCE],
    answering: [u8; NONCE],
}

impl Nonces {
    /// The newest common version. Both proofs cover the versions, so an attacker in between cannot force an older one.
    fn version(&self, ours: Versions, theirs: &[u8; NONCE]) -> Result<u8, Refusal> {
        let theirs = match theirs[RANDOM..].strip_prefix(MARK) {
            Some(&[oldest, newest]) => Versions { oldest, newest },
            _ => Versions::FIRST,
        };
        ours.agreed(theirs).ok_or(Refusal::Version { theirs, ours })
    }

    fn mac(&self, cookie: &str, purpose: &[u8]) -> Hmac<Sha256> {
        let mac = Hmac::<Sha256>::new_from_slice(cookie.as_bytes()).expect("any length will do");
        mac.chain_update(MAGIC)
            .chain_update(purpose)
            .chain_update(self.dialling)
            .chain_update(self.answering)
    }
}

async fn exchange<R, W>(
    read: &mut R,
    write: &mut W,
    dials: bool,
    speaks: Versions,
) -> Result<Nonces, Refusal>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut mine: [u8; NONCE] = rand::random();
    mine[RANDOM..RANDOM + MARK.len()].copy_from_slice(MARK);
    mine[RANDOM + MARK.len()..].copy_from_slice(&[speaks.oldest, speaks.newest]);
    let mut opening = [0; MAGIC.len() + NONCE];
    opening[..MAGIC.len()].copy_from_slice(MAGIC);
    opening[MAGIC.len()..].copy_from_slice(&mine);
    send(write, &opening).await?;
    let mut magic = [0; MAGIC.len()];
    read.read_exact(&mut magic).await?;
    if magic != *MAGIC {
        // The first bytes of a TLS handshake, or of its alert.
        let tls = matches!(magic, [0x15 | 0x16, 0x03, ..]);
        return Err(if tls { Refusal::WantsTls } else { Refusal::Foreign });
    }
    let mut theirs = [0; NONCE];
    read.read_exact(&mut theirs).await?;
    Ok(if dials {
        Nonces { dialling: mine, answering: theirs }
    } else {
        Nonces { dialling: theirs, answering: mine }
    })
}

async fn check<R: AsyncRead + Unpin>(read: &mut R, mac: Hmac<Sha256>) -> Result<(), Refusal> {
    let mut proof = [0; PROOF];
    read.read_exact(&mut proof).await?;
    // In constant time.
    mac.verify_slice(&proof).map_err(|_| Refusal::Cookie)
}

/// Encodes an introduction: by position in version 1, which cannot change; as JSON, with room for more, since version 2.
async fn put<W: AsyncWrite + Unpin>(
    write: &mut W,
    version: u8,
    value: &impl Serialize,
) -> io::Result<()> {
    let body = match version {
        1 => codec::encode(value),
        _ => serde_json::to_vec(value).map_err(io::Error::other)?,
    };
    let length = u16::try_from(body.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(body);
    send(write, &bytes).await
}

/// Writes and flushes: inside TLS, written bytes could otherwise stay in a buffer while the other side waits for them.
async fn send<W: AsyncWrite + Unpin>(write: &mut W, bytes: &[u8]) -> io::Result<()> {
    write.write_all(bytes).await?;
    write.flush().await
}

async fn get<T: DeserializeOwned>(
    read: &mut (impl AsyncRead + Unpin),
    version: u8,
) -> Result<T, Refusal> {
    let length = usize::from(read.read_u16().await?);
    if length > MAX_HELLO {
        return Err(Refusal::Foreign);
    }
    let mut body = vec![0; length];
    read.read_exact(&mut body).await?;
    let read = if version == 1 { codec::decode(&body) } else { serde_json::from_slice(&body).ok() };
    read.ok_or(Refusal::Foreign)
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex, split};

    use super::*;
    use crate::cluster::transport::TransportLimits;

    fn node(incarnation: i64, cookie: &str) -> Identity {
        let me = Peer { incarnation, name: "n".into(), address: "a:1".into() };
        Identity {
            me,
            cookie: cookie.into(),
            terms: Terms::of(&TransportLimits::default()),
            mailbox: incarnation as u64,
            speaks: Versions::OURS,
        }
    }

    async fn dialled(stream: DuplexStream, mine: &Identity, to: i64) -> Result<Met, Refusal> {
        let (mut read, mut write) = split(stream);
        dial((&mut read, &mut write), mine, to).await
    }

    async fn answered(
        stream: DuplexStream,
        mine: &Identity,
        expects: bool,
    ) -> Result<Met, Refusal> {
        let (mut read, mut write) = split(stream);
        let expects = expects.then(|| String::from("n"));
        answer((&mut read, &mut write), mine, |_| true, |_| async move { expects }).await
    }

    async fn meet(
        a: Identity,
        to: i64,
        b: Identity,
        expects: bool,
    ) -> (Result<Met, Refusal>, Result<Met, Refusal>) {
        let (left, right) = duplex(4_096);
        tokio::join!(dialled(left, &a, to), answered(right, &b, expects))
    }

    #[tokio::test]
    async fn both_learn_who_the_other_is() {
        let (a, b) = meet(node(1, "c"), 2, node(2, "c"), true).await;
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!((a.peer, a.mailbox, b.peer, b.mailbox), (2, 2, 1, 1));
        assert_eq!(a.token, b.token);
        let (again, _) = meet(node(1, "c"), 2, node(2, "c"), true).await;
        assert_ne!(a.token, again.unwrap().token);
    }

    #[tokio::test]
    async fn a_dialler_without_the_cookie_is_refused() {
        let (a, b) = meet(node(1, "guess"), 2, node(2, "c"), true).await;
        assert!(matches!(b, Err(Refusal::Cookie)));
        assert!(matches!(a, Err(Refusal::MyCookie)));
    }

    #[tokio::test]
    async fn both_say_that_their_transports_differ() {
        let framed = Identity { mailbox: 0, ..node(1, "c") };
        let (a, b) = meet(framed, 2, node(2, "c"), true).await;
        let said = [a, b].map(|met| met.err().unwrap().to_string());
        assert!(said[0].contains("it uses cluster.transport = \"ractor_cluster\""), "{said:?}");
        assert!(said[1].contains("it uses cluster.transport = \"framed\""), "{said:?}");
    }

    #[tokio::test]
    async fn a_name_without_its_certificate_is_named_by_both() {
        let (left, right) = duplex(4_096);
        let (mine, theirs) = (node(1, "c"), node(2, "c"));
        let (mut read, mut write) = split(right);
        let answering = async move {
            let expects = |_| async { Some(String::from("n")) };
            let answered = answer((&mut read, &mut write), &theirs, |_| false, expects).await;
            // The listener hangs up.
            drop((read, write));
            answered
        };
        let (a, b) = tokio::join!(dialled(left, &mine, 2), answering);
        assert!(matches!(a, Err(Refusal::MyCertificate)));
        assert!(matches!(b, Err(Refusal::Certificate(name)) if name == "n"));
    }

    #[tokio::test]
    async fn tls_that_is_not_spoken_is_told_from_noise() {
        for (first, tls) in [([0x16, 0x03], true), ([0x15, 0x03], true), (*b"GE", false)] {
            let (left, mut right) = duplex(4_096);
            let mut opening = [0; MAGIC.len() + NONCE];
            opening[..2].copy_from_slice(&first);
            right.write_all(&opening).await.unwrap();
            let met = dialled(left, &node(1, "c"), 2).await.err().unwrap();
            assert_eq!(matches!(met, Refusal::WantsTls), tls, "{met}");
        }
    }

    #[tokio::test]
    async fn who_answers_without_the_cookie_is_refused() {
        let (left, right) = duplex(4_096);
        let impostor = async move {
            // A fake node that accepts any proof and sends back the one it got.
            let (mut read, mut write) = split(right);
            exchange(&mut read, &mut write, false, Versions::OURS).await.unwrap();
            let mut proof = [0; PROOF];
            read.read_exact(&mut proof).await.unwrap();
            write.write_all(&proof).await.unwrap();
            let _ = read.read_u8().await;
        };
        let mine = node(1, "c");
        let (met, ()) = tokio::join!(dialled(left, &mine, 2), impostor);
        assert!(matches!(met, Err(Refusal::Cookie)));
    }

    #[tokio::test]
    async fn another_incarnation_is_recognised_by_both() {
        let (a, b) = meet(node(1, "c"), 2, node(3, "c"), true).await;
        assert!(matches!(a, Err(Refusal::Other(3))));
        assert!(matches!(b, Err(Refusal::Stale(2))));
    }

    #[tokio::test]
    async fn the_wrong_direction_and_the_unlinked_are_refused() {
        let (a, b) = meet(node(3, "c"), 2, node(2, "c"), true).await;
        assert!(a.is_err());
        assert!(matches!(b, Err(Refusal::Direction)));
        let (a, b) = meet(node(1, "c"), 2, node(2, "c"), false).await;
        assert!(a.is_err());
        assert!(matches!(b, Err(Refusal::NotLinked)));
    }

    #[tokio::test]
    async fn a_release_without_a_range_is_met_in_the_first_version() {
        // The handshake of the first release: a random nonce, and every field by position.
        let (left, right) = duplex(4_096);
        let theirs = node(2, "c");
        let older = async move {
            let (mut read, mut write) = split(right);
            let answering: [u8; NONCE] = rand::random();
            send(&mut write, MAGIC).await?;
            send(&mut write, &answering).await?;
            let mut opening = [0; MAGIC.len() + NONCE];
            read.read_exact(&mut opening).await?;
            assert_eq!(&opening[..MAGIC.len()], MAGIC);
            let dialling = opening[MAGIC.len()..].try_into().unwrap();
            let nonces = Nonces { dialling, answering };
            check(&mut read, nonces.mac("c", b"dials")).await?;
            let proof = nonces.mac("c", b"answers").finalize().into_bytes();
            send(&mut write, &proof).await?;
            let length = usize::from(read.read_u16().await?);
            let mut hello = vec![0; length];
            read.read_exact(&mut hello).await?;
            let hello: Hello = codec::decode(&hello).expect("by position");
            assert_eq!((hello.me.incarnation, hello.you), (1, 2));
            put(&mut write, 1, &theirs.hello(1)).await?;
            send(&mut write, &[CONFIRMED]).await?;
            assert_eq!(read.read_u8().await?, CONFIRMED);
            Ok::<_, Refusal>(())
        };
        let mine = node(1, "c");
        let (met, older) = tokio::join!(dialled(left, &mine, 2), older);
        older.unwrap();
        assert_eq!(met.unwrap().version, 1);
    }

    #[tokio::test]
    async fn a_later_release_is_met_in_the_newest_version_of_both_or_told_why_not() {
        let speaks =
            |oldest, newest| Identity { speaks: Versions { oldest, newest }, ..node(2, "c") };
        let (a, b) = meet(node(1, "c"), 2, speaks(2, 9), true).await;
        let newest = Versions::OURS.newest;
        assert_eq!((a.unwrap().version, b.unwrap().version), (newest, newest));
        let (a, b) = meet(node(1, "c"), 2, speaks(8, 9), true).await;
        let said = [a, b].map(|met| met.err().unwrap());
        assert!(said.iter().all(Refusal::is_misconfiguration));
        let said = said.map(|refusal| refusal.to_string());
        assert!(said[0].contains("versions 8 to 9") && said[1].contains("and this node 8 to 9"));
    }

    #[tokio::test]
    async fn what_is_no_node_is_refused() {
        let (left, mut right) = duplex(4_096);
        let mut opening = [0; MAGIC.len() + NONCE];
        opening[..MAGIC.len()].copy_from_slice(b"proxie\0\x02");
        right.write_all(&opening).await.unwrap();
        let met = dialled(left, &node(1, "c"), 2).await;
        assert!(matches!(met, Err(Refusal::Foreign)));
    }
}
