//! The report of `bench business` for people.

use std::fmt::Write as _;

use super::Report;
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
    writeln!(out, "\nMedians of {} rounds, with the least and the most in brackets.", report.rounds)?;
    let days = report.backtests.first().map_or(0, |row| row.days);
    writeln!(out, "\n{:<20} {:>26} {:>8}", format!("backtest, {days} days"), "ms", "sales")?;
    for row in &report.backtests {
        writeln!(out, "{:<20} {:>26} {:>8}", row.strategy.as_str(), shown(row.ms, 2), row.sales)?;
    }
    writeln!(out, "\n{:<38} {:>26} {:>12} {:>8}", "curtailment, thorough", "ms", "", "gap %")?;
    for row in &report.curtailment {
        writeln!(
            out,
            "{:<38} {:>26} {:>12} {:>8}",
            format!("{} classes, {} steps, cap {} %", row.classes, row.steps, row.cap_percent),
            shown(row.ms, 0),
            row.method.as_deref().unwrap_or("-"),
            row.gap_percent.map_or_else(|| "-".to_owned(), |gap| format!("{gap:.3}"))
        )?;
    }
    writeln!(out, "\n{:<38} {:>26} {:>22}", "portfolio of one owner, recomputed", "ms", "memory MiB")?;
    for row in &report.fleets {
        writeln!(
            out,
            "{:<38} {:>26} {:>22}",
            format!("{} miners, {} different", row.miners, row.lines),
            shown(row.ms, 1),
            shown(row.memory_mib, 1)
        )?;
    }
    let owners = &report.owners;
    writeln!(
        out,
        "\n{} events of {} owners in one batch: {} recalculations in {} ms",
        owners.events,
        owners.owners,
        owners.recalculations,
        shown(owners.ms, 0)
    )?;
    let row = &report.telemetry;
    writeln!(
        out,
        "\ntelemetry, {} points/s for {} s in requests of {}: due to committed in ms p50 {:.1}, p99 {:.1}, max {:.1}\n  \
         cores: this process {:.2}, PostgreSQL {}",
        row.points_per_second,
        row.seconds,
        row.points_per_request,
        row.request_ms.p50,
        row.request_ms.p99,
        row.request_ms.max,
        row.cores,
        row.postgres_cores.map_or_else(|| "unknown".to_owned(), |cores| format!("{cores:.2}"))
    )
}
