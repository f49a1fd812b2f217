//! How a connection ends, also because its client does not take what it is sent.

use std::future::poll_fn;
use std::time::Duration;

use super::protocol::Close;
use super::stream;
use crate::gateway::listening::{Cut, Outgoing};

/// How a connection ends.
#[derive(Debug)]
pub enum Ending {
    /// The client has closed, or the socket is broken.
    Gone,
    Close(Close),
}

pub type Flow = Result<(), Ending>;

impl From<Cut> for Ending {
    fn from(cut: Cut) -> Self {
        Self::Close(cut.into())
    }
}

/// A write that takes longer ends the connection: the client's window has been closed all the time.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits for a write, but not for ever, and not while more piles up than is kept.
pub async fn unless_too_slow(
    outgoing: &Outgoing,
    write: impl Future<Output = Result<(), axum::Error>>,
) -> Flow {
    tokio::select! {
        biased;
        written = write => written.map_err(ending_of),
        () = poll_fn(|cx| outgoing.poll_cut_off(cx)) => Err(Ending::Close(Close::SlowConsumer)),
        () = tokio::time::sleep(WRITE_TIMEOUT) => Err(Ending::Close(Close::SlowConsumer)),
    }
}

pub fn ending_of(error: axum::Error) -> Ending {
    stream::close_of(error).map_or(Ending::Gone, Ending::Close)
}
