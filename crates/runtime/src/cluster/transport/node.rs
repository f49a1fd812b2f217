//! The node's connections: it listens, dials and redials. After the handshake a [`Carrier`] uses the connection.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::Rng;
use tokio::io::{AsyncRead, AsyncWrite, split};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use crate::cluster::transport::frame::Terms;
use crate::cluster::transport::handshake::{self, Identity, Met, Refusal};
use crate::cluster::transport::links::Links;
use crate::cluster::transport::news::News;
use crate::cluster::transport::tls::Tls;
use crate::cluster::transport::wire::Versions;
use crate::cluster::transport::{
    Envelope, Inbox, Options, Peer, SendError, StartedTransport, Transport, TransportLimits,
};

/// The time that an unknown peer's connection waits for the peer to become known.
const NOT_LINKED_YET: Duration = Duration::from_secs(1);
/// The largest frame that the codec takes, as a frame is decoded whole.
const MAX_FRAME_BYTES: usize = 8 << 20;

/// A way to move the frames of a link over a connection.
pub(super) trait Carrier: Send + Sync + 'static {
    /// The address that peers put on frames for this node; 0: they need none.
    fn mailbox(&self) -> u64 {
        0
    }

    /// Attaches a link for the peer, and detaches it when it ends. Dropping the future ends the link at once.
    fn carry(&self, connection: Connection, links: &Arc<Links>) -> impl Future<Output = ()> + Send;
}

pub(super) type Read = Box<dyn AsyncRead + Send + Unpin>;
pub(super) type Write = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection to a peer that has proved who it is.
pub(super) struct Connection {
    pub read: Read,
    pub write: Write,
    pub met: Met,
    pub dialled: bool,
}

/// A task that ends when its handle is dropped.
pub(super) struct Task(JoinHandle<()>);

impl Task {
    pub fn spawn(runtime: &Handle, work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(runtime.spawn(work))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The time for which a complaint about a peer is not repeated, and the number of complaints remembered.
const QUIET: Duration = Duration::from_secs(60);
const MAX_COMPLAINTS: usize = 256;

/// The latest complaints about refused connections: redials would repeat them every two seconds.
#[derive(Default)]
struct Complaints(Mutex<HashMap<String, Instant>>);

impl Complaints {
    /// Whether the complaint is new.
    fn are_news(&self, who: &str, refusal: &Refusal) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if said.len() >= MAX_COMPLAINTS {
            said.retain(|_, at| now - *at < QUIET);
        }
        let complaint = format!("{who}: {refusal}");
        if said.len() >= MAX_COMPLAINTS || said.get(&complaint).is_some_and(|at| now - *at < QUIET)
        {
            return false;
        }
        said.insert(complaint, now);
        true
    }
}

struct Node<C> {
    identity: Identity,
    complaints: Complaints,
    tls: Option<Tls>,
    /// The address that it listens on.
    from: IpAddr,
    limits: TransportLimits,
    links: Arc<Links>,
    carrier: C,
}

/// The transport that callers hold; all its tasks end with it.
struct Running<C> {
    node: Arc<Node<C>>,
    runtime: Handle,
    /// The task that keeps the link to each peer.
    keepers: Mutex<HashMap<i64, Task>>,
    _listener: Task,
    _forwarder: Task,
}

pub(super) async fn start<C: Carrier>(
    options: Options,
    inbox: Arc<dyn Inbox>,
    carrier: C,
) -> io::Result<StartedTransport> {
    let limits = options.limits;
    check(&limits)?;
    if let Some(tls) = &options.tls {
        tls.check_name(&options.name)?;
    }
    let listens = options.listener.local_addr()?;
    let address = listens.to_string();
    let (news, events) = News::new();
    let me =
        Peer { incarnation: options.incarnation, name: options.name, address: address.clone() };
    let node = Arc::new(Node {
        identity: Identity {
            me,
            cookie: options.cookie,
            terms: Terms::of(&limits),
            mailbox: carrier.mailbox(),
            speaks: Versions::OURS,
        },
        complaints: Complaints::default(),
        tls: options.tls,
        from: listens.ip(),
        limits,
        links: Arc::new(Links::new(news.clone(), inbox)),
        carrier,
    });
    let runtime = Handle::current();
    let transport = Running {
        _listener: Task::spawn(&runtime, node.clone().listen(options.listener)),
        _forwarder: Task::spawn(&runtime, news.forward()),
        node,
        runtime,
        keepers: Mutex::default(),
    };
    Ok(StartedTransport { transport: Arc::new(transport), events, address })
}

fn check(limits: &TransportLimits) -> io::Result<()> {
    let wrong = if limits.max_envelope_bytes > limits.window_bytes / 8 {
        "window_bytes is less than eight of the largest envelopes"
    } else if limits.max_frame_bytes.max(limits.max_envelope_bytes) > MAX_FRAME_BYTES {
        "a frame may have 8 MiB at most"
    } else if limits.max_frame_envelopes == 0 || limits.max_handshakes == 0 {
        "a limit is zero"
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, wrong))
}

impl<C: Carrier> Transport for Running<C> {
    fn link(&self, peer: Peer) {
        let incarnation = peer.incarnation;
        if incarnation == self.node.identity.me.incarnation {
            return;
        }
        let mut keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        if self.node.links.add(incarnation, &peer.name) {
            let keeper = Task::spawn(&self.runtime, self.node.clone().keep(peer));
            keepers.insert(incarnation, keeper);
        }
    }

    fn forget(&self, incarnation: i64) {
        let mut keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        self.node.links.remove(incarnation);
        keepers.remove(&incarnation);
    }

    fn send(&self, incarnation: i64, envelope: Envelope) -> Result<(), SendError> {
        self.node.links.send(incarnation, envelope)
    }

    fn is_up(&self, incarnation: i64) -> bool {
        self.node.links.live(incarnation).is_some()
    }
}

impl<C: Carrier> Node<C> {
    fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.limits.handshake_timeout_ms)
    }

    async fn listen(self: Arc<Self>, listener: TcpListener) {
        let handshakes = Arc::new(Semaphore::new(self.limits.max_handshakes));
        // The set is dropped with this task, and ends its own tasks.
        let mut connections = JoinSet::new();
        loop {
            let permit = handshakes.clone().acquire_owned().await;
            let accepted = loop {
                tokio::select! {
                    accepted = listener.accept() => break accepted,
                    Some(_) = connections.join_next() => {}
                }
            };
            match accepted {
                Ok((stream, from)) => {
                    let node = self.clone();
                    connections.spawn(async move {
                        match node.greet(stream).await {
                            Ok(connection) => {
                                drop(permit);
                                node.carrier.carry(connection, &node.links).await;
                            }
                            Err(refusal) => node.refused(from, &refusal),
                        }
                    });
                }
                Err(error) => {
                    // Most likely the process is out of file descriptors: that passes, and an immediate retry does not
                    // help.
                    warn!(%error, "no connection of another node can be accepted");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Logs what is wrong with a connection to this node, if a person has to correct it.
    fn refused(&self, from: SocketAddr, refusal: &Refusal) {
        let who = from.ip().to_string();
        if refusal.is_misconfiguration() && self.complaints.are_news(&who, refusal) {
            warn!(%from, "a link from another node was refused: {refusal}");
        } else {
            debug!(%from, %refusal, "a connection was refused");
        }
    }

    /// Logs what is wrong with a connection that this node made, if a person has to correct it.
    fn not_linked(&self, peer: &Peer, refusal: &Refusal) {
        if refusal.is_misconfiguration() && self.complaints.are_news(&peer.address, refusal) {
            warn!(node = peer.name, address = peer.address, "no link to another node: {refusal}");
        } else {
            debug!(peer.incarnation, %refusal, "no link to a node");
        }
    }

    /// The handshake of the listening side, after that of TLS; one time limit covers both.
    async fn greet(&self, stream: TcpStream) -> Result<Connection, Refusal> {
        stream.set_nodelay(true)?;
        let greeting = async {
            let (mut read, mut write, shown): (Read, Write, _) = match &self.tls {
                None => {
                    let (read, write) = stream.into_split();
                    (Box::new(read), Box::new(write), None)
                }
                Some(tls) => {
                    let (stream, shown) = tls.accept(stream).await.map_err(tls_failed)?;
                    let (read, write) = split(stream);
                    (Box::new(read), Box::new(write), Some(shown))
                }
            };
            let certified = |name: &str| shown.as_ref().is_none_or(|shown| shown.is_of(name));
            let expects = |peer| self.links.expects(peer, NOT_LINKED_YET);
            let ends = (&mut read, &mut write);
            let met = handshake::answer(ends, &self.identity, certified, expects).await?;
            Ok(Connection { read, write, met, dialled: false })
        };
        timeout(self.handshake_timeout(), greeting).await.map_err(late)?
    }

    /// The handshake of the dialling side, after that of TLS; one time limit covers both.
    async fn call(&self, stream: TcpStream, peer: &Peer) -> Result<Connection, Refusal> {
        stream.set_nodelay(true)?;
        let calling = async {
            let (mut read, mut write): (Read, Write) = match &self.tls {
                None => {
                    let (read, write) = stream.into_split();
                    (Box::new(read), Box::new(write))
                }
                Some(tls) => {
                    let connecting = tls.connect(stream, &peer.name).await;
                    let (read, write) = split(connecting.map_err(tls_failed)?);
                    (Box::new(read), Box::new(write))
                }
            };
            let ends = (&mut read, &mut write);
            let met = handshake::dial(ends, &self.identity, peer.incarnation).await;
            // In TLS 1.3 the dialling side's certificate is judged after that side has gone on, so the first answer may
            // be the alert.
            let met = met.map_err(|refusal| match refusal {
                Refusal::Io(error) if self.tls.is_some() => tls_failed(error),
                Refusal::Unheard if self.tls.is_some() => {
                    Refusal::Tls(io::Error::other("it hung up on this node's certificate"))
                }
                refusal => refusal,
            })?;
            Ok(Connection { read, write, met, dialled: true })
        };
        timeout(self.handshake_timeout(), calling).await.map_err(late)?
    }

    /// Keeps the link to one peer until the peer is forgotten.
    async fn keep(self: Arc<Self>, peer: Peer) {
        let me = self.identity.me.incarnation;
        if me < peer.incarnation { self.dial(peer).await } else { self.watch(peer).await }
    }

    async fn dial(&self, peer: Peer) {
        let mut backoff = Backoff::new(&self.limits);
        let mut unheard = 0;
        loop {
            match self.connect(&peer).await {
                Ok(stream) => match self.call(stream, &peer).await {
                    Ok(connection) => {
                        let began = Instant::now();
                        self.carrier.carry(connection, &self.links).await;
                        // The backoff goes on after a link that broke at once.
                        if began.elapsed() > backoff.max {
                            backoff = Backoff::new(&self.limits);
                        }
                    }
                    Err(refusal) => {
                        if let Refusal::Other(_) = refusal {
                            self.links.refused(peer.incarnation);
                        }
                        let is_unheard = matches!(refusal, Refusal::Unheard);
                        unheard = if is_unheard { unheard + 1 } else { 0 };
                        // A process that is just ending hangs up as well, but only once.
                        if !is_unheard || unheard > 2 {
                            self.not_linked(&peer, &refusal);
                        }
                    }
                },
                Err(error) => debug!(peer.incarnation, %error, "no connection to a node"),
            }
            sleep(backoff.next()).await;
        }
    }

    /// Waits to be dialled. While there is no link, it tests whether a process listens at the peer's address, so that
    /// this side also notices that the process is gone.
    async fn watch(&self, peer: Peer) {
        let mut backoff = Backoff::new(&self.limits);
        loop {
            while let Some(link) = self.links.live(peer.incarnation) {
                link.closed().await;
                backoff = Backoff::new(&self.limits);
            }
            sleep(backoff.next()).await;
            if self.links.live(peer.incarnation).is_none() {
                drop(self.connect(&peer).await);
            }
        }
    }

    async fn connect(&self, peer: &Peer) -> io::Result<TcpStream> {
        let connecting = timeout(self.handshake_timeout(), connect(&peer.address, self.from));
        let connected = connecting.await.map_err(late)?;
        if connected.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
            self.links.refused(peer.incarnation);
        }
        connected
    }
}

/// Dials from the interface that this node listens on, if possible: other nodes may know it by no other address.
async fn connect(address: &str, from: IpAddr) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::NotFound.into();
    for there in lookup_host(address).await? {
        let socket = if there.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        let fits = from.is_ipv4() == there.is_ipv4()
            && !from.is_unspecified()
            && from.is_loopback() == there.ip().is_loopback();
        if fits {
            socket.bind((from, 0).into())?;
        }
        match socket.connect(there).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The refusal for an error under TLS: rustls reports its own errors as invalid data; the rest are network errors.
fn tls_failed(error: io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::InvalidData => Refusal::Tls(error),
        _ => Refusal::Io(error),
    }
}

fn late(_: tokio::time::error::Elapsed) -> io::Error {
    io::ErrorKind::TimedOut.into()
}

struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    fn new(limits: &TransportLimits) -> Self {
        Self {
            next: Duration::from_millis(limits.redial_min_ms),
            max: Duration::from_millis(limits.redial_max_ms),
        }
    }

    /// The pause before the next dial. It doubles and is spread at random: nodes that lost the same peer do not all
    /// dial it at the same moment.
    fn next(&mut self) -> Duration {
        let base = self.next.min(self.max);
        self.next = base * 2;
        base.mul_f64(rand::rng().random_range(0.5..1.0))
    }
}
