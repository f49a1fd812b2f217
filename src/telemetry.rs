//! Logs and metrics of the process.

use std::io::IsTerminal;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

pub fn filter(log: &Log) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    EnvFilter::try_new(&log.level)
}

/// Logs go to standard error: standard output belongs to what a command answers.
pub fn init_logs(log: &Log) {
    // What cannot be read was refused before a node starts.
    let filter = filter(log).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let terminal = std::io::stderr().is_terminal();
    let format = log.format.unwrap_or(if terminal { LogFormat::Pretty } else { LogFormat::Json });
    // A second initialisation (tests in one process) keeps the first.
    let _ = match format {
        LogFormat::Pretty => builder.with_ansi(terminal).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// The recorder behind `/metrics`. A process has one; later calls get the same.
pub fn metrics() -> PrometheusHandle {
    static HANDLE: std::sync::OnceLock<PrometheusHandle> = std::sync::OnceLock::new();
    HANDLE
        .get_or_init(|| {
            PrometheusBuilder::new()
                .set_buckets(&[
                    0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
                    10.0,
                ])
                .and_then(PrometheusBuilder::install_recorder)
                .expect("the metrics recorder is installed once")
        })
        .clone()
}
