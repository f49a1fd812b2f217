//! The systems: one folder each, with its entities in `domain/`.

pub mod app_topics;
pub mod devices;
pub mod marketplace;

#[cfg(test)]
mod golden_tests;
