//! Owns the names of the metrics and their labels.
//! Promises low cardinality: no tenant, user or entity is ever a label.
//! Called where the measured thing happens.

use std::net::SocketAddr;

use metrics::{Label, counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder};

const STAGE_LATENCY: &str = "hashinsight_stage_latency_seconds";
const EVENTS_PUBLISHED: &str = "hashinsight_events_published_total";
const EVENTS_APPLIED: &str = "hashinsight_events_applied_total";
const EVENTS_DUPLICATE: &str = "hashinsight_events_duplicate_total";
const FENCED_COMMITS: &str = "hashinsight_fenced_commits_total";
const RETRIES: &str = "hashinsight_retries_total";
const OWNER_LOCKS: &str = "hashinsight_owner_locks_total";
const CONSUMER_LAG: &str = "hashinsight_consumer_lag_records";
const CONSUMER_STALLED: &str = "hashinsight_consumer_stalled";
const CONSUMER_ALARMS: &str = "hashinsight_consumer_alarms_total";
const CACHE_REQUESTS: &str = "hashinsight_cache_requests_total";
const DEAD_LETTERS_OPEN: &str = "hashinsight_dead_letters_open";
const OUTBOX_BACKLOG: &str = "hashinsight_outbox_backlog";
const OUTBOX_OLDEST: &str = "hashinsight_outbox_oldest_seconds";
const SLOT_RETAINED: &str = "hashinsight_slot_retained_bytes";
const JOB_RUNS: &str = "hashinsight_job_runs_total";
const JOB_TENANT_FAILURES: &str = "hashinsight_job_tenant_failures_total";
const WEBHOOK_DELIVERIES: &str = "hashinsight_webhook_deliveries_total";
const HTTP_DURATION: &str = "http_request_duration_seconds";

/// Upper bounds of the histograms in seconds: from a commit next door to an outage.
const BUCKETS: [f64; 14] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// The metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve metrics on {address}: {source}; choose another address with HASHINSIGHT__METRICS__BIND"
)]
pub struct ListenError {
    address: SocketAddr,
    source: BuildError,
}

/// Collects from now on; the returned future serves `GET /metrics` for as long as it runs.
pub fn listen(address: SocketAddr) -> Result<impl Future<Output = anyhow::Result<()>> + Send, ListenError> {
    let failed = |source| ListenError { address, source };
    let (recorder, exporter) = PrometheusBuilder::new()
        .with_http_listener(address)
        .set_buckets(&BUCKETS)
        .and_then(PrometheusBuilder::build)
        .map_err(failed)?;
    metrics::set_global_recorder(recorder).map_err(|e| failed(e.into()))?;
    Ok(async move { exporter.await.map_err(|e| anyhow::anyhow!("metrics listener: {e:?}")) })
}

/// How long an event took from its write to the end of a stage of a group.
pub fn stage_latency(stage: &'static str, group: &str, seconds: f64) {
    histogram!(STAGE_LATENCY, "stage" => stage, "group" => group.to_owned()).record(seconds.max(0.0));
}

/// Events handed to the log, each with the time since its write.
pub fn events_published(topic: &str, seconds_since_write: impl ExactSizeIterator<Item = f64>) {
    counter!(EVENTS_PUBLISHED, "topic" => topic.to_owned()).increment(seconds_since_write.len() as u64);
    let latency = histogram!(STAGE_LATENCY, "stage" => "write_to_log", "group" => "");
    seconds_since_write.for_each(|seconds| latency.record(seconds.max(0.0)));
}

/// Events that are committed and not published, those kept back among them, and the age of the oldest.
pub fn outbox_backlog(events: i64, oldest_seconds: f64) {
    gauge!(OUTBOX_BACKLOG).set(events as f64);
    gauge!(OUTBOX_OLDEST).set(oldest_seconds);
}

/// Dead letters of a group that nobody has settled yet.
pub fn dead_letters_open(group: &str, count: i64) {
    gauge!(DEAD_LETTERS_OPEN, "group" => group.to_owned()).set(count as f64);
}

/// Write-ahead log that is kept for a replication slot.
pub fn slot_retained_bytes(slot: &str, bytes: u64) {
    gauge!(SLOT_RETAINED, "slot" => slot.to_owned()).set(bytes as f64);
}

/// Events a group applied for the first time.
pub fn events_applied(group: &str, kind: &str, count: usize) {
    counter!(EVENTS_APPLIED, "group" => group.to_owned(), "kind" => kind.to_owned()).increment(count as u64);
}

/// Events a group had seen before.
pub fn events_duplicate(group: &str, count: usize) {
    counter!(EVENTS_DUPLICATE, "group" => group.to_owned()).increment(count as u64);
}

/// A batch that another owner's epoch refused.
pub fn fenced_commit(group: &str) {
    counter!(FENCED_COMMITS, "group" => group.to_owned()).increment(1);
}

/// An attempt after a failed one.
pub fn retry(group: &str, class: &str) {
    counter!(RETRIES, "group" => group.to_owned(), "class" => class.to_owned()).increment(1);
}

/// Locks of owners that a batch took, and those that somebody else held for longer than it waits.
pub fn owner_locks(group: &str, taken: usize, refused: usize) {
    for (result, count) in [("taken", taken), ("refused", refused)] {
        if count > 0 {
            let labels = [("group", group.to_owned()), ("result", result.to_owned())];
            counter!(OWNER_LOCKS, &labels).increment(count as u64);
        }
    }
}

/// Records of a partition that a group has yet to apply; `None` when this process does not know any more.
pub fn consumer_lag(group: &str, topic: &str, partition: i32, records: Option<i64>) {
    let records = records.map_or(f64::NAN, |records| records as f64);
    gauge!(CONSUMER_LAG, of_partition(group, topic, partition)).set(records);
}

/// Whether a partition stands still until somebody does something.
pub fn consumer_stalled(group: &str, topic: &str, partition: i32, stalled: bool) {
    gauge!(CONSUMER_STALLED, of_partition(group, topic, partition)).set(if stalled { 1.0 } else { 0.0 });
}

/// Something about a partition that somebody should look at: paused, log, or gap.
pub fn consumer_alarm(group: &str, topic: &str, partition: i32, kind: &'static str) {
    let mut labels = of_partition(group, topic, partition);
    labels.push(Label::new("kind", kind));
    counter!(CONSUMER_ALARMS, labels).increment(1);
}

fn of_partition(group: &str, topic: &str, partition: i32) -> Vec<Label> {
    vec![
        Label::new("group", group.to_owned()),
        Label::new("topic", topic.to_owned()),
        Label::new("partition", partition.to_string()),
    ]
}

/// A cached read: hit, stale or miss.
pub fn cache_request(key: &'static str, result: &'static str) {
    counter!(CACHE_REQUESTS, "key" => key, "result" => result).increment(1);
}

/// A run of a job: ok, or failed for somebody.
pub fn job_run(job: &'static str, result: &'static str) {
    counter!(JOB_RUNS, "job" => job, "result" => result).increment(1);
}

/// A tenant for which a job failed.
pub fn job_tenant_failed(job: &'static str) {
    counter!(JOB_TENANT_FAILURES, "job" => job).increment(1);
}

/// An attempt to deliver a webhook: delivered, status (not of success), timeout, unreachable, refused (the address), or
/// secret (it does not open).
pub fn webhook_delivery(result: &'static str) {
    counter!(WEBHOOK_DELIVERIES, "result" => result).increment(1);
}

/// An answered request, by its route pattern.
pub fn http_request(method: &str, route: &str, status: u16, seconds: f64) {
    histogram!(HTTP_DURATION, "method" => method.to_owned(), "route" => route.to_owned(),
        "status" => status.to_string())
    .record(seconds);
}
