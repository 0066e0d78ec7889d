//! The report of `bench consume` for people.

use std::fmt::Write as _;

use super::{FEWER, Report};
use crate::role::bench::statistics::Spread;
use crate::role::bench::text::{head, shown};

/// The report as text.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(report, &mut out);
    out
}

fn write(report: &Report, out: &mut String) -> std::fmt::Result {
    head(&report.machine, &report.services, out)?;
    writeln!(
        out,
        "\n{} events of {} owners, batches of {}, {} rounds in rotating order; three transactions: a {FEWER}th of the \
         events.\nMedians over the rounds, with the least and the most in brackets.\n\n{:<20} {:>26} {:>25} {:>16} {:>22}",
        report.events,
        report.owners,
        report.batch_size,
        report.pairs,
        "",
        "events/s",
        "CPU s per 1,000",
        "peak MiB",
        "consume / this one"
    )?;
    for row in &report.rows {
        writeln!(
            out,
            "{:<20} {:>26} {:>25} {:>16} {:>22}",
            row.who.name(),
            shown(row.events_per_second, 0),
            shown(row.cpu_seconds_per_1000, 4),
            shown(row.peak_rss_mib, 0),
            shown(row.consumer_ratio, 2)
        )?;
    }
    for row in &report.steady {
        let ms = row.append_to_applied_ms.as_ref();
        let of = |spread: Option<Spread>| shown(spread, 1);
        writeln!(
            out,
            "\n{} events/s, steady: append to applied in ms p50 {}, p95 {}, p99 {}, max {}\n  \
             CPU s per 1,000 {}, peak MiB {}; the producer was at most {} ms behind",
            row.events_per_second,
            of(ms.map(|q| q.p50)),
            of(ms.map(|q| q.p95)),
            of(ms.map(|q| q.p99)),
            of(ms.map(|q| q.max)),
            shown(row.cpu_seconds_per_1000, 4),
            shown(row.peak_rss_mib, 0),
            of(row.producer_behind_ms)
        )?;
    }
    if !report.steady.is_empty() {
        writeln!(
            out,
            "The append time is the broker's, in whole milliseconds rounded down; applied is the commit of the batch, by \
             PostgreSQL and from before the flush. Memory is the most since the process started."
        )?;
    }
    for void in &report.void {
        writeln!(out, "\nvoid: {void}")?;
    }
    Ok(())
}
