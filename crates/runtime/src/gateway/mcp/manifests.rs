//! Documents by which agents find this node: the agent-ready web's manifest, and a manifest of agentic resources (ARD 0.91).
//! Both follow from the tools.

use serde_json::{Value, json};

use super::resources::OfferedResource;
use super::server::Offers;
use super::tools::OfferedTool;
use super::{METADATA, PATH};
use crate::contract::System;
use crate::contract::operation::ToolEffect;
use crate::gateway::operations;

const NAME: &str = "Proxie";
const DESCRIPTION: &str =
    "An agent-native backend: find and book services, and share what is watched between devices";
const CARD: &str = "/.well-known/agent-card.json";
/// What is offered to anybody, for programs that read no MCP.
const TOOLS: &str = "/mcp/tools";
const RESOURCES: &str = "/mcp/resources";
const PROMPTS: &str = "/mcp/prompts";

/// The documents that do not depend on who asks, by their paths.
pub fn open(systems: &'static [&'static System], offers: &Offers) -> [(&'static str, Value); 4] {
    let tools: Vec<_> = offers.tools.all().map(|tool| &tool.shown).collect();
    let (templates, resources): (Vec<_>, Vec<_>) =
        offers.resources.all().partition(|resource| resource.is_template());
    let resources: Vec<_> = resources.into_iter().map(OfferedResource::resource).collect();
    let templates: Vec<_> = templates.into_iter().map(OfferedResource::template).collect();
    [
        ("/.well-known/arw-manifest.json", arw(systems, offers)),
        (TOOLS, json!({"tools": tools})),
        (RESOURCES, json!({"resources": resources, "resourceTemplates": templates})),
        (PROMPTS, json!({"prompts": offers.prompts.shown(|_| true)})),
    ]
}

fn action(OfferedTool { operation, shown, .. }: &OfferedTool) -> Option<Value> {
    let tool = operation.meta.tool?;
    let scopes = [operation.meta.takes_scope()];
    let mut action = json!({
        "id": tool.name,
        "name": shown.description,
        "oauth_scopes": scopes,
    });
    if matches!(tool.effect, ToolEffect::Destructive) {
        action["requires_user_consent"] = true.into();
    }
    Some(action)
}

/// The manifest of the agent-ready web (ARW). Links are paths of this node.
fn arw(systems: &'static [&'static System], offers: &Offers) -> Value {
    json!({
        "$schema": "https://arw.agentics.org/schemas/manifest-v1.json",
        "version": "1.0.0",
        "site": {"name": NAME, "description": DESCRIPTION, "documentation": "/docs"},
        "capabilities": {
            "mcp": {
                "version": "2026-07-28",
                "versions": ["2026-07-28", "2025-11-25"],
                "transports": ["stdio", "streamable-http"],
                "endpoint": PATH,
                "tools_url": TOOLS,
                "resources_url": RESOURCES,
                "prompts_url": PROMPTS,
            },
            "rest": {"openapi": "/openapi.json"},
            "events": {"asyncapi": "/asyncapi.json"},
            "a2a": {"version": "1.0", "agent_card": CARD},
            "actions": offers.tools.all().filter_map(action).collect::<Vec<_>>(),
        },
        "authentication": {
            "oauth2": {
                "protected_resource_metadata": format!("{METADATA}{PATH}"),
                "jwks_uri": "/.well-known/jwks.json",
                "scopes": operations::scopes(systems),
            },
        },
    })
}

/// The manifest of agentic resources. `address` is the one that the client asked, `https://api.example.org`.
pub fn ard(address: &str) -> Value {
    let host = address.split_once("://").map_or(address, |(_, host)| host);
    // A port belongs to no domain, which is what the names are of.
    let domain = match host.rsplit_once(':') {
        Some((domain, port)) if port.bytes().all(|b| b.is_ascii_digit()) => domain,
        _ => host,
    };
    let name = |kind: &str| format!("urn:air:{domain}:proxie:{kind}");
    let card = json!({
        "name": "proxie",
        "title": NAME,
        "description": DESCRIPTION,
        "version": env!("CARGO_PKG_VERSION"),
        "remotes": [{"type": "streamable-http", "url": format!("{address}{PATH}")}],
    });
    json!({
        "specVersion": "0.91",
        "host": {"displayName": NAME, "url": address},
        "entries": [
            {
                "identifier": name("mcp"),
                "displayName": format!("{NAME} MCP server"),
                "type": "application/mcp-server-card+json",
                "description": DESCRIPTION,
                "data": card,
                "representativeQueries": [
                    "Book a haircut near me tomorrow afternoon",
                    "Which offers are there for my request?",
                    "Continue on the television what I watched on my phone",
                ],
            },
            {
                "identifier": name("agent"),
                "displayName": format!("{NAME} agent"),
                "type": "application/a2a-agent-card+json",
                "description": "An agent that finds and books local services, for agents of others",
                "url": format!("{address}{CARD}"),
                "representativeQueries": [
                    "Ask providers for an offer on behalf of a person",
                    "Negotiate with the agent of a hairdresser",
                ],
            },
            {
                "identifier": name("api"),
                "displayName": format!("{NAME} HTTP API"),
                "type": "application/openapi+json",
                "description": "The same operations over HTTP",
                "url": format!("{address}/openapi.json"),
                "representativeQueries": [
                    "An HTTP API to request and book local services",
                    "An API that synchronises what a person watches",
                ],
            },
        ],
    })
}
