use proxie::gateway::operations::scopes;
use proxie::systems;
use serde_json::{Value, json};

use crate::edges::TestNode;

/// Every text in a document.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| texts(field, found)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_link_and_scope_of_the_manifests_leads_somewhere() {
    let node = TestNode::start().await;
    let (anyone, anna) = (node.anonymous(), node.user("anna"));
    let at = format!("http://{}", node.node.address);
    let known = scopes(systems::ALL);
    let mut followed = 0;
    for path in [
        "/.well-known/arw-manifest.json",
        "/.well-known/ard.json",
        "/.well-known/oauth-protected-resource",
    ] {
        let found = anyone.get(path).await;
        assert_eq!(found.status, 200, "{path}: {}", found.text);
        let document = found.json();
        let mut all = Vec::new();
        texts(&document, &mut all);
        for link in all {
            let Some(link) = link.strip_prefix(&at).or(link.strip_prefix('/').map(|_| &*link))
            else {
                continue;
            };
            // The door itself takes POST only.
            let expected = if link == "/mcp" { 405 } else { 200 };
            let link = if link.is_empty() { "/" } else { link };
            assert_eq!(anna.get(link).await.status, expected, "{link} of {path}");
            followed += 1;
        }
        let listed =
            [&document["authentication"]["oauth2"]["scopes"], &document["scopes_supported"]];
        for scope in listed.into_iter().filter_map(Value::as_array).flatten() {
            assert!(known.contains(scope.as_str().unwrap()), "{scope} of {path}");
        }
    }
    assert!(followed >= 10, "{followed} links were followed");
    let arw = anyone.get("/.well-known/arw-manifest.json").await.json();
    let actions = arw["capabilities"]["actions"].as_array().unwrap();
    let tools = anyone.get("/mcp/tools").await.json();
    let names = |list: &Value, field: &str| -> Vec<Value> {
        list.as_array().unwrap().iter().map(|one| one[field].clone()).collect()
    };
    assert_eq!(names(&arw["capabilities"]["actions"], "id"), names(&tools["tools"], "name"));
    for action in actions {
        let scope = action["oauth_scopes"][0].as_str().unwrap();
        assert!(known.contains(scope), "{action}");
        // A token with that scope alone shows the tool.
        let shown = node.limited("anna", scope).tools().await;
        assert!(shown.iter().any(|name| *name == action["id"]), "{action}");
    }
    let accept = actions.iter().find(|action| action["id"] == "accept_offer").unwrap();
    assert_eq!(accept["requires_user_consent"], true);
    let ard = anyone.get("/.well-known/ard.json").await.json();
    for entry in ard["entries"].as_array().unwrap() {
        let identifier = entry["identifier"].as_str().unwrap();
        assert!(identifier.starts_with("urn:air:127.0.0.1:proxie:"), "{identifier}");
        assert_ne!(entry["url"].is_string(), entry["data"].is_object(), "one of both: {entry}");
        for field in ["displayName", "type"] {
            assert!(entry[field].is_string(), "{entry}");
        }
    }
    assert_eq!(ard["entries"][0]["data"]["remotes"][0]["url"], json!(format!("{at}/mcp")));
    node.node.stop().await;
}
