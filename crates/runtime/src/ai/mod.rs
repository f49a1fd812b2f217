//! The way to language models: which one is asked, for how long, how often, and what that costs.
//!
//! `genai` speaks the providers' wires ([`wire`]). What it leaves to its users is here: chains of models, one deadline over
//! all attempts, three clocks, circuit breakers, limits a provider, and prices. Beside it, the ways to outside servers of tools
//! ([`servers`]) and to agents of others ([`peers`]).

mod answers;
mod breaker;
mod embedding;
mod failure;
pub mod options;
pub mod peers;
mod provider;
mod route;
mod router;
pub mod servers;
mod similar;
mod wire;
pub mod words;
mod written;

pub use answers::{Keep, SharedAnswers};
pub use embedding::{Embedder, WORDS};
pub use failure::{Failure, FailureKind};
pub use options::Options;
pub use router::{AnswerDelta, Bill, Complexity, ModelAsk, ModelFailure, ModelRouter, Purse};
pub use servers::OutsideTools;
pub use similar::{SimilarAnswers, SimilarFound, SimilarQuestion};
