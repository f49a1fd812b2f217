//! The transport over plain TCP: each frame follows its length in four bytes.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::warn;

use crate::cluster::transport::link::{Broken, Link};
use crate::cluster::transport::links::Links;
use crate::cluster::transport::node::{self, Carrier, Connection, Task};
use crate::cluster::transport::{DownCause, Inbox, Options, StartedTransport};

const LENGTH: usize = size_of::<u32>();
/// The read buffer, which holds several small frames.
const READ_BUFFER: usize = 64 << 10;

/// # Errors
/// The limits cannot be kept, or the certificate is not this node's.
pub async fn start(options: Options, inbox: Arc<dyn Inbox>) -> io::Result<StartedTransport> {
    node::start(options, inbox, Framed).await
}

struct Framed;

impl Carrier for Framed {
    async fn carry(&self, connection: Connection, links: &Arc<Links>) {
        let Connection { read, write, met, .. } = connection;
        let link = Link::new(met.peer, met.terms, met.version);
        if !links.attach(&link) {
            return;
        }
        let (failed, write_failed) = oneshot::channel();
        let _writer = Task::spawn(&Handle::current(), {
            let link = link.clone();
            async move {
                let _ = write_frames(write, &link).await;
                let _ = failed.send(());
            }
        });
        let cause = tokio::select! {
            cause = read_frames(read, &link, links.inbox.as_ref()) => cause,
            _ = write_failed => DownCause::Reset,
            () = link.closed() => DownCause::Reset,
        };
        links.detach(&link, cause);
    }
}

async fn write_frames(mut write: impl AsyncWrite + Unpin, link: &Link) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let body = link.next_frame().await;
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        buffer.clear();
        buffer.extend(length.to_be_bytes());
        buffer.extend_from_slice(&body);
        write.write_all(&buffer).await?;
        write.flush().await?;
    }
}

async fn read_frames(
    read: impl AsyncRead + Unpin,
    link: &Arc<Link>,
    inbox: &dyn Inbox,
) -> DownCause {
    let mut read = BufReader::with_capacity(READ_BUFFER, read);
    let mut body = Vec::new();
    let mut length = [0; LENGTH];
    loop {
        if read.read_exact(&mut length).await.is_err() {
            return DownCause::Reset;
        }
        let length = u32::from_be_bytes(length) as usize;
        let taken = if length > link.terms.max_frame_length() {
            Err(Broken("a frame that is too large"))
        } else {
            body.resize(length, 0);
            if read.read_exact(&mut body).await.is_err() {
                return DownCause::Reset;
            }
            link.receive(&body, inbox)
        };
        if let Err(Broken(rule)) = taken {
            warn!(peer = link.peer, rule, "a node broke the protocol");
            return DownCause::Protocol;
        }
    }
}
