//! An agent negotiates with a provider's, for its person.

use serde_json::{Value, json};

use super::{accept, message, of_provider, offer_of, state_of, to_task, wish};
use crate::edges::TestNode;

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_is_asked_for_and_accepted_over_json_rpc() {
    let node = TestNode::start().await;
    let salon = node.stranger("anna", &of_provider(&node.hairdresser().await));
    let task = salon.send(message(wish(2, 60))).await;
    assert_eq!(state_of(&task), "INPUT_REQUIRED", "{task}");
    let offer = offer_of(&task);
    assert_eq!(
        (&offer["status"], &offer["price"]["amount_minor"]),
        (&json!("open"), &json!(4_500))
    );
    assert!(offer["score"].is_null(), "nobody was compared: {offer}");
    let anna = node.user("anna");
    assert_eq!(anna.get("/v1/bookings").await.json()["items"], json!([]), "nothing is bound yet");
    let done = salon.send(to_task(&task, accept(&offer["id"]))).await;
    assert_eq!(state_of(&done), "COMPLETED", "{done}");
    let artifacts = done["artifacts"].as_array().unwrap();
    let booking =
        &artifacts.iter().find(|one| one["name"] == "booking").unwrap()["parts"][0]["data"];
    let booking = booking["booking"]["id"].as_str().unwrap();
    let booked = anna.get(&format!("/v1/bookings/{booking}")).await;
    assert_eq!(booked.json()["status"], "confirmed");
    assert_eq!(offer_of(&done)["status"], "accepted");
    // The same task, and what was said.
    assert_eq!(salon.task(&task["id"]).await, done);
    let roles: Vec<_> =
        done["history"].as_array().unwrap().iter().map(|one| &one["role"]).collect();
    assert_eq!(roles.len(), 5, "{done}");
    assert_eq!((roles[0], roles[1]), (&json!("ROLE_USER"), &json!("ROLE_AGENT")));
    let below = node.stranger("anna", &format!("{}/", salon.agent));
    assert_eq!(below.task(&task["id"]).await, done);
    let two = salon.ask("GetTask", json!({"id": task["id"], "historyLength": 2})).await;
    assert_eq!(two["history"].as_array().unwrap()[..], done["history"].as_array().unwrap()[3..]);
    let none = salon.ask("GetTask", json!({"id": task["id"], "historyLength": 0})).await;
    assert!(none.get("history").is_none(), "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_over_http_and_json() {
    let node = TestNode::start().await;
    let salon = node.stranger("anna", &of_provider(&node.hairdresser().await));
    let asked =
        salon.rest("POST", "/message:send", &json!({"message": message(wish(2, 60))})).await;
    assert_eq!((asked.status, &*asked.headers["content-type"]), (200, "application/a2a+json"));
    let task = asked.json()["task"].take();
    assert_eq!(state_of(&task), "INPUT_REQUIRED", "{task}");
    let id = task["id"].as_str().unwrap();
    assert_eq!(salon.rest("GET", &format!("/tasks/{id}"), &json!({})).await.json(), task);
    let brief = salon.rest("GET", &format!("/tasks/{id}?historyLength=0"), &json!({})).await.json();
    assert!(brief.get("history").is_none(), "{brief}");
    let listed =
        salon.rest("GET", "/tasks?includeArtifacts=true&pageSize=5", &json!({})).await.json();
    assert_eq!(listed["tasks"], json!([task]));
    let canceled = salon.rest("POST", &format!("/tasks/{id}:cancel"), &json!({})).await;
    assert_eq!(state_of(&canceled.json()), "CANCELED", "{}", canceled.text);
    let again = salon.rest("POST", &format!("/tasks/{id}:cancel"), &json!({})).await;
    assert_eq!(again.status, 400);
    let error = again.json()["error"].take();
    assert_eq!(error["details"][0]["reason"], "TASK_NOT_CANCELABLE", "{error}");
    assert_eq!(error["status"], "FAILED_PRECONDITION");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_below_the_lowest_price_is_countered() {
    let node = TestNode::start().await;
    let salon = node.stranger("anna", &of_provider(&node.hairdresser().await));
    let countered = salon.send(message(wish(2, 10))).await;
    assert_eq!(state_of(&countered), "INPUT_REQUIRED", "{countered}");
    let counter = &countered["status"]["message"]["parts"][1]["data"]["counter"]["lowest_price"];
    assert_eq!(counter["amount_minor"], 4_500, "{countered}");
    let offered = salon.send(to_task(&countered, wish(2, 45))).await;
    assert_eq!((state_of(&offered), &offered["id"]), ("INPUT_REQUIRED", &countered["id"]));
    assert_eq!(offer_of(&offered)["price"], *counter);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_provider_does_not_do_is_declined() {
    let node = TestNode::start().await;
    let salon = node.stranger("anna", &of_provider(&node.hairdresser().await));
    let mut cleaning = wish(2, 60);
    cleaning[0]["data"]["ask"]["service"] = "cleaning".into();
    let declined = salon.send(message(cleaning)).await;
    assert_eq!(state_of(&declined), "REJECTED", "{declined}");
    let why = &declined["status"]["message"]["parts"][1]["data"]["declined"];
    assert_eq!(why["reasons"], json!({"no_skill": 1}));
    let late =
        salon.refused("SendMessage", json!({"message": to_task(&declined, wish(2, 60))})).await;
    assert_eq!(late["code"], -32_004, "{late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn words_ask_and_never_accept() {
    let node = TestNode::start().await;
    let salon = node.stranger("anna", &of_provider(&node.hairdresser().await));
    let text = |text: &str| json!([{"text": text}]);
    let asked = salon.send(message(text("I need a haircut"))).await;
    assert_eq!(state_of(&asked), "INPUT_REQUIRED");
    let missing = &asked["status"]["message"]["parts"][1]["data"]["missing"];
    assert_eq!(*missing, json!(["when", "place"]), "{asked}");
    let rest = "tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros";
    let offered = salon.send(to_task(&asked, text(rest))).await;
    let offer = offer_of(&offered);
    for words in ["Yes, take it", "I accept the offer", "Accept offer 1", "accept it", "yes"] {
        let said = salon.send(to_task(&offered, text(words))).await;
        assert_eq!(state_of(&said), "INPUT_REQUIRED", "{words}: {said}");
        assert_eq!(offer_of(&said)["status"], "open", "{words}");
    }
    assert_eq!(node.user("anna").get("/v1/bookings").await.json()["items"], json!([]));
    let done = salon.send(to_task(&offered, accept(&offer["id"]))).await;
    assert_eq!(state_of(&done), "COMPLETED");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_marketplaces_own_agent_asks_all() {
    let node = TestNode::start().await;
    let salons = [node.hairdresser().await, node.hairdresser().await];
    let agent = node.stranger("anna", "/a2a");
    let task = agent.send(message(wish(2, 60))).await;
    let task = agent.in_state(&task["id"], "INPUT_REQUIRED").await;
    let offers: Vec<_> = task["artifacts"].as_array().unwrap().iter().collect();
    assert_eq!(offers.len(), 2, "{task}");
    for offer in offers {
        let provider = offer["parts"][0]["data"]["offer"]["provider"]["id"].as_str().unwrap();
        assert!(salons.iter().any(|salon| salon == provider), "{offer}");
    }
    let done = agent.send(to_task(&task, accept(&offer_of(&task)["id"]))).await;
    assert_eq!(state_of(&done), "COMPLETED", "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_comes_again_has_no_second_effect() {
    let node = TestNode::start().await;
    let salon = node.stranger("anna", &of_provider(&node.hairdresser().await));
    let first = message(wish(2, 60));
    let (one, other) = tokio::join!(salon.send(first.clone()), salon.send(first.clone()));
    assert_eq!((&one["id"], &one["contextId"]), (&other["id"], &other["contextId"]));
    let again = salon.send(first.clone()).await;
    assert_eq!(again["id"], one["id"]);
    let requests = node.user("anna").get("/v1/requests").await.json();
    assert_eq!(requests["items"].as_array().unwrap().len(), 1, "{requests}");
    let taken = to_task(&one, accept(&offer_of(&again)["id"]));
    let (done, twice) = tokio::join!(salon.send(taken.clone()), salon.send(taken));
    assert_eq!((state_of(&done), state_of(&twice)), ("COMPLETED", "COMPLETED"));
    let bookings = node.user("anna").get("/v1/bookings").await.json();
    assert_eq!(bookings["items"].as_array().unwrap().len(), 1, "{bookings}");
    // The same id for something else.
    let mut other = first;
    other["parts"] = wish(3, 60);
    let refused = salon.refused("SendMessage", json!({"message": other})).await;
    assert_eq!(refused["code"], -32_602, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_listed_a_page_at_a_time() {
    let node = TestNode::start().await;
    let salon = node.stranger("anna", &of_provider(&node.hairdresser().await));
    let mut ids = Vec::new();
    for n in 0..5 {
        let mut one = message(wish(2 + n, 60));
        one["contextId"] = if n < 3 { "ctx_a".into() } else { "ctx_b".into() };
        let task = salon.send(one).await;
        assert_eq!(state_of(&task), "INPUT_REQUIRED");
        ids.insert(0, task["id"].clone());
    }
    let mut seen: Vec<Value> = Vec::new();
    let mut token = json!("");
    loop {
        let page = salon.ask("ListTasks", json!({"pageSize": 2, "pageToken": token})).await;
        assert_eq!(page["totalSize"], 5, "{page}");
        let tasks = page["tasks"].as_array().unwrap();
        assert_eq!(page["pageSize"], tasks.len());
        assert!(tasks.iter().all(|task| task.get("artifacts").is_none()), "{page}");
        seen.extend(tasks.iter().map(|task| task["id"].clone()));
        token = page["nextPageToken"].clone();
        if token == "" {
            break;
        }
    }
    assert_eq!(seen, ids);
    let context = salon.ask("ListTasks", json!({"contextId": "ctx_b"})).await;
    assert_eq!(context["totalSize"], 2, "{context}");
    salon.ask("CancelTask", json!({"id": ids[0]})).await;
    let canceled = salon.ask("ListTasks", json!({"status": "TASK_STATE_CANCELED"})).await;
    assert_eq!(canceled["tasks"][0]["id"], ids[0], "{canceled}");
    let at = canceled["tasks"][0]["status"]["timestamp"].clone();
    let since = salon.ask("ListTasks", json!({"statusTimestampAfter": at})).await;
    assert_eq!(since["totalSize"], 1, "{since}");
}
