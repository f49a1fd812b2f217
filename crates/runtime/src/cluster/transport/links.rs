//! Which peers are linked, and by which link. Every change of it is told here, under its lock: in order for each peer.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::cluster::transport::link::Link;
use crate::cluster::transport::news::News;
use crate::cluster::transport::{DownCause, Envelope, Inbox, LinkEvent, SendError};

/// Peers to keep a link to.
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

    /// `false`: it is known already.
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

    /// The name of the peer, if it is linked or will be before long: two nodes do not learn of each other at the same
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

    /// Makes it the peer's link. One that was there is half open, or the peer would not have made another.
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

    /// The link has ended. Nothing happens where it is not the peer's link any more.
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
