//! Operations: the queries and commands of a system, each declared once for all doors.

use std::future::ready;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::call::Call;
use super::connection::OnConnection;
use super::input;
use super::problem::Outcome;
use crate::kernel::error::AskError;

/// A query or a command of a system.
pub trait Operation: 'static {
    const META: Meta;
    /// The input object. Path, query and body of a request, the data of an event, and flags of the command line are merged
    /// into it.
    type Input: DeserializeOwned + JsonSchema + Send + 'static;
    type Answer: Serialize + JsonSchema + Send + 'static;

    /// Runs the operation: checks what the types cannot, and asks the entities. An entity checks its owner itself.
    fn run(
        call: &Call,
        input: Self::Input,
    ) -> impl Future<Output = Outcome<Self::Answer>> + Send + '_;

    /// Whether the caller may call this operation at all. It is checked before the input is read.
    fn allow(_call: &Call) -> Outcome<()> {
        Ok(())
    }

    /// What the text of a field may become that begins so, for clients that complete what a person writes. By default the
    /// values that its type lists.
    fn complete<'a>(
        _call: &'a Call,
        field: &'a str,
        begun: &'a str,
    ) -> impl Future<Output = Outcome<Vec<String>>> + Send + 'a {
        let schema = by_itself(|all| all.subschema_for::<Self::Input>());
        let mut values = input::choices(&schema, field);
        values.retain(|value| value.starts_with(begun));
        ready(Ok(values))
    }

    /// Whether this call counts as one of the user's kept commands: not where nothing of it is stored.
    fn is_kept(_call: &Call, _input: &Self::Input) -> bool {
        matches!(Self::META.sort, Sort::Command)
    }
}

/// The kind of an operation, by the effect of repeating it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// A command: it changes something, once for each command id.
    Command,
    /// A query: it changes nothing.
    Query,
    /// A signal: nothing is stored, and it may be lost.
    Signal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Method {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Put => "put",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

/// A way to reach an operation over HTTP. `{name}` in the path is the field `name` of the input.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub method: Method,
    pub path: &'static str,
}

/// The tool that agents call an operation by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// `accept_offer`: unique, and never changed.
    pub name: &'static str,
    pub effect: ToolEffect,
    /// The words for models, where the operation's summary does not do.
    pub description: Option<&'static str>,
    /// Whether it passes the call's id on as the key by which the service outside recognises a repetition.
    pub is_keyed: bool,
}

/// The effect of a tool, by which an agent's host decides whether to ask its person first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolEffect {
    ReadOnly,
    /// Something new each time.
    Additive,
    /// Nothing more when it is called again with the same arguments, and nothing is lost.
    Idempotent,
    /// Something binding or final.
    Destructive,
    /// Something new each time, by a service outside of this node.
    Outside,
}

/// The part that an operation has in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithBytes {
    /// The body of a request is theirs, and no fields.
    Taken,
    /// The answer is bytes, where the caller can take them.
    Given,
}

/// The metadata of an operation: its name, documentation, routes and rights.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// `playback.report`: unique, and never changed. Its event is `playback:report`.
    pub name: &'static str,
    /// One line for the documents.
    pub summary: &'static str,
    pub sort: Sort,
    /// The scope that a token needs. `None`: the name's first word.
    pub scope: Option<&'static str>,
    pub routes: [Option<Route>; 3],
    /// The path below which the created object can be read: `/v1/devices/`, followed by the answer's `id`.
    pub creates: Option<&'static str>,
    /// Whether the answer has a `version`, which HTTP sends as its ETag.
    pub is_versioned: bool,
    /// The field of the input that HTTP takes from `If-Match`.
    pub if_match: Option<&'static str>,
    /// Whether clients may retry it by themselves when its answer did not come.
    pub is_repeatable: bool,
    /// The effect on the connection that it is called over.
    pub on_connection: Option<OnConnection>,
    /// Whether its answer can be heard as it comes.
    pub is_streamed: bool,
    /// Whether it takes or answers bytes, over HTTP.
    pub bytes: Option<WithBytes>,
    /// The path at which clients without such a connection get the same.
    pub without_connection: Option<Route>,
    pub tool: Option<Tool>,
    /// The address by which agents read it: `proxie://bookings/{booking_id}`, where `{name}` is a field of the input.
    pub resource: Option<&'static str>,
    /// The topic whose events say that what is read there has changed: `booking:{booking_id}`.
    pub changes_with: Option<&'static str>,
    /// The name by which hosts offer its answer as the beginning of a conversation.
    pub prompt: Option<&'static str>,
}

impl Meta {
    const fn new(name: &'static str, summary: &'static str, sort: Sort) -> Self {
        Self {
            name,
            summary,
            sort,
            scope: None,
            routes: [None, None, None],
            creates: None,
            is_versioned: false,
            if_match: None,
            is_repeatable: true,
            on_connection: None,
            is_streamed: false,
            bytes: None,
            without_connection: None,
            tool: None,
            resource: None,
            changes_with: None,
            prompt: None,
        }
    }

    pub const fn command(name: &'static str, summary: &'static str) -> Self {
        Self::new(name, summary, Sort::Command)
    }

    pub const fn query(name: &'static str, summary: &'static str) -> Self {
        Self::new(name, summary, Sort::Query)
    }

    pub const fn signal(name: &'static str, summary: &'static str) -> Self {
        Self::new(name, summary, Sort::Signal)
    }

    const fn http(mut self, method: Method, path: &'static str) -> Self {
        let mut at = 0;
        while self.routes[at].is_some() {
            at += 1;
        }
        self.routes[at] = Some(Route { method, path });
        self
    }

    pub const fn get(self, path: &'static str) -> Self {
        self.http(Method::Get, path)
    }

    pub const fn post(self, path: &'static str) -> Self {
        self.http(Method::Post, path)
    }

    pub const fn put(self, path: &'static str) -> Self {
        self.http(Method::Put, path)
    }

    pub const fn patch(self, path: &'static str) -> Self {
        self.http(Method::Patch, path)
    }

    pub const fn delete(self, path: &'static str) -> Self {
        self.http(Method::Delete, path)
    }

    pub const fn creates(mut self, collection: &'static str) -> Self {
        self.creates = Some(collection);
        self
    }

    pub const fn versioned(mut self) -> Self {
        self.is_versioned = true;
        self
    }

    pub const fn if_match(mut self, field: &'static str) -> Self {
        self.if_match = Some(field);
        self
    }

    /// Excludes it from automatic retries, since others would hear a repetition twice.
    pub const fn heard_again(mut self) -> Self {
        self.is_repeatable = false;
        self
    }

    pub const fn scope(mut self, scope: &'static str) -> Self {
        self.scope = Some(scope);
        self
    }

    /// Offers it to agents.
    pub const fn tool(mut self, name: &'static str, effect: ToolEffect) -> Self {
        self.tool = Some(Tool { name, effect, description: None, is_keyed: false });
        self
    }

    /// Lets agents read it as a resource too. Only queries can be.
    pub const fn resource(mut self, address: &'static str) -> Self {
        self.resource = Some(address);
        self
    }

    /// Lets agents hear when the resource has changed. Its fields are those of the resource's address.
    pub const fn changes_with(mut self, topic: &'static str) -> Self {
        self.changes_with = Some(topic);
        self
    }

    /// Offers its answer, which is [`super::content::ContentParts`], as a prompt whose arguments are its fields. Only queries
    /// can be prompts.
    pub const fn prompt(mut self, name: &'static str) -> Self {
        self.prompt = Some(name);
        self
    }

    /// Words for models instead of the summary. The tool is declared before.
    pub const fn tool_description(mut self, words: &'static str) -> Self {
        let mut tool = self.tool.expect("the tool is declared before its description");
        tool.description = Some(words);
        self.tool = Some(tool);
        self
    }

    /// Promises that the tool, which reaches outside, passes the call's id on: the service there recognises a repetition by it.
    pub const fn keyed(mut self) -> Self {
        let mut tool = self.tool.expect("the tool is declared before its key");
        tool.is_keyed = true;
        self.tool = Some(tool);
        self
    }

    /// Its answer can be heard as it comes: over HTTP, by who accepts `text/event-stream`.
    pub const fn streamed(mut self) -> Self {
        self.is_streamed = true;
        self
    }

    /// Takes the body of a request as it is.
    pub const fn takes_bytes(mut self) -> Self {
        self.bytes = Some(WithBytes::Taken);
        self
    }

    /// Answers bytes over HTTP. Its answer's fields say what they are.
    pub const fn answers_bytes(mut self) -> Self {
        self.bytes = Some(WithBytes::Given);
        self
    }

    pub const fn on_connection(mut self, what: OnConnection) -> Self {
        self.on_connection = Some(what);
        self
    }

    pub const fn or_post(mut self, path: &'static str) -> Self {
        self.without_connection = Some(Route { method: Method::Post, path });
        self
    }

    pub fn routes(&self) -> impl Iterator<Item = Route> + use<> {
        self.routes.into_iter().flatten()
    }

    /// Where its bytes are sent or answered.
    pub fn bytes_path(&self) -> &'static str {
        self.routes[0].map_or("", |route| route.path)
    }

    /// The scope that a token with scopes must have for this operation.
    pub fn takes_scope(&self) -> &'static str {
        self.scope
            .unwrap_or_else(|| self.name.split_once('.').map_or(self.name, |(first, _)| first))
    }

    /// The operation's name where clients send events: `playback:report`.
    pub fn event(&self) -> String {
        self.name.replace('.', ":")
    }
}

/// The empty answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize, JsonSchema)]
pub struct Done {}

/// The empty input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize, JsonSchema)]
pub struct Nothing {}

type Complete = for<'a> fn(&'a Call, &'a str, &'a str) -> BoxFuture<'a, Outcome<Vec<String>>>;
type Run = fn(Call, Value) -> BoxFuture<'static, Outcome<Box<RawValue>>>;

/// An operation as the doors see it.
#[derive(Clone, Copy)]
pub struct Declared {
    pub meta: Meta,
    pub input: fn(&mut SchemaGenerator) -> Schema,
    pub answer: fn(&mut SchemaGenerator) -> Schema,
    allow: fn(&Call) -> Outcome<()>,
    complete: Complete,
    check: fn(&Value) -> Outcome<()>,
    run: Run,
}

/// An operation in the list of its system.
pub const fn operation<O: Operation>() -> Declared {
    Declared {
        meta: O::META,
        input: |generator| generator.subschema_for::<O::Input>(),
        answer: |generator| generator.subschema_for::<O::Answer>(),
        allow: allow::<O>,
        complete: |call, field, begun| O::complete(call, field, begun).boxed(),
        check: |given| input::read::<O::Input>(given).map(drop),
        run: run::<O>,
    }
}

impl Declared {
    /// Reads the input and runs the operation. The answer is JSON.
    pub fn run(&self, call: Call, given: Value) -> BoxFuture<'static, Outcome<Box<RawValue>>> {
        (self.run)(call, given)
    }

    /// Whether the caller may call it at all, by their role and the scopes of their token.
    pub fn allows(&self, call: &Call) -> bool {
        (self.allow)(call).is_ok()
    }

    /// What the text of a field may become, for those who may call it.
    pub async fn complete(&self, call: &Call, field: &str, begun: &str) -> Outcome<Vec<String>> {
        (self.allow)(call)?;
        (self.complete)(call, field, begun).await
    }

    /// Checks an input without running anything: all wrong fields at once.
    pub fn check(&self, given: &Value) -> Outcome<()> {
        (self.check)(given)
    }

    /// The schema of the input by itself.
    pub fn input_schema(&self) -> Value {
        by_itself(self.input)
    }

    /// The schema of the answer by itself.
    pub fn answer_schema(&self) -> Value {
        by_itself(self.answer)
    }
}

/// A schema (JSON Schema 2020-12) with all definitions that it refers to.
pub(super) fn by_itself(of: fn(&mut SchemaGenerator) -> Schema) -> Value {
    let mut generator = SchemaGenerator::default();
    let schema = of(&mut generator).to_value();
    let mut definitions = generator.take_definitions(true);
    let name = schema["$ref"].as_str().and_then(|at| at.rsplit('/').next());
    let mut schema = match name.and_then(|name| definitions.get(name)) {
        // One that is referred to stays among the definitions as well.
        Some(definition) => {
            let definition = definition.clone();
            let refers = Value::Object(definitions.clone()).to_string();
            if !refers.contains(&schema["$ref"].to_string()) {
                name.and_then(|name| definitions.remove(name));
            }
            definition
        }
        None => schema,
    };
    if !definitions.is_empty() {
        schema["$defs"] = definitions.into();
    }
    schema
}

fn allow<O: Operation>(call: &Call) -> Outcome<()> {
    call.may(O::META.takes_scope())?;
    O::allow(call)
}

fn run<O: Operation>(
    mut call: Call,
    mut given: Value,
) -> BoxFuture<'static, Outcome<Box<RawValue>>> {
    async move {
        allow::<O>(&call)?;
        call.check_user(&given)?;
        // Ids and fingerprints are of what is said, and not of the order in which it is.
        given.sort_all_objects();
        let input: O::Input = input::read(&given)?;
        if O::is_kept(&call, &input) {
            call.may_command().await?;
        }
        call.given = given;
        let answer = O::run(&call, input).await?;
        to_raw_value(&answer).map_err(|error| {
            tracing::error!(operation = O::META.name, %error, "an answer is no JSON");
            AskError::Internal.into()
        })
    }
    .boxed()
}
