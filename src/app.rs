//! The composition root: what a node consists of, in which order it starts and stops.

pub mod core;
