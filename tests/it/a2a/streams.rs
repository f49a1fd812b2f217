//! Answers as they come.

use serde_json::{Value, json};

use super::{Stream, accept, message, of_provider, offer_of, state_of, to_task, wish};
use crate::edges::TestNode;

/// A task first, then updates of it alone; the last one says where it has come to rest.
fn is_a_life(events: &[Value], last: &str) {
    let id = &events[0]["task"]["id"];
    assert!(id.is_string(), "{events:?}");
    let mut state = state_of(&events[0]["task"]).to_owned();
    for event in &events[1..] {
        let update = event.get("statusUpdate").or(event.get("artifactUpdate")).unwrap();
        assert_eq!(update["taskId"], *id, "{event}");
        if let Some(update) = event.get("statusUpdate") {
            state = state_of(update).to_owned();
        }
    }
    assert_eq!(state, last, "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_answered_as_it_comes() {
    let node = TestNode::start().await;
    let salon = node.stranger("anna", &of_provider(&node.hairdresser().await));
    let params = json!({"message": message(wish(2, 60))});
    let asked = Stream::rpc(&salon, "SendStreamingMessage", params).await;
    let events = asked.rest_of_it().await;
    is_a_life(&events, "INPUT_REQUIRED");
    let task = salon.task(&events[0]["task"]["id"]).await;
    let taken = json!({"message": to_task(&task, accept(&offer_of(&task)["id"]))});
    let taken = Stream::rest(&salon, "/message:stream", taken).await.rest_of_it().await;
    is_a_life(&taken, "COMPLETED");
    let booked = |event: &Value| event["artifactUpdate"]["artifact"]["name"] == "booking";
    let of_first = |name: &str| {
        taken[0]["task"]["artifacts"].as_array().unwrap().iter().any(|a| a["name"] == name)
    };
    assert!(taken.iter().any(booked) || of_first("booking"), "{taken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_subscribes_sees_the_task_and_what_becomes_of_it() {
    let node = TestNode::start().await;
    let salon = node.stranger("anna", &of_provider(&node.hairdresser().await));
    let task = salon.send(message(wish(2, 60))).await;
    let path = format!("/tasks/{}:subscribe", task["id"].as_str().unwrap());
    let mut first = Stream::rpc(&salon, "SubscribeToTask", json!({"id": task["id"]})).await;
    let mut second = Stream::rest(&salon, &path, json!({})).await;
    for stream in [&mut first, &mut second] {
        assert_eq!(stream.next().await.unwrap()["task"], task);
    }
    let done = salon.send(to_task(&task, accept(&offer_of(&task)["id"]))).await;
    for stream in [first, second] {
        let events = stream.rest_of_it().await;
        let last = events.last().unwrap();
        assert_eq!(last["statusUpdate"]["status"], done["status"], "{events:?}");
        assert!(events.iter().any(|one| one["artifactUpdate"]["artifact"]["name"] == "booking"));
    }
}
