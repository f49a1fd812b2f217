//! The door for agents: MCP over Streamable HTTP at `/mcp`, in the revisions 2026-07-28 and 2025-11-25.
//!
//! A tool is an operation that its system offers ([`crate::contract::Meta::tool`]). Nothing is kept between two requests,
//! in either revision: any node answers any request (ADR 20 and 23).

mod answers;
mod asking;
mod interjecting;
mod manifests;
pub mod prompts;
pub mod resources;
mod running;
mod server;
mod sessions;
pub mod tools;
mod watching;

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::cluster::topics::Subscription;
use crate::contract::problem::{Outcome, Problem};
use crate::gateway::http::{AuthenticatedUser, KeepBody, authenticate, check_origin};
use crate::gateway::{Gateway, json, operations};
use crate::kernel::error::ErrorCode;
use answers::{Answers, Arrival};
use server::{McpServer, Offers, Sender};
use sessions::{AgentSession, SESSION_ID};

const PATH: &str = "/mcp";
/// RFC 9728: the resource's path follows the well-known one.
const METADATA: &str = "/.well-known/oauth-protected-resource";

type Service = StreamableHttpService<McpServer, NeverSessionManager>;

pub fn routes(gateway: &Arc<Gateway>) -> Router<Arc<Gateway>> {
    let offers = Arc::new(Offers::of(gateway.operations.systems));
    let (answers, subscription) = Answers::open(gateway.local_epoch.clone(), &gateway.topics);
    let service = service(gateway, offers.clone(), answers.clone());
    let door =
        AgentDoor { service, offers: offers.clone(), answers, _heard: Arc::new(subscription) };
    let door =
        move |State(gateway): State<Arc<Gateway>>, request: Request| door.answer(gateway, request);
    let mcp = Router::new()
        .route(PATH, any(door))
        .layer(from_fn_with_state(gateway.clone(), authenticate))
        .layer(from_fn_with_state(gateway.clone(), challenge));
    let metadata = Router::new()
        .route(METADATA, get(metadata))
        .route(&format!("{METADATA}{PATH}"), get(metadata))
        .route("/.well-known/ard.json", get(ard));
    // What does not depend on who asks.
    let open = manifests::open(gateway.operations.systems, &offers);
    let open = open.into_iter().fold(Router::new(), |router, (path, document)| {
        router.route(path, get(async move || Json(document)))
    });
    mcp.merge(metadata).merge(open)
}

fn service(gateway: &Arc<Gateway>, offers: Arc<Offers>, answers: Arc<Answers>) -> Service {
    let mut config =
        StreamableHttpServerConfig::default().with_allowed_hosts(gateway.options.hosts.names());
    config.legacy_session_mode = false;
    config.json_response = true;
    config.max_request_body_bytes = gateway.options.max_body_bytes;
    let gateway = gateway.clone();
    let server = move || {
        let (gateway, offers, answers) = (gateway.clone(), offers.clone(), answers.clone());
        Ok(McpServer { gateway, offers, answers })
    };
    Service::new(server, Arc::default(), config)
}

/// Refuses hosts and pages that are not ours. A client without a valid token learns where to ask for one.
async fn challenge(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
    next: Next,
) -> Outcome<Response> {
    let address = gateway.options.hosts.address(request.headers())?;
    check_origin(&gateway, request.headers())?;
    let mut response = next.run(request).await;
    if response.status() == StatusCode::UNAUTHORIZED
        && let Some(scheme) = response.headers().get(header::WWW_AUTHENTICATE)
        && let Ok(scheme) = scheme.to_str()
        && let Ok(scheme) = HeaderValue::from_str(&format!(
            "{scheme}, resource_metadata=\"{address}{METADATA}{PATH}\""
        ))
    {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    }
    Ok(response)
}

/// The metadata of this protected resource (RFC 9728).
async fn metadata(State(gateway): State<Arc<Gateway>>, request: Request) -> Outcome<Json<Value>> {
    let address = gateway.options.hosts.address(request.headers())?;
    Ok(Json(json!({
        "resource": format!("{address}{PATH}"),
        "resource_name": "Proxie",
        "resource_documentation": format!("{address}/docs"),
        "scopes_supported": operations::scopes(gateway.operations.systems),
        "bearer_methods_supported": ["header"],
    })))
}

async fn ard(State(gateway): State<Arc<Gateway>>, request: Request) -> Outcome<Json<Value>> {
    gateway.options.hosts.address(request.headers()).map(|address| Json(manifests::ard(&address)))
}

/// The door: the service, and what it shares between requests.
#[derive(Clone)]
struct AgentDoor {
    service: Service,
    offers: Arc<Offers>,
    answers: Arc<Answers>,
    _heard: Arc<Subscription>,
}

impl AgentDoor {
    async fn answer(self, gateway: Arc<Gateway>, request: Request) -> Outcome<Response> {
        let (mut parts, body) = request.into_parts();
        let user = AuthenticatedUser::from_request_parts(&mut parts, &gateway).await?;
        let AuthenticatedUser { claims, command_id } = user;
        let session = match AgentSession::named(&parts.headers) {
            None => None,
            Some(Some(session)) => Some(session),
            // The client then begins again.
            Some(None) => return Err(Problem::not_found("session")),
        };
        if parts.method == Method::GET
            && let Some(session) = &session
        {
            let (offers, answers) = (self.offers, self.answers);
            return sessions::stream(gateway, offers, answers, claims, session, &parts.headers)
                .await;
        }
        let (out, said) = mpsc::channel(interjecting::UNREAD);
        let mut opened = None;
        let mut body = body;
        if parts.method == Method::POST {
            let limit = gateway.options.max_body_bytes;
            let bytes = to_bytes(body, limit).await.map_err(|error| {
                tracing::debug!(%error, "a body could not be read");
                let detail = format!("a body may have at most {limit} bytes");
                Problem::new(ErrorCode::TooLarge, detail)
            })?;
            // The same rules as at every door: no field twice, nothing that cannot be stored.
            let message = match json::read(&bytes) {
                Ok(message) => message,
                Err(error) => {
                    return Ok(refused(-32_700, &format!("the body cannot be read: {error}")));
                }
            };
            if message.get("method").is_none()
                && let Some(id) = message["id"].as_str()
            {
                let user = claims.sub.as_str().into();
                match self.answers.deliver_answer(&user, id, message.clone()).await {
                    Arrival::Yes => return Ok(StatusCode::ACCEPTED.into_response()),
                    Arrival::Unreachable => return Err(Problem::unavailable()),
                    Arrival::NoQuestion => {}
                }
            }
            if message["method"] == "initialize" {
                let capabilities = message["params"]["capabilities"].clone();
                opened =
                    serde_json::from_value(capabilities).ok().map(|it| AgentSession::open(&it));
            }
            body = Body::from(bytes);
        }
        parts.extensions.insert(Sender { claims, command_id, session, out });
        let is_json = super::http::is_json(&parts.headers);
        let request = Request::from_parts(parts, body);
        let answering = Box::pin(async move {
            let mut response = self.service.handle(request).await.map(Body::new);
            if let Some(session) = opened
                && response.status() == StatusCode::OK
                && let Ok(id) = HeaderValue::from_str(session.id())
            {
                response.headers_mut().insert(SESSION_ID, id);
            }
            response
        });
        let response = interjecting::interjected(answering, said).await;
        if response.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE && is_json {
            return Ok(refused(-32_600, "the body is no JSON-RPC message"));
        }
        Ok(kept(response))
    }
}

/// An error of JSON-RPC that belongs to no request.
fn refused(code: i32, message: &str) -> Response {
    let error = json!({"jsonrpc": "2.0", "id": null, "error": {"code": code, "message": message}});
    kept((StatusCode::BAD_REQUEST, Json(error)).into_response())
}

/// Errors of JSON-RPC are no problem documents.
fn kept(mut response: Response) -> Response {
    let kind = response.headers().get(header::CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json")) {
        response.extensions_mut().insert(KeepBody);
    }
    response
}
