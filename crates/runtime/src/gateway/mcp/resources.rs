//! The queries that can be read as resources.

use rmcp::model::{Resource, ResourceTemplate};
use serde_json::{Map, Value};

use crate::contract::operation::Sort;
use crate::contract::{Declared, System};

const JSON: &str = "application/json";

/// The resources of all systems, in the order of their addresses.
pub struct Resources(Vec<OfferedResource>);

pub struct OfferedResource {
    pub operation: &'static Declared,
    /// `proxie://bookings/{booking_id}`, where `{name}` is a field of the input.
    pub address: &'static str,
}

impl OfferedResource {
    pub fn is_template(&self) -> bool {
        self.address.contains('{')
    }

    fn name(&self) -> String {
        self.operation.meta.name.to_owned()
    }

    pub fn resource(&self) -> Resource {
        let resource = Resource::new(self.address, self.name()).with_mime_type(JSON);
        resource.with_description(self.operation.meta.summary)
    }

    pub fn template(&self) -> ResourceTemplate {
        let template = ResourceTemplate::new(self.address, self.name()).with_mime_type(JSON);
        template.with_description(self.operation.meta.summary)
    }

    /// The input of the query, if `uri` is one of its addresses.
    fn input(&self, uri: &str) -> Option<Map<String, Value>> {
        let (pattern, given) = (self.address.split('/'), uri.split('/'));
        if pattern.clone().count() != given.clone().count() {
            return None;
        }
        let mut input = Map::new();
        for (pattern, given) in pattern.zip(given) {
            match pattern.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
                Some(name) if !given.is_empty() => drop(input.insert(name.into(), given.into())),
                None if pattern == given => {}
                _ => return None,
            }
        }
        Some(input)
    }
}

impl Resources {
    pub fn of(systems: &'static [&'static System]) -> Self {
        let operations = systems.iter().flat_map(|system| system.operations);
        let mut resources: Vec<_> = operations
            .filter_map(|operation| {
                let address = operation.meta.resource?;
                assert!(
                    operation.meta.sort == Sort::Query,
                    "what is read changes nothing: {address}"
                );
                Some(OfferedResource { operation, address })
            })
            .collect();
        resources.sort_by_key(|resource| resource.address);
        Self(resources)
    }

    pub fn all(&self) -> impl Iterator<Item = &OfferedResource> {
        self.0.iter()
    }

    /// The query behind an address, and its input.
    pub fn find(&self, uri: &str) -> Option<(&'static Declared, Map<String, Value>)> {
        self.0.iter().find_map(|resource| Some((resource.operation, resource.input(uri)?)))
    }
}
