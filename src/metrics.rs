//! Owns the names of the metrics and their labels.
//! Promises low cardinality: no tenant, user or entity is ever a label.
//! Called where the measured thing happens.

use metrics::{counter, histogram};

const EVENTS_PUBLISHED: &str = "hashinsight_events_published_total";
const EVENTS_APPLIED: &str = "hashinsight_events_applied_total";
const EVENTS_DUPLICATE: &str = "hashinsight_events_duplicate_total";
const FENCED_COMMITS: &str = "hashinsight_fenced_commits_total";
const RETRIES: &str = "hashinsight_retries_total";
const CACHE_REQUESTS: &str = "hashinsight_cache_requests_total";
const HTTP_DURATION: &str = "http_request_duration_seconds";

/// Events handed to the log.
pub fn events_published(topic: &str, count: usize) {
    counter!(EVENTS_PUBLISHED, "topic" => topic.to_owned()).increment(count as u64);
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

/// A cached read: hit, stale or miss.
pub fn cache_request(key: &'static str, result: &'static str) {
    counter!(CACHE_REQUESTS, "key" => key, "result" => result).increment(1);
}

/// An answered request, by its route pattern.
pub fn http_request(method: &str, route: &str, status: u16, seconds: f64) {
    histogram!(HTTP_DURATION, "method" => method.to_owned(), "route" => route.to_owned(),
        "status" => status.to_string())
    .record(seconds);
}
