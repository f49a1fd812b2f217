//! A system: everything one folder below `systems/` declares.

use super::operation::Declared;
use super::topic::Announced;

pub struct System {
    /// The folder's name.
    pub name: &'static str,
    pub operations: &'static [Declared],
    /// What clients hear on topics.
    pub announcements: &'static [Announced],
}
