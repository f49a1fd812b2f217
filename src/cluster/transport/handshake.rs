//! Two nodes prove to each other that they know the cookie, and then say who they are.
//!
//! Both send magic, version and a nonce. The dialling side proves first, so that a listener says nothing to strangers
//! that could be used to guess the cookie. Each proof covers both nonces and its side's role: it can be neither
//! replayed nor reflected. Then the dialling side names itself and the incarnation it means; the other one does the
//! same and says whether it takes the link; a last byte confirms it.
//!
//! The cookie says that it is a node, and not which. That is what certificates are for: inside TLS the dialling side
//! has seen that of the node it means before it says a word here, and the answering side compares what it was shown
//! with the name that is claimed, and with the name of the peer that it waits for.

use std::future::Future;
use std::io;

use hmac::{Hmac, Mac};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::cluster::transport::Peer;
use crate::cluster::transport::frame::Terms;
use crate::kernel::codec;

/// With the version of the protocol at its end: raised with every change of what travels.
const MAGIC: &[u8; 8] = b"proxie\0\x01";
const NONCE: usize = 32;
const PROOF: usize = 32;
const MAX_HELLO: usize = 4 * 1024;
const CONFIRMED: u8 = 1;

/// Names the link on both sides; nobody without the cookie can know it.
pub(super) type Token = [u8; 16];

pub(super) struct Identity {
    pub me: Peer,
    pub cookie: String,
    pub terms: Terms,
    /// Where a carrier wants its frames addressed to, if it addresses them.
    pub mailbox: u64,
}

#[derive(Serialize, Deserialize)]
struct Hello {
    me: Peer,
    /// The incarnation that the sender wants to talk to.
    you: i64,
    terms: Terms,
    mailbox: u64,
}

/// The other side, after it proved itself.
pub(super) struct Met {
    pub peer: i64,
    /// As agreed.
    pub terms: Terms,
    pub mailbox: u64,
    pub token: Token,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it does not speak this protocol, or not this version of it")]
    Foreign,
    #[error("it does not know the cookie")]
    Cookie,
    #[error("it is incarnation {0}")]
    Other(i64),
    #[error("it asked for incarnation {0}")]
    Stale(i64),
    #[error("its certificate is not that of the node it says it is")]
    Certificate,
    #[error("the incarnation it says it is belongs to another node")]
    Name,
    #[error("it is not linked")]
    NotLinked,
    #[error("it dialled the wrong way")]
    Direction,
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
    let nonces = exchange(read, write, true).await?;
    send(write, &nonces.mac(&mine.cookie, b"dials").finalize().into_bytes()).await?;
    check(read, nonces.mac(&mine.cookie, b"answers")).await?;
    put(write, &mine.hello(expected)).await?;
    let theirs: Hello = get(read).await?;
    if theirs.me.incarnation != expected {
        return Err(Refusal::Other(theirs.me.incarnation));
    }
    if read.read_u8().await? != CONFIRMED {
        return Err(Refusal::NotLinked);
    }
    send(write, &[CONFIRMED]).await?;
    Ok(mine.met(&theirs, &nonces))
}

/// `certified` says whether the other side has shown that it is the node of that name; without TLS anybody has.
/// `expects` is the name of the node that the incarnation belongs to, if a link to it is wanted.
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
    let nonces = exchange(read, write, false).await?;
    check(read, nonces.mac(&mine.cookie, b"dials")).await?;
    send(write, &nonces.mac(&mine.cookie, b"answers").finalize().into_bytes()).await?;
    let theirs: Hello = get(read).await?;
    let peer = theirs.me.incarnation;
    if !certified(&theirs.me.name) {
        return Err(Refusal::Certificate);
    }
    // Said before anything else is judged: the dialling side learns whom it met.
    put(write, &mine.hello(peer)).await?;
    if theirs.you != mine.me.incarnation {
        return Err(Refusal::Stale(theirs.you));
    }
    if peer >= mine.me.incarnation {
        return Err(Refusal::Direction);
    }
    match expects(peer).await {
        None => return Err(Refusal::NotLinked),
        // A node with a certificate of its own is not any other node by naming its incarnation.
        Some(name) if name != theirs.me.name => return Err(Refusal::Name),
        Some(_) => {}
    }
    send(write, &[CONFIRMED]).await?;
    if read.read_u8().await? != CONFIRMED {
        return Err(Refusal::Foreign);
    }
    Ok(mine.met(&theirs, &nonces))
}

impl Identity {
    fn hello(&self, you: i64) -> Hello {
        Hello { me: self.me.clone(), you, terms: self.terms, mailbox: self.mailbox }
    }

    fn met(&self, theirs: &Hello, nonces: &Nonces) -> Met {
        let whole = nonces.mac(&self.cookie, b"link").finalize().into_bytes();
        let mut token = Token::default();
        token.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
        Met {
            peer: theirs.me.incarnation,
            terms: self.terms.agreed(theirs.terms),
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
    fn mac(&self, cookie: &str, purpose: &[u8]) -> Hmac<Sha256> {
        let mac = Hmac::<Sha256>::new_from_slice(cookie.as_bytes()).expect("any length will do");
        mac.chain_update(MAGIC)
            .chain_update(purpose)
            .chain_update(self.dialling)
            .chain_update(self.answering)
    }
}

async fn exchange<R, W>(read: &mut R, write: &mut W, dials: bool) -> Result<Nonces, Refusal>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mine: [u8; NONCE] = rand::random();
    let mut opening = [0; MAGIC.len() + NONCE];
    opening[..MAGIC.len()].copy_from_slice(MAGIC);
    opening[MAGIC.len()..].copy_from_slice(&mine);
    send(write, &opening).await?;
    let mut magic = [0; MAGIC.len()];
    read.read_exact(&mut magic).await?;
    if magic != *MAGIC {
        return Err(Refusal::Foreign);
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

async fn put<W: AsyncWrite + Unpin>(write: &mut W, value: &impl Serialize) -> io::Result<()> {
    let body = codec::encode(value);
    let length = u16::try_from(body.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(body);
    send(write, &bytes).await
}

/// Flushed, because inside TLS what was written may stay behind otherwise, and the other side waits for it.
async fn send<W: AsyncWrite + Unpin>(write: &mut W, bytes: &[u8]) -> io::Result<()> {
    write.write_all(bytes).await?;
    write.flush().await
}

async fn get<T: DeserializeOwned>(read: &mut (impl AsyncRead + Unpin)) -> Result<T, Refusal> {
    let length = usize::from(read.read_u16().await?);
    if length > MAX_HELLO {
        return Err(Refusal::Foreign);
    }
    let mut body = vec![0; length];
    read.read_exact(&mut body).await?;
    codec::decode(&body).ok_or(Refusal::Foreign)
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex, split};

    use super::*;
    use crate::cluster::transport::Limits;

    fn node(incarnation: i64, cookie: &str) -> Identity {
        let me = Peer { incarnation, name: "n".into(), address: "a:1".into() };
        Identity {
            me,
            cookie: cookie.into(),
            terms: Terms::of(&Limits::default()),
            mailbox: incarnation as u64,
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
        assert!(a.is_err());
    }

    #[tokio::test]
    async fn who_answers_without_the_cookie_is_refused() {
        let (left, right) = duplex(4_096);
        let impostor = async move {
            // Takes any proof, and gives back what it was given.
            let (mut read, mut write) = split(right);
            exchange(&mut read, &mut write, false).await.unwrap();
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
    async fn another_version_is_refused() {
        let (left, mut right) = duplex(4_096);
        let mut opening = [0; MAGIC.len() + NONCE];
        opening[..MAGIC.len()].copy_from_slice(b"proxie\0\x02");
        right.write_all(&opening).await.unwrap();
        let met = dialled(left, &node(1, "c"), 2).await;
        assert!(matches!(met, Err(Refusal::Foreign)));
    }
}
