//! Language models: the router, on providers that fail.

mod answers;
mod fake;
mod independent;
mod memories;
mod money;
mod routing;
