//! `proxie call`: runs any operation from the command line, with flags and help from its schema.

use serde_json::{Map, Value};

use crate::contract::input::from_text;
use crate::contract::{Declared, System};

/// The list of all operations.
pub fn list(systems: &[&System]) -> String {
    let mut lines =
        vec!["The operations; `proxie call NAME --help` shows their fields.".to_owned()];
    for system in systems {
        lines.push(format!("\n{}:", system.name));
        let line = |one: &Declared| format!("  {:<26} {}", one.meta.name, one.meta.summary);
        lines.extend(system.operations.iter().map(line));
    }
    lines.join("\n")
}

pub fn find(systems: &'static [&'static System], name: &str) -> Result<&'static Declared, String> {
    let mut all = systems.iter().flat_map(|system| system.operations);
    let found = all.find(|one| one.meta.name == name || one.meta.event() == name);
    found.ok_or_else(|| format!("there is no operation {name}: `proxie call` lists them"))
}

/// The help of an operation: its fields.
pub fn help(operation: &Declared) -> String {
    let schema = operation.input_schema();
    let mut lines = vec![format!("{}: {}\n", operation.meta.name, operation.meta.summary)];
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let needed = if required.iter().any(|one| one == name) { " (required)" } else { "" };
        let about = field["description"].as_str().unwrap_or_default();
        let kind = match &field["type"] {
            Value::String(kind) => kind.clone(),
            Value::Array(kinds) => kinds[0].as_str().unwrap_or_default().into(),
            _ => "JSON".into(),
        };
        lines.push(format!("  --{} <{kind}>{needed}  {about}", name.replace('_', "-")));
    }
    lines.push("  --json <object>  all fields at once; flags win".into());
    lines.join("\n")
}

/// The input that the flags describe: `--field value`, `--field=value`, `--json '{…}'`.
pub fn input(operation: &Declared, flags: &[String]) -> Result<Value, String> {
    let schema = operation.input_schema();
    let fields = schema["properties"].as_object().cloned().unwrap_or_default();
    let (mut whole, mut given) = (Map::new(), Map::new());
    let mut flags = flags.iter();
    while let Some(flag) = flags.next() {
        let name = flag.strip_prefix("--").ok_or_else(|| format!("{flag} is not a --field"))?;
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, value),
            None => {
                let value = flags.next().ok_or_else(|| format!("--{name} needs a value"))?;
                (name, value.as_str())
            }
        };
        if name == "json" {
            whole = serde_json::from_str(value).map_err(|e| format!("--json: {e}"))?;
            continue;
        }
        let name = name.replace('-', "_");
        let Some(field) = fields.get(&name) else {
            return Err(format!(
                "{} has no field {name}\n\n{}",
                operation.meta.name,
                help(operation)
            ));
        };
        // A value whose schema has no type is read as JSON, or else as a plain string.
        let value = match field["type"] {
            Value::Null => serde_json::from_str(value).unwrap_or_else(|_| value.into()),
            _ => from_text(field, value),
        };
        if given.insert(name.clone(), value).is_some() {
            return Err(format!("--{name} is given twice"));
        }
    }
    whole.extend(given);
    Ok(Value::Object(whole))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::systems::ALL;

    fn flags(text: &str) -> Vec<String> {
        text.split_whitespace().map(Into::into).collect()
    }

    #[test]
    fn flags_become_the_input() {
        let report = find(ALL, "playback.report").unwrap();
        assert_eq!(find(ALL, "playback:report").unwrap().meta.name, "playback.report");
        assert_eq!(
            input(report, &flags("--session-id plb_1 --status=paused --position-ms 7")).unwrap(),
            json!({"session_id": "plb_1", "status": "paused", "position_ms": 7})
        );
        let both =
            input(report, &flags(r#"--json {"status":"ended","position_ms":1} --status playing"#));
        assert_eq!(both.unwrap(), json!({"status": "playing", "position_ms": 1}));
        for (wrong, why) in [
            ("--flag x", "has no field flag"),
            ("--status", "needs a value"),
            ("status x", "is not a --field"),
            ("--status a --status b", "given twice"),
            ("--json [1]", "--json"),
        ] {
            let error = input(report, &flags(wrong)).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
        assert!(find(ALL, "playback.fly").is_err());
        assert!(help(report).contains("--session-id <string> (required)"), "{}", help(report));
        assert!(list(ALL).contains("playback.report"));
    }
}
