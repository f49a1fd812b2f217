//! Agents of others (A2A 1.0): what is said to them, and where it may be sent.

mod client;
mod guard;
pub mod options;
mod push;
pub mod wire;

pub use client::{
    OutsideAgents, OutsideAnswer, OutsideMessage, PeerFailure, PeerFailureKind, PeerTerms,
};
pub use guard::{PushAddress, address_of};
pub use push::{PushFailure, PushSender};

/// What a node has for agents of others, made from `[a2a]`.
pub struct Outside {
    pub push: PushSender,
    pub agents: OutsideAgents,
}
