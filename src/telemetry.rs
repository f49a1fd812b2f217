//! Logs and metrics of the process.

use std::io::IsTerminal;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Logs go to standard error: standard output belongs to what a command answers.
pub fn init_logs(log: &Log) {
    let filter = EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let terminal = std::io::stderr().is_terminal();
    let format = log.format.unwrap_or(if terminal { LogFormat::Pretty } else { LogFormat::Json });
    // A second initialisation (tests in one process) keeps the first.
    let _ = match format {
        LogFormat::Pretty => builder.with_ansi(terminal).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
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
