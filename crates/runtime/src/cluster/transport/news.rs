//! The news of links, through a bounded channel: if nobody takes them, the older ones of a peer make way.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::cluster::transport::LinkEvent;

const CHANNEL: usize = 256;

pub(super) struct News {
    channel: Sender<LinkEvent>,
    late: Mutex<Late>,
    wake: Notify,
}

/// What did not fit into the channel: one a peer.
#[derive(Default)]
struct Late {
    order: VecDeque<i64>,
    newest: HashMap<i64, LinkEvent>,
}

fn peer(event: &LinkEvent) -> i64 {
    match event {
        LinkEvent::Up { peer } | LinkEvent::Down { peer, .. } | LinkEvent::Refused { peer } => {
            *peer
        }
    }
}

impl News {
    pub fn new() -> (Arc<Self>, Receiver<LinkEvent>) {
        let (channel, events) = mpsc::channel(CHANNEL);
        (Arc::new(Self { channel, late: Mutex::default(), wake: Notify::new() }), events)
    }

    /// Never waits.
    pub fn tell(&self, event: LinkEvent) {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        let event = if late.order.is_empty() {
            match self.channel.try_send(event) {
                Err(TrySendError::Full(event)) => event,
                Ok(()) | Err(TrySendError::Closed(_)) => return,
            }
        } else {
            event
        };
        let peer = peer(&event);
        if late.newest.insert(peer, event).is_none() {
            late.order.push_back(peer);
        }
        self.wake.notify_one();
    }

    /// Puts what was late into the channel as room appears.
    pub async fn forward(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            while !self.late.lock().unwrap_or_else(PoisonError::into_inner).order.is_empty() {
                let Ok(room) = self.channel.reserve().await else { return };
                let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(peer) = late.order.pop_front()
                    && let Some(event) = late.newest.remove(&peer)
                {
                    room.send(event);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_of_each_peer_survives_a_full_channel() {
        let (news, mut events) = News::new();
        let forwarding = tokio::spawn(news.clone().forward());
        for round in 0..1_000 {
            for peer in 0..4 {
                news.tell(if round % 2 == 0 {
                    LinkEvent::Refused { peer }
                } else {
                    LinkEvent::Up { peer }
                });
            }
        }
        news.tell(LinkEvent::Refused { peer: 2 });
        drop(news);
        let mut last = HashMap::new();
        let mut count = 0;
        while last.get(&2) != Some(&LinkEvent::Refused { peer: 2 }) || count < CHANNEL + 4 {
            let event = events.recv().await.expect("more news");
            last.insert(peer(&event), event);
            count += 1;
        }
        for peer in [0, 1, 3] {
            assert_eq!(last[&peer], LinkEvent::Up { peer });
        }
        assert!(count <= CHANNEL + 4);
        forwarding.abort();
    }
}
