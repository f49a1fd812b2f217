//! The router in front of a provider that answers, fails, breaks off and stays silent, on three wires.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use proxie::ai::options::{ModelOptions, Options, ProviderOptions, RouteOptions, WireFormat};
use proxie::ai::{
    AnswerDelta, Bill, Complexity, Failure, FailureKind, ModelAsk, ModelFailure, ModelRouter, Purse,
};
use proxie::kernel::chat::{
    AnswerEnd, Completion, Cost, Part, Prompt, PromptMessage, ToolCall, ToolSpec, Usage,
};
use serde_json::json;
use tokio::sync::mpsc;

use super::fake::{CACHED, Does, Fake, INPUT, OUTPUT};

pub const WIRES: [(&str, WireFormat, &str); 3] = [
    ("gpt", WireFormat::OpenAi, "v1"),
    ("claude", WireFormat::Anthropic, "v1"),
    ("gemini", WireFormat::Gemini, "v1beta"),
];

pub fn provider(wire: WireFormat, url: String) -> ProviderOptions {
    let key = "sk-secret".into();
    ProviderOptions { wire, url, key, concurrency: 16, per_second: 1_000 }
}

/// Of the provider of this name.
pub fn model(provider: &str) -> ModelOptions {
    ModelOptions {
        provider: provider.into(),
        id: String::new(),
        input: "1".into(),
        cached_input: "0.1".into(),
        cache_writes: String::new(),
        output: "10".into(),
        context: 100_000,
        vision: true,
        image_tokens: None,
        tools: true,
    }
}

pub fn options(fake: &Fake) -> Options {
    let mut options = Options { header_ms: 1_000, first_content_ms: 2_000, ..Options::default() };
    for (name, wire, path) in WIRES {
        options.providers.insert(name.into(), provider(wire, fake.url(path)));
        options.models.insert(name.into(), model(name));
    }
    let simple = vec!["gpt".into(), "claude".into(), "gemini".into()];
    let route = RouteOptions { simple, ..RouteOptions::default() };
    options.routes.insert("default".into(), route);
    options
}

fn router(options: &Options) -> ModelRouter {
    ModelRouter::new(options).unwrap()
}

/// A purse that writes down what it is told.
#[derive(Default)]
struct Ledger {
    reserved: Mutex<Vec<Cost>>,
    bills: Mutex<Vec<Bill>>,
}

impl Purse for Ledger {
    fn reserve(&self, _: u32, _: &str, most: Cost) -> BoxFuture<'_, Result<(), Failure>> {
        self.reserved.lock().push(most);
        async { Ok(()) }.boxed()
    }

    fn settle(&self, _: u32, bill: Bill) -> BoxFuture<'_, ()> {
        self.bills.lock().push(bill);
        async {}.boxed()
    }
}

pub fn hello() -> Prompt {
    Prompt { messages: vec![PromptMessage::user("hello")], max_tokens: 100, ..Prompt::default() }
}

pub struct Asking {
    pub router: ModelRouter,
    ledger: Arc<Ledger>,
    pub purse: Arc<dyn Purse>,
}

impl Asking {
    pub fn new(options: &Options) -> Self {
        let ledger = Arc::<Ledger>::default();
        Self { router: router(options), purse: ledger.clone(), ledger }
    }

    pub async fn ask(&self, ask: ModelAsk<'_>) -> Result<Completion, ModelFailure> {
        self.router.complete(&ask, &self.purse, None).await
    }

    async fn of(&self, route: &str) -> Result<Completion, ModelFailure> {
        self.ask(ModelAsk { route: Some(route), ..ModelAsk::new(&hello()) }).await
    }

    pub fn bills(&self) -> Vec<Bill> {
        self.ledger.bills.lock().clone()
    }
}

fn kind(failed: Result<Completion, ModelFailure>) -> FailureKind {
    failed.unwrap_err().failure.kind
}

#[tokio::test]
async fn each_wire_answers_and_its_tokens_are_counted_once() {
    let fake = Fake::start().await;
    let asking = Asking::new(&options(&fake));
    for (name, ..) in WIRES {
        fake.script([Does::Says(vec!["hel", "lo"], Duration::ZERO)]);
        let answer = asking.of(name).await.unwrap();
        assert_eq!((answer.text.as_str(), answer.stop), ("hello", AnswerEnd::Finished), "{name}");
        assert_eq!((answer.model.as_str(), answer.calls_made), (name, 1));
        let usage = Usage {
            input: INPUT - CACHED,
            cached_input: CACHED,
            output: OUTPUT,
            ..Usage::default()
        };
        assert_eq!(Usage { reasoning: 0, ..answer.usage }, usage, "{name}");
        // 600 at $1, 400 at $0.1 and 50 at $10 for a million.
        assert_eq!(answer.cost, Cost(600_000 + 40_000 + 500_000), "{name}");
        let key = fake.journal().pop().unwrap().key.unwrap();
        assert!(key.ends_with("sk-secret"), "{name}");
    }
    assert_eq!(asking.bills().len(), 3);
    assert!(asking.bills().iter().all(|bill| bill.failure.is_none()));
}

#[tokio::test]
async fn tools_and_pictures_go_over_each_wire() {
    let fake = Fake::start().await;
    let asking = Asking::new(&options(&fake));
    let look = ToolSpec {
        name: "look".into(),
        description: "Looks".into(),
        parameters: json!({"type": "object", "properties": {"at": {"type": "string"}}}),
    };
    let picture = Part::Image { media_type: "image/png".into(), data: "aGVsbG8=".into() };
    let parts = vec![Part::Text { text: "what is this?".into() }, picture];
    for (name, ..) in WIRES {
        fake.script([Does::Calls("look", json!({"at": "it"})), Does::say("a cat")]);
        let mut prompt = Prompt {
            messages: vec![PromptMessage::User { parts: parts.clone() }],
            tools: vec![look.clone()],
            ..hello()
        };
        let ask = ModelAsk { route: Some(name), ..ModelAsk::new(&prompt) };
        let answer = asking.ask(ask).await.unwrap();
        assert_eq!(answer.stop, AnswerEnd::ToolCalls, "{name}");
        let [ToolCall { id, name: called, arguments, .. }] = &answer.calls[..] else {
            panic!("{name}: {answer:?}");
        };
        assert_eq!((called.as_str(), arguments), ("look", &json!({"at": "it"})), "{name}");
        let asked = fake.journal().pop().unwrap().body.to_string();
        assert!(asked.contains("aGVsbG8=") && asked.contains("image/png"), "{name}: {asked}");
        let (call_id, content) = (id.clone(), "fur and whiskers".to_owned());
        prompt.messages.push(PromptMessage::Assistant { text: String::new(), calls: answer.calls });
        prompt.messages.push(PromptMessage::Tool { call_id, name: "look".into(), content });
        let ask = ModelAsk { route: Some(name), ..ModelAsk::new(&prompt) };
        assert_eq!(asking.ask(ask).await.unwrap().text, "a cat", "{name}");
        let asked = fake.journal().pop().unwrap().body.to_string();
        assert!(asked.contains("fur and whiskers"), "{name}: {asked}");
    }
}

#[tokio::test]
async fn the_next_model_is_asked_where_nothing_can_have_been_charged() {
    let refusals = [
        Does::Refuses(429, "{}", None),
        Does::Refuses(503, "{}", None),
        Does::Refuses(529, "{}", None),
        Does::Refuses(500, "{}", None),
        Does::Refuses(401, "{}", None),
        Does::Refuses(404, "{}", None),
        Does::Refuses(400, "content_policy_violation", None),
        Does::Filters,
    ];
    for refusal in refusals {
        let fake = Fake::start().await;
        let asking = Asking::new(&options(&fake));
        fake.script([refusal.clone(), Does::say("second")]);
        let answer = asking.ask(ModelAsk::new(&hello())).await.unwrap();
        assert_eq!(
            (answer.text.as_str(), answer.model.as_str()),
            ("second", "claude"),
            "{refusal:?}"
        );
        assert_eq!(fake.asked(), ["gpt", "claude"], "{refusal:?}");
        let first = &asking.bills()[0];
        // A filter has read the question and said so at its end; a status has charged nothing.
        assert_eq!(first.cost > Cost(0), matches!(refusal, Does::Filters), "{refusal:?}");
    }
}

#[tokio::test]
async fn what_may_have_been_charged_is_not_asked_again_unless_the_caller_says_so() {
    let doubts = [
        Does::Refuses(502, "{}", None),
        Does::Refuses(504, "{}", None),
        Does::BreaksOff("par"),
        Does::Drops("par"),
        Does::Garbles,
        Does::Silent,
    ];
    for doubt in doubts {
        let fake = Fake::start().await;
        let asking = Asking::new(&options(&fake));
        fake.script([doubt.clone()]);
        let failed = asking.ask(ModelAsk::new(&hello())).await.unwrap_err();
        assert_eq!(failed.failure.kind, FailureKind::Uncertain, "{doubt:?}");
        assert_eq!((fake.asked().len(), failed.calls_made), (1, 1), "{doubt:?}");
        let bill = &asking.bills()[0];
        assert!(bill.usage.is_estimate && bill.cost > Cost(0), "{doubt:?}: {bill:?}");
        fake.script([doubt.clone(), Does::say("second")]);
        let prompt = hello();
        let ask = ModelAsk { may_pay_twice: true, ..ModelAsk::new(&prompt) };
        assert_eq!(asking.ask(ask).await.unwrap().text, "second", "{doubt:?}");
    }
}

#[tokio::test]
async fn keep_alives_are_no_answer_and_a_pause_between_words_has_an_end() {
    let fake = Fake::start().await;
    let quick = Options { first_content_ms: 300, between_ms: 300, ..options(&fake) };
    let asking = Asking::new(&quick);
    for does in [Does::KeepsAlive, Does::Stalls("par")] {
        fake.script([does.clone()]);
        assert_eq!(kind(asking.of("gpt").await), FailureKind::Uncertain, "{does:?}");
    }
    // Slower than the first word may be, but steady.
    let words = vec!["a", "b", "c", "d", "e", "f"];
    fake.script([Does::Says(words, Duration::from_millis(100))]);
    assert_eq!(asking.of("gpt").await.unwrap().text, "abcdef");
}

#[tokio::test]
async fn one_deadline_and_one_number_of_calls_hold_over_all_attempts() {
    let fake = Fake::start().await;
    let asking = Asking::new(&options(&fake));
    fake.otherwise(Does::Refuses(500, "{}", None));
    let failed = asking.ask(ModelAsk::new(&hello())).await.unwrap_err();
    assert_eq!((failed.calls_made, fake.asked().len()), (4, 4));
    let fake = Fake::start().await;
    fake.otherwise(Does::KeepsAlive);
    let asking = Asking::new(&options(&fake));
    let deadline = Some(Duration::from_millis(400));
    let prompt = hello();
    let ask = ModelAsk { deadline, may_pay_twice: true, ..ModelAsk::new(&prompt) };
    assert_eq!(kind(asking.ask(ask).await), FailureKind::Uncertain);
    assert_eq!(fake.asked().len(), 1, "the deadline is over with the first attempt");
}

#[tokio::test]
async fn a_lone_model_is_left_alone_too_and_waited_for_only_as_it_asks() {
    let fake = Fake::start().await;
    let asking = Asking::new(&options(&fake));
    fake.script([Does::Refuses(429, "{}", Some("1")), Does::say("after")]);
    assert_eq!(asking.of("gpt").await.unwrap().text, "after");
    // Longer than a call waits: at once, and the next caller does not even ask.
    fake.script([Does::Refuses(429, "{}", Some("3600"))]);
    assert_eq!(kind(asking.of("gpt").await), FailureKind::Busy);
    let asked = fake.asked().len();
    assert_eq!(kind(asking.of("gpt").await), FailureKind::Busy);
    assert_eq!(fake.asked().len(), asked, "the circuit is open");
}

#[tokio::test]
async fn words_are_heard_as_they_come_and_are_never_followed_by_another_models() {
    let fake = Fake::start().await;
    let asking = Asking::new(&options(&fake));
    let prompt = hello();
    let ask = ModelAsk { may_pay_twice: true, ..ModelAsk::new(&prompt) };
    fake.script([Does::Says(vec!["hel", "lo"], Duration::ZERO), Does::BreaksOff("par")]);
    let (sink, mut heard) = mpsc::channel(8);
    let answer = asking.router.complete(&ask, &asking.purse, Some(&sink)).await.unwrap();
    assert_eq!(answer.text, "hello");
    assert_eq!(heard.recv().await, Some(AnswerDelta::Text("hel".into())));
    assert_eq!(heard.recv().await, Some(AnswerDelta::Text("lo".into())));
    let failed = asking.router.complete(&ask, &asking.purse, Some(&sink)).await.unwrap_err();
    assert_eq!(failed.failure.kind, FailureKind::Uncertain);
    assert_eq!(fake.asked().len(), 2, "nobody else was asked");
}

#[tokio::test]
async fn a_listener_that_goes_closes_the_providers_connection_and_is_billed() {
    let fake = Fake::start().await;
    let asking = Asking::new(&options(&fake));
    // Dropped in the middle.
    fake.script([Does::Stalls("par"), Does::Stalls("par")]);
    let (sink, mut heard) = mpsc::channel(8);
    let prompt = hello();
    let ask = ModelAsk::new(&prompt);
    tokio::select! {
        _ = asking.router.complete(&ask, &asking.purse, Some(&sink)) => panic!("it stalls"),
        _ = heard.recv() => {}
    }
    until(|| fake.hung_up() == 1 && asking.bills().len() == 1).await;
    assert!(asking.bills()[0].cost > Cost(0));
    // Nobody listens any more.
    drop(heard);
    assert_eq!(
        asking.router.complete(&ask, &asking.purse, Some(&sink)).await.unwrap_err().failure.kind,
        FailureKind::Uncertain
    );
    until(|| fake.hung_up() == 2).await;
}

#[tokio::test]
async fn a_question_goes_to_models_that_can_take_it() {
    let fake = Fake::start().await;
    let mut options = options(&fake);
    options.models.get_mut("gpt").unwrap().vision = false;
    options.models.get_mut("claude").unwrap().context = 120;
    options.models.get_mut("gemini").unwrap().output = "1000".into();
    let asking = Asking::new(&options);
    let image = Part::Image { media_type: "image/png".into(), data: "aGVsbG8=".into() };
    let seen = Prompt { messages: vec![PromptMessage::User { parts: vec![image] }], ..hello() };
    assert_eq!(asking.ask(ModelAsk::new(&seen)).await.unwrap().model, "gemini");
    // Too dear: $1000 for a million tokens of output, and 100 of them.
    let max_cost = Some(Cost(50_000_000));
    let ask = ModelAsk { max_cost, ..ModelAsk::new(&seen) };
    assert_eq!(kind(asking.ask(ask).await), FailureKind::Invalid);
    assert_eq!(fake.asked(), ["gemini"]);
}

#[tokio::test]
async fn hard_questions_go_to_other_models_than_simple_ones() {
    let fake = Fake::start().await;
    let mut options = options(&fake);
    let (simple, complex) = (vec!["gemini".into()], vec!["claude".into()]);
    let route = RouteOptions { simple, complex, ..RouteOptions::default() };
    options.routes.insert("default".into(), route);
    let asking = Asking::new(&options);
    let (simple, long) = (hello(), Prompt { system: Some("x".repeat(9_000)), ..hello() });
    assert_eq!(asking.ask(ModelAsk::new(&simple)).await.unwrap().model, "gemini");
    assert_eq!(asking.ask(ModelAsk::new(&long)).await.unwrap().model, "claude");
    let complexity = Some(Complexity::Complex);
    let said = ModelAsk { complexity, ..ModelAsk::new(&simple) };
    assert_eq!(asking.ask(said).await.unwrap().model, "claude");
}

#[tokio::test]
async fn a_longer_conversation_than_one_model_reads_goes_to_one_that_reads_more() {
    let fake = Fake::start().await;
    let mut options = options(&fake);
    options.models.get_mut("gemini").unwrap().context = 1_000_000;
    let asking = Asking::new(&options);
    fake.script([Does::Refuses(400, "prompt is too long", None), Does::say("read")]);
    let answer = asking.ask(ModelAsk::new(&hello())).await.unwrap();
    assert_eq!(answer.model, "gemini", "claude reads no more than gpt");
}

#[tokio::test]
async fn calls_begin_at_their_providers_rate_and_what_has_no_turn_in_time_is_busy() {
    let fake = Fake::start().await;
    let mut options = options(&fake);
    options.providers.get_mut("gpt").unwrap().per_second = 1;
    let asking = Asking::new(&options);
    let prompt = hello();
    let deadline = Some(Duration::from_millis(300));
    let ask = || ModelAsk { route: Some("gpt"), deadline, ..ModelAsk::new(&prompt) };
    assert_eq!(asking.ask(ask()).await.unwrap().text, "yes");
    assert_eq!(kind(asking.ask(ask()).await), FailureKind::Busy);
    assert_eq!(fake.asked().len(), 1);
}

#[tokio::test]
async fn without_money_nothing_is_asked() {
    struct Empty;
    impl Purse for Empty {
        fn reserve(&self, _: u32, _: &str, _: Cost) -> BoxFuture<'_, Result<(), Failure>> {
            async { Err(Failure::new(FailureKind::Invalid, "the budget is used up")) }.boxed()
        }
        fn settle(&self, _: u32, _: Bill) -> BoxFuture<'_, ()> {
            panic!("nothing was reserved")
        }
    }
    let fake = Fake::start().await;
    let purse: Arc<dyn Purse> = Arc::new(Empty);
    let router = router(&options(&fake));
    let failed = router.complete(&ModelAsk::new(&hello()), &purse, None).await.unwrap_err();
    assert_eq!((failed.calls_made, fake.asked().len()), (0, 0));
}

#[tokio::test]
async fn what_is_wrong_in_the_options_is_said_with_its_place() {
    let fake = Fake::start().await;
    let wrong = |change: fn(&mut Options)| {
        let mut options = options(&fake);
        change(&mut options);
        ModelRouter::new(&options).err().unwrap()
    };
    let said = wrong(|one| one.models.get_mut("gpt").unwrap().input = "cheap".into());
    assert!(said.starts_with("ai.models.gpt.input"), "{said}");
    let said = wrong(|one| one.models.get_mut("gpt").unwrap().provider = "nobody".into());
    assert!(said.contains("[ai.providers.nobody]"), "{said}");
    let said = wrong(|one| one.routes.get_mut("default").unwrap().simple = vec!["x".into()]);
    assert!(said.starts_with("ai.routes.default.simple"), "{said}");
    let said = wrong(|one| one.route = "nowhere".into());
    assert!(said.starts_with("ai.route"), "{said}");
}

pub async fn until(is_so: impl Fn() -> bool) {
    for _ in 0..1_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not become so");
}
