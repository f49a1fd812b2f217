//! Language models: the router, on providers that fail.

pub mod fake;
mod independent;
mod money;
mod routing;
