//! The port's two faces: a few pages while the node starts, everything once it serves. And how it closes: clients are
//! told to go first, then nobody new is let in, then what was asked is answered.

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

/// Cheap to clone.
#[derive(Clone)]
pub struct Door(Arc<Inner>);

struct Inner {
    starting: Router,
    whole: OnceLock<Router>,
    waits_for: Arc<Waits>,
    stage: watch::Sender<Stage>,
    /// HTTP connections that are open, WebSockets not counted.
    open: watch::Sender<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Open,
    /// Answers say that the connection ends with them.
    Leaving,
    /// Nobody new gets in.
    Shut,
    /// Connections end as soon as they owe no answer.
    Over,
}

/// What a node that starts waits for, for people.
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

    /// The door of another port of the same node, which opens and closes by itself.
    pub fn beside(&self) -> Self {
        Self(Arc::new(Inner {
            starting: self.0.starting.clone(),
            whole: OnceLock::new(),
            waits_for: self.0.waits_for.clone(),
            stage: watch::Sender::new(Stage::Open),
            open: watch::Sender::new(0),
        }))
    }

    /// Said by `/readyz` from now on, until the node serves.
    pub fn waits_for(&self, what: impl Into<String>) {
        *self.0.waits_for.what.lock() = what.into();
    }

    /// The node serves.
    pub fn open(&self, whole: Router) {
        let _ = self.0.whole.set(whole);
    }

    pub(super) fn router(&self) -> &Router {
        self.0.whole.get().unwrap_or(&self.0.starting)
    }

    /// From now on each answer is the last of its connection.
    pub fn leave(&self) {
        self.reach(Stage::Leaving);
    }

    pub(super) fn is_shut(&self) -> bool {
        *self.0.stage.borrow() >= Stage::Shut
    }

    pub(super) fn is_leaving(&self) -> bool {
        *self.0.stage.borrow() >= Stage::Leaving
    }

    /// Closes the port and waits, for `limit` at most, until everything that was asked is answered.
    pub async fn close(&self, limit: Duration) {
        self.reach(Stage::Shut);
        let mut open = self.0.open.subscribe();
        let answered = async {
            // What had connected and not yet asked.
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

    /// Resolves when nobody new is to be let in.
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
        "details": {"started": format!("it waits for {}", waits.what())},
    }))
}

async fn early_metrics(State(waits): State<Arc<Waits>>) -> Response {
    metrics_page(&waits.metrics)
}

async fn starting(State(waits): State<Arc<Waits>>) -> Problem {
    Problem::new(
        ErrorCode::Unavailable,
        format!("this node is starting: it waits for {}", waits.what()),
    )
}
