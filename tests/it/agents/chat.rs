//! Chats that a model thinks for: what it may do by itself, what waits for a "yes", and who answers when it is away.

use std::time::Duration;

use proxie::kernel::entity::Role;
use proxie::systems::agents::settings::AiSection;
use serde_json::{Value, json};

use super::model;
use crate::edges::{Http, TestNode, Ws, text};
use crate::models::fake::{Does, Fake};
use crate::support::eventually;

const SENTENCE: &str =
    "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros";

async fn node(fake: &Fake) -> TestNode {
    let ai = model(fake.url("v1"));
    TestNode::with(|config| config.systems.set(AiSection(ai))).await
}

/// A session of Clara's, over her socket.
struct Chat {
    ws: Ws,
    http: Http,
    session: String,
    /// Answers that nobody has asked for yet.
    heard: Vec<Value>,
}

impl Chat {
    async fn open(node: &TestNode) -> Self {
        let mut ws = node.ws("clara").await;
        let at = json!({"session_id": null, "time_zone": "Europe/Berlin", "locale": "en"});
        let session = text(&ws.ok("session:open", at).await["session_id"]);
        Self { ws, http: node.user("clara"), session, heard: Vec::new() }
    }

    async fn say(&mut self, content: &str) {
        let message = json!({"session_id": self.session, "content": content, "media": []});
        self.ws.ok("chat:message", message).await;
    }

    /// The first answer that is like this and was not asked for before.
    async fn hears(&mut self, like: impl Fn(&Value) -> bool) -> Value {
        if let Some(n) = self.heard.iter().position(&like) {
            return self.heard.remove(n);
        }
        loop {
            let answer = self.ws.event_named("chat:response").await["data"].take();
            if like(&answer) {
                return answer;
            }
            self.heard.push(answer);
        }
    }

    /// The next answer of this model.
    async fn hears_from(&mut self, model: &str) -> Value {
        self.hears(|answer| answer["model"] == model).await
    }

    async fn bookings(&self) -> usize {
        self.http.get("/v1/bookings").await.json()["items"].as_array().unwrap().len()
    }
}

/// What the person said last, and where things stand.
fn last_said(body: &Value) -> (String, Value) {
    let messages = body["messages"].as_array().unwrap();
    let last = messages.iter().rfind(|message| message["role"] == "user").unwrap();
    let content = &last["content"];
    let said = content.as_str().or(content[0]["text"].as_str()).unwrap();
    let situation = said.strip_prefix("(Situation, as data: ").unwrap();
    let (situation, said) = situation.split_once(")\n\n").unwrap();
    (said.to_owned(), serde_json::from_str(situation).unwrap())
}

/// Whether the last message is the person's, and not a result.
fn is_theirs(body: &Value) -> bool {
    body["messages"].as_array().unwrap().last().unwrap()["role"] == "user"
}

/// A model that asks for a service, accepts what it likes without asking, and is glad.
fn eager(body: &Value) -> Does {
    let (said, situation) = last_said(body);
    let offer = &situation["requests"][0]["offers"][0]["offer_id"];
    match said.as_str() {
        _ if !is_theirs(body) => Does::say("There you are."),
        SENTENCE => Does::Calls("create_service_request", json!({"text": SENTENCE})),
        "Sounds nice." => Does::Calls("accept_offer", json!({"offer_id": offer})),
        "Whatever." => Does::Calls("accept_offer", json!({"offer_id": "off_unheard"})),
        _ => Does::say("I see."),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_finds_offers_and_books_on_a_yes_and_on_nothing_else() {
    let fake = Fake::start().await;
    fake.otherwise(Does::Decides(eager));
    let node = node(&fake).await;
    node.hairdresser().await;
    let mut chat = Chat::open(&node).await;
    chat.say(SENTENCE).await;
    // The request that the model made belongs to this conversation: its offers are told here, in the node's own words.
    let answer = chat.hears_from("gpt").await;
    assert_eq!(answer["content"], "There you are.");
    let offered = chat.hears(|answer| answer["data"]["offer_id"].is_string()).await;
    assert_eq!((&offered["model"], offered.get("fell_back")), (&json!("local"), None));
    // What binds is read back, by what was offered and not by what the model says of it.
    chat.say("Sounds nice.").await;
    let asked = chat.hears_from("gpt").await;
    assert_eq!(asked["data"]["confirm"], "accept", "{asked}");
    let words = asked["content"].as_str().unwrap();
    assert!(words.contains("Salon Alex") && words.ends_with("Say yes."), "{words}");
    // Other words are no yes, also where a model takes them for one.
    chat.say("Hm, the weather is nice and so on.").await;
    assert_eq!(chat.hears_from("gpt").await["content"], "I see.");
    assert_eq!(chat.bookings().await, 0);
    // A "yes" to nothing that was read back binds nothing.
    chat.say("yes").await;
    assert_eq!(chat.hears_from("gpt").await["content"], "I see.");
    // What the session cannot describe, nobody can say yes to.
    chat.say("Whatever.").await;
    assert_eq!(chat.hears_from("gpt").await["content"], "There you are.");
    let last = fake.journal().pop().unwrap().body;
    let result = last["messages"].as_array().unwrap().last().unwrap().clone();
    assert!(result["content"].to_string().contains("does not allow this"), "{result}");
    chat.say("Sounds nice.").await;
    assert_eq!(chat.hears_from("gpt").await["data"]["confirm"], "accept");
    assert_eq!(chat.bookings().await, 0);
    chat.say("yes").await;
    let answer = chat.hears_from("gpt").await;
    assert_eq!(answer["content"], "There you are.");
    chat.hears(|answer| answer["data"]["booking_id"].is_string()).await;
    eventually("it is booked", async || chat.bookings().await == 1).await;
    // The closed form binds by itself; the model hears of it with the next message.
    chat.say("cancel my booking").await;
    let cancelled = chat.hears(|answer| answer["data"]["status"] == "cancelled").await;
    assert_eq!(cancelled["model"], "local");
    chat.say("Thanks a lot for all of it, dear machine").await;
    chat.hears_from("gpt").await;
    let (_, situation) = last_said(&fake.journal().pop().unwrap().body);
    assert!(situation["said_before"].to_string().contains("cancel my booking"), "{situation}");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_away_leaves_its_messages_to_the_parser_which_says_so() {
    let fake = Fake::start().await;
    fake.otherwise(Does::Refuses(503, "{}", None));
    let node = node(&fake).await;
    node.hairdresser().await;
    let mut chat = Chat::open(&node).await;
    chat.say(SENTENCE).await;
    let answer = chat.hears(|answer| answer["fell_back"].is_string()).await;
    assert_eq!(answer["model"], "local");
    assert!(answer["data"]["request_id"].is_string(), "{answer}");
    chat.hears(|answer| answer["data"]["offer_id"].is_string()).await;
    // Once it is back it goes on with what was said meanwhile.
    fake.otherwise(Does::say("I am back."));
    let mut tries = 0;
    let thinks = |answer: &Value| answer["model"] == "gpt" || answer["fell_back"].is_string();
    loop {
        chat.say("Who are you, by the way?").await;
        if chat.hears(thinks).await["model"] == "gpt" {
            break;
        }
        tries += 1;
        assert!(tries < 300, "it never thinks again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (_, situation) = last_said(&fake.journal().pop().unwrap().body);
    assert_eq!(situation["said_before"][0]["person"], SENTENCE);
    assert_eq!(situation["requests"][0]["status"], "open");
    // A person without money left is answered all the same.
    let operator = node.user_as("olga", Role::Operator);
    let none = json!({"limit": 0, "warn_percent": 80, "period": "day"});
    let set = operator.send_json("PUT", "/v1/budgets/clara", &none).await;
    assert_eq!(set.status, 200, "{}", set.text);
    chat.say("Who pays for you?").await;
    let answer = chat.hears(|answer| answer["fell_back"].is_string()).await;
    assert_eq!(answer["fell_back"], "budget_exceeded", "{answer}");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_model_the_parser_is_asked_and_nobody_else() {
    let node = TestNode::start().await;
    let mut chat = Chat::open(&node).await;
    chat.say("hello").await;
    let answer = chat.hears_from("local").await;
    assert_eq!(answer.get("fell_back"), None);
    assert_eq!(chat.http.get("/v1/runs").await.json()["items"], json!([]));
    node.node.stop().await;
}

/// A model that takes a haircut for a plumber, whatever it is told.
fn confused(_: &Value) -> Does {
    let text = "I need a plumber tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros";
    Does::Calls("create_service_request", json!({"text": text}))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_person_did_not_ask_for_is_not_asked_for() {
    let fake = Fake::start().await;
    fake.otherwise(Does::Decides(confused));
    let node = node(&fake).await;
    node.hairdresser().await;
    let mut chat = Chat::open(&node).await;
    chat.say(SENTENCE).await;
    // It insists until that is a loop; then the parser does what was said.
    let answer = chat.hears(|answer| answer["fell_back"].is_string()).await;
    assert_eq!(answer["fell_back"], "loop", "{answer}");
    let told = fake.journal().pop().unwrap().body.to_string();
    assert!(told.contains("not_asked_for"), "{told}");
    let requests = chat.http.get("/v1/requests").await.json()["items"].clone();
    let services: Vec<_> = requests.as_array().unwrap().iter().map(|one| &one["service"]).collect();
    assert_eq!(services, ["haircut"], "{requests}");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_a_node_did_not_live_to_give_is_given_by_the_next() {
    let fake = Fake::start().await;
    fake.script([Does::Silent]);
    fake.otherwise(Does::say("Here I am."));
    let node = node(&fake).await;
    let mut chat = Chat::open(&node).await;
    chat.say("Is anybody there?").await;
    eventually("the model is asked", async || fake.journal().len() == 1).await;
    let node = node.restart().await;
    let http = node.user("clara");
    let path = format!("/v1/sessions/{}/messages", chat.session);
    eventually("it is answered once", async || {
        let said = http.get(&path).await.json()["items"].clone();
        let said: Vec<_> =
            said.as_array().unwrap().iter().map(|one| one["content"].clone()).collect();
        said == ["Is anybody there?", "Here I am."]
    })
    .await;
    node.node.stop().await;
}
