//! A WebSocket that speaks the messages of `/sync/ws`; behind it is the same connection as behind `/v1/ws`.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker, ready};

use tokio_tungstenite::tungstenite::Message;

use super::talk::{Follows, Talk};
use crate::gateway::ws::WebSocket;

pub struct SyncLink {
    socket: WebSocket,
    talk: Talk,
    /// Frames to the connection. A message or an answer leads to at most one.
    frames: VecDeque<String>,
    /// Messages to the device. The connection waits until they are on their way.
    messages: VecDeque<String>,
    reader: Option<Waker>,
    /// Whether a message was answered here. The connection then gets a pong, so that the message counts as a sign of
    /// life.
    answered: bool,
}

impl SyncLink {
    pub fn new(socket: WebSocket, prefix: String) -> Self {
        Self {
            socket,
            talk: Talk::new(prefix),
            frames: VecDeque::new(),
            messages: VecDeque::new(),
            reader: None,
            answered: false,
        }
    }

    pub fn frames(&mut self) -> u32 {
        self.socket.frames()
    }

    fn take(&mut self, follows: Follows) {
        self.messages.extend(follows.messages);
        if !follows.frames.is_empty() {
            self.frames.extend(follows.frames);
            self.reader.take().into_iter().for_each(Waker::wake);
        }
    }

    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Message, axum::Error>>> {
        loop {
            if self.answered {
                // The device gets the answer before anything else is read.
                if let Err(error) = ready!(self.poll_flush(cx)) {
                    return Poll::Ready(Some(Err(error)));
                }
                self.answered = false;
                return Poll::Ready(Some(Ok(Message::Pong(Default::default()))));
            }
            if let Some(frame) = self.frames.pop_front() {
                return Poll::Ready(Some(Ok(Message::text(frame))));
            }
            self.reader = Some(cx.waker().clone());
            match ready!(self.socket.poll_next(cx)) {
                Some(Ok(Message::Text(text))) => {
                    let follows = self.talk.said(text.as_str());
                    self.answered = follows.frames.is_empty();
                    self.take(follows);
                }
                other => return Poll::Ready(other),
            }
        }
    }

    /// Ready when the socket has taken every message.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        loop {
            ready!(self.socket.poll_ready(cx))?;
            match self.messages.pop_front() {
                Some(message) => self.socket.start_send(Message::text(message))?,
                None => return Poll::Ready(Ok(())),
            }
        }
    }

    pub fn send(&mut self, message: Message) -> Result<(), axum::Error> {
        match message {
            Message::Text(text) => {
                let follows = self.talk.heard(text.as_str());
                self.take(follows);
                Ok(())
            }
            other => self.socket.start_send(other),
        }
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        ready!(self.poll_ready(cx))?;
        self.socket.poll_flush(cx)
    }

    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        self.socket.poll_close(cx)
    }
}
