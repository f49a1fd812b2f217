//! Pure domain code: one folder a system, one file an entity.
//!
//! **Architecture invariant:** a module here imports `kernel` and its own folder, nothing else. No async, no clock,
//! no randomness, no I/O: the same state and command give the same decision on every node and in every test.

pub mod app_topic;
pub mod marketplace;
pub mod sync;

#[cfg(test)]
mod golden_tests;
