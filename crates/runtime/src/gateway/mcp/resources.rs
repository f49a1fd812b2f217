//! The queries that can be read as resources.

use rmcp::model::{Resource, ResourceContents, ResourceTemplate};
use serde_json::{Map, Value};

use crate::contract::content::{self, ContentPart, ContentParts};
use crate::contract::operation::Sort;
use crate::contract::{Declared, System};

const JSON: &str = "application/json";

/// The resources of all systems, in the order of their addresses.
pub struct Resources(Vec<OfferedResource>);

pub struct OfferedResource {
    pub operation: &'static Declared,
    /// `proxie://bookings/{booking_id}`, where `{name}` is a field of the input.
    pub address: &'static str,
    /// Whether its answer is content of several kinds rather than JSON.
    is_content: bool,
}

impl OfferedResource {
    pub fn is_template(&self) -> bool {
        self.address.contains('{')
    }

    fn name(&self) -> String {
        self.operation.meta.name.to_owned()
    }

    pub fn resource(&self) -> Resource {
        let resource = Resource::new(self.address, self.name());
        let resource = resource.with_description(self.operation.meta.summary);
        if self.is_content { resource } else { resource.with_mime_type(JSON) }
    }

    pub fn template(&self) -> ResourceTemplate {
        let template = ResourceTemplate::new(self.address, self.name());
        let template = template.with_description(self.operation.meta.summary);
        if self.is_content { template } else { template.with_mime_type(JSON) }
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
                let is_content = operation.answer_schema() == *content::schema();
                Some(OfferedResource { operation, address, is_content })
            })
            .collect();
        resources.sort_by_key(|resource| resource.address);
        Self(resources)
    }

    pub fn all(&self) -> impl Iterator<Item = &OfferedResource> {
        self.0.iter()
    }

    /// The resource at an address, and the input of its query.
    pub fn find(&self, uri: &str) -> Option<(&OfferedResource, Map<String, Value>)> {
        self.0.iter().find_map(|resource| Some((resource, resource.input(uri)?)))
    }

    /// The one whose address is written so, with its fields' names in it.
    pub fn written(&self, address: &str) -> Option<&OfferedResource> {
        self.0.iter().find(|resource| resource.address == address)
    }

    /// The query behind an address, and the topic whose events say that it has changed.
    pub fn topic(&self, uri: &str) -> Option<(&'static Declared, String)> {
        let (resource, input) = self.find(uri)?;
        let mut topic = resource.operation.meta.changes_with?.to_owned();
        for (name, value) in input {
            topic = topic.replace(&format!("{{{name}}}"), value.as_str()?);
        }
        Some((resource.operation, topic))
    }

    /// Whether one of them says when it has changed.
    pub fn can_be_watched(&self) -> bool {
        self.0.iter().any(|resource| resource.operation.meta.changes_with.is_some())
    }
}

impl OfferedResource {
    /// What is at the address.
    pub fn contents(&self, answer: &str, uri: &str) -> Option<Vec<ResourceContents>> {
        if !self.is_content {
            return Some(vec![ResourceContents::text(answer, uri).with_mime_type(JSON)]);
        }
        let content: ContentParts = serde_json::from_str(answer).ok()?;
        let parts = content.parts.into_iter().map(|part| contents(part, uri));
        Some(parts.collect())
    }
}

/// A piece of content as what is at an address.
pub fn contents(part: ContentPart, uri: &str) -> ResourceContents {
    match part {
        ContentPart::Text { text } => ResourceContents::text(text, uri),
        ContentPart::Image { media_type, data } | ContentPart::Audio { media_type, data } => {
            ResourceContents::blob(data, uri).with_mime_type(media_type)
        }
        ContentPart::Resource { uri, media_type, text } => {
            ResourceContents::text(text, uri).with_mime_type(media_type)
        }
        ContentPart::Link { uri: target, .. } => {
            ResourceContents::text(target, uri).with_mime_type("text/uri-list")
        }
    }
}
