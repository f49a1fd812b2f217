//! What agents say of themselves.

use serde_json::json;

use super::of_provider;
use crate::edges::TestNode;

#[tokio::test(flavor = "multi_thread")]
async fn cards_say_where_an_agent_is_and_what_it_can_do() {
    let node = TestNode::start().await;
    let salon = node.hairdresser().await;
    let anybody = node.anonymous();
    let at = format!("http://{}", node.node.address);
    let own = anybody.get("/.well-known/agent-card.json").await;
    let same = anybody.get("/a2a/agent-card.json").await;
    assert_eq!((own.status, &own.text), (200, &same.text));
    assert_eq!(own.headers["cache-control"], "public, max-age=300");
    let tag = own.headers["etag"].clone();
    let seen = anybody.send("GET", "/a2a/agent-card.json", &[("if-none-match", &tag)], b"").await;
    assert_eq!((seen.status, seen.text.as_str()), (304, ""));
    let provider = of_provider(&salon);
    let card = anybody.get(&format!("{provider}/agent-card.json")).await;
    assert_eq!(card.status, 200, "{}", card.text);
    let below = anybody.get(&format!("{provider}/.well-known/agent-card.json")).await;
    assert_eq!(below.text, card.text);
    for (card, path) in [(own.json(), "/a2a"), (card.json(), &*provider)] {
        let interface = |binding: &str| json!({"url": format!("{at}{path}"), "protocolBinding": binding, "protocolVersion": "1.0"});
        assert_eq!(
            card["supportedInterfaces"],
            json!([interface("JSONRPC"), interface("HTTP+JSON")])
        );
        let capabilities =
            json!({"streaming": true, "pushNotifications": true, "extendedAgentCard": false});
        assert_eq!(card["capabilities"], capabilities);
        let scheme = &card["securitySchemes"]["bearer"]["httpAuthSecurityScheme"]["scheme"];
        assert_eq!(scheme, "Bearer");
        assert_eq!(card["securityRequirements"], json!([{"schemes": {"bearer": {"list": []}}}]));
        assert!(!card["skills"].as_array().unwrap().is_empty(), "{card}");
    }
    assert_eq!(card.json()["name"], "Salon Alex");
    assert_eq!(card.json()["skills"][0]["id"], "offer_haircut");
    assert_eq!(anybody.get("/a2a/providers/prv_nobody/agent-card.json").await.status, 404);
    // A page whose name suddenly means this machine.
    let evil = [("host", "evil.example")];
    assert_eq!(anybody.shake("/.well-known/agent-card.json", &evil).await.status, 403);
}
