//! Views: read models whose tables, lists and rights follow from their types.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::call::{Call, known_id};
use super::list::{ListOf, Page, Paging};
use super::operation::Operation;
use super::problem::{Outcome, Problem};
use crate::kernel::view::View;
use crate::persistence::views::{List, ViewTable};

/// A view in the list of its system.
pub const fn view<V: View>() -> fn() -> ViewTable {
    table::<V>
}

/// The table that a view's type describes.
fn table<V: View>() -> ViewTable {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<V>().to_value();
    let fields = schema["properties"].as_object().into_iter().flatten();
    let columns: Vec<_> = fields.map(|(name, field)| (name.clone(), column(field))).collect();
    for named in [V::KEY].into_iter().chain(V::LISTED.into_iter().flat_map(|l| [l.by, l.order])) {
        let known = columns.iter().any(|(column, _)| column == named);
        assert!(known, "{} has no field {named}", V::NAME);
    }
    ViewTable { name: V::NAME, key: V::KEY, listed: V::LISTED, columns }
}

/// The type of a field's column. A value that is no text, number, time or boolean is stored as JSON.
fn column(schema: &Value) -> &'static str {
    let options = schema["anyOf"].as_array().or_else(|| schema["oneOf"].as_array());
    if let Some(options) = options {
        let mut kinds = options.iter().filter(|one| one["type"] != "null").map(column);
        let first = kinds.next().unwrap_or("jsonb");
        return if kinds.all(|kind| kind == first) { first } else { "jsonb" };
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().find(|kind| *kind != "null").unwrap_or(&Value::Null),
        kind => kind,
    };
    match kind.as_str() {
        Some("string") if schema["format"] == "date-time" => "timestamptz",
        Some("string") => "text",
        Some("integer") => "bigint",
        Some("number") => "double precision",
        Some("boolean") => "boolean",
        _ => "jsonb",
    }
}

impl Call {
    /// A row that belongs to the caller, else `not_found`.
    pub async fn own<V: View>(&self, id: &str, what: &str) -> Outcome<V> {
        let row = self.views()?.get_of::<V>(&self.user_id, known_id(id, what)?).await?;
        row.ok_or_else(|| Problem::not_found(what))
    }

    /// The caller's rows, newest first, as the answer of operation `O`.
    pub async fn own_rows<O: Operation, V: View>(&self, paging: Paging) -> Outcome<Page<V>> {
        self.rows(ListOf::new(&[O::META.name]), &self.user_id, true, paging).await
    }

    /// The rows of an object whose owner has been checked, as the answer of operation `O`.
    pub async fn rows_of<O: Operation, V: View>(
        &self,
        owner: &str,
        newest_first: bool,
        paging: Paging,
    ) -> Outcome<Page<V>> {
        let order = if newest_first { "desc" } else { "asc" };
        let list = ListOf::new(&[O::META.name, owner, order]);
        self.rows(list, owner, newest_first, paging).await
    }

    async fn rows<V: View>(
        &self,
        list: ListOf,
        owner: &str,
        newest_first: bool,
        paging: Paging,
    ) -> Outcome<Page<V>> {
        let from = match newest_first {
            true => list.down(paging.cursor)?,
            false => list.up(paging.cursor)?,
        };
        let limit = paging.limit.unwrap_or_default().0;
        let wanted = List { owner, newest_first, from, limit };
        Ok(list.page(self.views()?.list::<V>(wanted).await?))
    }
}
