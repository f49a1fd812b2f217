//! Proxie: an agent-native realtime backend. See ARCHITECTURE.md for the map.

pub mod domain;
pub mod kernel;
