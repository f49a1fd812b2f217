//! The declared operations with their schemas, for both API documents.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use crate::contract::problem::ProblemDetails;
use crate::contract::topic::Announced;
use crate::contract::{Declared, System};

pub struct Described {
    pub operations: Vec<DescribedOperation>,
    pub announcements: Vec<DescribedAnnouncement>,
    /// The schemas by name.
    pub schemas: Map<String, Value>,
}

pub struct DescribedAnnouncement {
    pub announced: &'static Announced,
    pub data: Value,
}

pub struct DescribedOperation {
    pub declared: &'static Declared,
    pub input: Value,
    pub answer: Value,
}

pub fn describe(systems: &'static [&'static System]) -> Described {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let declared = systems.iter().flat_map(|system| system.operations);
    let operations = declared
        .map(|declared| DescribedOperation {
            declared,
            input: (declared.input)(&mut generator).to_value(),
            answer: (declared.answer)(&mut generator).to_value(),
        })
        .collect();
    let announced = systems.iter().flat_map(|system| system.announcements);
    let announcements = announced
        .map(|announced| {
            let data = (announced.data)(&mut generator).to_value();
            DescribedAnnouncement { announced, data }
        })
        .collect();
    generator.subschema_for::<ProblemDetails>();
    Described { operations, announcements, schemas: generator.take_definitions(true) }
}

/// The schema that a reference points to, or the schema itself.
pub fn resolved<'a>(schema: &'a Value, schemas: &'a Map<String, Value>) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|at| at.rsplit('/').next());
    name.and_then(|name| schemas.get(name)).unwrap_or(schema)
}
