//! What serves systems and knows none: entities on disk and in memory, the cluster, models, and the doors.
//! See ARCHITECTURE.md for the map.

pub mod actors;
pub mod ai;
pub mod cluster;
pub mod contract;
pub mod gateway;
pub mod kernel;
pub mod persistence;
