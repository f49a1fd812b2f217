//! The port's two routers: a few pages while the node starts, everything once it serves. Also how the port closes:
//! first clients are told to leave, then no new connections are accepted, then the requests under way are answered.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;

use crate::contract::problem::Problem;
use crate::gateway::http::{around, healthz, metrics_page, not_ready};
use crate::kernel::clock::Clock;
use crate::kernel::error::ErrorCode;

/// A handle to the port's state, cheap to clone.
#[derive(Clone)]
pub struct Door(Arc<Inner>);

struct Inner {
    starting: Router,
    whole: OnceLock<Router>,
    waits_for: Arc<Waits>,
    stage: watch::Sender<Stage>,
    /// Number of open HTTP connections, without WebSockets.
    open: watch::Sender<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Open,
    /// Each response says that its connection closes after it.
    Leaving,
    /// No new connections are accepted.
    Shut,
    /// Connections close as soon as they have no request to answer.
    Over,
}

/// What a starting node is waiting for, in words for people.
struct Waits {
    node: String,
    metrics: PrometheusHandle,
    what: Mutex<String>,
}

impl Door {
    pub fn new(node: &str, metrics: PrometheusHandle, clock: Clock) -> Self {
        let waits_for =
            Arc::new(Waits { node: node.into(), metrics, what: Mutex::new("its store".into()) });
        let starting = Router::new()
            .route("/healthz", get(healthz))
            .route("/readyz", get(waiting))
            .route("/metrics", get(early_metrics))
            .fallback(starting)
            .with_state(waits_for.clone());
        Self(Arc::new(Inner {
            starting: around(starting, clock),
            whole: OnceLock::new(),
            waits_for,
            stage: watch::Sender::new(Stage::Open),
            open: watch::Sender::new(0),
        }))
    }

    /// The door of another port of the same node. It opens and closes independently.
    pub fn beside(&self) -> Self {
        Self(Arc::new(Inner {
            starting: self.0.starting.clone(),
            whole: OnceLock::new(),
            waits_for: self.0.waits_for.clone(),
            stage: watch::Sender::new(Stage::Open),
            open: watch::Sender::new(0),
        }))
    }

    /// Sets what `/readyz` says the node is waiting for, until the node serves.
    pub fn waits_for(&self, what: impl Into<String>) {
        *self.0.waits_for.what.lock() = what.into();
    }

    /// Switches to the full router: the node serves.
    pub fn open(&self, whole: Router) {
        let _ = self.0.whole.set(whole);
    }

    pub(super) fn router(&self) -> &Router {
        self.0.whole.get().unwrap_or(&self.0.starting)
    }

    /// Makes each response from now on the last of its connection.
    pub fn leave(&self) {
        self.reach(Stage::Leaving);
    }

    pub(super) fn is_shut(&self) -> bool {
        *self.0.stage.borrow() >= Stage::Shut
    }

    pub(super) fn is_leaving(&self) -> bool {
        *self.0.stage.borrow() >= Stage::Leaving
    }

    /// Closes the port and waits, for `limit` at most, until every request under way is answered.
    pub async fn close(&self, limit: Duration) {
        self.reach(Stage::Shut);
        let mut open = self.0.open.subscribe();
        let answered = async {
            // Time for clients that have connected and not yet sent their request.
            tokio::time::sleep(Duration::from_millis(100)).await;
            self.reach(Stage::Over);
            let _ = open.wait_for(|open| *open == 0).await;
        };
        if tokio::time::timeout(limit, answered).await.is_err() {
            let open = *self.0.open.borrow();
            tracing::warn!(open, "not every request was answered in time");
        }
    }

    fn reach(&self, stage: Stage) {
        self.0.stage.send_if_modified(|now| {
            let later = stage > *now;
            *now = stage.max(*now);
            later
        });
    }

    /// Resolves when no new connections are to be accepted.
    pub(super) async fn shut(&self) {
        let _ = self.0.stage.subscribe().wait_for(|stage| *stage >= Stage::Shut).await;
    }

    /// Resolves when connections are to end.
    pub(super) async fn over(&self) {
        let _ = self.0.stage.subscribe().wait_for(|stage| *stage >= Stage::Over).await;
    }

    pub(super) fn enter(&self) -> Visit {
        self.0.open.send_modify(|open| *open += 1);
        Visit(self.clone())
    }
}

/// One open connection.
pub(super) struct Visit(Door);

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.0.open.send_modify(|open| *open -= 1);
    }
}

impl Waits {
    fn what(&self) -> String {
        self.what.lock().clone()
    }
}

async fn waiting(State(waits): State<Arc<Waits>>) -> Response {
    not_ready(json!({
        "status": "not_ready",
        "node": waits.node,
        "checks": {"started": "failed"},
        "details": {"started": format!("waiting for {}", waits.what())},
    }))
}

async fn early_metrics(State(waits): State<Arc<Waits>>) -> Response {
    metrics_page(&waits.metrics)
}

async fn starting(State(waits): State<Arc<Waits>>) -> Problem {
    Problem::new(
        ErrorCode::Unavailable,
        format!("this node is starting: waiting for {}", waits.what()),
    )
}
