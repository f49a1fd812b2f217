//! Effects of an operation on the connection that it was called over.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::call::Call;
use super::problem::Outcome;

/// The effect on the connection once the operation has succeeded. Doors without connections ignore it.
#[derive(Clone, Copy, Debug)]
pub enum OnConnection {
    /// It subscribes to the topic of that name, from the input's `position` or from now, and the answer gets
    /// `recovered` and `position`.
    Listens(fn(input: &Value, answer: &Value) -> Option<String>),
    /// It leaves the topic of that name.
    Leaves(fn(input: &Value) -> Option<String>),
    /// It holds something for as long as the connection lasts.
    Holds(&'static ConnectionHold),
}

/// Something that a connection holds. It replaces what the connection held by the same operation before.
#[derive(Debug)]
pub struct ConnectionHold {
    /// The input's field that names it.
    pub field: &'static str,
    /// Whether this input holds it. Otherwise the operation itself has ended it.
    pub is_held: fn(input: &Value) -> bool,
    /// The time at which it ends by itself, unless the operation is called again.
    pub lasts: Option<Duration>,
    /// Called with each ping of the connection.
    pub renew: Option<HoldAction>,
    /// Called when the connection lets go of it, however it ends.
    pub end: HoldAction,
}

/// A function that reports about a held object, by its name. The call knows the connection.
pub type HoldAction = fn(Call, String) -> BoxFuture<'static, Outcome<()>>;
