//! Proxie: an agent-native realtime backend. See ARCHITECTURE.md for the map.

pub mod actors;
pub mod ai;
pub mod app;
pub mod cluster;
pub mod config;
pub mod contract;
pub mod gateway;
pub mod kernel;
pub mod persistence;
pub mod systems;
pub mod telemetry;
