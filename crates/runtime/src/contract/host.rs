//! An agent's host: the program at the other end of a call that runs an agent for a person, such as Claude Desktop. It can
//! be asked in the middle of a call, and be told how the call goes. Only the door for agents has one.

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::problem::{Outcome, Problem};

/// The reason of a refusal where nobody can be asked.
pub const CANNOT_ASK: &str = "cannot_ask";

/// A question to an agent's host.
#[derive(Clone, Debug, PartialEq)]
pub enum HostQuestion {
    /// To its person: a form. The schema is an object of texts, numbers, booleans and choices.
    Person { message: String, form: Value },
    /// To its model.
    Model { text: String, max_tokens: u32 },
    /// The folders that it works in.
    Folders,
}

/// The answer to the question of that name.
#[derive(Clone, Debug, PartialEq)]
pub enum HostAnswer {
    /// The form as it was filled in; `None`: the person would not.
    Person(Option<Value>),
    Model(String),
    /// Their addresses.
    Folders(Vec<String>),
}

/// How much a line of a call's log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Debug,
    Info,
    Warning,
    Error,
}

/// An agent's host, as the operation that it has called sees it.
pub trait AgentHost: Send + Sync {
    fn can_answer(&self, question: &HostQuestion) -> bool;

    /// Asks, under names that are unique in the call. The answers are in the order of the questions.
    ///
    /// An answer may come with another request, on another node: then this is an error, with which the operation has to
    /// end, and the operation runs again from its start under the same command id. So whatever it does before it asks
    /// must be harmless to repeat, as commands under the call's own id are.
    fn ask(
        &self,
        questions: Vec<(&'static str, HostQuestion)>,
    ) -> BoxFuture<'_, Outcome<Vec<HostAnswer>>>;

    /// Says how the call goes, to whoever looks into it. It may be lost.
    fn log(&self, level: LogLevel, text: &str);
}

/// The refusal of a call that needs an answer from somebody who cannot be asked.
pub fn cannot_ask() -> Problem {
    Problem::rejected(CANNOT_ASK, "this needs a client that can ask its person, or its model")
}
