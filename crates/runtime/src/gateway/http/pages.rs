//! The pages that need no token: the node's health, its metrics and keys, and pages for people. They load nothing from
//! other sites, and only the console has a script.

use std::fmt::Write;
use std::sync::{Arc, OnceLock};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::extract::Id;
use super::{asyncapi, openapi};
use crate::contract::problem::Problem;
use crate::gateway::Gateway;
use crate::kernel::error::ErrorCode;

type App = State<Arc<Gateway>>;

/// Liveness: the process answers, nothing more.
pub async fn healthz() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Readiness: whether this node should get traffic.
pub async fn readyz(State(gateway): App) -> Response {
    let readiness = &gateway.readiness;
    let details = readiness.details();
    let off = details.clock.is_some();
    let checks = [
        ("started", readiness.is_started(), None),
        ("store", details.store.is_none(), details.store),
        ("lease", readiness.lease_fresh(), None),
        ("member", details.member.is_none(), details.member),
        ("not_draining", !readiness.is_leaving(), None),
    ];
    let ready = checks.iter().all(|(_, good, _)| *good);
    let word = |good: bool| Value::from(if good { "ok" } else { "failed" });
    let mut named: Map<String, Value> =
        checks.iter().map(|(name, good, _)| ((*name).into(), word(*good))).collect();
    named.insert("clock".into(), if off { "off".into() } else { "ok".into() });
    let said = checks.into_iter().filter_map(|(name, _, said)| Some((name, said?)));
    let said: Map<String, Value> = said
        .chain(details.clock.map(|said| ("clock", said)))
        .map(|(name, said)| (name.into(), said.into()))
        .collect();
    let mut body = json!({
        "status": if ready { "ready" } else { "not_ready" },
        "node": gateway.options.node_name,
        "checks": named,
    });
    if !said.is_empty() {
        body["details"] = said.into();
    }
    if ready { Json(body).into_response() } else { not_ready(body) }
}

pub fn not_ready(body: Value) -> Response {
    let mut response = (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
    // Operators want to read which check failed.
    response.extensions_mut().insert(KeepBody);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// An error whose body is not a problem on purpose.
#[derive(Clone)]
pub struct KeepBody;

pub async fn metrics(State(gateway): App) -> Response {
    metrics::gauge!("proxie_ws_connections").set(gateway.connections() as f64);
    metrics::gauge!("proxie_topics").set(gateway.topics.len() as f64);
    metrics::gauge!("proxie_lease_age_seconds").set(gateway.readiness.lease_age_s());
    metrics_page(&gateway.metrics)
}

pub fn metrics_page(metrics: &PrometheusHandle) -> Response {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], metrics.render()).into_response()
}

pub async fn jwks(State(gateway): App) -> Response {
    let cache = HeaderValue::from_static("public, max-age=300");
    ([(header::CACHE_CONTROL, cache)], Json(gateway.auth.jwks())).into_response()
}

/// The API documents of a node, each built on its first request.
#[derive(Default)]
pub struct Documents {
    openapi: OnceLock<String>,
    asyncapi: OnceLock<String>,
    page: OnceLock<String>,
}

fn json(document: &str) -> Response {
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind)], document.to_owned()).into_response()
}

pub async fn openapi(State(gateway): App) -> Response {
    let systems = gateway.operations.systems;
    json(gateway.documents.openapi.get_or_init(|| openapi::document(systems).to_string()))
}

pub async fn asyncapi(State(gateway): App) -> Response {
    let systems = gateway.operations.systems;
    json(gateway.documents.asyncapi.get_or_init(|| asyncapi::document(systems).to_string()))
}

pub async fn docs(State(gateway): App) -> Html<String> {
    let systems = gateway.operations.systems;
    let page = gateway.documents.page.get_or_init(|| docs_page(&openapi::document(systems)));
    Html(page.clone())
}

pub async fn style() -> Response {
    let kind = HeaderValue::from_static("text/css; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], STYLE).into_response()
}

const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 14px/1.4 ui-monospace, monospace; }
pre { overflow-x: auto; padding: .75rem; border: 1px solid #8884; border-radius: .4rem; }
h2 { margin-top: 2.5rem; text-transform: capitalize; }
details { border: 1px solid #8884; border-radius: .4rem; margin: .4rem 0; padding: .4rem .75rem; }
summary { cursor: pointer; }
.method { display: inline-block; width: 4rem; font-weight: 600; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem .75rem .15rem 0; vertical-align: top; }
";

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><link rel=\"stylesheet\" href=\"/style.css\"></head>\
         <body>{body}</body></html>"
    )
}

/// The console: an ordinary client that ships with the node.
pub async fn console(headers: HeaderMap) -> Response {
    let page = include_str!("../../../../../clients/console/index.html");
    let mut response = asset(&headers, "text/html; charset=utf-8", page);
    // It talks to this node, and runs no script but its own.
    let policy = HeaderValue::from_static(
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    );
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}

pub async fn console_style(headers: HeaderMap) -> Response {
    asset(
        &headers,
        "text/css; charset=utf-8",
        include_str!("../../../../../clients/console/console.css"),
    )
}

/// The script of the console, or of a page that says how to build it (`build.rs`).
pub async fn console_script(headers: HeaderMap) -> Response {
    let script = include_str!(concat!(env!("OUT_DIR"), "/console.js"));
    asset(&headers, "text/javascript; charset=utf-8", script)
}

/// A static file. Browsers revalidate it every time, and it is sent only if it has changed.
fn asset(headers: &HeaderMap, kind: &'static str, body: &'static str) -> Response {
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(Sha256::digest(body));
    let tag = format!("\"{:016x}\"", u64::from_be_bytes([a, b, c, d, e, f, g, h]));
    let known = headers.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    let fresh = known.is_some_and(|tags| tags.split(',').any(|known| known.trim() == tag));
    let common = [(header::ETAG, tag), (header::CACHE_CONTROL, "no-cache".into())];
    if fresh {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (common, [(header::CONTENT_TYPE, kind)], body).into_response()
}

/// The page that a problem's `type` points to.
pub async fn error_page(Id(code): Id) -> Result<Html<String>, Problem> {
    let code = ErrorCode::ALL.into_iter().find(|known| known.as_str() == code);
    let code = code.ok_or_else(|| Problem::not_found("error code"))?;
    let again = if code.retryable() {
        "The same command, with the same id, may succeed later. If <code>Retry-After</code> or \
         <code>retry_after_ms</code> is given, wait that long."
    } else {
        "The same command will get the same answer; change it before you try again."
    };
    let body = format!(
        "<h1><code>{}</code></h1><p>{}. HTTP status {}.</p><p>{again}</p><p><a href=\"/docs\">All operations</a></p>",
        code.as_str(),
        code.title(),
        code.http_status(),
    );
    Ok(Html(page(code.as_str(), &body)))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The page of an OpenAPI document, in HTML without scripts.
pub fn docs_page(document: &Value) -> String {
    let empty = serde_json::Map::new();
    let text = |value: &Value| escape(value.as_str().unwrap_or_default());
    let mut body =
        format!("<h1>Proxie: HTTP API</h1><p>{}</p>", text(&document["info"]["description"]));
    for tag in document["tags"].as_array().into_iter().flatten() {
        let _ = write!(body, "<h2>{}</h2>", text(&tag["name"]));
        for (path, operations) in document["paths"].as_object().unwrap_or(&empty) {
            for (method, operation) in operations.as_object().unwrap_or(&empty) {
                if operation["tags"][0] != tag["name"] {
                    continue;
                }
                let _ = write!(
                    body,
                    "<details><summary><code class=\"method\">{}</code><code>{}</code> {}</summary><table>",
                    method.to_uppercase(),
                    escape(path),
                    text(&operation["summary"]),
                );
                for parameter in operation["parameters"].as_array().into_iter().flatten() {
                    let _ = write!(
                        body,
                        "<tr><td><code>{}</code></td><td>{}</td><td>{}</td></tr>",
                        text(&parameter["name"]),
                        text(&parameter["in"]),
                        text(&parameter["description"]),
                    );
                }
                body.push_str("</table>");
                if let Some(schema) = schema_name(&operation["requestBody"]) {
                    let _ = write!(
                        body,
                        "<p>Body: <a href=\"#{schema}\"><code>{schema}</code></a></p>"
                    );
                }
                body.push_str("<table>");
                for (status, response) in operation["responses"].as_object().unwrap_or(&empty) {
                    let schema = schema_name(response)
                        .map(|name| format!("<a href=\"#{name}\"><code>{name}</code></a>"))
                        .unwrap_or_default();
                    let about = text(&response["description"]);
                    let _ = write!(
                        body,
                        "<tr><td>{}</td><td>{about}</td><td>{schema}</td></tr>",
                        escape(status)
                    );
                }
                body.push_str("</table></details>");
            }
        }
    }
    body.push_str("<h2>Schemas</h2>");
    for (name, schema) in document["components"]["schemas"].as_object().unwrap_or(&empty) {
        let shown = serde_json::to_string_pretty(schema).unwrap_or_default();
        let name = escape(name);
        let _ = write!(
            body,
            "<details id=\"{name}\"><summary><code>{name}</code></summary><pre>{}</pre></details>",
            escape(&shown),
        );
    }
    page("Proxie: HTTP API", &body)
}

fn schema_name(of: &Value) -> Option<&str> {
    let content = of["content"].as_object()?.values().next()?;
    content["schema"]["$ref"].as_str()?.rsplit('/').next()
}
