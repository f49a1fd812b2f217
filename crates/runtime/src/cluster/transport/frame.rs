//! The weight of an envelope, and the limits that both sides of a link agree on.

use serde::{Deserialize, Serialize};

use crate::cluster::transport::{Envelope, RemoteAnswer, TransportLimits};
use crate::kernel::entity::Caller;
use crate::kernel::error::AskError;

/// The size of a frame without its envelopes: two integers.
const FRAME_OVERHEAD: usize = 32;

/// An upper bound of the fixed part of any envelope, in memory and encoded.
pub(super) const ENVELOPE_OVERHEAD: usize = 256;

/// The weight of an envelope of version 1: the bytes that it counts in the window, on both sides. It is an upper bound
/// of the encoded length, so a limit on weights bounds the traffic, and nothing is encoded only to be measured.
pub(super) fn weight(envelope: &Envelope) -> usize {
    let content = match envelope {
        Envelope::Ask { ask, .. } => {
            let caller = match &ask.caller {
                Caller::User { id, .. } => id.len(),
                Caller::Entity { kind, key, .. } => kind.len() + key.len(),
                Caller::Runtime => 0,
            };
            ask.kind.len()
                + ask.key.len()
                + ask.command.len()
                + caller
                + ask.command_id.as_ref().map_or(0, String::len)
                + ask.traceparent.as_ref().map_or(0, String::len)
        }
        Envelope::Answer { answer, .. } => match answer {
            RemoteAnswer::Outcome(outcome) => outcome.len(),
            RemoteAnswer::Failed(AskError::Unavailable { reason, .. }) => reason.len(),
            RemoteAnswer::Failed(AskError::BadCommand(reason)) => reason.len(),
            RemoteAnswer::Failed(_) | RemoteAnswer::NotOwner { .. } => 0,
        },
        Envelope::Control(bytes) => bytes.len(),
    };
    ENVELOPE_OVERHEAD + content
}

/// The limits of one side. Both sides of a link keep to the smaller ones, so they count the same window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Terms {
    pub window: usize,
    pub envelope: usize,
    pub frame: usize,
    pub frame_envelopes: usize,
}

impl Terms {
    pub fn of(limits: &TransportLimits) -> Self {
        Self {
            window: limits.window_bytes,
            envelope: limits.max_envelope_bytes,
            frame: limits.max_frame_bytes,
            frame_envelopes: limits.max_frame_envelopes,
        }
    }

    pub fn agreed(self, other: Self) -> Self {
        let window = self.window.min(other.window);
        Self {
            window,
            // One answer fits into the part that is reserved for answers.
            envelope: self.envelope.min(other.envelope).min(window / 8),
            frame: self.frame.min(other.frame),
            frame_envelopes: self.frame_envelopes.min(other.frame_envelopes),
        }
    }

    /// The size of a frame with a single envelope, which may be larger than one with several.
    pub fn max_frame_length(&self) -> usize {
        self.frame.max(self.envelope) + FRAME_OVERHEAD
    }

    /// The fill of the window up to which such an envelope is sent. Asks leave room for pings, and both leave room for
    /// answers.
    pub fn share(&self, envelope: &Envelope) -> usize {
        match envelope {
            Envelope::Ask { .. } => self.window / 8 * 6,
            Envelope::Control(_) => self.window / 8 * 7,
            Envelope::Answer { .. } => self.window,
        }
    }

    /// The least credit that is sent by itself; less waits for more, or for another frame. It is small enough never to
    /// block an envelope for good: an eighth of the window is free for each sort.
    pub fn credit_batch(&self) -> usize {
        self.window / 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::transport::RemoteAsk;
    use crate::cluster::transport::wire::pack;
    use crate::kernel::entity::{Role, Scopes};

    #[test]
    fn an_envelope_is_never_longer_than_it_weighs() {
        let long = |n: usize| "x".repeat(n);
        for n in [0, 1, 250, 251, 70_000] {
            let caller = match n % 3 {
                0 => Caller::Runtime,
                1 => {
                    Caller::User { id: long(n), role: Role::Consumer, scopes: Scopes::parse("a b") }
                }
                _ => Caller::entity(long(n), long(n)),
            };
            let ask = RemoteAsk {
                kind: long(n),
                key: long(n),
                command: long(n),
                caller,
                command_id: Some(long(n)),
                remaining_ms: u32::MAX,
                epoch: i64::MIN,
                traceparent: Some(long(n)),
            };
            let failed = AskError::Unavailable { reason: long(n), retry_after_ms: u64::MAX };
            let answers = [
                RemoteAnswer::Outcome(long(n)),
                RemoteAnswer::Failed(failed),
                RemoteAnswer::Failed(AskError::BadCommand(long(n))),
                RemoteAnswer::NotOwner { owner: Some(i64::MIN), epoch: i64::MIN },
            ];
            let mut envelopes: Vec<Envelope> = answers
                .into_iter()
                .map(|answer| Envelope::Answer { correlation: u64::MAX, answer })
                .collect();
            envelopes.push(Envelope::Ask { correlation: u64::MAX, ask });
            envelopes.push(Envelope::Control(vec![255; n]));
            for envelope in envelopes {
                assert!(std::mem::size_of_val(&envelope) <= ENVELOPE_OVERHEAD);
                for version in [1, 2] {
                    let packed = pack(envelope.clone(), version);
                    assert!(packed.bytes.len() <= packed.weight, "{envelope:?}");
                }
            }
        }
    }
}
