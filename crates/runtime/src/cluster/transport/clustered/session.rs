//! Sessions of ractor_cluster: how a connection is handed over, the peer's mailbox is found, and a session is ended.

use std::collections::HashMap;
use std::fmt::Write;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use ractor::{ActorId, ActorRef, Message};
use ractor_cluster::node::NodeServerSessionInformation;
use ractor_cluster::{
    BoxRead, BoxWrite, ClusterBidiStream, NodeEventSubscription, NodeServerMessage,
    NodeSessionMessage,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{oneshot, watch};

use crate::cluster::transport::handshake::Token;

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The sessions by the label of their connection, which is all that the server's events say of one.
type Table = HashMap<String, Session>;

#[derive(Clone)]
struct Session {
    peer: i64,
    opened: bool,
    ready: Option<(ActorRef<NodeSessionMessage>, u64)>,
}

/// The sessions that this transport asked for and that the server has.
pub struct Sessions(watch::Sender<Table>);

impl Sessions {
    pub fn of(server: &ActorRef<NodeServerMessage>) -> Self {
        let sessions = watch::Sender::new(Table::new());
        let subscription = Box::new(Subscription(sessions.clone()));
        let id = String::from("proxie");
        let _ = server.cast(NodeServerMessage::SubscribeToEvents { id, subscription });
        Self(sessions)
    }

    /// Waits until the server has no other session with the peer: of two it elects the older one.
    pub async fn claim(&self, peer: i64, token: &Token) -> SessionClaim {
        let label = hex(token);
        let mut news = self.0.subscribe();
        loop {
            let claimed = self.0.send_if_modified(|table| {
                let free = table.values().all(|session| session.peer != peer);
                if free {
                    table.insert(label.clone(), Session { peer, opened: false, ready: None });
                }
                free
            });
            if claimed {
                return SessionClaim { sessions: self.0.clone(), label };
            }
            // `self` holds the sender, so it lives.
            let _ = news.changed().await;
        }
    }
}

/// An entry of the table. The server's event removes it, unless the session never began.
pub struct SessionClaim {
    sessions: watch::Sender<Table>,
    label: String,
}

impl SessionClaim {
    /// The peer's mailbox, once the session is ready. `None`: the session ended, or the peer has no such actor.
    pub async fn target<M: Message>(&self, mailbox: u64) -> Option<ActorRef<M>> {
        let mut news = self.sessions.subscribe();
        let settled = |table: &Table| table.get(&self.label).is_none_or(|s| s.ready.is_some());
        let table = news.wait_for(settled).await.ok()?;
        let (session, node_id) = table.get(&self.label)?.ready.clone()?;
        drop(table);
        let id = ActorId::Remote { node_id, pid: mailbox };
        let found = session.get_cell().get_children().into_iter().find(|a| a.get_id() == id);
        found.map(ActorRef::from)
    }

    /// Ends the session at once, even one that cannot write.
    pub fn stop(&self) {
        if let Some(session) = self.sessions.borrow().get(&self.label)
            && let Some((actor, _)) = &session.ready
        {
            actor.stop(None);
        }
    }
}

impl Drop for SessionClaim {
    fn drop(&mut self) {
        self.sessions.send_if_modified(|table| {
            let never = table.get(&self.label).is_some_and(|session| !session.opened);
            never && table.remove(&self.label).is_some()
        });
    }
}

struct Subscription(watch::Sender<Table>);

impl Subscription {
    fn update(&self, session: &NodeServerSessionInformation, change: impl FnOnce(&mut Session)) {
        self.0.send_if_modified(|table| table.get_mut(&session.peer_addr).map(change).is_some());
    }
}

impl NodeEventSubscription for Subscription {
    fn node_session_opened(&self, session: NodeServerSessionInformation) {
        self.update(&session, |known| known.opened = true);
    }

    fn node_session_authenticated(&self, _: NodeServerSessionInformation) {}

    fn node_session_ready(&self, session: NodeServerSessionInformation) {
        self.update(&session, |known| {
            known.ready = Some((session.actor.clone(), session.node_id));
        });
    }

    fn node_session_disconnected(&self, session: NodeServerSessionInformation) {
        self.0.send_if_modified(|table| table.remove(&session.peer_addr).is_some());
    }
}

/// A connection in the form that ractor_cluster takes.
pub struct Handed {
    read: BoxRead,
    write: BoxWrite,
    label: String,
}

/// The end of a session, in both directions: dropping it ends the session, and it reports when the session ends.
pub struct Open {
    _cut: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
}

impl Handed {
    pub fn new<R, W>(read: R, write: W, token: &Token) -> (Self, Open)
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let (cut, is_cut) = oneshot::channel();
        let (ends, ended) = oneshot::channel();
        let read = Watched { inner: read, cut: Some(is_cut), _ends: ends };
        let handed = Self { read: Box::new(read), write: Box::new(write), label: hex(token) };
        (handed, Open { _cut: cut, ended })
    }
}

impl Open {
    pub async fn ended(&mut self) {
        let _ = (&mut self.ended).await;
    }
}

impl ClusterBidiStream for Handed {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        (self.read, self.write)
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.label.clone())
    }
}

/// The reading half, until it is cut off. ractor_cluster drops it with the session.
struct Watched<R> {
    inner: R,
    /// The cut-off signal; `None` once it was received.
    cut: Option<oneshot::Receiver<()>>,
    _ends: oneshot::Sender<()>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Watched<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let is_cut = match &mut self.cut {
            Some(cut) => Pin::new(cut).poll(cx).is_ready(),
            None => true,
        };
        if is_cut {
            self.cut = None;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}
