//! Bytes of operations: what is sent besides the fields, and what is answered instead of them. Over HTTP only.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use parking_lot::Mutex;

use super::problem::{Outcome, Problem};
use crate::kernel::error::ErrorCode;

/// The body of a request, as it comes.
#[derive(Clone)]
pub struct Upload {
    pub announced: Option<u64>,
    pieces: Arc<Mutex<Option<Pieces>>>,
}

type Pieces = BoxStream<'static, Result<Bytes, Problem>>;

impl Upload {
    pub fn new(announced: Option<u64>, pieces: Pieces) -> Self {
        Self { announced, pieces: Arc::new(Mutex::new(Some(pieces))) }
    }

    /// The whole body, of so many bytes at most. `check` sees what has come so far with each piece, and can end it.
    pub async fn read(
        &self,
        most: usize,
        check: impl Fn(&[u8]) -> Outcome<()>,
    ) -> Outcome<Vec<u8>> {
        let too_large = || {
            let detail = format!("{most} bytes are taken at most");
            Problem::new(ErrorCode::TooLarge, detail)
        };
        if self.announced.is_some_and(|announced| announced > most as u64) {
            return Err(too_large());
        }
        let pieces = self.pieces.lock().take();
        let mut pieces = pieces.ok_or_else(|| Problem::bad_request("the body was read already"))?;
        let mut body = Vec::with_capacity(self.announced.unwrap_or_default() as usize);
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            if body.len() + piece.len() > most {
                return Err(too_large());
            }
            body.extend_from_slice(&piece);
            check(&body)?;
        }
        Ok(body)
    }
}

/// Bytes that are answered.
#[derive(Clone, Debug)]
pub struct Download {
    pub media_type: String,
    /// The name under which a browser stores them.
    pub name: String,
    pub bytes: Bytes,
}

/// Where an operation leaves its bytes, for a caller who can take them.
#[derive(Clone, Default)]
pub struct DownloadSlot(Arc<OnceLock<Download>>);

impl DownloadSlot {
    pub fn put(&self, download: Download) {
        let _ = self.0.set(download);
    }

    pub fn take(&self) -> Option<Download> {
        self.0.get().cloned()
    }
}

/// The refusal where an operation needs bytes and this door has none.
pub fn over_http(path: &str) -> Problem {
    Problem::rejected("over_http", format!("bytes are sent and answered over HTTP: {path}"))
}
