//! Proxie: an agent-native realtime backend. See ARCHITECTURE.md for the map.

pub mod app;
pub mod config;
pub mod systems;
pub mod telemetry;

// The other crate's parts are named as if they were here, so that every path in the house begins with `crate::`.
pub use proxie_runtime::{
    actors, ai, cluster, contract, gateway, kernel, messages, own_types, persistence,
};
