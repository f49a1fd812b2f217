//! A system: everything one folder below `systems/` declares.

use futures_util::future::BoxFuture;

use super::call::Call;
use super::operation::Declared;
use super::problem::Outcome;
use super::topic::{Announced, TopicKind};

pub struct System {
    /// The folder's name.
    pub name: &'static str,
    pub operations: &'static [Declared],
    pub topics: &'static [TopicKind],
    /// What clients hear on topics.
    pub announcements: &'static [Announced],
    /// Whether the caller has something open with another user, which lets them see whether that user is there.
    pub have_dealings: Option<HaveDealings>,
}

pub type HaveDealings = for<'a> fn(&'a Call, &'a str) -> BoxFuture<'a, Outcome<bool>>;

impl System {
    /// A system that declares nothing yet.
    pub const fn new(name: &'static str) -> Self {
        Self { name, operations: &[], topics: &[], announcements: &[], have_dealings: None }
    }
}
