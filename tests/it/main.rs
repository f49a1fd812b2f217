//! The integration tests: one binary, on real servers that it starts and stops itself.

mod clients;
mod cluster;
mod convergence;
mod counter;
mod database;
mod documents;
mod edges;
mod embedded;
mod failover;
mod gateway;
mod members;
mod principals;
mod process;
mod releases;
mod runtime;
mod schema;
mod sealing;
mod simulation;
mod starvation;
mod steady;
mod stopping;
mod support;
mod tidy;
mod vault;
mod vouchers;
