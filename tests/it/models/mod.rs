//! Language models: the router, on providers that fail.

mod fake;
mod independent;
mod money;
mod routing;
