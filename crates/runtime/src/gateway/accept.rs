//! Accepts TCP connections and serves HTTP on them: limits the number of connections, the rate at which they are
//! accepted, and the time that a client may take to send its first request.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Request, StatusCode, header};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::{Mutex, MutexGuard};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, sleep_until};
use tower::ServiceExt;

use crate::gateway::Network;
use crate::gateway::door::Door;

#[derive(Clone, Copy, Debug)]
pub struct AcceptLimits {
    /// Connections that are open at the same time.
    pub max_connections: usize,
    /// Connections of one address. Trusted proxies are exempt, since they carry many clients.
    pub max_connections_per_address: usize,
    /// Connections accepted per second. The rest wait in the kernel's queue.
    pub accepts_per_s: u32,
    /// Time limit for the headers of the first request.
    pub header_timeout: Duration,
}

impl Default for AcceptLimits {
    fn default() -> Self {
        Self {
            max_connections: 200_000,
            max_connections_per_address: 4_096,
            accepts_per_s: 5_000,
            header_timeout: Duration::from_secs(10),
        }
    }
}

/// The kernel's send buffer of a socket (it allocates twice this): enough for 1 MB/s over 200 ms. Data that the client
/// does not read waits in our queue, where it is counted, rather than in megabytes of kernel memory.
const SEND_BUFFER: usize = 128 * 1024;
/// `TCP_USER_TIMEOUT` in milliseconds: a client that acknowledges nothing for this long is gone, even if no task is
/// waiting for a write.
const UNTAKEN: u32 = 60_000;
/// Time between two requests, including the headers of the second: longer than load balancers keep an idle connection.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Pause after an error of this machine, such as too many open files.
const PAUSE: Duration = Duration::from_millis(200);

const GRAIN: Duration = Duration::from_millis(5);

/// Counts open connections, in total and by address.
#[derive(Clone, Default)]
pub struct Admission(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// An admitted connection. It counts as open until the last clone of this is dropped.
#[derive(Clone)]
pub struct Admitted {
    _counted: Arc<Counted>,
}

struct Counted {
    admission: Admission,
    address: Option<IpAddr>,
}

impl Admission {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock()
    }

    /// `address` is `None` for proxies. The error is the limit that was reached, as a metric label.
    fn admit(
        &self,
        address: Option<IpAddr>,
        limits: &AcceptLimits,
    ) -> Result<Admitted, &'static str> {
        let address = address.map(network_of);
        let mut open = self.open();
        if open.all >= limits.max_connections {
            return Err("all");
        }
        if let Some(address) = address {
            let count = open.by_address.entry(address).or_default();
            if *count >= limits.max_connections_per_address {
                return Err("address");
            }
            *count += 1;
        }
        open.all += 1;
        Ok(Admitted { _counted: Arc::new(Counted { admission: self.clone(), address }) })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.admission.open();
        open.all -= 1;
        if let Some(address) = self.address
            && let Some(count) = open.by_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&address);
            }
        }
    }
}

/// The network that an address is counted under: a client that has one IPv6 address has its whole /64.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

/// Length of the accept queue: when a node dies, all of its clients connect here at once.
const BACKLOG: u32 = 4_096;

/// Binds the first address that `address` stands for.
pub async fn listen(address: &str) -> std::io::Result<TcpListener> {
    let mut last = None;
    for address in tokio::net::lookup_host(address).await? {
        let bound = || {
            let socket =
                if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        };
        match bound() {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| std::io::ErrorKind::AddrNotAvailable.into()))
}

/// Serves until the door shuts, or the task is aborted; connections go on beyond that.
pub async fn serve(listener: TcpListener, door: Door, limits: AcceptLimits, proxies: Vec<Network>) {
    let mut shut = pin!(door.shut());
    let admission = Admission::default();
    let pace = Duration::from_secs(1) / limits.accepts_per_s.max(1);
    // The time of the next accept when no credit is left; up to one second's worth of credit is saved up.
    let mut due = Instant::now();
    let mut late = BACKLOG;
    loop {
        if door.is_shut() {
            late -= 1;
            if late == 0 {
                return;
            }
        }
        let accepted = tokio::select! {
            biased;
            // Polled first, so that clients that connected before the door shut are still let in, up to the length of
            // the queue.
            accepted = listener.accept() => accepted,
            () = &mut shut => return,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
                let theirs = [ConnectionAborted, ConnectionRefused, ConnectionReset];
                if !theirs.contains(&error.kind()) {
                    tracing::error!(%error, "a connection was not accepted");
                    sleep(PAUSE).await;
                }
                continue;
            }
        };
        let proxy = proxies.iter().any(|known| known.contains(peer.ip()));
        match admission.admit((!proxy).then(|| peer.ip()), &limits) {
            Ok(admitted) => {
                tokio::spawn(connection(socket, peer, admitted, limits, door.clone()));
            }
            Err(why) => {
                metrics::counter!("proxie_connections_refused_total", "why" => why).increment(1);
                drop(socket);
            }
        }
        let now = Instant::now();
        due = due.max(now - Duration::from_secs(1)) + pace;
        // Timers are coarse, so several connections are accepted between two sleeps.
        if due > now + GRAIN {
            sleep_until(due).await;
        }
    }
}

async fn connection(
    socket: TcpStream,
    peer: SocketAddr,
    admitted: Admitted,
    limits: AcceptLimits,
    door: Door,
) {
    let _visit = door.enter();
    // Writes are already batched, so Nagle's algorithm would only delay them.
    let _ = socket.set_nodelay(true);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&socket, UNTAKEN);
    let asked = Arc::new(AtomicBool::new(false));
    let (asks, inside) = (asked.clone(), door.clone());
    let service = tower::service_fn(move |request: Request<hyper::body::Incoming>| {
        asks.store(true, Ordering::Relaxed);
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        // A WebSocket keeps it after the upgrade.
        request.extensions_mut().insert(admitted.clone());
        let (answering, inside) = (inside.router().clone().oneshot(request), inside.clone());
        async move {
            let mut response = answering.await?;
            // After an upgrade, the other protocol tells the client itself.
            if inside.is_leaving() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(service))
        .with_upgrades();
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = sleep(limits.header_timeout) => {
            if !asked.load(Ordering::Relaxed) {
                metrics::counter!("proxie_connections_refused_total", "why" => "headers").increment(1);
                return;
            }
            tokio::select! {
                ended = &mut served => ended,
                () = door.over() => {
                    served.as_mut().graceful_shutdown();
                    served.await
                }
            }
        }
        () = door.over() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_by_address_and_in_all() {
        let limits = AcceptLimits {
            max_connections: 3,
            max_connections_per_address: 2,
            ..AcceptLimits::default()
        };
        let admission = Admission::default();
        let admit = |address: &str| admission.admit(Some(address.parse().unwrap()), &limits);
        let first = admit("2001:db8:1:2::1").unwrap();
        let _second = admit("2001:db8:1:2:ffff::9").unwrap();
        assert_eq!(admit("2001:db8:1:2::3").err(), Some("address"), "of the same network");
        let third = admit("::ffff:10.0.0.1").unwrap();
        assert_eq!(admit("10.0.0.1").err(), Some("all"));
        let socket = first.clone();
        drop(first);
        assert_eq!(admit("10.0.0.1").err(), Some("all"), "its socket is still there");
        drop(socket);
        let _fourth = admit("10.0.0.1").unwrap();
        drop(third);
        assert!(admission.admit(None, &limits).is_ok(), "a proxy's are not counted by address");
        assert_eq!(admission.open().by_address.len(), 2);
    }
}
