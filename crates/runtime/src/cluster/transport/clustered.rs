//! The transport over ractor_cluster: frames are cast to one remotable actor a node.
//!
//! ractor_cluster has no deadline for a handshake, no redial, an unbounded writer, and cannot say who sent a message.
//! So the listener, the handshake and the redial are those of [`node`], and a connection is handed over after its
//! handshake. What it casts ends with the token of that handshake, which tells the mailbox whose it is; the window
//! bounds what can wait in its writer. Its own cookie check and election of sessions run all the same.

mod session;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use hmac::{Hmac, Mac};
use ractor::message::{BoxedDowncastErr, SerializedMessage};
use ractor::{Actor, ActorProcessingErr, ActorRef, Message};
use ractor_cluster::node::NodeConnectionMode;
use ractor_cluster::{IncomingEncryptionMode, NodeServer, NodeServerMessage};
use sha2::Sha256;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::cluster::transport::clustered::session::{Handed, Sessions, hex};
use crate::cluster::transport::frame::Terms;
use crate::cluster::transport::handshake::Token;
use crate::cluster::transport::link::Link;
use crate::cluster::transport::links::Links;
use crate::cluster::transport::node::{self, Carrier, Connection};
use crate::cluster::transport::{DownCause, Inbox, Options, StartedTransport};

const TOKEN: usize = size_of::<Token>();
/// The bytes that ractor_cluster adds to a cast.
const CAST_OVERHEAD: u64 = 256;

/// # Errors
/// The limits cannot be kept, or the certificate is not this node's.
pub async fn start(options: Options, inbox: Arc<dyn Inbox>) -> io::Result<StartedTransport> {
    let carrier = Clustered::start(&options).await.map_err(io::Error::other)?;
    node::start(options, inbox, carrier).await
}

struct Clustered {
    server: ActorRef<NodeServerMessage>,
    mailbox: ActorRef<Parcel>,
    routes: Arc<Routes>,
    sessions: Sessions,
    deadline: Duration,
}

type Routes = DashMap<Token, Arc<Route>>;

/// The inbox of the parcels with each token.
struct Route {
    link: Arc<Link>,
    links: Arc<Links>,
    /// Both sides have said that they can reach each other, so the link is up.
    stage: Mutex<Stage>,
    up: Notify,
}

#[derive(Default)]
struct Stage {
    reaches: bool,
    reached: bool,
}

impl Route {
    fn advance(&self, step: impl FnOnce(&mut Stage)) {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        let before = stage.reaches && stage.reached;
        step(&mut stage);
        if before || !(stage.reaches && stage.reached) {
            return;
        }
        if self.links.attach(&self.link) {
            self.up.notify_one();
        } else {
            self.link.close();
        }
    }
}

impl Clustered {
    async fn start(options: &Options) -> Result<Self, ractor::SpawnErr> {
        let routes = Arc::new(Routes::new());
        // The mailbox starts before the server, which tells each new peer of the remotable actors that exist.
        let (mailbox, _) = Actor::spawn(None, Mailbox(routes.clone()), ()).await?;
        // The name differs between boots and between transports, because sessions are elected by name.
        let name =
            format!("{}-{}-{:08x}", options.name, options.incarnation, rand::random::<u32>());
        let terms = Terms::of(&options.limits);
        let server = NodeServer::new(
            0,
            inner_cookie(options.cookie.reveal()),
            "proxie".into(),
            name,
            Some(IncomingEncryptionMode::Raw),
            Some(NodeConnectionMode::Isolated),
        )
        .with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST))
        .with_max_inbound_frame_size(terms.max_frame_length() as u64 + CAST_OVERHEAD);
        let (server, _) = Actor::spawn(None, server, ()).await?;
        // The server always listens. Its listener is its only child so far; it would be restarted if it were not unlinked
        // first.
        for listener in server.get_cell().get_children() {
            listener.unlink(server.get_cell());
            listener.kill();
        }
        let sessions = Sessions::of(&server);
        let deadline = Duration::from_millis(options.limits.handshake_timeout_ms);
        Ok(Self { server, mailbox, routes, sessions, deadline })
    }
}

impl Drop for Clustered {
    fn drop(&mut self) {
        self.server.stop(None);
        self.mailbox.stop(None);
    }
}

/// A cookie for ractor_cluster, derived from the real one, which it does not get: it hashes its cookie with a challenge
/// of only 32 bits.
fn inner_cookie(cookie: &str) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(cookie.as_bytes()).expect("any length will do");
    hex(&mac.chain_update(b"ractor_cluster").finalize().into_bytes())
}

impl Carrier for Clustered {
    /// The mailbox's address: its id plus one, because the id may be 0, which would mean that frames are not addressed.
    fn mailbox(&self) -> u64 {
        self.mailbox.get_id().pid() + 1
    }

    async fn carry(&self, connection: Connection, links: &Arc<Links>) {
        let Connection { read, write, met, dialled } = connection;
        // The existing link is half open, and its session would win the election over this one.
        if let Some(old) = links.live(met.peer) {
            links.detach(&old, DownCause::Reset);
        }
        let link = Link::new(met.peer, met.terms, met.version);
        let route = Arc::new(Route {
            link: link.clone(),
            links: links.clone(),
            stage: Mutex::default(),
            up: Notify::new(),
        });
        let _routed = Routed::add(&self.routes, met.token, route.clone());
        let opening = async {
            let claim = self.sessions.claim(met.peer, &met.token).await;
            let (stream, open) = Handed::new(read, write, &met.token);
            let stream = Box::new(stream);
            let is_server = !dialled;
            let handed = NodeServerMessage::ConnectionOpenedExternal { stream, is_server };
            self.server.cast(handed).ok()?;
            let target = claim.target(met.mailbox.wrapping_sub(1)).await?;
            Some((claim, open, target))
        };
        let Ok(Some((claim, mut open, target))) = timeout(self.deadline, opening).await else {
            return;
        };
        route.advance(|stage| stage.reaches = true);
        // A parcel with only a token.
        if target.cast(Parcel(met.token.to_vec())).is_ok() {
            let up = async {
                // A peer that never confirms gets no link.
                if timeout(self.deadline, route.up.notified()).await.is_ok() {
                    pump(&link, &target, met.token).await;
                }
            };
            tokio::select! {
                () = up => {}
                () = open.ended() => {}
                () = link.closed() => {}
            }
        }
        links.detach(&link, DownCause::Reset);
        claim.stop();
    }
}

async fn pump(link: &Link, target: &ActorRef<Parcel>, token: Token) {
    loop {
        let mut bytes = link.next_frame().await;
        bytes.extend(token);
        if target.cast(Parcel(bytes)).is_err() {
            return;
        }
    }
}

struct Routed<'a> {
    routes: &'a Routes,
    token: Token,
}

impl<'a> Routed<'a> {
    fn add(routes: &'a Routes, token: Token, route: Arc<Route>) -> Self {
        routes.insert(token, route);
        Self { routes, token }
    }
}

impl Drop for Routed<'_> {
    fn drop(&mut self) {
        self.routes.remove(&self.token);
    }
}

/// An encoded frame, and the token of its link.
struct Parcel(Vec<u8>);

impl Message for Parcel {
    fn serializable() -> bool {
        true
    }

    fn serialize(self) -> Result<SerializedMessage, BoxedDowncastErr> {
        Ok(SerializedMessage::Cast { variant: String::new(), args: self.0, metadata: None })
    }

    /// The decoder never fails, because an error would end the mailbox: a message that is not a parcel becomes one
    /// without a receiver.
    fn deserialize(message: SerializedMessage) -> Result<Self, BoxedDowncastErr> {
        match message {
            SerializedMessage::Cast { args, .. } => Ok(Self(args)),
            _ => Ok(Self(Vec::new())),
        }
    }
}

/// The actor that receives parcels, the only one of this node that others can reach.
struct Mailbox(Arc<Routes>);

impl Actor for Mailbox {
    type Msg = Parcel;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Parcel>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Parcel>,
        Parcel(bytes): Parcel,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let Some((frame, token)) = bytes.split_last_chunk::<TOKEN>() else { return Ok(()) };
        let Some(route) = self.0.get(token).map(|route| route.clone()) else { return Ok(()) };
        if frame.is_empty() {
            route.advance(|stage| stage.reached = true);
        } else if let Err(broken) = route.link.receive(frame, route.links.inbox.as_ref()) {
            tracing::warn!(peer = route.link.peer, rule = broken.0, "a node broke the protocol");
            route.links.detach(&route.link, DownCause::Protocol);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ractor::ActorStatus;

    use super::*;
    use crate::cluster::transport::{TransportLimits, bind};

    #[tokio::test]
    async fn its_actors_end_with_it() {
        let options = Options {
            incarnation: 1,
            name: "node-1".into(),
            listener: bind("127.0.0.1:0").await.unwrap(),
            cookie: "c".into(),
            tls: None,
            limits: TransportLimits::default(),
        };
        let carrier = Clustered::start(&options).await.unwrap();
        let (server, mailbox) = (carrier.server.get_cell(), carrier.mailbox.get_cell());
        assert!(server.get_children().is_empty(), "its own listener is gone");
        drop(carrier);
        let patience = Duration::from_secs(10);
        for actor in [server, mailbox] {
            actor.wait(Some(patience)).await.expect("it ends");
            assert_eq!(actor.get_status(), ActorStatus::Stopped);
        }
    }
}
