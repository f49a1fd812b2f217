//! One request of an agent, whatever revision of the protocol it speaks.

use std::sync::Arc;

use axum::http::request::Parts;
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock,
    CustomRequest, CustomResult, ErrorCode, ErrorData, Implementation, ListToolsResult, MetaObject,
    PaginatedRequestParams, ServerCapabilities, ServerConfig,
};
use rmcp::service::RequestContext;
use rmcp::{RoleServer, ServerHandler};
use serde_json::{Value, json};

use super::tools::Tools;
use crate::contract::Call;
use crate::contract::problem::{Outcome, Problem};
use crate::gateway::Gateway;
use crate::gateway::auth::Claims;
use crate::gateway::http::is_command_id;

/// How long a client may keep a list: they change with releases only.
const LISTS_TTL_MS: u64 = 300_000;

/// The command's id in `_meta`, for clients that cannot set headers.
const IDEMPOTENCY_KEY: &str = "proxie/idempotency-key";
/// The place of a problem in the `_meta` of a result. `structuredContent` is the answer's: clients check it against the
/// tool's schema even where the result is an error.
const PROBLEM: &str = "proxie/problem";

/// The methods that this server answers.
const METHODS: [&str; 3] = ["initialize", "tools/call", "tools/list"];

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
    pub tools: Arc<Tools>,
}

impl McpServer {
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
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
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
        let allowed = self.tools.all().filter(|tool| tool.operation.allows(&call));
        let tools = allowed.map(|tool| tool.shown.clone()).collect();
        Ok(ListToolsResult::with_all_items(tools)
            .with_ttl_ms(LISTS_TTL_MS)
            .with_cache_scope(CacheScope::Private))
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
        let Some(tool) = self.tools.get(&request.name) else {
            let name: String = request.name.chars().take(128).collect();
            return Err(ErrorData::invalid_params(
                format!("there is no tool {name}"),
                Some(json!({"tool": name})),
            ));
        };
        let call = self.call(&context)?;
        let given = Value::Object(request.arguments.unwrap_or_default());
        // A client that has gone away ends the call, as it does over HTTP.
        let outcome = tokio::select! {
            outcome = tool.operation.run(call, given) => outcome,
            () = context.ct.cancelled() => {
                return Err(ErrorData::internal_error("the call was cancelled", None));
            }
        };
        let result = outcome.and_then(|answer| answered(answer.get()));
        Ok(result.unwrap_or_else(|problem| refused(&problem)).into())
    }
}
