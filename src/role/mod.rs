//! Owns the composition: each file wires one subcommand from the rooms it needs.
//! Promises that wiring happens once, here; nobody imports a role.
//! Called by `main`.

pub mod app;
pub mod bench;
pub mod config;
pub mod connector;
pub mod consume;
mod demo;
pub mod doctor;
pub mod jobs;
pub mod lag;
mod membership;
pub mod migrate;
pub mod offsets;
pub mod publish;
pub mod rebuild;
pub mod replay;
pub mod schedules;
pub mod serve;
pub mod slot;
pub mod standalone;
pub mod token;
pub mod topics;
pub mod webhooks;

/// Prints one JSON document.
fn print_json(document: &(impl serde::Serialize + ?Sized)) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(document)?);
    Ok(())
}
