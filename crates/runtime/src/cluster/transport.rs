//! The pipe between nodes. It carries [`Envelope`]s to a peer's inbox in the order they were sent, or says at once that
//! it cannot; it knows nothing of slots, leases or entities.
//!
//! A peer is one *incarnation* of one node: a node that starts again is another peer. Links are dialled by the node
//! with the lower incarnation, redialled with backoff until they are forgotten, and carry both directions. Nothing is
//! promised about what was on its way when a link ended: a timeout or a lost link means "unknown outcome", and the
//! command's id makes the retry safe.
//!
//! Everything is bounded: a peer that does not read has a window of [`TransportLimits::window_bytes`] outstanding, then
//! [`SendError::Overloaded`]; an envelope above [`TransportLimits::max_envelope_bytes`] is refused before it is sent.
//! Asks leave room in the window for control messages, and both leave room for answers.
//!
//! Both implementations share `wire` (the messages, in each version), `frame` (their weight), `link` (one link: queue,
//! window, credits), `links` (the link of each peer), `handshake` and `node` (listen, dial, redial), and [`tls`], which
//! may wrap a connection. [`framed`] writes frames to the connection; [`clustered`] hands the connection to
//! ractor_cluster.

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

/// A message between nodes, as [`wire`] writes it. Bodies are JSON, as in the journal and the outbox, so a kind can read
/// them whatever its memory layout is.
#[derive(Clone, Debug, PartialEq)]
pub enum Envelope {
    /// A command or query. While the link lives, it is answered by an [`Envelope::Answer`] with the same number.
    Ask {
        correlation: u64,
        ask: RemoteAsk,
    },
    Answer {
        correlation: u64,
        answer: RemoteAnswer,
    },
    /// A message that is not between an asker and an entity. Its first byte names its kind; a node ignores kinds that it
    /// does not know.
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
    /// The time left until the deadline when the ask is sent, so that no clocks are compared.
    pub remaining_ms: u32,
    /// The slot's epoch, as the asker knows it.
    pub epoch: i64,
    pub traceparent: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RemoteAnswer {
    /// `Result<Reply, Rejection>` as JSON.
    Outcome(String),
    Failed(AskError),
    /// The slot belongs to another node, as far as the answering node knows.
    NotOwner {
        owner: Option<i64>,
        epoch: i64,
    },
}

/// This node's part in the transport.
pub struct Options {
    pub incarnation: i64,
    pub name: String,
    /// The listener (see [`bind`]). The caller makes it, and so learns that the port is taken before any node learns of
    /// this one.
    pub listener: TcpListener,
    /// The cluster's shared secret: a process that knows it is a node of this cluster.
    pub cookie: Secret<String>,
    /// The certificate. With it every link is inside TLS, and a node must also be the one that its certificate names.
    /// Either all nodes have one, or none.
    pub tls: Option<Tls>,
    pub limits: TransportLimits,
}

/// The listener on exactly `host:port`; port 0 takes a free port.
///
/// # Errors
/// The address cannot be listened on; the error names it.
pub async fn bind(listen: &str) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(listen).await;
    bound.map_err(|error| io::Error::new(error.kind(), format!("{listen}: {error}")))
}

/// The limits of a link; its two sides keep to the smaller ones.
#[derive(Clone, Debug)]
pub struct TransportLimits {
    /// The window: bytes sent to one peer that it has not yet taken from its inbox.
    pub window_bytes: usize,
    pub max_envelope_bytes: usize,
    /// The size of a frame. A frame is written as soon as an envelope waits.
    pub max_frame_bytes: usize,
    pub max_frame_envelopes: usize,
    pub handshake_timeout_ms: u64,
    /// Connections in their handshake at the same time.
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

/// News of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The link is up: both directions work, and both sides have proved who they are.
    Up {
        peer: i64,
    },
    Down {
        peer: i64,
        cause: DownCause,
    },
    /// A dial was refused: no process listens there, or another incarnation does. This is strong evidence, but no
    /// proof, that the process is gone.
    Refused {
        peer: i64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownCause {
    /// The other side reset or closed the connection: its process ended, or it closed the link.
    Reset,
    /// The peer broke a rule: its frame was too large or undecodable, or it sent more than its window.
    Protocol,
    /// This side ended the link.
    Forgotten,
}

/// The receiver of envelopes. It is called in order for each peer, and must neither block nor panic. An envelope counts
/// against the sender's window until the returned [`Credit`] is dropped.
pub trait Inbox: Send + Sync + 'static {
    fn receive(&self, from: i64, envelope: Envelope, credit: Credit);
}

/// A part of the sender's window, which is given back when this is dropped.
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
    /// Starts to keep a link to the peer: dials it, or waits to be dialled. A repetition changes nothing.
    fn link(&self, peer: Peer);

    /// Ends the link to a dead incarnation and takes nothing more from it.
    fn forget(&self, incarnation: i64);

    /// Sends an envelope without waiting. `Ok` means only that the envelope is queued for a live link.
    fn send(&self, incarnation: i64, envelope: Envelope) -> Result<(), SendError>;

    fn is_up(&self, incarnation: i64) -> bool;
}

/// A started transport and the news of its links. The channel is bounded, and never loses the newest news of a peer.
pub struct StartedTransport {
    pub transport: Arc<dyn Transport>,
    pub events: Receiver<LinkEvent>,
    /// The address that it listens on, with the port that 0 was resolved to.
    pub address: String,
}
