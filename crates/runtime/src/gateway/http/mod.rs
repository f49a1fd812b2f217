//! The HTTP edge: `/v1`, and the pages that operators and clients need around it.

pub mod asyncapi;
pub mod openapi;

mod described;
mod events;
mod extract;
mod middleware;
mod operations;
mod pages;
mod problem;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use tower_http::catch_panic::CatchPanicLayer;

use crate::contract::problem::Problem;
use crate::gateway::{Gateway, mcp, outsiders, socketio, ws};
use crate::kernel::clock::Clock;
use crate::kernel::error::ErrorCode;

pub(super) use events::event_stream;
pub(super) use extract::{AuthenticatedUser, bearer, is_command_id, is_json};
pub(super) use middleware::{address_key, authenticate, check_origin, count_connection};
pub use pages::docs_page;
pub(super) use pages::{Documents, KeepBody, healthz, metrics_page, not_ready};

/// The public router. Each request needs a `ConnectInfo<SocketAddr>` in its extensions.
pub fn router(gateway: Arc<Gateway>) -> Router {
    let v1 = Router::new()
        .route("/events", get(events::events))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed);
    let v1 = Router::new()
        .nest("/v1", v1)
        .merge(operations::routes(&gateway))
        .layer(from_fn_with_state(gateway.clone(), middleware::authenticate));
    let open = Router::new()
        .merge(v1)
        .merge(mcp::routes(&gateway))
        .merge(outsiders::routes(&gateway))
        // The WebSocket authenticates by itself, since a browser cannot set headers here.
        .route("/v1/ws", get(ws::door).post(ws::ask))
        .route("/sync/ws", get(ws::sync_door))
        .route("/", get(pages::console))
        .route("/console.css", get(pages::console_style))
        .route("/console.js", get(pages::console_script))
        .route("/style.css", get(pages::style))
        .route("/docs", get(pages::docs))
        .route("/docs/errors/{code}", get(pages::error_page))
        .route("/openapi.json", get(pages::openapi))
        .route("/asyncapi.json", get(pages::asyncapi))
        .route("/.well-known/jwks.json", get(pages::jwks))
        .route("/healthz", get(pages::healthz))
        .route("/readyz", get(pages::readyz));
    let open = match gateway.options.metrics_apart {
        true => open,
        false => open.route("/metrics", get(pages::metrics)),
    };
    let open = open
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(gateway.clone(), middleware::time_out))
        // Outside the time limit: long polls take longer.
        .merge(socketio::router())
        .layer(middleware::cors(&gateway));
    whole(open, gateway)
}

/// The router of a listener that only operators can reach.
pub fn operators(gateway: Arc<Gateway>) -> Router {
    let pages = Router::new()
        .route("/healthz", get(pages::healthz))
        .route("/readyz", get(pages::readyz))
        .route("/metrics", get(pages::metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed);
    whole(pages, gateway)
}

/// Adds the layers around every request to a serving node, on either listener.
fn whole(router: Router<Arc<Gateway>>, gateway: Arc<Gateway>) -> Router {
    let clock = gateway.clock.clone();
    let router = router
        .layer(from_fn_with_state(gateway.clone(), middleware::distrust))
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(gateway);
    around(router, clock)
}

/// Adds the layers around every response, even while the node is starting.
pub(super) fn around(router: Router, clock: Clock) -> Router {
    router
        .layer(from_fn(middleware::as_problem))
        .layer(from_fn_with_state(clock, middleware::identify))
}

async fn not_found() -> Problem {
    Problem::new(ErrorCode::NotFound, "there is nothing at this path")
}

async fn method_not_allowed() -> Problem {
    Problem::bad_request("this path does not take this method")
        .status(StatusCode::METHOD_NOT_ALLOWED.as_u16())
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> axum::response::Response {
    // The panic hook has logged it.
    metrics::counter!("proxie_http_panics_total").increment(1);
    axum::response::IntoResponse::into_response(Problem::new(
        ErrorCode::Internal,
        "the request could not be handled",
    ))
}
