//! Agent cards: what an agent says of itself, with absolute addresses.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use serde_json::json;

use super::{KEY, Named};
use crate::contract::agent::{AgentAbility, AgentKind, AgentProfile};
use crate::contract::problem::Outcome;
use crate::gateway::Gateway;
use crate::gateway::http::{address_key, count_connection};
use crate::kernel::ids::stable_hash;

const TEXT: &str = "text/plain";
const JSON: &str = "application/json";
const BEARER: &str = "bearer";

pub fn card(agent: &'static AgentKind) -> MethodRouter<Arc<Gateway>> {
    get(async move |State(gateway): State<Arc<Gateway>>, named: Named, request: Request| {
        let (parts, _) = request.into_parts();
        answer(agent, &gateway, named, parts).await
    })
}

async fn answer(
    agent: &'static AgentKind,
    gateway: &Arc<Gateway>,
    Path(named): Named,
    asked: Parts,
) -> Outcome<Response> {
    let node = gateway.options.hosts.address(&asked.headers)?;
    let key = named.get(KEY).cloned();
    // It is read for whoever asks.
    count_connection(gateway, address_key(gateway, &asked.extensions, &asked.headers)).await?;
    let profile = (agent.describe)(&gateway.services, key.as_deref()).await?;
    let address = agent.address(key.as_deref());
    let card = of(&node, &address, agent.scope, profile);
    let text = json!(card).to_string();
    let tag = format!("\"{:016x}\"", stable_hash(&[text.as_bytes()]));
    let seen = asked.headers.get(header::IF_NONE_MATCH);
    let same = seen.and_then(|seen| seen.to_str().ok()).is_some_and(|seen| seen.contains(&tag));
    let mut response = match same {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => ([(header::CONTENT_TYPE, HeaderValue::from_static(JSON))], text).into_response(),
    };
    let headers = response.headers_mut();
    headers.extend(HeaderValue::from_str(&tag).ok().map(|tag| (header::ETAG, tag)));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    headers.insert(header::VARY, HeaderValue::from_static("host"));
    Ok(response)
}

fn of(node: &str, address: &str, scope: &str, profile: AgentProfile) -> a2a::AgentCard {
    let AgentProfile { name, description, version, skills } = profile;
    let at = format!("{node}{address}");
    let bearer = a2a::SecurityScheme::HttpAuth(a2a::HttpAuthSecurityScheme {
        scheme: "Bearer".into(),
        description: Some(format!(
            "A token of the person for whom it acts, with the scope {scope}"
        )),
        bearer_format: Some("JWT".into()),
    });
    a2a::AgentCard {
        name,
        description,
        version,
        supported_interfaces: vec![
            a2a::AgentInterface::new(&at, a2a::TRANSPORT_PROTOCOL_JSONRPC),
            a2a::AgentInterface::new(&at, a2a::TRANSPORT_PROTOCOL_HTTP_JSON),
        ],
        capabilities: a2a::AgentCapabilities {
            streaming: Some(true),
            push_notifications: Some(true),
            extensions: None,
            extended_agent_card: Some(false),
        },
        default_input_modes: vec![TEXT.into(), JSON.into()],
        default_output_modes: vec![TEXT.into(), JSON.into()],
        skills: skills.into_iter().map(skill).collect(),
        provider: Some(a2a::AgentProvider { organization: "Proxie".into(), url: node.into() }),
        documentation_url: Some(format!("{node}/docs")),
        icon_url: None,
        security_schemes: Some(HashMap::from([(BEARER.to_owned(), bearer)])),
        security_requirements: Some(vec![HashMap::from([(BEARER.to_owned(), Vec::new())])]),
        signatures: None,
    }
}

fn skill(ability: AgentAbility) -> a2a::AgentSkill {
    let AgentAbility { id, name, description, tags, examples } = ability;
    a2a::AgentSkill {
        id,
        name,
        description,
        tags,
        examples: Some(examples),
        input_modes: None,
        output_modes: None,
        security_requirements: None,
    }
}
