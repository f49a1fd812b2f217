//! What an operation does with the connection over which it was asked.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::call::Call;
use super::problem::Outcome;

/// What becomes of a connection when the operation has succeeded. Other doors take no notice.
#[derive(Clone, Copy, Debug)]
pub enum OnConnection {
    /// It subscribes to the topic of that name, from the input's `position` or from now, and the answer gets
    /// `recovered` and `position`.
    Listens(fn(input: &Value, answer: &Value) -> Option<String>),
    /// It leaves the topic of that name.
    Leaves(fn(input: &Value) -> Option<String>),
    /// It holds something for as long as it lasts.
    Holds(&'static ConnectionHold),
}

/// Something that a connection holds, in the place of what it held by the same operation before.
#[derive(Debug)]
pub struct ConnectionHold {
    /// The input's field that names it.
    pub field: &'static str,
    /// Whether this input holds it. Otherwise the operation itself has ended it.
    pub is_held: fn(input: &Value) -> bool,
    /// When it ends by itself, unless the operation is asked again.
    pub lasts: Option<Duration>,
    /// Said with each ping of the connection.
    pub renew: Option<HoldAction>,
    /// Said when the connection lets go of it, however it ends.
    pub end: HoldAction,
}

/// Something to be said about what is held, by its name. The call knows the connection.
pub type HoldAction = fn(Call, String) -> BoxFuture<'static, Outcome<()>>;
