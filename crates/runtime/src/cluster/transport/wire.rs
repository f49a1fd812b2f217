//! The messages between nodes, in each version of the protocol.
//!
//! Two nodes speak the newest version that both know (`handshake`), so that releases can be upgraded one node at a time.
//! Version 1 encodes every field by position: it can never change, and has its own types. From version 2 on, the sender
//! of a command and the reason of a failure are JSON, which can grow: a node ignores fields that it does not know, and
//! reads an unknown sender or reason as [`Unknown`].

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cluster::transport::frame::weight;
use crate::cluster::transport::{Envelope, RemoteAnswer, RemoteAsk};
use crate::kernel::codec;
use crate::kernel::entity::Caller;
use crate::kernel::error::AskError;

/// The versions that a node speaks, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Versions {
    pub oldest: u8,
    pub newest: u8,
}

impl Versions {
    /// The versions of this release.
    pub const OURS: Self = Self { oldest: 1, newest: 2 };
    /// The version of the releases that knew no range.
    pub const FIRST: Self = Self { oldest: 1, newest: 1 };

    /// The newest version that both sides speak.
    pub fn agreed(self, other: Self) -> Option<u8> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.oldest, self.newest)
    }
}

/// An encoded envelope, and its weight in the window.
pub(super) struct Packed {
    pub bytes: Vec<u8>,
    pub weight: usize,
}

/// A received envelope.
pub(super) struct Unpacked {
    pub envelope: Result<Envelope, Unknown>,
    pub weight: usize,
}

/// A command whose sender only a newer release can read.
#[derive(Debug, PartialEq)]
pub(super) struct Unknown {
    pub correlation: u64,
}

/// An envelope, generic over the encodings of the sender (`C`) and of the failure (`F`).
#[derive(Serialize, Deserialize)]
enum WireMessage<C, F> {
    Ask { correlation: u64, ask: Ask<C> },
    Answer { correlation: u64, answer: Answer<F> },
    Control(Vec<u8>),
}

#[derive(Serialize, Deserialize)]
struct Ask<C> {
    kind: String,
    key: String,
    command: String,
    caller: C,
    command_id: Option<String>,
    remaining_ms: u32,
    epoch: i64,
    traceparent: Option<String>,
}

#[derive(Serialize, Deserialize)]
enum Answer<F> {
    Outcome(String),
    Failed(F),
    NotOwner { owner: Option<i64>, epoch: i64 },
}

type Positional = WireMessage<first::Caller, first::AskError>;
type Described = WireMessage<String, String>;

pub(super) fn pack(envelope: Envelope, version: u8) -> Packed {
    if version == 1 {
        let weight = weight(&envelope);
        return Packed {
            bytes: codec::encode(&told(envelope, first::caller, first::error)),
            weight,
        };
    }
    let bytes = codec::encode(&told(envelope, |caller| json(&caller), |error| json(&error)));
    let weight = described_weight(bytes.len());
    Packed { bytes, weight }
}

/// The first envelope in the bytes, and its length. `None`: the bytes do not begin with an envelope.
pub(super) fn unpack(bytes: &[u8], version: u8) -> Option<(Unpacked, usize)> {
    if version == 1 {
        let (told, length): (Positional, usize) = codec::decode_first(bytes)?;
        let envelope = envelope(told, |caller| Some(caller.into()), |error| Some(error.into()));
        let weight = envelope.as_ref().map_or(0, weight);
        return Some((Unpacked { envelope, weight }, length));
    }
    let (told, length): (Described, usize) = codec::decode_first(bytes)?;
    let envelope = envelope(told, |caller| read(&caller), |error| read(&error));
    Some((Unpacked { envelope, weight: described_weight(length) }, length))
}

/// The weight, which follows from the bytes alone: both sides count the same, even if one cannot read the message.
fn described_weight(length: usize) -> usize {
    super::frame::ENVELOPE_OVERHEAD + length
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("it is plain data")
}

fn read<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}

fn told<C, F>(
    envelope: Envelope,
    caller: impl FnOnce(Caller) -> C,
    error: impl FnOnce(AskError) -> F,
) -> WireMessage<C, F> {
    match envelope {
        Envelope::Ask { correlation, ask } => WireMessage::Ask {
            correlation,
            ask: Ask {
                kind: ask.kind,
                key: ask.key,
                command: ask.command,
                caller: caller(ask.caller),
                command_id: ask.command_id,
                remaining_ms: ask.remaining_ms,
                epoch: ask.epoch,
                traceparent: ask.traceparent,
            },
        },
        Envelope::Answer { correlation, answer } => {
            let answer = match answer {
                RemoteAnswer::Outcome(outcome) => Answer::Outcome(outcome),
                RemoteAnswer::Failed(failed) => Answer::Failed(error(failed)),
                RemoteAnswer::NotOwner { owner, epoch } => Answer::NotOwner { owner, epoch },
            };
            WireMessage::Answer { correlation, answer }
        }
        Envelope::Control(message) => WireMessage::Control(message),
    }
}

fn envelope<C, F>(
    told: WireMessage<C, F>,
    caller: impl FnOnce(C) -> Option<Caller>,
    error: impl FnOnce(F) -> Option<AskError>,
) -> Result<Envelope, Unknown> {
    Ok(match told {
        WireMessage::Ask { correlation, ask } => Envelope::Ask {
            correlation,
            ask: RemoteAsk {
                kind: ask.kind,
                key: ask.key,
                command: ask.command,
                caller: caller(ask.caller).ok_or(Unknown { correlation })?,
                command_id: ask.command_id,
                remaining_ms: ask.remaining_ms,
                epoch: ask.epoch,
                traceparent: ask.traceparent,
            },
        },
        WireMessage::Answer { correlation, answer } => {
            let answer = match answer {
                Answer::Outcome(outcome) => RemoteAnswer::Outcome(outcome),
                Answer::Failed(failed) => {
                    let unknown = || AskError::unavailable("for a reason of a newer release");
                    RemoteAnswer::Failed(error(failed).unwrap_or_else(unknown))
                }
                Answer::NotOwner { owner, epoch } => RemoteAnswer::NotOwner { owner, epoch },
            };
            Envelope::Answer { correlation, answer }
        }
        WireMessage::Control(message) => Envelope::Control(message),
    })
}

/// The types of version 1, encoded by position. They stay as they are, even when the types that they stand for change.
mod first {
    use serde::{Deserialize, Serialize};

    use crate::kernel::{entity, error};

    #[derive(Serialize, Deserialize)]
    pub enum Caller {
        User { id: String, role: Role },
        Entity { kind: String, key: String },
        Runtime,
    }

    #[derive(Serialize, Deserialize)]
    pub enum Role {
        Consumer,
        Provider,
        Operator,
    }

    #[derive(Serialize, Deserialize)]
    pub enum AskError {
        Overloaded,
        Unavailable { reason: String, retry_after_ms: u64 },
        NotHere,
        DeadlineExceeded,
        IdReused,
        Internal,
        BadCommand(String),
        TooLarge,
    }

    pub fn caller(caller: entity::Caller) -> Caller {
        match caller {
            entity::Caller::User { id, role, .. } => {
                let role = match role {
                    entity::Role::Consumer => Role::Consumer,
                    entity::Role::Provider => Role::Provider,
                    entity::Role::Operator => Role::Operator,
                };
                Caller::User { id, role }
            }
            entity::Caller::Entity { kind, key, .. } => Caller::Entity { kind, key },
            entity::Caller::Runtime => Caller::Runtime,
        }
    }

    impl From<Caller> for entity::Caller {
        fn from(caller: Caller) -> Self {
            match caller {
                Caller::User { id, role } => {
                    let role = match role {
                        Role::Consumer => entity::Role::Consumer,
                        Role::Provider => entity::Role::Provider,
                        Role::Operator => entity::Role::Operator,
                    };
                    Self::user(id, role)
                }
                Caller::Entity { kind, key } => Self::entity(kind, key),
                Caller::Runtime => Self::Runtime,
            }
        }
    }

    pub fn error(error: error::AskError) -> AskError {
        use error::AskError as E;
        match error {
            E::Overloaded => AskError::Overloaded,
            E::Unavailable { reason, retry_after_ms } => {
                AskError::Unavailable { reason, retry_after_ms }
            }
            E::NotHere => AskError::NotHere,
            E::DeadlineExceeded => AskError::DeadlineExceeded,
            E::IdReused => AskError::IdReused,
            E::Internal => AskError::Internal,
            E::BadCommand(reason) => AskError::BadCommand(reason),
            E::TooLarge => AskError::TooLarge,
        }
    }

    impl From<AskError> for error::AskError {
        fn from(error: AskError) -> Self {
            match error {
                AskError::Overloaded => Self::Overloaded,
                AskError::Unavailable { reason, retry_after_ms } => {
                    Self::Unavailable { reason, retry_after_ms }
                }
                AskError::NotHere => Self::NotHere,
                AskError::DeadlineExceeded => Self::DeadlineExceeded,
                AskError::IdReused => Self::IdReused,
                AskError::Internal => Self::Internal,
                AskError::BadCommand(reason) => Self::BadCommand(reason),
                AskError::TooLarge => Self::TooLarge,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::transport::frame::ENVELOPE_OVERHEAD;
    use crate::kernel::entity::{Principal, Role, Scopes};

    fn ask(caller: Caller) -> Envelope {
        let ask = RemoteAsk {
            kind: "booking".into(),
            key: "bkg_1".into(),
            command: "\"Get\"".into(),
            caller,
            command_id: Some("c".into()),
            remaining_ms: 10_000,
            epoch: 3,
            traceparent: None,
        };
        Envelope::Ask { correlation: 7, ask }
    }

    fn envelopes() -> Vec<Envelope> {
        let errors = [
            AskError::Overloaded,
            AskError::Unavailable { reason: "away".into(), retry_after_ms: 50 },
            AskError::NotHere,
            AskError::DeadlineExceeded,
            AskError::IdReused,
            AskError::Internal,
            AskError::BadCommand("no".into()),
            AskError::TooLarge,
        ];
        let roles = [Role::Consumer, Role::Provider, Role::Operator];
        let users = roles.map(|role| ask(Caller::user("alice", role)));
        let entity = Caller::entity("user", "alice");
        let answers = errors.into_iter().map(RemoteAnswer::Failed).chain([
            RemoteAnswer::Outcome("{}".into()),
            RemoteAnswer::NotOwner { owner: Some(4), epoch: 5 },
        ]);
        let answers = answers.map(|answer| Envelope::Answer { correlation: 9, answer });
        users
            .into_iter()
            .chain([ask(entity), ask(Caller::Runtime), Envelope::Control(vec![1, 2])])
            .chain(answers)
            .collect()
    }

    #[test]
    fn every_version_brings_over_what_this_release_says() {
        for version in [1, 2] {
            for envelope in envelopes() {
                let packed = pack(envelope.clone(), version);
                let (unpacked, length) = unpack(&packed.bytes, version).unwrap();
                assert_eq!(
                    (unpacked.envelope, unpacked.weight, length),
                    (Ok(envelope), packed.weight, packed.bytes.len())
                );
                assert!(packed.bytes.len() <= packed.weight);
            }
        }
    }

    /// Envelopes as the releases that only knew version 1 wrote them.
    #[test]
    fn version_1_is_what_it_was() {
        let lines = include_str!("first.hex").lines();
        let hex = |envelope| {
            pack(envelope, 1).bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        let packed: Vec<String> = envelopes().into_iter().map(hex).collect();
        assert_eq!(packed, lines.collect::<Vec<_>>());
    }

    #[test]
    fn what_a_newer_release_adds_is_left_out_or_said_to_be_unknown() {
        let told = |caller: &str| {
            let described: Described =
                told(ask(Caller::Runtime), |_| caller.to_owned(), |e| json(&e));
            unpack(&codec::encode(&described), 2).unwrap().0
        };
        let more = r#"{"who":"user","id":"alice","role":"consumer","for":"bob","badges":["read"]}"#;
        let alice = Caller::user("alice", Role::Consumer);
        assert_eq!(told(more).envelope, Ok(ask(alice)));
        for unknown in
            [r#"{"who":"agent","of":"alice"}"#, r#"{"who":"user","id":"alice","role":"auditor"}"#]
        {
            let unpacked = told(unknown);
            assert_eq!(unpacked.envelope, Err(Unknown { correlation: 7 }), "{unknown}");
            assert!(unpacked.weight > ENVELOPE_OVERHEAD, "it counts all the same");
        }
        let failed = RemoteAnswer::Failed(AskError::NotHere);
        let failed = Envelope::Answer { correlation: 9, answer: failed };
        let told = told_with(failed, r#"{"Postponed":{"until":"2027"}}"#);
        let Ok(Envelope::Answer { answer: RemoteAnswer::Failed(error), .. }) = told else {
            panic!("{told:?}")
        };
        assert!(error.code().retryable(), "{error:?}");
    }

    #[test]
    fn for_whom_it_is_goes_with_it_to_whoever_reads_it() {
        let for_user = Some(Principal { user_id: "alice".into(), scopes: Scopes::parse("a b") });
        let agent =
            |for_user| ask(Caller::Entity { kind: "agent".into(), key: "1".into(), for_user });
        let travels = |version| {
            let packed = pack(agent(for_user.clone()), version);
            let unpacked = unpack(&packed.bytes, version).unwrap().0;
            assert_eq!(unpacked.weight, packed.weight, "both sides count the same");
            unpacked.envelope
        };
        assert_eq!(travels(2), Ok(agent(for_user.clone())));
        assert_eq!(travels(1), Ok(agent(None)), "the release before does not know of it");
    }

    fn told_with(envelope: Envelope, error: &str) -> Result<Envelope, Unknown> {
        let described: Described = told(envelope, |c| json(&c), |_| error.to_owned());
        unpack(&codec::encode(&described), 2).unwrap().0.envelope
    }

    #[test]
    fn the_newest_version_of_both_is_agreed_on() {
        let speaks = |oldest, newest| Versions { oldest, newest };
        for (one, other, agreed) in [
            (speaks(1, 2), speaks(1, 2), Some(2)),
            (speaks(1, 2), Versions::FIRST, Some(1)),
            (speaks(1, 2), speaks(2, 5), Some(2)),
            (speaks(1, 2), speaks(3, 4), None),
        ] {
            assert_eq!((one.agreed(other), other.agreed(one)), (agreed, agreed));
        }
    }
}
