//! The pipe between nodes. It carries [`Envelope`]s to a peer's inbox in the order they were sent, or says at once that
//! it cannot; it knows nothing of slots, leases or entities.
//!
//! A peer is one *incarnation* of one node: a node that starts again is another peer. Links are dialled by the node
//! with the lower incarnation, redialled with backoff until they are forgotten, and carry both directions. Nothing is
//! promised about what was on its way when a link ended: a timeout or a lost link means "unknown outcome", and the
//! command's id makes the retry safe.
//!
//! Everything is bounded: a peer that does not read has a window of [`TransportLimits::window_bytes`] outstanding, then
//! [`SendError::Overloaded`]; an envelope above [`TransportLimits::max_envelope_bytes`] is refused before it is sent. Asks leave
//! room in the window for control messages, and both leave room for answers.
//!
//! What both implementations share is in `wire` (what travels, in each version), `frame` (what it weighs), `link` (one link: queue, window, credits), `links`
//! (which peer has which link), `handshake` and `node` (listen, dial, redial), and [`tls`], which a connection may be
//! wrapped in. [`framed`] writes frames to the connection; [`clustered`] hands the connection to ractor_cluster.

pub mod clustered;
mod frame;
pub mod framed;
mod handshake;
mod link;
mod links;
mod news;
mod node;
#[cfg(test)]
mod tests;
pub mod tls;
mod wire;

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::mpsc::Receiver;

use crate::cluster::transport::tls::Tls;
use crate::kernel::entity::Caller;
use crate::kernel::error::AskError;
use crate::kernel::secret::Secret;

/// One incarnation of one node, and where it listens for other nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub incarnation: i64,
    pub name: String,
    /// `host:port` of the cluster listener.
    pub address: String,
}

/// What travels, as [`wire`] writes it. Bodies are JSON, as in the journal and the outbox: what a kind can read does not
/// depend on its layout.
#[derive(Clone, Debug, PartialEq)]
pub enum Envelope {
    /// Must be answered, by [`Envelope::Answer`] with the same number, as long as the link lives.
    Ask {
        correlation: u64,
        ask: RemoteAsk,
    },
    Answer {
        correlation: u64,
        answer: RemoteAnswer,
    },
    /// Everything that is not between an asker and an entity: kinds of it are told apart by the first byte, and one that
    /// a node does not know is nothing to it.
    Control(Vec<u8>),
}

/// A command for an entity that lives on the receiving node.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteAsk {
    pub kind: String,
    pub key: String,
    /// The `Command` as JSON.
    pub command: String,
    pub caller: Caller,
    pub command_id: Option<String>,
    /// What is left of the deadline when it is sent; no clock is compared.
    pub remaining_ms: u32,
    /// The epoch of the slot as the asker knows it.
    pub epoch: i64,
    pub traceparent: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RemoteAnswer {
    /// `Result<Reply, Rejection>` as JSON.
    Outcome(String),
    Failed(AskError),
    /// The slot is somebody else's, as far as the answering node knows.
    NotOwner {
        owner: Option<i64>,
        epoch: i64,
    },
}

/// How this node takes part.
pub struct Options {
    pub incarnation: i64,
    pub name: String,
    /// See [`bind`]. Made by the caller, who learns that the port is taken before anybody learns of the node.
    pub listener: TcpListener,
    /// Whoever knows it is a node of this cluster.
    pub cookie: Secret<String>,
    /// With it every link is inside TLS, and a node is also who its certificate says. All nodes have it, or none does.
    pub tls: Option<Tls>,
    pub limits: TransportLimits,
}

/// Listens on `host:port`, and nowhere else. Port 0 takes a free one.
///
/// # Errors
/// An address that cannot be listened on; the error names it.
pub async fn bind(listen: &str) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(listen).await;
    bound.map_err(|error| io::Error::new(error.kind(), format!("{listen}: {error}")))
}

/// Both sides of a link keep to the smaller limits of the two.
#[derive(Clone, Debug)]
pub struct TransportLimits {
    /// Bytes on the way to one peer that it has not yet taken from its inbox.
    pub window_bytes: usize,
    pub max_envelope_bytes: usize,
    /// A frame is written as soon as something waits, with at most this much in it.
    pub max_frame_bytes: usize,
    pub max_frame_envelopes: usize,
    pub handshake_timeout_ms: u64,
    /// Connections that may be in their handshake at the same time.
    pub max_handshakes: usize,
    pub redial_min_ms: u64,
    pub redial_max_ms: u64,
}

impl Default for TransportLimits {
    fn default() -> Self {
        Self {
            window_bytes: 16 << 20,
            max_envelope_bytes: 1 << 20,
            max_frame_bytes: 256 << 10,
            max_frame_envelopes: 256,
            handshake_timeout_ms: 5_000,
            max_handshakes: 64,
            redial_min_ms: 50,
            redial_max_ms: 2_000,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("there is no link to the node")]
    Unreachable,
    #[error("the node does not take what is sent to it")]
    Overloaded,
    #[error("the message is larger than may travel between nodes")]
    TooLarge,
}

/// What became of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// Both directions work, and both sides have proved who they are.
    Up {
        peer: i64,
    },
    Down {
        peer: i64,
        cause: DownCause,
    },
    /// A dial was refused: nobody listens there, or another incarnation does. Strong evidence that the process is gone, no proof.
    Refused {
        peer: i64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownCause {
    /// The connection was reset or closed by the other side: its process ended, or it closed the link.
    Reset,
    /// It broke a rule: a frame too large, an undecodable one, more than its window.
    Protocol,
    /// This side asked for it.
    Forgotten,
}

/// Takes what arrives. Called in order for each peer; it must neither block nor panic. What it is handed counts against
/// the sender's window until the returned [`Credit`] is dropped.
pub trait Inbox: Send + Sync + 'static {
    fn receive(&self, from: i64, envelope: Envelope, credit: Credit);
}

/// Gives the sender its window back when dropped.
pub struct Credit {
    give_back: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Credit {
    pub fn new(give_back: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { give_back: Some(Box::new(give_back)) }
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        if let Some(give_back) = self.give_back.take() {
            give_back();
        }
    }
}

/// The links of this node.
pub trait Transport: Send + Sync + 'static {
    /// Keeps a link to the peer from now on: dials it, or waits to be dialled. Doing so again changes nothing.
    fn link(&self, peer: Peer);

    /// Ends the link, and takes no more from the peer: its incarnation is dead.
    fn forget(&self, incarnation: i64);

    /// Never waits. `Ok` says that it is queued for a live link, no more.
    fn send(&self, incarnation: i64, envelope: Envelope) -> Result<(), SendError>;

    fn is_up(&self, incarnation: i64) -> bool;
}

/// A started transport and the news of its links. The channel is bounded; the newest news of each peer is never lost.
pub struct StartedTransport {
    pub transport: Arc<dyn Transport>,
    pub events: Receiver<LinkEvent>,
    /// Where it listens, after port 0 was resolved.
    pub address: String,
}
