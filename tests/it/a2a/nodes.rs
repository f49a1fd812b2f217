//! A task goes on where its node has died.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Stranger, Stream, accept, message, of_provider, offer_of, state_of, to_task, wish};
use crate::cluster::Nodes;
use crate::edges::{Http, hairdresser, text};

/// Asks until the node can answer: another one has just died.
async fn in_the_end(stranger: &Stranger, method: &str, params: Value) -> Value {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let mut answer = stranger.rpc(method, params.clone()).await;
        if answer["error"].is_null() {
            return answer["result"].take();
        }
        assert_eq!(answer["error"]["code"], -32_603, "{answer}");
        assert!(tokio::time::Instant::now() < deadline, "{answer}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_a_killed_node_began_is_taken_up_on_the_other() {
    let mut nodes = Nodes::with("a2a", 2, false, &[]).await;
    let (token, provider) = (nodes.token("anna", "consumer"), nodes.token("pat", "provider"));
    nodes.settled(2).await;
    let at = |n: usize, token: &str| Http { address: nodes.address(n), token: Some(token.into()) };
    let salon = at(0, &provider).post("/v1/providers", &hairdresser()).await;
    let agent = of_provider(&text(&salon.json()["id"]));
    let [first, second] = [0, 1].map(|n| Stranger::new(at(n, &token), &agent));
    let sent = message(wish(2, 60));
    let mut streams = Vec::new();
    // Several tasks, so that some live on either node.
    for n in 0..6 {
        let mut sent = sent.clone();
        sent["messageId"] = format!("m{n}").into();
        let params = json!({"message": sent});
        let mut stream = Stream::rpc(&first, "SendStreamingMessage", params.clone()).await;
        let task = stream.next().await.expect("the task")["task"].take();
        streams.push((params, task, stream));
    }
    nodes.kill(0);
    for (params, task, stream) in streams {
        drop(stream.rest_of_it().await);
        let id = &task["id"];
        // The message again, which may not have been answered: the same task, and its answer.
        let again = in_the_end(&second, "SendMessage", params).await["task"].take();
        assert_eq!(again["id"], *id);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        let offered = loop {
            let task = in_the_end(&second, "GetTask", json!({"id": id})).await;
            if state_of(&task) == "INPUT_REQUIRED" {
                break task;
            }
            assert!(tokio::time::Instant::now() < deadline, "{task}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        let mut stream = Stream::rpc(&second, "SubscribeToTask", json!({"id": id})).await;
        assert_eq!(stream.next().await.unwrap()["task"]["id"], *id);
        let canceled = in_the_end(&second, "CancelTask", json!({"id": id})).await;
        assert_eq!(canceled["id"], offered["id"]);
        let rest = stream.rest_of_it().await;
        assert_eq!(state_of(&rest.last().unwrap()["statusUpdate"]), "CANCELED", "{rest:?}");
    }
    let all = in_the_end(&second, "ListTasks", json!({})).await;
    assert_eq!(all["totalSize"], 6, "{all}");
    // And a whole negotiation on the one that is left.
    let task = second.send(message(wish(3, 60))).await;
    let done = second.send(to_task(&task, accept(&offer_of(&task)["id"]))).await;
    assert_eq!(state_of(&done), "COMPLETED", "{done}");
}
