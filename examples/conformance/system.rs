//! A system with what the protocol's conformance suite asks a server for: tools, resources and prompts of each kind.

use std::time::Duration;

use proxie::contract::call::Call;
use proxie::contract::content::{ContentPart, ContentParts};
use proxie::contract::declare::{operation, topic};
use proxie::contract::host::{HostAnswer, HostQuestion, LogLevel};
use proxie::contract::operation::{Nothing, ToolEffect};
use proxie::contract::prompt::{AgentPrompt, PromptField};
use proxie::contract::topic::Topic;
use proxie::contract::{Meta, Operation, Outcome, Problem, System};
use proxie::systems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A picture of one pixel.
const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==";
/// A sound without samples.
const WAV: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA=";
const PAUSE: Duration = Duration::from_millis(50);

fn text(text: impl Into<String>) -> Outcome<ContentParts> {
    Ok(vec![ContentPart::text(text)].into())
}

fn picture() -> ContentPart {
    ContentPart::Image { media_type: "image/png".into(), data: PNG.into() }
}

fn embedded(uri: &str, text: &str) -> ContentPart {
    ContentPart::Resource { uri: uri.into(), media_type: "text/plain".into(), text: text.into() }
}

/// An operation with its input, how it is offered, and what it does.
macro_rules! offers {
    ($type:ident: $input:ty => $answer:ty, $meta:expr, |$call:pat_param, $given:pat_param| $run:expr) => {
        pub struct $type;

        impl Operation for $type {
            const META: Meta = $meta;
            type Input = $input;
            type Answer = $answer;

            async fn run($call: &Call, $given: $input) -> Outcome<$answer> {
                $run
            }
        }
    };
}

/// A tool without effects.
macro_rules! tool {
    ($type:ident: $input:ty, $operation:literal, $name:literal, |$call:pat_param, $given:pat_param| $run:expr) => {
        offers!(
            $type: $input => ContentParts,
            Meta::query($operation, $name).tool($name, ToolEffect::ReadOnly),
            |$call, $given| $run
        );
    };
}

tool!(SimpleText: Nothing, "conformance.simple", "test_simple_text", |_, _| {
    text("This is a simple text response for testing.")
});

tool!(Picture: Nothing, "conformance.image", "test_image_content", |_, _| {
    Ok(vec![picture()].into())
});

tool!(Sound: Nothing, "conformance.audio", "test_audio_content", |_, _| {
    let sound = ContentPart::Audio { media_type: "audio/wav".into(), data: WAV.into() };
    Ok(vec![sound].into())
});

tool!(Embedded: Nothing, "conformance.embedded", "test_embedded_resource", |_, _| {
    let text = "This is an embedded resource content.";
    Ok(vec![embedded("test://embedded-resource", text)].into())
});

tool!(Mixed: Nothing, "conformance.mixed", "test_multiple_content_types", |_, _| {
    let link = ContentPart::Link {
        uri: "test://static-text".into(),
        name: "a text".into(),
        media_type: Some("text/plain".into()),
    };
    let text = ContentPart::text("Multiple content types test:");
    Ok(vec![text, picture(), embedded("test://mixed-content-resource", "{}"), link].into())
});

tool!(Wrong: Nothing, "conformance.error", "test_error_handling", |_, _| {
    let words = "This tool intentionally returns an error for testing";
    Err(Problem::rejected("intended", words))
});

async fn logs(call: &Call) -> Outcome<ContentParts> {
    call.log(LogLevel::Info, "Tool execution started");
    tokio::time::sleep(PAUSE).await;
    call.log(LogLevel::Info, "Tool processing data");
    tokio::time::sleep(PAUSE).await;
    call.log(LogLevel::Info, "Tool execution completed");
    text("done")
}

tool!(Logs: Nothing, "conformance.log", "test_tool_with_logging", |call, _| {
    logs(call).await
});

tool!(LogsToo: Nothing, "conformance.log_too", "test_logging_tool", |call, _| {
    logs(call).await
});

tool!(Progress: Nothing, "conformance.progress", "test_tool_with_progress", |call, _| {
    for done in [0, 50, 100] {
        call.report(done, 100).await;
        tokio::time::sleep(PAUSE).await;
    }
    text("done")
});

#[derive(Deserialize, JsonSchema)]
pub struct ToModel {
    prompt: String,
}

tool!(AsksModel: ToModel, "conformance.sampling", "test_sampling", |call, input| {
    let question = HostQuestion::Model { text: input.prompt, max_tokens: 100 };
    match call.ask_host(vec![("answer", question)]).await?.pop() {
        Some(HostAnswer::Model(said)) => text(format!("LLM response: {said}")),
        other => text(format!("no answer: {other:?}")),
    }
});

#[derive(Deserialize, JsonSchema)]
pub struct ToPerson {
    message: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code, reason = "it is shown")]
struct WhoYouAre {
    /// User's response
    username: String,
    /// User's email address
    email: String,
}

tool!(AsksPerson: ToPerson, "conformance.elicitation", "test_elicitation", |call, input| {
    let answer: Option<WhoYouAre> = call.ask_person("who", input.message).await?;
    text(format!("User response: {answer:?}"))
});

async fn filled(call: &Call, form: Value) -> Outcome<ContentParts> {
    let question = HostQuestion::Person { message: "Please fill this in".into(), form };
    let answer = call.ask_host(vec![("form", question)]).await?;
    text(format!("Elicitation completed: {answer:?}"))
}

tool!(Defaults: Nothing, "conformance.defaults", "test_elicitation_sep1034_defaults", |call, _| {
    let form = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "default": "John Doe"},
            "age": {"type": "integer", "default": 30},
            "score": {"type": "number", "default": 95.5},
            "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
            "verified": {"type": "boolean", "default": true},
        },
        "required": [],
    });
    filled(call, form).await
});

tool!(Choices: Nothing, "conformance.choices", "test_elicitation_sep1330_enums", |call, _| {
    let titled = |title: &str| json!([{"const": "value1", "title": format!("First {title}")},
        {"const": "value2", "title": format!("Second {title}")},
        {"const": "value3", "title": format!("Third {title}")}]);
    let options = json!(["option1", "option2", "option3"]);
    let form = json!({
        "type": "object",
        "properties": {
            "untitledSingle": {"type": "string", "enum": options},
            "titledSingle": {"type": "string", "oneOf": titled("Option")},
            "legacyEnum": {"type": "string", "enum": ["opt1", "opt2", "opt3"],
                           "enumNames": ["Option One", "Option Two", "Option Three"]},
            "untitledMulti": {"type": "array", "items": {"type": "string", "enum": options}},
            "titledMulti": {"type": "array", "items": {"anyOf": titled("Choice")}},
        },
        "required": [],
    });
    filled(call, form).await
});

tool!(NeedsModel: Nothing, "conformance.missing", "test_missing_capability", |call, _| {
    let question = HostQuestion::Model { text: "Are you there?".into(), max_tokens: 10 };
    call.ask_host(vec![("there", question)]).await?;
    text("the client has a model")
});

#[derive(Deserialize, JsonSchema)]
struct Name {
    name: String,
}

#[derive(Deserialize, JsonSchema)]
struct Color {
    color: String,
}

#[derive(Deserialize, JsonSchema)]
struct Confirmation {
    ok: bool,
}

#[derive(Deserialize, JsonSchema)]
struct Context {
    context: String,
}

async fn greets(call: &Call) -> Outcome<ContentParts> {
    match call.ask_person::<Name>("user_name", "What is your name?").await? {
        Some(Name { name }) => text(format!("Hello, {name}!")),
        None => text("Hello, whoever you are!"),
    }
}

tool!(Greets: Nothing, "conformance.greet", "test_input_required_result_elicitation", |call, _| {
    greets(call).await
});

tool!(GreetsToo: Nothing, "conformance.greet_too", "test_streaming_elicitation", |call, _| {
    greets(call).await
});

tool!(Capital: Nothing, "conformance.capital", "test_input_required_result_sampling", |call, _| {
    let text_ = "What is the capital of France?".to_owned();
    let question = HostQuestion::Model { text: text_, max_tokens: 100 };
    text(format!("{:?}", call.ask_host(vec![("capital_question", question)]).await?))
});

tool!(Folders: Nothing, "conformance.folders", "test_input_required_result_list_roots", |call, _| {
    text(format!("{:?}", call.ask_host(vec![("client_roots", HostQuestion::Folders)]).await?))
});

async fn confirms(call: &Call) -> Outcome<ContentParts> {
    match call.ask_person::<Confirmation>("confirm", "Please confirm").await? {
        Some(Confirmation { ok: true }) => text("state-ok"),
        _ => text("state-ok, and not confirmed"),
    }
}

tool!(Confirms: Nothing, "conformance.confirm", "test_input_required_result_request_state", |call, _| {
    confirms(call).await
});

tool!(ConfirmsToo: Nothing, "conformance.confirm_too", "test_input_required_result_tampered_state", |call, _| {
    confirms(call).await
});

tool!(AsksAll: Nothing, "conformance.all", "test_input_required_result_multiple_inputs", |call, _| {
    let form = schemars::schema_for!(Name).to_value();
    let person = HostQuestion::Person { message: "What is your name?".into(), form };
    let model = HostQuestion::Model { text: "Generate a greeting".into(), max_tokens: 50 };
    let asked = [("user_name", person), ("greeting", model), ("client_roots", HostQuestion::Folders)];
    text(format!("{:?}", call.ask_host(asked.into()).await?))
});

tool!(Rounds: Nothing, "conformance.rounds", "test_input_required_result_multi_round", |call, _| {
    let name = call.ask_person::<Name>("step1", "Step 1: What is your name?").await?;
    let color = call.ask_person::<Color>("step2", "Step 2: What is your favorite color?").await?;
    let (name, color) = (name.map(|it| it.name), color.map(|it| it.color));
    text(format!("{name:?} likes {color:?}"))
});

tool!(AsksWhatItCan: Nothing, "conformance.capabilities", "test_input_required_result_capabilities", |call, _| {
    let form = schemars::schema_for!(Confirmation).to_value();
    let person = HostQuestion::Person { message: "Shall we?".into(), form };
    let model = HostQuestion::Model { text: "Shall we?".into(), max_tokens: 10 };
    let possible = [("person", person), ("model", model)];
    let possible = possible.into_iter().filter(|(_, question)| call.can_ask(question));
    text(format!("{:?}", call.ask_host(possible.collect()).await?))
});

tool!(Remembers: Nothing, "conformance.remember", "test_command_id", |call, _| {
    // What is made before a question is made once, since its id follows from the command's.
    let made = call.new_id("it");
    let sure = call.ask_person::<Confirmation>("sure", format!("Keep {made}?")).await?;
    text(format!("{made} {}", sure.is_some_and(|it| it.ok)))
});

offers!(
    StaticText: Nothing => ContentParts,
    Meta::query("conformance.text", "A text").resource("test://static-text"),
    |_, _| text("This is the content of the static text resource.")
);

offers!(
    StaticBinary: Nothing => ContentParts,
    Meta::query("conformance.binary", "A picture").resource("test://static-binary"),
    |_, _| Ok(vec![picture()].into())
);

offers!(
    Watched: Nothing => ContentParts,
    Meta::query("conformance.watched", "A text that may change")
        .resource("test://watched-resource")
        .changes_with("conformance:watched"),
    |_, _| text("It may change.")
);

#[derive(Deserialize, JsonSchema)]
pub struct ById {
    id: String,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Data {
    id: String,
    template_test: bool,
    data: String,
}

offers!(
    Template: ById => Data,
    Meta::query("conformance.template", "Data by their id").resource("test://template/{id}/data"),
    |_, ById { id }| {
        Ok(Data { data: format!("Data for ID: {id}"), template_test: true, id })
    }
);

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WithResource {
    /// The address of the resource to embed
    resource_uri: String,
}

offers!(
    PromptWithResource: WithResource => ContentParts,
    Meta::query("conformance.prompt_resource", "A prompt with a resource")
        .prompt("test_prompt_with_embedded_resource"),
    |_, input| {
        let resource = embedded(&input.resource_uri, "Embedded resource content for testing.");
        let text = ContentPart::text("Please process the embedded resource above.");
        Ok(vec![resource, text].into())
    }
);

offers!(
    PromptWithImage: Nothing => ContentParts,
    Meta::query("conformance.prompt_image", "A prompt with a picture")
        .prompt("test_prompt_with_image"),
    |_, _| {
        Ok(vec![picture(), ContentPart::text("Please analyze the image above.")].into())
    }
);

offers!(
    PromptThatAsks: Nothing => ContentParts,
    Meta::query("conformance.prompt_asks", "A prompt that asks first")
        .prompt("test_input_required_result_prompt"),
    |call, _| {
        let question = "What context should the prompt use?";
        let given = call.ask_person::<Context>("user_context", question).await?;
        text(format!("Use this context: {}", given.map_or("none".into(), |it| it.context)))
    }
);

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    Paris,
    Park,
    Tokyo,
}

#[derive(Deserialize, JsonSchema)]
pub struct TwoArguments {
    /// First test argument
    arg1: String,
    /// Second test argument
    arg2: String,
    place: Option<Place>,
}

offers!(
    PromptWithArguments: TwoArguments => ContentParts,
    Meta::query("conformance.prompt_arguments", "A prompt with arguments")
        .prompt("test_prompt_with_arguments"),
    |_, TwoArguments { arg1, arg2, place }| {
        let place = place.map_or(String::new(), |place| format!(", place={place:?}"));
        text(format!("Prompt with arguments: arg1='{arg1}', arg2='{arg2}'{place}"))
    }
);

struct Fixture;

impl Topic for Fixture {
    const KIND: &'static str = "conformance";
    const SUMMARY: &'static str = "Changes of what the suite watches";

    async fn may_listen(_: &Call, _: &str) -> Outcome<()> {
        Ok(())
    }
}

const SIMPLE_PROMPT: AgentPrompt = AgentPrompt {
    name: "test_simple_prompt",
    summary: "A simple prompt",
    fields: &[PromptField { name: "to", summary: "Whom to greet", default: Some("everybody") }],
    text: "This is a simple prompt for testing, for {to}.",
};

pub const CONFORMANCE: System = System {
    operations: &[
        operation::<SimpleText>(),
        operation::<Picture>(),
        operation::<Sound>(),
        operation::<Embedded>(),
        operation::<Mixed>(),
        operation::<Wrong>(),
        operation::<Logs>(),
        operation::<LogsToo>(),
        operation::<Progress>(),
        operation::<AsksModel>(),
        operation::<AsksPerson>(),
        operation::<Defaults>(),
        operation::<Choices>(),
        operation::<NeedsModel>(),
        operation::<Greets>(),
        operation::<GreetsToo>(),
        operation::<Capital>(),
        operation::<Folders>(),
        operation::<Confirms>(),
        operation::<ConfirmsToo>(),
        operation::<AsksAll>(),
        operation::<Rounds>(),
        operation::<AsksWhatItCan>(),
        operation::<Remembers>(),
        operation::<StaticText>(),
        operation::<StaticBinary>(),
        operation::<Watched>(),
        operation::<Template>(),
        operation::<PromptWithResource>(),
        operation::<PromptWithImage>(),
        operation::<PromptThatAsks>(),
        operation::<PromptWithArguments>(),
    ],
    prompts: &[SIMPLE_PROMPT],
    topics: &[topic::<Fixture>()],
    ..System::new("conformance")
};

/// The systems of the product, and this one.
pub fn all() -> &'static [&'static System] {
    static CONFORMS: System = CONFORMANCE;
    let all = systems::ALL.iter().copied().chain([&CONFORMS]);
    Box::leak(all.collect())
}
