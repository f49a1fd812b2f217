//! What every transport keeps, run for each. Waits are generous and bounded; nothing is asserted about time.

mod authority;
mod certified;
mod contract;
mod rogue;
mod wire;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{sleep, timeout};

use super::*;
use crate::kernel::entity::Caller;

pub type Starting = Pin<Box<dyn Future<Output = io::Result<StartedTransport>> + Send>>;
pub type Start = fn(Options, Arc<dyn Inbox>) -> Starting;

const PATIENCE: Duration = Duration::from_secs(30);
pub const COOKIE: &str = "a cookie";

fn over_framed(options: Options, inbox: Arc<dyn Inbox>) -> Starting {
    Box::pin(framed::start(options, inbox))
}

fn over_clustered(options: Options, inbox: Arc<dyn Inbox>) -> Starting {
    Box::pin(clustered::start(options, inbox))
}

/// With the certificate that a node of its name has.
fn within_tls(options: Options) -> Options {
    Options { tls: Some(authority::OURS.tls(&options.name)), ..options }
}

/// Runs each function of a module for each transport.
macro_rules! for_each_transport {
    ($module:ident $names:tt $($over:ident: $start:expr),*) => {
        $(for_each_transport! { @one $module, $over, $start, $names })*
    };
    (@one $module:ident, $over:ident, $start:expr, { $($name:ident)* }) => {
        mod $over {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$module::$name($start).await;
            })*
        }
    };
}

for_each_transport! {
    contract {
        order_is_kept_in_both_directions
        a_large_batch_and_the_largest_envelope_arrive
        nobody_without_the_cookie_gets_in
        another_incarnation_is_not_the_one_that_was_meant
        a_receiver_that_keeps_its_credits_blocks_only_itself
        answers_and_control_get_through_while_the_window_is_full_of_asks
        the_death_of_a_peer_shows_on_both_sides_of_the_dial
        a_broken_link_is_made_again
        a_half_open_link_does_not_lock_the_newcomer_out
        silent_and_garbled_clients_do_no_harm
        forgetting_ends_and_refuses
        it_waits_for_the_other_side_to_link
        everything_ends_with_the_transport
    }
    over_framed_tcp: over_framed,
    over_framed_tls: |options, inbox| over_framed(within_tls(options), inbox),
    over_ractor_cluster: over_clustered,
    over_ractor_cluster_tls: |options, inbox| over_clustered(within_tls(options), inbox)
}

for_each_transport! {
    certified {
        certified_nodes_link_and_their_asks_flow
        nobody_is_linked_without_a_certificate
        another_authority_is_not_enough
        a_node_is_not_another_by_its_incarnation
        a_server_of_another_name_is_not_the_one_that_was_meant
        the_cookie_is_asked_for_inside
        tls_and_plaintext_do_not_link
        silence_ends_at_the_deadline
    }
    certified_over_framed: over_framed,
    certified_over_clustered: over_clustered
}

/// A running transport with an inbox that the test reads.
pub struct Running {
    pub incarnation: i64,
    pub transport: Arc<dyn Transport>,
    pub events: Receiver<LinkEvent>,
    pub address: String,
    pub inbox: UnboundedReceiver<(i64, Envelope, Credit)>,
}

struct Recorder(UnboundedSender<(i64, Envelope, Credit)>);

impl Inbox for Recorder {
    fn receive(&self, from: i64, envelope: Envelope, credit: Credit) {
        let _ = self.0.send((from, envelope, credit));
    }
}

pub fn limits() -> TransportLimits {
    TransportLimits {
        window_bytes: 256 << 10,
        max_envelope_bytes: 16 << 10,
        max_frame_bytes: 8 << 10,
        max_frame_envelopes: 64,
        handshake_timeout_ms: 20_000,
        max_handshakes: 8,
        redial_min_ms: 5,
        redial_max_ms: 100,
    }
}

pub async fn options(incarnation: i64) -> Options {
    Options {
        incarnation,
        name: format!("node-{incarnation}"),
        listener: bind("127.0.0.1:0").await.expect("it listens"),
        cookie: COOKIE.into(),
        tls: None,
        limits: limits(),
    }
}

impl Running {
    pub async fn start(start: Start, incarnation: i64) -> Self {
        Self::start_with(start, options(incarnation).await).await
    }

    pub async fn start_with(start: Start, options: Options) -> Self {
        let (sender, inbox) = unbounded_channel();
        let incarnation = options.incarnation;
        let started = start(options, Arc::new(Recorder(sender))).await.expect("it starts");
        let StartedTransport { transport, events, address } = started;
        Self { incarnation, transport, events, address, inbox }
    }

    pub fn peer(&self) -> Peer {
        self.peer_at(&self.address)
    }

    pub fn peer_at(&self, address: &str) -> Peer {
        let incarnation = self.incarnation;
        Peer { incarnation, name: format!("node-{incarnation}"), address: address.into() }
    }

    pub fn link(&self, other: &Self) {
        self.transport.link(other.peer());
    }

    pub async fn event(&mut self) -> LinkEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("news in time").expect("news")
    }

    /// Skips what comes before it.
    pub async fn told(&mut self, wanted: LinkEvent) {
        while self.event().await != wanted {}
    }

    pub async fn up(&mut self, other: &Self) {
        self.told(LinkEvent::Up { peer: other.incarnation }).await;
    }

    pub async fn received(&mut self) -> (i64, Envelope, Credit) {
        timeout(PATIENCE, self.inbox.recv()).await.expect("mail in time").expect("mail")
    }

    /// Until there is room and a link.
    pub async fn send(&self, to: i64, envelope: &Envelope) {
        until(|| self.transport.send(to, envelope.clone()).is_ok()).await;
    }
}

pub async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("it holds in time");
}

/// Two nodes with a link that both have seen come up. The first one dials.
pub async fn pair(start: Start) -> (Running, Running) {
    let mut a = Running::start(start, 1).await;
    let mut b = Running::start(start, 2).await;
    a.link(&b);
    b.link(&a);
    a.up(&b).await;
    b.up(&a).await;
    (a, b)
}

pub fn control(number: u32, size: usize) -> Envelope {
    let mut body = number.to_be_bytes().to_vec();
    body.resize(size.max(body.len()), 7);
    Envelope::Control(body)
}

pub fn number(envelope: &Envelope) -> u32 {
    match envelope {
        Envelope::Control(body) => u32::from_be_bytes(body[..4].try_into().unwrap()),
        other => panic!("{other:?}"),
    }
}

pub fn ask(correlation: u64, size: usize) -> Envelope {
    let ask = RemoteAsk {
        kind: "booking".into(),
        key: "key".into(),
        command: "x".repeat(size),
        caller: Caller::Runtime,
        command_id: None,
        remaining_ms: 1_000,
        epoch: 1,
        traceparent: None,
    };
    Envelope::Ask { correlation, ask }
}

pub fn answer(correlation: u64) -> Envelope {
    Envelope::Answer { correlation, answer: RemoteAnswer::Outcome("{}".into()) }
}
