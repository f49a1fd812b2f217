//! The integration tests: one binary, on real servers that it starts and stops itself.

mod clients;
mod cluster;
mod convergence;
mod counter;
mod edges;
mod embedded;
mod gateway;
mod members;
mod process;
mod runtime;
mod simulation;
mod starvation;
mod support;
mod tidy;
