//! Read models: rows that entities project and lists show.

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kernel::entity::to_value;

/// One row of a read model, written in the commit of the events that it follows from.
///
/// The table follows from the type: a column for each field, an index in the order of its list. What needs more (an
/// exclusion constraint, an array, a second party) is SQL in a migration, which comes first.
pub trait View: Serialize + DeserializeOwned + JsonSchema + Send + 'static {
    /// The table. Persisted: never renamed.
    const NAME: &'static str;
    /// The column that is unique.
    const KEY: &'static str = "id";
    /// Rows hold private values of the entities of this kind whose key is in this column.
    const PRIVATE_TO: Option<(&'static str, &'static str)> = None;
    /// `None`: rows are read by their key, or by SQL of the system's.
    const LISTED: Option<Listed>;
}

/// How the rows of an owner are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The column of the owner: a user, or an object whose owner is checked.
    pub by: &'static str,
    /// The column of the time that they are ordered by.
    pub order: &'static str,
}

impl Listed {
    pub const fn by(by: &'static str, order: &'static str) -> Option<Self> {
        Some(Self { by, order })
    }

    /// Of a view that is listed: another one does not compile.
    pub const fn of<V: View>() -> Self {
        const { V::LISTED.expect("this view has no owner") }
    }
}

/// A row to be written: the whole of it, or of its columns those that are given.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewRow {
    pub view: &'static str,
    pub row: Value,
}

impl ViewRow {
    pub fn of<V: View>(row: &V) -> Self {
        Self::new(V::NAME, to_value(row))
    }

    /// For views whose function is written by hand.
    pub fn new(view: &'static str, row: Value) -> Self {
        Self { view, row }
    }
}
