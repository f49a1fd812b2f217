//! The table of links by peer. Every change is reported here under the table's lock, and so in order for each peer.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::cluster::transport::link::Link;
use crate::cluster::transport::news::News;
use crate::cluster::transport::{DownCause, Envelope, Inbox, LinkEvent, SendError};

/// The peers to keep a link to.
type Table = HashMap<i64, Place>;

struct Place {
    /// The node that the incarnation belongs to.
    name: String,
    live: Option<Arc<Link>>,
}

pub(super) struct Links {
    table: RwLock<Table>,
    /// Ticks when a peer is added.
    added: watch::Sender<()>,
    news: Arc<News>,
    pub inbox: Arc<dyn Inbox>,
}

impl Links {
    pub fn new(news: Arc<News>, inbox: Arc<dyn Inbox>) -> Self {
        Self { table: RwLock::default(), added: watch::Sender::new(()), news, inbox }
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a peer. `false`: the peer is known already.
    pub fn add(&self, peer: i64, name: &str) -> bool {
        let mut table = self.write();
        if table.contains_key(&peer) {
            return false;
        }
        table.insert(peer, Place { name: name.to_owned(), live: None });
        drop(table);
        self.added.send_replace(());
        true
    }

    pub fn remove(&self, peer: i64) {
        let mut table = self.write();
        if let Some(Place { live: Some(link), .. }) = table.remove(&peer) {
            self.news.tell(LinkEvent::Down { peer, cause: DownCause::Forgotten });
            drop(table);
            link.close();
        }
    }

    /// The peer's name, once it is known. It waits a little, because two nodes do not learn of each other at the same
    /// moment.
    pub async fn expects(&self, peer: i64, patience: Duration) -> Option<String> {
        let mut added = self.added.subscribe();
        let known = async {
            loop {
                let name = self.read().get(&peer).map(|place| place.name.clone());
                if name.is_some() || added.changed().await.is_err() {
                    return name;
                }
            }
        };
        timeout(patience, known).await.ok().flatten()
    }

    /// Makes this the peer's link. An existing link must be half open, or the peer would not have made another one.
    /// `false`: the peer was forgotten.
    pub fn attach(&self, link: &Arc<Link>) -> bool {
        let peer = link.peer;
        let mut table = self.write();
        let Some(place) = table.get_mut(&peer) else { return false };
        let old = place.live.replace(link.clone());
        if old.is_some() {
            self.news.tell(LinkEvent::Down { peer, cause: DownCause::Reset });
        }
        self.news.tell(LinkEvent::Up { peer });
        drop(table);
        if let Some(old) = old {
            old.close();
        }
        true
    }

    /// Removes a link that has ended. Nothing happens if the peer has another link now.
    pub fn detach(&self, link: &Arc<Link>, cause: DownCause) {
        let peer = link.peer;
        let mut table = self.write();
        if let Some(place) = table.get_mut(&peer)
            && place.live.as_ref().is_some_and(|current| Arc::ptr_eq(current, link))
        {
            place.live = None;
            self.news.tell(LinkEvent::Down { peer, cause });
        }
        drop(table);
        link.close();
    }

    pub fn refused(&self, peer: i64) {
        let table = self.write();
        if table.get(&peer).is_some_and(|place| place.live.is_none()) {
            self.news.tell(LinkEvent::Refused { peer });
        }
    }

    pub fn live(&self, peer: i64) -> Option<Arc<Link>> {
        self.read().get(&peer)?.live.clone()
    }

    pub fn send(&self, peer: i64, envelope: Envelope) -> Result<(), SendError> {
        match self.read().get(&peer) {
            Some(Place { live: Some(link), .. }) => link.send(envelope),
            _ => Err(SendError::Unreachable),
        }
    }
}
