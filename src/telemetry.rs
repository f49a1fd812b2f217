//! Logs and metrics of the process.

use std::io::IsTerminal;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

const QUIET: &str = "rmcp=error,rmcp::service=off";

pub fn filter(log: &Log) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    // It says a line or two for every request, also of a client that is wrong, and calls it an error where one has gone
    // away. `rmcp=info,rmcp::service=info` brings them back.
    EnvFilter::try_new(format!("{QUIET},{}", log.level))
}

/// Logs go to standard error: standard output belongs to what a command answers.
pub fn init_logs(log: &Log) {
    // What cannot be read was refused before a node starts.
    let filter = filter(log).unwrap_or_else(|_| EnvFilter::new(format!("{QUIET},info")));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let terminal = std::io::stderr().is_terminal();
    let format = log.format.unwrap_or(if terminal { LogFormat::Pretty } else { LogFormat::Json });
    // A second initialisation (tests in one process) keeps the first.
    let _ = match format {
        LogFormat::Pretty => builder.with_ansi(terminal).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

use MetricKind::{Counter, Gauge, Histogram};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

/// Every metric of the process, and its help. docs/metrics.md is this table; a test holds both against the code.
pub const METRICS: &[(&str, MetricKind, &str)] = &[
    ("proxie_activations_total", Counter, "Entities that came into memory, by kind"),
    ("proxie_answers_too_large_total", Counter, "Answers that did not fit between nodes"),
    (
        "proxie_asks_total",
        Counter,
        "Commands and queries, by whether their entity lives on this node: local, remote",
    ),
    ("proxie_clock_skew_seconds", Gauge, "Difference of this machine's clock from the database's"),
    ("proxie_commit_batch_items", Histogram, "Commands in one commit"),
    (
        "proxie_commit_seconds",
        Histogram,
        "Time from sending a batch to its outcome, repeats included",
    ),
    (
        "proxie_commit_unknown_total",
        Counter,
        "Commits whose answer was lost, so that their outcome had to be looked up",
    ),
    ("proxie_connections_refused_total", Counter, "Connections closed before a request, by reason"),
    (
        "proxie_dead_letters_total",
        Counter,
        "Deliveries, runs and timers that were given up, by sort (of)",
    ),
    (
        "proxie_delivery_retries_total",
        Counter,
        "Deliveries and runs that failed and are tried again, by sort (of)",
    ),
    (
        "proxie_embedding_tokens_total",
        Counter,
        "Tokens of vectors that were made anew, which no person pays, by model",
    ),
    ("proxie_entities_live", Gauge, "Entities in the memory of this node"),
    ("proxie_entities_parked", Gauge, "Entities that fail on every start and wait for an operator"),
    ("proxie_entities_parked_total", Counter, "Entities that this node has parked, by kind"),
    (
        "proxie_entity_failures_total",
        Counter,
        "Panics in entities, by kind; the next command starts them again",
    ),
    ("proxie_evictions_total", Counter, "Nodes that this one has declared dead"),
    (
        "proxie_hand_over_seconds",
        Histogram,
        "Time for which the entities of handed-over slots paused",
    ),
    ("proxie_histories_read", Histogram, "Topic histories read by one query"),
    ("proxie_http_panics_total", Counter, "Requests whose handler panicked"),
    ("proxie_http_request_seconds", Histogram, "Duration of HTTP requests, by path"),
    ("proxie_http_requests_total", Counter, "HTTP requests, by method, path and status"),
    (
        "proxie_last_sweep_timestamp_seconds",
        Gauge,
        "Time at which old rows were last deleted, in seconds since 1970",
    ),
    (
        "proxie_lease_age_seconds",
        Gauge,
        "Time since the last proven renewal of the lease; from 1 s on the node answers no reads",
    ),
    ("proxie_lease_renewal_seconds", Histogram, "Duration of a renewal of the lease"),
    ("proxie_load_batch_entities", Histogram, "Entities loaded by one query"),
    (
        "proxie_memories_without_vector",
        Gauge,
        "Memories whose vectors are still to be made, as the node sees it that makes them",
    ),
    (
        "proxie_model_answers_total",
        Counter,
        "Answers to questions whose answers are kept, by where they came from (the cache, a similar question or a model)",
    ),
    ("proxie_model_call_seconds", Histogram, "Duration of calls of language models, by model"),
    ("proxie_model_calls_total", Counter, "Calls of language models, by model and outcome"),
    ("proxie_nodes", Gauge, "Live nodes, as this one sees them"),
    (
        "proxie_object_operations_total",
        Counter,
        "What the object store was asked for photos, by operation (put, get, delete) and outcome",
    ),
    ("proxie_passivations_total", Counter, "Entities that left memory, by kind"),
    (
        "proxie_playback_initiated_total",
        Counter,
        "Playback sessions that were started, by platform",
    ),
    (
        "proxie_publications_sent_total",
        Counter,
        "Publications sent to other nodes, one for each that listens",
    ),
    ("proxie_redirects_total", Counter, "Commands sent to a node that no longer owns their entity"),
    (
        "proxie_redis_failures_total",
        Counter,
        "Failed calls of Redis; limits are then counted in the process",
    ),
    ("proxie_rows_unreadable_total", Counter, "Reads of rows that only a newer release can read"),
    (
        "proxie_runs_put_off_total",
        Counter,
        "Runs that had no turn in time, since their runner's limits were reached, and wait in the outbox",
    ),
    (
        "proxie_senders_asleep_total",
        Counter,
        "Senders with overdue deliveries that did not wake up in time",
    ),
    ("proxie_slot_moves_total", Counter, "Slots that this node has handed over"),
    ("proxie_slots", Gauge, "Slots that this node owns, of 4096"),
    (
        "proxie_statement_failures_total",
        Counter,
        "Statements of the runtime that failed, by purpose",
    ),
    (
        "proxie_suspicions_total",
        Counter,
        "Nodes that this one has suspected because they were silent",
    ),
    ("proxie_swept_rows_total", Counter, "Old rows that were deleted, by table"),
    (
        "proxie_takeover_seconds",
        Histogram,
        "Time from another node's death, as this one saw it, to serving its slots here",
    ),
    ("proxie_timers_failed_total", Counter, "Timers that could not be handled, by reason"),
    ("proxie_topics", Gauge, "Topics with listeners on this node"),
    ("proxie_ws_closed_total", Counter, "WebSockets that this node has closed, by close code"),
    (
        "proxie_ws_connection_failures_total",
        Counter,
        "Panics in connections; their clients reconnect",
    ),
    ("proxie_ws_connections", Gauge, "Open connections: WebSockets, Socket.IO and event streams"),
    ("proxie_ws_frames_total", Counter, "Frames that clients have sent"),
];

fn describe() {
    for (name, kind, help) in METRICS.iter().copied() {
        match kind {
            Counter => metrics::describe_counter!(name, help),
            Gauge => metrics::describe_gauge!(name, help),
            Histogram => metrics::describe_histogram!(name, help),
        }
    }
}

/// How often the samples of histograms become counts.
const UPKEEP: Duration = Duration::from_secs(5);

/// The recorder behind `/metrics`. A process has one; later calls get the same. Histograms keep each sample until
/// somebody counts it: a thread does, whether or not anybody asks for the metrics.
pub fn metrics() -> PrometheusHandle {
    static HANDLE: std::sync::OnceLock<PrometheusHandle> = std::sync::OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let handle = PrometheusBuilder::new()
                .set_buckets(&[
                    0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
                    10.0,
                ])
                .and_then(PrometheusBuilder::install_recorder)
                .expect("the metrics recorder is installed once");
            describe();
            keep_up(handle.clone(), UPKEEP);
            handle
        })
        .clone()
}

/// Counts samples for as long as the process lives.
fn keep_up(handle: PrometheusHandle, every: Duration) {
    let upkeep = std::thread::Builder::new().name("metrics".into()).spawn(move || {
        loop {
            std::thread::sleep(every);
            handle.run_upkeep();
        }
    });
    if let Err(error) = upkeep {
        tracing::error!(%error, "no thread counts the samples of metrics: ask for /metrics now and then");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::services::resident_bytes;

    #[test]
    fn samples_do_not_pile_up_where_nobody_asks_for_them() {
        let recorder = PrometheusBuilder::new().set_buckets(&[1.0]).unwrap().build_recorder();
        keep_up(recorder.handle(), Duration::from_millis(20));
        let before = resident_bytes();
        metrics::with_local_recorder(&recorder, || {
            let histogram = metrics::histogram!("samples");
            for _ in 0..40 {
                (0..250_000).for_each(|_| histogram.record(0.5));
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        // Ten million are at least 160 MB.
        let more = resident_bytes().saturating_sub(before) >> 20;
        assert!(more < 100, "{more} MB more");
    }
}
