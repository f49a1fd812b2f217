//! The door for agents of others: A2A 1.0 as JSON-RPC and as HTTP+JSON, below the address of each agent.
//!
//! An agent is declared by its system ([`crate::contract::agent`]). Nothing is kept between two requests, so any node
//! answers any of them, also about a task whose stream another node has begun (ADR 25).

mod cards;
mod methods;
mod refusal;
mod rest;
mod rpc;
mod stream;

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};

use crate::contract::Call;
use crate::contract::agent::AgentKind;
use crate::contract::problem::{Outcome, Problem};
use crate::gateway::Gateway;
use crate::gateway::auth::Claims;
use crate::gateway::http::{AuthenticatedUser, authenticate, check_origin};
use crate::kernel::error::ErrorCode;

/// The word for the key in the path of an agent of many.
const KEY: &str = "agent_id";

pub fn routes(gateway: &Arc<Gateway>) -> Router<Arc<Gateway>> {
    let agents = gateway.operations.systems.iter().flat_map(|system| system.agents);
    let own = gateway.operations.systems.iter().flat_map(|system| system.agents).next();
    let mut open = Router::new();
    if let Some(own) = own {
        open = open.route("/.well-known/agent-card.json", cards::card(own));
    }
    let mut door = Router::new();
    for agent in agents {
        let at = |below: &str| format!("{}{below}", agent.path);
        open = open
            .route(&at("/agent-card.json"), cards::card(agent))
            .route(&at("/.well-known/agent-card.json"), cards::card(agent));
        door = door
            .route(agent.path, post(move |s, p, r| rpc::answer(agent, s, p, r)))
            // Where a client puts its own path, the empty one, behind the address.
            .route(&at("/"), post(move |s, p, r| rpc::answer(agent, s, p, r)))
            .route(&at("/message:send"), post(move |s, p, r| rest::send(agent, s, p, r)))
            .route(&at("/message:stream"), post(move |s, p, r| rest::stream(agent, s, p, r)))
            .route(&at("/tasks"), get(move |s, p, r| rest::list(agent, s, p, r)))
            // `{task_id}:cancel` and `{task_id}:subscribe` are segments, too.
            .route(
                &at("/tasks/{task_id}"),
                get(move |s, p, r| rest::task(agent, s, p, r))
                    .post(move |s, p, r| rest::task(agent, s, p, r)),
            )
            .route(
                &at("/tasks/{task_id}/pushNotificationConfigs"),
                get(move |s, p, r| rest::pushes(agent, s, p, r))
                    .post(move |s, p, r| rest::pushes(agent, s, p, r)),
            )
            .route(
                &at("/tasks/{task_id}/pushNotificationConfigs/{id}"),
                get(move |s, p, r| rest::push(agent, s, p, r))
                    .delete(move |s, p, r| rest::push(agent, s, p, r)),
            )
            .route(&at("/extendedAgentCard"), get(move |s, p, r| rest::extended(agent, s, p, r)));
    }
    let door = door
        .layer(from_fn_with_state(gateway.clone(), authenticate))
        .layer(from_fn_with_state(gateway.clone(), ours));
    door.merge(open)
}

/// Refuses hosts and pages that are not ours.
async fn ours(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
    next: Next,
) -> Outcome<Response> {
    gateway.options.hosts.address(request.headers())?;
    check_origin(&gateway, request.headers())?;
    Ok(next.run(request).await)
}

/// What a path names besides the agent.
type Named = Path<HashMap<String, String>>;

/// One request to one agent.
struct Asked {
    gateway: Arc<Gateway>,
    agent: &'static AgentKind,
    key: Option<String>,
    /// The agent's address on this node, which its tasks keep.
    address: String,
    claims: Claims,
    call: Call,
}

impl Asked {
    async fn of(
        agent: &'static AgentKind,
        gateway: &Arc<Gateway>,
        named: &HashMap<String, String>,
        parts: &mut Parts,
    ) -> Outcome<Self> {
        let user = AuthenticatedUser::from_request_parts(parts, gateway).await?;
        let call = gateway.call(&user.claims, user.command_id);
        call.may(agent.scope)?;
        let key = named.get(KEY).cloned();
        // One that nobody has is no address.
        if key.as_deref().is_some_and(|key| !crate::kernel::ids::is_valid_id(key)) {
            return Err(Problem::new(ErrorCode::NotFound, "there is nothing at this path"));
        }
        let address = agent.address(key.as_deref());
        Ok(Self { gateway: gateway.clone(), agent, key, address, claims: user.claims, call })
    }
}
