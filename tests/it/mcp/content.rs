//! What an operation can answer, and how it is completed.

use serde_json::json;

use super::system;
use super::{Agent, Revision};
use crate::edges::{TestNode, text};

#[tokio::test(flavor = "multi_thread")]
async fn content_comes_in_the_protocols_kinds_and_as_json_elsewhere() {
    let node = TestNode::with_systems(system::all()).await;
    for revision in Revision::BOTH {
        let agent = Agent::new(node.user("anna"), revision);
        let mixed = agent.call("test_multiple_content_types", json!({})).await;
        let kinds: Vec<_> =
            mixed["content"].as_array().unwrap().iter().map(|part| text(&part["type"])).collect();
        assert_eq!(kinds, ["text", "image", "resource", "resource_link"], "{mixed}");
        assert!(mixed["structuredContent"].is_null(), "{mixed}");
        let sound = agent.call("test_audio_content", json!({})).await;
        assert_eq!(sound["content"][0]["mimeType"], "audio/wav", "{sound}");
        let listed = agent.ask("tools/list", json!({})).await;
        let tools = listed["tools"].as_array().unwrap();
        let tool = tools.iter().find(|tool| tool["name"] == "test_audio_content").unwrap();
        assert!(tool["outputSchema"].is_null(), "{tool}");
        let read = async |uri: &str| {
            let mut read = agent.ask("resources/read", json!({"uri": uri})).await;
            read["contents"][0].take()
        };
        assert_eq!(read("test://static-text").await["mimeType"], "text/plain");
        let picture = read("test://static-binary").await;
        assert_eq!(picture["mimeType"], "image/png");
        assert!(picture["blob"].as_str().unwrap().starts_with("iVBOR"), "{picture}");
        let data = read("test://template/12/data").await;
        assert!(data["text"].as_str().unwrap().contains("Data for ID: 12"), "{data}");
        let prompt = json!({"name": "test_prompt_with_embedded_resource",
                            "arguments": {"resourceUri": "test://x"}});
        let prompt = agent.ask("prompts/get", prompt).await;
        assert_eq!(prompt["messages"][0]["content"]["resource"]["uri"], "test://x", "{prompt}");
        let wrong = json!({"name": "test_prompt_with_embedded_resource"});
        let wrong = agent.refused("prompts/get", wrong).await;
        assert_eq!(wrong["data"]["problem"]["errors"][0]["pointer"], "/resourceUri", "{wrong}");
    }
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_complete_to_what_their_type_lists() {
    let node = TestNode::with_systems(system::all()).await;
    for revision in Revision::BOTH {
        let agent = Agent::new(node.user("anna"), revision);
        let completed = async |of: serde_json::Value, name: &str, value: &str| {
            let argument = json!({"name": name, "value": value});
            agent.ask("completion/complete", json!({"ref": of, "argument": argument})).await
        };
        let prompt = json!({"type": "ref/prompt", "name": "test_prompt_with_arguments"});
        let places = completed(prompt.clone(), "place", "pa").await;
        assert_eq!(places["completion"]["values"], json!(["paris", "park"]), "{places}");
        assert_eq!(places["completion"]["hasMore"], false);
        let none = completed(prompt, "arg1", "x").await;
        assert_eq!(none["completion"]["values"], json!([]));
        let address = json!({"type": "ref/resource", "uri": "test://template/{id}/data"});
        assert_eq!(completed(address, "id", "").await["completion"]["values"], json!([]));
        let unknown = json!({"ref": {"type": "ref/prompt", "name": "fly"},
                             "argument": {"name": "x", "value": ""}});
        assert_eq!(agent.refused("completion/complete", unknown).await["code"], -32_602);
    }
    node.node.stop().await;
}
