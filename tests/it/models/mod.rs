//! Language models: the router, on providers that fail.

mod answers;
pub mod fake;
mod independent;
mod memories;
mod money;
pub mod routing;
mod similar;
