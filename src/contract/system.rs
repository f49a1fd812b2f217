//! A system: everything one folder below `systems/` declares.

use super::operation::Declared;

pub struct System {
    /// The folder's name.
    pub name: &'static str,
    pub operations: &'static [Declared],
}
