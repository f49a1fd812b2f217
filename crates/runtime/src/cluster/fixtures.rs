//! Stand-ins for the ends of a link, for tests of what is between them.

use std::any::Any;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;
use futures_util::future::ready;
use serde_json::Value;

use crate::cluster::ask::{Answering, CommandMeta, LocalEntities};
use crate::cluster::router::Control;
use crate::cluster::transport::{Envelope, Peer, RemoteAnswer, SendError, Transport};
use crate::kernel::error::AskError;

/// A link that may have no room, and takes no answer of more than 100 bytes.
#[derive(Default)]
pub struct Narrow {
    full: AtomicBool,
    sent: Mutex<Vec<Envelope>>,
}

impl Narrow {
    pub fn room(&self, there_is: bool) {
        self.full.store(!there_is, Ordering::SeqCst);
    }

    pub fn sent(&self) -> Vec<Envelope> {
        self.sent.lock().unwrap().clone()
    }
}

impl Transport for Narrow {
    fn link(&self, _: Peer) {}

    fn forget(&self, _: i64) {}

    fn send(&self, _: i64, envelope: Envelope) -> Result<(), SendError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(SendError::Overloaded);
        }
        if let Envelope::Answer { answer: RemoteAnswer::Outcome(outcome), .. } = &envelope
            && outcome.len() > 100
        {
            return Err(SendError::TooLarge);
        }
        self.sent.lock().unwrap().push(envelope);
        Ok(())
    }

    fn is_up(&self, _: i64) -> bool {
        true
    }
}

/// Takes what comes and does nothing about it. Entities answer with their own key.
pub struct Nobody;

impl Control for Nobody {
    fn receive(&self, _: i64, _: Vec<u8>) {}
}

impl LocalEntities for Nobody {
    fn ask(
        &self,
        _: &'static str,
        _: &str,
        _: Box<dyn Any + Send>,
        _: CommandMeta,
    ) -> Answering<Box<dyn Any + Send>> {
        ready(Err(AskError::NotHere)).boxed()
    }

    fn ask_json(
        &self,
        _: &str,
        _: &str,
        _: &str,
        _: CommandMeta,
    ) -> Answering<Result<Value, String>> {
        ready(Err(AskError::NotHere)).boxed()
    }

    fn ask_outcome(&self, _: &str, key: &str, _: &str, _: CommandMeta) -> Answering<String> {
        ready(Ok(key.to_owned())).boxed()
    }

    fn outcome_json(&self, _: &str, _: &str) -> Option<Result<Value, String>> {
        None
    }
}
