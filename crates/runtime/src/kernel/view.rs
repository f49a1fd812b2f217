//! Read models: rows that entities project and lists show.

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kernel::entity::to_value;

/// A row of a read model, written in the same commit as the events that it follows from.
///
/// The table follows from the type: a column for each field, an index in the order of its list. What needs more (an
/// exclusion constraint, an array, a second party) is SQL in a migration, which comes first.
pub trait View: Serialize + DeserializeOwned + JsonSchema + Send + 'static {
    /// The table's name. Persisted: never renamed.
    const NAME: &'static str;
    /// The column that is unique.
    const KEY: &'static str = "id";
    /// The kind of entity whose private values the rows hold, and the column with its key.
    const PRIVATE_TO: Option<(&'static str, &'static str)> = None;
    /// The list of an owner's rows. `None`: rows are read by their key, or by the system's own SQL.
    const LISTED: Option<Listed>;
}

/// The list of an owner's rows: whose they are, and their order.
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

    /// The list of a view. A view without one does not compile here.
    pub const fn of<V: View>() -> Self {
        const { V::LISTED.expect("this view has no owner") }
    }
}

/// A row to be written: a whole row, or only the given columns of one.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewRow {
    pub view: &'static str,
    pub row: Value,
}

impl ViewRow {
    pub fn of<V: View>(row: &V) -> Self {
        Self::new(V::NAME, to_value(row))
    }

    /// A row for a view whose upsert function is written by hand.
    pub fn new(view: &'static str, row: Value) -> Self {
        Self { view, row }
    }
}
