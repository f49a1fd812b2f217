use serde_json::{Value, json};

use super::{Revision, WISH};
use crate::edges::{TestNode, text};

fn names(list: &Value, field: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|one| text(&one[field])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_ones_own_can_be_read_and_nothing_else() {
    let node = TestNode::start().await;
    let provider = node.hairdresser().await;
    for revision in Revision::BOTH {
        let anna = node.agent("anna", revision);
        let listed = anna.ask("resources/list", json!({})).await;
        let addresses = names(&listed["resources"], "uri");
        assert!(addresses.contains(&"proxie://devices".into()), "{addresses:?}");
        let templates = anna.ask("resources/templates/list", json!({})).await;
        let templates = names(&templates["resourceTemplates"], "uriTemplate");
        assert!(templates.contains(&"proxie://requests/{request_id}".into()), "{templates:?}");
        for address in addresses {
            let read = anna.ask("resources/read", json!({"uri": address})).await;
            assert_eq!(read["contents"][0]["uri"], address.as_str());
            assert_eq!(read["contents"][0]["mimeType"], "application/json");
            let _: Value =
                serde_json::from_str(read["contents"][0]["text"].as_str().unwrap()).unwrap();
        }
        let read = anna
            .ask("resources/read", json!({"uri": format!("proxie://providers/{provider}")}))
            .await;
        assert!(read["contents"][0]["text"].as_str().unwrap().contains("Salon Alex"));
        let request = anna.done("create_service_request", json!({"text": WISH})).await;
        let own = json!({"uri": format!("proxie://requests/{}", text(&request["id"]))});
        assert!(anna.ask("resources/read", own.clone()).await["contents"][0].is_object());
        let mallory = node.agent("mallory", revision);
        let not_found = if revision == Revision::Newest { -32_602 } else { -32_002 };
        for uri in [own["uri"].as_str().unwrap(), "proxie://bookings/bkg_1", "file:///etc/passwd"] {
            let error = mallory.refused("resources/read", json!({"uri": uri})).await;
            assert_eq!(error["code"], not_found, "{uri}: {error}");
        }
    }
    let limited = node.limited("anna", "device");
    let listed = limited.ask("resources/list", json!({})).await;
    assert_eq!(names(&listed["resources"], "uri"), ["proxie://devices"]);
    let error = limited.refused("resources/read", json!({"uri": "proxie://bookings"})).await;
    assert_eq!(error["data"]["problem"]["reason"], "insufficient_scope", "{error}");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_take_their_arguments() {
    let node = TestNode::start().await;
    for revision in Revision::BOTH {
        let anna = node.agent("anna", revision);
        let listed = anna.ask("prompts/list", json!({})).await;
        assert_eq!(
            names(&listed["prompts"], "name"),
            ["discovery_assistant", "recommendation_guide"]
        );
        assert_eq!(listed["prompts"][0]["arguments"][0]["required"], true);
        let wish = json!({"name": "discovery_assistant", "arguments": {"wish": "a haircut {now}"}});
        let prompt = anna.ask("prompts/get", wish).await;
        let said = text(&prompt["messages"][0]["content"]["text"]);
        assert!(
            said.starts_with("I need this: a haircut {now}. Times are in the time zone of"),
            "{said}"
        );
        assert_eq!(prompt["messages"][0]["role"], "user");
        for wrong in [
            json!({"name": "discovery_assistant"}),
            json!({"name": "discovery_assistant", "arguments": {"wish": " "}}),
            json!({"name": "fly"}),
        ] {
            assert_eq!(
                anna.refused("prompts/get", wrong.clone()).await["code"],
                -32_602,
                "{wrong}"
            );
        }
    }
    node.node.stop().await;
}
