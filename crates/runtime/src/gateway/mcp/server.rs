//! One request of an agent, whatever revision of the protocol it speaks.

use std::sync::Arc;

use axum::http::request::Parts;
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock,
    CustomRequest, CustomResult, ErrorCode, ErrorData, GetPromptRequestParams, GetPromptResponse,
    GetPromptResult, Implementation, ListPromptsResult, ListResourceTemplatesResult,
    ListResourcesResult, ListToolsResult, MetaObject, PaginatedRequestParams, PromptMessage,
    ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult, ResourceContents, Role,
    ServerCapabilities, ServerConfig,
};
use rmcp::service::RequestContext;
use rmcp::{RoleServer, ServerHandler};
use serde_json::{Value, json};

use super::prompts::Prompts;
use super::resources::{OfferedResource, Resources};
use super::tools::Tools;
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

/// The methods that this server answers, in every revision.
const METHODS: [&str; 7] = [
    "prompts/get",
    "prompts/list",
    "resources/list",
    "resources/read",
    "resources/templates/list",
    "tools/call",
    "tools/list",
];

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
}

pub struct McpServer {
    pub gateway: Arc<Gateway>,
    pub offers: Arc<Offers>,
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

impl McpServer {
    /// The resources, or their templates, that the caller may read.
    fn readable(&self, call: Call, templates: bool) -> impl Iterator<Item = &OfferedResource> {
        let all = self.offers.resources.all().filter(move |one| one.is_template() == templates);
        all.filter(move |one| one.operation.allows(&call))
    }

    fn call(&self, context: &RequestContext<RoleServer>) -> Result<Call, ErrorData> {
        let parts = context.extensions.get::<Parts>();
        let sender = parts.and_then(|parts| parts.extensions.get::<Sender>());
        let sender =
            sender.ok_or_else(|| ErrorData::internal_error("a request without a sender", None))?;
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
}

/// Refuses a cursor: every list is one page.
fn only_page(request: Option<&PaginatedRequestParams>) -> Result<(), ErrorData> {
    match request.and_then(|request| request.cursor.as_ref()) {
        None => Ok(()),
        Some(_) => Err(ErrorData::invalid_params("the cursor is none of this list", None)),
    }
}

/// The outcome of an operation. A client that has gone away ends it, as it does over HTTP.
async fn unless_cancelled<T>(
    context: &RequestContext<RoleServer>,
    run: impl Future<Output = T>,
) -> Result<T, ErrorData> {
    tokio::select! {
        outcome = run => Ok(outcome),
        () = context.ct.cancelled() => Err(ErrorData::internal_error("the request was cancelled", None)),
    }
}

fn refused(problem: &Problem) -> CallToolResult {
    let problem = problem.ws_error();
    let mut meta = MetaObject::new();
    meta.insert(PROBLEM.into(), problem.clone());
    CallToolResult::error(vec![ContentBlock::text(problem.to_string())]).with_meta(Some(meta))
}

fn answered(answer: &str) -> Outcome<CallToolResult> {
    let structured = serde_json::from_str(answer).map_err(|error| {
        tracing::error!(%error, "an answer is no JSON");
        Problem::from(crate::kernel::error::AskError::Internal)
    })?;
    let mut result = CallToolResult::success(vec![ContentBlock::text(answer)]);
    result.structured_content = Some(structured);
    Ok(result)
}

impl ServerHandler for McpServer {
    fn get_info(&self) -> ServerConfig {
        let offered =
            ServerCapabilities::builder().enable_tools().enable_resources().enable_prompts();
        ServerConfig::new(offered.build())
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
        let Some((query, input)) = self.offers.resources.find(&uri) else {
            let shown: String = uri.chars().take(256).collect();
            return Err(ErrorData::resource_not_found(
                "there is no resource at this address",
                Some(json!({"uri": shown})),
            ));
        };
        let run = query.run(self.call(&context)?, Value::Object(input));
        match unless_cancelled(&context, run).await? {
            Ok(answer) => {
                let contents =
                    ResourceContents::text(answer.get(), uri).with_mime_type("application/json");
                let read = ReadResourceResult::new(vec![contents]);
                Ok(read.with_ttl_ms(0).with_cache_scope(CacheScope::Private).into())
            }
            Err(problem) => {
                let data = json!({"uri": uri, "problem": problem.ws_error()});
                let detail = problem.detail;
                Err(match problem.code {
                    Code::NotFound => ErrorData::resource_not_found(detail, Some(data)),
                    code if code.retryable() => ErrorData::internal_error(detail, Some(data)),
                    _ => ErrorData::invalid_request(detail, Some(data)),
                })
            }
        }
    }

    async fn list_prompts(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        only_page(request.as_ref())?;
        Ok(ListPromptsResult::with_all_items(self.offers.prompts.shown())
            .with_ttl_ms(LISTS_TTL_MS)
            .with_cache_scope(CacheScope::Public))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let unknown = || ErrorData::invalid_params("there is no such prompt", None);
        let prompt = self.offers.prompts.get(&request.name).ok_or_else(unknown)?;
        let given = request.arguments.unwrap_or_default();
        let text =
            prompt.filled(|name| given.get(name).and_then(Value::as_str)).map_err(|field| {
                ErrorData::invalid_params(format!("the argument {field} is required"), None)
            })?;
        let message = PromptMessage::new_text(Role::User, text);
        Ok(GetPromptResult::new(vec![message]).with_description(prompt.summary).into())
    }

    /// Messages that are none of the protocol's: of a method that it has, but with other parameters, or of another one.
    async fn on_custom_request(
        &self,
        request: CustomRequest,
        _: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        let CustomRequest { method, .. } = request;
        Err(match METHODS.contains(&method.as_str()) {
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
        let call = self.call(&context)?;
        let given = Value::Object(request.arguments.unwrap_or_default());
        let outcome = unless_cancelled(&context, tool.operation.run(call, given)).await?;
        let result = outcome.and_then(|answer| answered(answer.get()));
        Ok(result.unwrap_or_else(|problem| refused(&problem)).into())
    }
}
