//! The report for people: plain tables, medians with the least and the most of the rounds.

use std::fmt::Write as _;

use super::machine::{Machine, Service};
use super::report::{Ratio, Report, name_of};
use super::statistics::Spread;

/// The report as text.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(report, &mut out);
    out
}

fn write(report: &Report, out: &mut String) -> std::fmt::Result {
    head(&report.machine, &report.services, out)?;
    let workload = &report.workload;
    writeln!(
        out,
        "\n{} events a backlog, {} rounds in rotating order, payloads of {} bytes on average.\n\
         Figures are medians over the rounds, with the least and the most in brackets; ratios are medians of the \
         rounds' ratios.",
        workload.events, workload.pairs, workload.payload_bytes
    )?;
    if workload.transaction_held {
        writeln!(out, "A REPEATABLE READ transaction that has written an event was open during each load.")?;
    }
    for left in &report.left_out {
        writeln!(out, "left out: {}, {}", left.source.name(), left.reason)?;
    }
    drains(report, out)?;
    latencies(report, out)?;
    for void in &report.void {
        writeln!(
            out,
            "\nvoid: round {} of {}, {}: {}",
            void.round,
            void.source.name(),
            void.run,
            void.reason
        )?;
    }
    Ok(())
}

fn drains(report: &Report, out: &mut String) -> std::fmt::Result {
    let mut case = None;
    for row in &report.drains {
        if case.replace(row.case) != Some(row.case) {
            writeln!(
                out,
                "\nDrain, {}\n{:<17} {:>26} {:>25} {:>20} {:>10}",
                match name_of(row.case) {
                    "single" => "written one event a transaction",
                    _ => "written 1,000 events a transaction",
                },
                "",
                "events/s",
                "CPU s per 1,000",
                "peak MiB",
                "duplicates"
            )?;
        }
        writeln!(
            out,
            "{:<17} {:>26} {:>25} {:>20} {:>10}",
            row.source.name(),
            shown(row.events_per_second, 0),
            shown(row.cpu_seconds_per_1000, 4),
            shown(row.peak_rss_mib, 0),
            row.duplicates
        )?;
        ratios(&row.ratios, out)?;
    }
    if !report.drains.is_empty() {
        writeln!(
            out,
            "From the first append to the last, by the broker's clock; ceilings by their own. CPU and memory are the \
             publisher's process, its start included, or Connect's, its start left out and its memory since it \
             started; of a ceiling they are the bench's own, unknown for pg-recvlogical."
        )?;
    }
    Ok(())
}

fn latencies(report: &Report, out: &mut String) -> std::fmt::Result {
    let mut rate = None;
    for row in &report.latencies {
        if rate.replace(row.events_per_second) != Some(row.events_per_second) {
            writeln!(
                out,
                "\nCommit to append in ms, open loop of {} events/s, one a transaction\n\
                 {:<17} {:>20} {:>20} {:>20} {:>20} {:>22} {:>22} {:>24} {:>17}",
                row.events_per_second,
                "",
                "p50",
                "p90",
                "p95",
                "p99",
                "p99.9",
                "max",
                "CPU s per 1,000",
                "peak MiB"
            )?;
        }
        let of = |spread: Option<Spread>| shown(spread, 1);
        let ms = row.commit_to_append_ms.as_ref();
        writeln!(
            out,
            "{:<17} {:>20} {:>20} {:>20} {:>20} {:>22} {:>22} {:>24} {:>17}",
            row.source.name(),
            of(ms.map(|q| q.p50)),
            of(ms.map(|q| q.p90)),
            of(ms.map(|q| q.p95)),
            of(ms.map(|q| q.p99)),
            of(ms.map(|q| q.p99_9)),
            of(ms.map(|q| q.max)),
            shown(row.cpu_seconds_per_1000, 4),
            shown(row.peak_rss_mib, 0)
        )?;
        ratios(&row.ratios, out)?;
        writeln!(
            out,
            "  writing took {} ms at p50; the generator was at most {} ms behind; {} duplicates; dead rows: outbox {}, \
             cursor {}",
            shown(row.transaction_ms_p50, 1),
            shown(row.generator_behind_ms, 1),
            row.duplicates,
            shown(row.dead_outbox_rows, 0),
            shown(row.dead_cursor_rows, 0)
        )?;
    }
    if let Some(floor) = &report.floor {
        let trip = floor.produce_round_trip_ms;
        writeln!(
            out,
            "\nFloor: rskafka alone, one record a request: p50 {:.2} ms, p99 {:.2} ms.",
            trip.p50, trip.p99
        )?;
    }
    if !report.latencies.is_empty() {
        writeln!(
            out,
            "The commit time is PostgreSQL's, in microseconds and from before the flush; the append time is the \
             broker's, in whole milliseconds rounded down: a latency is up to 1 ms more than its figure."
        )?;
    }
    Ok(())
}

fn ratios(ratios: &[Ratio], out: &mut String) -> std::fmt::Result {
    for Ratio { to, of, ratio } in ratios {
        writeln!(out, "  {of} {} of {to}", shown(Some(*ratio), 2))?;
    }
    Ok(())
}

/// What was measured on.
pub fn head(machine: &Machine, services: &[Service], out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "machine    {} cores of {}, {} MiB, load before {:.2}",
        machine.cores, machine.cpu, machine.memory_mib, machine.load_average
    )?;
    for service in services {
        writeln!(out, "{:<10} {}", service.service, service.version)?;
        for (name, value) in &service.settings {
            writeln!(out, "             {name} = {value}")?;
        }
    }
    if !machine.optimised {
        writeln!(out, "\nThis is a development build: its figures say nothing. Build with --release.")?;
    }
    Ok(())
}

/// A median with its extremes.
pub fn shown(spread: Option<Spread>, decimals: usize) -> String {
    spread.map_or_else(
        || "-".to_owned(),
        |Spread { median, min, max }| format!("{median:.decimals$} ({min:.decimals$}-{max:.decimals$})"),
    )
}
