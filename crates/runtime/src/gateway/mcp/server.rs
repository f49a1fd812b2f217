//! One request of an agent, whatever revision of the protocol it speaks.
#![expect(deprecated, reason = "the revision before has what the newest one has given up")]

use std::sync::Arc;

use axum::http::request::Parts;
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, CompleteRequestParams,
    CompleteResult, CompletionInfo, ContentBlock, CustomRequest, CustomResult, ErrorCode,
    ErrorData, GetPromptRequestParams, GetPromptResponse, GetPromptResult, Implementation,
    ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult, ListToolsResult,
    MetaObject, PaginatedRequestParams, PromptMessage, ProtocolVersion, ReadResourceRequestParams,
    ReadResourceResponse, ReadResourceResult, Reference, Role, ServerCapabilities, ServerConfig,
    SetLevelRequestParams, SubscribeRequestParams, SubscriptionFilter, UnsubscribeRequestParams,
};
use rmcp::service::{RequestContext, SubscriptionContext};
use rmcp::{RoleServer, ServerHandler};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::answers::Answers;
use super::asking::level;
use super::prompts::{OfferedPrompt, Prompts};
use super::resources::{OfferedResource, Resources};
use super::running::{Asks, RequestEnd};
use super::sessions::AgentSession;
use super::tools::{OfferedTool, Tools, block};
use super::watching::{Heard, Watching, over};
use crate::contract::content::ContentParts;
use crate::contract::problem::{Outcome, Problem};
use crate::contract::{Call, System};
use crate::gateway::Gateway;
use crate::gateway::auth::Claims;
use crate::gateway::http::is_command_id;
use crate::kernel::error::ErrorCode as Code;

/// How long a client may keep a list: they change with releases only.
const LISTS_TTL_MS: u64 = 300_000;

/// The command's id in `_meta`, for clients that cannot set headers.
const IDEMPOTENCY_KEY: &str = "proxie/idempotency-key";
/// The place of a problem in the `_meta` of a result. `structuredContent` is the answer's: clients check it against the
/// tool's schema even where the result is an error.
const PROBLEM: &str = "proxie/problem";

/// The methods that this server answers in every revision.
const METHODS: [&str; 8] = [
    "completion/complete",
    "prompts/get",
    "prompts/list",
    "resources/list",
    "resources/read",
    "resources/templates/list",
    "tools/call",
    "tools/list",
];
/// Those of the revision before only, and of the newest one only.
const METHODS_BEFORE: [&str; 3] =
    ["logging/setLevel", "resources/subscribe", "resources/unsubscribe"];
const METHODS_NEWEST: [&str; 1] = ["subscriptions/listen"];

const INSTRUCTIONS: &str = "Each tool is one operation of this node's API, done for the person whose token you have: you \
    reach what is theirs, and nothing of anybody else. Money is {amount_minor, currency} in the currency's smallest \
    unit, times are RFC 3339 in UTC, lists continue with `cursor` set to `next_cursor`. Tools with destructiveHint bind \
    their person or end something: ask them first. A refused call has isError and says why; `retryable` says whether \
    the same call may succeed later.";

/// Who sent a request: the token's claims, and the id of the command.
#[derive(Clone)]
pub struct Sender {
    pub claims: Claims,
    pub command_id: String,
    /// The session, in the revision that has them.
    pub session: Option<AgentSession>,
    /// What the client is told while its request is being answered.
    pub out: mpsc::Sender<Value>,
}

pub struct McpServer {
    pub gateway: Arc<Gateway>,
    pub offers: Arc<Offers>,
    pub answers: Arc<Answers>,
}

/// What systems offer to agents.
pub struct Offers {
    pub tools: Tools,
    pub resources: Resources,
    pub prompts: Prompts,
}

impl Offers {
    pub fn of(systems: &'static [&'static System]) -> Self {
        Self {
            tools: Tools::of(systems),
            resources: Resources::of(systems),
            prompts: Prompts::of(systems),
        }
    }
}

/// Who sent the request of this context.
pub fn sender(context: &RequestContext<RoleServer>) -> Result<&Sender, ErrorData> {
    let parts = context.extensions.get::<Parts>();
    let sender = parts.and_then(|parts| parts.extensions.get::<Sender>());
    sender.ok_or_else(|| ErrorData::internal_error("a request without a sender", None))
}

/// Whether the request speaks the newest revision.
pub fn is_newest(context: &RequestContext<RoleServer>) -> bool {
    context.protocol_version().is_some_and(|it| it >= ProtocolVersion::V_2026_07_28)
}

impl McpServer {
    /// The resources, or their templates, that the caller may read.
    fn readable(&self, call: Call, templates: bool) -> impl Iterator<Item = &OfferedResource> {
        let all = self.offers.resources.all().filter(move |one| one.is_template() == templates);
        all.filter(move |one| one.operation.allows(&call))
    }

    pub fn call(&self, context: &RequestContext<RoleServer>) -> Result<Call, ErrorData> {
        let sender = sender(context)?;
        let id = match context.meta.get(IDEMPOTENCY_KEY) {
            None => sender.command_id.clone(),
            Some(Value::String(id)) if is_command_id(id) => id.clone(),
            Some(_) => {
                let message =
                    format!("{IDEMPOTENCY_KEY} must have 1 to 64 visible ASCII characters");
                return Err(ErrorData::invalid_params(message, None));
            }
        };
        Ok(self.gateway.call(&sender.claims, id))
    }

    /// The way to the stream of the request's session, and whose it is.
    fn session(
        &self,
        context: &RequestContext<RoleServer>,
    ) -> Result<(super::sessions::SessionLine, Arc<str>), ErrorData> {
        let sender = sender(context)?;
        let none =
            || ErrorData::invalid_request("this takes a session: begin with initialize", None);
        let session = sender.session.as_ref().ok_or_else(none)?;
        let user: Arc<str> = sender.claims.sub.as_str().into();
        Ok((session.line(&self.gateway.topics, &user), user))
    }
}

/// Refuses a cursor: every list is one page.
fn only_page(request: Option<&PaginatedRequestParams>) -> Result<(), ErrorData> {
    match request.and_then(|request| request.cursor.as_ref()) {
        None => Ok(()),
        Some(_) => Err(ErrorData::invalid_params("the cursor is none of this list", None)),
    }
}

fn refused(problem: &Problem) -> CallToolResult {
    let problem = problem.ws_error();
    let mut meta = MetaObject::new();
    meta.insert(PROBLEM.into(), problem.clone());
    CallToolResult::error(vec![ContentBlock::text(problem.to_string())]).with_meta(Some(meta))
}

fn read<T: serde::de::DeserializeOwned>(answer: &str) -> Outcome<T> {
    serde_json::from_str(answer).map_err(|error| {
        tracing::error!(%error, "an answer is not what it is declared to be");
        Problem::from(crate::kernel::error::AskError::Internal)
    })
}

fn answered(tool: &OfferedTool, answer: &str) -> Outcome<CallToolResult> {
    if tool.is_content {
        let parts = read::<ContentParts>(answer)?.parts.into_iter().map(block);
        return Ok(CallToolResult::success(parts.collect()));
    }
    let structured = read(answer)?;
    let mut result = CallToolResult::success(vec![ContentBlock::text(answer)]);
    result.structured_content = Some(structured);
    Ok(result)
}

impl ServerHandler for McpServer {
    fn get_info(&self) -> ServerConfig {
        let offered = ServerCapabilities::builder()
            .enable_tools()
            .enable_resources()
            .enable_prompts()
            .enable_completions();
        let mut offered = offered.enable_logging().build();
        if self.offers.resources.can_be_watched()
            && let Some(resources) = &mut offered.resources
        {
            resources.subscribe = Some(true);
        }
        ServerConfig::new(offered)
            .with_server_info(Implementation::new("proxie", env!("CARGO_PKG_VERSION")))
            .with_instructions(INSTRUCTIONS)
    }

    /// The tools that the caller may call, by their role and the scopes of their token.
    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        only_page(request.as_ref())?;
        let call = self.call(&context)?;
        let allowed = self.offers.tools.all().filter(|tool| tool.operation.allows(&call));
        let tools = allowed.map(|tool| tool.shown.clone()).collect();
        Ok(ListToolsResult::with_all_items(tools)
            .with_ttl_ms(LISTS_TTL_MS)
            .with_cache_scope(CacheScope::Private))
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        only_page(request.as_ref())?;
        let resources = self.readable(self.call(&context)?, false).map(OfferedResource::resource);
        Ok(ListResourcesResult::with_all_items(resources.collect())
            .with_ttl_ms(LISTS_TTL_MS)
            .with_cache_scope(CacheScope::Private))
    }

    async fn list_resource_templates(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        only_page(request.as_ref())?;
        let templates = self.readable(self.call(&context)?, true).map(OfferedResource::template);
        Ok(ListResourceTemplatesResult::with_all_items(templates.collect())
            .with_ttl_ms(LISTS_TTL_MS)
            .with_cache_scope(CacheScope::Private))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let uri = request.uri;
        let Some((resource, input)) = self.offers.resources.find(&uri) else {
            let shown: String = uri.chars().take(256).collect();
            return Err(ErrorData::resource_not_found(
                "there is no resource at this address",
                Some(json!({"uri": shown})),
            ));
        };
        let asks = Asks {
            method: "resources/read",
            name: &uri,
            input: Value::Object(input),
            responses: request.input_responses,
            state: request.request_state,
        };
        let answer = match self.run(resource.operation, asks, &context).await? {
            RequestEnd::Answered(answer) => answer,
            RequestEnd::Asks(question) => return Ok(question.into()),
            RequestEnd::Refused(problem) => {
                let data = json!({"uri": uri, "problem": problem.ws_error()});
                let detail = problem.detail;
                return Err(match problem.code {
                    Code::NotFound => ErrorData::resource_not_found(detail, Some(data)),
                    code if code.retryable() => ErrorData::internal_error(detail, Some(data)),
                    _ => ErrorData::invalid_request(detail, Some(data)),
                });
            }
        };
        let contents = resource.contents(answer.get(), &uri);
        let contents = contents.ok_or_else(|| ErrorData::internal_error("no content", None))?;
        let read = ReadResourceResult::new(contents);
        Ok(read.with_ttl_ms(0).with_cache_scope(CacheScope::Private).into())
    }

    async fn list_prompts(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        only_page(request.as_ref())?;
        let call = self.call(&context)?;
        let prompts = self.offers.prompts.shown(|query| query.allows(&call));
        Ok(ListPromptsResult::with_all_items(prompts)
            .with_ttl_ms(LISTS_TTL_MS)
            .with_cache_scope(CacheScope::Private))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let unknown = || ErrorData::invalid_params("there is no such prompt", None);
        let prompt = self.offers.prompts.get(&request.name).ok_or_else(unknown)?;
        let given = request.arguments.unwrap_or_default();
        let query = match prompt {
            OfferedPrompt::Query(query) => query,
            OfferedPrompt::Text(prompt) => {
                let filled = prompt.filled(|name| given.get(name).and_then(Value::as_str));
                let text = filled.map_err(|field| {
                    ErrorData::invalid_params(format!("the argument {field} is required"), None)
                })?;
                let message = PromptMessage::new_text(Role::User, text);
                return Ok(GetPromptResult::new(vec![message])
                    .with_description(prompt.summary)
                    .into());
            }
        };
        let asks = Asks {
            method: "prompts/get",
            name: &request.name,
            input: Value::Object(given),
            responses: request.input_responses,
            state: request.request_state,
        };
        match self.run(query, asks, &context).await? {
            RequestEnd::Asks(question) => Ok(question.into()),
            RequestEnd::Refused(problem) => {
                let data = json!({"problem": problem.ws_error()});
                Err(match problem.code.retryable() {
                    true => ErrorData::internal_error(problem.detail, Some(data)),
                    false => ErrorData::invalid_params(problem.detail, Some(data)),
                })
            }
            RequestEnd::Answered(answer) => {
                let content = read::<ContentParts>(answer.get())
                    .map_err(|problem| ErrorData::internal_error(problem.detail, None))?;
                let parts = content.parts.into_iter();
                let messages = parts.map(|part| PromptMessage::new(Role::User, block(part)));
                Ok(GetPromptResult::new(messages.collect())
                    .with_description(query.meta.summary)
                    .into())
            }
        }
    }

    /// What a prompt's argument, or a field of a resource's address, may become.
    async fn complete(
        &self,
        request: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let unknown = || ErrorData::invalid_params("there is nothing like that to complete", None);
        let operation = match &request.r#ref {
            Reference::Prompt(prompt) => match self.offers.prompts.get(&prompt.name) {
                Some(OfferedPrompt::Query(query)) => Some(query),
                Some(OfferedPrompt::Text(_)) => None,
                None => return Err(unknown()),
            },
            Reference::Resource(resource) => {
                let found = self.offers.resources.written(&resource.uri);
                Some(found.ok_or_else(unknown)?.operation)
            }
            _ => return Err(unknown()),
        };
        let mut values = Vec::new();
        if let Some(operation) = operation {
            let argument = &request.argument;
            let call = self.call(&context)?;
            let completed = operation.complete(&call, &argument.name, &argument.value).await;
            values = completed.map_err(|problem| {
                let data = json!({"problem": problem.ws_error()});
                ErrorData::invalid_request(problem.detail, Some(data))
            })?;
        }
        let has_more = values.len() > CompletionInfo::MAX_VALUES;
        values.truncate(CompletionInfo::MAX_VALUES);
        let mut completion =
            CompletionInfo::new(values).map_err(|error| ErrorData::internal_error(error, None))?;
        completion.has_more = Some(has_more);
        Ok(CompleteResult::new(completion))
    }

    fn accepted_subscription_filter(
        &self,
        requested: &SubscriptionFilter,
    ) -> Option<SubscriptionFilter> {
        let wanted = requested.resource_subscriptions.iter().flatten();
        let watched: Vec<_> =
            wanted.filter(|uri| self.offers.resources.topic(uri).is_some()).cloned().collect();
        // Lists change with releases only, which end every stream.
        Some(match watched.is_empty() {
            true => SubscriptionFilter::new(),
            false => SubscriptionFilter::builder().resource_subscriptions(watched).build(),
        })
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let refused = |problem: Problem| {
            let data = json!({"problem": problem.ws_error()});
            ErrorData::invalid_request(problem.detail, Some(data))
        };
        let claims = &sender(context.request_context())?.claims;
        self.gateway.takes_connections().map_err(refused)?;
        let _seat = self.gateway.users.seat(&claims.sub).await.map_err(refused)?;
        let _opened = self.gateway.connections.opened();
        let mut watching = Watching::default();
        for uri in context.accepted().resource_subscriptions.iter().flatten() {
            let added = watching.add(&self.gateway, &self.offers, claims, uri);
            added.await.map_err(refused)?;
        }
        let mut over = std::pin::pin!(over(&self.gateway, claims));
        loop {
            let heard = tokio::select! {
                () = context.cancelled() => return Ok(()),
                () = &mut over => return Ok(()),
                heard = watching.next() => heard,
            };
            if let Heard::Changed(uri) = heard
                && let Err(error) = context.sink().notify_resource_updated(uri).await
            {
                tracing::debug!(%error, "a listener is gone");
                return Ok(());
            }
        }
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let (line, user) = self.session(&context)?;
        line.watch(&self.answers, &user, request.uri).await
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let (line, user) = self.session(&context)?;
        line.unwatch(&self.answers, &user, request.uri).await
    }

    async fn set_level(
        &self,
        request: SetLevelRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        if is_newest(&context) {
            let method = "logging/setLevel";
            return Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, method, None));
        }
        let (line, user) = self.session(&context)?;
        let name = crate::kernel::entity::to_value(&request.level);
        let name = name.as_str().filter(|name| level(name).is_some());
        let name = name.ok_or_else(|| ErrorData::invalid_params("there is no such level", None))?;
        line.set_level(&self.answers, &user, name.to_owned()).await
    }

    /// Messages that are none of the protocol's: of a method that it has, but with other parameters, or of another one.
    async fn on_custom_request(
        &self,
        request: CustomRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        let CustomRequest { method, .. } = request;
        let of_revision: &[&str] =
            if is_newest(&context) { &METHODS_NEWEST } else { &METHODS_BEFORE };
        let is_ours = METHODS.iter().chain(of_revision).any(|ours| *ours == method);
        Err(match is_ours {
            true => ErrorData::invalid_params(format!("the params are none of {method}"), None),
            false => ErrorData::new(ErrorCode::METHOD_NOT_FOUND, method, None),
        })
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(tool) = self.offers.tools.get(&request.name) else {
            let name: String = request.name.chars().take(128).collect();
            return Err(ErrorData::invalid_params(
                format!("there is no tool {name}"),
                Some(json!({"tool": name})),
            ));
        };
        let asks = Asks {
            method: "tools/call",
            name: &request.name,
            input: Value::Object(request.arguments.unwrap_or_default()),
            responses: request.input_responses,
            state: request.request_state,
        };
        let outcome = match self.run(tool.operation, asks, &context).await? {
            RequestEnd::Answered(answer) => answered(tool, answer.get()),
            RequestEnd::Refused(problem) => Err(problem),
            RequestEnd::Asks(question) => return Ok(question.into()),
        };
        Ok(outcome.unwrap_or_else(|problem| refused(&problem)).into())
    }
}
