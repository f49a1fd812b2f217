//! One live link: its queue, the window of each direction, and the credits.
//!
//! A link knows no connection: a carrier takes frames out with [`Link::next_frame`] and puts them in with
//! [`Link::receive`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, watch};

use crate::cluster::transport::frame::Terms;
use crate::cluster::transport::wire::{Packed, Unknown, Unpacked, pack, unpack};
use crate::cluster::transport::{Credit, Envelope, Inbox, RemoteAnswer, SendError};
use crate::kernel::codec;
use crate::kernel::error::AskError;

pub(super) struct Link {
    pub peer: i64,
    pub terms: Terms,
    /// The agreed version of the protocol.
    version: u8,
    queue: Mutex<Queue>,
    /// Signals to the one writing task that an envelope waits.
    wake: Notify,
    closed: watch::Sender<bool>,
    /// The weight that has arrived and is still in the inbox.
    held: AtomicUsize,
    /// The weight that the inbox has released and the peer has not been credited yet.
    given_back: AtomicUsize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Packed>,
    /// The weight of queued envelopes and of those not credited by the peer: this side's use of the window.
    outstanding: usize,
}

/// The peer broke a rule.
#[derive(Debug)]
pub(super) struct Broken(pub &'static str);

impl Link {
    pub fn new(peer: i64, terms: Terms, version: u8) -> Arc<Self> {
        Arc::new(Self {
            peer,
            terms,
            version,
            queue: Mutex::default(),
            wake: Notify::new(),
            closed: watch::Sender::new(false),
            held: AtomicUsize::new(0),
            given_back: AtomicUsize::new(0),
        })
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn send(&self, envelope: Envelope) -> Result<(), SendError> {
        let share = self.terms.share(&envelope);
        let packed = pack(envelope, self.version);
        if packed.weight > self.terms.envelope {
            return Err(SendError::TooLarge);
        }
        {
            let mut queue = self.queue();
            if queue.outstanding + packed.weight > share {
                return Err(SendError::Overloaded);
            }
            queue.outstanding += packed.weight;
            queue.waiting.push_back(packed);
        }
        self.wake.notify_one();
        Ok(())
    }

    /// The next frame, with all waiting envelopes that fit: the credits, the number of envelopes, and the envelopes.
    /// For one task.
    pub async fn next_frame(&self) -> Vec<u8> {
        loop {
            if let Some(frame) = self.take() {
                return frame;
            }
            self.wake.notified().await;
            // The task that rang is often the first of many that run now: their envelopes join the same frame.
            tokio::task::yield_now().await;
        }
    }

    fn take(&self) -> Option<Vec<u8>> {
        let mut envelopes: Vec<Packed> = Vec::new();
        {
            let mut queue = self.queue();
            let mut total = 0;
            while let Some(next) = queue.waiting.front()
                && envelopes.len() < self.terms.frame_envelopes
            {
                total += next.weight;
                if total > self.terms.frame && !envelopes.is_empty() {
                    break;
                }
                envelopes.extend(queue.waiting.pop_front());
            }
        }
        if envelopes.is_empty()
            && self.given_back.load(Ordering::Acquire) < self.terms.credit_batch()
        {
            return None;
        }
        let credits = self.given_back.swap(0, Ordering::AcqRel) as u64;
        let mut frame = codec::encode(&(credits, envelopes.len() as u64));
        frame.reserve(envelopes.iter().map(|packed| packed.bytes.len()).sum());
        envelopes.iter().for_each(|packed| frame.extend_from_slice(&packed.bytes));
        Some(frame)
    }

    /// Receives an encoded frame. Its envelopes go to the inbox, unless the link was closed.
    pub fn receive(self: &Arc<Self>, bytes: &[u8], inbox: &dyn Inbox) -> Result<(), Broken> {
        const UNDECODABLE: Broken = Broken("an undecodable frame");
        let ((credits, count), mut at): ((u64, u64), usize) =
            codec::decode_first(bytes).ok_or(UNDECODABLE)?;
        if count > self.terms.frame_envelopes as u64 {
            return Err(Broken("a frame of too many envelopes"));
        }
        let mut unpacked = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let (envelope, length) = unpack(&bytes[at..], self.version).ok_or(UNDECODABLE)?;
            unpacked.push(envelope);
            at += length;
        }
        if at != bytes.len() {
            return Err(UNDECODABLE);
        }
        self.granted(credits)?;
        for Unpacked { envelope, weight } in unpacked {
            if weight > self.terms.envelope {
                return Err(Broken("an envelope that is too large"));
            }
            if self.held.fetch_add(weight, Ordering::AcqRel) + weight > self.terms.window {
                return Err(Broken("more than its window"));
            }
            if *self.closed.borrow() {
                return Ok(());
            }
            let link = self.clone();
            let credit = Credit::new(move || link.give_back(weight));
            match envelope {
                Ok(envelope) => inbox.receive(self.peer, envelope, credit),
                Err(Unknown { correlation }) => {
                    let error = AskError::unavailable("who asks is known to newer releases only");
                    let answer = RemoteAnswer::Failed(error);
                    // Without room for the refusal, the asker waits until its deadline.
                    let _ = self.send(Envelope::Answer { correlation, answer });
                    drop(credit);
                }
            }
        }
        Ok(())
    }

    fn granted(&self, credits: u64) -> Result<(), Broken> {
        let mut queue = self.queue();
        let left = usize::try_from(credits).ok().and_then(|c| queue.outstanding.checked_sub(c));
        queue.outstanding = left.ok_or(Broken("credit for what was never sent"))?;
        Ok(())
    }

    fn give_back(&self, weight: usize) {
        // The window is freed before the peer can learn of it, because the peer may use it at once.
        self.held.fetch_sub(weight, Ordering::AcqRel);
        let batch = self.terms.credit_batch();
        let before = self.given_back.fetch_add(weight, Ordering::AcqRel);
        if before < batch && before + weight >= batch {
            self.wake.notify_one();
        }
    }

    /// Ends the link's tasks, after the table of links has removed it.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    pub async fn closed(&self) {
        // `self` holds the sender, so there is no error.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }
}
