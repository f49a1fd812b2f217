//! Proxie: an agent-native realtime backend. See ARCHITECTURE.md for the map.

pub mod actors;
pub mod cluster;
pub mod kernel;
pub mod persistence;
