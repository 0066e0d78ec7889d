//! `hashinsight bench business`: what the calculations take, those that need nothing but their arguments and those with rows.
//!
//! ```text
//!   alone      five years of prices through each strategy; a day of a site in 288 steps
//!   with rows  a fleet of one owner, small and large; many owners in one batch; telemetry as it comes in
//! ```

use std::time::Duration;

use serde::Serialize;

use super::database::Database;
use super::ground;
use super::machine::{self, Machine, Service};
use super::statistics::Spread;
use crate::cli::BusinessBench;
use crate::config::{Config, Origin};
use crate::db::Db;
use crate::lifecycle::Lifecycle;
use crate::role::print_json;

use self::alone::{BacktestRow, CurtailmentRow};
use self::recalculation::{FleetRow, OwnersRow};
use self::telemetry::TelemetryRow;

mod alone;
mod recalculation;
mod telemetry;
mod text;

#[derive(Debug, Serialize)]
struct Report {
    /// The database that was made for it, and dropped again, was named so.
    name: String,
    machine: Machine,
    services: Vec<Service>,
    rounds: u32,
    backtests: Vec<BacktestRow>,
    curtailment: Vec<CurtailmentRow>,
    fleets: Vec<FleetRow>,
    owners: OwnersRow,
    telemetry: TelemetryRow,
}

/// Measures and prints the report.
pub async fn run(config: Config, origins: &[Origin], args: BusinessBench) -> anyhow::Result<()> {
    let (machine, json) = (machine::machine(), args.json.json);
    let mut services = vec![machine::ours(origins)];
    let (name, drain) = (ground::name(), config.shutdown.drain());
    let database = Database::create(config, &name).await?;
    let lifecycle = Lifecycle::default();
    let measured = ground::until_stopped(&lifecycle, drain, async {
        services.push(machine::postgres(&database).await?);
        let db = Db::open(&database.config).await?;
        // First, while this process has no memory to spare that others left: what it adds is seen.
        let fleets = recalculation::fleets(&database, &db, &args).await?;
        let report = Report {
            name,
            machine,
            services,
            rounds: args.rounds,
            backtests: alone::backtests(args.rounds)?,
            curtailment: alone::curtailment(args.rounds)?,
            fleets,
            owners: recalculation::owners(&database, &db, &args).await?,
            telemetry: telemetry::taken(&database, &db, &args).await?,
        };
        db.close().await;
        Ok(report)
    });
    let measured = Box::pin(measured).await;
    let dropped = Database::drop(&database).await;
    let report = measured?;
    dropped?;
    if json {
        return print_json(&report);
    }
    print!("{}", text::text(&report));
    Ok(())
}

/// Milliseconds of several rounds.
fn ms(rounds: impl IntoIterator<Item = Duration>) -> Option<Spread> {
    Spread::of(rounds.into_iter().map(|took| took.as_secs_f64() * 1e3))
}
