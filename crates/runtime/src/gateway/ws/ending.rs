//! Endings of a connection, including clients that do not take what they are sent.

use std::future::poll_fn;
use std::time::Duration;

use super::protocol::Close;
use super::stream;
use crate::gateway::listening::{Cut, SendQueue};

/// The reason why a connection ends.
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

/// Time limit of a write. A longer one ends the connection: the client's receive window has been closed all the time.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits for a write, but not for ever, and not once the queue has overflowed.
pub async fn unless_too_slow(
    outgoing: &SendQueue,
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
