//! Language models: the router, on providers that fail.

mod fake;
mod money;
mod routing;
