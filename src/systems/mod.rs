//! The systems: one folder each, with its entities in `domain/`.

pub mod app_topics;
pub mod devices;
pub mod marketplace;

use crate::contract::System;

/// The one list.
pub const ALL: &[&System] = &[&marketplace::SYSTEM, &devices::SYSTEM, &app_topics::SYSTEM];

#[cfg(test)]
mod golden_tests;
