//! Pages that say what a node says: held against one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proxie::telemetry;
use serde_json::{Map, Value, json};

use crate::edges::{Came, TestNode, Ws};
use crate::process::{Folder, run, text};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The part of a page between its marks is this text. With `PROXIE_DOCS=write`, as in `./dev generate`, it becomes so.
fn page_has(page: &str, mark: &str, expected: &str) {
    let path = root(page);
    let text = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- {mark} -->\n"), "<!-- end -->");
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{page}: {mark}"));
    let (there, after) = rest.split_once(end).unwrap_or_else(|| panic!("{page}: {mark} ends"));
    if there == expected {
        return;
    }
    if std::env::var("PROXIE_DOCS").is_ok_and(|what| what == "write") {
        std::fs::write(&path, format!("{before}{begin}{expected}{end}{after}")).unwrap();
    } else {
        let rows = |sign: char, of: &str, but: &str| {
            let differ = of.lines().filter(|row| !but.lines().any(|other| other == *row));
            differ.map(|row| format!("{sign} {row}\n")).collect::<String>()
        };
        let (old, new) = (rows('-', there, expected), rows('+', expected, there));
        panic!("{page}, {mark}: it differs here, or in the order: run ./dev generate\n{old}{new}");
    }
}

// ---- Metrics ---------------------------------------------------------------------------------------------------------

/// The names of the metrics in the sources.
fn metrics_of(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            metrics_of(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            for kind in ["counter!(", "gauge!(", "histogram!("] {
                for (at, _) in text.match_indices(kind) {
                    let name = text[at + kind.len()..].trim_start().strip_prefix('"');
                    let name = name.and_then(|name| Some(name.split_once('"')?.0));
                    let ours = name.filter(|name| name.starts_with("proxie_"));
                    found.extend(ours.map(str::to_owned));
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_has_help_and_a_line_in_the_page() {
    let mut used = BTreeSet::new();
    for folder in crate::tidy::SOURCES {
        metrics_of(&root(folder), &mut used);
    }
    let described: BTreeSet<String> =
        telemetry::METRICS.iter().map(|(name, ..)| (*name).into()).collect();
    assert_eq!(used, described, "src/telemetry.rs describes the metrics that there are");

    let mut rows = String::from("| metric | kind | |\n|---|---|---|\n");
    for (name, kind, help) in telemetry::METRICS {
        rows += &format!("| `{name}` | {} | {help} |\n", format!("{kind:?}").to_lowercase());
    }
    page_has("docs/metrics.md", "metrics", &rows);

    let node = TestNode::start().await;
    node.hairdresser().await;
    let sentence =
        json!({"text": "a haircut tomorrow at 5 pm in Berlin", "time_zone": "Europe/Berlin"});
    let alice = node.user("alice");
    let request = alice.post("/v1/requests", &sentence).await.json();
    alice.offer(request["id"].as_str().unwrap()).await;
    node.ws("alice").await.ok("ping", json!({})).await;
    let shown = node.anonymous().get("/metrics").await.text;
    let of = |mark: &'static str| {
        let lines = shown.lines().filter_map(move |line| line.strip_prefix(mark));
        lines.filter_map(|line| line.split_once(' ')).collect::<Vec<_>>()
    };
    let helped: BTreeSet<&str> = of("# HELP ").into_iter().map(|(name, _)| name).collect();
    let typed: BTreeSet<&str> = of("# TYPE ").into_iter().map(|(name, _)| name).collect();
    assert!(typed.len() > 10 && typed.contains("proxie_commit_seconds"), "{shown}");
    assert_eq!(typed, helped, "each has help");
    for (name, help) in of("# HELP ") {
        let known = telemetry::METRICS.iter().find(|(known, ..)| *known == name);
        assert_eq!(known.map(|(.., text)| *text), Some(help), "{name}");
    }
}

// ---- The protocol ----------------------------------------------------------------------------------------------------

/// A schema in a word or two.
fn kind(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        return reference.rsplit('/').next().unwrap().into();
    }
    if let Some(one) = schema["oneOf"].as_array().or_else(|| schema["anyOf"].as_array()) {
        let kinds = one.iter().map(kind).filter(|kind| kind != "null");
        return kinds.collect::<Vec<_>>().join(" or ");
    }
    match &schema["type"] {
        Value::String(kind) if kind == "array" => format!("{}[]", self::kind(&schema["items"])),
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) => {
            let kinds = kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null");
            let one = |one: &str| {
                kind(&{
                    let mut schema = schema.clone();
                    schema["type"] = one.into();
                    schema
                })
            };
            kinds.map(one).collect::<Vec<_>>().join(" or ")
        }
        _ => "any".into(),
    }
}

/// The fields of an object, or its name.
fn fields(schema: &Value) -> String {
    if schema.get("$ref").is_some() {
        return format!("`{}`", kind(schema));
    }
    if let Some(words) = schema["enum"].as_array() {
        let words = words.iter().filter_map(Value::as_str).map(|word| format!("`{word}`"));
        return words.collect::<Vec<_>>().join(", ");
    }
    if let Some(word) = schema["const"].as_str() {
        return format!("`{word}`");
    }
    if let Some(one) = schema["oneOf"].as_array() {
        // A word of an enum that says more about it stands by itself.
        let all_words = one.iter().all(|one| one["const"].is_string() || one["enum"].is_array());
        let between = if all_words { ", " } else { " or " };
        return one.iter().map(fields).collect::<Vec<_>>().join(between);
    }
    if let Some(parts) = schema["allOf"].as_array() {
        return parts.iter().map(fields).collect::<Vec<_>>().join(" and ");
    }
    if schema["additionalProperties"].is_object() {
        return format!("by topic: {}", fields(&schema["additionalProperties"]));
    }
    let Some(properties) = schema["properties"].as_object() else {
        return format!("`{}`", kind(schema));
    };
    let required = schema["required"].as_array();
    let shown = properties.iter().map(|(name, schema)| {
        let needed = required.is_some_and(|required| required.iter().any(|one| one == name));
        format!("{name}{}: {}", if needed { "" } else { "?" }, kind(schema))
    });
    format!("`{{{}}}`", shown.collect::<Vec<_>>().join(", "))
}

#[test]
fn the_protocol_page_names_every_field() {
    let folder = Folder::new("documents");
    let printed = run(&folder, &["asyncapi"], &[]);
    assert!(printed.status.success() && printed.stderr.is_empty(), "{}", text(&printed.stderr));
    let document: Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!(document, proxie::gateway::http::asyncapi::document(proxie::systems::ALL));
    assert_eq!(run(&folder, &["asyncapi", "more"], &[]).status.code(), Some(2));
    let openapi = run(&folder, &["openapi"], &[]);
    let openapi: Value = serde_json::from_slice(&openapi.stdout).unwrap();
    assert_eq!(openapi, proxie::gateway::http::openapi::document(proxie::systems::ALL));

    let messages = document["channels"]["ws"]["messages"].as_object().unwrap();
    let of = |prefix: &'static str| {
        let named = messages
            .iter()
            .filter_map(move |(key, message)| Some((key.strip_prefix(prefix)?, message)));
        named.collect::<Vec<_>>()
    };
    let mut client = String::from("| event | | data | data of the reply |\n|---|---|---|---|\n");
    for (event, message) in of("client.") {
        let reply = &messages[&format!("reply.{event}")]["payload"]["oneOf"][0];
        let (data, reply) =
            (&message["payload"]["properties"]["data"], &reply["properties"]["data"]);
        let about = message["summary"].as_str().unwrap();
        client += &format!("| `{event}` | {about} | {} | {} |\n", fields(data), fields(reply));
    }
    page_has("docs/protocol.md", "the client's events", &client);

    let mut server = String::from("| event | on | | data |\n|---|---|---|---|\n");
    for (event, message) in of("server.") {
        let properties = &message["payload"]["properties"];
        let topics = properties["topic"]["description"].as_str().unwrap_or_default();
        let topics = topics.trim_start_matches("Starts with ").split(", ");
        let topics: Vec<String> =
            topics.filter(|topic| !topic.is_empty()).map(|topic| format!("`{topic}`")).collect();
        let lossy = match properties.get("offset") {
            None if !topics.is_empty() => "Lossy. ",
            _ => "",
        };
        let about = message["summary"].as_str().unwrap();
        let data = fields(&properties["data"]);
        server += &format!("| `{event}` | {} | {lossy}{about} | {data} |\n", topics.join(", "));
    }
    page_has("docs/protocol.md", "the server's events", &server);

    let mut topics = String::from("| topic | what it carries | scope |\n|---|---|---|\n");
    for (kind, topic) in document["x-topics"].as_object().unwrap() {
        let (about, scope) =
            (topic["summary"].as_str().unwrap(), topic["x-scope"].as_str().unwrap());
        topics += &format!("| `{kind}:` | {about} | `{scope}` |\n");
    }
    page_has("docs/protocol.md", "the topics' scopes", &topics);

    let mut shapes = String::from("| shape | |\n|---|---|\n");
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        if name != "Refusal" {
            shapes += &format!("| `{name}` | {} |\n", fields(schema));
        }
    }
    page_has("docs/protocol.md", "shapes", &shapes);
}

// ---- One conversation ------------------------------------------------------------------------------------------------

/// What was sent and what came, in order.
struct Conversation {
    lines: Vec<(char, Value)>,
    ws: Ws,
}

impl Conversation {
    async fn say(&mut self, id: &str, event: &str, data: Value) {
        self.lines.push(('→', json!({"id": id, "event": event, "data": data})));
        self.ws.say(id, event, data).await;
    }

    /// Goes on listening until these have come; the frame that was the last of them.
    async fn until(&mut self, awaited: &[&dyn Fn(&Value) -> bool]) -> Vec<Value> {
        let begun = self.lines.len();
        loop {
            let came = &self.lines[begun..];
            let found = awaited.iter().filter_map(|like| {
                came.iter().map(|(_, frame)| frame).find(|frame| like(frame)).cloned()
            });
            let found: Vec<Value> = found.collect();
            if found.len() == awaited.len() {
                return found;
            }
            match self.ws.next().await {
                Came::Frame(frame) => self.lines.push(('←', frame)),
                Came::Closed(code, reason) => panic!("closed with {code} {reason}"),
            }
        }
    }
}

fn reply(id: &'static str) -> impl Fn(&Value) -> bool {
    move |frame| frame["id"] == id && frame["ok"] == true
}

fn event(name: &'static str) -> impl Fn(&Value) -> bool {
    move |frame| frame["event"] == name
}

/// The names of all fields, without the values.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            // Topics are data.
            let named = |name: &str| name.split_once(':').map_or(name, |(kind, _)| kind).to_owned();
            let fields = fields.iter().map(|(name, value)| (named(name), shape(value)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        Value::Array(items) => items.first().map(shape).into_iter().collect(),
        _ => Value::Null,
    }
}

/// What a line of the conversation is about.
fn about((direction, frame): &(char, Value)) -> (char, String, String) {
    let named = frame["event"].as_str().or_else(|| frame["id"].as_str()).unwrap();
    let mut shape = shape(frame);
    if named == "chat:response" {
        // What an answer carries besides its words is another thing each time.
        shape["data"]["data"] = Value::Null;
    }
    (*direction, named.into(), shape.to_string())
}

/// At most this wide, broken between fields.
fn wrapped(text: &str) -> String {
    let (mut lines, mut line, mut word) = (Vec::new(), String::new(), String::new());
    let (mut quoted, mut escaped) = (false, false);
    for letter in text.chars() {
        word.push(letter);
        quoted ^= letter == '"' && !escaped;
        escaped = letter == '\\' && !escaped;
        if letter == ',' && !quoted {
            if line.chars().count() + word.chars().count() > 112 && !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            line += &std::mem::take(&mut word);
        }
    }
    if line.chars().count() + word.chars().count() > 112 && !line.is_empty() {
        lines.push(std::mem::take(&mut line));
    }
    lines.push(line + &word);
    lines.join("\n      ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_conversation_in_the_protocol_page_happens() {
    let node = TestNode::start().await;
    node.hairdresser().await;
    let token = node.token("clara", proxie::kernel::entity::Role::Consumer, 3_600);
    let mut talk = Conversation { lines: Vec::new(), ws: node.try_ws(&[]).await.unwrap() };
    talk.say("A", "auth", json!({"token": token})).await;
    talk.until(&[&reply("A")]).await;
    let here = json!({"session_id": null, "time_zone": "Europe/Berlin", "locale": "en"});
    talk.say("B", "session:open", here).await;
    let opened = talk.until(&[&reply("B")]).await.remove(0);
    let session = opened["data"]["session_id"].as_str().unwrap().to_owned();
    let sentence =
        "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros";
    talk.say("C", "chat:message", json!({"session_id": session, "content": sentence})).await;
    let counted = |frame: &Value| frame["data"]["offers_count"] == 1;
    let came =
        talk.until(&[&event("offer:new"), &reply("C"), &event("chat:response"), &counted]).await;
    let offer = &came[0]["data"]["offer"]["id"];
    talk.say("D", "offer:accept", json!({"offer_id": offer})).await;
    let booked = |frame: &Value| frame["data"]["status"] == "booked";
    let accepted = |frame: &Value| {
        frame["event"] == "offer:updated" && frame["data"]["offer"]["status"] == "accepted"
    };
    talk.until(&[&reply("D"), &event("booking:confirmed"), &booked, &accepted]).await;
    // Another connection goes on where this one was.
    talk.ws = node.try_ws(&[]).await.unwrap();
    let mut position = opened["data"]["position"].clone();
    position["offset"] = json!(1);
    let positions = json!({format!("session:{session}"): position});
    talk.say("E", "auth", json!({"token": token, "positions": positions})).await;
    talk.until(&[&reply("E"), &event("chat:response")]).await;

    // The page has one of each after each frame of the client, in the order in which they came.
    let (mut shown, mut since) = (BTreeSet::new(), BTreeSet::new());
    let mut written = String::from("\n");
    for line in &talk.lines {
        let (direction, mut frame) = line.clone();
        if direction == '→' {
            since.clear();
        }
        shown.insert(about(line));
        if since.insert(about(line)) {
            if frame["data"]["token"] == token.as_str() {
                frame["data"]["token"] = "eyJ…".into();
            }
            let mut fields = Vec::new();
            for name in ["id", "event", "ok", "topic", "offset", "from", "data", "error"] {
                let field = frame.get(name);
                fields.extend(field.map(|field| format!("{}:{field}", json!(name))));
            }
            let text = format!("{{{}}}", fields.join(","));
            written += &format!("    {direction} {}\n", wrapped(&text));
        }
    }
    written += "\n";
    let page = std::fs::read_to_string(root("docs/protocol.md")).unwrap();
    let there = page.split_once("<!-- one conversation -->").unwrap().1.split_once("<!-- end -->");
    let mut lines: Vec<(char, String)> = Vec::new();
    for line in there.unwrap().0.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line.chars().next() {
            Some(direction @ ('→' | '←')) => {
                lines.push((direction, line[direction.len_utf8()..].into()));
            }
            _ => lines.last_mut().unwrap().1 += line,
        }
    }
    let read = |(direction, text): &(char, String)| {
        let frame: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        about(&(*direction, frame))
    };
    let documented: BTreeSet<_> = lines.iter().map(read).collect();
    if documented != shown {
        page_has("docs/protocol.md", "one conversation", &written);
    }
}
