//! The composition root: what a node consists of, in which order it starts and stops, and the command line.

mod call;
pub mod certificates;
pub mod cli;
mod client;
pub mod cluster_view;
pub mod core;
mod demo;
pub mod member;
pub mod node;
pub mod pulses;
mod renewal;
mod serve;
pub mod settings;
