//! A queue between two tasks that is bounded in bytes: its writer waits for room, its reader for items.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, MutexGuard};

/// Cost of an item in addition to its text.
const OVERHEAD_BYTES: usize = 64;

struct State<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    /// The limit in bytes. One item may exceed it.
    room: usize,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

struct Shared<T>(Mutex<State<T>>);

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock()
    }
}

/// The writing end. After it is dropped, the reader gets the remaining items, then the end.
pub struct PipeWriter<T>(Arc<Shared<T>>);

/// The reading end. The writer notices when it is dropped.
pub struct PipeReader<T>(Arc<Shared<T>>);

pub fn pipe<T>(room: usize) -> (PipeWriter<T>, PipeReader<T>) {
    let state =
        State { items: VecDeque::new(), bytes: 0, room, closed: false, reader: None, writer: None };
    let shared = Arc::new(Shared(Mutex::new(state)));
    (PipeWriter(shared.clone()), PipeReader(shared))
}

impl<T> PipeWriter<T> {
    /// Ready when there is room (true) or the reader is gone (false).
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = self.0.state();
        if state.closed {
            return Poll::Ready(false);
        }
        if state.bytes < state.room {
            return Poll::Ready(true);
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Adds an item. Call it after `poll_room`; the caller bounds what goes beyond the limit.
    pub fn push(&self, item: T, bytes: usize) {
        let mut state = self.0.state();
        if state.closed {
            return;
        }
        let bytes = bytes + OVERHEAD_BYTES;
        state.bytes += bytes;
        state.items.push_back((item, bytes));
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
    }
}

impl<T> PipeReader<T> {
    /// The next item; `None`: the writer is gone and no item is left.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.0.state();
        let Some((item, bytes)) = state.items.pop_front() else {
            if state.closed {
                return Poll::Ready(None);
            }
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        state.bytes -= bytes;
        let writer = if state.bytes < state.room { state.writer.take() } else { None };
        drop(state);
        writer.into_iter().for_each(Waker::wake);
        Poll::Ready(Some(item))
    }
}

impl<T> Drop for PipeWriter<T> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.closed = true;
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
    }
}

impl<T> Drop for PipeReader<T> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.closed = true;
        let items = std::mem::take(&mut state.items);
        let writer = state.writer.take();
        drop(state);
        drop(items);
        writer.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use std::future::poll_fn;

    use super::*;

    #[test]
    fn a_writer_waits_for_room_and_a_reader_for_items() {
        let (writer, reader) = pipe(100);
        let room = || poll_fn(|cx| writer.poll_room(cx)).now_or_never();
        let next = |reader: &PipeReader<u8>| poll_fn(|cx| reader.poll_next(cx)).now_or_never();
        assert_eq!(next(&reader), None);
        writer.push(1, 10);
        assert_eq!(room(), Some(true));
        writer.push(2, 1_000);
        assert_eq!(room(), None, "there is more than enough");
        assert_eq!(next(&reader), Some(Some(1)));
        assert_eq!(room(), None);
        assert_eq!(next(&reader), Some(Some(2)));
        assert_eq!(room(), Some(true));
        writer.push(3, 0);
        drop(writer);
        assert_eq!((next(&reader), next(&reader)), (Some(Some(3)), Some(None)));
        let (writer, reader) = pipe::<u8>(100);
        writer.push(1, 1_000);
        drop(reader);
        assert_eq!(poll_fn(|cx| writer.poll_room(cx)).now_or_never(), Some(false));
    }
}
