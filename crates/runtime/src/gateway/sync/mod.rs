//! `/sync/ws`: the messages of the devices' own protocol, spoken over the same connections.

mod link;
mod talk;

pub use link::SyncLink;
