//! A WebSocket that counts frames as their bytes arrive.
//!
//! The WebSocket library only shows whole messages. The fragments of a message, including empty ones, would cost their
//! sender nothing, so frames are counted below the library: the scanner reads each frame's header and skips its
//! payload.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

use super::protocol::{Close, ConnectionLimits};
use crate::kernel::bucket::Bucket;

/// Read and write buffers of a socket: most frames are small, and most sockets idle.
const BUFFER_BYTES: usize = 4 * 1024;

/// The error of a client that sends more frames than allowed.
#[derive(Debug, thiserror::Error)]
#[error("too many frames")]
struct TooManyFrames;

/// The close code after an error of the socket; `None`: the client is gone.
pub fn close_of(error: axum::Error) -> Option<Close> {
    let error = error.into_inner();
    if error.is::<TooManyFrames>() {
        return Some(Close::TooManyFrames);
    }
    match error.downcast_ref()? {
        tungstenite::Error::Capacity(_) => Some(Close::FrameTooLarge),
        tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        tungstenite::Error::Protocol(_) => Some(Close::ProtocolError),
        tungstenite::Error::Utf8(_) => Some(Close::NotUtf8),
        _ => None,
    }
}

pub struct WebSocket {
    inner: WebSocketStream<Metered<TokioIo<Upgraded>>>,
    /// Whether the socket has failed. Its input is then read and discarded, so that the client can still read the close
    /// reason.
    failed: bool,
}

impl WebSocket {
    pub async fn new(upgraded: Upgraded, limits: &ConnectionLimits) -> Self {
        let mut config = WebSocketConfig::default();
        config.read_buffer_size = BUFFER_BYTES;
        config.write_buffer_size = BUFFER_BYTES;
        config.max_frame_size = Some(limits.max_frame_bytes);
        config.max_message_size = Some(limits.max_frame_bytes);
        let stream = Metered::new(TokioIo::new(upgraded), limits);
        let inner = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
        Self { inner, failed: false }
    }

    /// The frames that came since the last call.
    pub fn frames(&mut self) -> u32 {
        std::mem::take(&mut self.inner.get_mut().frames)
    }

    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Message, axum::Error>>> {
        if self.failed {
            return self.inner.get_mut().poll_discard(cx).map(|()| None);
        }
        let error = match self.inner.poll_next_unpin(cx) {
            Poll::Ready(Some(Err(error))) => axum::Error::new(error),
            // Messages before the excess frame are handled first.
            Poll::Pending if self.inner.get_ref().exceeded => axum::Error::new(TooManyFrames),
            other => return other.map_err(axum::Error::new),
        };
        self.failed = true;
        Poll::Ready(Some(Err(error)))
    }

    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        self.inner.poll_ready_unpin(cx).map_err(axum::Error::new)
    }

    pub fn start_send(&mut self, message: Message) -> Result<(), axum::Error> {
        self.inner.start_send_unpin(message).map_err(axum::Error::new)
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        self.inner.poll_flush_unpin(cx).map_err(axum::Error::new)
    }

    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        self.inner.poll_close_unpin(cx).map_err(axum::Error::new)
    }
}

/// A client's byte stream, cut off before the first frame that exceeds the limit.
struct Metered<S> {
    stream: S,
    scanner: Scanner,
    bucket: Bucket,
    frames: u32,
    exceeded: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Metered<S> {
    fn new(stream: S, limits: &ConnectionLimits) -> Self {
        let bucket =
            Bucket::new(limits.frames_per_s, limits.frame_burst, Instant::now().into_std());
        Self { stream, scanner: Scanner::default(), bucket, frames: 0, exceeded: false }
    }

    /// Reads and discards input until the client has closed.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut bytes = [0; BUFFER_BYTES];
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // No waker is needed: the socket checks `exceeded` when this is pending.
        if this.exceeded {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let read = &buffer.filled()[before..];
        if read.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let now = Instant::now();
        let passed = this.scanner.scan(read, || {
            this.frames = this.frames.saturating_add(1);
            this.bucket.take(now.into_std())
        });
        this.exceeded = passed < read.len();
        buffer.set_filled(before + passed);
        // Ready without bytes would mean the end of the stream.
        if passed == 0 { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Finds where frames begin (RFC 6455, 5.2). Invalid frames are for the WebSocket library to report.
#[derive(Default)]
struct Scanner {
    expects: Expects,
}

#[derive(Clone, Copy, Default)]
enum Expects {
    /// The first byte of a frame.
    #[default]
    Frame,
    /// The second byte: whether the frame is masked, and its length.
    Length,
    /// More bytes of the frame's length.
    Longer { left: u8, length: u64, masked: bool },
    /// The frame's mask and payload.
    Rest { left: u64 },
}

impl Scanner {
    /// The number of these bytes that may pass: all, or those before the first frame that is not allowed.
    fn scan(&mut self, bytes: &[u8], mut may_begin: impl FnMut() -> bool) -> usize {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            self.expects = match self.expects {
                Expects::Rest { left } => {
                    let skipped = left.min((bytes.len() - at) as u64);
                    at += skipped as usize;
                    self.expects = Expects::rest(left - skipped);
                    continue;
                }
                Expects::Frame if !may_begin() => return at,
                Expects::Frame => Expects::Length,
                Expects::Length => {
                    let masked = byte & 0x80 != 0;
                    match byte & 0x7f {
                        126 => Expects::Longer { left: 2, length: 0, masked },
                        127 => Expects::Longer { left: 8, length: 0, masked },
                        length => Expects::payload(length.into(), masked),
                    }
                }
                Expects::Longer { left, length, masked } => {
                    let length = length << 8 | u64::from(*byte);
                    match left {
                        1 => Expects::payload(length, masked),
                        _ => Expects::Longer { left: left - 1, length, masked },
                    }
                }
            };
            at += 1;
        }
        at
    }
}

impl Expects {
    fn payload(length: u64, masked: bool) -> Self {
        Self::rest(length.saturating_add(if masked { 4 } else { 0 }))
    }

    fn rest(left: u64) -> Self {
        if left == 0 { Self::Frame } else { Self::Rest { left } }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn frame(length: usize, masked: bool) -> Vec<u8> {
        let bit = if masked { 0x80 } else { 0 };
        let mut bytes = vec![0x80];
        match length {
            0..=125 => bytes.push(bit | length as u8),
            126..=65_535 => {
                bytes.push(bit | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(bit | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.resize(bytes.len() + length + if masked { 4 } else { 0 }, 0xff);
        bytes
    }

    proptest! {
        /// However the bytes are split, each frame counts once, and the cut is at the end of a frame.
        #[test]
        fn frames_are_counted_where_they_begin(
            lengths in proptest::collection::vec((0_usize..70_000, any::<bool>()), 1..6),
            short in proptest::collection::vec((0_usize..4, any::<bool>()), 0..20),
            cut in 1_usize..5_000,
            allowed in 0_usize..30,
        ) {
            let frames: Vec<Vec<u8>> =
                lengths.iter().chain(&short).map(|(length, masked)| frame(*length, *masked)).collect();
            let bytes = frames.concat();
            let (mut scanner, mut begun, mut passed) = (Scanner::default(), 0, 0);
            for chunk in bytes.chunks(cut) {
                let here = scanner.scan(chunk, || {
                    begun += 1;
                    begun <= allowed
                });
                passed += here;
                if here < chunk.len() {
                    break;
                }
            }
            let all = frames.len() <= allowed;
            prop_assert_eq!(begun, if all { frames.len() } else { allowed + 1 });
            let within: usize = frames.iter().take(allowed).map(Vec::len).sum();
            prop_assert_eq!(passed, within);
        }
    }

    #[tokio::test]
    async fn what_came_before_the_frame_that_was_too_much_passes() {
        let limits =
            ConnectionLimits { frames_per_s: 1, frame_burst: 3, ..ConnectionLimits::default() };
        let (mut client, node) = tokio::io::duplex(64);
        let mut metered = Metered::new(node, &limits);
        client.write_all(&[frame(1, true), frame(0, true).repeat(4)].concat()).await.unwrap();
        let mut came = vec![0; 64];
        assert_eq!(metered.read(&mut came).await.unwrap(), 7 + 6 + 6);
        assert!(metered.exceeded);
        let more = tokio::time::timeout(std::time::Duration::from_millis(20), metered.read_u8());
        assert!(more.await.is_err(), "nothing, and not the end");
        drop(client);
        std::future::poll_fn(|cx| metered.poll_discard(cx)).await;
    }
}
