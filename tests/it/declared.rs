//! What the doors make of all declarations: documents, pages, tools, prompts and resources.

use std::collections::BTreeSet;

use proxie::gateway::http::{asyncapi, docs_page, openapi};
use proxie::gateway::mcp::prompts::Prompts;
use proxie::gateway::mcp::resources::Resources;
use proxie::gateway::mcp::tools::{OfferedTool, Tools};
use proxie::systems::ALL;
use serde_json::Value;

/// The texts of this keyword, at any depth.
fn all<'a>(keyword: &str, value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get(keyword).and_then(Value::as_str));
            fields.values().for_each(|value| all(keyword, value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| all(keyword, value, found)),
        _ => {}
    }
}

#[test]
fn every_reference_of_a_document_is_defined() {
    for document in [openapi::document(ALL), asyncapi::document(ALL)] {
        let mut found = BTreeSet::new();
        all("$ref", &document, &mut found);
        assert!(found.contains("#/components/schemas/ScoreParts"), "{found:?}");
        for at in found {
            assert!(document.pointer(at.strip_prefix('#').expect(at)).is_some(), "{at}");
        }
    }
}

/// `schemars` puts a number behind the second of two types that would have the same name.
#[test]
fn every_shape_has_a_name_of_its_own() {
    let document = openapi::document(ALL);
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let taken = |name: &&String| {
        let plain = name.trim_end_matches(|c: char| c.is_ascii_digit());
        plain.len() < name.len() && schemas.contains_key(plain)
    };
    let twice: Vec<_> = schemas.keys().filter(taken).collect();
    assert!(twice.is_empty(), "{twice:?}: rename one of each");
}

#[test]
fn the_docs_show_every_operation_and_nothing_from_elsewhere() {
    let page = docs_page(&openapi::document(ALL));
    for path in ["/v1/requests", "/v1/offers/{id}/accept", "/readyz"] {
        assert!(page.contains(path), "{path}");
    }
    assert!(!page.contains("<script") && !page.contains("http://") && !page.contains("style="));
}

#[test]
fn prompts_name_their_fields_and_tools_that_exist() {
    let (tools, prompts) = (Tools::of(ALL), Prompts::of(ALL));
    for prompt in prompts.texts() {
        prompt.filled(|_| Some("x")).unwrap();
        let mut named = 0;
        for tool in prompt.text.split('`').skip(1).step_by(2) {
            assert!(tools.get(tool).is_some(), "{}: {tool}", prompt.name);
            named += 1;
        }
        assert!(named > 0, "{} names no tool", prompt.name);
    }
}

#[test]
fn schemas_of_tools_are_objects_that_stand_alone() {
    let tools = Tools::of(ALL);
    assert!(tools.all().count() >= 20);
    for OfferedTool { shown, .. } in tools.all().filter(|tool| !tool.is_content) {
        let output = shown.output_schema.clone().unwrap();
        for schema in [&*shown.input_schema, &*output] {
            assert_eq!(schema["type"], "object", "{}: {schema:?}", shown.name);
            let whole = Value::Object(schema.clone());
            let mut found = BTreeSet::new();
            all("$ref", &whole, &mut found);
            for at in std::mem::take(&mut found) {
                let at = at.strip_prefix('#').expect(at);
                assert!(whole.pointer(at).is_some(), "{}: {at}", shown.name);
            }
            all("format", &whole, &mut found);
            let of_one_type = |schema: &Value| !schema.to_string().contains("\"type\":[");
            assert!(of_one_type(&whole), "{}: {whole}", shown.name);
            // Those that JSON Schema names.
            let known = ["date", "date-time", "uri", "email", "uuid"];
            assert!(found.iter().all(|format| known.contains(format)), "{found:?}");
        }
        assert!(shown.input_schema.get("properties").is_none_or(|of| of["user_id"].is_null()));
    }
}

#[test]
fn hints_follow_from_the_effect() {
    let tools = Tools::of(ALL);
    let hints = |name: &str| {
        let hints = tools.get(name).unwrap().shown.annotations.clone().unwrap();
        [hints.read_only_hint, hints.destructive_hint, hints.idempotent_hint, hints.open_world_hint]
            .map(Option::unwrap)
    };
    assert_eq!(hints("get_offers"), [true, false, true, false]);
    assert_eq!(hints("create_service_request"), [false, false, false, false]);
    assert_eq!(hints("accept_offer"), [false, true, false, false]);
    assert_eq!(hints("update_availability"), [false, false, true, false]);
    assert_eq!(hints("ask_model"), [false, false, false, true]);
}

#[test]
fn an_address_is_an_operation_with_its_input() {
    let resources = Resources::of(ALL);
    let (found, input) = resources.find("proxie://bookings/bkg_1").unwrap();
    let operation = found.operation;
    assert_eq!((operation.meta.name, &input["booking_id"]), ("booking.get", &"bkg_1".into()));
    assert!(resources.find("proxie://devices").is_some_and(|(_, input)| input.is_empty()));
    for unknown in
        ["proxie://bookings/", "proxie://bookings/a/b", "proxie://", "", "file:///etc/passwd"]
    {
        assert!(resources.find(unknown).is_none(), "{unknown}");
    }
    // Each field of an address is one of the input, and the input needs no other.
    for resource in resources.all() {
        let schema = resource.operation.input_schema();
        let fields: Vec<&str> = resource
            .address
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .collect();
        assert!(fields.iter().all(|field| schema["properties"][field].is_object()));
        let mut required = schema["required"].as_array().into_iter().flatten();
        assert!(required.all(|field| fields.contains(&field.as_str().unwrap())));
    }
}
